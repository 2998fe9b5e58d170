"""Adapters of PEFT on their base give the embeddings that PEFT gives on the class that they were trained on."""

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPForImageClassification, CLIPModel, CLIPVisionModel

from hf_clip import HFCLIPModel, load
from hf_clip.conversion import ConversionError, convert
from hf_clip_cli.main import main
from tests.helpers.checkpoints import TEXTS, unit_embeddings
from tests.helpers.toys import scatter_weights, tiny_clip

pytestmark = pytest.mark.slow

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
ATTENTION = ["q_proj", "v_proj"]
WAYS = {
    "lora": peft.LoraConfig(
        target_modules=ATTENTION, r=2, lora_alpha=7, rank_pattern={"layers.1.self_attn.q_proj": 3}
    ),
    "dora": peft.LoraConfig(target_modules="all-linear", r=2, use_dora=True),
    "a part by a pattern, and a module": peft.LoraConfig(
        target_modules=r"vision_model\.encoder\.layers\.1\..*fc\d|.*(token|patch)_embedding",
        r=2,
        modules_to_save=["visual_projection", "final_layer_norm"],
    ),
    "pissa": peft.LoraConfig(target_modules=ATTENTION, r=2, init_lora_weights="pissa"),
    "ia3": peft.IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder that transformers' classes read too."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny_clip(TEXTS)
    scatter_weights(model).save_pretrained(folder / "ours")
    processor.save_pretrained(folder / "ours")
    convert(folder / "ours", to="transformers", output_dir=folder / "theirs")
    return folder


def trained(model, config: peft.PeftConfig, folder: Path) -> peft.PeftModel:
    """The model with an adapter in which nothing is as it began, saved to a folder."""
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(5)
    for parameter in filter(lambda one: one.requires_grad, adapted.parameters()):
        parameter.data += 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted.eval()


def by_transformers(model, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        output = model(input_ids=input_ids, pixel_values=PIXELS)
    return output.image_embeds, output.text_embeds


def assert_same(model, processor, expected) -> None:
    input_ids = processor(text=TEXTS, return_tensors="pt")["input_ids"]
    for found, theirs in zip(unit_embeddings(model, PIXELS, input_ids), expected(input_ids), strict=True):
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_gives_what_it_gave_on_the_class_it_was_trained_on(way, base, tmp_path):
    peer = trained(CLIPModel.from_pretrained(base / "theirs"), WAYS[way], tmp_path / "theirs")
    model, processor = load(tmp_path / "theirs")
    assert type(model) is HFCLIPModel and model.source_format == "transformers"
    assert all(parameter.requires_grad for parameter in model.parameters()) and not hasattr(model, "peft_config")
    assert_same(model, processor, lambda ids: by_transformers(peer, ids))
    kept, _ = load(tmp_path / "theirs", adapter="keep")
    assert_same(kept, processor, lambda ids: by_transformers(peer, ids))
    assert {name for name, one in kept.named_parameters() if one.requires_grad} == {
        name for name, one in peer.named_parameters() if one.requires_grad
    }
    mine = trained(HFCLIPModel.from_pretrained(base / "ours"), WAYS[way], tmp_path / "ours")
    assert_same(load(tmp_path / "ours")[0], processor, lambda ids: by_transformers(mine, ids))


def test_a_tower_a_classifier_and_a_module_around_the_model_have_adapters_too(base, tmp_path, caplog):
    """Their names have other beginnings, or modules beside the towers; the text tower stays as it is."""
    plain, processor = load(base / "theirs")
    config = peft.LoraConfig(target_modules=ATTENTION, modules_to_save=["classifier"])
    input_ids = processor(text=TEXTS, return_tensors="pt")["input_ids"]
    texts = unit_embeddings(plain, PIXELS, input_ids)[1]
    for kind in (CLIPVisionModel, CLIPForImageClassification):
        peer = trained(kind.from_pretrained(base / "theirs"), config, tmp_path / kind.__name__)
        tower = getattr(peer.base_model.model, "vision_model", peer.base_model.model)
        images = torch.nn.functional.normalize(plain.visual_projection(tower(PIXELS).pooler_output), dim=-1).detach()
        assert_same(load(tmp_path / kind.__name__)[0], processor, lambda _, images=images: (images, texts))
    assert "2 tensors are not the CLIP's and are not loaded: classifier.bias, classifier.weight" in caplog.text
    with pytest.raises(ConversionError, match="cannot be kept on it: pass `adapter=merge`"):
        load(tmp_path / "CLIPVisionModel", adapter="keep")
    holder = torch.nn.Module()
    holder.clip = CLIPModel.from_pretrained(base / "theirs")
    peer = trained(holder, peft.LoraConfig(target_modules=r"clip\.text_model\..*q_proj"), tmp_path / "held")
    expected = peer.base_model.model.clip
    model, _ = load(tmp_path / "held", base=base / "ours")
    assert_same(model, processor, lambda ids: by_transformers(expected, ids))


def test_what_does_not_fit_or_is_not_said_is_one_line(base, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    trained(CLIPModel.from_pretrained(base / "theirs"), WAYS["lora"], folder)
    settings, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    said, weights = json.loads(settings.read_text()), load_file(file)

    def line(problem: str, error=ConversionError, **options) -> None:
        with pytest.raises(error, match=problem) as raised:
            load(folder, **options)
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)

    some = next(iter(weights))
    save_file({name: one for name, one in weights.items() if name != some}, file)
    line("the adapter lacks 1 tensors: .*lora_A")
    save_file(weights | {some.replace("q_proj", "z_proj"): weights[some].clone()}, file)
    line("no place for 1 tensors of the adapter, .*z_proj")
    save_file({f"base_model.model.{name}": torch.ones(2, 2) for name in ("encoder.a.lora_A.weight", "b")}, file)
    line("for another model than a CLIP of these names; its tensors are b, encoder.a.lora_A")
    save_file(weights, file)
    wider = {name: torch.ones(2, 48) if "q_proj.lora_A" in name else one for name, one in weights.items()}
    save_file(wider, file)
    line(r"other shapes .*q_proj.lora_A.* is \[2, 48\] in the file and \[2, 32\] on this model\): pass the `base`")
    save_file(weights, file)
    line("which cannot be loaded .*there is no 'owner/name/none'.*: pass `base`", base="owner/name/none")
    line("which cannot be loaded .*is an adapter itself.*: pass `base`", base=folder)
    settings.write_text(json.dumps(said | {"base_model_name_or_path": None}))
    line("does not say what model it was trained on: pass `base`")
    settings.write_text(json.dumps(said | {"peft_type": "PROMPT_TUNING"}))
    line("holds an adapter of PEFT")
    file.unlink()
    line("has an adapter_config.json, but no adapter_model.safetensors or adapter_model.bin")
    with pytest.raises(ValueError, match="`base=x` is for an adapter of PEFT"):
        load(base / "ours", base="x")
    with pytest.raises(ValueError, match="`adapter=drop` is not known: use merge or keep"):
        load(folder, adapter="drop")
    save_file(weights, file)
    settings.write_text(json.dumps(said))
    monkeypatch.setitem(sys.modules, "peft", None)
    line("pip install peft", ImportError)


def test_half_an_adapter_and_settings_of_another_are_refused(base, tmp_path):
    """What the file lacks would stay the base's without a word; what settings ask for is made before it is filled."""
    folder = tmp_path / "adapter"
    way = peft.LoraConfig(target_modules=ATTENTION, r=2, modules_to_save=["visual_projection", "final_layer_norm"])
    trained(CLIPModel.from_pretrained(base / "theirs"), way, folder)
    settings, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    said, weights = json.loads(settings.read_text()), load_file(file)

    def line(problem: str, changed=weights, **fields) -> None:
        settings.write_text(json.dumps(said | fields))
        save_file({name: tensor.clone() for name, tensor in changed.items()}, file)
        with pytest.raises(ConversionError, match=problem) as raised:
            load(folder)
        assert "\n" not in str(raised.value)

    def without(part: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in weights.items() if part not in name}

    line("lacks 1 of what its settings name: visual_projection", without("visual_projection"))
    line("lacks 1 of what its settings name: text_model.final_layer_norm.bias", without("layer_norm.bias"))
    line("lacks 4 of what its settings name: .*layers.1.self_attn", without("layers.1."))
    whole = {name: tensor.to(torch.int8) for name, tensor in weights.items() if "visual_projection" in name}
    line("1 tensors of the adapter are not of floating point: .*projection", weights | whole)
    line("a rank of 1000000000 is more than any tensor of the adapter has", r=10**9)
    line("a rank of 1000000000 is more than any tensor of the adapter has", rank_pattern={"q_proj": 10**9})
    line("peft_type='LATER', which peft .* does not know: pip install -U peft", peft_type="LATER")
    line(r"names as its base what is no name \('a.nb'\)", base_model_name_or_path="a\nb")
    settings.write_text(json.dumps(said))
    save_file(weights, file)
    deeper, processor = tiny_clip(TEXTS, num_hidden_layers=3)
    deeper.save_pretrained(tmp_path / "deeper")
    processor.save_pretrained(tmp_path / "deeper")
    with pytest.raises(ConversionError, match="lacks 4 of what its settings name: .*layers.2.*on another model"):
        load(folder, base=tmp_path / "deeper")


def test_the_command_takes_an_adapter(base, tmp_path, capsys):
    peer = trained(CLIPModel.from_pretrained(base / "theirs"), WAYS["lora"], tmp_path / "adapter")
    arguments = ["convert", str(tmp_path / "adapter"), "--to", "transformers", "--output-dir", str(tmp_path / "out")]
    assert main([*arguments, "--base", str(base / "ours"), "--verify"]) == 0
    _, processor = load(base / "theirs")
    merged = CLIPModel.from_pretrained(tmp_path / "out").eval()
    assert_same(load(tmp_path / "out")[0], processor, lambda ids: by_transformers(peer, ids))
    ids = processor(text=TEXTS, return_tensors="pt")["input_ids"]
    for one, other in zip(by_transformers(merged, ids), by_transformers(peer, ids), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`adapter=keep`"):
        convert(tmp_path / "adapter", to="hf_clip", output_dir=tmp_path / "kept", adapter="keep")


def test_another_resolution_and_type(base, tmp_path):
    trained(CLIPModel.from_pretrained(base / "theirs"), WAYS["lora"], tmp_path / "adapter")
    model, processor = load(tmp_path / "adapter", image_size=48, dtype=torch.bfloat16)
    whole, _ = load(tmp_path / "adapter")
    whole.set_image_size(48)
    assert model.dtype == torch.bfloat16 and processor.image_processor.crop_size["height"] == 48
    for (name, one), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        # Positions are resampled in the type of the weights.
        limit = 0.01 if "position" in name else 0
        torch.testing.assert_close(one, other.to(torch.bfloat16), rtol=0, atol=limit)
