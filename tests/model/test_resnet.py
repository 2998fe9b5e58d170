"""The ResNet tower: OpenAI's own code as the oracle, batch-norm statistics included, and at home in transformers."""

import pytest
import torch
from torch.nn import functional as F

from hf_clip import HFCLIPConfig, HFCLIPForImageClassification, HFCLIPModel, HFCLIPVisionModelWithProjection
from hf_clip.model.modeling_resnet_hf_clip import HFCLIPResNetModel
from tests.helpers.openai_names import in_openais_names
from tests.helpers.peers import load_open_clip, load_openai_module

START, END, VOCABULARY, CONTEXT, SIDE = 57, 58, 60, 8, 64
VISION = {
    "tower": "resnet",
    "hidden_size": 128,
    "stem_width": 4,
    "stage_depths": [2, 1, 3, 1],
    # OpenAI's model has a head for each 64 channels.
    "num_attention_heads": 2,
    "image_size": SIDE,
    "projection_bias": True,
}
# And text heads and MLPs in proportion.
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": END,
    "bos_token_id": START,
    "pad_token_id": 0,
}
TEXTS = torch.tensor([[START, 5, 6, END, 0, 0, 0, 0], [START, 7, END, 0, 0, 0, 0, 0]])
CLOSE = {"rtol": 0, "atol": 1e-5}


def ours(kind=HFCLIPModel, **vision) -> HFCLIPModel:
    """A model with every weight off its initial value, and running statistics as after training."""
    torch.manual_seed(0)
    model = kind(HFCLIPConfig(text_config=TEXT, vision_config={**VISION, **vision}, projection_dim=16))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model.eval()


def make_images(height: int = SIDE, width: int = SIDE, count: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 3, height, width)


def openais(model: HFCLIPModel) -> torch.nn.Module:
    vision = model.config.vision_config
    sizes = (16, SIDE, vision.stage_depths, vision.stem_width, None, CONTEXT, VOCABULARY, 64, 1, 1)
    theirs = load_openai_module("model").CLIP(*sizes)
    theirs.load_state_dict(in_openais_names(model))
    return theirs.eval()


def open_clips(model: HFCLIPModel) -> torch.nn.Module:
    vision = model.config.vision_config
    theirs = load_open_clip().CLIP(
        16,
        {"layers": vision.stage_depths, "width": vision.stem_width, "image_size": SIDE},
        {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 1},
        quick_gelu=True,
    )
    theirs.load_state_dict(in_openais_names(model))
    return theirs.eval()


@pytest.mark.slow
@pytest.mark.parametrize("peer", [openais, open_clips])
def test_the_peers_models_give_the_same_embeddings(peer):
    model = ours()
    theirs = peer(model)
    with torch.no_grad():
        for encode, expected, inputs in (
            (model.encode_image, theirs.encode_image, make_images()),
            (model.encode_text, theirs.encode_text, TEXTS),
        ):
            torch.testing.assert_close(encode(inputs), F.normalize(expected(inputs), dim=-1), **CLOSE)


@pytest.mark.slow
def test_training_gives_openais_gradients_and_statistics():
    model = ours()
    theirs = openais(model).train()
    model.train()
    embeddings = model.encode_image(make_images(count=4), normalize=False)
    expected = theirs.encode_image(make_images(count=4))
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
    embeddings.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(
        model.vision_model.stem.conv1.weight.grad, theirs.visual.conv1.weight.grad, rtol=1e-3, atol=1e-4
    )
    state = in_openais_names(model)
    names = [name for name in state if "running" in name or "num_batches" in name]
    # Three norms in the stem, three in each of seven layers, and four shortcuts.
    assert len(names) == 3 * (3 + 3 * 7 + 4)
    expected_state = theirs.state_dict()
    torch.testing.assert_close(
        {name: state[name] for name in names}, {name: expected_state[name] for name in names}, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_counts_a_batch_once(use_reentrant):
    found = []
    for is_checkpointing in (False, True):
        model = ours().train()
        if is_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
            assert model.vision_model.stages[0][0].gradient_checkpointing
        for _ in range(2):
            # Reentrant checkpoints need an input that asks for gradients.
            images = make_images(count=4).requires_grad_()
            model.encode_image(images).sum().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        found.append((gradients, {name: each.clone() for name, each in model.named_buffers()}))
        counted = model.vision_model.stages[0][0].norm1.num_batches_tracked
        assert counted == 2
        if is_checkpointing:
            model.gradient_checkpointing_disable()
            model.encode_image(make_images(count=4))
            assert counted == 3
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_hidden_states_are_the_stem_and_every_layer():
    output = ours().vision_model(make_images(64, 64), output_hidden_states=True)
    shapes = [tuple(state.shape[1:]) for state in output.hidden_states]
    assert shapes == [(4, 16, 16), *[(16, 16, 16)] * 2, (32, 8, 8), *[(64, 4, 4)] * 3, (128, 2, 2)]
    torch.testing.assert_close(output.hidden_states[-1].flatten(2).transpose(1, 2), output.last_hidden_state)
    assert output.pooler_output.shape == (2, 128)
    assert ours().vision_model(make_images()).hidden_states is None


def test_other_sizes_take_interpolated_positions():
    model = ours()
    for height, width in ((96, 64), (32, 128), (70, 65)):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels do not fit the model's 64 x 64"):
            model.encode_image(make_images(height, width))
        assert model.encode_image(make_images(height, width), interpolate_pos_encoding=True).isfinite().all()
    with pytest.raises(ValueError, match="31 x 64 pixels are smaller than the ResNet's stride of 32"):
        model.encode_image(make_images(31, 64), interpolate_pos_encoding=True)
    torch.testing.assert_close(
        model.encode_image(make_images(), interpolate_pos_encoding=True),
        model.encode_image(make_images()),
        rtol=0,
        atol=0,
    )
    # Positions that lie on a plane are that plane at any size, away from the edges.
    embedding = model.vision_model.head.position_embedding.weight.data
    embedding[1:] = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None]
    positions = model.vision_model.head._positions(4, 3)[0]
    torch.testing.assert_close(positions[0], embedding[0])
    rows = positions[1:].unflatten(0, (4, 3))
    torch.testing.assert_close(rows, rows[:, :1, :1].expand_as(rows))
    assert (rows[1:, 0, 0] > rows[:-1, 0, 0]).all()


def test_the_dual_encoder_and_its_parts_load_from_one_folder(tmp_path):
    model = ours()
    model.save_pretrained(tmp_path)
    again, info = HFCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(again.eval()(TEXTS, make_images()).logits_per_image, model(TEXTS, make_images())[0])
    vision, info = HFCLIPVisionModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(
        F.normalize(vision.eval()(make_images()).image_embeds), model.encode_image(make_images())
    )
    # The text tower's attention can be chosen, though this tower has none to choose.
    model.set_attn_implementation("eager")
    torch.testing.assert_close(
        model(TEXTS, make_images()).logits_per_image, again(TEXTS, make_images()).logits_per_image
    )


def test_the_classifier_averages_all_positions():
    model = ours(HFCLIPForImageClassification)
    expected = model.classifier(model.vision_model(make_images()).last_hidden_state.mean(1))
    torch.testing.assert_close(model(make_images()).logits, expected)


def assert_initial(model: HFCLIPModel) -> None:
    """OpenAI's: attention at its width, convolutions as torch draws them, each layer beginning as its shortcut."""
    for name, module in model.vision_model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            std = (3 * module.weight[0].numel()) ** -0.5
            assert module.weight.std().item() == pytest.approx(std, rel=5 / (2 * module.weight.numel()) ** 0.5), name
        elif isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            assert module.weight.std().item() == pytest.approx(128**-0.5, rel=0.1), name
        elif isinstance(module, torch.nn.BatchNorm2d):
            is_last = name.endswith("norm3") and "stages" in name
            assert (module.weight == (0 if is_last else 1)).all() and (module.bias == 0).all(), name
            assert (module.running_mean == 0).all() and (module.running_var == 1).all(), name
            assert module.num_batches_tracked == 0
    assert torch.equal(model.vision_model.head.position_ids, torch.arange(5)[None])


def test_initial_weights_also_of_a_model_made_without_memory():
    config = HFCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    torch.manual_seed(2)
    assert_initial(HFCLIPModel(config))
    with torch.device("meta"):
        model = HFCLIPModel(config)
    assert model(TEXTS.to("meta"), make_images().to("meta")).logits_per_image.shape == (2, 2)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(77)
    model.init_weights()
    assert_initial(model)


@pytest.mark.slow
def test_compiles_exports_and_takes_channels_last(tmp_path):
    model = ours()
    expected = model.encode_image(make_images())
    compiled = torch.compile(model.encode_image, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(make_images()), expected, **CLOSE)
    tower = model.vision_model
    program = torch.export.export(tower, (make_images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.testing.assert_close(
        program.module()(make_images(count=5)).pooler_output,
        tower(make_images(count=5)).pooler_output,
        rtol=1e-4,
        atol=1e-5,
    )
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.encode_image(make_images()), expected, **CLOSE)


def test_offloaded_weights_give_the_same_embeddings(tmp_path):
    model = ours()
    model.save_pretrained(tmp_path)
    places = dict.fromkeys(dict(model.named_children()), "cpu") | {"logit_scale": "cpu", "vision_model": "disk"}
    again = HFCLIPModel.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload").eval()
    assert again.vision_model.head.q_proj.weight.is_meta
    torch.testing.assert_close(again.encode_image(make_images()), model.encode_image(make_images()))
    classes = {type(module).__name__ for module in model.modules()}
    assert set(HFCLIPResNetModel._no_split_modules) <= classes


def test_half_precision_gives_nearly_the_same_embeddings(tmp_path):
    model = ours()
    expected = model.encode_image(make_images())
    half = model.to(torch.bfloat16).encode_image(make_images())
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float(), expected).min() > 0.99
