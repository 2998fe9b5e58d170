"""Robustness: corruptions that do what they say and always the same, and the line of effective robustness."""

import numpy as np
import pytest
from PIL import Image

from hf_clip.evaluation import effective_robustness, evaluate_corruptions, evaluate_shift, evaluate_zero_shot
from hf_clip.evaluation.corruptions import CORRUPTIONS, REFERENCE_PIXELS, SEVERITIES, Corruption
from hf_clip.model.image_decoding_hf_clip import decode_image
from hf_clip.sources import open_source
from tests.helpers.squares import COLOURS, SIZE, encode, rows, write_parquet
from tests.helpers.toys import tiny_clip


def photograph(size: int = 96) -> Image.Image:
    """Smooth colors with an edge and some detail: noise, blur and compression all change it."""
    y, x = np.mgrid[0:size, 0:size] / size
    pixels = np.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.4 + 0.2 * np.sin(40 * x)], axis=2)
    pixels[size // 4 : size // 2, size // 4 : size // 2] = 0.85, 0.2, 0.1
    return Image.fromarray((pixels * 255).astype(np.uint8))


def difference(one: Image.Image, other: Image.Image) -> float:
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_a_image_and_always_in_the_same_way(name):
    image = photograph()
    results = [Corruption(name, severity)(image) for severity in SEVERITIES]
    assert all(result.size == image.size and result.mode == "RGB" for result in results)
    changes = [difference(result, image) for result in results]
    assert min(changes) > 0.1
    for severity, result in zip(SEVERITIES, results, strict=True):
        assert difference(Corruption(name, severity)(image.copy()), result) == 0
    # Saturation goes down in two degrees and up in three.
    if name != "saturate":
        assert changes[0] < changes[2] < changes[4]


def test_noise_is_drawn_for_each_image_and_severity():
    gray = Image.new("RGB", (32, 32), (128, 128, 128))
    other = Image.new("RGB", (32, 32), (129, 128, 128))
    noise = [np.asarray(Corruption("gaussian_noise", 1)(each), float) - np.asarray(each) for each in (gray, other)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    # The published deviation of the first degree is 0.08.
    assert noise[0].std() / 255 == pytest.approx(0.08, rel=0.05)


def test_corruptions_by_hand():
    def changed(name, severity, color, size=4):
        return np.asarray(Corruption(name, severity)(Image.new("RGB", (size, size), color)))

    # HSV's value 0.4 grows by 0.1, all channels by a quarter.
    assert changed("brightness", 1, (102, 51, 0))[0, 0].tolist() == [128, 64, 0]
    assert changed("brightness", 1, (0, 0, 0))[0, 0].tolist() == [26, 26, 26]
    # One color has no contrast to lose, gray no saturation to gain.
    assert changed("contrast", 5, (10, 200, 30))[0, 0].tolist() == [10, 200, 30]
    assert changed("saturate", 5, (77, 77, 77))[0, 0].tolist() == [77, 77, 77]
    # HSV's saturation 0.5 is doubled: the least channel falls to 0, the greatest stays.
    assert changed("saturate", 3, (200, 100, 100))[0, 0].tolist() == [200, 0, 0]
    halves = Image.new("RGB", (2, 1), (0, 0, 0))
    halves.putpixel((1, 0), (200, 200, 200))
    assert np.asarray(Corruption("contrast", 1)(halves))[0, :, 0].tolist() == [60, 140]
    salted = changed("impulse_noise", 5, (100, 100, 100), size=64)
    assert set(np.unique(salted)) == {0, 100, 255}
    assert (salted == 0).mean() == pytest.approx(0.135, abs=0.01)
    assert (salted == 255).mean() == pytest.approx(0.135, abs=0.01)
    big = Image.new("RGB", (20, 20)).resize((20, 20))
    big.putpixel((0, 0), (255, 255, 255))
    # At a scale of a quarter, 5 x 5 blocks of one value.
    blocks = np.asarray(Corruption("pixelate", 5)(big))[:, :, 0]
    assert (blocks.reshape(5, 4, 5, 4) == blocks[::4, ::4][:, None, :, None]).all() and blocks[3, 3] == round(255 / 16)


def test_lengths_grow_with_the_image():
    def width_of_edge(size: int) -> int:
        image = Image.new("RGB", (size, size))
        image.paste((255, 255, 255), (size // 2, 0, size, size))
        row = np.asarray(Corruption("gaussian_blur", 3)(image))[0, :, 0]
        return int(((row > 12) & (row < 243)).sum())

    assert width_of_edge(2 * REFERENCE_PIXELS) == pytest.approx(2 * width_of_edge(REFERENCE_PIXELS), abs=2)


def test_the_image_is_damaged_as_the_model_sees_it():
    _, processor = tiny_clip(["a"], 32)
    damaged = Corruption("impulse_noise", 1)(photograph(300), processor)
    assert damaged.size == (32, 32)
    # And is not resized or cropped again on its way.
    seen = processor(images=damaged, return_tensors="np")["pixel_values"]
    assert len(np.unique(seen[0, 0])) == len(np.unique(np.asarray(damaged)[:, :, 0]))


@pytest.mark.parametrize(
    ("name", "severity", "said"), [("fog", 1, "'fog' is not known: use gaussian_noise"), ("jpeg", 6, "severity=6")]
)
def test_unknown_corruptions(name, severity, said):
    with pytest.raises(ValueError, match=said):
        Corruption(name, severity)


# Effective robustness


def test_effective_robustness_by_hand():
    # On logit axes: (0, -1) and (1, 0), a line of slope 1 that loses one unit.
    half, above, below = 0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))
    baselines = [(half, below), (above, half)]
    expected, effective = effective_robustness(1 / (1 + np.exp(-2)), 0.9, baselines)
    assert expected == pytest.approx(above) and effective == pytest.approx(0.9 - above)
    assert effective_robustness(half, below, baselines)[1] == pytest.approx(0)
    # An accuracy of 1 has no logit, and still a place on the line.
    assert 0.99 < effective_robustness(1.0, 1.0, baselines)[0] < 1


@pytest.mark.parametrize(
    ("baselines", "said"),
    [([(0.5, 0.4)], "1 baselines make no line"), ([(0.5, 0.4), (0.5, 0.3)], "2 baselines make no line"),
     ([(0.5, 0.4), (50.0, 40.0)], r"\(50.0, 40.0\) is no pair")],
)  # fmt: skip
def test_baselines_that_make_no_line(baselines, said):
    with pytest.raises(ValueError, match=said):
        effective_robustness(0.5, 0.5, baselines)


# Over data


@pytest.fixture
def setting(tmp_path):
    content = [{**row, "label": row["caption"].split(" ")[1]} for row in rows(1)]
    model = tiny_clip(list(COLOURS), SIZE)
    return model, open_source(str(write_parquet(tmp_path / "squares.parquet", content))), content, tmp_path


def test_accuracy_under_corruptions_is_that_of_corrupted_images(setting):
    model, source, content, folder = setting
    result = evaluate_corruptions(*model, source, corruptions=("contrast", "impulse_noise"), severities=(1, 5))
    damaged = []
    for row in content:
        image = Corruption("impulse_noise", 5)(decode_image(row["image"]), model[1])
        damaged.append({**row, "image": {"bytes": encode(np.asarray(image)), "path": None}})
    by_hand = evaluate_zero_shot(*model, open_source(str(write_parquet(folder / "damaged.parquet", damaged))))
    assert result.corruptions["impulse_noise"][5] == by_hand.top_1
    assert result.top_1 == evaluate_zero_shot(*model, source).top_1
    scores = [score for by_severity in result.corruptions.values() for score in by_severity.values()]
    assert len(scores) == 4 and result.corrupted_top_1 == pytest.approx(np.mean(scores))
    assert "impulse_noise" in result.table() and result.to_dict()["task"] == "robustness"


def test_a_shift_between_two_sources(setting):
    model, source, content, folder = setting
    other = open_source(str(write_parquet(folder / "other.parquet", content[::2])))
    result = evaluate_shift(*model, source, other, baselines=[(0.1, 0.1), (0.9, 0.9)])
    assert (result.images, result.shifted_images) == (24, 12)
    assert result.expected_top_1 == pytest.approx(max(result.top_1, 1e-4))
    assert result.effective_robustness == pytest.approx(result.shifted_top_1 - result.expected_top_1)
    assert evaluate_shift(*model, source, other).effective_robustness is None


def test_what_is_skipped_of_either_source_is_told(setting):
    model, source, content, folder = setting
    broken = [{**row, "image": {"bytes": b"broken", "path": None}} for row in content[:2]]
    other = open_source(str(write_parquet(folder / "other.parquet", [*broken, *content[2:]])))
    result = evaluate_shift(*model, source, other)
    assert result.to_dict()["skipped"] == {} and result.to_dict()["shifted_skipped"] == {"unknown_format": 2}
    assert "skipped of" in result.table() and result.table().endswith("other.parquet: 2 unknown_format")
    damaged = evaluate_corruptions(*model, other, corruptions=("contrast",), severities=(1,))
    assert damaged.skipped == {"unknown_format": 2} and damaged.table().endswith("skipped: 2 unknown_format")


def test_shifted_images_are_told_apart_among_all_classes(setting):
    model, source, content, folder = setting

    def shifted(name: str, rows: list[dict], **options):
        other = open_source(str(write_parquet(folder / f"{name}.parquet", rows)))
        return evaluate_shift(*model, source, other, **options)

    red = [row for row in content if row["label"] == "red"]
    alone = shifted("red", red)
    by_hand = evaluate_zero_shot(*model, open_source(str(folder / "red.parquet")), labels=sorted(COLOURS))
    assert (alone.shifted_top_1, alone.shifted_images) == (by_hand.top_1, 4) and by_hand.top_1 < 1
    assert shifted("red", red, labels=sorted(COLOURS)).shifted_top_1 == by_hand.top_1
    with pytest.raises(ValueError, match="'pink' is none of the 6 classes"):
        shifted("pink", [{**row, "label": "pink"} for row in red])
    # Numbers, and words without an order that the numbers could be of.
    with pytest.raises(ValueError, match="'1' is none of the 6 classes"):
        shifted("numbers", [{**row, "label": 1} for row in red])
