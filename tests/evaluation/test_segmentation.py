"""Mean IoU over a data set with masks: scikit-learn's number, and masks that do not fit are counted or refused."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from hf_clip import ZeroShotClassifier, evaluate_segmentation, open_source
from hf_clip.sources import SourceError
from tests.helpers.color_encoder import ColorEncoder, colored
from tests.helpers.squares import write_parquet

LABELS = ["gray", "red", "blue"]
PLACES = [{"red": (0, 0, 24, 24)}, {"blue": (16, 8, 48, 40)}, {"red": (0, 24, 24, 48), "blue": (24, 0, 48, 24)}]


def png(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def mask_of(places: dict) -> np.ndarray:
    """Indices of LABELS, and a corner that belongs to no class."""
    mask = np.zeros((48, 48), np.uint8)
    for color, (left, top, right, bottom) in places.items():
        mask[top:bottom, left:right] = LABELS.index(color)
    mask[-4:, -4:] = 255
    return mask


def evaluate(file, **options):
    model = ColorEncoder(True)
    source = open_source(file, mask_column="mask")
    return evaluate_segmentation(model, model.processor, source, templates=["{}"], **{"labels": LABELS, **options})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    content = [
        {"image": png(colored((48, 48), **places)), "mask": png(Image.fromarray(mask_of(places)))} for places in PLACES
    ]
    small = {"image": content[0]["image"], "mask": png(Image.fromarray(mask_of({})[:40]))}
    broken = {"image": {"bytes": b"x", "path": None}, "mask": content[0]["mask"]}
    none = {"image": content[0]["image"], "mask": None}
    return write_parquet(tmp_path_factory.mktemp("masks") / "masks.parquet", [*content, small, broken, none])


def test_the_numbers_are_those_of_scikit_learn_over_all_pixels(file):
    result = evaluate(file)
    model = ColorEncoder(True)
    classifier = ZeroShotClassifier(model, model.processor, LABELS, ["{}"])
    masks = [mask_of(places) for places in PLACES]
    found = classifier.segment([colored((48, 48), **places) for places in PLACES])
    true, guessed = (
        np.concatenate([each[mask != 255] for each, mask in zip(all_, masks, strict=True)])
        for all_ in (masks, [one.numpy() for one in found])
    )
    theirs = jaccard_score(true, guessed, labels=range(3), average=None)
    assert [row["iou"] for row in result.per_class] == pytest.approx(theirs.tolist())
    assert result.mean_iou == pytest.approx(jaccard_score(true, guessed, average="macro")) and result.mean_iou > 0.8
    assert result.pixel_accuracy == pytest.approx((true == guessed).mean())
    assert [row["pixels"] for row in result.per_class] == np.bincount(true).tolist()
    assert result.images == 3 and result.skipped == {"mask_of_other_size": 1, "unknown_format": 1, "no_mask": 1}
    assert "mean IoU 0." in result.table() and result.to_dict()["per_class"][1]["label"] == "red"


def test_the_background_has_index_0_where_it_is_asked_for(file):
    result = evaluate(file, labels=["red", "blue"], background=0.8)
    assert [row["label"] for row in result.per_class] == ["background", "red", "blue"]
    assert result.mean_iou > 0.8


def test_a_class_that_occurs_nowhere_is_in_no_mean(file):
    result = evaluate(file, labels=[*LABELS, "blue"], background=None)
    assert result.per_class[3]["pixels"] == 0
    assert result.mean_iou == pytest.approx(
        np.mean([row["iou"] for row in result.per_class if row["iou"] is not None])
    )


def test_masks_that_cannot_be_meant_are_refused(file, tmp_path):
    with pytest.raises(SourceError, match="the mask has index 2, and there are 2 classes"):
        evaluate(file, labels=["gray", "red"])
    model = ColorEncoder(True)
    with pytest.raises(SourceError, match="`mask_column`: .* has no column 'masks'"):
        open_source(file, mask_column="masks")
    image = png(colored((48, 48)))
    colors = write_parquet(tmp_path / "colors.parquet", [{"image": image, "mask": image}])
    with pytest.raises(SourceError, match="the mask has 3 channels"):
        evaluate(colors)
    ignored = png(Image.fromarray(np.full((48, 48), 255, np.uint8)))
    with pytest.raises(ValueError, match="no pixel of any mask belongs to a class"):
        evaluate(write_parquet(tmp_path / "ignored.parquet", [{"image": image, "mask": ignored}]))
    damaged = bytearray(png(Image.fromarray(mask_of({})))["bytes"])
    damaged[damaged.index(b"IDAT") + 8] ^= 0xFF
    rows = [{"image": image, "mask": {"bytes": bytes(damaged), "path": None}}]
    with pytest.raises(ValueError, match="1 mask_unreadable"):
        evaluate(write_parquet(tmp_path / "damaged.parquet", rows))
    fractions = io.BytesIO()
    Image.fromarray(np.full((48, 48), 1.5, np.float32)).save(fractions, "TIFF")
    rows = [{"image": image, "mask": {"bytes": fractions.getvalue(), "path": None}}]
    with pytest.raises(SourceError, match="the mask holds fractions"):
        evaluate(write_parquet(tmp_path / "fractions.parquet", rows))
    without = open_source(write_parquet(tmp_path / "labels.parquet", [{"image": image, "label": "a"}]))
    with pytest.raises(SourceError, match="was opened without `mask_column`"):
        evaluate_segmentation(model, model.processor, without, labels=LABELS)


def test_masks_beside_a_table_are_found_by_their_paths(tmp_path):
    colored((48, 48), **PLACES[0]).save(tmp_path / "0.png")
    Image.fromarray(mask_of(PLACES[0])).save(tmp_path / "0_mask.png")
    (tmp_path / "all.csv").write_text("image,mask\n0.png,0_mask.png\n")
    assert evaluate(tmp_path / "all.csv").images == 1
