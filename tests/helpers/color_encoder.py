"""A dual encoder that knows colors and nothing else: an image's embedding is its mean color, a text's its color."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from hf_clip.model.image_decoding_hf_clip import decode_image

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "gray": (128, 128, 128)}
SIDE, CELL = 16, 2


class ColorEncoder(torch.nn.Module):
    """Embeds cells of CELL pixels where `has_dense_features`; else whole images alone, as some towers do."""

    def __init__(self, has_dense_features: bool):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(20.0)))
        self.has_dense_features = has_dense_features
        self.seen: list[tuple[int, int]] = []

    device = property(lambda self: self.logit_scale.device)
    dtype = property(lambda self: self.logit_scale.dtype)

    def encode_image(self, pixel_values, normalize=True):
        embeddings = pixel_values.mean(dim=(2, 3))
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def dense_image_features(self, pixel_values, attention="query", normalize=True):
        self.seen.append(tuple(pixel_values.shape[-2:]))
        embeddings = F.avg_pool2d(pixel_values, CELL).permute(0, 2, 3, 1)
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def encode_text(self, input_ids, attention_mask=None, normalize=True):
        colors = torch.tensor(list(COLORS.values()), dtype=torch.float32)
        return F.normalize(colors[input_ids[:, 0]], dim=-1)

    def processor(self, images=None, text=None, size=None, crop_size=None, **kwargs):
        """What `ColorEncoder` takes as a processor."""
        if text is not None:
            return {"input_ids": torch.tensor([[list(COLORS).index(item)] for item in text])}
        side = SIDE if size is None else size["height"]
        small = [decode_image(image).resize((side, side), Image.Resampling.BOX) for image in images]
        return {"pixel_values": torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 255}


def colored(size: tuple[int, int], **rectangles: tuple[int, int, int, int]) -> Image.Image:
    """A gray image of (width, height) with a rectangle (left, top, right, bottom) of each color."""
    image = Image.new("RGB", size, COLORS["gray"])
    for color, box in rectangles.items():
        image.paste(COLORS[color], box)
    return image
