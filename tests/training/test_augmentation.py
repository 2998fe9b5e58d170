"""Augmentation: each strength changes what its name says, alike on every rank and after every resume."""

import math

import numpy as np
import pytest
import torch

from hf_clip.model.loss_hf_clip import contrastive_loss
from hf_clip.model.modeling_hf_clip import unit_embeddings
from hf_clip.training.augmentation import DRAWS_PER_IMAGE, augment, mix_neighbours, mixed_fraction, uniforms
from hf_clip.training.config import AugmentationConfig
from hf_clip.training.objective import ContrastiveObjective
from tests.helpers.toys import tiny_clip

ALL = {
    **dict(rotation=20, scale=0.3, aspect=0.2, shear=0.2, shift=0.1, flip=0.5, brightness=0.3, channels=0.2),
    **dict(saturation=0.5, hue=0.1, gray=0.2, blur=0.8, crop=0.5, cutout=0.5),
}
CHANCES = ("crop", "cutout", "flip", "gray")
MIDDLE = 0.5


def make_images(count: int, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


def marked(size: int = 21) -> torch.Tensor:
    """A white image with one black pixel right of the middle of its upper half."""
    image = torch.full((1, size, size, 3), 255, dtype=torch.uint8)
    image[:, size // 4, size * 3 // 4] = 0
    return image


def draws(count: int = 1, **at) -> torch.Tensor:
    """Draws at their middle, where nothing is changed, but for columns such as `d7=0.9`."""
    values = torch.full((count, DRAWS_PER_IMAGE), MIDDLE)
    for column, value in at.items():
        values[:, int(column[1:])] = value
    return values


def apply(image, drawn, may_flip=True, may_crop=True, **strengths) -> torch.Tensor:
    may_flip_B, may_crop_B = torch.full((len(image),), may_flip), torch.full((len(image),), may_crop)
    return augment(image, drawn, may_flip_B, may_crop_B, AugmentationConfig(**strengths))


def plain(image) -> torch.Tensor:
    return image.permute(0, 3, 1, 2).float() / 255


def center_of_ink(image_BCHW) -> tuple[float, float]:
    """(row, column) of the ink's center, from the image's middle, in fractions of the side."""
    ink = 1 - image_BCHW[0].mean(0)
    place = (torch.arange(len(ink)) + 0.5) / len(ink) - 0.5
    return ((ink.sum(1) @ place) / ink.sum()).item(), ((ink.sum(0) @ place) / ink.sum()).item()


def test_draws_are_those_of_seed_epoch_and_sample_whatever_the_batch():
    samples, epochs = np.arange(40), np.arange(40) // 10
    whole = uniforms(3, epochs, samples, DRAWS_PER_IMAGE)
    order = np.random.default_rng(0).permutation(40)[:7]
    assert np.array_equal(uniforms(3, epochs[order], samples[order], DRAWS_PER_IMAGE), whole[order])
    batch, config = make_images(40), AugmentationConfig(**ALL)
    may = torch.ones(40, dtype=torch.bool)
    all_at_once = augment(batch, torch.from_numpy(whole), may, may, config)
    some = augment(batch[order], torch.from_numpy(whole[order]), may[order], may[order], config)
    assert torch.allclose(some, all_at_once[order], atol=1e-6)
    for other in (uniforms(4, epochs, samples, 5), uniforms(3, epochs + 1, samples, 5)):
        assert np.abs(other - whole[:, :5]).min(axis=1).max() > 0.01
        assert not np.isclose(other, whole[:, :5]).any(axis=1).all()


def test_draws_are_even_and_independent():
    values = uniforms(0, np.zeros(4000, int), np.arange(4000), 8)
    assert values.min() >= 0 and values.max() < 1
    assert np.abs(values.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(values.T) - np.eye(8)).max() < 0.06
    assert np.abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.05


def test_no_strengths_give_the_image_back():
    batch = make_images(8)
    out = apply(batch, torch.rand(8, DRAWS_PER_IMAGE))
    assert torch.allclose(out, plain(batch), atol=1e-6)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_strength_changes_something_and_draws_at_their_middle_nothing(name):
    batch = make_images(16)
    strength = {name: 1.0 if name in CHANCES else ALL[name]}
    changed = apply(batch, torch.rand(16, DRAWS_PER_IMAGE), **strength)
    assert (changed - plain(batch)).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    if name not in CHANCES:
        assert torch.allclose(apply(batch, draws(16), **strength), plain(batch), atol=1e-5)


def test_everything_at_once_stays_in_range_and_white_stays_white():
    numbers = torch.rand(64, DRAWS_PER_IMAGE)
    out = apply(make_images(64), numbers, **ALL)
    assert out.shape == (64, 3, 16, 16) and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    white = torch.full((64, 16, 16, 3), 255, dtype=torch.uint8)
    assert torch.allclose(apply(white, numbers, **ALL), torch.ones(64, 3, 16, 16), atol=1e-5)


def test_a_flip_mirrors_left_and_right_only_where_it_may():
    image = marked()
    mirrored = apply(image, draws(), flip=1.0)
    assert torch.allclose(mirrored, plain(image).flip(-1), atol=1e-5)
    assert torch.allclose(apply(image, draws(), may_flip=False, flip=1.0), plain(image), atol=1e-5)
    many, numbers = image.expand(400, -1, -1, -1), torch.rand(400, DRAWS_PER_IMAGE)
    row = image.shape[1] // 4
    is_mirrored = apply(many, numbers, flip=0.25)[:, 0, row, row] < 0.5
    assert 0.15 < is_mirrored.float().mean() < 0.35


@pytest.mark.parametrize(("draw", "degrees"), [(1.0, 90), (0.0, -90)])
def test_a_rotation_turns_by_degrees_about_the_middle(draw, degrees):
    before, after = center_of_ink(plain(marked())), center_of_ink(apply(marked(), draws(d0=draw), rotation=90))
    # The mark stands up and right; a quarter turn takes it to the other corner of one of the sides.
    assert after == pytest.approx((before[0], -before[1]) if degrees == 90 else (-before[0], before[1]), abs=0.01)


def test_shifts_are_fractions_of_the_side():
    before = center_of_ink(plain(marked(40)))
    across = center_of_ink(apply(marked(40), draws(d5=1.0), shift=0.1))
    along = center_of_ink(apply(marked(40), draws(d6=0.0), shift=0.1))
    assert across == pytest.approx((before[0], before[1] - 0.1), abs=1e-3)
    assert along == pytest.approx((before[0] + 0.1, before[1]), abs=1e-3)
    # What comes in from outside is white.
    black = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    moved = apply(black, draws(d5=1.0), shift=0.1)
    assert moved[..., :36].max() < 1e-5 and moved[..., 36:].min() > 1 - 1e-5


def test_scale_and_aspect_are_logarithms_of_factors():
    before = np.array(center_of_ink(plain(marked(41))))
    smaller = center_of_ink(apply(marked(41), draws(d1=1.0), scale=math.log(2)))
    assert smaller == pytest.approx(before / 2, abs=0.01)
    wider = center_of_ink(apply(marked(41), draws(d2=0.0), aspect=math.log(1.25)))
    assert wider == pytest.approx(before * [1 / 1.25, 1.25], abs=0.01)


def test_a_shear_moves_rows_along_themselves():
    before = center_of_ink(plain(marked(41)))
    after = center_of_ink(apply(marked(41), draws(d4=1.0), shear=0.2))
    assert after == pytest.approx((before[0], before[1] - 0.2 * before[0]), abs=0.01)


def test_colors_change_and_shapes_and_grays_do_not():
    gray = torch.randint(0, 256, (16, 8, 8, 1), dtype=torch.uint8).expand(-1, -1, -1, 3).contiguous()
    numbers = torch.rand(16, DRAWS_PER_IMAGE)
    for strengths in ({"hue": 0.5}, {"saturation": 1.0}, {"gray": 1.0}):
        assert torch.allclose(apply(gray, numbers, **strengths), plain(gray), atol=2e-3), strengths
    assert apply(gray, numbers, brightness=0.5).std(dim=1).max() < 1e-5
    tinted = apply(gray, numbers, channels=0.5)
    assert tinted.std(dim=1).max() > 0.01


def test_gray_takes_the_color_and_keeps_the_luminance():
    batch = make_images(4)
    out = apply(batch, draws(4, d8=0.0), gray=0.01)
    luminance = torch.tensor([0.299, 0.587, 0.114]) @ plain(batch).flatten(2)
    assert out.std(dim=1).max() < 3e-3
    assert torch.allclose(out[:, 0].flatten(1), luminance, atol=5e-3)
    assert torch.allclose(apply(batch, draws(4, d8=0.5), gray=0.4, brightness=0.1), plain(batch), atol=1e-5)


def test_brightness_multiplies_the_ink():
    batch = make_images(2)
    darker = apply(batch, draws(2, d10=1.0), brightness=math.log(2))
    assert torch.allclose(1 - darker, (2 * (1 - plain(batch))).clamp(max=1), atol=1e-5)


def test_blur_goes_towards_the_local_mean_and_sharpening_away_from_it():
    image = marked()
    row, column = image.shape[1] // 4, image.shape[1] * 3 // 4
    blurred, sharpened = apply(image, draws(d14=1.0), blur=0.9), apply(image, draws(d14=0.0), blur=0.9)
    assert blurred[0, 0, row, column] > 0.5 and blurred[0, 0, row, column + 1] < 1
    assert sharpened[0, 0, row, column] == 0 and sharpened[0, 0, row, column + 1] == 1


def test_a_cutout_covers_one_white_rectangle_of_its_size():
    black = torch.zeros(200, 40, 40, 3, dtype=torch.uint8)
    numbers = torch.rand(200, DRAWS_PER_IMAGE)
    covered = apply(black, numbers, cutout=1.0, cutout_size=0.5)[:, 0] == 1
    for mask in covered:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert len(rows) <= 21 and len(columns) <= 21
    heights = covered.any(2).sum(1)
    assert heights.max() >= 18
    share = (apply(black, numbers, cutout=0.3) == 1).any(dim=(1)).any(dim=(1, 2)).float().mean()
    assert 0.2 < share < 0.4


def test_neighbours_are_mixed_alike_however_the_batch_is_cut():
    batch = plain(make_images(8))
    mixed = mix_neighbours(batch, 0.25)
    assert torch.allclose(mixed[2], 0.75 * batch[2] + 0.25 * batch[3])
    assert torch.allclose(mixed[3], 0.75 * batch[3] + 0.25 * batch[2])
    assert torch.equal(torch.cat([mix_neighbours(part, 0.25) for part in batch.split([2, 6])]), mixed)
    assert torch.equal(mix_neighbours(batch[:3], 0.0), batch[:3])


def test_shares_are_drawn_from_a_beta_distribution_by_seed_and_step():
    shares = np.array([mixed_fraction(0, step, 0.3) for step in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.03
    # The variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert abs(shares.var() - 1 / (4 * 1.6)) < 0.01
    assert shares[7] == mixed_fraction(0, 7, 0.3) != mixed_fraction(1, 7, 0.3)
    assert mixed_fraction(0, 7, 0.0) == 0.0


def test_a_mixed_image_is_a_pair_with_either_text_by_their_shares():
    model, _ = tiny_clip(["a cat"])
    generator = torch.Generator().manual_seed(0)
    image, text = (unit_embeddings(torch.randn(4, 8, generator=generator)) for _ in range(2))
    scale, ids = torch.tensor(5.0), torch.tensor([0, 1, 2, 0])
    mixed = ContrastiveObjective(model, 0.0).loss(image, text, [scale], ids, 0.3)
    swap = [1, 0, 3, 2]
    by_hand = 0.7 * contrastive_loss(image, text, scale, ids) + 0.3 * contrastive_loss(
        image, text[swap], scale, ids[swap]
    )
    assert mixed.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_disc_is_made_a_lying_rectangle():
    disc = torch.full((400, 64, 64, 3), 255, dtype=torch.uint8)
    place = (torch.arange(64) + 0.5) / 32 - 1
    disc[:, place[:, None] ** 2 + place[None] ** 2 <= 1] = 0
    drawn = torch.from_numpy(uniforms(0, np.zeros(400, int), np.arange(400), DRAWS_PER_IMAGE))
    assert torch.allclose(apply(disc, drawn, may_crop=False, crop=1.0), plain(disc), atol=1e-5)
    is_ink = apply(disc, drawn, crop=1.0)[:, 0] < 0.5
    heights, widths = is_ink.any(dim=2).sum(dim=1), is_ink.any(dim=1).sum(dim=1)
    assert widths.min() >= 62
    assert heights.min() < 38 and 50 < heights.max() <= 56
    assert (is_ink.sum(dim=(1, 2)) >= 0.97 * heights * widths).all()
    share = (apply(disc, drawn, crop=0.3) - plain(disc)).abs().amax(dim=(1, 2, 3)).gt(0.1).float().mean()
    assert 0.24 < share < 0.36


def test_what_is_at_the_sides_of_a_disc_stays_in_its_rectangle():
    """As the bars of Canada's flag, which are segments of a circle where it is drawn round."""
    place = (torch.arange(64) + 0.5) / 32 - 1
    flag = torch.full((40, 64, 64, 3), 255, dtype=torch.uint8)
    flag[:, (place[:, None] ** 2 + place[None] ** 2 <= 0.9) & (place[None].abs() > 0.7)] = 0
    drawn = torch.from_numpy(uniforms(0, np.zeros(40, int), np.arange(40), DRAWS_PER_IMAGE))
    middle = apply(flag, drawn, crop=1.0)[:, 0, 31] < 0.5
    assert middle[:, 3:7].all() and middle[:, -7:-3].all() and not middle[:, 12:-12].any()
