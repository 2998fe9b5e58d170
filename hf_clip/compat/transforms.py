"""Image transforms of `clip` and `open_clip` without torchvision, pixel for pixel.

Other than `HFCLIPImageProcessor` they resize an image in the mode that it has (palette, CMYK, with transparency) and
convert it to RGB behind that, and they do not heed the orientation that a photograph notes: as the originals do.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor, center_box, resized_size

# How often torchvision's RandomResizedCrop draws a box before it takes the middle.
_TRIALS = 10
_RATIO = (3 / 4, 4 / 3)


class Preprocess:
    """One PIL image to what a model takes: `preprocess(image)` gives float32 (3, rows, columns).

    Args:
        image_processor: says sizes, resampling and normalization.

    Raises:
        ValueError: for an image processor of a NaFlex model, whose images have no one shape.
    """

    def __init__(self, image_processor: HFCLIPImageProcessor):
        if image_processor.max_num_patches is not None:
            raise ValueError("A NaFlex model takes images at their own aspect: use hf_clip.load and its processor.")
        self.image_processor = image_processor

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return _as_tensor(self._fit(_checked(image)), self.image_processor)

    def _fit(self, image: Image.Image) -> Image.Image:
        settings = self.image_processor
        if settings.do_resize:
            size = resized_size(*image.size, settings.size)
            image = image if size == image.size else image.resize(size, settings.resample)
        if not settings.do_center_crop:
            return image
        box = center_box(*image.size, settings.crop_size)
        if not settings.fill_color:
            return image.crop(box)
        bands = len(image.getbands())
        canvas_size = (box[2] - box[0], box[3] - box[1])
        canvas = Image.new(
            image.mode, canvas_size, settings.fill_color if bands == 1 else (settings.fill_color,) * bands
        )
        if (palette := image.getpalette()) is not None:
            canvas.putpalette(palette)
        canvas.paste(image, (-box[0], -box[1]))
        return canvas


class RandomCrop:
    """OpenCLIP's transform for training: a random part of an image, resized to the model's square.

    With one seed of torch, the parts are those that torchvision's `RandomResizedCrop` draws.

    Args:
        image_processor: says the size and the normalization.
        scale: range of the part's fraction of the image's area.

    Raises:
        ValueError: for an image processor of a NaFlex model; for a range that is none.
    """

    def __init__(self, image_processor: HFCLIPImageProcessor, scale: tuple[float, float] = (0.9, 1.0)):
        if not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
            raise ValueError(f"`scale={scale}`: pass the least and the largest fraction of the area, as (0.9, 1.0).")
        self.image_processor = Preprocess(image_processor).image_processor
        self.scale = (float(scale[0]), float(scale[1]))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        top, left, height, width = random_box(*_checked(image).size, self.scale)
        settings = self.image_processor
        square = settings.crop_size or settings.size
        part = image.crop((left, top, left + width, top + height))
        return _as_tensor(part.resize((square.width, square.height), Image.Resampling.BICUBIC), settings)


def train_transform(image_processor: HFCLIPImageProcessor, aug_cfg: Any = None) -> RandomCrop:
    """OpenCLIP's training transform for its `aug_cfg`, a mapping or an `AugmentationCfg`, of which `scale` is there.

    Raises:
        ValueError: for augmentations that are not there.
    """
    given = {} if aug_cfg is None else dict(aug_cfg if isinstance(aug_cfg, Mapping) else vars(aug_cfg))
    scale = given.pop("scale", (0.9, 1.0))
    if wrong := [name for name, value in given.items() if value]:
        raise ValueError(
            f"`aug_cfg` has {', '.join(wrong)}: `scale` alone is there; `hf-clip train` has further augmentations."
        )
    return RandomCrop(image_processor, scale)


def random_box(width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of an image, drawn from torch's global generator."""
    # In float32, as torchvision draws it.
    least, largest = torch.tensor(_RATIO).log().tolist()
    for _ in range(_TRIALS):
        area = width * height * torch.empty(1).uniform_(*scale).item()
        ratio = torch.empty(1).uniform_(least, largest).exp().item()
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(torch.randint(0, height - rows + 1, (1,)))
            return top, int(torch.randint(0, width - columns + 1, (1,))), rows, columns
    # The largest part in the middle of a ratio that is allowed.
    rows = min(height, round(width / _RATIO[0])) if width < height else height
    columns = min(width, round(height * _RATIO[1])) if width >= height else width
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _checked(image: Any) -> Image.Image:
    """The image. Raises TypeError for what is none, with the right call."""
    if isinstance(image, Image.Image):
        return image
    call = f"Image.open({image!r:.60})" if isinstance(image, str) else "image"
    raise TypeError(
        f"The transform takes one PIL image, not {type(image).__name__}: call preprocess({call}), for each image."
    )


def _as_tensor(image: Image.Image, settings: HFCLIPImageProcessor) -> torch.Tensor:
    """(3, rows, columns), by the arithmetic of torchvision's `ToTensor` and `Normalize`."""
    values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().to(torch.float32)
    is_of_bytes = math.isclose(settings.rescale_factor, 1 / 255)
    values = values.div(255) if is_of_bytes else values.mul(settings.rescale_factor)
    if not settings.do_normalize:
        return values
    mean, std = (torch.tensor(numbers, dtype=torch.float32) for numbers in (settings.image_mean, settings.image_std))
    return values.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))
