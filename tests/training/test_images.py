"""Images of training: the processor's geometry and nearly its pixels, whatever decodes; its errors for what is bad."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_clip import HFCLIPImageProcessor
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.training.stream import images as module
from hf_clip.training.stream.images import training_pixels

PROCESSOR = HFCLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(module, "_simplejpeg", lambda: None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


def picture(width: int, height: int) -> Image.Image:
    """Soft and colored, and unlike its mirror images."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def differences(processor: HFCLIPImageProcessor, source) -> np.ndarray:
    found, exact = training_pixels(processor, source), processor.resize_and_crop(source)
    assert found.shape == exact.shape and found.dtype == exact.dtype == np.uint8
    return np.abs(found.astype(int) - exact)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("size", [(64, 64), (90, 70), (70, 95), (40, 30), (150, 180), (700, 450)], ids=str)
def test_photographs_look_as_the_processor_has_them(size):
    for kind in ("JPEG", "PNG"):
        found = differences(PROCESSOR, encoded(picture(*size), kind))
        # Decoded at a fraction, some more.
        most, mean = (8, 1.2) if kind == "JPEG" and size == (700, 450) else (2, 0.1)
        assert found.max() <= most and found.mean() < mean


@pytest.mark.usefixtures("decoder")
def test_what_is_no_plain_jpeg_is_read_as_everywhere():
    exif = Image.Exif()
    exif[0x0112] = 6
    for source in (
        encoded(picture(90, 70), exif=exif),
        encoded(picture(90, 70).convert("L")),
        encoded(picture(90, 70).convert("CMYK")),
        {"bytes": encoded(picture(90, 70)), "path": None},
        picture(90, 70),
        np.asarray(picture(90, 70)),
    ):
        assert differences(PROCESSOR, source).max() <= 2


@pytest.mark.usefixtures("decoder")
def test_other_ways_to_the_models_size_keep_their_pixels():
    square = {"height": 64, "width": 64}
    squashing = HFCLIPImageProcessor(size=square, crop_size=square)
    assert differences(squashing, encoded(picture(90, 70))).max() <= 2
    padding = HFCLIPImageProcessor(size={"longest_edge": 64}, crop_size=square, fill_color=255)
    sharp = HFCLIPImageProcessor(size={"shortest_edge": 64}, crop_size=square, resample=Image.LANCZOS)
    for processor in (padding, sharp):
        assert differences(processor, encoded(picture(90, 70))).max() == 0
    # Of long ones only the middle is computed.
    assert differences(PROCESSOR, encoded(picture(2, 3000), "PNG")).max() <= 1


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(("content", "reason"), [
    (encoded(picture(90, 70))[:1500], "truncated"),
    (b"\xff\xd8 no image", "unknown_format"),
    (b"", "empty"),
    (None, "missing"),
])  # fmt: skip
def test_what_is_bad_is_refused_for_the_same_reason(content, reason):
    with pytest.raises(ImageDecodeError) as caught:
        training_pixels(PROCESSOR, {"bytes": content, "path": None})
    with pytest.raises(ImageDecodeError) as expected:
        PROCESSOR.resize_and_crop({"bytes": content, "path": None})
    assert caught.value.reason == expected.value.reason == reason


def test_large_jpegs_are_decoded_at_a_fraction(monkeypatch):
    simplejpeg, seen = pytest.importorskip("simplejpeg"), []
    decode = simplejpeg.decode_jpeg

    def noted(*args, **kwargs):
        seen.append(decode(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    for size, expected in (((300, 200), (100, 150)), ((190, 150), (150, 190)), ((1000, 800), (100, 125))):
        training_pixels(PROCESSOR, encoded(picture(*size)))
        assert seen[-1].shape[:2] == expected
