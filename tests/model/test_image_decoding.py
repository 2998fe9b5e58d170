"""The decoder: the right pixels from everything that people hold, and one error for everything else."""

import io
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from hf_clip.model.image_decoding_hf_clip import (
    ImageDecodeError,
    decode_image,
    is_image,
    is_image_file,
    readable_formats,
)
from tests.helpers.counts import soak_count

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True}}


def noise(mode: str = "RGB", width: int = 11, height: int = 7, seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    data = np.random.default_rng(seed).integers(0, 256, width * height * channels, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), data.tobytes())


def encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(source, **options) -> np.ndarray:
    image = decode_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def over_white(rgba: Image.Image) -> np.ndarray:
    values = np.asarray(rgba).astype(float)
    alpha = values[..., -1:] / 255
    return values[..., :-1] * alpha + 255 * (1 - alpha)


def reason_of(source, **options) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(source, **options)
    assert len(str(caught.value)) > 20
    return caught.value.reason


@pytest.mark.parametrize("format", LOSSLESS)
def test_plain_rgb_files_keep_their_pixels(format):
    assert np.array_equal(pixels(encode(noise(), format, **LOSSLESS[format])), np.asarray(noise()))


@pytest.mark.parametrize("format", ["JPEG", "GIF", "AVIF"])
def test_lossy_files_equal_pillows_own_decoding(format):
    content = encode(noise(), format)
    assert np.array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_every_way_to_hold_a_image_gives_the_same_pixels(tmp_path: Path):
    image, content = noise(), encode(noise(), "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(content)
    array = np.asarray(image)
    channels_first = np.ascontiguousarray(array.transpose(2, 0, 1))
    sources = [
        content, bytearray(content), memoryview(content), path, str(path), image, Image.open(path), array,
        channels_first, torch.from_numpy(channels_first), torch.from_numpy(array.copy()),
        torch.from_numpy(channels_first / 255), torch.from_numpy(array / 255).float().requires_grad_(),
        array.astype(np.uint16) * 257, (array / 255).astype(np.float32), array.astype(np.int64),
        array[:, ::-1].copy()[:, ::-1], {"bytes": content, "path": None}, {"bytes": None, "path": str(path)},
        {"bytes": content, "path": "gone.png"},
    ]  # fmt: skip
    for source in sources:
        assert np.array_equal(pixels(source), array), type(source)


def test_three_by_n_by_three_follows_the_convention_of_its_kind():
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert np.array_equal(pixels(values), values)
    assert np.array_equal(pixels(torch.from_numpy(values)), values.transpose(1, 2, 0))
    assert np.array_equal(pixels(values, is_channels_first=True), values.transpose(1, 2, 0))
    assert np.array_equal(pixels(torch.from_numpy(values), is_channels_first=False), values)


def test_gray_arrays_and_arrays_with_alpha():
    gray = np.asarray(noise("L"))
    for source in (gray, gray[..., None], gray[None], noise("L")):
        assert np.array_equal(pixels(source), np.repeat(gray[..., None], 3, axis=2))
    assert np.array_equal(pixels(gray > 99), np.repeat(np.where(gray > 99, 255, 0)[..., None], 3, axis=2))
    assert np.array_equal(pixels(np.asarray(noise("RGBA"))), pixels(noise("RGBA")))
    assert np.array_equal(pixels(np.asarray(noise("LA"))), pixels(noise("LA")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_alpha_is_composited_over_white(mode, format):
    image = noise(mode)
    assert np.abs(pixels(encode(image, format)) - over_white(image)).max() <= 1


def test_color_hidden_under_alpha_zero_does_not_come_back():
    assert (pixels(Image.new("RGBA", (3, 2), (200, 10, 30, 0))) == 255).all()
    assert (pixels(Image.new("PA", (3, 2), 0)) == 255).all()


@pytest.mark.parametrize(("mode", "color"), [("P", 0), ("L", 0), ("1", 0), ("RGB", (0, 0, 0)), ("I;16", 0)])
def test_a_transparent_color_is_white(mode, color):
    image = Image.new(mode, (4, 3), color)
    image.putpixel((1, 1), (255, 255, 255) if mode == "RGB" else 255)
    content = encode(image, "PNG", transparency=color)
    assert tuple(pixels(content)[0, 0]) == (255, 255, 255)


def test_palette_gives_its_colors():
    image = noise().quantize(16)
    assert np.array_equal(pixels(encode(image, "PNG")), np.asarray(image.convert("RGB")))


def test_half_transparent_palette_entry():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([100, 0, 0])
    assert tuple(pixels(encode(image, "PNG", transparency=bytes([128])))[0, 0]) == (177, 127, 127)


def test_cmyk():
    image = noise("CMYK")
    assert np.array_equal(pixels(encode(image, "TIFF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF", "JPEG"])
def test_exif_orientation_is_applied_once(format, orientation):
    """Corner by corner after EXIF 2.32, table 6: where the file's first row and first column belong."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 8, 8))
    image.paste((90, 90, 90), (24, 0, 32, 8))
    decoded = decode_image(encode(image, format, exif=exif))
    assert np.array_equal(pixels(decoded), np.asarray(decoded)), "a decoded image is turned once more"
    result = np.asarray(decoded)[..., 0]
    assert result.shape == ((16, 32) if orientation <= 4 else (32, 16))
    corners = {"top left": result[3, 3], "top right": result[3, -4]}
    corners |= {"bottom left": result[-4, 3], "bottom right": result[-4, -4]}
    white, gray = {
        1: ("top left", "top right"), 2: ("top right", "top left"), 3: ("bottom right", "bottom left"),
        4: ("bottom left", "bottom right"), 5: ("top left", "bottom left"), 6: ("top right", "bottom right"),
        7: ("bottom right", "top right"), 8: ("bottom left", "top left"),
    }[orientation]  # fmt: skip
    assert corners[white] > 200
    assert 60 < corners[gray] < 120


def test_damaged_exif_does_not_cost_the_image():
    content = encode(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f garbage")
    assert pixels(content).shape == (7, 11, 3)


def test_16_bit_png_is_scaled_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    for source in (encode(Image.fromarray(values), "PNG"), encode(Image.fromarray(values), "TIFF"), values):
        assert pixels(source)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.float32), [0, 100, 255]),
    ],
)
def test_modes_i_and_f_are_scaled_by_their_range(values, expected):
    assert pixels(Image.fromarray(values))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = encode(frames[0], format, save_all=True, append_images=frames[1:])
    red, _, blue = pixels(content)[4, 4]
    assert red > 250 and blue < 5


def test_the_images_that_phones_write():
    content = encode(noise(width=32), "MPO", save_all=True, append_images=[noise(width=32)])
    assert pixels(content).shape == (7, 32, 3)


def test_pixel_limit_is_read_from_the_header():
    assert reason_of(encode(noise(), "PNG"), max_pixels=76) == "too_large"
    assert pixels(encode(noise(), "PNG"), max_pixels=77).shape == (7, 11, 3)
    header_only = bytearray(encode(Image.new("L", (1, 1)), "BMP"))
    header_only[18:26] = (60_000).to_bytes(4, "little") * 2
    assert reason_of(bytes(header_only)) == "too_large"


def test_reasons(tmp_path: Path):
    content = encode(noise(width=64, height=64), "PNG")
    empty = tmp_path / "empty.png"
    empty.touch()
    assert reason_of(None) == reason_of({"bytes": None, "path": None}) == "missing"
    assert reason_of(tmp_path / "gone.png") == reason_of(str(tmp_path / "gone.png")) == "missing"
    assert reason_of(b"") == reason_of(empty) == reason_of(np.zeros((0, 4, 3))) == "empty"
    assert reason_of(tmp_path) == reason_of("/dev/zero") == "unreadable"
    assert reason_of("https://example.org/cat.png") == "url"
    assert reason_of(b"<svg></svg>") == reason_of(b"%!PS-Adobe-3.0 EPSF-3.0") == "unknown_format"
    assert reason_of(encode(noise(), "PCX")) == reason_of(encode(noise(), "ICO")) == "unknown_format"
    assert reason_of(content[: len(content) // 2]) == "truncated"
    assert reason_of(encode(noise(width=64, height=64), "JPEG")[:900]) == "truncated"
    assert reason_of(Image.new("LAB", (2, 2))) == "unsupported_mode"
    assert reason_of(np.zeros((5, 5, 5))) == reason_of(np.zeros((2, 3, 4, 3))) == reason_of(np.zeros(3)) == "bad_shape"
    assert reason_of(np.full((2, 2), -0.1)) == reason_of(np.full((2, 2), 255.0)) == "out_of_range"
    assert reason_of(np.full((2, 2), np.nan)) == reason_of(np.full((2, 2), 256)) == "out_of_range"
    assert reason_of(Image.fromarray(np.full((2, 2), -1, np.int32))) == "out_of_range"
    assert reason_of(3) == reason_of([1]) == reason_of(np.array([["a"]])) == "unsupported_type"


def test_a_broken_file_held_as_a_pil_image_gives_the_same_error():
    image = Image.open(io.BytesIO(encode(noise(width=64, height=64), "PNG")[:2000]))
    assert reason_of(image) == "truncated"


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(ImageDecodeError("what and how", "truncated")))
    assert (str(error), error.reason) == ("what and how", "truncated")


SEEDS = [
    encode(noise(mode), format, **options)
    for format, mode, options in [
        ("PNG", "RGBA", {}), ("PNG", "P", {"transparency": 3}), ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}),
        ("GIF", "P", {}), ("WEBP", "RGBA", {}), ("WEBP", "RGB", {"lossless": True}), ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "LA", {}), ("PPM", "L", {}),
        ("AVIF", "RGB", {}),
    ]
]  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, derandomize=True, database=None, max_examples=soak_count(400, 20_000))
@given(
    content=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=4)), max_size=5),
    kept=st.one_of(st.none(), st.integers(0, 2000)),
)
def test_damaged_files_give_a_image_or_the_one_error(content, edits, kept):
    damaged = bytearray(content)
    for position, patch in edits:
        position %= len(damaged)
        damaged[position : position + len(patch)] = patch
    start = time.monotonic()
    try:
        image = decode_image(bytes(damaged[:kept]), max_pixels=2**20)
        assert image.mode == "RGB"
    except ImageDecodeError as error:
        assert error.reason
    assert time.monotonic() - start < 20


@settings(deadline=None, derandomize=True, database=None, max_examples=soak_count(100, 5_000))
@given(st.binary(max_size=200))
def test_any_bytes_give_a_image_or_the_one_error(content):
    try:
        decode_image(content, max_pixels=2**20)
    except ImageDecodeError as error:
        assert error.reason


def test_bytes_of_16_bit_arrays_may_stand_in_either_order():
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    assert np.array_equal(pixels(values.astype(">u2")), pixels(values))


class _ToyImageFile(ImageFile.ImageFile):
    """A format that somebody registered with Pillow, as pillow_heif does: four bytes, then the pixels."""

    format = "TOY"

    def _open(self):
        self.fp.seek(4)
        self._size, self._mode = (2, 2), "RGB"
        self.tile = [ImageFile._Tile("raw", (0, 0, 2, 2), 4, ("RGB", 0, 1))]


def test_a_registered_opener_is_used(tmp_path, monkeypatch):
    content = b"TOY!" + bytes(range(12))
    with pytest.raises(ImageDecodeError, match="a format other than JPEG"):
        decode_image(content)
    assert not is_image(content)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    Image.register_open("TOY", _ToyImageFile, lambda prefix: prefix.startswith(b"TOY!"))
    assert np.asarray(decode_image(content)).ravel().tolist() == list(range(12))
    (tmp_path / "a.toy").write_bytes(content)
    assert is_image_file(tmp_path / "a.toy") and "ICO" not in readable_formats()


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (b"\0\0\0\x18ftypheic", "the file is HEIC, which is not decoded"),
        (b"\0\0\0\x0cjP  \r\n", "the file is JPEG 2000, which is not decoded. Convert it to PNG"),
        (b"%PDF-1.7", "the file is a PDF"),
        (b"<html><body>404", "the file is an HTML page"),
    ],
)
def test_other_formats_are_called_by_their_names(beginning, message):
    with pytest.raises(ImageDecodeError, match=message) as raised:
        decode_image(beginning + bytes(60))
    assert raised.value.reason == "unknown_format"
