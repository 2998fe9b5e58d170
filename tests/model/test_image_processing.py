"""The image processor equals OpenAI's transform bit for bit, and can be saved, loaded and configured."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

import hf_clip  # noqa: F401  registers the processor with AutoImageProcessor
from hf_clip.model import image_processing_hf_clip
from hf_clip.model.configuration_hf_clip import HFCLIPConfig
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from tests.helpers.counts import soak_count

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    data = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(data)


def processor_of(edge: int, crop: int | None = None, **options) -> HFCLIPImageProcessor:
    return HFCLIPImageProcessor(size={"shortest_edge": edge}, crop_size=crop or edge, **options)


def torchvision_pixels(image: Image.Image, edge: int, crop: int) -> torch.Tensor:
    """uint8 (crop, crop, 3): `Resize(edge, BICUBIC)` and `CenterCrop(crop)` as torchvision documents them."""
    width, height = image.size
    if width <= height:
        width, height = edge, int(edge * height / width)
    else:
        width, height = int(edge * width / height), edge
    values = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    pad_x, pad_y = max(crop - width, 0), max(crop - height, 0)
    values = np.pad(values, ((pad_y // 2, (pad_y + 1) // 2), (pad_x // 2, (pad_x + 1) // 2), (0, 0)))
    top = int(round((values.shape[0] - crop) / 2.0))
    left = int(round((values.shape[1] - crop) / 2.0))
    return torch.from_numpy(values[top : top + crop, left : left + crop].copy())


def openai_transform(image: Image.Image, edge: int, crop: int, mean=OPENAI_MEAN, std=OPENAI_STD) -> torch.Tensor:
    values = torchvision_pixels(image, edge, crop).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    return values.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))


def random_sizes(count: int) -> list[tuple[int, int]]:
    sizes = np.random.default_rng(1).integers(1, 400, (count, 2)).tolist()
    return [(width, height) for width, height in sizes if max(width, height) < 30 * min(width, height)]


SIZES = [
    (224, 224),
    (225, 224),
    (224, 227),
    (640, 480),
    (481, 641),
    (1, 1),
    (1, 9),
    (9, 1),
    (2, 33),
    (100, 30),
]


@pytest.mark.parametrize("edge", [224, 64, 33])
def test_pixel_values_equal_openais_transform_bit_for_bit(edge):
    processor = processor_of(edge)
    for width, height in SIZES + random_sizes(soak_count(20, 500)):
        image = noise(width, height)
        values = processor(images=[image], return_tensors="pt")["pixel_values"]
        assert values.dtype == torch.float32 and values.shape == (1, 3, edge, edge)
        assert torch.equal(values[0], openai_transform(image, edge, edge)), (width, height)


@pytest.mark.parametrize("crop", [31, 32, 40, 41])
def test_a_crop_of_another_size_than_the_resize(crop):
    """Smaller crops round half to even, larger ones pad with black, by the odd pixel more at the right."""
    for width, height in [(32, 32), (32, 35), (37, 32), (34, 32), (32, 90)]:
        ours = processor_of(32, crop)(images=noise(width, height), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, openai_transform(noise(width, height), 32, crop)), (width, height)


def test_odd_remainder_is_rounded_half_to_even():
    """The columns carry their numbers. Remainders of 1, 3, 5 pixels start at columns 0, 2, 2."""
    for remainder, start in [(1, 0), (3, 2), (5, 2), (7, 4)]:
        columns = np.broadcast_to(np.arange(16 + remainder, dtype=np.uint8)[:, None], (16, 16 + remainder, 3))
        assert processor_of(16).resize_and_crop(columns)[0, 0, 0] == start


def test_resize_and_crop_is_what_call_rescales_and_normalizes():
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    processor = processor_of(64, image_mean=mean, image_std=std)
    image = noise(91, 70)
    cropped = processor.resize_and_crop(image)
    assert cropped.dtype == np.uint8 and cropped.shape == (64, 64, 3)
    cropped[0, 0] = 0  # The caller owns the array: augmentations may write into it.
    assert np.array_equal(processor.resize_and_crop(image), torchvision_pixels(image, 64, 64))
    values = processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(values, openai_transform(image, 64, 64, mean, std))


def test_the_decoders_image_is_what_is_resized():
    stream = io.BytesIO()
    noise(80, 66).quantize(8).save(stream, "PNG", transparency=2)
    decoded = decode_image(stream.getvalue())
    values = processor_of(64)(images=stream.getvalue(), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(values, openai_transform(decoded, 64, 64))


def test_an_extremely_long_image_is_not_grown_before_it_is_cropped(monkeypatch):
    """224 x 13,440,000 pixels are 9 GB. The cheap way is held to the full one at sizes that both can do."""
    assert processor_of(224).resize_and_crop(noise(1, 60_000)).shape == (224, 224, 3)
    for width, height in [(1, 300), (300, 1), (2, 700)]:
        smooth = noise(max(width // 8, 1), max(height // 8, 1)).resize((width, height))
        full = processor_of(64).resize_and_crop(smooth).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(image_processing_hf_clip, "MAX_RESIZED_PIXELS", 0)
            assert np.abs(processor_of(64).resize_and_crop(smooth) - full).max() <= 1


def test_switches():
    image = noise(50, 40)
    raw = processor_of(32, do_rescale=False, do_normalize=False)(images=image, return_tensors="np")
    assert raw["pixel_values"].dtype == np.uint8
    assert np.array_equal(raw["pixel_values"][0].transpose(1, 2, 0), torchvision_pixels(image, 32, 32))
    scaled = processor_of(32, do_normalize=False)(images=image, return_tensors="np")["pixel_values"]
    assert np.array_equal(scaled, raw["pixel_values"].astype(np.float32) / np.float32(255))
    squashed = HFCLIPImageProcessor(size={"height": 20, "width": 30}, do_center_crop=False)(images=image)
    assert squashed["pixel_values"][0].shape == (3, 20, 30)
    whole = processor_of(32, do_resize=False, do_center_crop=False)(images=image)
    assert whole["pixel_values"][0].shape == (3, 40, 50)
    with pytest.raises(ValueError, match="do_normalize"):
        processor_of(32)(images=image, do_rescale=False)
    with pytest.raises(ValueError, match="shortest_edge"):
        HFCLIPImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})(images=image)


@pytest.mark.parametrize("interpolation", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("fill", [0, 114])
def test_the_whole_image_fits_into_the_crop(interpolation, fill, tmp_path: Path):
    """OpenCLIP's "longest": `ResizeKeepRatio(n, longest=1)`, then `CenterCropOrPad(n, fill)`. The odd pixel of the
    rest is at the right and below."""
    options = {"size": {"longest_edge": 20}, "crop_size": 20, "resample": interpolation, "fill_color": fill}
    HFCLIPImageProcessor(**options).save_pretrained(tmp_path)
    processor = HFCLIPImageProcessor.from_pretrained(tmp_path)
    for width, height, inner in [(40, 30, (20, 15)), (30, 47, (13, 20)), (20, 20, (20, 20)), (7, 3, (20, 9))]:
        image = noise(width, height)
        expected = np.full((20, 20, 3), fill, dtype=np.uint8)
        left, top = (20 - inner[0]) // 2, (20 - inner[1]) // 2
        expected[top : top + inner[1], left : left + inner[0]] = np.asarray(image.resize(inner, interpolation))
        assert np.array_equal(processor.resize_and_crop(image), expected), (width, height)


def test_batches_of_any_nesting_and_kind():
    processor = processor_of(16)
    one = processor(images=noise(20, 18), return_tensors="pt")["pixel_values"]
    array = np.asarray(noise(20, 18))
    stack = torch.from_numpy(np.stack([array, array])).permute(0, 3, 1, 2)
    for images in ([noise(20, 18), array], [[array], (array,)], np.stack([array, array]), stack):
        assert torch.equal(processor(images=images, return_tensors="pt")["pixel_values"], one.expand(2, 3, 16, 16))
    first = processor(images=array.transpose(2, 0, 1), input_data_format="channels_first", return_tensors="pt")
    assert torch.equal(first["pixel_values"], one)


def test_errors_name_the_image():
    with pytest.raises(ImageDecodeError, match=r"images\[1\].*None") as caught:
        processor_of(16)(images=[noise(4, 4), None])
    assert caught.value.reason == "missing"
    with pytest.raises(ImageDecodeError, match="at least one"):
        processor_of(16)(images=[])
    with pytest.raises(ImageDecodeError, match="URL"):
        processor_of(16)(images="https://example.org/a.png")


def test_saved_and_loaded_with_and_without_the_auto_class(tmp_path: Path):
    processor = processor_of(64, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3])
    processor.save_pretrained(tmp_path)
    HFCLIPConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "HFCLIPImageProcessor"
    expected = processor(images=noise(77, 66), return_tensors="pt")["pixel_values"]
    for loaded in (
        HFCLIPImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is HFCLIPImageProcessor
        assert torch.equal(loaded(images=[noise(77, 66)], return_tensors="pt")["pixel_values"], expected)


def smooth_image(width: int, height: int) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


@pytest.mark.parametrize("size", [(672, 672), (700, 900), (1344, 1344), (2048, 1536)])
def test_a_reduced_jpeg_differs_by_as_much_as_is_said(size):
    """At sizes where 1/2, 1/4 and no reduction at all are due; noise is the worst case."""
    processor, (width, height) = HFCLIPImageProcessor(), size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for pixels, mean, most in ((smooth_image(width, height), 1, 4), (noise, 6, 40)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        exact = processor.resize_and_crop(buffer.getvalue()).astype(int)
        reduced = processor.resize_and_crop(buffer.getvalue(), may_reduce_jpeg=True)
        difference = np.abs(exact - reduced)
        assert reduced.shape == (224, 224, 3)
        assert 0 < difference.mean() < mean and difference.max() <= most


def test_only_large_jpegs_are_reduced():
    pixels = np.random.default_rng(0).integers(0, 256, (670, 670, 3), dtype=np.uint8)
    processor = HFCLIPImageProcessor()
    for kind, options in (("JPEG", {"quality": 90}), ("PNG", {})):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        exact = processor.resize_and_crop(buffer.getvalue())
        assert np.array_equal(processor.resize_and_crop(buffer.getvalue(), may_reduce_jpeg=True), exact)
    unsized = HFCLIPImageProcessor(do_resize=False)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((2000, 2000)).save(buffer, "JPEG")
    exact = unsized.resize_and_crop(buffer.getvalue())
    assert np.array_equal(unsized.resize_and_crop(buffer.getvalue(), may_reduce_jpeg=True), exact)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_std": 0.0}, "image_std"),
        ({"image_std": 1e-44}, "image_std"),
        ({"image_std": [0.5, -0.5, 0.5]}, "image_std"),
        ({"image_std": [0.5, float("nan"), 0.5]}, "image_std"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean"),
        ({"image_mean": [float("inf"), 0.5, 0.5]}, "image_mean"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"rescale_factor": 0.0}, "rescale_factor"),
    ],
)
def test_a_normalization_that_gives_no_finite_pixels_is_refused(wrong, named):
    """It would give NaN embeddings, far from its cause."""
    for give in (lambda: processor_of(16, **wrong), lambda: processor_of(16)(images=noise(20, 18), **wrong)):
        with pytest.raises(ValueError, match=f"`{named}="):
            give()
    HFCLIPImageProcessor(do_normalize=False, do_rescale=False, **wrong)


def test_a_file_with_such_a_normalization_is_refused(tmp_path: Path):
    processor_of(16).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_std": [0, 1, 1]}))
    with pytest.raises(ValueError, match="`image_std="):
        HFCLIPImageProcessor.from_pretrained(tmp_path)


def test_no_argument_of_a_call_is_swallowed():
    processor, image = processor_of(16), noise(20, 18)
    first = processor(images=image, return_tensors="pt", data_format="channels_first")["pixel_values"]
    last = processor(images=[image], return_tensors="pt", data_format="channels_last")["pixel_values"]
    assert last.shape == (1, 16, 16, 3) and torch.equal(last.permute(0, 3, 1, 2), first)
    plain = processor(images=image, image_mean=[0, 0, 0], image_std=[1, 1, 1], return_tensors="pt")["pixel_values"]
    assert torch.equal(plain, processor(images=image, do_normalize=False, return_tensors="pt")["pixel_values"])
    for name, number in (("bilinear", Image.Resampling.BILINEAR), ("BICUBIC", Image.Resampling.BICUBIC)):
        named = processor(images=image, resample=name, return_tensors="pt")["pixel_values"]
        assert torch.equal(named, processor(images=image, resample=number, return_tensors="pt")["pixel_values"])
    with pytest.raises(TypeError, match="HFCLIPImageProcessor has no argument `do_rezise`.*`do_resize`"):
        processor(images=image, do_rezise=False)
    for options, message in (
        ({"do_convert_rgb": False}, "`do_convert_rgb=False`"),
        ({"device": "cuda"}, "`device=cuda`"),
        ({"resample": "cubic"}, "`resample=cubic`.*'bicubic'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(images=image, **options)


def test_images_of_unlike_sizes_are_no_one_tensor():
    processor = processor_of(16, do_resize=False, do_center_crop=False)
    images = [noise(20, 18), noise(10, 12)]
    assert [pixels.shape for pixels in processor(images=images)["pixel_values"]] == [(3, 18, 20), (3, 12, 10)]
    with pytest.raises(ValueError, match="unlike sizes, 12 x 10 and 18 x 20"):
        processor(images=images, return_tensors="pt")


def test_a_list_is_prepared_in_threads_with_the_pixels_and_errors_of_each_image(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    threads, resize = set(), image_processing_hf_clip._resize_and_crop

    def noted(*arguments):
        threads.add(threading.get_ident())
        # Waits until another thread has come, too: one alone would time out.
        together.wait(30)
        return resize(*arguments)

    together = threading.Barrier(3)
    monkeypatch.setattr(image_processing_hf_clip, "_resize_and_crop", noted)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + index, 52, 3), dtype=np.uint8) for index in range(9)]
    processor = HFCLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    found = processor(images=images, return_tensors="np")["pixel_values"]
    assert len(threads) == 3
    monkeypatch.setattr(image_processing_hf_clip, "_resize_and_crop", resize)
    for image, pixels in zip(images, found, strict=True):
        assert np.array_equal(processor(images=image, return_tensors="np")["pixel_values"][0], pixels)
    with pytest.raises(ImageDecodeError, match=r"images\[2\]: "):
        processor(images=[images[0], images[1], b"broken", b""])
