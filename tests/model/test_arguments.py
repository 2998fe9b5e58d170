"""No argument is swallowed and no wrong shape runs: errors name what was given and what the model takes."""

import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import BatchFeature, BertConfig, Trainer, TrainingArguments, ViTConfig

from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModelWithProjection,
)
from hf_clip.model.configuration_hf_clip import POOL_AT_HIGHEST_ID

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
END, VOCABULARY, SIDE = 29, 30, 32
BACKBONE = {"image_size": SIDE, "patch_size": 8, "vocab_size": VOCABULARY, "num_labels": 2}
TEXT = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 8, "eos_token_id": END, "pad_token_id": 0}
TEXTS = {
    "clip": TEXT,
    "transformers": {
        **TEXT,
        "tower": "transformers",
        "pooling": "mean",
        "tower_config": BertConfig(**SMALL, **BACKBONE).to_dict(),
    },
}
IMAGES = {
    "vit": {**SMALL, "image_size": SIDE, "patch_size": 8},
    "convnet": {
        "tower": "convnet",
        "image_size": SIDE,
        "hidden_size": 16,
        "stem_width": 16,
        "stage_widths": [16],
        "stage_depths": [1],
        "hidden_act": "relu",
    },
    "resnet": {
        "tower": "resnet",
        "image_size": SIDE,
        "hidden_size": 64,
        "stem_width": 2,
        "stage_depths": [1, 1, 1, 1],
        "num_attention_heads": 2,
    },
    "transformers": {
        "tower": "transformers",
        "hidden_size": 16,
        "image_size": SIDE,
        "tower_config": ViTConfig(**SMALL, image_size=SIDE, patch_size=8).to_dict(),
    },
}
each_image_tower = pytest.mark.parametrize("tower", IMAGES)
each_text_tower = pytest.mark.parametrize("tower", TEXTS)


def dual_encoder(vision: str = "vit", text: str = "clip") -> HFCLIPModel:
    torch.manual_seed(0)
    config = HFCLIPConfig(text_config=TEXTS[text], vision_config=IMAGES[vision], projection_dim=8)
    return HFCLIPModel(config).eval()


@functools.cache
def unchanged(vision: str = "vit", text: str = "clip") -> HFCLIPModel:
    """One for all tests that change nothing of it."""
    return dual_encoder(vision, text)


def inputs(pairs: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, END, (pairs, 5))
    ids[:, 4] = END
    return {"input_ids": ids, "pixel_values": torch.randn(pairs, 3, SIDE, SIDE)}


@each_image_tower
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda pixels: pixels[0], ValueError),
        (lambda pixels: pixels[None], ValueError),
        (lambda pixels: pixels[:, :1], ValueError),
        (lambda pixels: pixels.permute(0, 2, 3, 1), ValueError),
        (lambda pixels: (pixels * 255).to(torch.uint8), ValueError),
        (lambda pixels: pixels[:0], ValueError),
        (lambda pixels: pixels.numpy(), TypeError),
    ],
    ids=["one", "five_axes", "gray", "channels_last", "whole_numbers", "none", "numpy"],
)
def test_pixels_that_are_no_batch_of_images_are_refused_by_every_tower(tower, wrong, error):
    model = unchanged(vision=tower)
    pixels = inputs()["pixel_values"]
    for call in (model.encode_image, model.vision_model, model.get_image_features):
        with pytest.raises(error, match="`pixel_values`"):
            call(wrong(pixels))


@each_text_tower
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda ids: ids[0], ValueError),
        (lambda ids: ids[None], ValueError),
        (lambda ids: ids[:, :0], ValueError),
        (lambda ids: ids[:0], ValueError),
        (lambda ids: ids.float(), ValueError),
        (lambda ids: ids + VOCABULARY, ValueError),
        (lambda ids: ids - VOCABULARY, ValueError),
        (lambda ids: ids.tolist(), TypeError),
    ],
    ids=["one", "three_axes", "no_tokens", "no_texts", "floats", "above", "below", "list"],
)
def test_ids_that_are_no_batch_of_texts_are_refused_by_every_tower(tower, wrong, error):
    model = unchanged(text=tower)
    ids = inputs()["input_ids"]
    mask = torch.ones_like(ids)
    with pytest.raises(error, match="`input_ids`"):
        model.encode_text(wrong(ids), mask if isinstance(wrong(ids), list) or wrong(ids).shape == mask.shape else None)


@each_text_tower
def test_masks_and_positions_of_another_shape_are_refused(tower):
    tower, ids = unchanged(text=tower).text_model, inputs()["input_ids"]
    for wrong in (torch.ones(3, 2), torch.ones(2, 5), torch.ones(3, 5, 1), torch.ones(5)):
        with pytest.raises(ValueError, match=r"`attention_mask` has shape .*\(3, 5\)"):
            tower(ids, attention_mask=wrong)
    with pytest.raises(ValueError, match=r"`position_ids` has shape \(2, 5\).*\(3, 5\)"):
        tower(ids, attention_mask=torch.ones_like(ids), position_ids=torch.zeros(2, 5, dtype=torch.long))


def test_pairs_of_unlike_numbers_have_no_loss():
    given = inputs()
    given["input_ids"] = given["input_ids"][:2]
    assert unchanged()(**given).logits_per_image.shape == (3, 2)
    with pytest.raises(ValueError, match="`return_loss=True` takes pairs.*2 texts.*3 images"):
        unchanged()(**given, return_loss=True)


TYPOS = [
    ("forward", "retrun_loss", "return_loss"),
    ("forward", "atention_mask", "attention_mask"),
    ("forward", "concept_id", "concept_ids"),
    ("get_text_features", "atention_mask", "attention_mask"),
    ("get_image_features", "interpolate_pos_encodingg", "interpolate_pos_encoding"),
    ("encode_text", "normalise", "normalize"),
    ("encode_image", "normalise", "normalize"),
]


@each_image_tower
@pytest.mark.parametrize(("method", "typo", "nearest"), TYPOS)
def test_a_misspelt_argument_is_refused_and_the_nearest_named(tower, method, typo, nearest):
    model, given = unchanged(vision=tower, text="transformers" if tower == "transformers" else "clip"), inputs()
    names = {"forward": list(given)}.get(method, ["input_ids" if "text" in method else "pixel_values"])
    with pytest.raises(TypeError, match=rf"HFCLIPModel\.{method} has no argument `{typo}`.*`{nearest}`"):
        getattr(model, method)(**{name: given[name] for name in names}, **{typo: True})


def single_models() -> list[tuple[torch.nn.Module, str]]:
    config = dual_encoder().config
    towers = [(dual_encoder(vision=name).vision_model, "pixel_values") for name in IMAGES]
    towers += [(dual_encoder(text=name).text_model, "input_ids") for name in TEXTS]
    return [
        *towers,
        (HFCLIPTextModelWithProjection(config.text_config), "input_ids"),
        (HFCLIPVisionModelWithProjection(config.vision_config), "pixel_values"),
        (HFCLIPForImageClassification(config), "pixel_values"),
    ]


def test_the_towers_and_the_models_of_one_tower_refuse_them_too():
    for model, name in single_models():
        given = inputs()[name]
        with pytest.raises(TypeError, match=rf"{type(model).__name__}\.forward has no argument `nonsense`"):
            model(given, nonsense=3)
        # What transformers passes to any model is taken, and what wrappers pass as None.
        model(given, num_items_in_batch=torch.tensor(3), output_hidden_states=False, inputs_embeds=None)


def test_labels_are_sent_to_the_classifier():
    with pytest.raises(TypeError, match="`labels`: HFCLIPForImageClassification"):
        unchanged()(**inputs(), labels=torch.arange(3))


def test_an_argument_of_one_towers_backbone_does_not_reach_the_other():
    model, given = unchanged(text="transformers"), inputs()
    types = torch.ones_like(given["input_ids"])
    with torch.no_grad():
        plain, typed = model(**given), model(**given, token_type_ids=types)
        text_BD = model.get_text_features(given["input_ids"], token_type_ids=types).pooler_output
    torch.testing.assert_close(plain.image_embeds, typed.image_embeds, rtol=0, atol=0)
    assert not torch.allclose(plain.text_embeds, typed.text_embeds)
    torch.testing.assert_close(typed.text_embeds, torch.nn.functional.normalize(text_BD, dim=-1))
    with pytest.raises(TypeError, match="`token_type_ids`"):
        unchanged()(**given, token_type_ids=types)


def with_lora(model):
    """By PEFT, whose wrapper passes arguments of models of any kind, None where they were not given."""
    lora = LoraConfig(
        task_type="FEATURE_EXTRACTION", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    return get_peft_model(model, lora).eval()


def test_peft_wraps_the_model():
    given, model = inputs(), dual_encoder().eval()
    plain = model(**given).logits_per_text
    wrapped = with_lora(model)
    with wrapped.disable_adapter():
        torch.testing.assert_close(wrapped(**given).logits_per_text, plain, rtol=0, atol=0)
    adapted = wrapped(**given).logits_per_text
    assert (adapted - plain).abs().max() > 1e-3
    with pytest.raises(TypeError, match="`retrun_loss`"):
        wrapped(**given, retrun_loss=True)
    torch.testing.assert_close(wrapped.merge_and_unload()(**given).logits_per_text, adapted, rtol=1e-4, atol=1e-4)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, given: dict[str, torch.Tensor]):
        self.given = given

    def __len__(self) -> int:
        return len(self.given["input_ids"])

    def __getitem__(self, index: int) -> dict:
        return {name: tensor[index] for name, tensor in self.given.items()}


def collate(pairs: list[dict]) -> dict:
    return {**{name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}, "return_loss": True}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda model: model, with_lora], ids=["bare", "lora"])
def test_trainer_takes_the_mean_gradient_of_the_batches_that_it_accumulates(tmp_path, wrap):
    data, model = Pairs(inputs(4)), wrap(dual_encoder()).eval()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    for first in (0, 2):
        (model(**collate([data[first], data[first + 1]])).loss / 2).backward()
    expected = {name: before[name] - 0.1 * weight.grad for name, weight in trained.items()}
    model.zero_grad()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    for name, weight in trained.items():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_no_tensor_is_told_the_right_call():
    model, outputs = dual_encoder(vision="vit", text="clip"), BatchFeature(inputs())
    call = r"call model\.encode_text\(\*\*processor\(text=\['a cat'\], return_tensors='pt'\)\)"
    with pytest.raises(TypeError, match=f"`input_ids` is of type str, .*{call}"):
        model.encode_text("a cat")
    with pytest.raises(TypeError, match=r"call model\.encode_image\(\*\*processor\(images=images, "):
        model.encode_image(Image.new("RGB", (SIDE, SIDE)))
    for method, name in (("encode_text", "input_ids"), ("encode_image", "pixel_values")):
        with pytest.raises(TypeError, match=rf"BatchFeature, .*: call model\.{method}\(inputs\['{name}'\]\)"):
            getattr(model, method)(outputs)
    naflex = BatchFeature({"pixel_values": 0, "pixel_attention_mask": 0, "spatial_shapes": 0})
    with pytest.raises(
        TypeError, match=r"\(inputs\['pixel_values'\], .*, spatial_shapes=inputs\['spatial_shapes'\]\)"
    ):
        model.encode_image(naflex)


@each_image_tower
@pytest.mark.parametrize("where", ["config", "call"])
def test_outputs_as_tuples_hold_what_the_named_ones_do(tower, where):
    given = inputs()
    model = dual_encoder(vision=tower, text="transformers" if tower == "transformers" else "clip")
    with torch.no_grad():
        named, embeds = model(**given, return_loss=True), model.encode_text(given["input_ids"])
        if where == "config":
            for part in (model, model.vision_model, model.text_model):
                part.config.return_dict = False
        options = {} if where == "config" else {"return_dict": False}
        listed = model(**given, return_loss=True, **options)
        assert isinstance(listed, tuple) and isinstance(listed[-1], tuple)
        for one, other in zip(listed[:5], named.to_tuple()[:5], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert isinstance(model.get_image_features(given["pixel_values"], **options), tuple)
        torch.testing.assert_close(model.encode_text(given["input_ids"]), embeds, rtol=0, atol=0)


def test_models_of_one_tower_give_tuples_too():
    for model, name in single_models():
        model.config.return_dict = False
        with torch.no_grad():
            assert isinstance(model.eval()(inputs()[name]), tuple)


def test_a_tower_and_its_dual_encoder_share_one_config(tmp_path):
    dual_encoder().save_pretrained(tmp_path)
    for model in (dual_encoder(), HFCLIPModel.from_pretrained(tmp_path)):
        assert model.config.text_config is model.text_model.config
        assert model.config.vision_config is model.vision_model.config
    model.text_model.resize_token_embeddings(VOCABULARY + 1)
    model.save_pretrained(tmp_path)
    again = HFCLIPModel.from_pretrained(tmp_path).eval()
    ids = inputs()["input_ids"]
    torch.testing.assert_close(again.encode_text(ids), model.eval().encode_text(ids), rtol=0, atol=0)
    assert again.config.text_config.vocab_size == VOCABULARY + 1


@pytest.mark.parametrize("kind", ["clip", "transformers"])
def test_the_vocabulary_of_a_dual_encoder_grows(kind, tmp_path):
    model, ids = dual_encoder(text=kind).eval(), inputs()["input_ids"]
    before = model.encode_text(ids)
    grown = model.resize_token_embeddings(VOCABULARY + 3)
    assert grown.weight.shape[0] == VOCABULARY + 3 == model.config.text_config.vocab_size
    assert grown is model.get_input_embeddings() is model.text_model.get_input_embeddings()
    torch.testing.assert_close(model.encode_text(ids), before, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = HFCLIPModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.encode_text(ids), before, rtol=0, atol=1e-6)
    assert again.get_input_embeddings().weight.shape[0] == VOCABULARY + 3
    model.enable_input_require_grads()


def test_an_added_token_leaves_the_end_of_a_tower_of_transformers_as_it_is():
    """Where 2 is RoBERTa's end token, and not CLIP's sign for the highest id."""
    text = {**TEXTS["transformers"], "pooling": "eos", "eos_token_id": POOL_AT_HIGHEST_ID}
    model = HFCLIPTextModel(HFCLIPConfig(text_config=text).text_config)
    model.resize_token_embeddings(VOCABULARY + 1)
    assert model.config.eos_token_id == POOL_AT_HIGHEST_ID


def test_an_added_token_does_not_become_the_one_at_which_texts_are_pooled():
    torch.manual_seed(0)
    model = HFCLIPTextModel(HFCLIPConfig(text_config={**TEXT, "eos_token_id": POOL_AT_HIGHEST_ID}).text_config).eval()
    before = model(inputs()["input_ids"]).pooler_output
    model.resize_token_embeddings(VOCABULARY + 1)
    torch.testing.assert_close(model(inputs()["input_ids"]).pooler_output, before, rtol=0, atol=1e-6)
    ids = torch.tensor([[3, VOCABULARY, 7, END], [3, VOCABULARY, 8, END]])
    pooled = model(ids)
    torch.testing.assert_close(pooled.pooler_output, pooled.last_hidden_state[:, 3], rtol=0, atol=0)
    assert model.config.eos_token_id == END
