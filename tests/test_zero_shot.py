"""The zero-shot classifier: its vectors by hand, its scores against the model's own logits."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clip.zero_shot_hf_clip import ZeroShotClassifier, evaluation_mode
from tests.toys import LookupEncoder, grey, tiny_clip

TEXTS = {
    "a cat": [3.0, 0.0],
    "my cat": [0.0, 1.0],
    "a dog": [-2.0, 0.0],
    "my dog": [0.0, -5.0],
}
TEMPLATES = ("a {}", "my {}")


def lookup(scale=10.0):
    return LookupEncoder([[1.0, 1.0], [-1.0, 0.5], [0.0, 7.0]], TEXTS, scale)


def test_class_vectors_are_normalised_means_of_normalised_vectors():
    # The lengths differ: a mean of the raw vectors would lean to [3, 1] and [-2, -5].
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    half = 2**-0.5
    np.testing.assert_allclose(classifier.class_vectors_CD, [[half, half], [-half, -half]], atol=1e-6)


def test_scores_by_hand():
    model = lookup()
    [first, second] = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES).predict([grey(0), grey(1)])
    # Cosines of (1, 1) are 1 and -1; of (-1, 0.5) they are -/+ 0.5 / sqrt(1.25 * 2).
    assert [row["label"] for row in first] == ["cat", "dog"]
    assert first[0]["score"] == pytest.approx(1 / (1 + np.exp(-20)), abs=1e-6)
    assert [row["label"] for row in second] == ["dog", "cat"]
    assert second[0]["score"] == pytest.approx(1 / (1 + np.exp(-20 * 0.5 / 2.5**0.5)), abs=1e-6)


def test_texts_are_encoded_once_and_everything_in_bounded_batches():
    model = lookup()
    whole = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    model.calls.clear()
    split = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES, batch_size=3)
    assert [call[:2] for call in model.calls] == [("text", 3), ("text", 1)]
    torch.testing.assert_close(split.class_vectors_CD, whole.class_vectors_CD)
    model.calls.clear()
    pictures = (grey(value) for value in (0, 1, 2, 0, 1))
    assert len(split.predict(pictures, batch_size=2)) == 5
    split.predict([grey(0)])
    assert [call[:2] for call in model.calls] == [("image", 2), ("image", 2), ("image", 1), ("image", 1)]


def test_scores_equal_the_models_own_logits():
    labels = ["a red square", "something blue", "green"]
    model, processor = tiny_clip(labels)
    pictures = [Image.new("RGB", (40, 32), colour) for colour in ("red", "blue", "lime", "white")]
    with torch.no_grad():
        output = model(**processor(text=labels, images=pictures, return_tensors="pt"))
    expected = output.logits_per_image.softmax(-1)
    for row, scores in zip(ZeroShotClassifier(model, processor, labels).predict(pictures), expected, strict=True):
        assert {entry["label"]: entry["score"] for entry in row} == pytest.approx(
            dict(zip(labels, scores.tolist(), strict=True)), abs=1e-6
        )


def test_top_k_gives_the_best_labels_without_rescaling_their_scores():
    model = lookup(scale=1.0)
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    [whole], [short] = classifier.predict([grey(2)]), classifier.predict([grey(2)], top_k=1)
    assert sum(row["score"] for row in whole) == pytest.approx(1)
    assert short == whole[:1]
    assert classifier.predict([grey(2)], top_k=99) == [whole]
    assert classifier.predict([]) == []


def test_braces_of_labels_and_templates_stay():
    texts = {"{x} is {0}": [1.0, 0.0]}
    model = LookupEncoder([[1.0, 0.0]], texts)
    assert ZeroShotClassifier(model, model.processor, ["{0}"], ["{x} is {}"]).predict([grey(0)]) == [
        [{"label": "{0}", "score": 1.0}]
    ]


def test_every_module_is_left_in_the_mode_it_was_in():
    model = lookup()
    model.train()
    model.frozen.eval()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    classifier.predict([grey(0)])
    assert not any(is_training for *_, is_training in model.calls)
    assert model.training and not model.frozen.training
    with pytest.raises(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert model.training and not model.frozen.training and torch.is_grad_enabled()


def test_half_precision_keeps_unit_vectors_in_single_precision():
    labels = ["a red square", "something blue"]
    model, processor = tiny_clip(labels)
    classifier = ZeroShotClassifier(model.to(torch.bfloat16), processor, labels, ["{}", "a {}"])
    assert classifier.class_vectors_CD.dtype == torch.float32
    torch.testing.assert_close(classifier.class_vectors_CD.norm(dim=-1), torch.ones(2), atol=1e-6, rtol=0)
    [scores] = classifier.predict([Image.new("RGB", (32, 32), "red")])
    assert sum(row["score"] for row in scores) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"labels": "cat, dog"}, TypeError, "one string"),
        ({"labels": []}, ValueError, "labels is empty"),
        ({"labels": ["cat", None]}, TypeError, "None"),
        ({"labels": ["cat"], "templates": "a {}"}, TypeError, "one string"),
        ({"labels": ["cat"], "templates": ["a photo"]}, ValueError, "'a photo' has no '{}'"),
        ({"labels": ["cat"], "templates": TEMPLATES, "batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_what_cannot_be_a_classifier(arguments, error, said):
    model = lookup()
    with pytest.raises(error, match=said):
        ZeroShotClassifier(model, model.processor, **arguments)


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"images": "cat.png"}, TypeError, "pass a list"),
        ({"images": Image.new("RGB", (8, 8))}, TypeError, "pass a list"),
        ({"images": [grey(0)], "top_k": 0}, ValueError, "top_k=0"),
        ({"images": [grey(0)], "batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_what_cannot_be_predicted(arguments, error, said):
    model = lookup()
    classifier = ZeroShotClassifier(model, model.processor, ["cat", "dog"], TEMPLATES)
    with pytest.raises(error, match=said):
        classifier.predict(**arguments)
