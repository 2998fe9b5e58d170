"""Models that tools have changed: adapters of PEFT, quantized layers, traced and exported programs."""

import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import pipeline

from hf_clip import (
    HFCLIPModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModelWithProjection,
    ZeroShotClassifier,
    evaluate_zero_shot,
    open_source,
)
from hf_clip.evaluation import Encoding, FeatureCache
from tests.helpers.toys import scatter_weights, tiny_clip

LABELS = ["a red cat", "a blue dog", "a green fish"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture
def clip():
    return tiny_clip(LABELS)


@pytest.fixture
def folder(clip, tmp_path):
    scatter_weights(clip[0]).save_pretrained(tmp_path / "model")
    clip[1].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def inputs(processor, texts=LABELS, images=3) -> dict[str, torch.Tensor]:
    pixels = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(images))
    return {"input_ids": processor(text=texts, return_tensors="pt")["input_ids"], "pixel_values": pixels}


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=False)


@pytest.mark.parametrize(
    ("kind", "side"),
    [(HFCLIPModel, None), (HFCLIPTextModelWithProjection, "text"), (HFCLIPVisionModelWithProjection, "image")],
)
def test_lora_with_checkpointing_gives_the_gradients_without(kind, side, clip, folder):
    batch = inputs(clip[1])
    batch |= {"return_loss": True} if side is None else {}
    batch = {name: value for name, value in batch.items() if side is None or ("pixel" in name) == (side == "image")}
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(kind.from_pretrained(folder), lora()).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()
        output = model(**batch)
        (output.loss if side is None else output[0].square().sum()).backward()
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        assert trained and all("lora_" in name and value.grad is not None for name, value in trained.items())
        gradients.append({name: value.grad for name, value in trained.items()})
    torch.testing.assert_close(gradients[0], gradients[1])


def quantized(name: str, folder, monkeypatch) -> torch.nn.Module:
    model = HFCLIPModel.from_pretrained(folder).eval()
    if name == "dynamic":
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    # `make tools` puts it there, apart from what transformers finds.
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "torchao"))
    torchao = pytest.importorskip("torchao.quantization", reason="make tools installs torchao")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("name", ["dynamic", "torchao"])
def test_quantized_models_classify_evaluate_and_keep(name, clip, folder, tmp_path, monkeypatch):
    model, processor = quantized(name, folder, monkeypatch), clip[1]
    batch = inputs(processor)
    with torch.no_grad():
        exact = HFCLIPModel.from_pretrained(folder).eval()(**batch)
        found = model(**batch)
    for one in ("image_embeds", "text_embeds"):
        cosines = torch.nn.functional.cosine_similarity(exact[one], found[one])
        torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-3, rtol=0)
    classifier = ZeroShotClassifier(model, processor, LABELS)
    image = Image.new("RGB", (40, 32), "red")
    expected = classifier.predict([image])
    classifier.save(tmp_path / "labels")
    assert ZeroShotClassifier.load(tmp_path / "labels", model, processor).predict([image]) == expected
    with pytest.raises(ValueError, match="another"):
        ZeroShotClassifier.load(tmp_path / "labels", HFCLIPModel.from_pretrained(folder).eval(), processor)
    pipe = pipeline("hf-clip-zero-shot", model=model, processor=processor)
    assert pipe(image, candidate_labels=LABELS)[0]["label"] == expected[0][0]["label"]
    for label, color in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (40, 32), color).save(tmp_path / "data" / label / "a.png")
    source = open_source(tmp_path / "data")
    cached = [evaluate_zero_shot(model, processor, source, encoding=Encoding(cache=FeatureCache(tmp_path / "kept")))
              for _ in range(2)]  # fmt: skip
    assert {one.top_1 for one in cached} == {evaluate_zero_shot(model, processor, source).top_1}


class Logits(torch.nn.Module):
    def __init__(self, model: HFCLIPModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids, pixel_values):
        return self.model(input_ids, pixel_values).logits_per_image


OTHERS = {
    "other texts": (LABELS[::-1], 3),
    "other length": (["a red cat and a blue dog", "fish"], 2),
    "one": (["a"], 1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["tuple", "dict", "wrapper"])
def test_a_traced_model_takes_other_batches_and_lengths(kind, clip, folder, tmp_path):
    model = HFCLIPModel.from_pretrained(folder, return_dict=kind != "tuple").eval()
    example = tuple(inputs(clip[1]).values())
    traced = torch.jit.trace(Logits(model) if kind == "wrapper" else model, example, strict=kind != "dict")
    torch.jit.save(traced, tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    for texts, images in OTHERS.values():
        batch = inputs(clip[1], texts, images)
        found = traced(*batch.values())
        found = found["logits_per_image"] if kind == "dict" else found[0] if kind == "tuple" else found
        with torch.no_grad():
            torch.testing.assert_close(found, model(**batch, return_dict=True).logits_per_image, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_onnx_program_takes_other_batches_and_lengths(clip, tmp_path):
    import onnxruntime

    model = scatter_weights(tiny_clip(LABELS, num_hidden_layers=1)[0]).eval()
    example = inputs(clip[1])
    batch = {name: torch.export.Dim(name, min=1, max=64) for name in ("texts", "length", "images")}
    shapes = {"input_ids": {0: batch["texts"], 1: torch.export.Dim("length", min=2, max=77)}}
    shapes |= {"pixel_values": {0: batch["images"]}}
    torch.onnx.export(
        Logits(model), tuple(example.values()), tmp_path / "clip.onnx", dynamo=True, dynamic_shapes=shapes,
        input_names=list(example), output_names=["logits_per_image"], verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "clip.onnx")
    for texts, images in OTHERS.values():
        given = inputs(clip[1], texts, images)
        found = session.run(None, {name: value.numpy() for name, value in given.items()})[0]
        with torch.no_grad():
            expected = model(**given).logits_per_image
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
