"""The temperature at which scores come nearest to probabilities.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks", 2017, section 4.2.
"""

# Shapes: N images, C classes.

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from hf_clip.evaluation.metrics import expected_calibration_error

LOWEST, HIGHEST = 0.01, 100.0


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        temperature: that makes the classes of the images likeliest; LOWEST or HIGHEST where none does.
        error: expected calibration error of the scores at that temperature, on the same images: one number is
            fitted to all of them, so it flatters little where they are many.
        error_before: likewise at the classifier's former temperature.
        images: how many there were.
    """

    temperature: float
    error: float
    error_before: float
    images: int

    def to_dict(self) -> dict:
        """The numbers, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        errors = f"calibration error {self.error:.3f}, {self.error_before:.3f} without it"
        return f"temperature {self.temperature:.4g}: {errors} ({self.images} images)"


def fit_temperature(logits: torch.Tensor, class_indices: torch.Tensor, *, has_sigmoid: bool = False) -> float:
    """The temperature, from LOWEST to HIGHEST, at which the classes are likeliest: softmax, or a sigmoid each.

    The loss is convex in 1 / temperature, so that it has one least value, which is found to 1e-4 of its size. Raises
    ValueError if there are no images, or a class is none of the logits'.
    """
    if not len(logits) or not ((class_indices >= 0) & (class_indices < logits.shape[1])).all():
        raise ValueError(f"`class_indices` must be from 0 to {logits.shape[1] - 1}, of one image or more.")

    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        total = 0.0
        for logits_BC, classes in zip(logits.split(1024), class_indices.split(1024), strict=True):
            scaled = logits_BC.double() / math.exp(log_temperature)
            if has_sigmoid:
                target = F.one_hot(classes, scaled.shape[1]).double()
                total += F.binary_cross_entropy_with_logits(scaled, target, reduction="sum").item()
            else:
                total += F.cross_entropy(scaled, classes, reduction="sum").item()
        return total

    bounds = math.log(LOWEST), math.log(HIGHEST)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    # The bounds themselves are not tried.
    return math.exp(min((bounds[0], float(found.x), bounds[1]), key=loss))


def calibrate(classifier, images: Iterable, classes: Sequence[int | str], *, batch_size: int = 32) -> Calibration:
    """Fits a `ZeroShotClassifier`'s temperature to labeled images, and sets it.

    Args:
        classifier: its rejection class, if any, takes no part.
        images: images, as `ZeroShotClassifier.predict` takes them.
        classes: of each image, the class's index or label.

    Raises:
        ValueError: if a label is unknown, or there is not one class an image; what `predict` raises.
    """
    index_of = {label: index for index, label in enumerate(classifier.labels)}
    if unknown := sorted({each for each in classes if isinstance(each, str) and each not in index_of}):
        raise ValueError(f"{unknown[0]!r} is none of the classifier's labels: give those, or their indices.")
    indices_N = torch.tensor([index_of[each] if isinstance(each, str) else each for each in classes])
    embeddings_ND = classifier.embed(images, batch_size)
    if len(embeddings_ND) != len(indices_N):
        raise ValueError(f"{len(embeddings_ND)} images and {len(indices_N)} classes: give one for each.")
    found = calibrate_embeddings(classifier, embeddings_ND, indices_N)
    classifier.temperature = found.temperature
    return found


def calibrate_embeddings(classifier, image_embeds: torch.Tensor, class_indices: torch.Tensor) -> Calibration:
    """What `calibrate` finds, by (N, D) embeddings of images and (N,) class indices; the classifier stays as it is.

    Raises:
        ValueError: as `fit_temperature`.
    """
    batches = image_embeds.split(1024)
    logits_NC = torch.cat([classifier.logits(embeddings_BD).cpu() for embeddings_BD in batches])
    temperature = fit_temperature(logits_NC, class_indices, has_sigmoid=classifier.has_sigmoid)

    def error(at: float) -> float:
        scores_NC = (logits_NC / at).sigmoid() if classifier.has_sigmoid else (logits_NC / at).softmax(-1)
        confidence_N, guesses_N = scores_NC.max(-1)
        return expected_calibration_error(confidence_N, guesses_N == class_indices)

    return Calibration(temperature, error(temperature), error(classifier.temperature), len(class_indices))
