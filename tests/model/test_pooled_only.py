"""Embeddings ask the last layer for the token that is pooled, and no other: the numbers and the gradients stay."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_clip import HFCLIPModel
from hf_clip.model.modeling_layers_hf_clip import HFCLIPMLP
from tests.model.test_modeling import END, make_images, ours, texts

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
MASK = (texts() != 0).long()
HOLES = MASK.clone()
HOLES[:, 1] = 0
KNOBS = {
    "as the paper": {},
    "gelu, layer scale": {"text": {"layer_scale_init_value": 0.3}, "vision": {"layer_scale_init_value": 0.3}},
    "first token": {"text": {"pooling": "first"}, "vision": {"norm_before_pooling": True}},
    "both directions": {"text": {"is_causal": False}},
    "highest id": {"text": {"eos_token_id": 2}},
    "all tokens": {"text": {"pooling": "mean"}, "vision": {"pooling": "average"}},
}


def widths(model: HFCLIPModel) -> dict[str, list[int]]:
    """Fills, with every call, the number of tokens that the last MLP of either tower computes."""
    seen: dict[str, list[int]] = {"text_model": [], "vision_model": []}
    for tower, counts in seen.items():
        layer = getattr(model, tower).encoder.layers[-1]
        compute = type(layer.mlp).forward

        class Counting(HFCLIPMLP):
            def forward(self, tokens_BTW, compute=compute, counts=counts):
                counts.append(tokens_BTW.shape[1])
                return compute(self, tokens_BTW)

        Counting.__name__ = type(layer.mlp).__name__
        layer.mlp.__class__ = Counting
    return seen


def embeddings(model: HFCLIPModel, pooled_only: bool, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    images = make_images().to(model.dtype)
    text = model.get_text_features(texts(), mask, pooled_only=pooled_only)
    image = model.get_image_features(images, pooled_only=pooled_only)
    return text.pooler_output, image.pooler_output


def gradients(model: HFCLIPModel, pooled_only: bool) -> dict[str, torch.Tensor]:
    model.zero_grad()
    text, image = embeddings(model, pooled_only)
    (text.sin().sum() + image.cos().sum()).backward()
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("knobs", KNOBS)
def test_embeddings_and_gradients_are_those_of_all_tokens(knobs, implementation):
    model = ours(**KNOBS[knobs]).double()
    model.set_attn_implementation(implementation)
    for mask in (None, MASK, HOLES):
        torch.testing.assert_close(embeddings(model, True, mask), embeddings(model, False, mask), **CLOSE)
    torch.testing.assert_close(model.encode_text(texts(), None, False), embeddings(model, False)[0], **CLOSE)
    expected = gradients(model, False)
    # Of the last layer too: its keys and values are those of all tokens.
    assert len(expected) == len(list(model.parameters())) - 1
    torch.testing.assert_close(gradients(model, True), expected, **CLOSE)
    seen = widths(model)
    output = model.get_text_features(texts(), pooled_only=True)
    model.encode_image(make_images().double())
    assert seen == ({"text_model": [9], "vision_model": [17]} if knobs == "all tokens" else dict.fromkeys(seen, [1]))
    assert (output.last_hidden_state is None) == (knobs != "all tokens")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_that_are_made_again_for_the_gradient_compute_one_token_too(use_reentrant):
    model = ours().double().train()
    expected = gradients(model, False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    seen = widths(model)
    torch.testing.assert_close(gradients(model, True), expected, **CLOSE)
    assert seen == {"text_model": [1, 1], "vision_model": [1, 1]}


def test_under_autocast_embeddings_are_as_close():
    model = ours()
    for mask in (None, MASK):
        expected = embeddings(model, False, mask)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                embeddings(model, True, mask), expected, rtol=0.05, atol=0.05, check_dtype=False
            )


def test_adapters_of_the_last_layer_are_trained_on_one_token():
    model = ours().double()
    torch.manual_seed(0)
    wrapped = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False)
    ).double()
    expected = gradients(model, False)
    assert any("layers.2.mlp.fc1.lora_A" in name for name in expected)
    seen = widths(model)
    torch.testing.assert_close(gradients(model, True), expected, **CLOSE)
    torch.testing.assert_close(wrapped.encode_text(texts(), None, False), embeddings(model, False)[0], **CLOSE)
    assert seen["text_model"] == [1, 1, 9]


@pytest.mark.parametrize("place", ["", ".encoder", ".encoder.layers.LAST", ".encoder.layers.LAST.mlp.fc1"])
def test_who_hooks_into_the_last_layer_sees_all_tokens(place):
    model, shapes = ours(), []
    expected = embeddings(model, False)
    for tower in ("text_model", "vision_model"):
        last = str(len(getattr(model, tower).encoder.layers) - 1)
        module = model.get_submodule(tower + place.replace("LAST", last))
        module.register_forward_hook(
            lambda module, given, output: shapes.append(getattr(output, "last_hidden_state", output).shape[1])
        )
    torch.testing.assert_close(embeddings(model, True), expected, rtol=1e-6, atol=1e-6)
    assert shapes == [9, 17]


def test_other_layers_in_the_place_of_ours_see_all_tokens():
    model = ours()

    class Centered(torch.nn.Module):
        def forward(self, tokens_BTW):
            return tokens_BTW - tokens_BTW.mean(1, keepdim=True)

    model.text_model.encoder.layers[-1].mlp = model.vision_model.encoder.layers[-1].mlp = Centered()
    torch.testing.assert_close(embeddings(model, True), embeddings(model, False))


def test_who_asks_for_hidden_states_gets_all_of_them():
    model = ours()
    model.set_attn_implementation("eager")
    output = model(texts()[:3], make_images(), return_loss=True, output_hidden_states=True, output_attentions=True)
    assert output.vision_model_output.hidden_states[-1].shape[1] == 17
    assert output.text_model_output.attentions[-1].shape[2] == output.text_model_output.last_hidden_state.shape[1] == 9
    # The recorders are on the layers from now on, and off: they see no difference.
    seen = widths(model)
    plain = model(texts()[:3], make_images(), return_loss=True)
    assert seen == {"text_model": [1], "vision_model": [1]} and plain.text_model_output.last_hidden_state is None
    torch.testing.assert_close(plain.loss, output.loss)
    model.text_model.config.output_hidden_states = True
    assert model.get_text_features(texts(), pooled_only=True).hidden_states[-1].shape[1] == 9


def test_towers_and_models_that_are_called_without_a_loss_give_all_tokens():
    model = ours()
    output = model(texts(), make_images())
    assert output.text_model_output.last_hidden_state.shape[1] == 9
    torch.testing.assert_close(model.vision_model(make_images()).last_hidden_state, output.vision_model_output[0])


def test_a_text_without_its_end_token_is_refused():
    input_ids = texts()
    input_ids[input_ids == END] = 5
    with pytest.raises(ValueError, match="no end token"):
        ours().encode_text(input_ids)
