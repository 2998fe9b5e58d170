"""Models for tests of search: one gives every gray value its own embedding, one sees eight by eight pixels."""

import hashlib
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from hf_clip.model.image_decoding_hf_clip import decode_image
from tests.helpers.toys import LookupEncoder

WIDTH = 64
# Threads may share an encoder.
_WRITING = threading.Lock()


class GrayEncoder(LookupEncoder):
    """A `LookupEncoder` of 256 gray values; a text "gray 7" lies near the image of that value, others anywhere.

    `encoded` is how many images it encoded.
    """

    def __init__(self, seed: int = 0):
        draw = np.random.default_rng(seed)
        images = draw.standard_normal((256, WIDTH)) + 1.0
        super().__init__(images, {"": [0.0] * WIDTH})
        # Looked up by `encode_text`: half of the direction of its image, and half that of all texts.
        self.of_all_texts = torch.nn.Parameter(torch.as_tensor(draw.standard_normal(WIDTH), dtype=torch.float32))
        self.wordings: list[str] = []

    @property
    def encoded(self) -> int:
        # The probe image and others at the making of an index are encoded one by one as well.
        return sum(count for kind, count, _ in self.calls if kind == "image")

    def encode_text(self, input_ids, attention_mask=None, normalize=True):
        found = [self._of_text(self.wordings[place]) for place in input_ids[:, 0]]
        return self._encode("text", torch.stack(found), torch.arange(len(found)), normalize)

    def _of_text(self, text: str) -> torch.Tensor:
        if text.startswith("gray "):
            direction = torch.nn.functional.normalize(self.image_embeds[int(text.split()[1])], dim=0)
        else:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
            direction = torch.as_tensor(np.random.default_rng(seed).standard_normal(WIDTH) / 4, dtype=torch.float32)
        return direction + torch.nn.functional.normalize(self.of_all_texts, dim=0)

    def processor(self, images=None, text=None, **kwargs):
        if text is None:
            return LookupEncoder.processor(self, [decode_image(image).crop((0, 0, 8, 8)) for image in images])
        with _WRITING:
            self.wordings += text
            first = len(self.wordings) - len(text)
        ids = torch.arange(first, first + len(text))[:, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class ThumbnailEncoder(GrayEncoder):
    """An encoder whose embedding of an image is the image, at 8 x 8 gray pixels."""

    def encode_image(self, pixel_values, normalize=True):
        values = pixel_values.mean(1).flatten(1) / 255 - 0.45
        return self._encode("image", values, torch.arange(len(values)), normalize)

    def processor(self, images=None, text=None, **kwargs):
        if text is not None:
            return super().processor(text=text)
        return LookupEncoder.processor(self, [decode_image(image).resize((8, 8)) for image in images])


def scene(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A drawing of fourteen shapes in colors, by chance."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(draw.integers(120, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for number in range(14):
        center, reach = draw.uniform(0, 1, 2) * size, draw.uniform(0.05, 0.25, 2) * size
        box = [*(center - reach), *(center + reach)]
        (pen.ellipse if number % 2 else pen.rectangle)(box, tuple(draw.integers(0, 256, 3).tolist()))
    return image


def write_gray(file: Path, value: int, size: int = 8, **options) -> Path:
    """An image file (PNG or what the name says) of one gray value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(file, **options)
    return file
