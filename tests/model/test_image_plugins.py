"""HEIC of phones and raw files of cameras: decoded where something is installed that can, called by name elsewhere."""

import numpy as np
import pytest

from hf_clip.model import image_decoding_hf_clip as decoding
from hf_clip.model.image_decoding_hf_clip import FORMATS, ImageDecodeError, decode_image, is_image, is_image_file
from hf_clip.model.image_files_hf_clip import images_in_folder
from tests.helpers.phone_photos import HEIC, LOWER, UPPER, write_dng


def assert_two_halves(image, size):
    pixels = np.asarray(image).astype(int)
    assert image.size == size
    assert np.abs(pixels[3, 3] - UPPER).max() < 4 and np.abs(pixels[-3, 3] - LOWER).max() < 4


def test_heic_is_decoded_from_a_path_and_from_bytes():
    pytest.importorskip("pi_heif")
    for source in (HEIC, str(HEIC), HEIC.read_bytes(), {"bytes": HEIC.read_bytes(), "path": None}):
        assert_two_halves(decode_image(source), (32, 48))
    assert is_image(HEIC.read_bytes())


def test_a_damaged_heic_is_no_image():
    for content in (HEIC.read_bytes()[:300], HEIC.read_bytes()[:-200]):
        with pytest.raises(ImageDecodeError):
            decode_image(content)


def test_of_a_raw_file_the_preview_is_taken(tmp_path):
    pytest.importorskip("rawpy")
    file = write_dng(tmp_path / "a.DNG")
    for source in (file, str(file), {"bytes": file.read_bytes(), "path": "shards/a.dng"}):
        assert_two_halves(decode_image(source), (64, 48))
    (tmp_path / "b.nef").write_bytes(b"damaged")
    with pytest.raises(ImageDecodeError, match="no preview can be had from this raw file"):
        decode_image(tmp_path / "b.nef")
    assert is_image_file(tmp_path / "b.nef") and images_in_folder(tmp_path) == [str(file), str(tmp_path / "b.nef")]


def test_without_what_decodes_them_the_message_says_what_does(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "readable_formats", lambda: list(FORMATS))
    monkeypatch.setattr(decoding, "can_read_raw", lambda: False)
    with pytest.raises(ImageDecodeError, match="the file is HEIC, which is not decoded. Install pi-heif"):
        decode_image(HEIC)
    (tmp_path / "a.nef").write_bytes(b"MM\0*" + bytes(60))
    with pytest.raises(ImageDecodeError, match="a camera's raw file, which is not decoded. Install rawpy"):
        decode_image(tmp_path / "a.nef")
    assert not is_image_file(tmp_path / "a.nef")
