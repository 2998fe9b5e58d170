"""Towers from elsewhere: transformers' own models as the oracle, and OpenCLIP's text encoder around them."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    BeitConfig,
    BertConfig,
    BertModel,
    BertTokenizer,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    GPT2Config,
    M2M100Config,
    MT5Config,
    RobertaConfig,
    SwinConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
    pipeline,
)

from hf_clip import (
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPTextConfig,
    HFCLIPTextModelWithProjection,
    HFCLIPTokenizer,
    HFCLIPVisionConfig,
    HFCLIPVisionModelWithProjection,
    ZeroShotClassifier,
    join_towers,
)
from hf_clip.model.modeling_transformers_towers_hf_clip import (
    HFCLIPTransformersTextModel,
    HFCLIPTransformersVisionModel,
)
from tests.helpers.peers import load_open_clip
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 0, "atol": 1e-5}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {"image_size": 16, "patch_size": 4}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, **PATCHES}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
VISION = {
    "vit": ViTConfig(**SIZES, **PATCHES),
    "beit": BeitConfig(**SIZES, **PATCHES),
    "dinov2": Dinov2Config(**DINO, use_mask_token=False),
    "registers": Dinov2WithRegistersConfig(**DINO, num_register_tokens=3),
    "convnext": ConvNextConfig(**STAGES),
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
}
VOCABULARY, LONGEST, PAD, END = 60, 12, 1, 2
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": END}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, **TOKENS}
TEXT = {
    "bert": BertConfig(
        **SIZES, **TOKENS, max_position_embeddings=LONGEST, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ),
    # Their positions begin behind the padding's.
    "roberta": RobertaConfig(**SIZES, **TOKENS, max_position_embeddings=LONGEST + 2),
    "xlm-roberta": XLMRobertaConfig(**SIZES, **TOKENS, max_position_embeddings=LONGEST + 2),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=LONGEST, **TOKENS),
    "t5": T5Config(**T5),
    "mt5": MT5Config(**T5),
    "m2m_100": M2M100Config(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=LONGEST, **TOKENS,
    ),
}  # fmt: skip
LENGTHS = (7, 2, 5)


def texts() -> torch.Tensor:
    """Ids of texts of `LENGTHS` tokens, each with its end token, padded on the right."""
    torch.manual_seed(1)
    input_ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    for row, length in enumerate(LENGTHS):
        input_ids[row, :length] = torch.randint(3, VOCABULARY, (length,))
        input_ids[row, length - 1] = END
    return input_ids


def make_images(side: int = 16) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(3, 3, side, side)


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter off its initial value, so that none of them goes untested."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def text_config(kind: str, **fields) -> HFCLIPTextConfig:
    ids = {"pad_token_id": PAD, "eos_token_id": END, "max_position_embeddings": LONGEST}
    return HFCLIPTextConfig(
        **{"tower": "transformers", "tower_config": TEXT[kind].to_dict(), "hidden_size": 32, **ids, **fields}
    )


def vision_config(kind: str, **fields) -> HFCLIPVisionConfig:
    return HFCLIPVisionConfig(
        **{"tower": "transformers", "tower_config": VISION[kind].to_dict(), "hidden_size": 32, **fields}
    )


def dual(text: HFCLIPTextConfig, vision: HFCLIPVisionConfig) -> HFCLIPModel:
    return scattered(HFCLIPModel(HFCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))


def load_exactly(model_class, folder, **kwargs):
    """`from_pretrained` that must find every tensor, of the right shape, and no other."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "pooling", "first_patch"),
    [
        ("vit", "class", 1),
        ("vit", "pooler", 1),
        ("vit", "average", 1),
        ("beit", "pooler", 1),
        ("dinov2", "class", 1),
        ("dinov2", "average", 1),
        ("registers", "average", 4),
        ("convnext", "pooler", 0),
        ("convnext", "average", 0),
        ("swin", "average", 0),
    ],
)
def test_a_vision_models_own_embeddings(kind, pooling, first_patch):
    tower = scattered(HFCLIPTransformersVisionModel(vision_config(kind, pooling=pooling)))
    has_option = kind in ("vit", "beit", "swin")
    theirs = AutoModel.from_config(VISION[kind], **({"add_pooling_layer": pooling == "pooler"} if has_option else {}))
    theirs.load_state_dict(tower.backbone.state_dict())
    pixel_values = make_images(32 if kind in ("convnext", "swin") else 16)
    with torch.no_grad():
        output = tower(pixel_values, output_hidden_states=True)
        expected = theirs.eval()(pixel_values, output_hidden_states=True)
    tokens = expected.last_hidden_state
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    pooled = {"pooler": expected.pooler_output, "class": tokens[:, 0], "average": tokens[:, first_patch:].mean(1)}
    torch.testing.assert_close(output.last_hidden_state, tokens, **CLOSE)
    torch.testing.assert_close(output.pooler_output, pooled[pooling], **CLOSE)
    torch.testing.assert_close(output.hidden_states, expected.hidden_states, **CLOSE)
    # Without a pooling layer that nothing would train.
    assert pooling == "pooler" or not any("pooler" in name for name in tower.state_dict())


TOKEN_POOLINGS = [
    (kind, pooling)
    for kind in ("bert", "xlm-roberta", "gpt2", "t5", "m2m_100")
    for pooling in ("mean", "first", "last", "eos")
]


@pytest.mark.parametrize(("kind", "pooling"), [*TOKEN_POOLINGS, ("bert", "pooler"), ("xlm-roberta", "pooler")])
def test_a_text_models_own_embeddings(kind, pooling):
    tower = scattered(HFCLIPTransformersTextModel(text_config(kind, pooling=pooling)))
    with torch.no_grad():
        together = tower(texts()).pooler_output
        for row, length in enumerate(LENGTHS):
            # Alone and unpadded, the backbone needs no mask.
            expected = tower.backbone(texts()[row : row + 1, :length])
            tokens = expected.last_hidden_state[0]
            pooled = {"mean": tokens.mean(0), "first": tokens[0], "last": tokens[-1], "eos": tokens[-1]}
            pooled["pooler"] = expected["pooler_output"][0] if pooling == "pooler" else None
            torch.testing.assert_close(together[row], pooled[pooling], **CLOSE)


OPEN_CLIP_ENCODERS = [
    ("roberta", "mean", "mlp", None),
    ("xlm-roberta", "mean", "mlp", "mean_pooler"),
    ("bert", "pooler", "linear", "cls_pooler"),
    ("bert", "first", "linear", "cls_last_hidden_state_pooler"),
    ("mt5", "mean", "mlp", "mean_pooler"),
    ("m2m_100", "first", "linear", "cls_pooler"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pooling", "projection", "pooler"), OPEN_CLIP_ENCODERS)
def test_open_clips_text_encoder_gives_the_same_embeddings(kind, pooling, projection, pooler, tmp_path):
    load_open_clip()
    from open_clip.hf_model import HFTextEncoder

    TEXT[kind].save_pretrained(tmp_path)
    torch.manual_seed(4)
    theirs = scattered(HFTextEncoder(str(tmp_path), 20, None, pooler, projection, pretrained=False))
    config = text_config(kind, pooling=pooling, projection_type=projection, projection_dim=20)
    ours = HFCLIPTextModelWithProjection(config).eval()
    ours.text_model.backbone.load_state_dict(theirs.transformer.state_dict())
    weights = [parameter for name, parameter in theirs.named_parameters() if name.startswith("proj")]
    for parameter, weight in zip(ours.text_projection.parameters(), weights, strict=True):
        parameter.data = weight.data
    with torch.no_grad():
        embeddings, expected = ours(texts()).text_embeds, theirs(texts())
    torch.testing.assert_close(F.normalize(embeddings), F.normalize(expected), **CLOSE)


def test_padding_counts_nowhere():
    tower = scattered(HFCLIPTransformersTextModel(text_config("bert", pooling="mean")))
    input_ids = texts()
    mask = input_ids.ne(PAD).long()
    with torch.no_grad():
        expected = tower(input_ids).pooler_output
        longer = F.pad(input_ids, (0, 3), value=PAD)
        torch.testing.assert_close(tower(longer).pooler_output, expected, **CLOSE)
        # The mask says what is padding, whatever stands there.
        other = torch.where(mask.bool(), input_ids, 7)
        torch.testing.assert_close(tower(other, mask).pooler_output, expected, **CLOSE)


def test_texts_that_cannot_be_pooled_raise():
    tower = HFCLIPTransformersTextModel(text_config("bert", pooling="eos"))
    with pytest.raises(ValueError, match="padded on the left"):
        tower(texts().flip(1))
    with pytest.raises(ValueError, match="no end token"):
        tower(texts().where(texts() != END, torch.tensor(5)))
    with pytest.raises(ValueError, match="13 tokens are longer than `max_position_embeddings=12"):
        tower(torch.full((1, 13), 5))
    tower = HFCLIPTransformersTextModel(text_config("gpt2", pooling="last", pad_token_id=END))
    with pytest.raises(ValueError, match="pass `attention_mask`"):
        tower(texts())
    assert tower(texts(), texts().ne(PAD).long()).pooler_output.shape == (3, 32)


def test_towers_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="`model_type='bret'`.*Nearest: .*bert"):
        HFCLIPTextConfig(tower="transformers", tower_config={"model_type": "bret"})
    with pytest.raises(ValueError, match="`tower_config=None`"):
        HFCLIPVisionConfig(tower="transformers")
    with pytest.raises(ValueError, match="`pooling='attention'` is not known: use one of .*'pooler'"):
        vision_config("vit", pooling="attention")
    with pytest.raises(ValueError, match="`hidden_size=48` is not the width of the vit .* set `hidden_size=32`"):
        HFCLIPTransformersVisionModel(vision_config("vit", hidden_size=48))
    with pytest.raises(ValueError, match="convnext has no class token"):
        HFCLIPTransformersVisionModel(vision_config("convnext"))
    tower = HFCLIPTransformersTextModel(text_config("t5", pooling="pooler"))
    with pytest.raises(ValueError, match="t5 pools nothing itself"):
        tower(texts())


def test_the_dual_encoder_saves_loads_and_hands_on_what_both_towers_do(tmp_path):
    model = dual(text_config("xlm-roberta", pooling="mean", projection_type="mlp"), vision_config("dinov2"))
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": texts(), "pixel_values": make_images()}
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        for again in (load_exactly(HFCLIPModel, tmp_path), AutoModel.from_pretrained(tmp_path).eval()):
            assert type(again) is HFCLIPModel
            torch.testing.assert_close(again(**inputs).logits_per_image, expected.logits_per_image, rtol=0, atol=0)
        assert [len(expected[f"{one}_model_output"].hidden_states) for one in ("text", "vision")] == [3, 3]
        for kind, one in ((HFCLIPTextModelWithProjection, "text"), (HFCLIPVisionModelWithProjection, "image")):
            embeddings = load_exactly(kind, tmp_path)(texts() if one == "text" else make_images())[f"{one}_embeds"]
            torch.testing.assert_close(F.normalize(embeddings), expected[f"{one}_embeds"], **CLOSE)
    # The classifier is new; nothing else is missing.
    classifier, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert classifier(make_images()).logits.shape == (3, 2)


def test_the_choice_of_attention_reaches_the_backbones(tmp_path):
    model = dual(text_config("bert", pooling="mean"), vision_config("vit"))
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": texts(), "pixel_values": make_images()}

    def chosen(model) -> list[str]:
        return [tower.backbone.config._attn_implementation for tower in (model.text_model, model.vision_model)]

    assert chosen(model) == ["sdpa", "sdpa"]
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
        eager = load_exactly(HFCLIPModel, tmp_path, attn_implementation="eager")
        output = eager(**inputs, output_attentions=True)
    assert chosen(eager) == ["eager", "eager"]
    torch.testing.assert_close(output.logits_per_image, expected, rtol=0, atol=1e-4)
    assert output.text_model_output.attentions[1].shape == (3, 2, 7, 7)
    assert output.vision_model_output.attentions[1].shape == (3, 2, 17, 17)
    each = load_exactly(HFCLIPModel, tmp_path, attn_implementation={"text_config": "eager"})
    assert chosen(each) == ["eager", "sdpa"]
    each.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    assert chosen(each) == ["sdpa", "eager"]


def test_gradient_checkpointing_gives_the_same_gradients():
    model = dual(text_config("bert", pooling="mean"), vision_config("dinov2")).train()
    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable()
            assert model.text_model.backbone.encoder.layer[0].gradient_checkpointing
            assert model.vision_model.backbone.encoder.layer[0].gradient_checkpointing
        model.zero_grad()
        model(texts(), make_images(), return_loss=True).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


LABELS = ["a cat", "a big dog runs", "snow"]


def write_towers(vision: Path, text: Path) -> None:
    """A folder with DINOv2 and its image processor, and one with XLM-R and its tokenizer, as the Hub has them."""
    torch.manual_seed(5)
    scattered(Dinov2Model(Dinov2Config(**DINO))).save_pretrained(vision)
    BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}).save_pretrained(vision)
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"] + [("<mask>", 0.0)]
    config = XLMRobertaConfig(**{**TEXT["xlm-roberta"].to_dict(), "max_position_embeddings": 26})
    scattered(XLMRobertaModel(config, add_pooling_layer=False)).save_pretrained(text)
    XLMRobertaTokenizer(vocab=pieces, model_max_length=24).save_pretrained(text)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    vision, text = tmp_path_factory.mktemp("dinov2"), tmp_path_factory.mktemp("xlm-roberta")
    write_towers(vision, text)
    return vision, text


def make_image(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 32), color)


def test_two_folders_join_and_serve_like_any_model(sources, tmp_path):
    model, processor = join_towers(*sources, projection_dim=16, text_config={"projection_type": "mlp"})
    model.eval()
    inputs = processor(text=LABELS, images=[make_image(), make_image("blue")], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 16, 16) and model.config.vision_config.image_size == 16
    # Texts come with their mask, and the end token is no condition.
    assert inputs["attention_mask"].sum(1).tolist() == [8, 17, 7]
    theirs_vision, theirs_text = (AutoModel.from_pretrained(folder).eval() for folder in sources)
    with torch.no_grad():
        output = model(**inputs)
        tokens = theirs_text(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        expected = model.text_projection((tokens * mask).sum(1) / mask.sum(1))
        torch.testing.assert_close(output.text_embeds, F.normalize(expected), **CLOSE)
        expected = model.visual_projection(theirs_vision(inputs["pixel_values"]).last_hidden_state[:, 0])
        torch.testing.assert_close(output.image_embeds, F.normalize(expected), **CLOSE)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is HFCLIPProcessor and type(again.tokenizer) is XLMRobertaTokenizer
    same = again(text=LABELS, images=[make_image(), make_image("blue")], return_tensors="pt")
    assert set(same) == set(inputs) and all(torch.equal(same[key], inputs[key]) for key in inputs)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    scores = {one["label"]: one["score"] for one in classify(make_image(), LABELS, hypothesis_template="{}")}
    expected = output.logits_per_image[0].softmax(0).tolist()
    assert [scores[label] for label in LABELS] == pytest.approx(expected, abs=1e-5)
    classifier = ZeroShotClassifier(load_exactly(HFCLIPModel, tmp_path), again, labels=LABELS, templates=["{}"])
    best = classifier.predict([make_image()], top_k=1)[0][0]
    assert best["score"] == pytest.approx(max(expected), abs=1e-5)


def test_a_joined_model_trains(sources):
    model, processor = join_towers(*sources, projection_dim=16)
    inputs = processor(text=LABELS, images=[make_image(one) for one in ("red", "blue", "green")], return_tensors="pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(model(**inputs, return_loss=True).loss)
        losses[-1].backward()
        # All of it trains: a parameter that never gets a gradient would halt data parallelism.
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert losses[2] < losses[0]


def test_without_pretrained_weights_the_towers_start_random(sources):
    models = [join_towers(*sources, use_pretrained_weights=one)[0] for one in (True, False, False)]
    weights = [model.text_model.backbone.embeddings.word_embeddings.weight for model in models]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_native_towers_join_too(sources, tmp_path):
    model, processor = join_towers(
        sources[0], "ViT-B/32", text_config={"num_hidden_layers": 1, "max_position_embeddings": 9}
    )
    assert type(processor.tokenizer) is HFCLIPTokenizer and not processor.returns_text_mask
    inputs = processor(text=["word " * 99], images=make_image(), return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 9) and "attention_mask" not in inputs
    assert model(**inputs).logits_per_image.shape == (1, 1)
    # An architecture's image processor; a folder of this package, whose towers keep their weights.
    saved, saved_processor = tiny_clip(LABELS)
    saved.save_pretrained(tmp_path)
    saved_processor.save_pretrained(tmp_path)
    joined, processor = join_towers("ViT-B/16", tmp_path, 16, vision_config={"num_hidden_layers": 1})
    assert type(processor.image_processor) is HFCLIPImageProcessor
    assert processor(images=make_image(), return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)
    input_ids = processor(text=LABELS, return_tensors="pt")["input_ids"]
    expected = saved.text_model(input_ids).pooler_output
    torch.testing.assert_close(joined.eval().text_model(input_ids).pooler_output, expected)
    joined, _ = join_towers(tmp_path, sources[1])
    expected = saved.vision_model(make_images(32)).pooler_output
    torch.testing.assert_close(joined.eval().vision_model(make_images(32)).pooler_output, expected)


def test_one_tower_of_a_dual_encoder_of_transformers(sources, tmp_path):
    tower = {**SIZES, "image_size": 16, "patch_size": 4}
    theirs = scattered(CLIPModel(CLIPConfig(text_config=SIZES, vision_config=tower)))
    theirs.save_pretrained(tmp_path)
    BitImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    model, _ = join_towers(tmp_path, sources[1], vision_config={"pooling": "pooler"})
    embeddings = model.eval().vision_model(make_images()).pooler_output
    torch.testing.assert_close(embeddings, theirs.vision_model(make_images()).pooler_output, **CLOSE)


def test_what_cannot_be_joined_raises(sources, tmp_path):
    with pytest.raises(ValueError, match="'ViT-B/33' is no folder .* Nearest: ViT-B/32"):
        join_towers("ViT-B/33", sources[1])
    with pytest.raises(ValueError, match="takes texts by the tokenizer 'timm/ViT-B-16-SigLIP'"):
        join_towers(sources[0], "ViT-B-16-SigLIP")
    BertModel(TEXT["bert"], add_pooling_layer=False).save_pretrained(tmp_path)
    BertTokenizer(model_max_length=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no weights for pooler.dense.bias.*`pooling='pooler'`"):
        join_towers(sources[0], tmp_path, text_config={"pooling": "pooler"})
    model, processor = join_towers(sources[0], tmp_path)
    # A tokenizer without an end token.
    inputs = processor(text=["a", "a a a"], return_tensors="pt")
    assert model.get_text_features(**inputs).pooler_output.shape == (2, 512)


WITHOUT_THE_PACKAGE = """
import sys

sys.modules["hf_clip"] = None  # to import it raises ImportError
import torch
from transformers import AutoModel

folder, outputs = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules")
torch.manual_seed(2)
pixel_values = torch.randn(3, 3, 16, 16)
with torch.no_grad():
    torch.save(model(torch.tensor([[5, 6, 2], [7, 2, 1]]), pixel_values).logits_per_image, outputs)
"""


@pytest.mark.slow
def test_the_models_code_goes_with_it(tmp_path, monkeypatch):
    model = dual(text_config("xlm-roberta", pooling="mean"), vision_config("registers", pooling="average"))
    for kind in (HFCLIPConfig, HFCLIPModel):
        # Registered for this test alone: a class remembers it.
        monkeypatch.setattr(kind, "_auto_class", None)
        kind.register_for_auto_class(*(["AutoModel"] if kind is HFCLIPModel else []))
    model.save_pretrained(tmp_path / "saved")
    program, outputs = tmp_path / "program.py", tmp_path / "outputs.pt"
    program.write_text(WITHOUT_THE_PACKAGE)
    command = [*warm_python("libraries"), str(program), str(tmp_path / "saved"), str(outputs)]
    completed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 2], [7, 2, 1]]), make_images()).logits_per_image
    torch.testing.assert_close(torch.load(outputs, weights_only=True), expected, rtol=0, atol=0)
