"""Accuracy by template, which templates are chosen, and the temperature: by hand on cases small enough."""

import numpy as np
import pytest
import torch

from hf_clip.evaluation import (
    calibrate,
    fit_temperature,
    per_template_accuracy,
    plot_per_template_accuracy,
    select_templates,
)
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from tests.helpers.toys import LookupEncoder, gray

LABELS, TEMPLATES = ["cat", "dog"], ["good {}", "bad {}", "left {}", "right {}"]
# Images at 10, 80, 100 and 170 degrees; "good" parts them at 90 degrees, "bad" the wrong way round, "left" at 135
# and "right" at 45.
DEGREES = {"good": (0, 180), "fine": (0, 180), "bad": (180, 0), "left": (90, 180), "right": (0, 90)}
CLASSES = torch.tensor([0, 0, 1, 1])


def unit(degrees) -> torch.Tensor:
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([radians.cos(), radians.sin()], -1)


IMAGES = unit([10, 80, 100, 170])


def model_of(templates=TEMPLATES):
    words = {
        template.replace("{}", label): unit(DEGREES[template.split(" ")[0]][number]).mul(3).tolist()
        for template in templates
        for number, label in enumerate(LABELS)
    }
    return LookupEncoder(IMAGES, words)


def measured(templates=TEMPLATES, **options):
    model = model_of(templates)
    function = options.pop("function", per_template_accuracy)
    return function(model, model.processor, IMAGES, CLASSES, LABELS, templates, **options)


def test_accuracy_of_each_template_and_how_far_it_spreads():
    result = measured()
    assert dict(result.templates) == {"good {}": 1.0, "bad {}": 0.0, "left {}": 0.75, "right {}": 0.75}
    assert (result.lowest, result.highest, result.span) == (0.0, 1.0, 1.0)
    assert result.mean == 0.625
    assert result.standard_deviation == pytest.approx(np.std([1, 0, 0.75, 0.75], ddof=1))
    model = model_of()
    both = ZeroShotClassifier(model, model.processor, LABELS, TEMPLATES)
    guesses = both.logits(IMAGES).argmax(-1)
    assert result.ensemble == (guesses == CLASSES).double().mean().item()
    assert result.to_dict()["span"] == 1.0 and len(result.table().splitlines()) == 6
    assert measured(["left {}"]).standard_deviation == 0.0


def test_templates_are_chosen_while_they_help():
    assert measured(function=select_templates) == [("good {}", 1.0)]
    # One that neither helps nor harms stays out.
    assert measured(["fine {}", "good {}"], function=select_templates) == [("fine {}", 1.0)]
    # Of equals the first; together "left" and "right" part the images at 90 degrees.
    uneven = ["bad {}", "left {}", "right {}"]
    assert measured(uneven, function=select_templates) == [("left {}", 0.75), ("right {}", 1.0)]
    assert measured(uneven, function=select_templates, most=1) == [("left {}", 0.75)]


def test_the_plot_names_every_template(tmp_path):
    pytest.importorskip("matplotlib")
    file = plot_per_template_accuracy(measured(), tmp_path / "per_template.png")
    assert file.stat().st_size > 5000


@pytest.mark.parametrize(
    ("images", "classes", "templates", "options", "said"),
    [
        (IMAGES[:0], CLASSES[:0], TEMPLATES, {}, "0 embeddings and 0 classes"),
        (IMAGES, CLASSES[:3], TEMPLATES, {}, "4 embeddings and 3 classes"),
        (IMAGES, CLASSES + 1, TEMPLATES, {}, "from 0 to 1"),
        (IMAGES, CLASSES, [], {}, r"templates=\[\]"),
        (IMAGES * float("nan"), CLASSES, TEMPLATES, {}, "NaN"),
        (IMAGES, CLASSES, TEMPLATES, {"most": 0}, "most=0"),
    ],
)
def test_what_cannot_be_measured(images, classes, templates, options, said):
    model = model_of()
    with pytest.raises(ValueError, match=said):
        select_templates(model, model.processor, images, classes, LABELS, templates, **options)


def test_the_temperature_of_a_logistic_model_is_found_by_hand():
    # Three of four are right at logits (a, 0): the likeliest chance is 3/4, so a / temperature = log 3.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    classes = torch.tensor([0, 0, 0, 1])
    assert fit_temperature(logits, classes) == pytest.approx(2 / np.log(3), rel=1e-3)
    # With a sigmoid each label has a say: logits a and -a have the same chances.
    logits = torch.tensor([[2.0, -2.0]] * 4)
    assert fit_temperature(logits, classes, has_sigmoid=True) == pytest.approx(2 / np.log(3), rel=1e-3)
    # Nothing to doubt, and nothing to learn.
    assert fit_temperature(torch.tensor([[2.0, 0.0]]), torch.tensor([0])) == pytest.approx(0.01, rel=1e-3)
    assert fit_temperature(torch.tensor([[2.0, 0.0]]), torch.tensor([1])) == pytest.approx(100, rel=1e-3)


def test_calibrating_brings_scores_to_what_is_right():
    # At scale 8 and cosine 1 against -1 the model is sure; three of four are right.
    model = LookupEncoder([[1.0, 0.0]], {"cat": [1.0, 0.0], "dog": [-1.0, 0.0]}, scale=8.0)
    classifier = ZeroShotClassifier(model, model.processor, LABELS, ["{}"])
    found = calibrate(classifier, [gray(0)] * 4, ["cat", "cat", 0, "dog"])
    assert found.temperature == classifier.temperature == pytest.approx(16 / np.log(3), rel=1e-3)
    assert found.error_before == pytest.approx(0.25, abs=1e-4)
    assert found.error == pytest.approx(0, abs=1e-3) and found.images == 4
    assert classifier.predict([gray(0)])[0][0]["score"] == pytest.approx(0.75, abs=1e-3)
    with pytest.raises(ValueError, match="'cow' is none"):
        calibrate(classifier, [gray(0)], ["cow"])
    with pytest.raises(ValueError, match="1 images and 2 classes"):
        calibrate(classifier, [gray(0)], [0, 1])
    with pytest.raises(ValueError, match="from 0 to 1"):
        calibrate(classifier, [gray(0)], [2])
