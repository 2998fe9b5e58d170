"""What the transforms of `clip` and `open_clip` take from torchvision, as it documents them, for PIL images alone."""

import math

import numpy as np
import torch
from PIL import Image

InterpolationMode = Image.Resampling


def get_dimensions(image):
    return [len(image.getbands()), image.height, image.width]


def resize(image, size, interpolation=InterpolationMode.BILINEAR):
    rows, columns = size
    return image.resize((columns, rows), interpolation)


def crop(image, top, left, height, width):
    return image.crop((left, top, left + width, top + height))


def pad(image, padding, fill=0):
    left, top, right, bottom = padding
    bands = len(image.getbands())
    canvas = Image.new(
        image.mode, (left + image.width + right, top + image.height + bottom), fill if bands == 1 else (fill,) * bands
    )
    if image.mode == "P":
        canvas.putpalette(image.getpalette())
    canvas.paste(image, (left, top))
    return canvas


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    def __init__(self, size, interpolation=InterpolationMode.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        if not isinstance(self.size, int):
            return resize(image, self.size, self.interpolation)
        short, long = sorted(image.size)
        other = int(self.size * long / short)
        rows_and_columns = (other, self.size) if image.width <= image.height else (self.size, other)
        return resize(image, rows_and_columns, self.interpolation)


class CenterCrop:
    def __init__(self, size):
        self.rows, self.columns = (size, size) if isinstance(size, int) else size

    def __call__(self, image):
        top, left = round((image.height - self.rows) / 2), round((image.width - self.columns) / 2)
        return crop(image, top, left, self.rows, self.columns)


class ToTensor:
    def __call__(self, image):
        return to_tensor(image)


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, tensor):
        return tensor.sub(self.mean).div(self.std)


class RandomResizedCrop:
    def __init__(self, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=InterpolationMode.BILINEAR):
        self.size = (size, size) if isinstance(size, int) else size
        self.scale, self.ratio, self.interpolation = scale, ratio, interpolation

    def box(self, image):
        """Top, left, height, width."""
        width, height = image.size
        logs = torch.log(torch.tensor(self.ratio))
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(self.scale[0], self.scale[1]).item()
            ratio = torch.exp(torch.empty(1).uniform_(logs[0], logs[1])).item()
            columns, rows = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            if columns <= width and rows <= height:
                top = torch.randint(0, height - rows + 1, size=(1,)).item()
                return top, torch.randint(0, width - columns + 1, size=(1,)).item(), rows, columns
        if width / height < self.ratio[0]:
            columns, rows = width, int(round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            columns, rows = int(round(height * self.ratio[1])), height
        else:
            columns, rows = width, height
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def __call__(self, image):
        return resize(crop(image, *self.box(image)), self.size, self.interpolation)
