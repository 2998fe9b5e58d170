"""Thresholds whose error is known: found on one part of labeled images, measured on a second, checked on a third."""

# Shapes: N images, C concepts.

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

# The check's own sampling error should be the smaller one: the third part is larger than the second.
PARTS = (0.4, 0.2, 0.4)


@dataclass(frozen=True)
class OperatingPoint:
    """What is asked of thresholds.

    Attributes:
        false_positive_rate: fraction of the images without a concept that may be answered "yes".
        false_negative_rate: fraction of the images with it that may be answered "no"; None: the same. What lies
            between the two thresholds is for somebody to look at.
        parts: of the images for thresholds, for their measurement, and for the check of that.
        seed: of the division.
        confidence: of intervals.

    Raises:
        ValueError: for rates and a confidence that are not between 0 and 1, and parts that do not add up to 1.
    """

    false_positive_rate: float
    false_negative_rate: float | None = None
    parts: tuple[float, float, float] = PARTS
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self):
        for name in ("false_positive_rate", "false_negative_rate", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"`{name}={value}` is a fraction: set it between 0 and 1.")
        if len(self.parts) != 3 or min(self.parts) <= 0 or not math.isclose(sum(self.parts), 1):
            raise ValueError(f"`parts={self.parts}`: give three fractions of the images that add up to 1.")

    @property
    def missed(self) -> float:
        """The false negative rate that is asked for."""
        return self.false_positive_rate if self.false_negative_rate is None else self.false_negative_rate


@dataclass
class OperatingPoints:
    """What `find_operating_points` found.

    Attributes:
        asked: what was asked for.
        images: how many each of the three parts has.
        concepts: for each label its thresholds (`yes_from`, `no_below`; None where the first part has no image to find
            one on), and of the second part `false_positive_rate`, `false_negative_rate`, `recall` (answered "yes" of
            those with the concept) and `look_at_it_rate`, each with its interval; `third_part` has the false positive
            rate there, and whether it lies in the second's interval.
        groups: the rates of the second part for each value of each column.
    """

    asked: OperatingPoint
    images: tuple[int, int, int]
    concepts: list[dict[str, Any]]
    groups: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    @property
    def yes_from(self) -> list[float]:
        """Scores from which each concept is answered "yes"; infinity where no threshold was found."""
        return [math.inf if row["yes_from"] is None else row["yes_from"] for row in self.concepts]

    @property
    def no_below(self) -> list[float]:
        """Scores below which each concept is answered "no"; -infinity where no threshold was found."""
        return [-math.inf if row["no_below"] is None else row["no_below"] for row in self.concepts]

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "asked": {**asdict(self.asked), "false_negative_rate": self.asked.missed},
            "images": list(self.images),
            "concepts": self.concepts,
            "by": self.groups,
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        asked, counts = self.asked, " + ".join(map(str, self.images))
        lines = [
            f"operating points: {asked.false_positive_rate:g} false positives and {asked.missed:g} false negatives "
            f"allowed ({counts} images; {100 * asked.confidence:g}% intervals of the second part)"
        ]
        width = max(5, *(len(row["label"]) for row in self.concepts)) + 2
        lines.append(
            f"{'label':{width}}{'yes from':>9}{'no below':>10}   {'false positives':22}   {'false negatives':22}"
            f"{'look at it':>10}{'third':>8}"
        )
        for row in self.concepts:
            third = row["third_part"]["false_positive_rate"]["rate"]
            mark = "" if row["third_part"]["is_in_interval"] in (True, None) else "!"
            lines.append(
                f"{row['label']:{width}}{_number(row['yes_from']):>9}{_number(row['no_below']):>10}   "
                f"{described(row['false_positive_rate']):22}   {described(row['false_negative_rate']):22}"
                f"{_number(row['look_at_it_rate']['rate']):>10}{_number(third):>7}{mark}".rstrip()
            )
        for column, values in self.groups.items():
            for value, rows in values.items():
                lines += ["", f"{column}: {value}"]
                lines += [
                    f"{row['label']:{width}}{'':19}   {described(row['false_positive_rate']):22}   "
                    f"{described(row['false_negative_rate'])}"
                    for row in rows
                ]
        outside = [row["label"] for row in self.concepts if row["third_part"]["is_in_interval"] is False]
        if outside:
            lines.append(f"! in the third part the false positive rate is outside the interval: {', '.join(outside)}")
        return "\n".join(lines)


def interval(hits: int, total: int, confidence: float = 0.95) -> dict[str, Any]:
    """A rate with its exact interval (Clopper and Pearson 1934): `rate`, `low`, `high`, `hits`, `images`.

    Raises:
        ImportError: without scipy.
    """
    from scipy.stats import binomtest

    if not total:
        return {"rate": None, "low": None, "high": None, "hits": 0, "images": 0}
    found = binomtest(hits, total).proportion_ci(confidence, method="exact")
    return {"rate": hits / total, "low": float(found.low), "high": float(found.high), "hits": hits, "images": total}


def described(rate: Mapping[str, Any]) -> str:
    """A rate and its interval in few characters."""
    return "-" if rate["rate"] is None else f"{rate['rate']:.4f} [{rate['low']:.4f}, {rate['high']:.4f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def find_operating_points(
    scores: np.ndarray,
    is_true: np.ndarray,
    labels: Sequence[str],
    asked: OperatingPoint,
    groups: Mapping[str, Sequence[str | None]] | None = None,
) -> OperatingPoints:
    """Thresholds for each concept, and what they do to images that had no part in finding them.

    Args:
        scores: (N, C), higher where a concept is likelier.
        is_true: (N, C) of bool, whether an image has a concept.
        labels: the names of the C concepts.
        asked: rates and parts.
        groups: for each column its value for each image, or None.

    Raises:
        ImportError: without scipy.
        ValueError: for so few images that a part has none.
    """
    first_N, second_N, third_N = _divided(len(scores), asked)
    points = []
    for at, label in enumerate(labels):
        yes, no = _thresholds(scores[first_N, at], is_true[first_N, at], asked)
        measured = _measured(scores[second_N, at], is_true[second_N, at], yes, no, asked.confidence)
        third = _measured(scores[third_N, at], is_true[third_N, at], yes, no, asked.confidence)["false_positive_rate"]
        known = measured["false_positive_rate"]
        is_known = known["rate"] is not None and third["rate"] is not None
        is_within = known["low"] <= third["rate"] <= known["high"] if is_known else None
        check = {"false_positive_rate": third, "is_in_interval": is_within}
        points.append({"label": label, "yes_from": yes, "no_below": no, **measured, "third_part": check})
    found = OperatingPoints(asked, (len(first_N), len(second_N), len(third_N)), points)
    for column, values in (groups or {}).items():
        of_second = np.array([values[at] for at in second_N], dtype=object)
        found.groups[column] = {
            value: [
                {
                    "label": row["label"],
                    **_measured(
                        scores[rows_N, at], is_true[rows_N, at], row["yes_from"], row["no_below"], asked.confidence
                    ),
                }
                for at, row in enumerate(points)
            ]
            for value in sorted({value for value in of_second if value is not None})
            for rows_N in [second_N[of_second == value]]
        }
    return found


def _divided(count: int, asked: OperatingPoint) -> list[np.ndarray]:
    order_N = np.random.default_rng(asked.seed).permutation(count)
    ends = np.round(np.cumsum(asked.parts[:2]) * count).astype(int)
    found = [np.sort(part) for part in np.split(order_N, ends)]
    if not all(map(len, found)):
        raise ValueError(f"{count} labeled images cannot be divided into three parts: give more.")
    return found


def _thresholds(scores: np.ndarray, is_true: np.ndarray, asked: OperatingPoint) -> tuple[float | None, float | None]:
    """The lowest "yes" and the highest "no" that keep to the rates on these images."""
    without, with_it = np.sort(scores[~is_true])[::-1], np.sort(scores[is_true])
    yes = no = None
    if len(without):
        # As many may lie at it or above; the next one lies below.
        allowed = min(math.floor(asked.false_positive_rate * len(without) + 1e-9), len(without) - 1)
        yes = float(np.nextafter(without[allowed], np.inf, dtype=scores.dtype))
    if len(with_it):
        no = float(with_it[min(math.floor(asked.missed * len(with_it) + 1e-9), len(with_it) - 1)])
    if yes is not None and no is not None:
        # Where both rates are kept at once, nothing is left to look at.
        no = min(no, yes)
    return yes, no


def _measured(
    scores: np.ndarray, is_true: np.ndarray, yes: float | None, no: float | None, confidence: float
) -> dict[str, dict[str, Any]]:
    is_yes = scores >= (math.inf if yes is None else yes)
    is_no = scores < (-math.inf if no is None else no)
    with_it, without = int(is_true.sum()), int((~is_true).sum())
    return {
        "false_positive_rate": interval(int((is_yes & ~is_true).sum()), without, confidence),
        "false_negative_rate": interval(int((is_no & is_true).sum()), with_it, confidence),
        "recall": interval(int((is_yes & is_true).sum()), with_it, confidence),
        "look_at_it_rate": interval(int((~is_yes & ~is_no).sum()), len(scores), confidence),
    }
