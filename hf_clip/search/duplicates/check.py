"""The pixel check: are two images one image, edited, or merely alike?

1. Where does one lie within the other? One that reaches out of the other shows something else.
2. One curve of tones, the same for red, green and blue, brings the exposure of one to that of the other. A change
   of color cannot be had by it.
3. The sharper one is blurred as the other is.
4. What still differs, pixel by pixel, decides. Little of it may differ much: a line of text.
"""

# Shapes: S side of a square.

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from .alignment import Alignment, align, blurred, sample
from .looks import LUMA, Look

# Of 0 to 1. Luminance that varies less has no place at which it could be aligned.
LEAST_DEVIATION = 0.012
LEAST_COARSE, LEAST_FINE, LEAST_CORRELATION = 0.88, 0.8, 0.85
# The inner image may reach out of the outer one by this fraction of its side: the alignment is no better.
LARGEST_OVERHANG = 0.014
# It shows at least this much of the outer one's sides.
LEAST_SIDE = 0.68
# A pixel differs where luminance, or color, does by more than this.
LUMA_LIMIT, CHROMA_LIMIT = 0.1, 0.08
# So many may differ anyhow, and so many where they look like a text.
NOISE_FRACTION, TEXT_FRACTION = 0.004, 0.07
# A text is of one sign, its ground goes on beneath it, and its ink has no color.
LEAST_SIGN, LARGEST_STEP, LARGEST_TINT = 0.75, 0.25, 0.4
# Each of these alone would be too much, and their sum may not be more than 1: root mean squares of luminance and color
# over the pixels that do not differ, and the largest change of a tone.
LARGEST_LUMA, LARGEST_CHROMA, LARGEST_TONE = 0.03, 0.03, 0.2
LEAST_SLOPE = 0.2
_BLURS = (0.0, 0.5, 0.8, 1.2, 1.7, 2.4, 3.2)
_EDGE = 3


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        is_same: whether it is one image.
        reason: why not, or in which ways the second differs from the first.
        measured: what was measured, by name.
    """

    is_same: bool
    reason: str
    measured: dict[str, float] = field(default_factory=dict)


def compare(first: Look, second: Look) -> Verdict:
    """Whether two images that could be decoded are one image, edited."""
    if first.is_animated or second.is_animated:
        return Verdict(False, "animations are compared by bytes alone")
    if first.on_black is not None and second.on_black is not None:
        # What is white over white shows over black.
        verdict = _compare(first, second, over_black=True)
        if not verdict.is_same or min(look.luma().std() for look in (first, second)) < LEAST_DEVIATION:
            return verdict
    return _compare(first, second, over_black=False)


def _compare(first: Look, second: Look, over_black: bool) -> Verdict:
    lumas = first.luma(over_black), second.luma(over_black)
    if min(float(luma.std()) for luma in lumas) < LEAST_DEVIATION:
        return Verdict(False, "too little structure to compare")
    squares = first.square(over_black), second.square(over_black)
    alignment = align(*squares, lumas, least_coarse=LEAST_COARSE, least_fine=LEAST_FINE)
    if alignment is None:
        return Verdict(False, "other shapes")
    measured = {"correlation": alignment.correlation, "overhang": alignment.overhang}
    if alignment.correlation < LEAST_CORRELATION:
        return Verdict(False, "other shapes", measured)
    if alignment.overhang > LARGEST_OVERHANG:
        return Verdict(False, "each shows what the other does not", measured)
    top, bottom, left, right = alignment.box
    if min(bottom - top, right - left) < LEAST_SIDE:
        return Verdict(False, "one shows a small part of the other", measured)
    pair = [cast(np.ndarray, look.on_black if over_black else look.pixels) for look in (first, second)]
    inner, outer = (pixels.astype(np.float32) / 255 for pixels in (pair if alignment.is_first_inner else pair[::-1]))
    difference = measure(inner, outer, alignment)
    verdict = decide(difference)
    measured |= {name: float(value) for name, value in vars(difference).items()}
    if not verdict.is_same:
        return replace(verdict, measured=measured)
    return Verdict(True, _edits(alignment, difference, first, second), measured)


@dataclass
class Difference:
    """What differs between two aligned images: fractions of all pixels, values of 0 to 1.

    Attributes:
        luma, chroma: root mean squares over the pixels that do not differ much.
        differing: the fraction that does.
        colored: the fraction that differs in color.
        sign: how much of the difference is of one sign: 1 where one image is darker wherever they differ.
        step: how much the image without ink changes where the ink is, the better one.
        tint: how much of the difference is of no gray ink, the better one of black, gray and white.
        tone: the largest change of a tone.
        slope: the least slope of the tone curve.
        blur: by which the sharper one was blurred, in pixels of the square; negative where that is the inner one.
    """

    luma: float
    chroma: float
    differing: float
    colored: float
    sign: float
    step: float
    tint: float
    tone: float
    slope: float
    blur: float


def measure(inner: np.ndarray, outer: np.ndarray, alignment: Alignment) -> Difference:
    """What differs between the inner image and its box of the outer one, both (S, S, 3) float32 of 0 to 1."""
    side = len(inner)
    outer = np.stack([sample(outer[..., channel], alignment.box) for channel in range(3)], -1)
    curve = _tone_curve(_blurred_all(outer, 1.5), _blurred_all(inner, 1.5))
    outer = np.clip(curve(outer), 0, 1)
    inner, outer, blur = _equally_sharp(inner, outer)
    luma = [pixels @ LUMA for pixels in (inner, outer)]
    # Of an image that is aligned to a third of a pixel: where edges are steep, so much differs.
    slack = 0.35 * np.maximum(_steepness(luma[0]), _steepness(luma[1]))
    signed = luma[0] - luma[1]
    of_luma = np.clip(np.abs(signed) - slack, 0, None)
    # Color is stored coarsely by JPEG.
    colors = [_blurred_all(pixels - (pixels @ LUMA)[..., None], 1.8) for pixels in (inner, outer)]
    of_chroma = np.clip(np.linalg.norm(colors[0] - colors[1], axis=-1) - 0.35 * slack, 0, None)
    within = np.zeros((side, side), bool)
    within[_EDGE:-_EDGE, _EDGE:-_EDGE] = True
    is_colored = (of_chroma > CHROMA_LIMIT) & within
    is_differing = ((of_luma > LUMA_LIMIT) & within) | is_colored
    alike = within & ~is_differing
    sign, step, tint = _ink(is_differing, signed, (inner, outer), luma)
    tones = np.linspace(0.02, 0.98, 25, dtype=np.float32)
    changed = curve(tones)
    total = within.sum()
    return Difference(
        luma=_rms(of_luma[alike]),
        chroma=_rms(of_chroma[alike]),
        differing=float(is_differing.sum() / total),
        colored=float(is_colored.sum() / total),
        sign=sign,
        step=step,
        tint=tint,
        tone=float(np.abs(changed - tones).max()),
        slope=float((np.diff(changed) / np.diff(tones)).min()),
        blur=blur,
    )


def decide(found: Difference) -> Verdict:
    """Whether aligned images with this difference are one image."""
    parts = {
        "other details": found.luma / LARGEST_LUMA,
        "other colors": found.chroma / LARGEST_CHROMA,
        "other tones": found.tone / LARGEST_TONE,
    }
    if sum(parts.values()) > 1 or found.slope < LEAST_SLOPE:
        return Verdict(False, max(parts, key=lambda name: parts[name]))
    if found.differing > NOISE_FRACTION:
        is_ink = found.sign > LEAST_SIGN and found.step < LARGEST_STEP and found.tint < LARGEST_TINT
        if found.differing > TEXT_FRACTION or not is_ink:
            return Verdict(False, "other colors" if found.colored > found.differing / 2 else "other details")
    return Verdict(True, "")


def _edits(alignment: Alignment, found: Difference, first: Look, second: Look) -> str:
    """In which ways the second of two that are one image differs from the first."""
    edits = []
    top, bottom, left, right = alignment.box
    sides = f"{min(1.0, right - left):.0%} of the width and {min(1.0, bottom - top):.0%} of the height"
    if min(bottom - top, right - left) < 0.985:
        is_crop = not alignment.is_first_inner
        edits.append(f"cropped to {sides}" if is_crop else f"uncropped or bordered: the other is {sides}")
    else:
        scale = second.width / max(first.width, 1)
        if abs(scale - 1) > 0.02:
            edits.append(f"scaled to {scale:.0%}")
    if found.tone > 0.03:
        edits.append("other tones")
    if abs(found.blur) >= 0.8:
        is_second = (found.blur > 0) == alignment.is_first_inner
        # The inner one stays as it is where the outer one is blurred: it is the blurred one.
        edits.append("sharper" if is_second else "blurred")
    if found.differing > NOISE_FRACTION:
        edits.append("something small is drawn on one of them")
    return ", ".join(edits) or "encoded again"


def _tone_curve(outer: np.ndarray, inner: np.ndarray):
    """A smooth curve, the same for all channels, from the tones of one to those of the other; near to no change."""
    x, y = outer[::2, ::2].ravel(), inner[::2, ::2].ravel()
    terms = _tone_terms(x)
    change = y - x
    weights = np.ones_like(x)
    # What the image does not show of the curve stays as it is.
    ridge = np.diag(np.array([0.02, 0.1, 0.1, 0.1, 0.1], np.float32) * len(x) * 0.02)
    found = np.zeros(5, np.float32)
    for _ in range(4):
        weighted = terms * weights
        found = np.linalg.solve(weighted @ terms.T + ridge, weighted @ change)
        left = np.abs(change - found @ terms)
        weights = 1 / (1 + (left / 0.05) ** 2)
    return lambda tones: tones + np.tensordot(found, _tone_terms(tones), 1)


def _tone_terms(x: np.ndarray) -> np.ndarray:
    """The powers of gamma, to its second order; a bend of contrast; black and white."""
    logarithm = np.log(np.maximum(x, 1e-3))
    power = x * logarithm
    return np.stack([power, power * logarithm, x * (1 - x) * (1 - 2 * x), 1 - x, x])


def _equally_sharp(inner: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Both, the sharper one blurred as fits the other best, and by how much; a little blur for both besides."""
    lumas = [blurred(pixels @ LUMA, 0.6) for pixels in (inner, outer)]
    sharpness = [
        float(np.square(np.diff(luma, axis=0)).sum() + np.square(np.diff(luma, axis=1)).sum()) for luma in lumas
    ]
    is_inner_sharper = sharpness[0] > sharpness[1]
    sharp, soft = lumas if is_inner_sharper else lumas[::-1]
    left = [float(np.abs(blurred(sharp, deviation) - soft).sum()) for deviation in _BLURS]
    best = _BLURS[int(np.argmin(left))]
    inner = _blurred_all(inner, float(np.hypot(0.6, best if is_inner_sharper else 0)))
    outer = _blurred_all(outer, float(np.hypot(0.6, 0 if is_inner_sharper else best)))
    return inner, outer, -best if is_inner_sharper else best


def _ink(is_differing: np.ndarray, signed: np.ndarray, pair, lumas) -> tuple[float, float, float]:
    """Sign, step and tint, as `Difference` has them."""
    if not is_differing.any():
        return 1.0, 0.0, 0.0
    there = signed[is_differing]
    sign = float(abs(there.sum()) / max(np.abs(there).sum(), 1e-6))
    ring = _grown(_grown(is_differing)) & ~_grown(is_differing)
    if not ring.any():
        return sign, 1.0, 1.0
    found = []
    for with_ink, without in ((0, 1), (1, 0)):
        step = abs(float(lumas[without][is_differing].mean() - lumas[without][ring].mean()))
        ground = pair[without][is_differing]
        found.append(
            (step, min(_tint(pair[with_ink][is_differing] - ground, ink - ground) for ink in (0.0, 0.5, 1.0)))
        )
    step, tint = min(found, key=lambda one: max(one[0] / LARGEST_STEP, one[1] / LARGEST_TINT))
    return sign, step, tint


def _tint(change: np.ndarray, to_ink: np.ndarray) -> float:
    """How much of a change of pixels (P, 3) does not go towards an ink, of 0 to 1."""
    amount = (change * to_ink).sum(1) / np.maximum(np.square(to_ink).sum(1), 1e-4)
    missed = change - np.clip(amount, 0, 1)[:, None] * to_ink
    return float(np.sqrt(np.square(missed).sum() / max(np.square(change).sum(), 1e-6)))


def _grown(mask: np.ndarray) -> np.ndarray:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _steepness(luma: np.ndarray) -> np.ndarray:
    """How much the luminance changes within a pixel's neighborhood, a pixel."""
    highest, lowest = luma, luma
    for _ in range(2):
        padded = np.pad(highest, ((1, 1), (0, 0)), mode="edge"), np.pad(lowest, ((1, 1), (0, 0)), mode="edge")
        highest = np.maximum(np.maximum(padded[0][:-2], padded[0][2:]), highest).T
        lowest = np.minimum(np.minimum(padded[1][:-2], padded[1][2:]), lowest).T
    return (highest - lowest) / 2


def _blurred_all(pixels: np.ndarray, deviation: float) -> np.ndarray:
    return np.stack([blurred(pixels[..., channel], deviation) for channel in range(3)], -1)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 1.0
