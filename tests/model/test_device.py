"""What "auto" computes in: bf16 where the device is fast at it, and the model's own dtype elsewhere."""

import pytest
import torch

from hf_clip import ZeroShotClassifier, embed_images, embed_texts
from hf_clip.model import device_hf_clip
from hf_clip.model.device_hf_clip import fast_dtype
from tests.helpers.toys import gray, tiny_clip

TEXTS = ["a red square", "blue"]


@pytest.fixture
def is_fast(monkeypatch):
    def say(is_fast: bool):
        monkeypatch.setattr(device_hf_clip, "is_fast_at_bf16", lambda device: is_fast)

    return say


def dtypes_of_products(model) -> set[torch.dtype]:
    """Grows with the dtype of every map that either projection gives."""
    seen = set()
    for layer in (model.visual_projection, model.text_projection):
        layer.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    return seen


@pytest.mark.parametrize(("dtype", "fast", "expected"), [
    (None, True, torch.float32),
    ("auto", True, torch.bfloat16),
    ("auto", False, torch.float32),
    ("bfloat16", False, torch.bfloat16),
    (torch.float16, False, torch.float16),
    ("float32", True, torch.float32),
])  # fmt: skip
def test_embeddings_are_computed_in_it_and_weights_stay(dtype, fast, expected, is_fast):
    is_fast(fast)
    model, processor = tiny_clip(TEXTS)
    seen = dtypes_of_products(model)
    texts = embed_texts(model, processor, TEXTS, dtype=None)
    images = embed_images(model, processor, [gray(9, 32)], dtype=None)
    seen.clear()
    found = embed_texts(model, processor, TEXTS, dtype=dtype)
    assert seen == {expected}
    seen.clear()
    of_images = embed_images(model, processor, [gray(9, 32)], dtype=dtype)
    assert seen == {expected} and model.dtype == found.dtype == of_images.dtype == torch.float32
    for one, other in ((found, texts), (of_images, images)):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if expected == torch.float32 else 0.02)


def test_a_classifier_computes_labels_and_images_in_it(is_fast):
    is_fast(True)
    model, processor = tiny_clip(TEXTS)
    seen = dtypes_of_products(model)
    own = ZeroShotClassifier(model, processor, TEXTS, ["{}"], dtype=None, cache=False)
    expected = own.predict([gray(9, 32)])[0]
    assert seen == {torch.float32}
    for dtype in ("auto", "float32", None):
        seen.clear()
        classifier = ZeroShotClassifier(model, processor, TEXTS, ["{}"], dtype=dtype, cache=False)
        classifier.embed([gray(9, 32)])
        [found] = classifier.predict([gray(9, 32)])
        assert seen == {torch.bfloat16 if dtype == "auto" else torch.float32}
        assert classifier.class_embeddings.dtype == torch.float32
        assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=0.05 if dtype == "auto" else 0)


def test_what_is_fast_is_the_default(is_fast):
    is_fast(True)
    model, processor = tiny_clip(TEXTS)
    seen = dtypes_of_products(model)
    embed_texts(model, processor, TEXTS)
    embed_images(model, processor, [gray(9, 32)])
    ZeroShotClassifier(model, processor, TEXTS, ["{}"], cache=False).predict([gray(9, 32)])
    assert seen == {torch.bfloat16}


def test_what_cannot_be_computed_in_is_refused():
    model, processor = tiny_clip(TEXTS)
    for embed, given in ((embed_texts, TEXTS), (embed_images, [gray(9, 32)])):
        with pytest.raises(ValueError, match="`dtype=int8` is unknown: use one of auto, float32"):
            embed(model, processor, given, dtype="int8")
        with pytest.raises(ValueError, match="weights of the model are bfloat16"):
            embed(tiny_clip(TEXTS)[0].to(torch.bfloat16), processor, given, dtype="float32")


@pytest.mark.parametrize(("device", "fast", "expected"), [
    ("cpu", True, torch.bfloat16), ("cpu", False, torch.float32), ("cuda", True, torch.bfloat16), ("mps", False, None)
])  # fmt: skip
def test_a_checkpoint_is_loaded_in_what_is_fast(device, fast, expected, is_fast):
    is_fast(fast)
    assert fast_dtype("auto", device) == expected
    assert fast_dtype(None, device) is None and fast_dtype("float16", device) == "float16"


def test_a_classifier_of_a_checkpoint_computes_in_what_is_fast(is_fast, tmp_path):
    model, processor = tiny_clip(TEXTS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        is_fast(fast)
        classifier = ZeroShotClassifier.from_pretrained(tmp_path, TEXTS)
        assert classifier.model.dtype == expected
