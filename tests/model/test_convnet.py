"""The convolutional image tower: its shapes, its pooling, and that an image's embedding is its own."""

import pytest
import torch
import torch.nn.functional as F

from hf_clip import (
    HFCLIPConfig,
    HFCLIPForImageClassification,
    HFCLIPModel,
    HFCLIPVisionConfig,
    HFCLIPVisionModelWithProjection,
)
from hf_clip.model.modeling_convnet_hf_clip import HFCLIPConvNetModel
from tests.helpers.toys import scatter_weights

SHAPE = {
    "tower": "convnet",
    "image_size": 32,
    "stem_width": 8,
    "stage_widths": [16, 24, 32],
    "stage_depths": [1, 1, 2],
    "norm_group_size": 8,
    "hidden_size": 32,
    "pool_grid": 2,
    "hidden_act": "gelu",
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "pad_token_id": 49,
}


def tower(**fields) -> HFCLIPConvNetModel:
    return scatter_weights(HFCLIPConvNetModel(HFCLIPVisionConfig(**{**SHAPE, **fields})), by=0.05)


def dual(**fields) -> HFCLIPModel:
    return scatter_weights(
        HFCLIPModel(HFCLIPConfig(text_config=TEXT, vision_config=SHAPE, projection_dim=12, **fields)), by=0.05
    )


def make_images(height: int = 32, width: int = 32, count: int = 4) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(count, 3, height, width)


TEXTS = torch.tensor([[48, 1, 2, 49], [48, 3, 49, 49], [48, 4, 5, 49], [48, 6, 49, 49]])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48)])
def test_shapes(height, width):
    model = tower()
    assert model.config.stride == 16
    size = {"interpolate_pos_encoding": True}
    output = model(make_images(height, width), output_hidden_states=True, **size)
    assert output.last_hidden_state.shape == (4, height // 16 * (width // 16), 32)
    assert output.pooler_output.shape == (4, model.config.pooled_size) == (4, 128)
    # What went into the first layer, and what came out of each: every stage halves the sides once.
    widths_and_strides = [(8, 2), (16, 4), (24, 8), (32, 16), (32, 16)]
    maps = [(channels, height // stride, width // stride) for channels, stride in widths_and_strides]
    assert [tuple(state.shape[1:]) for state in output.hidden_states] == maps
    assert model(make_images(height, width), **size).hidden_states is None


def test_pooling_averages_the_places_of_the_grid():
    model = tower(image_size=64)
    output = model(make_images(64, 64))
    map_BCHW = output.last_hidden_state.transpose(1, 2).unflatten(2, (4, 4))
    corners = [map_BCHW[:, :, top : top + 2, left : left + 2].mean((2, 3)) for top in (0, 2) for left in (0, 2)]
    expected = model.post_layernorm(torch.stack(corners, dim=-1).flatten(1))
    torch.testing.assert_close(output.pooler_output, expected)
    # A grid of one place is the mean of all tokens.
    model = tower(pool_grid=1)
    output = model(make_images())
    torch.testing.assert_close(output.pooler_output, model.post_layernorm(output.last_hidden_state.mean(1)))


def test_the_grid_keeps_where_things_are():
    model = tower(pool_grid=2)
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, :16] = 1
    assert (model(image).pooler_output - model(image.flip(2)).pooler_output).abs().max() > 0.1


@pytest.mark.parametrize("training", [False, True])
def test_a_images_embedding_does_not_depend_on_its_batch(training):
    model = tower().train(training)
    together = model(make_images()).pooler_output
    alone = torch.cat([model(image[None]).pooler_output for image in make_images()])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert not list(model.buffers())


def test_norms_take_groups_of_channels_over_the_image():
    layer = tower().layers[0]
    image_BCHW = torch.randn(2, 8, 16, 16)
    # The layer opens a stage: of each 2 x 2 positions the largest goes on.
    conv_BCHW = layer.conv(image_BCHW)
    map_BCHW = conv_BCHW.unflatten(3, (8, 2)).unflatten(2, (8, 2)).amax((3, 5))
    groups = map_BCHW.unflatten(1, (2, 8))
    variance, mean = torch.var_mean(groups, dim=(2, 3, 4), keepdim=True, correction=0)
    plain = ((groups - mean) / (variance + layer.norm.eps).sqrt()).flatten(1, 2)
    expected = F.gelu(plain * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None])
    torch.testing.assert_close(layer(image_BCHW), expected, rtol=1e-5, atol=1e-5)


def test_other_sizes_raise_unless_asked_for_and_so_do_those_that_do_not_fit_the_stride():
    with pytest.raises(ValueError, match="64 x 48 pixels do not fit the model's 32 x 32"):
        tower()(make_images(64, 48))
    with pytest.raises(ValueError, match="32 x 40 do not fit the convnet's stride of 16"):
        tower()(make_images(32, 40), interpolate_pos_encoding=True)


def test_channels_last_gives_the_same_embeddings():
    model = tower()
    expected = model(make_images()).pooler_output
    model.to(memory_format=torch.channels_last)
    embeddings = model(make_images().to(memory_format=torch.channels_last)).pooler_output
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = dual().train()
    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.gradient_checkpointing_enable()
            assert model.vision_model.layers[0].gradient_checkpointing
        model.zero_grad()
        model(TEXTS, make_images(), return_loss=True).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_the_dual_encoder_and_its_parts_load_from_one_folder(tmp_path):
    model = dual()
    model.save_pretrained(tmp_path)
    again, info = HFCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    image_embeds = model.encode_image(make_images())
    torch.testing.assert_close(again.eval().encode_image(make_images()), image_embeds, rtol=0, atol=0)
    vision, info = HFCLIPVisionModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(F.normalize(vision.eval()(make_images()).image_embeds), image_embeds)
    logits = model(TEXTS, make_images(), output_hidden_states=True)
    assert logits.logits_per_image.shape == (4, 4)
    assert len(logits.vision_model_output.hidden_states) == 5
    # The text tower's attention can be chosen, though this tower has none.
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(TEXTS, make_images()).logits_per_image, logits.logits_per_image)


def test_the_classifier_averages_all_positions():
    config = HFCLIPConfig(text_config=TEXT, vision_config=SHAPE, num_labels=3)
    model = scatter_weights(HFCLIPForImageClassification(config), by=0.05)
    output = model(make_images(), labels=torch.tensor([0, 1, 2, 0]))
    expected = model.classifier(model.vision_model(make_images()).last_hidden_state.mean(1))
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.loss, F.cross_entropy(expected, torch.tensor([0, 1, 2, 0])))


def test_initial_weights_keep_the_stream_at_one_size():
    torch.manual_seed(3)
    widths = {"stem_width": 64, "stage_widths": [128, 128], "stage_depths": [2, 2], "hidden_size": 128, "pool_grid": 1}
    model = HFCLIPConvNetModel(HFCLIPVisionConfig(**{**SHAPE, **widths}))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name
            assert module.bias.abs().max() == 0
    states = model(make_images(count=8), output_hidden_states=True).hidden_states
    assert 0.5 < states[-1].std() / states[0].std() < 2


@pytest.mark.slow
def test_made_without_memory_and_compiled():
    with torch.device("meta"):
        model = HFCLIPConvNetModel(HFCLIPVisionConfig(**SHAPE))
    model.to_empty(device="cpu")
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.stem.weight.std() > 0 and torch.equal(model.layers[0].norm.weight, torch.ones(16))
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(make_images()).pooler_output, model(make_images()).pooler_output)
