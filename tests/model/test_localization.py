"""Places of labels in images: by a model that knows colors, so that the right answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clip import ZeroShotClassifier
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.localization_hf_clip import (
    MOST_WINDOWS,
    WINDOW_SCALES,
    WINDOW_STEP,
    Looks,
    boxes_of,
    score_maps,
    windows_of,
)
from tests.helpers.color_encoder import ColorEncoder, colored
from tests.helpers.toys import tiny_clip

RED, BLUE = (8, 16, 40, 48), (64, 8, 96, 64)
IMAGE = colored((128, 80), red=RED, blue=BLUE)


def classifier_of(has_dense_features: bool, **options) -> ZeroShotClassifier:
    model = ColorEncoder(has_dense_features)
    options = {"rejection": "gray", **options}
    return ZeroShotClassifier(model, model.processor, ["red", "blue"], ["{}"], **options)


def overlap(one: tuple, other: tuple) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    shared = max(min(one[2], other[2]) - max(one[0], other[0]), 0) * max(
        min(one[3], other[3]) - max(one[1], other[1]), 0
    )
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def corners(box: dict) -> tuple:
    return tuple(box[name] for name in ("xmin", "ymin", "xmax", "ymax"))


@pytest.mark.parametrize("has_dense_features", [True, False])
def test_heat_maps_are_high_where_the_label_is_and_low_elsewhere(has_dense_features):
    maps = classifier_of(has_dense_features).heat_maps([IMAGE, IMAGE.transpose(0)])
    assert maps.shape == (2, 2, 80, 128) and torch.isfinite(maps).all() and 0 <= maps.min() <= maps.max() <= 1
    for index, (left, top, right, bottom) in enumerate((RED, BLUE)):
        row, column = divmod(maps[0, index].argmax().item(), 128)
        assert top <= row < bottom and left <= column < right
        assert maps[0, index, (top + bottom) // 2, (left + right) // 2] > 0.9
        assert maps[0, index, 76:, 110:].max() < 0.1
    # FLIP_LEFT_RIGHT: a mirrored image has a mirrored map.
    assert (maps[1] - maps[0].flip(-1)).abs().mean() < 0.02


@pytest.mark.parametrize("has_dense_features", [True, False])
def test_boxes_and_segments_follow_the_rectangles(has_dense_features):
    classifier = classifier_of(has_dense_features)
    [boxes] = classifier.boxes([IMAGE])
    assert sorted(one["label"] for one in boxes) == ["blue", "red"]
    assert [one["score"] for one in boxes] == sorted((one["score"] for one in boxes), reverse=True)
    for one in boxes:
        assert overlap(corners(one["box"]), {"red": RED, "blue": BLUE}[one["label"]]) > 0.6
    [segment] = classifier.segment([IMAGE])
    truth = np.full((80, 128), -1)
    for index, (left, top, right, bottom) in enumerate((RED, BLUE)):
        truth[top:bottom, left:right] = index
    assert segment.shape == (80, 128) and (segment.numpy() == truth).mean() > 0.93


def test_without_a_rejection_class_the_background_is_what_scores_low():
    classifier = classifier_of(True, rejection=None)
    # On gray, red and blue are equally likely.
    assert set(classifier.segment([IMAGE])[0].unique().tolist()) == {0, 1}
    [segment] = classifier.segment([IMAGE], background=0.8)
    assert segment[2, 50] == -1 and segment[32, 24] == 0 and segment[32, 80] == 1


def test_two_things_of_one_label_have_two_boxes_and_none_has_none():
    classifier = classifier_of(True)
    image = colored((96, 96), red=(0, 0, 32, 32))
    image.paste((255, 0, 0), (64, 64, 96, 96))
    [boxes] = classifier.boxes([image])
    assert [one["label"] for one in boxes] == ["red", "red"]
    assert classifier.boxes([colored((96, 96)), image]) == [[], boxes]


@pytest.mark.parametrize("size", [(257, 150), (264, 59), (1, 1), (300, 2), (3, 400)])
def test_boxes_lie_within_the_image(size):
    # Of sizes whose maps are no whole fraction of them.
    scores = torch.ones(1, *(max(round(length * min(256 / max(size), 1)), 1) for length in size[::-1]))
    [box] = boxes_of(Image.new("RGB", size), scores, ["all"], 0.5)
    assert corners(box["box"]) == (0, 0, *size)


def test_a_strip_is_refused_and_other_images_go_on():
    classifier = classifier_of(False)
    strip, looks = Image.new("RGB", (10_000, 20)), Looks()
    with pytest.raises(ImageDecodeError, match=r"images\[0\]: 10000 x 20 pixels are \d+ windows"):
        classifier.boxes([strip])
    error, (_, scores) = score_maps(classifier, [strip, IMAGE], looks, return_errors=True)
    assert error.reason == "too_long" and scores.shape == (3, 80, 128)
    assert len(windows_of(2000, 200, WINDOW_SCALES, WINDOW_STEP)) < MOST_WINDOWS


def test_what_is_no_score_is_refused():
    classifier = classifier_of(True)
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="`threshold="):
            classifier.boxes([IMAGE], threshold=threshold)
        with pytest.raises(ValueError, match="`background="):
            classifier.segment([IMAGE], background=threshold)


def test_windows_cover_the_image_evenly():
    boxes = windows_of(100, 60, (1.0, 0.5), 0.5)
    covered = np.zeros((60, 100), dtype=int)
    for left, top, right, bottom in boxes:
        assert right - left == bottom - top and right <= 100 and bottom <= 60
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 2 and len(boxes) == len(set(boxes)) == 3 + 3 * 6
    assert windows_of(1, 1, (1.0, 0.25), 0.5) == [(0, 0, 1, 1)]
    assert max(right for _, _, right, _ in windows_of(5000, 10, (1.0,), 0.5)) == 5000


def test_batches_and_resolutions_give_the_same_places():
    classifier = classifier_of(True)
    maps = classifier.heat_maps([IMAGE])
    assert torch.allclose(classifier.heat_maps([IMAGE], batch_size=1), maps, atol=1e-6)
    finer = classifier.heat_maps([IMAGE], resolution=32)
    assert classifier.model.seen[0] == (16, 16) and classifier.model.seen[-1] == (32, 32)
    assert (finer - maps).abs().mean() < 0.05


def test_what_cannot_be_is_said_before_any_image_is_read():
    classifier = classifier_of(False)
    with pytest.raises(ValueError, match="`resolution=32`: the image tower takes images of its own size alone"):
        classifier.heat_maps(["gone.png"], resolution=32)
    with pytest.raises(ValueError, match=r"`scales=\(0.5, 2\)`: give sides of windows"):
        classifier.boxes(["gone.png"], scales=(0.5, 2))
    with pytest.raises(ValueError, match="128 x 80 and 64 x 64 pixels.*one size at a time"):
        classifier.heat_maps([IMAGE, colored((64, 64))])
    assert [segment.shape for segment in classifier.segment([IMAGE, colored((64, 64))])] == [(80, 128), (64, 64)]
    with pytest.raises(ValueError, match=r"images\[1\]"):
        classifier.boxes([IMAGE, b"nothing"])


def test_a_vision_transformer_looks_with_every_attention():
    model, processor = tiny_clip(["a cat", "a dog"])
    classifier = ZeroShotClassifier(model, processor, ["a cat", "a dog"])
    plain, query = (classifier.heat_maps([IMAGE], attention=name) for name in ("plain", "query"))
    assert plain.shape == query.shape == (1, 2, 80, 128) and not torch.allclose(plain, query)
    assert torch.allclose(query.sum(dim=1), torch.ones(1, 80, 128), atol=1e-4)
    finer = classifier.heat_maps([IMAGE], resolution=64, scales=[1.0])
    assert finer.shape == query.shape
