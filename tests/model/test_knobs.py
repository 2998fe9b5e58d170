"""What OpenCLIP's ViTs and SigLIP have beyond the paper's, each knob against the peer that has it.

The peers' models with small random weights are the oracle: OpenCLIP's own code, and transformers' SiglipModel.
"""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
)

from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPSiglipConfig,
    HFCLIPSiglipModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModelWithProjection,
)
from tests.helpers.counts import soak_count
from tests.helpers.openai_names import in_openais_names
from tests.helpers.peers import load_open_clip
from tests.helpers.toys import scatter_weights

START, END, VOCABULARY, CONTEXT, SIDE = 57, 58, 60, 10, 16
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 40,
    "intermediate_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "image_size": SIDE,
    "patch_size": 4,
}
CLOSE = {"rtol": 0, "atol": 1e-5}


def ours(text=None, vision=None, projection_dim: int = 24) -> HFCLIPModel:
    towers = {"text_config": {**TEXT, **(text or {})}, "vision_config": {**VISION, **(vision or {})}}
    return scatter_weights(HFCLIPModel(HFCLIPConfig(**towers, projection_dim=projection_dim)))


def make_images(height: int = SIDE, width: int = SIDE, count: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, height, width)


def texts() -> torch.Tensor:
    """Ids of texts of 10, 3 and 6 tokens, padded with 0 to 10."""
    torch.manual_seed(2)
    input_ids = torch.zeros(3, CONTEXT, dtype=torch.long)
    for row, length in enumerate((CONTEXT, 3, 6)):
        input_ids[row, :length] = torch.randint(1, START, (length,))
        input_ids[row, 0], input_ids[row, length - 1] = START, END
    return input_ids


def load_exactly(model_class, folder, **kwargs):
    """`from_pretrained` that must find every tensor, of the right shape, and no other."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model.eval()


# Fields of ours for the text and the image tower, and OpenCLIP's for the same.
OPEN_CLIP_KNOBS = {
    "as open_clip has it": ({}, {}, {}, {}),
    "quick_gelu": ({"hidden_act": "quick_gelu"}, {"hidden_act": "quick_gelu"}, {}, {}),
    "gelu by tanh": (
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"act_kwargs": {"approximate": "tanh"}},
        {"act_kwargs": {"approximate": "tanh"}},
    ),
    "eps": (
        {"layer_norm_eps": 1e-2},
        {"layer_norm_eps": 3e-2},
        {"norm_kwargs": {"eps": 1e-2}},
        {"norm_kwargs": {"eps": 3e-2}},
    ),
    "average, then norm": (
        {},
        {"pooling": "average"},
        {},
        {"pool_type": "avg", "final_ln_after_pool": True},
    ),
    "norm, then average": ({}, {"pooling": "average", "norm_before_pooling": True}, {}, {"pool_type": "avg"}),
    "norm, then class": ({}, {"norm_before_pooling": True}, {}, {"pool_type": "tok"}),
    "no norm before the layers": ({}, {"has_pre_norm": False}, {}, {"no_ln_pre": True}),
    "layer scale": (
        {"layer_scale_init_value": 0.1},
        {"layer_scale_init_value": 1e-5},
        {"ls_init_value": 0.1},
        {"ls_init_value": 1e-5},
    ),
    "heads and MLPs": (
        {"num_attention_heads": 2, "intermediate_size": 64},
        {"num_attention_heads": 4, "intermediate_size": 160},
        {"heads": 2, "mlp_ratio": 2.0},
        {"head_width": 10, "mlp_ratio": 4.0},
    ),
    "patch dropout, of which nothing is left behind training": (
        {},
        {"patch_dropout": 0.5},
        {},
        {"patch_dropout": 0.5},
    ),
    "last token": ({"pooling": "last"}, {}, {"pool_type": "last"}, {}),
    "first token": ({"pooling": "first", "is_causal": False}, {}, {"pool_type": "first", "no_causal_mask": True}, {}),
    "end token by its id": ({"eos_token_id": 30}, {}, {"pool_type": "eos", "eos_id": 30}, {}),
    "end token 2 by its id": (
        {"eos_token_id": 2, "pooling": "first_eos"},
        {},
        {"pool_type": "eos", "eos_id": 2},
        {},
    ),
    "highest id": ({"eos_token_id": 2}, {}, {"pool_type": "argmax"}, {}),
    "no causal mask": ({"is_causal": False}, {}, {"no_causal_mask": True}, {}),
    "bias of the projection": ({"projection_bias": True}, {}, {"proj_bias": True}, {}),
    "no projection of texts": ({"projection_type": "none", "hidden_size": 24}, {}, {"proj_type": "none"}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("knob", OPEN_CLIP_KNOBS)
def test_open_clips_model_gives_the_same_embeddings(knob):
    text, vision, open_clip_text, open_clip_vision = OPEN_CLIP_KNOBS[knob]
    model = ours({"hidden_act": "gelu", **text}, {"hidden_act": "gelu", **vision})
    width = model.config.text_config.hidden_size
    open_clip_text = {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": width, "heads": 4, "layers": 2,
        "mlp_ratio": 48 / width, **open_clip_text,
    }  # fmt: skip
    open_clip_vision = {
        "width": 40, "layers": 2, "head_width": 8, "mlp_ratio": 1.5, "patch_size": 4, "image_size": SIDE,
        **open_clip_vision,
    }  # fmt: skip
    theirs = load_open_clip().CLIP(24, open_clip_vision, open_clip_text, quick_gelu=knob == "quick_gelu")
    theirs.load_state_dict(in_openais_names(model))
    theirs.eval()
    input_ids = texts()
    if "by its id" in knob:
        input_ids[input_ids == END] = model.config.text_config.eos_token_id
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(make_images()), theirs.encode_image(make_images(), normalize=True), **CLOSE
        )
        torch.testing.assert_close(
            model.encode_text(input_ids), theirs.encode_text(input_ids, normalize=True), **CLOSE
        )


@pytest.mark.parametrize("knob", ["layer scale", "no norm before the layers", "norm, then average", "first token"])
def test_a_knob_is_no_dead_weight(knob):
    """The oracle would not see a knob that neither side has."""
    text, vision, *_ = OPEN_CLIP_KNOBS[knob]
    model, plain = ours(text, vision), ours()
    shared = {name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict({**plain.state_dict(), **shared})
    image = (model.encode_image(make_images()) - plain.encode_image(make_images())).abs().max()
    text = (model.encode_text(texts()) - plain.encode_text(texts())).abs().max()
    assert max(image, text) > 1e-3


def test_the_mean_of_a_text_ends_with_its_end_token():
    model = ours({"pooling": "mean"})
    output = model.text_model(texts())
    lengths = (10, 3, 6)
    expected = torch.stack(
        [row[:length].mean(0) for row, length in zip(output.last_hidden_state, lengths, strict=True)]
    )
    torch.testing.assert_close(output.pooler_output, expected)
    torch.testing.assert_close(model.encode_text(texts()[1:, :6]), model.encode_text(texts())[1:], **CLOSE)


def test_a_mask_of_padding_is_kept_to_where_tokens_see_each_other():
    model = ours({"is_causal": False})
    mask = (texts() != 0).long()
    embeddings = model.encode_text(texts(), mask)
    alone = torch.cat([model.encode_text(row[row != 0][None]) for row in texts()])
    torch.testing.assert_close(embeddings, alone, **CLOSE)
    assert (embeddings - model.encode_text(texts())).abs().max() > 1e-3


def test_a_projection_by_an_mlp():
    for bias in (False, True):
        model = ours({"projection_type": "mlp", "projection_bias": bias})
        # OpenCLIP's, by the shapes and the order of its parts.
        parts = [torch.nn.Linear(32, 28, bias=bias), torch.nn.GELU(), torch.nn.Linear(28, 24, bias=bias)]
        theirs = torch.nn.Sequential(*parts)
        names = {"fc1": "0", "fc2": "2"}
        state = {f"{names[key[:3]]}{key[3:]}": value for key, value in model.text_projection.state_dict().items()}
        theirs.load_state_dict(state)
        pooled = model.text_model(texts()).pooler_output
        torch.testing.assert_close(model.encode_text(texts(), normalize=False), theirs(pooled))


@pytest.mark.parametrize("has_class_token", [True, False])
def test_patch_dropout_keeps_a_share_of_the_patches_and_the_class_token(has_class_token):
    pooling = "class" if has_class_token else "average"
    model = ours(vision={"patch_dropout": 0.7, "has_class_token": has_class_token, "pooling": pooling})
    embeddings, images = model.vision_model.embeddings, make_images()
    whole = embeddings(images)
    torch.manual_seed(3)
    kept = embeddings.train()(images)
    # 16 patches, of which at least 0.3 are kept.
    first = int(has_class_token)
    assert kept.shape == (3, first + 4, 40)
    torch.testing.assert_close(kept[:, :first], whole[:, :first], rtol=0, atol=0)
    places = [
        (row[first:, None] == image[None, first:]).all(-1).nonzero() for row, image in zip(kept, whole, strict=True)
    ]
    assert all(sorted(place[:, 0].tolist()) == [0, 1, 2, 3] for place in places)
    chosen = [frozenset(place[:, 1].tolist()) for place in places]
    assert all(len(places) == 4 for places in chosen) and len(set(chosen)) > 1
    # A step that is run again, as cached gradients do, draws the same patches; the next one draws others.
    torch.manual_seed(3)
    torch.testing.assert_close(embeddings(images), kept, rtol=0, atol=0)
    assert not torch.equal(embeddings(images), kept)
    torch.testing.assert_close(embeddings.eval()(images), whole, rtol=0, atol=0)
    model.train()
    model.encode_image(images).sum().backward()
    assert ours(vision={"patch_dropout": 0.99}).vision_model.embeddings.train()(make_images()).shape[1] == 2


def test_knobs_that_transformers_clip_has_not_are_told_apart_on_disk(tmp_path):
    ours(vision={"layer_scale_init_value": 0.1}).save_pretrained(tmp_path)
    _, info = CLIPModel.from_pretrained(
        tmp_path,
        config=CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24),
        output_loading_info=True,
    )
    left = {f"vision_model.encoder.layers.{layer}.layer_scale{part}.weight" for layer in (0, 1) for part in (1, 2)}
    assert set(info["unexpected_keys"]) == left and not info["missing_keys"]


SIGLIP_SHAPES = {
    "as published": {},
    "gelu and eps": {"text": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}, "vision": {"layer_norm_eps": 1e-2}},
    "a head that changes the width": {"text": {"hidden_size": 48}},
    "patches that do not fill the image": {"vision": {"image_size": 18}},
}


def siglip_config(text=None, vision=None) -> SiglipConfig:
    # Two towers of one width, into which the text tower's head leads.
    return SiglipConfig(
        text_config={**TEXT, "projection_size": 40, **(text or {})}, vision_config={**VISION, **(vision or {})}
    )


def siglip_inputs(side: int = SIDE) -> dict[str, torch.Tensor]:
    return {"input_ids": texts(), "pixel_values": make_images(side, side)}


def assert_same_outputs(model: HFCLIPSiglipModel, theirs: SiglipModel, **inputs) -> None:
    with torch.no_grad():
        output, expected = (each(**inputs, output_hidden_states=True, return_loss=True) for each in (model, theirs))
    for field in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(output[field], expected[field], **CLOSE)
    scale = theirs.logit_scale.exp().item()
    for field in ("logits_per_image", "logits_per_text"):
        torch.testing.assert_close(output[field], expected[field], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(output.loss, expected.loss)
    for tower in ("text_model_output", "vision_model_output"):
        for field in ("pooler_output", "last_hidden_state"):
            torch.testing.assert_close(output[tower][field], expected[tower][field], rtol=1e-5, atol=1e-5)
        states, expected_states = output[tower].hidden_states, expected[tower].hidden_states
        torch.testing.assert_close(states, expected_states, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("knob", SIGLIP_SHAPES)
def test_a_folder_of_siglip_gives_its_embeddings_and_ours_gives_them_there(knob, tmp_path):
    config = siglip_config(**SIGLIP_SHAPES[knob])
    theirs = scatter_weights(SiglipModel(config))
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_exactly(HFCLIPSiglipModel, tmp_path / "theirs")
    assert type(model.config) is HFCLIPSiglipConfig
    inputs = siglip_inputs(config.vision_config.image_size)
    assert_same_outputs(model, theirs, **inputs)
    mask = (inputs["input_ids"] != 0).long()
    assert_same_outputs(model, theirs, attention_mask=mask, **inputs)
    # Whoever asks for any dual encoder gets the one that the folder holds.
    assert_same_outputs(load_exactly(HFCLIPModel, tmp_path / "theirs"), theirs, **inputs)

    model = scatter_weights(HFCLIPSiglipModel(model.config))
    model.save_pretrained(tmp_path / "ours")
    assert_same_outputs(model, load_exactly(SiglipModel, tmp_path / "ours", config=config), **inputs)
    again = load_exactly(AutoModel, tmp_path / "ours")
    assert type(again) is HFCLIPSiglipModel
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (24, 16), (9, 30)])
def test_siglips_interpolated_positions(height, width, tmp_path):
    theirs = scatter_weights(SiglipModel(siglip_config()))
    theirs.save_pretrained(tmp_path)
    model, images = load_exactly(HFCLIPSiglipModel, tmp_path), make_images(height, width)
    expected = theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    embeddings = model.encode_image(images, normalize=False, interpolate_pos_encoding=True)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)


def test_towers_and_classifiers_load_from_a_siglip_folder(tmp_path):
    scatter_weights(SiglipModel(siglip_config())).save_pretrained(tmp_path)
    model = load_exactly(HFCLIPSiglipModel, tmp_path)
    vision = load_exactly(HFCLIPVisionModelWithProjection, tmp_path)
    text = load_exactly(HFCLIPTextModelWithProjection, tmp_path)
    torch.testing.assert_close(vision(make_images()).image_embeds, model.encode_image(make_images(), normalize=False))
    torch.testing.assert_close(text(texts()).text_embeds, model.encode_text(texts(), normalize=False))
    config = siglip_config()
    config.num_labels = 5
    theirs = scatter_weights(SiglipForImageClassification(config))
    theirs.save_pretrained(tmp_path / "classifier")
    classifier = load_exactly(HFCLIPForImageClassification, tmp_path / "classifier")
    torch.testing.assert_close(classifier(make_images()).logits, theirs(make_images()).logits, **CLOSE)


def test_texts_that_are_not_padded_as_siglips_are_refused():
    config = siglip_config()
    model = HFCLIPSiglipModel(siglip_as_ours(config))
    with pytest.raises(ValueError, match="Texts of 6 tokens .* pad them to 10 tokens .*max_length=10"):
        model.encode_text(texts()[1:, :6])


def siglip_as_ours(config: SiglipConfig, **fields) -> HFCLIPSiglipConfig:
    """The shape of `siglip_config`, in this package's own fields."""
    knobs = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "projection_type": "none"}
    text = {"pooling": "last", "is_causal": False, "projection_size": config.text_config.projection_size}
    vision = {
        "pooling": "attention",
        "norm_before_pooling": True,
        "has_class_token": False,
        "has_pre_norm": False,
        "patch_bias": True,
    }
    return HFCLIPSiglipConfig(
        text_config={**TEXT, **knobs, **text}, vision_config={**VISION, **knobs, **vision}, projection_dim=40, **fields
    )


def test_siglips_fields_are_those_of_its_config_json(tmp_path):
    siglip_config().save_pretrained(tmp_path)
    read = HFCLIPConfig.from_pretrained(tmp_path).to_dict()
    expected = siglip_as_ours(siglip_config()).to_dict()
    assert {**read, "transformers_version": None} == {**expected, "transformers_version": None}


def everything() -> HFCLIPSiglipModel:
    """A sigmoid model with a knob of each kind that brings weights or shapes of its own."""
    text = {"layer_scale_init_value": 0.1, "projection_type": "mlp", "projection_bias": True, "is_causal": False}
    vision = {"layer_scale_init_value": 0.1, "pooling": "attention", "patch_bias": True, "projection_bias": True}
    return HFCLIPSiglipModel(
        HFCLIPSiglipConfig(
            text_config={**TEXT, "pooling": "mean", **text},
            vision_config={**VISION, "patch_dropout": 0.5, **vision},
            projection_dim=24,
        )
    )


def test_gradients_reach_every_weight_with_and_without_checkpointing():
    model, inputs, gradients = scatter_weights(everything()).train(), siglip_inputs(), []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        # The generator's next numbers choose the patches.
        torch.manual_seed(4)
        model(**inputs, return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert len(gradients[0]) == len(model.state_dict())
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiles_as_one_graph_in_training_and_behind_it():
    model = scatter_weights(everything())
    for training in soak_count((True,), (False, True)):
        model.train(training)
        for kind in ("encode_image", "encode_text"):
            encode = getattr(model, kind)
            inputs = make_images() if kind == "encode_image" else texts()
            torch.manual_seed(5)
            expected = encode(inputs)
            torch.manual_seed(5)
            compiled = torch.compile(encode, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(inputs), expected, **CLOSE)


@pytest.mark.slow
def test_exports_with_any_number_of_images():
    tower = scatter_weights(everything()).vision_model
    program = torch.export.export(tower, (make_images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    more = make_images(count=5)
    torch.testing.assert_close(program.module()(more).pooler_output, tower(more).pooler_output, **CLOSE)


@pytest.mark.parametrize("implementation", soak_count(["eager"], ["eager", "flex_attention"]))
def test_attention_implementations_agree(implementation):
    model = scatter_weights(everything())
    mask = (texts() != 0).long()
    expected = model.encode_image(make_images()), model.encode_text(texts(), mask)
    model.set_attn_implementation(implementation)
    # By itself flex attention runs through inductor; within a graph it is evaluated as it stands.
    backend = {"backend": "eager"} if implementation == "flex_attention" else {"disable": True}
    with torch.no_grad():
        encode_image, encode_text = (
            torch.compile(encode, **backend) for encode in (model.encode_image, model.encode_text)
        )
        torch.testing.assert_close((encode_image(make_images()), encode_text(texts(), mask)), expected, **CLOSE)
    if implementation == "eager":
        attentions = model.text_model(texts(), output_attentions=True).attentions
        assert all(weights.triu(1).abs().max() > 0 for weights in attentions)


def assert_initial(model: HFCLIPSiglipModel) -> None:
    vision, text = model.vision_model, model.text_model
    for layer in (*vision.encoder.layers, *text.encoder.layers):
        for scale in (layer.layer_scale1, layer.layer_scale2):
            assert torch.equal(scale.weight, torch.full_like(scale.weight, 0.1))
    head = vision.head
    stds = {
        head.probe: 40**-0.5,
        head.attention.in_proj_weight: 40**-0.5,
        head.attention.out_proj.weight: 40**-0.5,
        model.text_projection.fc1.weight: 32**-0.5,
        model.text_projection.fc2.weight: 28**-0.5,
    }
    for parameter, std in stds.items():
        assert parameter.std().item() == pytest.approx(std, rel=5 / (2 * parameter.numel()) ** 0.5)
    for layer in (head.attention.out_proj, model.text_projection.fc1, vision.embeddings.patch_embedding):
        assert (layer.bias == 0).all()
    assert (head.attention.in_proj_bias == 0).all()
    assert model.logit_scale.shape == model.logit_bias.shape == (1,)
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10


def test_initial_weights_also_of_a_model_made_without_memory():
    torch.manual_seed(6)
    assert_initial(everything())
    with torch.device("meta"):
        model = everything()
    meta = {name: tensor.to("meta") for name, tensor in siglip_inputs().items()}
    assert model(**meta).logits_per_image.shape == (3, 3)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(77)
    model.init_weights()
    assert_initial(model)


def test_offloaded_weights_give_the_same_embeddings(tmp_path):
    model = scatter_weights(everything())
    model.save_pretrained(tmp_path)
    places = {"text_model": "cpu", "text_projection": "cpu", "visual_projection": "cpu", "vision_model": "disk"}
    again = HFCLIPSiglipModel.from_pretrained(
        tmp_path, device_map={**places, "logit_scale": "cpu", "logit_bias": "cpu"}, offload_folder=tmp_path / "offload"
    ).eval()
    assert again.vision_model.head.attention.in_proj_weight.is_meta
    torch.testing.assert_close(again(**siglip_inputs()).logits_per_image, model(**siglip_inputs()).logits_per_image)


def test_half_precision_keeps_its_type():
    model = scatter_weights(everything())
    expected = model(**siglip_inputs())
    output = model.to(torch.bfloat16)(**siglip_inputs(), return_loss=True)
    assert output.image_embeds.dtype == output.text_embeds.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    for field in ("image_embeds", "text_embeds"):
        assert F.cosine_similarity(output[field].float(), expected[field]).min() > 0.99
