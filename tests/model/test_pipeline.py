"""The zero-shot pipeline: the stock one's arguments and scores, labels encoded once, and images by URL."""

import base64
import copy
import io
import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_clip import HFCLIPProcessor, HFCLIPZeroShotPipeline
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from tests.helpers.squares import encode
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python
from tests.model.test_zero_shot import tiny_siglip

LABELS = ["a red square", "something blue", "green"]
TASK = "zero-shot-image-classification"


def make_images(count: int = 3) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (40, 56, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = (tiny_clip if request.param == "softmax" else tiny_siglip)(LABELS)
    if request.param == "sigmoid":
        # The stock pipeline pads the texts of such models to 64.
        processor.text_padding, processor.tokenizer.model_max_length = "max_length", 64
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pipe():
    model, processor = tiny_clip(LABELS)
    return HFCLIPZeroShotPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture
def encoded(pipe, monkeypatch):
    """How many texts were encoded at once, in order."""
    counts, encode_text = [], pipe.model.encode_text

    def counting(input_ids, *args, **kwargs):
        counts.append(len(input_ids))
        return encode_text(input_ids, *args, **kwargs)

    monkeypatch.setattr(pipe.model, "encode_text", counting)
    return counts


def near(found, expected, tolerance=1e-5):
    assert [[row["label"] for row in rows] for rows in found] == [[row["label"] for row in rows] for rows in expected]
    for rows, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose([r["score"] for r in rows], [r["score"] for r in wanted], rtol=0, atol=tolerance)


@pytest.mark.slow
def test_scores_are_the_stock_pipelines(folder):
    stock = pipeline(TASK, model=str(folder), device="cpu")
    assert type(stock).__name__ == "ZeroShotImageClassificationPipeline"
    ours = pipeline(TASK, model=str(folder), pipeline_class=HFCLIPZeroShotPipeline, device="cpu")
    named = pipeline("hf-clip-zero-shot", model=str(folder), device="cpu")
    assert type(named) is type(ours) is HFCLIPZeroShotPipeline
    for options in ({}, {"hypothesis_template": "{}"}, {"hypothesis_template": "a {}", "batch_size": 2}):
        expected = stock(make_images(), candidate_labels=LABELS, **options)
        near(ours(make_images(), candidate_labels=LABELS, **options), expected)
        near(named(make_images(), LABELS, **options), expected)


def test_stock_scores_are_the_models_own(folder):
    """On opaque images the stock pipeline gives the scores of model and processor."""
    stock = pipeline(TASK, model=str(folder), device="cpu")
    texts = [f"This is a photo of {label}." for label in LABELS]
    inputs = HFCLIPProcessor.from_pretrained(folder)(text=texts, images=make_images(), return_tensors="pt")
    with torch.no_grad():
        logits = stock.model(**inputs).logits_per_image
    scores = logits.sigmoid() if "siglip" in stock.model.config.model_type else logits.softmax(-1)
    for rows, wanted in zip(stock(make_images(), candidate_labels=LABELS), scores.tolist(), strict=True):
        found = {row["label"]: row["score"] for row in rows}
        assert found == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=1e-5)


def test_what_comes_in_and_what_goes_out(pipe, tmp_path):
    [image] = make_images(1)
    single = pipe(image, candidate_labels=LABELS)
    assert [set(row) for row in single] == [{"score", "label"}] * 3
    content = encode(np.asarray(image))
    file = tmp_path / "a.png"
    file.write_bytes(content)
    text = base64.b64encode(content).decode()
    sources = [image, str(file), file, content, np.asarray(image), text, f"data:image/png;base64,{text}"]
    for source in sources:
        assert pipe(source, LABELS) == single
    # Without a slash, longer than any file's name, and shorter than what is never taken for a path.
    black = io.BytesIO()
    Image.new("RGB", (8, 8)).save(black, "BMP")
    encoded = base64.b64encode(black.getvalue()).decode()
    assert "/" not in encoded and 255 < len(encoded) < 4096
    assert pipe(encoded, LABELS) == pipe(Image.new("RGB", (8, 8)), LABELS)
    for found in (pipe(images=sources, candidate_labels=LABELS), pipe(tuple(sources), LABELS)):
        near(found, [single] * len(sources))
    stream = pipe((source for source in sources), candidate_labels=LABELS, batch_size=2)
    near(list(stream), [single] * len(sources))
    assert pipe([], candidate_labels=LABELS) == []
    # Not the arrangement of the batch decides: five images, in batches of two and of all.
    near(pipe(make_images(5), LABELS, batch_size=2), [pipe(one, LABELS) for one in make_images(5)])


def test_images_go_through_the_model_in_batches(pipe, monkeypatch):
    sizes, encode_image = [], pipe.model.encode_image
    monkeypatch.setattr(
        pipe.model, "encode_image", lambda pixels, **more: sizes.append(len(pixels)) or encode_image(pixels, **more)
    )
    pipe(make_images(5), LABELS)
    pipe(make_images(5), LABELS, batch_size=2)
    assert sizes == [5, 2, 2, 1]


def test_more_than_the_stock_pipeline_has(pipe):
    whole = pipe(make_images(), LABELS)
    assert pipe(make_images(), LABELS, top_k=1) == [rows[:1] for rows in whole]
    assert pipe(make_images(), LABELS, threshold=whole[0][0]["score"])[0] == whole[0][:1]
    several = pipe(make_images(), LABELS, templates=["a {}", "the {}"])
    assert several != whole and sum(row["score"] for row in several[0]) == pytest.approx(1)
    rejecting = pipe(make_images(1), LABELS, rejection="none of them")
    assert {row["label"] for row in rejecting[0]} == {*LABELS, "none of them"}
    alone = pipe(make_images(1), LABELS, multi_label=True)
    against = pipe(make_images(1), [LABELS[0]], rejection="something else")
    scores = {row["label"]: row["score"] for row in against[0]}
    assert {row["label"]: row["score"] for row in alone[0]}[LABELS[0]] == pytest.approx(scores[LABELS[0]], abs=1e-6)
    assert [row["label"] for row in pipe(make_images(1), [("green", "red"), "blue"])[0]] != []


def test_columns_and_data_sets_are_lists_of_images(pipe):
    images = make_images(5)
    expected = pipe(images, LABELS)
    rows = datasets.Dataset.from_dict({"photo": images}, features=datasets.Features({"photo": datasets.Image()}))
    for several in (rows["photo"], rows, KeyDataset(rows, "photo"), np.stack(images)):
        near(list(pipe(several, candidate_labels=LABELS, batch_size=2)), expected)
    assert type(pipe(rows["photo"], LABELS)) is list
    near(list(pipe(rows.to_iterable_dataset(), LABELS)), expected)


@pytest.mark.parametrize("labels", [[1, 2.5], range(1, 3), np.array([1, 2]), np.array(["a", "b"]), {"a": 1, "b": 2}])
def test_labels_may_be_numbers_arrays_and_keys(pipe, labels):
    found = pipe(make_images(1)[0], labels)
    assert sorted(row["label"] for row in found) == list(labels)
    expected = pipe(make_images(1)[0], [f"{label}" for label in labels])
    assert [(f"{row['label']}", row["score"]) for row in found] == [(row["label"], row["score"]) for row in expected]


def test_arguments_of_the_tokenizer_go_to_it(pipe, encoded):
    [image] = make_images(1)
    long = ["a red square, " * 2 + end for end in ("one", "two")]
    whole = pipe(image, long)
    cut = pipe(image, long, tokenizer_kwargs={"max_length": 8})
    assert whole[0]["score"] != whole[1]["score"] and cut[0]["score"] == cut[1]["score"] == pytest.approx(0.5)
    assert pipe(image, long, tokenizer_kwargs={"truncation": True}) == whole and encoded == [2, 2, 2]


def test_threads_share_a_pipeline(pipe, encoded):
    [image] = make_images(1)
    expected, found = pipe(image, LABELS), []
    pipe.clear_cache()
    pipe.model.train()
    encoded.clear()
    threads = [threading.Thread(target=lambda: found.append(pipe(image, LABELS))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    near(found, [expected] * 6)
    assert encoded == [3] and pipe.model.training


def test_labels_are_encoded_once(pipe, encoded):
    first = pipe(make_images(5), candidate_labels=LABELS, batch_size=2)
    assert encoded == [3]
    assert pipe(make_images(5), candidate_labels=tuple(LABELS), top_k=2, batch_size=2) == [rows[:2] for rows in first]
    assert encoded == [3]
    pipe(make_images(1), LABELS, templates=["a {}", "the {}"])
    pipe(make_images(1), LABELS[:2])
    pipe(make_images(1), LABELS, rejection="none")
    assert encoded == [3, 6, 2, 4]
    pipe(make_images(1), LABELS)
    assert encoded == [3, 6, 2, 4]
    pipe.clear_cache()
    pipe(make_images(1), LABELS)
    assert encoded[4:] == [3]


def write_in_place(model):
    with torch.no_grad():
        model.text_projection.weight.mul_(-1)


def put_another_parameter(model):
    model.text_projection.weight = torch.nn.Parameter(-model.text_projection.weight.detach())


def load_a_state(model):
    state = {
        name: -tensor if name.startswith("text_projection") else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)


def swap_the_data(model):
    model.text_projection.weight.data = -model.text_projection.weight.data


def take_a_step(model):
    optimizer = torch.optim.AdamW([model.text_projection.weight], lr=0.5)
    model.text_projection.weight.square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [write_in_place, put_another_parameter, load_a_state, swap_the_data, take_a_step],
    ids=lambda f: f.__name__,
)
def test_labels_are_encoded_again_when_the_text_tower_changes(pipe, encoded, change):
    before = pipe(make_images(1), LABELS)
    change(pipe.model)
    after = pipe(make_images(1), LABELS)
    assert encoded == [3, 3]
    fresh = HFCLIPZeroShotPipeline(model=copy.deepcopy(pipe.model), processor=pipe.processor, device="cpu")
    near(after, fresh(make_images(1), LABELS), 1e-6)
    assert after != before


def test_labels_are_encoded_again_when_the_text_tower_of_a_compiled_model_changes(pipe):
    pipe.model = torch.compile(pipe.model, backend="eager")
    before = pipe(make_images(1), LABELS)
    write_in_place(pipe.model)
    fresh = HFCLIPZeroShotPipeline(model=pipe.model._orig_mod, processor=pipe.processor, device="cpu")
    assert before != pipe(make_images(1), LABELS) == fresh(make_images(1), LABELS)


def test_labels_are_encoded_again_by_another_processor_or_tokenizer(pipe, encoded):
    pipe(make_images(1), LABELS)
    pipe.processor = copy.deepcopy(pipe.processor)
    pipe(make_images(1), LABELS)
    pipe.processor.tokenizer = copy.deepcopy(pipe.processor.tokenizer)
    pipe(make_images(1), LABELS)
    pipe(make_images(1), LABELS)
    assert encoded == [3, 3, 3]


def test_labels_are_kept_when_the_image_tower_changes(pipe, encoded):
    before = pipe(make_images(1), LABELS)
    with torch.no_grad():
        pipe.model.visual_projection.weight.mul_(-1)
    assert pipe(make_images(1), LABELS) != before
    assert encoded == [3]


def test_the_cache_keeps_the_latest(pipe, encoded):
    for number in range(9):
        pipe(make_images(1), [f"label {number}"])
    pipe(make_images(1), ["label 8"])
    assert len(encoded) == 9
    pipe(make_images(1), ["label 0"])
    assert len(encoded) == 10


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ValueError, "`candidate_labels` is empty"),
        ({"candidate_labels": "cat, dog"}, TypeError, "is one string"),
        ({"candidate_labels": [True, "no"]}, TypeError, "True, which is bool"),
        ({"candidate_labels": LABELS, "top_k": 0}, ValueError, "top_k=0"),
        ({"candidate_labels": LABELS, "topk": 1}, ValueError, "topk is no argument here"),
        (
            {"candidate_labels": LABELS, "hypothesis_template": "a photo"},
            ValueError,
            "`hypothesis_template` holds 'a photo'",
        ),
        ({"candidate_labels": LABELS, "hypothesis_template": "{}", "templates": ["{}"]}, ValueError, "are both given"),
        ({"candidate_labels": LABELS, "image": "gone.png"}, ImageDecodeError, "no such file"),
        ({"candidate_labels": LABELS, "image": "data:image/png;base64,&&"}, ImageDecodeError, "no base64"),
        ({"candidate_labels": LABELS, "image": None}, ValueError, "there is no image"),
    ],
)
def test_what_cannot_be_classified(pipe, options, error, said):
    with pytest.raises(error, match=said):
        pipe(**{"image": make_images(1)[0], **options})


def test_what_cannot_be_a_pipeline():
    model, processor = tiny_clip(LABELS)
    with pytest.raises(ValueError, match="has no processor"):
        HFCLIPZeroShotPipeline(model=model, device="cpu")
    with pytest.raises(TypeError, match="HFCLIPVisionModel, which has no encode_image and encode_text"):
        HFCLIPZeroShotPipeline(model=model.vision_model, processor=processor, device="cpu")


@pytest.fixture
def server():
    """The address of a server on the loopback that has an image, one with nothing, and one that keeps silent."""
    content = encode(np.asarray(make_images(1)[0]))
    is_over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/silent":
                is_over.wait(20)
            self.send_response(200 if self.path == "/image.png" else 404)
            self.end_headers()
            self.wfile.write(content if self.path == "/image.png" else b"none")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        is_over.set()
        serving.shutdown()


def test_urls_are_fetched_by_transformers(pipe, server):
    assert pipe(f"{server}/image.png", LABELS) == pipe(make_images(1)[0], LABELS)
    with pytest.raises(ImageDecodeError, match="UnidentifiedImageError.: fetch it yourself") as raised:
        pipe(f"{server}/gone.png?token=secret", LABELS)
    assert raised.value.reason == "url" and "secret" not in str(raised.value)
    with pytest.raises(ImageDecodeError, match="ReadTimeout"):
        pipe(f"{server}/silent", LABELS, timeout=0.2)


ELSEWHERE = """
import sys
sys.modules["hf_clip"] = None
import json
from transformers import pipeline
pipe = pipeline("hf-clip-zero-shot", model=sys.argv[1], trust_remote_code=True, device="cpu")
print(json.dumps(pipe(sys.argv[2], candidate_labels=["a red square", "green"], templates=["{}", "a {}"])))
"""


@pytest.mark.slow
def test_a_saved_pipeline_works_where_the_package_is_not(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(encode(np.asarray(make_images(1)[0])))
    done = subprocess.run(
        [*warm_python("libraries"), "-c", ELSEWHERE, str(tmp_path / "model"), str(tmp_path / "a.png")],
        cwd=tmp_path, env={**os.environ, "PYTHONSAFEPATH": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = pipe(make_images(1)[0], ["a red square", "green"], templates=["{}", "a {}"])
    near([json.loads(done.stdout.splitlines()[-1])], [expected], 1e-6)
    assert (Path(tmp_path) / "model/processor_config.json").is_file()
