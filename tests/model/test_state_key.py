"""What embeddings depend on: nothing of it changes without the key, and nothing else changes it."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import normalizers
from torch.testing._internal.two_tensor import TwoTensor

from hf_clip import HFCLIPModel, HFCLIPProcessor, HFCLIPZeroShotPipeline, ZeroShotClassifier, load
from hf_clip.model.state_key_hf_clip import LiveState, check_probe, probe_embeds, state_key, state_parts
from tests.helpers.toys import LookupEncoder, tiny_clip

LABELS = ["a red square", "something blue", "green"]


class Passing(torch.nn.Module):
    """Passes what it lacks on to the model within, as PeftModel and many a wrapper of one's own do."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


class Holding(torch.nn.Module):
    """Passes nothing on, as DistributedDataParallel does."""

    def __init__(self, model):
        super().__init__()
        self.module = model


def adapted(model) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model with two of PEFT's adapters on one layer, the first of them on; and that layer."""
    torch.manual_seed(1)
    name = "text_model.encoder.layers.0.mlp.fc1"
    lora = LoraConfig(r=2, target_modules=[name], init_lora_weights=False)
    wrapped = get_peft_model(model, lora, "one")
    wrapped.add_adapter("two", lora)
    return wrapped.eval(), model.get_submodule(name)


@pytest.fixture
def pair():
    return tiny_clip(LABELS)


def scores(pipe) -> dict[str, float]:
    return {row["label"]: row["score"] for row in pipe(Image.new("RGB", (40, 32), "red"), LABELS)}


def test_one_state_has_one_key_however_it_is_held(pair, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = HFCLIPModel.from_pretrained(tmp_path), HFCLIPProcessor.from_pretrained(tmp_path)
    # The last call's padding is no setting.
    again[1](text=["a", "a red square"], padding="max_length", return_tensors="pt")
    inner = copy.deepcopy(model)
    inner.text_model = torch.compile(inner.text_model, backend="eager")
    wrapped = (torch.compile(model, backend="eager"), Passing(model), Holding(model), Holding(Passing(model)), inner)
    for tower in ("text", "image"):
        expected = state_parts(model, processor, tower)
        for held, its_processor in (again, load(tmp_path), *((held, processor) for held in wrapped)):
            assert state_parts(held, its_processor, tower) == expected
            # A tower that is compiled would be traced, which takes seconds.
            if held is not inner:
                check_probe(probe_embeds(model, processor, tower), held, its_processor, tower, "file")
    model.train()
    assert state_key(model, processor, "text") == state_key(*again, "text")
    assert state_key(model, processor, "text") != state_key(model, processor, "image")


def change_a_weight(model, processor):
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-3


def change_the_dtype(model, processor):
    model.text_model.to(torch.bfloat16)
    model.text_projection.to(torch.bfloat16)


def change_the_activation(model, processor):
    for layer in model.text_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()


def change_the_pooling(model, processor):
    model.text_model.config.pooling = "mean"


def change_an_epsilon(model, processor):
    model.text_model.final_layer_norm.eps = 0.1


def add_a_buffer(model, processor):
    model.text_model.register_buffer("shift", torch.ones(3), persistent=False)


def change_the_cleaning(model, processor):
    processor.text_cleaning = "canonicalize"


def change_the_padding(model, processor):
    processor.text_padding = "max_length"


def change_the_context(model, processor):
    processor.tokenizer.model_max_length = 30


def put_another_tokenizer(model, processor):
    processor.tokenizer = tiny_clip(["completely other captions", "of other words"])[1].tokenizer


def add_a_token(model, processor):
    processor.tokenizer.add_tokens(["dax"])


def change_the_normalizer(model, processor):
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()


TEXT_CHANGES = [change_a_weight, change_the_dtype, change_the_activation, change_the_pooling, change_an_epsilon,
                add_a_buffer, add_a_token, change_the_normalizer, change_the_cleaning, change_the_padding,
                change_the_context, put_another_tokenizer]  # fmt: skip


@pytest.mark.parametrize("change", TEXT_CHANGES, ids=lambda function: function.__name__)
def test_what_embeddings_of_texts_depend_on_changes_their_key_alone(pair, change):
    model, processor = pair
    kept = {tower: (state_key(*pair, tower), LiveState(*pair, tower)) for tower in ("text", "image")}
    assert LiveState(model, processor, "text") == kept["text"][1]
    change(model, processor)
    assert state_key(model, processor, "text") != kept["text"][0]
    assert state_key(model, processor, "image") == kept["image"][0]
    assert LiveState(model, processor, "text") != kept["text"][1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_mean", (0.5, 0.5, 0.5)),
        ("image_std", (0.5, 0.5, 0.5)),
        ("size", {"shortest_edge": 40}),
        ("crop_size", {"height": 24, "width": 24}),
        ("resample", 2),
        ("do_center_crop", False),
        ("rescale_factor", 1 / 127.5),
    ],
)
def test_what_embeddings_of_images_depend_on_changes_their_key_alone(pair, field, value):
    model, processor = pair
    kept = {tower: state_key(*pair, tower) for tower in ("text", "image")}
    live = LiveState(model, processor, "image")
    image_processor = type(processor.image_processor)(**{**processor.image_processor.to_dict(), field: value})
    changed = HFCLIPProcessor(image_processor, processor.tokenizer)
    assert state_key(model, changed, "image") != kept["image"]
    assert state_key(model, changed, "text") == kept["text"]
    assert LiveState(model, changed, "image") != live


def test_weights_of_the_image_tower_change_the_images_key_alone(pair):
    model, processor = pair
    kept = {tower: (state_key(*pair, tower), LiveState(*pair, tower)) for tower in ("text", "image")}
    with torch.no_grad():
        model.vision_model.post_layernorm.bias[0] += 1e-3
    assert state_key(model, processor, "text") == kept["text"][0] and LiveState(*pair, "text") == kept["text"][1]
    assert state_key(model, processor, "image") != kept["image"][0] and LiveState(*pair, "image") != kept["image"][1]


def test_the_logit_scale_is_in_no_embedding(pair):
    model, processor = pair
    kept = state_key(model, processor, "text", "image")
    with torch.no_grad():
        model.logit_scale += 1
    assert state_key(model, processor, "text", "image") == kept


def test_a_saved_classifier_is_refused_under_another_activation(pair, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    file = ZeroShotClassifier(model, processor, LABELS).save(tmp_path / "labels.st")
    other = HFCLIPModel.from_pretrained(
        tmp_path, text_config={**model.config.text_config.to_dict(), "hidden_act": "gelu"}
    )
    with pytest.raises(ValueError, match="labels.st belongs to another state .*layers or adapters, configuration"):
        ZeroShotClassifier.load(file, other, processor)
    processor.text_cleaning = "canonicalize"
    with pytest.raises(ValueError, match="other processor"):
        ZeroShotClassifier.load(file, model, processor)


def test_adapters_that_are_switched_are_another_state(pair, tmp_path):
    model, processor = pair
    base = scores(HFCLIPZeroShotPipeline(model=model, processor=processor, device="cpu"))
    model, layer = adapted(model)
    pipe = HFCLIPZeroShotPipeline(model=model, processor=processor, device="cpu")

    def fresh():
        return scores(HFCLIPZeroShotPipeline(model=model, processor=processor, device="cpu"))

    with_one, scaling = scores(pipe), layer.scaling
    file = ZeroShotClassifier(model, processor, LABELS).save(tmp_path / "one.st")
    ZeroShotClassifier.load(file, model, processor)
    states = {state_key(model, processor, "text")}
    assert with_one == fresh() != base
    for change in (
        {"_active_adapter": ["two"]},
        {"_active_adapter": ["one", "two"]},
        {"scaling": {"one": 4.0, "two": 2.0}},
        {"_disable_adapters": True},
    ):
        vars(layer).update(change)
        assert scores(pipe) == fresh() != with_one
        states.add(state_key(model, processor, "text"))
        with pytest.raises(ValueError, match="other layers or adapters"):
            ZeroShotClassifier.load(file, model, processor)
    assert scores(pipe) == pytest.approx(base, abs=1e-6)
    assert len(states) == 5
    vars(layer).update({"_active_adapter": ["one"], "scaling": scaling, "_disable_adapters": False})
    assert ZeroShotClassifier.load(file, model, processor).labels == LABELS
    with torch.no_grad():
        layer.lora_B["one"].weight += 0.1
    assert scores(pipe) == fresh() != with_one
    with pytest.raises(ValueError, match="other weights"):
        ZeroShotClassifier.load(file, model, processor)


@pytest.mark.parametrize("wrap", [Passing, Holding, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_classifies_saves_and_knows_its_weights(pair, tmp_path, wrap):
    model, processor = pair
    images = [Image.new("RGB", (40, 32), "red")]
    expected = ZeroShotClassifier(model, processor, LABELS).predict(images)
    wrapped = wrap(model)
    classifier = ZeroShotClassifier(wrapped, processor, LABELS)
    assert classifier.predict(images) == expected
    file = classifier.save(tmp_path / "labels.st")
    assert ZeroShotClassifier.load(file, wrapped, processor).predict(images) == expected
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    with pytest.raises(ValueError, match="other weights"):
        ZeroShotClassifier.load(file, wrapped, processor)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_weights_are_part_of_the_state(pair, tmp_path):
    model, processor = pair
    images = [Image.new("RGB", (40, 32), "red")]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.text_projection.weight.mul_(-1)
    quantized, other = (
        torch.ao.quantization.quantize_dynamic(one, {torch.nn.Linear}, torch.qint8) for one in (model, other)
    )
    assert state_key(quantized, processor, "text") not in {
        state_key(model, processor, "text"),
        state_key(other, processor, "text"),
    }
    classifier = ZeroShotClassifier(quantized, processor, LABELS)
    file = classifier.save(tmp_path / "labels.st")
    assert ZeroShotClassifier.load(file, quantized, processor).predict(images) == classifier.predict(images)
    for one, part in ((other, "other weights"), (model, "other weights, layers or adapters")):
        with pytest.raises(ValueError, match=part):
            ZeroShotClassifier.load(file, one, processor)
    pipe = HFCLIPZeroShotPipeline(model=quantized, processor=processor, device="cpu")
    before = scores(pipe)
    quantized.text_projection.set_weight_bias(*other.text_projection._weight_bias())
    assert scores(pipe) == scores(HFCLIPZeroShotPipeline(model=quantized, processor=processor, device="cpu")) != before


def test_tensors_that_hold_others_have_a_key_in_inference_mode_too(pair):
    """As evaluations ask for it: torchao's weights cannot be detached there."""
    model, processor = pair
    weight = model.visual_projection.weight.detach()
    model.visual_projection.weight = torch.nn.Parameter(TwoTensor(weight, weight), requires_grad=False)
    key = state_key(model, processor, "image")
    with torch.inference_mode():
        assert state_key(model, processor, "image") == key
    model.visual_projection.weight = torch.nn.Parameter(TwoTensor(weight, 2 * weight), requires_grad=False)
    assert state_key(model, processor, "image") != key


def test_a_hook_that_no_key_can_see_is_seen_by_the_probe(pair, tmp_path):
    model, processor = pair
    pipe = HFCLIPZeroShotPipeline(model=model, processor=processor, device="cpu")
    file, before = ZeroShotClassifier(model, processor, LABELS).save(tmp_path / "labels.st"), scores(pipe)
    image_probe = probe_embeds(model, processor, "image")
    hook = model.text_projection.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ValueError, match="labels.st belongs to another state .* probe text is"):
        ZeroShotClassifier.load(file, model, processor)
    # Within one program hooks are seen.
    assert scores(pipe) != before
    hook.remove()
    assert ZeroShotClassifier.load(file, model, processor).labels == LABELS and scores(pipe) == before
    model.visual_projection.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(ValueError, match="probe image is nan"):
        check_probe(image_probe, model, processor, "image", "cache")


def test_models_without_weights_or_without_theirs_in_memory_have_no_key(pair):
    model, processor = pair
    model.text_model.to("meta")
    with pytest.raises(ValueError, match="text_model.* is not in memory"):
        state_key(model, processor, "text")
    assert state_key(model, processor, "image")

    class Empty(torch.nn.Module):
        def encode_text(self, input_ids):
            return input_ids

        encode_image = encode_text

    with pytest.raises(ValueError, match="Empty has no weights"):
        state_key(Empty(), processor, "text")
    with pytest.raises(TypeError, match="Linear, which has no encode_image and encode_text"):
        state_key(torch.nn.Linear(1, 1), processor, "text")


def test_a_dual_encoder_of_ones_own_has_a_key_of_all_its_weights():
    model = LookupEncoder([[1.0, 0.0]], {"a": [1.0, 0.0]})
    key, live = state_key(model, model.processor, "text"), LiveState(model, None, "text")
    model.encode_text(torch.tensor([[0]]))
    assert state_key(model, model.processor, "text") == key and LiveState(model, None, "text") == live
    with torch.no_grad():
        model.text_embeds[0, 1] = 2
    assert state_key(model, model.processor, "text") != key and LiveState(model, None, "text") != live


def test_a_method_put_over_a_layers_is_seen_between_calls(pair):
    model, processor = pair
    before, layer = LiveState(model, processor, "text"), model.text_model.encoder.layers[0]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    changed = LiveState(model, processor, "text")
    assert changed != before and changed == LiveState(model, processor, "text")
    del layer.forward
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert LiveState(model, processor, "text") != before
    finally:
        handle.remove()
    assert LiveState(model, processor, "text") == before
