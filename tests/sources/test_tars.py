"""Tars: members become samples by their names, and images by their bytes."""

import gzip
import json
import tarfile
import tracemalloc

import pytest

from hf_clip.sources import SourceError, list_shards, open_source
from tests.helpers.data_files import CAPTIONS, contents, error_of, image_bytes, samples, write, write_tar


def test_tar_members_beside_the_image(tmp_path):
    fields = {"caption": "from json", "title": "t"}
    members = {"a.b/0.jpg": image_bytes(0), "a.b/0.json": json.dumps(fields), "a.b/0.cls": "3\n", ".hidden": "x"}
    sample = samples(write_tar(tmp_path / "x.tar", members))[0]
    assert (sample.captions, sample.label) == (["from json"], "3") and sample.key.endswith("sample a.b/0")
    pair = write_tar(tmp_path / "y.tar", {"0.left.png": image_bytes(1), "0.right.png": image_bytes(2), "0.txt": "t"})
    assert "image" in error_of(pair)
    assert contents(samples(pair, image_column="right.png")[0]) == image_bytes(2)


@pytest.mark.parametrize("cut", ["in a header", "between members", "header overwritten"])
def test_a_cut_tar_is_not_taken_for_a_short_one(tmp_path, cut):
    members = {
        f"{i}.{suffix}": content for i in range(4) for suffix, content in (("png", image_bytes(i)), ("txt", "dog"))
    }
    file = write_tar(tmp_path / "pairs.tar", members)
    with tarfile.open(file) as archive:
        third = archive.getmembers()[4].offset
    content = bytearray(file.read_bytes())
    if cut == "header overwritten":
        content[third : third + 512] = b"x" * 512
    else:
        del content[third + (100 if cut == "in a header" else 0) :]
    whole = open_source(file)
    file.write_bytes(content)
    assert "cut or damaged" in error_of(file)
    with pytest.raises(SourceError, match="cut or damaged"):
        list_shards(whole)


def test_tars_that_cannot_be_looked_into_are_read_from_their_beginning(tmp_path, monkeypatch):
    members = [{f"{i}.png": image_bytes(i), f"{i}.txt": CAPTIONS[i]} for i in range(5)]
    plain = write_tar(tmp_path / "a/0.tar", members[0] | members[1] | members[2])
    packed = write(tmp_path / "b/0.tar", gzip.compress(plain.read_bytes()))
    for file in (plain, packed):
        monkeypatch.setattr("hf_clip.sources.shards.MAX_TARS_TO_INDEX", 0 if file == plain else 64)
        (shard,) = list_shards(open_source(file))
        assert shard.num_rows is None
        assert [s.captions for s in shard.read(1)] == [[CAPTIONS[1]], [CAPTIONS[2]]]


@pytest.mark.parametrize("suffix", ["img", "image", "jfif", "bin", "JPG", "heic", "download"])
def test_what_a_member_is_its_bytes_decide(tmp_path, suffix):
    members = {f"0.{suffix}": image_bytes(1, "JPEG"), "0.cap": "a cat"}
    members |= {"1.cap": "a dog", "1.png": image_bytes(2), "1.note": "BM is no bitmap"}
    first, second = samples(write_tar(tmp_path / "x.tar", members), caption_columns="cap")
    assert (contents(first), first.captions) == (image_bytes(1, "JPEG"), ["a cat"])
    assert (contents(second), second.captions) == (image_bytes(2), ["a dog"])


def test_an_image_named_in_the_json_does_not_hide_the_image(tmp_path):
    fields = json.dumps({"image": "a.jpg", "caption": "a cat"})
    (sample,) = samples(write_tar(tmp_path / "x.tar", {"0.json": fields, "0.png": image_bytes(1)}))
    assert contents(sample) == image_bytes(1)


def test_members_apart_from_each_other_are_called_so(tmp_path, caplog):
    images, texts = {f"{i}.png": image_bytes(i) for i in range(2)}, {f"{i}.txt": "a" for i in range(2)}
    assert "sample 0 has members apart from each other" in error_of(write_tar(tmp_path / "x.tar", images | texts))
    folders = {"a/0.png": image_bytes(0), "b/0.txt": "a", "a/1.png": image_bytes(1), "b/1.txt": "b"}
    assert "single members, images apart from texts" in error_of(write_tar(tmp_path / "y.tar", folders))
    many = {f"{i}.png": image_bytes(i) for i in range(150)}
    assert "has one member only. A tar holds the members" in error_of(write_tar(tmp_path / "z.tar", many))
    late = {f"{i}.{suffix}": image_bytes(i) for i in range(120) for suffix in ("png", "txt")}
    read = samples(write_tar(tmp_path / "late.tar", late | {"7.json": "{}"}))
    assert len(read) == 121 and "sample 7 has members apart from each other" in caplog.text


def test_names_with_dots_of_another_meaning_are_explained(tmp_path):
    members = {"v1.0/photo.2021.01.jpg": image_bytes(1), "v1.0/photo.2021.01.txt": "january"}
    message = error_of(write_tar(tmp_path / "x.tar", members))
    assert "'v1.0/photo.2021.01.jpg' is the member '2021.01.jpg' of the sample 'v1.0/photo'" in message


def test_members_that_are_too_large_are_not_read(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_clip.sources.tars.LARGEST_FIELD", 2**20)
    monkeypatch.setattr("hf_clip.sources.tars.LARGEST_IMAGE", 2**22)
    large, huge = image_bytes(1) + bytes(2**21), image_bytes(2) + bytes(2**23)
    members = {
        # No column reads it: the sample is whole.
        **{"0.png": image_bytes(0), "0.txt": "a", "0.bin": bytes(2**24), "0.npy": bytes(2**21)},
        **{"1.png": large, "1.txt": "b", "2.image": large, "2.txt": "c"},
        **{"3.png": huge, "3.txt": "d", "4.image": huge, "4.txt": "e"},
        **{"5.png": image_bytes(5), "5.txt": b"f" * 2**21, "6.png": image_bytes(6), "6.txt": "g"},
        **{"7.png": image_bytes(7), "7.txt": "h", "7.json": b" " * 2**21 + b"{}"},
    }
    read = samples(write_tar(tmp_path / "x.tar", members))
    assert [sample.captions for sample in read] == [["a"], ["b"], ["c"], ["d"], ["e"], [], ["g"], ["h"]]
    assert [sample.image["bytes"] for sample in read[:3]] == [image_bytes(0), large, large]
    assert [sample.image["bytes"] for sample in read[3:5]] == [None, None]
    assert [sample.image["bytes"] for sample in read[5:]] == [image_bytes(index) for index in (5, 6, 7)]
    assert "sample 3 holds 8 MB (at most 4 MB are read) where an image belongs." in caplog.text
    assert "sample 5 column 'txt' holds 2 MB (at most 1 MB are read), not texts." in caplog.text
    assert "x.tar/7.json has 2 MB (at most 1 MB are read)." in caplog.text
    assert "bin" not in caplog.text and "npy" not in caplog.text


@pytest.mark.slow
def test_a_large_member_of_zeros_takes_no_memory(tmp_path):
    members = {"0.png": image_bytes(0), "0.txt": "a", "0.bin": bytes(2**27)}
    packed = write(tmp_path / "b.tar", gzip.compress(write_tar(tmp_path / "a.tar", members).read_bytes(), 1))
    del members
    tracemalloc.start()
    try:
        assert [sample.captions for sample in samples(packed)] == [["a"]]
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_tar_whose_images_are_all_too_large_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_clip.sources.tars.LARGEST_FIELD", 2**20)
    monkeypatch.setattr("hf_clip.sources.tars.LARGEST_IMAGE", 2**22)
    file = write_tar(tmp_path / "x.tar", {"0.png": image_bytes(0) + bytes(2**23), "0.txt": "a"})
    assert "sample 0: the member 'image' has 8 MB (at most 4 MB are read). Write smaller ones." in error_of(file)
