"""`load` and folders that mean harm, or were damaged: nothing in them runs, and errors say what is wrong where."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clip import load
from hf_clip.conversion import ConversionError
from hf_clip.conversion.verify import embed_with_transformers
from tests.helpers.checkpoints import TEXTS, open_clip_config, write_open_clip_folder
from tests.helpers.toys import tiny_clip


@pytest.fixture
def open_clip_folder(tmp_path):
    write_open_clip_folder(tmp_path / "theirs", open_clip_config())
    return tmp_path / "theirs"


def our_folder(folder: Path) -> Path:
    for part in tiny_clip(TEXTS):
        part.save_pretrained(folder)
    return folder


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("part", ["image_processor", "tokenizer", "verify"])
def test_code_in_a_folder_is_neither_run_nor_asked_about(part, open_clip_folder, tmp_path, monkeypatch):
    """transformers would ask on the terminal, and run it on a "y"."""
    folder, mark = our_folder(tmp_path / "model"), tmp_path / "has_run"
    (folder / "other.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Other: pass\n")
    if part == "image_processor":
        kind = {"image_processor_type": "Other", "auto_map": {"AutoImageProcessor": "other.Other"}}
        edit(folder / "processor_config.json", lambda settings: settings["image_processor"].update(kind))
    elif part == "tokenizer":
        kind = {"tokenizer_class": "Other", "auto_map": {"AutoTokenizer": ["other.Other", None]}}
        edit(folder / "tokenizer_config.json", lambda settings: settings.update(kind))
        (folder / "config.json").unlink()
    else:
        kind = {"processor_class": "Other", "auto_map": {"AutoProcessor": "other.Other"}}
        (folder / "processor_config.json").write_text(json.dumps(kind))
    runs = {
        "tokenizer": lambda: load(open_clip_folder, tokenizer=folder),
        "verify": lambda: embed_with_transformers(folder),
    }
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    with pytest.raises(ValueError, match="code"):
        runs.get(part, lambda: load(folder))()
    assert not asked and not mark.exists()
    if part == "image_processor":
        with pytest.raises(ConversionError, match="not run: pass `preprocessing` .* and `tokenizer`"):
            load(folder)
        assert load(folder, preprocessing={})[1].image_processor.crop_size["height"] == 32


def test_the_config_of_a_text_tower_runs_no_code(tmp_path, monkeypatch):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "other.py").write_text("raise SystemExit('has run')\n")
    kind = {"model_type": "other", "auto_map": {"AutoConfig": "other.Other"}}
    (tmp_path / "backbone" / "config.json").write_text(json.dumps(kind))
    cfg = open_clip_config()
    write_open_clip_folder(tmp_path / "theirs", cfg)
    cfg["text_cfg"] = {"hf_model_name": str(tmp_path / "backbone")}
    (tmp_path / "theirs/open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(ConversionError, match="whose config is needed and cannot be had"):
        load(tmp_path / "theirs")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_does_not_name_the_kernels_that_run_it(key, tmp_path):
    """transformers would fetch those of a repository and load them."""
    edit(our_folder(tmp_path) / "config.json", lambda config: config.update({key: "someone/kernels"}))
    model, _ = load(tmp_path)
    assert {part.config._attn_implementation for part in (model, model.text_model, model.vision_model)} == {"sdpa"}


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64], ids=str)
@pytest.mark.parametrize("form", ["ours", "open_clip"])
def test_numbers_that_are_no_weights_are_refused(dtype, form, open_clip_folder, tmp_path):
    """A quantized model would load as noise."""
    folder = open_clip_folder if form == "open_clip" else our_folder(tmp_path / "model")
    file = next(folder.glob("*model.safetensors"))
    state = load_file(file)
    name = "visual.proj" if form == "open_clip" else "visual_projection.weight"
    save_file(state | {name: state[name].to(dtype)}, file, {"format": "pt"})
    with pytest.raises(ConversionError, match=f"visual_projection.weight .{dtype}"):
        load(folder)


def test_other_shapes_than_the_configs_are_named(tmp_path):
    folder = our_folder(tmp_path)
    state = load_file(folder / "model.safetensors")
    state |= {"logit_scale": state["logit_scale"].reshape(1), "text_projection.weight": torch.zeros(16, 8)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ConversionError, match=r"shapes differ in 2 tensors: .*\(16, 8\) instead of \(16, 32\)"
    ) as error:
        load(folder)
    assert "logit_scale (1,) instead of ()" in str(error.value) and str(error.value).startswith(str(tmp_path))


HOSTILE_SETTINGS = [
    ("ours", ("text_config", "intermediate_size"), -3),
    ("ours", ("model_type",), ["hf_clip"]),
    ("ours", ("text_config",), [1]),
    ("ours", ("dtype",), "nope"),
    ("ours", ("vision_config", "hidden_size"), "64"),
    ("open_clip", ("model_cfg", "vision_cfg", "head_width"), 0),
    ("open_clip", ("model_cfg", "vision_cfg", "patch_size"), 0),
    ("open_clip", ("model_cfg", "vision_cfg"), [1]),
    ("open_clip", ("model_cfg",), 3),
    ("open_clip", ("preprocess_cfg",), [1]),
]


@pytest.mark.parametrize("form, place, value", HOSTILE_SETTINGS)
def test_settings_of_wrong_kinds_end_with_the_source_and_one_line(form, place, value, open_clip_folder, tmp_path):
    folder = open_clip_folder if form == "open_clip" else our_folder(tmp_path / "model")
    file = folder / ("open_clip_config.json" if form == "open_clip" else "config.json")

    def put(settings):
        for step in place[:-1]:
            settings = settings[step]
        settings[place[-1]] = value

    edit(file, put)
    with pytest.raises(ConversionError) as error:
        load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
