"""Checkpoints as trainers leave them: the one CLIP in a file is found, whole, and what stands beside it is named."""

import shutil

import pytest
import torch
from transformers import Siglip2Model

from hf_clip import load
from hf_clip.conversion import ConversionError, convert
from hf_clip.conversion.open_clip import open_clip_rules
from hf_clip.conversion.rules import export_tensors
from tests.helpers.checkpoints import TEXTS, open_clip_config, tokenizer, write_open_clip_folder
from tests.helpers.naflex import siglip2_config
from tests.helpers.toys import scatter_weights, tiny_clip

OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
HEAD = {"ff_head.weight": torch.ones(2, 16), "loss_fn.margin": torch.tensor(0.1)}


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny_clip(TEXTS)


@pytest.fixture(params=["open_clip", "transformers"])
def state(request, model_and_processor) -> dict[str, torch.Tensor]:
    """The model's tensors in the names of two formats."""
    model, _ = model_and_processor
    state = model.state_dict()
    return export_tensors(state, open_clip_rules(model.config)) if request.param == "open_clip" else state


def assert_loads(content, model_and_processor, folder) -> None:
    model, processor = model_and_processor
    torch.save(content, folder / "checkpoint.pt")
    found, _ = load(folder / "checkpoint.pt", config=model.config, tokenizer=processor.tokenizer)
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {
            "epoch": 1,
            "model_state_dict": state,
            "optimizer_state_dict": OPTIMIZER,
            "loss": torch.tensor(1.0),
        },
        lambda state: {"model": state, "optimizer": OPTIMIZER, "scaler": {}, "step": torch.tensor(3)},
        lambda state: {"net": state, "best": 0.5},
        lambda state: {"ema_of_mine": state, "epoch": 3},
        lambda state: {"state_dict": state, "state_dict_ema": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.model.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_trainers_keep_the_state_dict_under_names_of_their_own(wrap, state, model_and_processor, tmp_path, caplog):
    assert_loads(wrap(state), model_and_processor, tmp_path)
    assert not caplog.messages


@pytest.mark.parametrize("prefix", ["", "model.", "visual.", "audio_visual.clip.", "module.net.clip."])
def test_heads_beside_the_clip_are_named_and_not_loaded(prefix, state, model_and_processor, tmp_path, caplog):
    """As Lightning saves a module that holds a CLIP."""
    within = {f"{prefix}{name}": tensor for name, tensor in state.items()} | HEAD
    assert_loads({"state_dict": within, "callbacks": {}}, model_and_processor, tmp_path)
    [said] = caplog.messages
    assert "2 tensors are not the CLIP's and are not loaded: ff_head.weight, loss_fn.margin." in said


def test_a_trainers_file_is_loaded_beside_the_settings_of_its_model(model_and_processor, tmp_path, caplog):
    """Any name, any wrapper; what the trainer keeps beside it is no model."""
    model, processor = model_and_processor
    for part in model_and_processor:
        part.save_pretrained(tmp_path / "ours")
    folder = tmp_path / "theirs"
    convert(tmp_path / "ours", to="transformers", output_dir=folder)
    (folder / "model.safetensors").unlink()
    state = {f"clip.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state | HEAD}, folder / "best.ckpt")
    torch.save(OPTIMIZER, folder / "optimizer.pt")
    caplog.clear()
    found, fitting = load(folder)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert fitting(text=TEXTS)["input_ids"] == processor(text=TEXTS)["input_ids"]
    [said] = caplog.messages
    assert "best.ckpt: 2 tensors are not the CLIP's" in said
    # transformers would find no weights in the source.
    assert convert(folder, to="transformers", output_dir=tmp_path / "back", verify=True).is_passed
    (folder / "last.pt").touch()
    with pytest.raises(ConversionError, match="no weights: .*is missing. Of best.ckpt, last.pt, leave one."):
        load(folder)


def test_a_clip_is_loaded_whole_or_not_at_all(state, model_and_processor, tmp_path):
    model, processor = model_and_processor
    within = {f"clip.{name}": tensor for name, tensor in state.items()}
    lost = next(name for name in within if "ln_final" in name or "final_layer_norm" in name)
    options = {"config": model.config, "tokenizer": processor.tokenizer}
    for content in (
        {name: tensor for name, tensor in within.items() if name != lost},
        within
        | {"clip.visual.more" if "clip.visual.conv1.weight" in within else "clip.vision_model.more": torch.ones(1)},
    ):
        torch.save({"state_dict": content}, tmp_path / "x.ckpt")
        with pytest.raises(ConversionError, match="x.ckpt .its tensors under the prefix 'clip.'."):
            load(tmp_path / "x.ckpt", **options)
    twice = {f"{one}.{name}": tensor for one in ("student", "teacher") for name, tensor in state.items()}
    torch.save({"state_dict": twice}, tmp_path / "x.ckpt")
    with pytest.raises(ConversionError, match="holds 2 models of CLIP, under the prefixes 'student.' and 'teacher.'"):
        load(tmp_path / "x.ckpt", **options)


def test_patches_do_not_tell_their_size(tmp_path):
    torch.save(scatter_weights(Siglip2Model(siglip2_config())).state_dict(), tmp_path / "naflex.pt")
    with pytest.raises(ConversionError, match="as those of SigLIP 2's NaFlex.*pass the folder.*or `config`"):
        load(tmp_path / "naflex.pt")


def test_a_config_without_towers_does_not_win_over_open_clips(tmp_path):
    """As Marqo's repositories have it, for a class of their own code."""
    write_open_clip_folder(tmp_path / "theirs", open_clip_config())
    folder, options = tmp_path / "theirs", {"tokenizer": tokenizer()}
    expected, _ = load(folder, **options)
    (folder / "config.json").write_text('{"model_type": "clip", "architectures": ["OfTheirs"]}')
    shutil.copy(folder / "open_clip_model.safetensors", folder / "model.safetensors")
    found, _ = load(folder, **options)
    assert found.source_format == "open_clip"
    assert torch.equal(found.visual_projection.weight, expected.visual_projection.weight)
