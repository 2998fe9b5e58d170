"""The ViT dual encoder: equal to its peers, and at home in transformers.

The peers' models with small random weights are the oracle, in both directions.
"""

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch._inductor import config as inductor_config
from transformers import CLIPConfig, CLIPForImageClassification, CLIPModel

import hf_clip.model.modeling_hf_clip as modeling
from hf_clip import (
    HFCLIPCoCaConfig,
    HFCLIPCoCaModel,
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModel,
    HFCLIPVisionModelWithProjection,
)
from tests.helpers.counts import soak_count
from tests.helpers.openai_names import in_openais_names
from tests.helpers.peers import load_openai_module
from tests.helpers.toys import scatter_weights, tiny_coca

START, END, VOCABULARY, CONTEXT, SIDE = 197, 198, 200, 12, 16
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "image_size": SIDE,
    "patch_size": 4,
}
CLOSE = {"rtol": 0, "atol": 1e-5}


def shape(text=None, vision=None, **fields) -> dict:
    return {"text_config": {**TEXT, **(text or {})}, "vision_config": {**VISION, **(vision or {})}, **fields}


def ours(text=None, vision=None, **fields) -> HFCLIPModel:
    return scatter_weights(HFCLIPModel(HFCLIPConfig(**shape(text, vision, **{"projection_dim": 24, **fields}))))


def shallow() -> HFCLIPModel:
    """Of one layer a tower, for what takes seconds a layer: a compiler, an exporter."""
    return ours(*soak_count([{"num_hidden_layers": 1}] * 2, [None, None]))


def texts() -> torch.Tensor:
    """Ids of texts of 3 to 9 tokens, padded with 0 to 9."""
    torch.manual_seed(2)
    input_ids = torch.zeros(4, 9, dtype=torch.long)
    for row, length in enumerate((9, 3, 6, 8)):
        input_ids[row, :length] = torch.randint(1, START, (length,))
        input_ids[row, 0], input_ids[row, length - 1] = START, END
    return input_ids


def make_images(height: int = SIDE, width: int = SIDE, count: int = 3) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(count, 3, height, width)


def both_embeddings(model) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.encode_image(make_images()), model.encode_text(texts())


def load_exactly(model_class, folder, **kwargs):
    """`from_pretrained` that must find every tensor, of the right shape, and no other."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model.eval()


KNOBS = {
    "as the paper": {},
    "gelu": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "eps": {"text": {"layer_norm_eps": 1e-2}, "vision": {"layer_norm_eps": 3e-2}},
    "sizes": {
        "text": {"hidden_size": 40, "num_attention_heads": 2, "num_hidden_layers": 1},
        "vision": {"hidden_size": 24, "num_attention_heads": 1, "patch_size": 8, "num_channels": 3},
        "projection_dim": 7,
    },
    "highest id": {"text": {"eos_token_id": 2}},
}


@pytest.fixture(params=KNOBS)
def knobs(request) -> dict:
    return shape(**{"projection_dim": 24, **KNOBS[request.param]})


def assert_same_outputs(ours: HFCLIPModel, theirs: CLIPModel) -> None:
    inputs = {"input_ids": texts(), "pixel_values": make_images(), "attention_mask": (texts() != 0).long()}
    with torch.no_grad():
        output, expected = (model(**inputs, output_hidden_states=True) for model in (ours, theirs))
    for field in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(output[field], expected[field], **CLOSE)
    scale = theirs.logit_scale.exp().item()
    for field in ("logits_per_image", "logits_per_text"):
        torch.testing.assert_close(output[field], expected[field], rtol=0, atol=1e-5 * scale)
    for tower in ("text_model_output", "vision_model_output"):
        assert len(output[tower].hidden_states) == len(expected[tower].hidden_states)
        for state, expected_state in zip(output[tower].hidden_states, expected[tower].hidden_states, strict=True):
            torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output[tower].pooler_output, expected[tower].pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_folder_of_transformers_clip_gives_its_embeddings(knobs, tmp_path):
    theirs = scatter_weights(CLIPModel(CLIPConfig(**knobs)))
    theirs.save_pretrained(tmp_path)
    assert_same_outputs(load_exactly(HFCLIPModel, tmp_path), theirs)


def test_transformers_clip_gives_our_folders_embeddings(knobs, tmp_path):
    ours = scatter_weights(HFCLIPModel(HFCLIPConfig(**knobs)))
    ours.save_pretrained(tmp_path)
    assert_same_outputs(ours, load_exactly(CLIPModel, tmp_path, config=CLIPConfig(**knobs)))


def test_loss_is_transformers_loss(tmp_path):
    theirs = scatter_weights(CLIPModel(CLIPConfig(**shape(projection_dim=24))))
    theirs.save_pretrained(tmp_path)
    inputs = {"input_ids": texts()[:3], "pixel_values": make_images(), "return_loss": True}
    model = load_exactly(HFCLIPModel, tmp_path)
    torch.testing.assert_close(model(**inputs).loss, theirs(**inputs).loss)
    # Equal captions are no negatives of each other, where their ids say so.
    assert model(**inputs, concept_ids=torch.tensor([0, 0, 1])).loss != model(**inputs).loss
    assert model(**{**inputs, "return_loss": None}).loss is None


def test_transformers_classifier_loads_and_gives_its_logits(tmp_path):
    theirs = scatter_weights(CLIPForImageClassification(CLIPConfig(**shape(), num_labels=5)))
    theirs.save_pretrained(tmp_path)
    model = load_exactly(HFCLIPForImageClassification, tmp_path)
    labels = torch.tensor([4, 0, 2])
    output, expected = (classifier(pixel_values=make_images(), labels=labels) for classifier in (model, theirs))
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.slow
def test_openais_own_model_gives_the_same_logits():
    # OpenAI's towers have heads of 64 and hidden layers of four times the width, by construction.
    text = {"intermediate_size": 128}
    model = ours(text, {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2})
    sizes = (24, SIDE, 2, 128, 4, CONTEXT, VOCABULARY, 32, 4, 3)
    openai = load_openai_module("model").CLIP(*sizes)
    openai.load_state_dict(in_openais_names(model))
    openai.eval()
    input_ids = torch.zeros(4, CONTEXT, dtype=torch.long)
    input_ids[:, :9] = texts()
    # Its end token is the highest id there is.
    logits_per_image, logits_per_text = openai(make_images(), input_ids)
    output = model(input_ids, make_images())
    scale = model.logit_scale.exp().item()
    torch.testing.assert_close(output.logits_per_image, logits_per_image, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(output.logits_per_text, logits_per_text, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("source", [HFCLIPModel, CLIPModel])
def test_towers_load_alone_from_a_dual_folder(source, tmp_path, caplog):
    config_class = HFCLIPConfig if source is HFCLIPModel else CLIPConfig
    scatter_weights(source(config_class(**shape(projection_dim=24)))).save_pretrained(tmp_path)
    model = load_exactly(HFCLIPModel, tmp_path)
    caplog.clear()
    text = load_exactly(HFCLIPTextModelWithProjection, tmp_path)
    vision = load_exactly(HFCLIPVisionModelWithProjection, tmp_path)
    assert not caplog.records
    image_embeds = model.encode_image(make_images(), normalize=False)
    text_embeds = model.encode_text(texts(), normalize=False)
    torch.testing.assert_close(vision(make_images()).image_embeds, image_embeds, **CLOSE)
    torch.testing.assert_close(text(texts()).text_embeds, text_embeds, **CLOSE)
    text.save_pretrained(tmp_path / "text")
    again = load_exactly(HFCLIPTextModelWithProjection, tmp_path / "text")
    torch.testing.assert_close(again(texts()).text_embeds, text_embeds, **CLOSE)
    # The towers without a projection, as parts of other models.
    bare_text, bare_vision = (kind.from_pretrained(tmp_path).eval() for kind in (HFCLIPTextModel, HFCLIPVisionModel))
    torch.testing.assert_close(bare_text(texts()).pooler_output, model.text_model(texts()).pooler_output)
    torch.testing.assert_close(
        bare_vision(make_images()).pooler_output, model.vision_model(make_images()).pooler_output
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "masked"),
    [("sdpa", False), ("sdpa", True), ("flex_attention", True), *soak_count([], [("flex_attention", False)])],
)
def test_attention_implementations_agree(implementation, masked):
    model = shallow() if implementation == "flex_attention" else ours()
    mask = (texts() != 0).long() if masked else None
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.encode_image(make_images()), model.encode_text(texts(), mask)
        model.set_attn_implementation(implementation)
        if implementation == "flex_attention" and not soak_count(False, True):
            # By itself it runs through inductor, a minute on a cold CPU; within a graph it is evaluated as it stands.
            encode_text = torch.compile(model.encode_text, backend="eager")
            torch.testing.assert_close(encode_text(texts(), mask), expected[1], **CLOSE)
            return
        found = model.encode_image(make_images()), model.encode_text(texts(), mask)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_each_tower_has_an_implementation_of_its_own(tmp_path):
    model = ours()
    embeddings = both_embeddings(model)
    model.save_pretrained(tmp_path)
    chosen = {"text_config": "eager", "vision_config": "sdpa"}
    model = load_exactly(HFCLIPModel, tmp_path, attn_implementation=chosen)
    assert model.text_model.encoder.layers[0].self_attn.config._attn_implementation == "eager"
    assert model.vision_model.encoder.layers[0].self_attn.config._attn_implementation == "sdpa"
    torch.testing.assert_close(both_embeddings(model), embeddings, **CLOSE)
    # Only the eager tower has weights to record.
    assert model.text_model(texts(), output_attentions=True).attentions[0] is not None


def test_flash_attention_that_is_missing_is_named():
    if torch.cuda.is_available():
        pytest.skip("on a machine with an accelerator flash attention may be there")
    with pytest.raises(ImportError, match="(?i)flash.?attention.?2"):
        ours().set_attn_implementation("flash_attention_2")
    with pytest.raises(ImportError, match="(?i)flash.?attention.?2"):
        HFCLIPModel._from_config(HFCLIPConfig(**shape()), attn_implementation="flash_attention_2")


def test_attention_weights_and_hidden_states_are_recorded():
    model = ours()
    model.set_attn_implementation("eager")
    output = model(texts(), make_images(), output_attentions=True, output_hidden_states=True)
    vision, text = output.vision_model_output, output.text_model_output
    assert [tuple(weights.shape) for weights in text.attentions] == [(4, 4, 9, 9)] * 3
    assert [tuple(weights.shape) for weights in vision.attentions] == [(3, 6, 17, 17)] * 2
    for weights in (*text.attentions, *vision.attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert all(weights.triu(1).abs().max() == 0 for weights in text.attentions)
    assert (len(text.hidden_states), len(vision.hidden_states)) == (4, 3)
    torch.testing.assert_close(vision.hidden_states[-1], vision.last_hidden_state)
    # Every tower and head records by itself too.
    for kind, inputs in ((HFCLIPTextModelWithProjection, texts()), (HFCLIPVisionModelWithProjection, make_images())):
        tower_config = getattr(model.config, kind.config_class.base_config_key)
        output = kind(tower_config)(inputs, output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == tower_config.num_hidden_layers + 1
        assert len(output.attentions) == tower_config.num_hidden_layers
    plain = model(texts(), make_images())
    assert plain.text_model_output.hidden_states is None and plain.vision_model_output.attentions is None


def test_outputs_as_tuples_hold_the_same():
    model = ours()
    output = model(texts(), make_images())
    as_tuple = model(texts(), make_images(), return_dict=False)
    torch.testing.assert_close(as_tuple[0], output.logits_per_image)
    torch.testing.assert_close(output.to_tuple()[2], output.text_embeds)
    torch.testing.assert_close(model.get_text_features(texts()).pooler_output, model.encode_text(texts(), None, False))
    features = model.get_image_features(make_images(), return_dict=False)
    torch.testing.assert_close(features[1], model.encode_image(make_images(), normalize=False))


@pytest.mark.parametrize("kwargs", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_gives_the_same_gradients(kwargs):
    model = ours(text={"attention_dropout": 0.0}).train()
    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
            assert all(layer.gradient_checkpointing for layer in model.text_model.encoder.layers)
        model.zero_grad()
        model(texts()[:3], make_images(), return_loss=True).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert len(gradients[0]) == len(model.state_dict())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (20, 28), (8, 16), (22, 17)])
def test_interpolated_positions_equal_transformers(height, width, tmp_path):
    theirs = scatter_weights(CLIPModel(CLIPConfig(**shape())))
    theirs.save_pretrained(tmp_path)
    model = load_exactly(HFCLIPModel, tmp_path)
    images = make_images(height, width)
    expected = theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    embeddings = model.encode_image(images, normalize=False, interpolate_pos_encoding=True)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-5)
    if (height, width) == (SIDE, SIDE):
        torch.testing.assert_close(embeddings, model.encode_image(images, normalize=False), rtol=0, atol=0)
    else:
        with pytest.raises(ValueError, match=f"{height} x {width} pixels.*16 x 16.*interpolate_pos_encoding=True"):
            model.encode_image(images)


def test_images_smaller_than_a_patch_raise():
    with pytest.raises(ValueError, match="3 x 40 pixels are smaller than one patch of 4 x 4"):
        ours().encode_image(make_images(3, 40), interpolate_pos_encoding=True)


@pytest.mark.parametrize("pad", [0, END])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_to_the_longest_text_is_exact(implementation, pad):
    model = ours()
    model.set_attn_implementation(implementation)
    short = texts()
    full = torch.full((4, CONTEXT), pad)
    full[:, :9] = torch.where(short == 0, pad, short)
    mask = torch.zeros(4, CONTEXT, dtype=torch.long)
    mask[:, :9] = short != 0
    embeddings = model.encode_text(short)
    for padded in (model.encode_text(full), model.encode_text(full, mask), model.encode_text(full, mask.bool())):
        torch.testing.assert_close(padded, embeddings, rtol=0, atol=1e-6)
    # Each text by itself, without any padding.
    alone = torch.cat([model.encode_text(row[row != 0][None]) for row in short])
    torch.testing.assert_close(alone, embeddings, rtol=0, atol=1e-6)


def test_a_text_is_pooled_at_its_first_end_token():
    model = ours()
    ids = torch.tensor([[START, 5, END, 0, 0, 0]])
    # A later end token, and an id above the end token's, stand behind it.
    for tail in ([END, 7, END], [VOCABULARY - 1, 3, 0]):
        longer = torch.tensor([[START, 5, END, *tail]])
        torch.testing.assert_close(model.encode_text(longer), model.encode_text(ids), rtol=0, atol=1e-6)
    before = torch.tensor([[START, VOCABULARY - 1, END]])
    hidden = model.text_model(before)
    torch.testing.assert_close(hidden.pooler_output, hidden.last_hidden_state[:, 2])


def test_a_text_without_an_end_token_raises():
    model, ids = ours(), texts()
    ids[2][ids[2] == END] = 1
    with pytest.raises(ValueError, match=f"no end token \\(id {END}\\).*add_special_tokens=True"):
        model.encode_text(ids)
    with pytest.raises(ValueError, match="no end token"):
        model(ids, make_images())


def test_a_text_longer_than_the_positions_raises():
    ids = torch.full((2, CONTEXT + 1), END)
    with pytest.raises(ValueError, match="13 tokens are longer than the model's 12 positions: truncate"):
        ours().encode_text(ids)


@pytest.mark.parametrize("pooling", ["eos", "highest id", "first_eos", "mean"])
@pytest.mark.parametrize("pad", [0, END])
def test_left_padding_with_its_mask_gives_the_embeddings_of_right_padding(pooling, pad):
    """Where the padding is the end token too, as OpenAI's is; transformers' CLIP would take other positions."""
    model = ours()
    model.config.text_config.pooling = "eos" if pooling == "highest id" else pooling
    if pooling == "highest id":
        model.config.text_config.eos_token_id = 2
    texts = [[START, 5, END], [START, 1, 2, 3, END]]
    right, left = torch.full((2, 2, 6), pad).unbind()
    mask_right, mask_left = torch.zeros(2, 2, 6, dtype=torch.long).unbind()
    for row, text in enumerate(texts):
        right[row, : len(text)], mask_right[row, : len(text)] = torch.tensor(text), 1
        left[row, -len(text) :], mask_left[row, -len(text) :] = torch.tensor(text), 1
    expected = model.encode_text(right, mask_right)
    torch.testing.assert_close(model.encode_text(left, mask_left), expected, rtol=0, atol=1e-6)
    for pooled_only in (False, True):
        pooled = model.text_model(left, mask_left, pooled_only=pooled_only).pooler_output
        reference = model.text_model(right, mask_right).pooler_output
        torch.testing.assert_close(pooled, reference, rtol=0, atol=1e-6)


def test_left_padding_where_a_position_is_pooled_and_texts_without_tokens_raise():
    model, ids = ours(), torch.tensor([[0, 0, START, 5, END], [START, 1, 2, 3, END]])
    mask = (ids != 0).long()
    with pytest.raises(ValueError, match="A text has no tokens"):
        model.encode_text(ids, mask * torch.tensor([[0], [1]]))
    model.config.text_config.pooling = "first"
    with pytest.raises(ValueError, match="padded on the left.*the first position.*padding_side = 'right'"):
        model.encode_text(ids, mask)


def expected_stds(config: HFCLIPConfig) -> dict[str, float]:
    """Standard deviations that OpenAI's `initialize_parameters` draws with, by the end of a parameter's name."""
    stds = {
        "token_embedding.weight": 0.02,
        "text_model.embeddings.position_embedding.weight": 0.01,
        "vision_model.embeddings.position_embedding.weight": config.vision_config.hidden_size**-0.5,
        "class_embedding": config.vision_config.hidden_size**-0.5,
        "patch_embedding.weight": config.vision_config.initializer_range,
        "text_projection.weight": config.text_config.hidden_size**-0.5,
        "visual_projection.weight": config.vision_config.hidden_size**-0.5,
    }
    for tower, shape in (("text_model", config.text_config), ("vision_model", config.vision_config)):
        width, depth = shape.hidden_size, shape.num_hidden_layers
        for layer in range(depth):
            prefix = f"{tower}.encoder.layers.{layer}"
            for name in "qkv":
                stds[f"{prefix}.self_attn.{name}_proj.weight"] = width**-0.5
            stds[f"{prefix}.self_attn.out_proj.weight"] = (2 * width * depth) ** -0.5
            stds[f"{prefix}.mlp.fc1.weight"] = (2 * width) ** -0.5
            stds[f"{prefix}.mlp.fc2.weight"] = (2 * width * depth) ** -0.5
    return stds


def assert_initial(model: HFCLIPModel, config: HFCLIPConfig) -> None:
    stds, factor = expected_stds(config), config.initializer_factor
    for name, parameter in model.named_parameters():
        matches = [std for ending, std in stds.items() if name.endswith(ending)]
        if name == "logit_scale":
            assert parameter.item() == pytest.approx(config.logit_scale_init_value)
        elif name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert len(matches) == 1, name
            # Five standard errors of a standard deviation.
            assert parameter.std().item() == pytest.approx(matches[0] * factor, rel=5 / (2 * parameter.numel()) ** 0.5)
            assert abs(parameter.mean().item()) < 5 * matches[0] * factor / parameter.numel() ** 0.5
    assert_positions(model)


def assert_positions(model: HFCLIPModel) -> None:
    assert torch.equal(model.text_model.embeddings.position_ids, torch.arange(CONTEXT)[None])
    assert torch.equal(model.vision_model.embeddings.position_ids, torch.arange(17)[None])


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_initial_weights_have_openais_statistics(factor):
    fields = {"text": {"initializer_factor": factor}, "vision": {"initializer_factor": factor}}
    config = HFCLIPConfig(**shape(**fields, initializer_factor=factor))
    torch.manual_seed(4)
    assert_initial(HFCLIPModel(config), config)


def test_a_model_made_without_memory_is_initialized_later():
    config = HFCLIPConfig(**shape())
    with torch.device("meta"):
        model = HFCLIPModel(config)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(77)
    model.init_weights()
    assert_initial(model, config)


def test_what_a_folder_lacks_is_initialized_and_the_rest_is_loaded(tmp_path):
    model = ours()
    state = {name: tensor for name, tensor in model.state_dict().items() if "visual_projection" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    again, info = HFCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"visual_projection.weight"}
    width = VISION["hidden_size"]
    assert again.visual_projection.weight.std().item() == pytest.approx(width**-0.5, rel=0.15)
    torch.testing.assert_close(again.text_model.state_dict(), model.text_model.state_dict(), rtol=0, atol=0)
    assert_positions(again)


def test_saving_and_loading_is_bit_exact_in_one_file_and_in_shards(tmp_path):
    model = ours()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for folder in ("whole", "shards"):
        again = load_exactly(HFCLIPModel, tmp_path / folder)
        assert again.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(both_embeddings(again), both_embeddings(model), rtol=0, atol=0)
        assert_positions(again)


def test_copies_are_the_same_model():
    model = ours()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(both_embeddings(copied), both_embeddings(model), rtol=0, atol=0)
        assert copied.config.to_dict() == model.config.to_dict()
        with torch.no_grad():
            copied.visual_projection.weight.zero_()
    assert model.visual_projection.weight.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_gives_unit_embeddings(dtype, tmp_path):
    model = ours()
    exact = both_embeddings(model)
    model.save_pretrained(tmp_path)
    half = load_exactly(HFCLIPModel, tmp_path, dtype=dtype)
    assert all(parameter.dtype == dtype for parameter in half.parameters())
    assert half.text_model.embeddings.position_ids.dtype == torch.long
    # Images come in float32 from the processor.
    for embeddings, expected in zip(both_embeddings(half), exact, strict=True):
        assert embeddings.dtype == dtype
        assert torch.cosine_similarity(embeddings.float(), expected).min() > 0.99
        # Normalized in float32, and rounded once.
        torch.testing.assert_close(embeddings.float().norm(dim=-1), torch.ones(len(embeddings)), rtol=0, atol=5e-3)
    output = half(texts(), make_images())
    assert output.logits_per_image.dtype == output.text_embeds.dtype == dtype


def test_lengths_are_taken_in_float32():
    # Squares of these leave float16's range at either end.
    for factor in (300.0, 1e-4):
        unit = modeling.unit_embeddings(torch.full((1, 64), factor, dtype=torch.float16))
        assert unit.dtype == torch.float32
        torch.testing.assert_close(unit, torch.full((1, 64), 0.125))
    assert modeling.unit_embeddings(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64


def test_under_autocast_the_loss_is_scored_in_float32():
    model = ours()
    exact = model(texts()[:3], make_images(), return_loss=True).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(texts()[:3], make_images(), return_loss=True)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload", "device_map"])
def test_offloaded_weights_give_the_same_embeddings(offload, tmp_path):
    model = ours()
    expected = model(texts(), make_images()).logits_per_image
    if offload == "cpu_offload":
        cpu_offload(model, execution_device="cpu")
    elif offload == "disk_offload":
        disk_offload(model, tmp_path / "offload", execution_device="cpu")
    else:
        model.save_pretrained(tmp_path)
        places = dict.fromkeys(dict(model.named_children()), "cpu") | {"logit_scale": "cpu", "text_model": "disk"}
        model = HFCLIPModel.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload").eval()
        assert model.text_model.encoder.layers[0].mlp.fc1.weight.is_meta
    torch.testing.assert_close(model(texts(), make_images()).logits_per_image, expected)


# A ViT with a pooling of queries, as OpenCLIP's CoCa has it.
QUERIES = {"tower": "vit", "pooling": "queries", "hidden_size": 32, "intermediate_size": 64, "image_size": 32}
QUERIES |= {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}


def test_parts_that_must_stay_on_one_device_are_modules_of_the_model():
    models = ours(), ours(vision={"pooling": "attention"}), ours(vision={"tower": "naflex", "num_patches": 4})
    of_captions = tiny_coca(["a red square"])[0]
    settings = of_captions.config.to_dict() | {"vision_config": QUERIES}
    models += of_captions, HFCLIPCoCaModel(HFCLIPCoCaConfig.from_dict(settings))
    classes = {type(module).__name__ for model in models for module in model.modules()}
    assert set(HFCLIPModel._no_split_modules) <= classes


@pytest.mark.slow
def test_compiles_as_one_graph():
    model, mask, ids = shallow(), (texts() != 0).long()[:3], texts()[:3]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected = model(ids, make_images(), mask).logits_per_image
    torch.testing.assert_close(compiled(ids, make_images(), mask).logits_per_image, expected)
    ids[2][ids[2] == END] = 1
    # Compiled code cannot branch on a value: it asserts.
    with pytest.raises(RuntimeError, match="no end token"):
        compiled(ids, make_images(), mask)


@pytest.mark.slow
def test_compiled_with_its_loss_it_trains_as_uncompiled():
    model, losses, gradients = shallow(), [], []
    for forward in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        losses.append(forward(texts()[:3], make_images(), return_loss=True).loss)
        losses[-1].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiles_with_inductor():
    model = shallow()
    # By itself, torch starts processes that compile, and tries what vector instructions a program can be made of.
    settings = inductor_config.patch({"compile_threads": 1, "cpp.vec_isa_ok": soak_count(False, None)})
    with torch.no_grad(), settings:
        encode = torch.compile(model.encode_image, fullgraph=True)
        torch.testing.assert_close(encode(make_images()), model.encode_image(make_images()), **CLOSE)


@pytest.mark.slow
def test_exports_with_any_number_of_images_and_texts(tmp_path):
    model = shallow()
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2, max=CONTEXT)
    for kind, name, inputs, more, dimensions in (
        (HFCLIPVisionModelWithProjection, "image_embeds", make_images(), make_images(count=5), {0: batch}),
        (HFCLIPTextModelWithProjection, "text_embeds", texts(), texts()[1:4, :8], {0: batch, 1: length}),
    ):
        tower = scatter_weights(kind(getattr(model.config, kind.config_class.base_config_key)))
        program = torch.export.export(tower, (inputs,), dynamic_shapes=(dimensions,), strict=False)
        torch.export.save(program, tmp_path / "tower.pt2")
        loaded = torch.export.load(tmp_path / "tower.pt2").module()
        torch.testing.assert_close(loaded(inputs)[name], tower(inputs)[name], **CLOSE)
        torch.testing.assert_close(loaded(more)[name], tower(more)[name], **CLOSE)
    with pytest.raises(RuntimeError, match="no end token"):
        loaded(torch.ones_like(texts()))


def test_raw_pixels_are_refused():
    """A byte of 255 would be a pixel 100 times brighter than white; the embeddings would look well."""
    raw = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    for encode in (ours().encode_image, ours().vision_model):
        with pytest.raises(ValueError, match="`pixel_values` of torch.uint8 are raw pixels"):
            encode(raw)
