"""Inference on a CPU multiplies by copies of the weights: the numbers stay, and every change of a weight is seen."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_clip import HFCLIPModel
from hf_clip.model import modeling_layers_hf_clip as layers
from hf_clip.model import modeling_products_hf_clip as products
from hf_clip.model.device_hf_clip import is_fast_at_bf16
from tests.helpers.precision import own_precision
from tests.model.test_modeling import make_images, ours, texts


@pytest.fixture(autouse=True)
def fast_types_of_this_processor():
    products._fast_dtypes.cache_clear()
    with own_precision():
        yield
    products._fast_dtypes.cache_clear()


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many maps each product has."""
    counts: list[int] = []

    def counted(maps, *args, **kwargs):
        counts.append(len(maps))
        return products.product(maps, *args, **kwargs)

    monkeypatch.setattr(layers, "product", counted)
    return counts


def model_of(hidden_act: str = "quick_gelu") -> HFCLIPModel:
    return ours(text={"hidden_act": hidden_act}, vision={"hidden_act": hidden_act}).eval()


def embeddings(model) -> torch.Tensor:
    """(images and texts, D), with gradients where they are on."""
    return torch.cat([model.encode_image(make_images().to(model.dtype)), model.encode_text(texts())]).float()


def plainly(model) -> torch.Tensor:
    with torch.enable_grad():
        return embeddings(model).detach()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "relu"])
def test_copies_are_as_near_to_float64_as_the_layers(hidden_act, dtype, calls):
    model = model_of(hidden_act)
    for name, parameter in model.named_parameters():
        # Biases begin at 0, which would hide a wrong factor.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    if dtype == "bfloat16":
        model.bfloat16()
    exact = plainly(copy.deepcopy(model).double())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        expected = plainly(model)
        assert not calls
        with torch.no_grad():
            found = embeddings(model)
            again = embeddings(model)
    # Processors without fast bf16 compute it plainly.
    is_fused = dtype == "float32" or is_fast_at_bf16(torch.device("cpu"))
    assert (3 in calls, 1 in calls) == (is_fused, is_fused)
    assert torch.equal(found, again)
    error, plain_error = (found - exact).norm().item(), (expected - exact).norm().item()
    assert error <= max(1.3 * plain_error, 1e-6)


@torch.no_grad()
def test_a_processor_without_fast_bf16_computes_it_plainly(calls, monkeypatch):
    monkeypatch.setattr(products, "_fast_dtypes", lambda: (torch.float32,))
    embeddings(model_of().bfloat16())
    assert not calls


@torch.no_grad()
def test_short_rows_of_bf16_attend_by_the_written_formula_while_their_scores_are_few(monkeypatch):
    model, seen = model_of().bfloat16(), []
    model.set_attn_implementation("sdpa")
    attend = layers.eager_attention_forward
    monkeypatch.setattr(layers, "eager_attention_forward", lambda *args, **kw: seen.append(1) or attend(*args, **kw))
    model.encode_image(make_images().bfloat16())
    # The last layer always, for the token that is pooled.
    is_fast = is_fast_at_bf16(torch.device("cpu"))
    assert len(seen) == 1 + is_fast
    monkeypatch.setattr(layers, "LARGEST_SCORES", 0)
    model.encode_image(make_images().bfloat16())
    assert len(seen) == 2 + is_fast


def through_data(weight: torch.Tensor) -> None:
    weight.data[5] *= 2


def through_numpy(weight: torch.Tensor) -> None:
    weight.detach().numpy()[:, 3] *= 2


def in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight[0, 0] += 1


def another_tensor(weight: torch.Tensor) -> None:
    weight.data = weight.data * 2


@pytest.mark.parametrize("change", [through_data, through_numpy, in_place, another_tensor])
@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"])
@torch.no_grad()
def test_a_changed_weight_is_seen(change: Callable, name):
    model = model_of()
    before = embeddings(model)
    change(model.vision_model.encoder.layers[0].get_submodule(name).weight)
    torch.testing.assert_close(embeddings(model), plainly(model), rtol=1e-5, atol=1e-6)
    assert (embeddings(model) - before).abs().max() > 1e-4


def test_a_sample_meets_every_row_and_every_column():
    for rows, columns in ((1, 1), (1, 7), (7, 1), (4, 9), (768, 768), (3072, 768), (768, 3072), (512, 131)):
        matrix = torch.arange(rows * columns).view(rows, columns)
        sample = products._sample(matrix, products._stride(matrix))
        assert set((sample // columns).tolist()) == set(range(rows))
        assert set((sample % columns).tolist()) == set(range(columns))
        assert len(sample) <= 2 * max(rows, columns)


@torch.no_grad()
def test_a_state_that_is_loaded_and_a_map_that_is_replaced_are_seen():
    model, other = model_of(), model_of()
    for parameter in other.parameters():
        parameter += 0.05
    embeddings(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(embeddings(model), embeddings(other))
    attention = model.vision_model.encoder.layers[0].self_attn
    attention.q_proj = torch.nn.Linear(attention.q_proj.in_features, attention.q_proj.out_features, bias=False)
    torch.testing.assert_close(embeddings(model), plainly(model), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_hooks_and_adapters_see_what_they_saw_before(calls):
    model = model_of()
    layer, seen = model.vision_model.encoder.layers[0], []
    for module in (layer.self_attn.v_proj, layer.mlp.fc1, layer.mlp.activation_fn):
        handle = module.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
        embeddings(model)
        assert len(seen) == 1
        seen.clear()
        handle.remove()
    calls.clear()
    with torch.nn.modules.module.register_module_forward_hook(lambda *args: None):
        embeddings(model)
    assert not calls
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(target_modules=["q_proj", "fc2"], init_lora_weights=False)
    )
    expected = plainly(adapted)
    torch.testing.assert_close(embeddings(adapted), expected, rtol=1e-5, atol=1e-6)
    assert (expected - embeddings(model)).abs().max() > 1e-3


def test_copies_are_made_for_plain_inference_on_a_cpu_alone(calls):
    model = model_of()
    embeddings(model)
    with torch.no_grad():
        embeddings(model.train())
        model.eval()
        # The compiler finds nothing in the way.
        torch.compile(model.vision_model.encoder, backend="eager", fullgraph=True)(torch.randn(2, 17, 48))
        torch.func.vmap(model.encode_image)(make_images()[:, None])
        embeddings(model.double())
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        embeddings(model.float())
    with torch.inference_mode():
        made_here = model_of()
        embeddings(made_here)
    assert not calls
    with torch.inference_mode():
        embeddings(model)
    assert calls


@torch.no_grad()
def test_a_model_with_copies_is_copied_pickled_and_saved_as_before(tmp_path):
    model = model_of()
    before = set(model.state_dict())
    expected = embeddings(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(embeddings(other), expected, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    assert set(model.state_dict()) == before
    torch.testing.assert_close(embeddings(HFCLIPModel.from_pretrained(tmp_path)), expected, rtol=0, atol=0)


@torch.no_grad()
def test_copies_end_where_memory_is_short_and_go_with_their_model(calls, monkeypatch):
    model = model_of()
    embeddings(model)
    own = set(model.modules())
    copied = [weakref.ref(module) for module in products._COPIES if module in own]
    assert len(copied) > 4
    del model, own
    gc.collect()
    assert all(module() is None for module in copied)
    monkeypatch.setattr(products, "LARGEST_COPIES", 0)
    calls.clear()
    embeddings(model_of())
    assert not calls
