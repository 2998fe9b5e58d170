"""Exported models: as exact as they claim, with free batch and text length, and usable in the model's place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_clip import (
    ConversionError,
    ExportError,
    HFCLIPModel,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    export_model,
    load,
    load_exported,
)
from hf_clip.export import exporting, graphs, parity
from hf_clip.model.state_key_hf_clip import LiveState, state_key
from hf_clip_cli.main import main
from tests.helpers.counts import soak_count
from tests.helpers.squares import NAMES, rows, square, write_parquet
from tests.helpers.trained import TEXTS, trained_clip

pytestmark = pytest.mark.slow

# Every color in every corner, twice.
IMAGES = [square(name, seed) for seed in (1, 2) for name in NAMES]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A trained model's folder."""
    model, processor = trained_clip()
    folder = tmp_path_factory.mktemp("checkpoint") / "squares"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def graphs_made_once(tmp_path_factory):
    """torch's exporter takes seconds for a tower: it runs once for each, whatever is made of the graph."""
    kept = tmp_path_factory.mktemp("graphs")

    def write_graph(model: HFCLIPModel, processor, tower: str, file: Path) -> None:
        made = kept / f"{tower}.onnx"
        if not made.exists():
            graphs.write_graph(model, processor, tower, made)
        shutil.copy(made, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "write_graph", write_graph)
        yield


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The folder that the command writes, in float32."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(checkpoint), "--to", "onnx", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def int8(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "int8"
    report = export_model(checkpoint, to="onnx", int8=True, output_dir=folder, images=IMAGES, texts=TEXTS)
    return folder, report


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).abs().max().item()


def test_float32_gives_the_models_embeddings_for_any_batch_and_text_length(checkpoint, exported):
    model, processor = load(checkpoint)
    runtime, own_processor = load_exported(exported)
    for texts in (["one"], TEXTS[:3], ["a", "two red squares at the top " * 4]):
        ids = own_processor(text=texts, return_tensors="pt")["input_ids"]
        assert ids.equal(processor(text=texts, return_tensors="pt")["input_ids"])
        with torch.no_grad():
            expected = model.encode_text(ids, normalize=False)
        assert distance(runtime.encode_text(ids, normalize=False), expected) < 1e-5
        # A mask of padding changes nothing, as in the model.
        mask = processor(text=texts, return_tensors="pt", return_attention_mask=True)["attention_mask"]
        assert runtime.encode_text(ids, mask).norm(dim=-1).allclose(torch.ones(len(texts)))
        assert distance(runtime.encode_text(ids, mask), expected) < 1e-5
    for count in (1, 4):
        pixels = own_processor(images=IMAGES[:count], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model.encode_image(pixels)
        assert distance(runtime.encode_image(pixels), expected) < 1e-5


def test_files_and_inputs_have_the_ecosystems_names_and_say_nothing_of_this_machine(exported):
    import onnx

    assert {file.name for file in (exported / "onnx").iterdir()} == {"text_model.onnx", "vision_model.onnx"}
    for name, given, made in (("vision", "pixel_values", "image_embeds"), ("text", "input_ids", "text_embeds")):
        graph = onnx.load(exported / f"onnx/{name}_model.onnx").graph
        assert [one.name for one in (*graph.input, *graph.output)] == [given, made]
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch_size"
    for file in exported.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert b"site-packages" not in content and str(Path.cwd()).encode() not in content, file
    card = (exported / "README.md").read_text()
    assert "ONNX Runtime" in card and "label agreement 1.000" in card and "squares" in card


def test_int8_is_smaller_and_agrees_on_a_trained_model(exported, int8):
    folder, report = int8
    assert report.failures == [] and report.label_agreement >= 0.97
    assert (report.num_images, report.num_texts) == (48, 6)
    assert 0.98 <= report.min_image_cosine < 0.99999
    assert json.loads((folder / "hf_clip_export.json").read_text())["parity"] == report.to_dict()
    for tower in ("text", "vision"):
        small = (folder / f"onnx/{tower}_model_int8.onnx").stat().st_size
        assert small < 0.85 * (exported / f"onnx/{tower}_model.onnx").stat().st_size


@pytest.mark.parametrize(("dtype", "suffix"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_halves_are_smaller_and_near(checkpoint, exported, tmp_path, dtype, suffix):
    report = export_model(checkpoint, to="onnx", dtype=dtype, output_dir=tmp_path / "half")
    assert min(report.min_image_cosine, report.min_text_cosine) >= 0.9999
    assert report.min_text_cosine < 1 - 1e-7 or dtype == "float16"
    small = (tmp_path / f"half/onnx/text_model_{suffix}.onnx").stat().st_size
    assert small < 0.85 * (exported / "onnx/text_model.onnx").stat().st_size


@pytest.mark.parametrize("int8", [False, True][: soak_count(1, 2)])
def test_openvino_gives_the_same(checkpoint, exported, tmp_path, int8):
    folder = tmp_path / "openvino"
    report = export_model(checkpoint, to="openvino", int8=int8, output_dir=folder, images=IMAGES, texts=TEXTS)
    suffix = "_int8" if int8 else ""
    assert (folder / f"openvino/text_model{suffix}.xml").is_file()
    runtime, processor = load_exported(folder)
    other, _ = load_exported(exported)
    bound = 0.2 if int8 else 1e-5
    assert distance(embed_texts(runtime, processor, TEXTS), embed_texts(other, processor, TEXTS)) < bound
    assert distance(embed_images(runtime, processor, IMAGES), embed_images(other, processor, IMAGES)) < bound
    assert report.min_image_cosine < 1 - 1e-6 or not int8


def test_weights_of_large_models_lie_beside_the_graph(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_FILE_BYTES", 0)
    report = export_model(checkpoint, to="onnx", output_dir=tmp_path / "large")
    assert (tmp_path / "large/onnx/vision_model.onnx_data").is_file() and report.min_image_cosine > 0.999999


def test_below_the_bound_nothing_is_written_unless_told(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity, "MIN_COSINE_INT8", 0.9999999)
    command = ["export", str(checkpoint), "--to", "onnx", "--int8", "--output-dir", str(tmp_path / "far")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cosine of images 0.9" in error and "--allow-low-parity" in error
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--allow-low-parity"]) == 0
    assert "label agreement" in capsys.readouterr().out and (tmp_path / "far/README.md").is_file()


def test_a_disagreement_on_labels_is_below_the_bound_for_int8():
    report = parity.ParityReport(100, 10, 0.99, 0.99, 0.96, is_int8=True)
    assert report.failures == ["label agreement 0.960 (least 0.97)"]
    assert len(parity.ParityReport(100, 10, 0.9998, float("nan"), 0.9, is_int8=False).failures) == 2


def test_it_takes_the_models_place(checkpoint, exported, int8, tmp_path):
    model, processor = load(checkpoint)
    runtime, _ = load_exported(exported)
    assert distance(embed_images(runtime, processor, IMAGES), embed_images(model, processor, IMAGES)) < 1e-5
    assert distance(embed_texts(runtime, processor, TEXTS), embed_texts(model, processor, TEXTS)) < 1e-5
    ours = ZeroShotClassifier(model, processor, TEXTS, ["{}"]).predict(IMAGES[:4], top_k=2)
    theirs = ZeroShotClassifier.from_pretrained(exported, TEXTS, ["{}"]).predict(IMAGES[:4], top_k=2)
    for one, other in zip(ours, theirs, strict=True):
        assert [row["label"] for row in one] == [row["label"] for row in other]
        assert np.allclose([row["score"] for row in one], [row["score"] for row in other], atol=1e-4)
    with pytest.raises(ExportError, match="runs on the CPU"):
        embed_images(runtime, processor, IMAGES, device="meta")


def test_what_was_kept_belongs_to_the_files_content(exported, int8, tmp_path):
    runtime, processor = load_exported(exported)
    key = state_key(runtime, processor, "image", "text")
    assert key == state_key(runtime, processor, "image", "text")
    copied = shutil.copytree(exported, tmp_path / "copied")
    again, _ = load_exported(copied)
    assert state_key(again, processor, "image", "text") == key
    other, _ = load_exported(int8[0])
    assert state_key(other, processor, "image") != state_key(runtime, processor, "image")
    assert LiveState(runtime, processor, "text") == LiveState(runtime, processor, "text")
    assert LiveState(runtime, processor, "text") != LiveState(again, processor, "text")
    file = ZeroShotClassifier(runtime, processor, TEXTS).save(tmp_path / "labels.safetensors")
    assert ZeroShotClassifier.load(file, again, processor).labels == TEXTS
    with pytest.raises(ValueError, match="another state"):
        ZeroShotClassifier.load(file, other, processor)


def test_the_command_classifies_and_evaluates_with_it(checkpoint, exported, tmp_path, capsys):
    image = tmp_path / "square.png"
    image.write_bytes(IMAGES[0])
    data = write_parquet(
        tmp_path / "squares.parquet", [{**row, "label": row["caption"].partition(" at")[0]} for row in rows(1)]
    )
    found = []
    for model in (checkpoint, exported):
        words = ["--labels", *TEXTS, "--templates", "{}"]
        assert main(["classify", str(image), "--model", str(model), *words, "--format", "csv"]) == 0
        listed = capsys.readouterr().out.splitlines()[1].split(",")
        where = ["--data", str(data), "--templates", "{}", "--no-cache", "--output", str(tmp_path / "result.json")]
        assert main(["eval", "zero-shot", "--model", str(model), "--label-column", "label", *where]) == 0
        found.append((listed[1], json.loads((tmp_path / "result.json").read_text())["top_1"]))
        capsys.readouterr()
    assert found[0] == found[1] and found[0] == (TEXTS[0], 1.0)
    assert main(["classify", str(image), "--model", str(exported), "--labels", "a", "--dtype", "float16"]) == 2
    assert "drop --dtype" in capsys.readouterr().err


def test_what_needs_weights_says_that_there_are_none(exported, tmp_path, capsys):
    with pytest.raises(ConversionError, match="load_exported takes it"):
        load(exported)
    assert main(["convert", str(exported), "--to", "openai", "--output-dir", str(tmp_path / "out")]) == 1
    assert "is exported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda model: model.encode_image(torch.zeros(1, 3, 16, 16)), "16 x 16 pixels do not fit"),
        (lambda model: model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "raw pixels"),
        (lambda model: model.encode_image(torch.zeros(3, 32, 32)), "has shape"),
        (lambda model: model.encode_text(torch.zeros(1, 78, dtype=torch.long)), "longer than the model's 77"),
        (lambda model: model.encode_text(torch.zeros(1, 4, dtype=torch.long)), "no end token"),
        (lambda model: model.encode_text(torch.full((1, 4), 10**6)), "values from 1000000"),
        (lambda model: model.encode_text(torch.zeros(1, 4)), "int64 or int32"),
        (lambda model: model.encode_text(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0, 1]])), "on the right"),
        (lambda model: model.to(torch.float16), "Export it again"),
    ],
)
def test_wrong_inputs_are_refused_as_by_the_model(exported, encode, message):
    runtime, _ = load_exported(exported)
    with pytest.raises(ValueError, match=message):
        encode(runtime)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "onnx/text_model.onnx").unlink(), "copy the whole folder"),
        (
            lambda folder: (folder / "onnx/text_model.onnx").write_bytes(b"no graph"),
            "cannot be loaded by ONNX Runtime",
        ),
        (lambda folder: (folder / "hf_clip_export.json").write_text('{"runtime": "onnx"}'), "export again"),
        (lambda folder: (folder / "hf_clip_export.json").unlink(), "is no exported model"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(exported, tmp_path, change, message):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    change(folder)
    with pytest.raises(ValueError, match=message) as told:
        load_exported(folder)
    assert "\n" not in str(told.value)


def test_a_file_outside_of_the_folder_is_not_read(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "inner/folder")
    content = json.loads((folder / "hf_clip_export.json").read_text())
    content["files"]["text"] = "../../text_model.onnx"
    (folder / "hf_clip_export.json").write_text(json.dumps(content))
    with pytest.raises(ExportError, match="export again"):
        load_exported(folder)


def test_a_tower_that_cannot_be_exported_is_named(checkpoint, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no\nsuch operator") from KeyError("aten.odd")

    monkeypatch.setattr(exporting, "write_graph", graphs.write_graph)
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match="the text tower .clip. cannot be exported: torch.onnx says 'aten.odd'"):
        export_model(checkpoint, to="onnx", output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tensorrt"}, "`to=tensorrt`"),
        ({"to": "onnx", "dtype": "float64"}, "`dtype=float64`"),
        ({"to": "onnx", "output_dir": "."}, "holds something already"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_model("gone", **{"output_dir": tmp_path / "out", **options})
