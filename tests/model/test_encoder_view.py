"""On a CPU and without gradients, layers compute from copies of their weights: the same numbers, for as long as the
weights are the same, and the layers themselves where somebody looks."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_clip import HFCLIPModel
from hf_clip.model import modeling_encoder_hf_clip as encoders
from tests.model.test_modeling import make_images, ours, texts
from tests.model.test_pooled_only import HOLES, MASK

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SCALED = {"layer_scale_init_value": 0.3, "hidden_act": "gelu"}
OTHER = {"hidden_act": "relu", "attention_dropout": 0.5}
KNOBS = {
    "as the paper": {},
    "gelu, layer scale": {"text": SCALED, "vision": SCALED},
    "tanh": {"text": {"hidden_act": "gelu_pytorch_tanh"}, "vision": {"hidden_act": "gelu_pytorch_tanh"}},
    "relu, first token": {"text": {**OTHER, "pooling": "first"}, "vision": {**OTHER, "pooling": "average"}},
}


def outputs(model: HFCLIPModel, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """What both towers give, pooled alone and in full."""
    images, found = make_images().to(model.dtype), []
    for pooled_only in (True, False):
        text = model.get_text_features(texts(), mask, pooled_only=pooled_only)
        image = model.get_image_features(images, pooled_only=pooled_only)
        found += [text.pooler_output, image.pooler_output]
    found += [text.last_hidden_state, image.last_hidden_state]
    return [tensor.detach() for tensor in found]


def has_views(model: HFCLIPModel) -> list[bool]:
    return [getattr(model, tower).encoder in encoders._views for tower in ("text_model", "vision_model")]


def compare(model: HFCLIPModel, has_view: bool = True, close=CLOSE, mask: torch.Tensor | None = None):
    expected = outputs(model, mask)
    assert has_views(model) == [False, False]
    with torch.no_grad():
        torch.testing.assert_close(outputs(model, mask), expected, **close)
    assert has_views(model) == [has_view, has_view]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("knobs", KNOBS)
def test_numbers_are_those_of_the_layers(knobs, implementation):
    model = ours(**KNOBS[knobs]).double()
    model.set_attn_implementation(implementation)
    for mask in (None, MASK, HOLES):
        compare(model, mask=mask)
    # oneDNN's products.
    compare(model.float(), close={"rtol": 1e-5, "atol": 1e-5})
    with torch.inference_mode():
        shared = model.encode_text(texts(), shared_prefix=1)
    torch.testing.assert_close(shared, model.encode_text(texts()).detach(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def _multiply(model: HFCLIPModel):
    model.text_model.encoder.layers[0].mlp.fc1.weight[3] *= 2
    model.vision_model.encoder.layers[1].self_attn.k_proj.bias += 1


def _through_data(model: HFCLIPModel):
    # What torch doesn't count.
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def _load(model: HFCLIPModel):
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()})


def _replace(model: HFCLIPModel):
    for tower in (model.text_model, model.vision_model):
        mlp = tower.encoder.layers[0].mlp
        mlp.fc2 = torch.nn.Linear(mlp.fc2.in_features, mlp.fc2.out_features, dtype=mlp.fc2.weight.dtype)
        tower.encoder.layers[1].mlp.activation_fn = torch.nn.Tanh()


@pytest.mark.parametrize("change", [_multiply, _through_data, _load, _replace])
def test_copies_notice_that_weights_are_others(change):
    model = ours().double()
    with torch.no_grad():
        before = outputs(model)
        change(model)
        after = outputs(model)
    assert (after[0] - before[0]).abs().max() > 1e-6
    # With gradients there are no copies.
    torch.testing.assert_close(after, outputs(model), **CLOSE)


def test_another_dtype_a_copy_and_a_pickle_have_their_own():
    model = ours().double()
    with torch.no_grad():
        expected, state = outputs(model), list(model.state_dict())
        size = len(pickle.dumps(model))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert has_views(other) == [False, False]
            torch.testing.assert_close(outputs(other), expected, **CLOSE)
            assert outputs(other.float())[0].dtype == torch.float32
        assert list(model.state_dict()) == state
        # Pickled before and after the first use.
        assert len(pickle.dumps(ours().double())) == size


def test_copies_go_with_training_and_with_the_model():
    model = ours()
    with torch.no_grad():
        outputs(model)
        assert has_views(model) == [True, True]
        outputs(model.train())
        assert has_views(model) == [False, False]
        outputs(model.eval())
    count = len(encoders._views)
    del model
    assert len(encoders._views) == count - 2


@pytest.mark.parametrize("place", ["", ".self_attn", ".mlp.fc1", ".layer_norm2"])
def test_who_hooks_into_a_layer_has_the_layers_called(place):
    model, seen = ours().double(), []
    expected = outputs(model)
    with torch.no_grad():
        outputs(model)
        for tower in ("text_model", "vision_model"):
            module = model.get_submodule(f"{tower}.encoder.layers.0{place}")
            module.register_forward_hook(lambda *_, tower=tower: seen.append(tower))
        torch.testing.assert_close(outputs(model), expected, **CLOSE)
    assert sorted(seen) == ["text_model"] * 2 + ["vision_model"] * 2
    assert has_views(model) == [False, False]


def test_adapters_and_who_asks_for_hidden_states_have_the_layers_called():
    model = ours().double()
    with torch.no_grad():
        expected = outputs(model)
        states = model.get_image_features(make_images().double(), output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[-1], expected[-1], **CLOSE)
        # The recorders stay on the layers, and see no difference.
        torch.testing.assert_close(outputs(model), expected, **CLOSE)
        assert has_views(model) == [True, True]
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    compare(get_peft_model(model, config).double().base_model.model.eval(), has_view=False)


def test_in_half_precision_there_are_copies_where_the_device_is_fast_at_it(monkeypatch):
    model = ours().bfloat16()
    compare(model, has_view=False, close={"rtol": 0, "atol": 0})
    monkeypatch.setattr(encoders, "is_fast_at_bf16", lambda device: True)
    compare(model, close={"rtol": 0.1, "atol": 0.1})
    expected = outputs(model.float())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = outputs(model)
    assert has_views(model) == [True, True]
    torch.testing.assert_close([tensor.float() for tensor in found], expected, rtol=0.1, atol=0.1)


def test_large_models_are_not_copied(monkeypatch):
    monkeypatch.setattr(encoders, "_memory", lambda: 1e5)
    compare(ours(), has_view=False, close={"rtol": 1e-6, "atol": 1e-6})


def test_products_are_compared_with_plain_ones_before_they_are_used(monkeypatch):
    class Wrong:
        def _reorder_linear_weight(self, weight):
            return weight

        def _linear_pointwise(self, rows, weight, bias, *_):
            return rows @ weight.T

    monkeypatch.setattr(torch.ops, "mkldnn", Wrong())
    assert not encoders.has_pointwise.__wrapped__(torch.float32)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not encoders.has_pointwise.__wrapped__(torch.float32)
