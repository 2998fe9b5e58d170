"""Features: kept on disk and found again for the same model and images only, and equal on several processes."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import PartialState
from PIL import Image, ImageFile
from safetensors import SafetensorError

from hf_clip.evaluation import Encoding, FeatureCache, encode_images, encode_texts, features
from hf_clip.evaluation.cache import PROBE
from hf_clip.evaluation.corruptions import Corruption
from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks
from tests.helpers.toys import LookupEncoder, gray, tiny_clip
from tests.model.test_remote_code import tiny


def make_image(seed: int) -> dict:
    """An image as sources give it."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (36, 36, 3), np.uint8)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_FILE", 3)


def counted(model):
    """The model, and a list that grows by the number of images in each batch that it encodes."""
    sizes = []
    model.vision_model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return model, sizes


STREAM = [make_image(0), {"bytes": b"broken", "path": None}, *map(make_image, range(1, 6)), None]


def embed(model, processor, stream=STREAM, **options):
    return encode_images(model, processor, stream, encoding=Encoding(batch_size=2, **options))


@pytest.mark.usefixtures("small_files")
def test_an_evaluation_that_was_stopped_goes_on(tmp_path):
    model, processor = tiny_clip(["a"])
    expected = embed(model, processor)
    model, sizes = counted(model)

    def stopped():
        yield from STREAM[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(model, processor, stopped(), cache=FeatureCache(tmp_path))
    # The probe, and the first file's.
    assert sum(sizes) == 1 + 2
    found = embed(model, processor, cache=FeatureCache(tmp_path))
    # The first file's two readable images were not encoded again.
    assert sum(sizes) == 3 + 1 + 4
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-6, rtol=0)
    assert (found.kept, found.skipped) == (expected.kept, expected.skipped) == ([0, 2, 3, 4, 5, 6], found.skipped)
    assert found.skipped == {"unknown_format": 1, "missing": 1}
    again = embed(model, processor, cache=FeatureCache(tmp_path))
    assert sum(sizes) == 8 + 1 and torch.equal(again.embeddings, found.embeddings) and again.kept == found.kept
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_model_crop_kind_or_image_is_not_found(tmp_path):
    model, processor = tiny_clip(["a"])
    model, sizes = counted(model)
    cache = FeatureCache(tmp_path)

    def is_found(stream=STREAM, **options) -> bool:
        before = len(sizes)
        embed(model, processor, stream, cache=cache, **options)
        # The probe is encoded in any case.
        return len(sizes) == before + 1

    assert not is_found() and is_found()
    assert not is_found(before_projection=True) and is_found(before_projection=True)
    assert not is_found(corruption=Corruption("jpeg", 1)) and is_found(corruption=Corruption("jpeg", 1))
    assert not is_found(corruption=Corruption("jpeg", 2))
    assert not is_found(STREAM[::-1]) and not is_found(STREAM[:-1])
    # The least change of one weight, anywhere.
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = torch.nextafter(model.visual_projection.weight[0, 0], torch.tensor(9.0))
    assert not is_found() and is_found()
    model.config.vision_config.hidden_act = "gelu"
    assert not is_found() and is_found()
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert not is_found() and is_found()


def test_images_that_can_be_decoded_later_are_found_then(tmp_path, monkeypatch):
    """An opener that is registered, or leave to read files that are cut short."""
    model, processor = tiny_clip(["a"])
    with io.BytesIO() as stream:
        Image.effect_noise((64, 64), 50).convert("RGB").save(stream, "JPEG")
        cut = stream.getvalue()[:-200]
    images = [Image.new("RGB", (8, 8), "red"), cut]

    def kept() -> list[int]:
        return encode_images(model, processor, images, encoding=Encoding(cache=FeatureCache(tmp_path))).kept

    assert kept() == kept() == [0]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert kept() == [0, 1]


def test_a_damaged_file_is_made_again(tmp_path):
    model, processor = tiny_clip(["a"])
    expected = embed(model, processor, cache=FeatureCache(tmp_path))
    (file,) = [file for file in tmp_path.rglob("*.safetensors") if file.name != PROBE]
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    # Words that still are JSON, of the same length: the file opens.
    of_another = whole.replace(b"[0, 2, 3", b"[1, 2, 3")
    assert of_another != whole
    for content in (whole[:-5], b"", b"\x00" * 40, whole[:8] + b"?" * 20 + whole[28:], flipped, of_another):
        file.write_bytes(content)
        assert torch.equal(embed(model, processor, cache=FeatureCache(tmp_path)).embeddings, expected.embeddings)
        assert len(file.read_bytes()) == len(whole)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path)
    path = cache.path("key", STREAM)
    path.parent.mkdir()
    os.mkfifo(path)
    with monkeypatch.context() as patched:
        patched.setattr("hf_clip.evaluation.cache.safe_open", lambda *_: pytest.fail("It would wait for ever."))
        assert cache.read(path) is None
    cache.write(path, torch.eye(2), [0, 2], {"missing": 1})
    assert cache.read(path)[1:] == ([0, 2], {"missing": 1})


def test_files_are_known_by_their_state(tmp_path):
    cache, file = FeatureCache(tmp_path), tmp_path / "image.png"
    keys = {cache.path("key", [{"bytes": None, "path": str(file)}])}
    file.write_bytes(make_image(0)["bytes"])
    keys.add(cache.path("key", [{"bytes": None, "path": str(file)}]))
    file.write_bytes(make_image(0)["bytes"] + b" ")
    keys.add(cache.path("key", [str(file)]))
    written = file.stat()
    # Until the clock of the file system has gone on: other content, of the same size and time.
    while file.stat().st_ctime_ns == written.st_ctime_ns:
        file.write_bytes(make_image(1)["bytes"][: written.st_size].ljust(written.st_size))
        os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert file.stat().st_mtime_ns == written.st_mtime_ns
    keys.add(cache.path("key", [str(file)]))
    # What would be one when strung together, and what differs in shape alone.
    keys |= {cache.path("key", each) for each in ([b"ab", b"c"], [b"a", b"bc"], [gray(0, 4)], [gray(0, 4)[:2]] * 2)}
    assert len(keys) == 8
    assert cache.path("key", [file]) == cache.path("key", [{"bytes": None, "path": str(file)}])


def test_open_images_are_known_by_what_the_model_sees(tmp_path):
    cache = FeatureCache(tmp_path)
    indices = Image.new("P", (4, 4))
    images = [indices.copy(), indices.copy(), Image.new("RGB", (4, 8)), Image.new("RGB", (4, 8)), np.zeros((0, 4))]
    for number, palette in enumerate(([255, 0, 0], [0, 0, 255])):
        images[number].putpalette(palette)
    images[3].putpixel((0, 0), (255, 0, 0))
    turned = images[3].copy()
    turned.getexif()[0x0112] = 3
    images += [turned, torch.zeros(3, 4, 4, dtype=torch.bfloat16)]
    assert len({cache.path("key", [each]) for each in images}) == len(images)


def test_the_key_covers_every_type_of_weight(tmp_path):
    model, processor = tiny_clip(["a"])
    cache = FeatureCache(tmp_path)
    keys = {cache.key(model.to(dtype), processor, "x") for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(keys) == 3 and None not in keys


class Wrapped(torch.nn.Module):
    """As DistributedDataParallel wraps a model: without passing its methods on."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_wrapped_model_finds_the_features_of_the_bare_one(tmp_path):
    model, processor = tiny_clip(["a"])
    model, sizes = counted(model)
    expected = embed(model, processor, cache=FeatureCache(tmp_path))
    encoded = len(sizes)
    again = embed(Wrapped(model), processor, cache=FeatureCache(tmp_path))
    # The probe alone.
    assert len(sizes) == encoded + 1 and torch.equal(again.embeddings, expected.embeddings)


def test_what_no_key_sees_the_probe_sees(tmp_path, caplog):
    """A hook changes embeddings without a weight or a setting: features that others left are not taken for its own."""
    model, processor = tiny_clip(["a"])
    embed(model, processor, cache=FeatureCache(tmp_path))
    model.visual_projection.register_forward_hook(lambda _, __, output: output.roll(1, -1))
    cache = FeatureCache(tmp_path)
    assert torch.equal(embed(model, processor, cache=cache).embeddings, embed(model, processor).embeddings)
    (said,) = caplog.messages
    assert "another state of the model" in said and len(list(tmp_path.rglob("*.safetensors"))) == 2


@pytest.mark.parametrize("fault", ["a file in its place", "a full disk", "no right to write", "weights elsewhere"])
def test_a_cache_that_cannot_be_used_costs_one_line_and_no_evaluation(fault, tmp_path, monkeypatch, caplog):
    model, processor = tiny_clip(["a"])
    expected = embed(model, processor)
    monkeypatch.setattr(features, "IMAGES_PER_FILE", 3)
    cache = FeatureCache(tmp_path / "cache")
    if fault == "a file in its place":
        cache.cache_dir.write_text("")
    elif fault == "a full disk":
        calls = []

        def save_file(tensors, file, metadata):
            calls.append(file)
            if len(calls) > 2:
                Path(file).write_bytes(b"half")
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            safetensors.torch.save_file(tensors, file, metadata)

        monkeypatch.setattr("hf_clip.evaluation.cache.save_file", save_file)
    elif fault == "no right to write":

        def mkdir(*args, **options):
            raise PermissionError(13, "Permission denied", "cache")

        monkeypatch.setattr(Path, "mkdir", mkdir)
    else:
        monkeypatch.setattr("hf_clip.evaluation.cache.state_key", lambda *_: 1 / 0)
    found = embed(model, processor, cache=cache)
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-6, rtol=0)
    assert (found.kept, found.skipped) == (expected.kept, expected.skipped)
    (said,) = caplog.messages
    # Space and another folder help against a disk alone.
    is_of_the_disk = fault != "weights elsewhere"
    assert ("HF_HOME" in said) == ("name another folder" in said) == is_of_the_disk and str(cache.cache_dir) in said
    if fault == "a full disk":
        # Not tried again, nothing half written stays, and what was written before is used.
        assert len(calls) == 3 and not list(tmp_path.rglob("*.tmp"))
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_writers_may_race(tmp_path):
    """Threads have one process: each writes aside under a name of its own, and the last one's file is whole."""
    cache, path = FeatureCache(tmp_path), FeatureCache(tmp_path).path("key", STREAM)
    embeddings = torch.eye(200)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.write(path, embeddings, [0], {}), range(soak_count(40, 400))))
    assert torch.equal(cache.read(path)[0], embeddings) and [file.name for file in path.parent.iterdir()] == [
        path.name
    ]


@pytest.mark.parametrize(("tower", "width"), [("vit", 32), ("resnet", 256)])
def test_features_before_the_projection_are_what_it_projects(tower, width):
    """The paper's features of linear probes: a ResNet's are attention-pooled, before the pooling's projection."""
    model, processor = tiny(tower)
    pooled = embed(model, processor, before_projection=True)
    assert pooled.embeddings.shape == (6, width)
    with torch.no_grad():
        projected = torch.nn.functional.normalize(model.visual_projection(pooled.embeddings))
    torch.testing.assert_close(projected, embed(model, processor).embeddings, atol=1e-6, rtol=0)


def embed_on_this_rank(folder: str | None) -> tuple:
    model, processor = tiny_clip(["a"])
    features.IMAGES_PER_FILE = 3
    state = PartialState(cpu=True)
    cache = FeatureCache(folder) if folder else None
    found = embed(model, processor, processes=state, cache=cache)
    texts = encode_texts(model, processor, [f"text {n}" for n in range(5)], batch_size=2, processes=state)
    return found.embeddings, found.kept, found.skipped, texts


@pytest.mark.slow
@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.usefixtures("small_files")
def test_two_processes_give_what_one_gives(is_cached, tmp_path):
    model, processor = tiny_clip(["a"])
    expected = embed(model, processor, cache=FeatureCache(tmp_path / "one"))
    texts = encode_texts(model, processor, [f"text {n}" for n in range(5)], batch_size=2)
    for embeddings, kept, skipped, found_texts in run_on_ranks(
        embed_on_this_rank, 2, str(tmp_path / "two") if is_cached else None
    ):
        # 8 images in shares of 3, 3 and 2: nothing is padded, lost or out of order.
        assert (kept, skipped) == (expected.kept, expected.skipped)
        assert torch.equal(embeddings, expected.embeddings) and torch.equal(found_texts, texts)


@pytest.mark.slow
def test_more_processes_than_shares():
    results = run_on_ranks(embed_few_on_this_rank, 3)
    assert [result.tolist() for result in results] == [[[1.0, 0.0], [0.0, 1.0]]] * 3


def embed_few_on_this_rank() -> torch.Tensor:
    model = LookupEncoder(torch.eye(2), {"x": [1.0, 0.0]})
    return embed(model, model.processor, [gray(0), gray(1)], processes=PartialState(cpu=True)).embeddings


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(monkeypatch, capsys):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(features, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(features.progress(range(4), "images", total=4000, unit="image")) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["images: 1 of 4,000", "images: 3 of 4,000"]
    assert list(features.progress([], "texts")) == []
