"""Whether a device computes what a CPU does: eight texts and images on both, compared."""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

logger = logging.getLogger(__name__)

# Types of devices on which other packages were seen to give wrong embeddings, without an error.
DOUBTED = {"mps"}
# Between elements of unit embeddings; in half precision, those of weights rounded to it.
MAX_DIFFERENCE, MAX_DIFFERENCE_IN_HALF = 1e-3, 3e-2
TEXTS = (
    "a photo of a cat.", "two dogs on a beach at sunset", "red", "a diagram with three arrows", "7 o'clock",
    "the view from a mountain over clouds, in the early morning", "a bowl of fruit " * 8, "no text at all",
)  # fmt: skip


@dataclass(frozen=True)
class DeviceCheck:
    """The largest differences between elements of the unit embeddings on a device and on the CPU."""

    device: str
    images: float
    texts: float
    limit: float

    @property
    def is_passed(self) -> bool:
        # Not `>`: what is no number is a difference.
        return self.images <= self.limit and self.texts <= self.limit

    def __str__(self) -> str:
        verdict = "it computes correctly" if self.is_passed else "it computes WRONG: use another device"
        return (
            f"{self.device}: largest difference from the CPU {self.images:.1e} of image embeddings, {self.texts:.1e} "
            f"of text embeddings (at most {self.limit:.0e}): {verdict}"
        )


def sample_images() -> list[Image.Image]:
    """Eight images of slopes and noise, always the same."""
    draw = np.random.default_rng(0)
    coarse = [Image.fromarray(draw.integers(0, 256, (7, 5 + count, 3), dtype=np.uint8)) for count in range(8)]
    return [image.resize((image.width * 40, 280), Image.Resampling.BILINEAR) for image in coarse]


def compare_with_cpu(model: Any, processor: Any) -> DeviceCheck:
    """Runs a model where it is, and a float32 copy of it on the CPU, on the same texts and images.

    Args:
        model: a dual encoder. processor: its processor.
    """
    inputs = processor(images=sample_images(), text=list(TEXTS), return_tensors="pt")
    reference = copy.deepcopy(model).to("cpu", torch.float32)
    found, expected = _unit_embeddings(model, inputs), _unit_embeddings(reference, inputs)
    # NaN of either is NaN here.
    images, texts = [(one - other).abs().max().item() for one, other in zip(found, expected, strict=True)]
    limit = MAX_DIFFERENCE if model.dtype in (torch.float32, torch.float64) else MAX_DIFFERENCE_IN_HALF
    return DeviceCheck(str(model.device), images, texts, limit)


def _unit_embeddings(model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    there = {name: value.to(model.device) for name, value in inputs.items()}
    text = {name: there[name] for name in ("input_ids", "attention_mask") if name in there}
    image = {name: there[name] for name in there if name not in ("input_ids", "attention_mask", "token_type_ids")}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            embeddings = model.encode_image(**image), model.encode_text(**text)
    finally:
        model.train(was_training)
    image_BD, text_BD = (F.normalize(one.float().cpu(), dim=-1) for one in embeddings)
    return image_BD, text_BD


def warn_of_device(model: Any, processor: Any) -> None:
    """On a doubted device, compares once a process and model with the CPU, and warns where it computes wrongly."""
    device = getattr(model, "device", None)
    if device is None or device.type not in DOUBTED or vars(model).get("_device_checked") == str(device):
        return
    vars(model)["_device_checked"] = str(device)
    try:
        check = compare_with_cpu(model, processor)
    # A check must not end what works without it: memory, models that are no dual encoders of images.
    except Exception as error:
        logger.warning("%s could not be compared with the CPU: %s", device, " ".join(str(error).split())[:200])
        return
    if not check.is_passed:
        logger.warning("%s.", check)
