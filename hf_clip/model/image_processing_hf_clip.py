"""Images to `pixel_values`, by the arithmetic of OpenAI's transform, without torchvision.

OpenAI's transform is torchvision's `Resize(n, BICUBIC)`, `CenterCrop(n)`, `ToTensor()`, `Normalize`.
Given the decoder's image, the pixels here equal it bit for bit. transformers' own processor is off by one
pixel where the crop leaves an odd remainder. The other two of OpenCLIP's ways to a square are options of `size`:
squashing the image, and fitting its longer edge and filling the rest with a color.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import numpy as np
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.processing_utils import ImagesKwargs

from .arguments_hf_clip import refuse_unknown_arguments
from .image_decoding_hf_clip import ImageDecodeError, decode_image, on_all_cores
from .image_patches_hf_clip import padded_to, patches_of, shape_in_patches
from .remote_code_hf_clip import SavedWithCode

# An image of 1 x 50,000 pixels grows to 224 x 11,200,000 before all but the middle is cropped away: 7 GB.
# Where it would be more than this many pixels, only the middle is computed.
MAX_RESIZED_PIXELS = 2**26
# A JPEG decoded at a fraction of its size is still so many times larger than what it is resized to: closer to it,
# what the coarser decoding blurs would show.
JPEG_REDUCTION_MARGIN = 1.5
# Of a normalization. Beyond it, float32 would overflow.
LARGEST_NUMBER = 1e30
# What a NaFlex model takes of images.
_OF_PATCHES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


def resized_size(width: int, height: int, size) -> tuple[int, int]:
    """(width, height) after the resize.

    Args:
        size: with `shortest_edge`, to which the other is rounded down, as torchvision's `Resize(int)` does; with
            `longest_edge`, to which the other is rounded half to even, as OpenCLIP's `ResizeKeepRatio` does; or with
            `height` and `width`, which squash the image.
    """
    if size.height and size.width:
        return size.width, size.height
    if bool(size.shortest_edge) == bool(size.longest_edge):
        raise ValueError(f"`size={dict(size)}`: set 'shortest_edge', or 'longest_edge', or 'height' and 'width'.")
    short, long = min(width, height), max(width, height)
    if size.longest_edge:
        ratio = long / size.longest_edge
        return max(round(width / ratio), 1), max(round(height / ratio), 1)
    one, other = size.shortest_edge, int(size.shortest_edge * long / short)
    return (one, other) if width <= height else (other, one)


def center_box(width: int, height: int, crop_size) -> tuple[int, int, int, int]:
    """The crop (left, top, right, bottom) of torchvision's `CenterCrop`.

    Half a pixel is rounded to the even neighbour. Where the crop is larger than the image, the box reaches
    beyond the edges, at the right and below by the odd pixel more.
    """

    def start(extent: int, crop: int) -> int:
        return round((extent - crop) / 2) if extent >= crop else -((crop - extent) // 2)

    left, top = start(width, crop_size.width), start(height, crop_size.height)
    return left, top, left + crop_size.width, top + crop_size.height


def resize_box(image: Image.Image, size: tuple[int, int], resample: int, box: tuple[int, int, int, int]):
    """`image.resize(size, resample).crop(box)` without computing what the crop drops.

    The sampling points are the same but for rounding, which shows in the last bit of few pixels. At harsh
    edges the difference can be larger: Pillow clips between its two passes, and picks their order by the
    size. The box must lie within the resized image.
    """
    # Pillow keeps the box in single precision: cut the source first, so that the coordinates are small.
    scale_x, scale_y = image.width / size[0], image.height / size[1]
    # Bicubic and Lanczos reach 2 and 3 pixels far, times the scale where the image shrinks.
    margin_x, margin_y = (math.ceil(4 * max(scale, 1)) for scale in (scale_x, scale_y))
    left = max(0, math.floor(box[0] * scale_x) - margin_x)
    top = max(0, math.floor(box[1] * scale_y) - margin_y)
    right = min(image.width, math.ceil(box[2] * scale_x) + margin_x)
    bottom = min(image.height, math.ceil(box[3] * scale_y) + margin_y)
    part = image.crop((left, top, right, bottom))
    region = (
        box[0] * scale_x - left,
        box[1] * scale_y - top,
        min(box[2] * scale_x - left, part.width),
        min(box[3] * scale_y - top, part.height),
    )
    return part.resize((box[2] - box[0], box[3] - box[1]), resample, box=region)


class HFCLIPImagesKwargs(ImagesKwargs, total=False):
    fill_color: int
    max_num_patches: int | None
    patch_size: int | None


class HFCLIPImageProcessor(SavedWithCode, CLIPImageProcessorPil):
    """Turns anything that `decode_image` reads into `pixel_values`, as OpenAI's transform would.

    The arguments are those of transformers' `CLIPImageProcessor`: `size`, `crop_size`, `resample`,
    `image_mean`, `image_std`, `rescale_factor` and the `do_...` switches. The defaults are OpenAI's for 224
    pixels. `size={"longest_edge": n}` fits the whole image into the crop; `fill_color` (0 to 255) is the gray
    beyond its edges. `resample` may be a name, such as "bicubic".

    With `max_num_patches`, images are made into patches of `patch_size` pixels a side as NaFlex models take them, at
    their own aspect and as many as fit, whatever `size` and `crop_size` say. Beside `pixel_values` (images, patches,
    3 * patch_size**2) there are then `pixel_attention_mask` (images, patches), 0 where an image is padded to the
    longest of the call, and `spatial_shapes` (images, 2), its rows and columns of patches. `do_pad=True` pads to
    `max_num_patches` instead, as transformers' Siglip2ImageProcessor does. The numbers are that processor's.

    Raises:
        TypeError: for arguments of a call that it does not have. The error names the nearest.
        ValueError: for a normalization that is not finite (`image_std` of 0, a NaN in `image_mean`); for
            `max_num_patches` without a `patch_size`; for arguments of a call that cannot be honored
            (`do_convert_rgb=False`, another device than the CPU); for unlike sizes in one tensor.
        ImageDecodeError: (a ValueError) with the index of the first image that cannot be decoded.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = HFCLIPImagesKwargs
    fill_color = 0
    max_num_patches: int | None = None
    patch_size: int | None = None
    # None where images are made into patches, whatever transformers declares.
    size: Any
    crop_size: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**_readable(kwargs))
        if self.max_num_patches is not None:
            _require_patches(self.max_num_patches, self.patch_size)
            # What has no say shall not be saved, nor read.
            self.size = self.crop_size = None
            self.do_center_crop = False
            self.model_input_names = list(_OF_PATCHES)
        _require_finite(self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std)

    def preprocess(self, images, *args, **kwargs: Any) -> BatchFeature:
        known = {*self.valid_kwargs.__annotations__, "image_like_kwargs"}
        refuse_unknown_arguments(type(self).__name__, kwargs, known)
        if kwargs.get("do_convert_rgb") is False:
            raise ValueError("`do_convert_rgb=False`: images are always converted to RGB. Drop the argument.")
        if str(kwargs.get("device") or "cpu") != "cpu":
            raise ValueError(
                f"`device={kwargs['device']}`: images are prepared on the CPU. Drop the argument, and move what is "
                "returned with .to(device)."
            )
        return super().preprocess(images, *args, **_readable(kwargs))

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        if kwargs.get("max_num_patches") is not None:
            _require_patches(kwargs["max_num_patches"], kwargs.get("patch_size"))
            # Patches have their own sizes.
            kwargs |= {"do_resize": False, "do_center_crop": False}
        super()._validate_preprocess_kwargs(**kwargs)
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        _require_finite(*(kwargs.get(name) for name in names))

    @property
    def most_pixels(self) -> int:
        """Of what `resize_and_crop` gives at most: one number for each color each."""
        if self.max_num_patches is not None:
            return self.max_num_patches * (self.patch_size or 0) ** 2
        return self.crop_size["height"] * self.crop_size["width"]

    @property
    def reduced_edge(self) -> int | None:
        """No edge of a JPEG that is decoded at a fraction of its size may be shorter; None: it is decoded in full."""
        if not self.do_resize:
            return None
        # In patches, the shorter edge is never longer than that of a square of as many.
        largest = self.most_pixels**0.5 if self.max_num_patches else max(filter(None, dict(self.size).values()))
        return math.ceil(JPEG_REDUCTION_MARGIN * largest)

    def resize_and_crop(
        self, image, *, is_channels_first: bool | None = None, may_reduce_jpeg: bool = False
    ) -> np.ndarray:
        """The image that the model sees, before rescaling and normalizing: uint8 of shape (H, W, 3).

        Args:
            image: what `decode_image` takes.
            is_channels_first: see there.
            may_reduce_jpeg: decode a JPEG at 1/2, 1/4 or 1/8 where that leaves 1.5 times the size to which it is
                resized: several times faster, and not quite the same pixels. Those of photographs differ by less than
                1 level of 255 on average and by 4 at most, those of pure noise by 6 and 40. For training: what is
                measured should see the exact pixels.

        Raises:
            ImageDecodeError: if `image` cannot be decoded; see `decode_image` for what it takes.
        """
        least_edge = self.reduced_edge if may_reduce_jpeg else None
        decoded = decode_image(image, is_channels_first=is_channels_first, least_edge=least_edge)
        if self.max_num_patches is not None:
            shape = (cast(int, self.patch_size), self.max_num_patches) if self.do_resize else None
            return np.array(_resize_to_patches(decoded, shape, self.resample))
        return np.array(self._cropped(decoded))

    def _cropped(self, image: Image.Image) -> Image.Image:
        size = self.size if self.do_resize else None
        crop_size = self.crop_size if self.do_center_crop else None
        return _resize_and_crop(image, size, self.resample, crop_size, self.fill_color)

    def pixels_of(self, image: Image.Image) -> np.ndarray | None:
        """(3, H, W): the `pixel_values` that a call gives for one decoded image, on its own.

        None where a call makes something else of several images, patches or padding, and in classes that compute
        otherwise. Many images that are prepared so, each as soon as it is decoded, never lie in memory in full size.
        Raises ValueError as a call does.
        """
        kind = type(self)
        is_own = (
            kind._preprocess is HFCLIPImageProcessor._preprocess and kind.preprocess is HFCLIPImageProcessor.preprocess
        )
        if not is_own or self.max_num_patches is not None or getattr(self, "do_pad", None):
            return None
        switches = self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        _require_finite(*switches)
        return _by_table(self._cropped(image), _table(*switches))

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """The same images: paths are read by `decode_image`, and nothing is fetched from the network."""
        return image_url_or_urls

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        """One flat list: of an image, a batch array of 4 axes, or lists of images nested to any depth."""
        if isinstance(images, list | tuple):
            return [image for item in images for image in self._prepare_images_structure(item)]
        if getattr(images, "ndim", 0) == 4:
            return list(images)
        return [images]

    def _prepare_image_like_inputs(self, images, *args, input_data_format=None, **kwargs) -> list:
        is_first = None
        if input_data_format is not None:
            is_first = ChannelDimension(input_data_format) == ChannelDimension.FIRST

        def decoded_at(numbered: tuple[int, Any]) -> Image.Image:
            index, image = numbered
            try:
                return decode_image(image, is_channels_first=is_first)
            except ImageDecodeError as error:
                raise error.at(index, image) from error

        decoded = on_all_cores(decoded_at, list(enumerate(self._prepare_images_structure(images))))
        if not decoded:
            raise ImageDecodeError("images is empty. Pass at least one image.", "empty")
        return decoded

    def _preprocess(
        self,
        images: list[Image.Image],
        do_resize: bool,
        size,
        resample,
        do_center_crop: bool,
        crop_size,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        fill_color: int = 0,
        do_pad: bool | None = None,
        pad_size: Any = None,
        max_num_patches: int | None = None,
        patch_size: int | None = None,
        return_tensors=None,
        data_format=None,
        **kwargs,
    ) -> BatchFeature:
        table = _table(do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        if max_num_patches is not None and patch_size is not None:
            shape = (patch_size, max_num_patches) if do_resize else None

            def in_patches(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
                return patches_of(_by_table(_resize_to_patches(image, shape, resample), table), patch_size)

            patches = on_all_cores(in_patches, images)
            return _in_patches(patches, max_num_patches if do_pad else None, return_tensors)
        resize_to, crop_to = size if do_resize else None, crop_size if do_center_crop else None

        def pixels_of(image: Image.Image) -> Any:
            return _by_table(_resize_and_crop(image, resize_to, resample, crop_to, fill_color), table)

        pixel_values: Any = on_all_cores(pixels_of, images)
        if do_pad:
            pixel_values = list(self.pad(pixel_values, pad_size=pad_size))
        if return_tensors is not None:
            require_one_size(pixel_values)
        if data_format is not None and ChannelDimension(data_format) == ChannelDimension.LAST:
            pixel_values = [pixels.transpose(1, 2, 0) for pixels in pixel_values]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def require_one_size(pixel_values: Sequence[np.ndarray]) -> None:
    """Raises ValueError for images (C, H, W) that no tensor can hold together."""
    if len(shapes := {pixels.shape[1:] for pixels in pixel_values}) > 1:
        sizes = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes))
        raise ValueError(
            f"The images have unlike sizes, {sizes}, and `return_tensors` makes one tensor of them: crop them "
            "(`do_center_crop=True`), pad them (`do_pad=True`), or drop it."
        )


def _readable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with whole numbers in means and deviations as floats, and `resample` by its number.

    Raises ValueError for an unknown name of a filter.
    """
    arguments = dict(arguments)
    for name in ("image_mean", "image_std"):
        if isinstance(values := arguments.get(name), list | tuple):
            arguments[name] = [float(value) if type(value) is int else value for value in values]
    if isinstance(name := arguments.get("resample"), str):
        if name.upper() not in Image.Resampling.__members__:
            known = ", ".join(map(repr, map(str.lower, Image.Resampling.__members__)))
            raise ValueError(f"`resample={name}` is unknown: use one of {known}.")
        arguments["resample"] = Image.Resampling[name.upper()]
    return arguments


def _require_patches(max_num_patches: int, patch_size: int | None) -> None:
    """Raises ValueError unless both are 1 or more."""
    if max_num_patches < 1 or patch_size is None or patch_size < 1:
        raise ValueError(
            f"`max_num_patches={max_num_patches}` with `patch_size={patch_size}`: both must be 1 or more, such as 256 "
            "and 16."
        )


def _resize_to_patches(image: Image.Image, shape: tuple[int, int] | None, resample) -> Image.Image:
    """The image at the size that NaFlex sees it in; `shape` are `patch_size` and `max_num_patches`."""
    if shape is None:
        return image
    patch_size, max_num_patches = shape
    rows, columns = shape_in_patches(*image.size, patch_size, max_num_patches)
    size = (columns * patch_size, rows * patch_size)
    return image if image.size == size else image.resize(size, resample)


def _in_patches(patches: list[tuple[np.ndarray, tuple[int, int]]], length: int | None, return_tensors) -> BatchFeature:
    """A model's inputs of patches with their rows and columns, padded to `length`, or to the longest where None."""
    longest = max(len(one) for one, _ in patches)
    padded, masks = padded_to([one for one, _ in patches], max(longest, length or 0))
    data = {"pixel_values": padded, "pixel_attention_mask": masks, "spatial_shapes": [shape for _, shape in patches]}
    return BatchFeature(data=data, tensor_type=return_tensors)


def _by_table(image: Image.Image, table: np.ndarray | None) -> np.ndarray:
    """The image as (C, rows, columns), its values replaced by the table's."""
    pixels = np.array(image).transpose(2, 0, 1)
    if table is None:
        return pixels
    return np.stack([values[channel] for values, channel in zip(table, pixels, strict=True)])


def _require_finite(do_rescale, rescale_factor, do_normalize, image_mean, image_std) -> None:
    """Raises ValueError for numbers with which pixels would be NaN, infinite or all alike."""
    if do_rescale and not 0 < rescale_factor < LARGEST_NUMBER:
        raise ValueError(f"`rescale_factor={rescale_factor}` must be finite and above 0, such as 1/255.")
    if not do_normalize:
        return
    limits = {"image_mean": -LARGEST_NUMBER, "image_std": 1 / LARGEST_NUMBER}
    for name, values in (("image_mean", image_mean), ("image_std", image_std)):
        given = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
        numbers = [float(number) for number in given if isinstance(number, Real)]
        if len(numbers) < len(given):
            raise ValueError(f"`{name}={values}` holds what is no number: give one for each of the 3 channels.")
        if len(numbers) not in (1, 3):
            raise ValueError(f"`{name}={values}` has {len(numbers)} numbers: give one for each of the 3 channels.")
        if not all(limits[name] < number < LARGEST_NUMBER for number in numbers):
            needed = "finite" if name == "image_mean" else "finite and above 0"
            raise ValueError(
                f"`{name}={values}`: normalized pixels would not be finite. Its numbers must be {needed}."
            )


def _resize_and_crop(image: Image.Image, size, resample, crop_size, fill_color: int) -> Image.Image:
    width, height = image.size if size is None else resized_size(*image.size, size)
    box = (0, 0, width, height) if crop_size is None else center_box(width, height, crop_size)
    is_within = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
    if width * height > MAX_RESIZED_PIXELS and (width, height) != image.size and is_within:
        return resize_box(image, (width, height), resample, box)
    if (width, height) != image.size:
        image = image.resize((width, height), resample)
    if is_within or not fill_color:
        return image if box == (0, 0, width, height) else image.crop(box)
    canvas = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), (fill_color,) * 3)
    canvas.paste(image, (-box[0], -box[1]))
    return canvas


def _table(do_rescale, rescale_factor, do_normalize, image_mean, image_std) -> np.ndarray | None:
    """What the switches make of 8-bit values; None where they stay."""
    if not (do_rescale or do_normalize):
        return None
    mean, std = (image_mean, image_std) if do_normalize else (0, 1)
    return _value_table(rescale_factor if do_rescale else None, mean, std)


def _value_table(rescale_factor: float | None, mean, std) -> np.ndarray:
    """(3, 256) float32: what each 8-bit value becomes in each channel.

    A table has the bits of the arithmetic on whole images, `ToTensor`'s division by 255 and `Normalize`'s
    subtraction and division in float32, at a fraction of its time.
    """
    if rescale_factor is None:
        raise ValueError(
            "`do_rescale=False` with `do_normalize=True`: `image_mean` and `image_std` are of values in [0, 1]. Pass "
            "`do_normalize=False` too."
        )
    values = (np.arange(256) * rescale_factor).astype(np.float32)
    mean, std = (np.broadcast_to(np.asarray(item, dtype=np.float32), 3)[:, None] for item in (mean, std))
    return (values - mean) / std
