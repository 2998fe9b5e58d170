"""Sources: every format comes out as the same samples, and what is wrong is said in one line."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_clip.sources import SourceError, clean_captions, iterate_samples, list_shards, open_source
from tests.helpers.counts import soak_count

CAPTIONS = ["a red square", "NA", 'two lines\nand "quotes", commas', "null", "größe 日本"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def image_bytes(index: int, suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 10 * index % 256, np.uint8)).save(stream, suffix)
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_images(folder: Path, count: int = len(CAPTIONS)) -> list[str]:
    return [write(folder / f"{i}.png", image_bytes(i)).name for i in range(count)]


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def parquet(path: Path, texts=CAPTIONS, row_group_size=2, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in range(len(texts))]
    table = pa.table({"image": pa.array(images, IMAGE_TYPE), "caption": pa.array(texts, pa.string()), **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(sample) -> bytes:
    return sample.image["bytes"] or Path(sample.image["path"]).read_bytes()


def samples(data, **options):
    return list(iterate_samples(open_source(data, **options)))


def error_of(data, **options) -> str:
    with pytest.raises(SourceError) as raised:
        for _ in iterate_samples(open_source(data, **options)):
            pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def dataset_of(captions=CAPTIONS, **columns):
    images = [{"bytes": image_bytes(i), "path": None} for i in range(len(captions))]
    made = datasets.Dataset.from_dict({"image": images, "caption": captions, **columns})
    return made.cast_column("image", datasets.Image())


# One builder a format; each writes the same pairs.


def make_parquet_of_datasets(folder):
    dataset_of().to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def make_parquet_of_pyarrow(folder):
    return parquet(folder / "pairs.parquet")


def make_parquet_of_bytes(folder):
    for kind in (pa.binary(), pa.large_binary()):
        table = pa.table({"jpg": pa.array(map(image_bytes, range(5)), kind), "TEXT": CAPTIONS})
        pq.write_table(table, folder / "pairs.parquet")
    return folder / "pairs.parquet"


def make_parquet_of_paths(folder):
    pq.write_table(pa.table({"path": write_images(folder), "caption": CAPTIONS}), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def make_parquet_shards(folder):
    for shard, part in (("00001", slice(3, 5)), ("00000", slice(0, 3))):
        images = [{"bytes": image_bytes(i), "path": None} for i in range(5)[part]]
        path = folder / f"data/train-{shard}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": images, "caption": CAPTIONS[part]}), path)
    return folder


def make_csv(folder):
    rows = [f"{name},{quoted(text)}" for name, text in zip(write_images(folder / "p"), CAPTIONS, strict=True)]
    return write(folder / "p/pairs.csv", "\ufeff" + "\r\n".join(["file_name,caption", *rows]) + "\r\n")


def make_semicolon_csv(folder):
    rows = [f"{name};{quoted(text)}" for name, text in zip(write_images(folder / "p"), CAPTIONS, strict=True)]
    return write(folder / "p/pairs.csv", "\n".join(["image;title", *rows]))


def make_tsv(folder):
    rows = [f"{quoted(t)}\tp/{name}" for name, t in zip(write_images(folder / "p"), CAPTIONS, strict=True)]
    return write(folder / "pairs.tsv", "\n".join(["text\timage", *rows]))


def make_json_lines(folder):
    names = [str(folder / name) for name in write_images(folder)]
    rows = [json.dumps({"image": n, "captions": [t, None]}) for n, t in zip(names, CAPTIONS, strict=True)]
    return write(folder / "pairs.jsonl", "\n\n".join(rows))


def make_json_list(folder):
    rows = [{"image": n, "caption": t} for n, t in zip(write_images(folder), CAPTIONS, strict=True)]
    return write(folder / "pairs.json", json.dumps(rows, indent=1))


def make_metadata_folder(folder):
    rows = [f"p/{name},{quoted(t)}" for name, t in zip(write_images(folder / "p"), CAPTIONS, strict=True)]
    write(folder / "metadata.csv", "\n".join(["file_name,text", *rows]))
    write(folder / "README.md", "about")
    return folder


def make_metadata_json_folder(folder):
    rows = [{"file_name": n, "text": t} for n, t in zip(write_images(folder), CAPTIONS, strict=True)]
    write(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return folder


def make_tars(folder):
    suffixes = ["png", "jpg", "webp", "png", "png"]
    members = [{f"a/{i}.{suffixes[i]}": image_bytes(i), f"a/{i}.txt": CAPTIONS[i]} for i in range(5)]
    tar(folder / "1.tar", members[3] | members[4])
    tar(folder / "0.tar", members[0] | {"a/1.json": json.dumps({"caption": "x"})} | members[1] | members[2])
    return folder


def make_saved_to_disk(folder):
    dataset_of().save_to_disk(folder / "saved")
    return folder / "saved"


MAKERS = [value for name, value in list(globals().items()) if name.startswith("make_")]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_every_format_gives_the_same_samples(make, tmp_path):
    source = open_source(make(tmp_path))
    assert source.dataset.features[source.image_column] == datasets.Image(decode=False)
    for _ in range(2):
        read = list(iterate_samples(source))
        assert [sample.captions for sample in read] == [[text] for text in CAPTIONS]
        assert [contents(sample) for sample in read] == [image_bytes(i) for i in range(5)]
        assert [sample.index for sample in read] == list(range(5))
        assert len({sample.key for sample in read}) == 5
    assert source.num_rows in (5, None)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_streams_pickle_and_resume(make, tmp_path):
    source = pickle.loads(pickle.dumps(open_source(make(tmp_path))))
    rows = iter(source.dataset)
    next(rows), next(rows)
    state = source.dataset.state_dict()
    source.dataset.load_state_dict(state)
    assert [sample.captions for sample in iterate_samples(source)] == [[text] for text in CAPTIONS[2:]]


@pytest.mark.parametrize("rows_of_shard", [2, 256])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_shards_hold_each_row_once_and_open_at_any(make, rows_of_shard, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_clip.sources.shards.ROWS_PER_SHARD", rows_of_shard)
    source = open_source(make(tmp_path))
    stream = list(iterate_samples(source))
    shards = list_shards(source)
    assert sum(shard.num_rows for shard in shards) == 5
    start = 0
    for shard in shards:
        for first in range(shard.num_rows + 1):
            read, expected = list(shard.read(first)), stream[start + first : start + shard.num_rows]
            assert [(s.index, s.captions) for s in read] == [(s.index, s.captions) for s in expected]
            assert [contents(s) for s in read] == [contents(s) for s in expected]
            assert [s.key.split(" (")[0] for s in read] == [s.key.split(" (")[0] for s in expected]
        start += shard.num_rows


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_shards_hold_the_rows_asked_for_alone(make, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_clip.sources.shards.ROWS_PER_SHARD", 2)
    column = open_source(make(tmp_path)).caption_columns[0]
    source = open_source(make(tmp_path), where={column: ["NA", CAPTIONS[4], CAPTIONS[2]]})
    stream = list(iterate_samples(source))
    assert [s.captions for s in stream] == [[CAPTIONS[1]], [CAPTIONS[2]], [CAPTIONS[4]]]
    read = [sample for shard in list_shards(source) for sample in shard.read()]
    assert [(s.index, s.captions) for s in read] == [(s.index, s.captions) for s in stream]
    assert [contents(s) for s in read] == [contents(s) for s in stream]
    last = list_shards(source)[-1]
    assert [s.captions for s in last.read(last.num_rows - 1)] == [[CAPTIONS[4]]]


def test_tars_that_cannot_be_looked_into_are_read_from_their_beginning(tmp_path, monkeypatch):
    members = [{f"{i}.png": image_bytes(i), f"{i}.txt": CAPTIONS[i]} for i in range(5)]
    plain = tar(tmp_path / "a/0.tar", members[0] | members[1] | members[2])
    packed = write(tmp_path / "b/0.tar", gzip.compress(plain.read_bytes()))
    for file in (plain, packed):
        monkeypatch.setattr("hf_clip.sources.shards.MAX_TARS_TO_INDEX", 0 if file == plain else 64)
        (shard,) = list_shards(open_source(file))
        assert shard.num_rows is None
        assert [s.captions for s in shard.read(1)] == [[CAPTIONS[1]], [CAPTIONS[2]]]


def test_lists_and_patterns_of_files(tmp_path):
    first, second = (
        parquet(tmp_path / "b.parquet", ["one"]),
        parquet(tmp_path / "a[1].parquet", ["two", "three"]),
    )
    assert [s.captions for s in samples([first, str(second)])] == [["one"], ["two"], ["three"]]
    source = open_source(str(tmp_path / "*.parquet"))
    read = list(iterate_samples(source))
    assert [s.captions for s in read] == [["two"], ["three"], ["one"]]
    assert source.num_rows == 3
    assert source.dataset.num_shards == 2
    assert "a[1].parquet row 1" in read[1].key and "b.parquet row 0" in read[2].key


def test_an_image_inside_a_file_is_never_taken_from_the_working_folder(tmp_path, monkeypatch):
    shard = tar(tmp_path / "x.tar", {"0.png": image_bytes(7), "0.txt": "seven"})
    table = parquet(tmp_path / "x.parquet", ["zero"])
    work = tmp_path / "work"
    write(work / "0.png", b"another image")
    monkeypatch.chdir(work)
    assert contents(samples(shard)[0]) == image_bytes(7)
    assert contents(samples(table, where={"caption": "zero"})[0]) == image_bytes(0)


def test_large_shards_are_read_in_parts(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", [str(i) for i in range(20)], row_group_size=10)
    monkeypatch.setattr("hf_clip.sources.opening.PARQUET_BATCH_ROWS", 3)
    lengths = []
    cast = Parquet._cast_table
    monkeypatch.setattr(Parquet, "_cast_table", lambda self, table: lengths.append(len(table)) or cast(self, table))
    source = open_source(path)
    assert sum(lengths) <= 6
    assert [s.captions for s in iterate_samples(source)] == [[str(i)] for i in range(20)]
    assert max(lengths) == 3
    assert source.dataset.num_shards == 2, "a shard is a row group"


def test_class_folders(tmp_path):
    for name in ("vehicle/train_01.png", "vehicle/2.JPG", "cat/test.png"):
        write(tmp_path / name, image_bytes(1))
    source = open_source(tmp_path)
    assert source.label_names == ("cat", "vehicle") and source.num_rows == 3 and source.caption_columns == ()
    assert [s.label for s in iterate_samples(source)] == ["cat", "vehicle", "vehicle"]
    assert [s.label for s in samples(tmp_path, where={"label": "cat"})] == ["cat"]
    source.require_label()
    with pytest.raises(SourceError, match="no column that looks like a caption. Columns: image, label"):
        source.require_captions()


def test_class_folders_in_split_folders(tmp_path):
    for name in ("train/cat/0.png", "train/dog/1.png", "test/dog/2.png", "test/cat/3.png", "test/cat/4.png"):
        write(tmp_path / name, image_bytes(1))
    assert [s.label for s in samples(tmp_path, split="test")] == ["cat", "cat", "dog"]
    assert "splits test, train" in error_of(tmp_path)


@pytest.mark.parametrize("cut", ["in a header", "between members", "header overwritten"])
def test_a_cut_tar_is_not_taken_for_a_short_one(tmp_path, cut):
    members = {
        f"{i}.{suffix}": content for i in range(4) for suffix, content in (("png", image_bytes(i)), ("txt", "dog"))
    }
    file = tar(tmp_path / "pairs.tar", members)
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


def test_blank_concepts_and_labels_are_none(tmp_path):
    parquet(tmp_path / "x.parquet", concept=["", " ", "a", None, "b"], label=["", "dog", " ", "cat", None])
    read = samples(tmp_path / "x.parquet")
    assert [s.concept for s in read] == [None, None, "a", None, "b"]
    assert [s.label for s in read] == [None, "dog", None, "cat", None]
    parquet(tmp_path / "nan.parquet", concept=[float("nan")] * 5)
    assert [s.concept for s in samples(tmp_path / "nan.parquet")] == [None] * 5


def test_labels_concepts_and_where(tmp_path):
    features = datasets.ClassLabel(names=["cat", "dog"])
    made = dataset_of(
        concept=[1, 2, 1, 2, None], label=[0, 1, 1, 0, -1], split=["train", "test", "test", "train", "test"]
    ).cast_column("label", features)
    made.to_parquet(tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.label_names == ("cat", "dog")
    read = list(iterate_samples(source))
    assert [s.label for s in read] == ["cat", "dog", "dog", "cat", None]
    assert [s.concept for s in read] == ["1", "2", "1", "2", None]
    kept = open_source(tmp_path / "x.parquet", where={"split": "test", "label": "dog"})
    assert kept.num_rows is None
    assert [s.captions[0] for s in iterate_samples(kept)] == CAPTIONS[1:3]
    assert [s.label for s in samples(tmp_path / "x.parquet", where={"concept": 2})] == ["dog", "cat"]
    assert [s.label for s in samples(tmp_path / "x.parquet", where={"label": ["cat"]})] == ["cat", "cat"]
    message = error_of(tmp_path / "x.parquet", where={"split": "dev"})
    assert "split=dev" in message and "split: test, train" in message
    assert "Columns: image, caption, concept, label, split" in error_of(tmp_path / "x.parquet", where={"x": 1})


def test_where_in_a_table(tmp_path):
    rows = [{"image": n, "caption": "c", "ok": i % 2 == 0, "n": i} for i, n in enumerate(write_images(tmp_path))]
    table = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    assert [s.key.rpartition(" ")[2] for s in samples(table, where={"ok": True})] == ["1", "3", "5"]
    assert len(samples(table, where={"n": "3"})) == 1


def test_several_caption_columns(tmp_path):
    path = parquet(tmp_path / "x.parquet", ["a", "", None], keywords=[["k", " "], [], None])
    assert [s.captions for s in samples(path, caption_columns=("caption", "keywords"))] == [
        ["a", "k"],
        [],
        [],
    ]
    assert [s.captions for s in samples(path, caption_columns="keywords")] == [["k"], [], []]
    assert [s.captions for s in samples(path)] == [["a"], [], []]


def test_ambiguous_columns_name_the_choices_and_the_option(tmp_path):
    path = parquet(tmp_path / "x.parquet", ["a"], captions=["b"])
    message = error_of(path)
    assert "caption, captions" in message and "data.caption_columns" in message and "--caption-column " in message
    assert samples(path, caption_columns="captions")[0].captions == ["b"]
    table = write(tmp_path / "x.csv", "file_name,path,text\na.png,b.png,t\n")
    assert "file_name, path" in error_of(table) and "--image-column" in error_of(table)


def test_a_set_column_that_is_missing(tmp_path):
    path = parquet(tmp_path / "x.parquet")
    for option in ("image_column", "caption_columns", "label_column", "concept_column"):
        message = error_of(path, **{option: "nope"})
        assert "'nope'" in message and "Columns: image, caption" in message and f"data.{option}" in message
    assert "neither images" in error_of(parquet(tmp_path / "y.parquet", ["a"], n=[1]), image_column="n")


def test_columns_that_cannot_be_found(tmp_path):
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": None}], "n": [1]}), tmp_path / "x.parquet")
    assert "no column that looks like a caption. Columns: image, n" in error_of(tmp_path / "x.parquet")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "y.parquet")
    assert "no column that looks like an image. Columns: caption" in error_of(tmp_path / "y.parquet")
    assert "image" in error_of(tar(tmp_path / "z.tar", {"0.txt": "a"}))


def test_one_bad_row_does_not_end_the_stream(tmp_path):
    images = [None, {"bytes": None, "path": None}, {"bytes": b"rubbish", "path": "1.png"}]
    images.append({"bytes": image_bytes(3), "path": None})
    pq.write_table(pa.table({"image": images, "caption": list("abcd")}), tmp_path / "x.parquet")
    read = samples(tmp_path / "x.parquet")
    assert [s.image["bytes"] for s in read] == [None, None, b"rubbish", image_bytes(3)]
    members = {
        "0.png": b"rubbish",
        "0.txt": b"caf\xe9",
        "1.txt": "no image",
        "2.png": image_bytes(2),
        "2.json": "{",
    }
    read = samples(tar(tmp_path / "x.tar", members | {"3.png": image_bytes(3), "3.txt": "three"}))
    assert [s.captions for s in read] == [[], ["no image"], [], ["three"]]
    assert [s.image["bytes"] for s in read] == [b"rubbish", None, image_bytes(2), image_bytes(3)]
    write_images(tmp_path, 1)
    rows = [{"image": "0.png", "caption": "a"}, {"image": "gone.png", "caption": "b"}, {"caption": "c"}]
    read = samples(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows))))
    assert [s.image["path"] for s in read] == [str(tmp_path / "0.png"), str(tmp_path / "gone.png"), None]


def test_tar_members_beside_the_image(tmp_path):
    fields = {"caption": "from json", "title": "t"}
    members = {"a.b/0.jpg": image_bytes(0), "a.b/0.json": json.dumps(fields), "a.b/0.cls": "3\n", ".hidden": "x"}
    sample = samples(tar(tmp_path / "x.tar", members))[0]
    assert (sample.captions, sample.label) == (["from json"], "3") and sample.key.endswith("sample a.b/0")
    pair = tar(tmp_path / "y.tar", {"0.left.png": image_bytes(1), "0.right.png": image_bytes(2), "0.txt": "t"})
    assert "image" in error_of(pair)
    assert contents(samples(pair, image_column="right.png")[0]) == image_bytes(2)


BAD_FILES = [
    ("x.csv", "image,caption\n0.png,a,b\n", "line 2 has 3 fields, the header has 2"),
    ("x.csv", 'image,caption\n0.png,"a\n', "cannot be read to its end"),
    ("x.csv", b"image,caption\n0.png,caf\xe9\n", "not UTF-8 (byte 0xe9"),
    (
        "x.csv",
        "image,caption\n0.png,a\n".encode("utf-16"),
        "is UTF-16, not UTF-8. Convert it, such as with iconv -f ut",
    ),
    ("x.csv", "image,caption\n0.png,a\n".encode("utf-16-le"), "iconv -f utf-16le -t utf-8"),
    ("x.tsv", "image\tcaption\n0.png\ta\n".encode("utf-16-be"), "iconv -f utf-16be -t utf-8"),
    ("x.csv", "image,caption\n0.png,a\n".encode("utf-32"), "iconv -f utf-32 -t utf-8"),
    ("x.json", '[{"image": "0.png", "caption": "a"}]'.encode("utf-16"), "iconv -f utf-16 -t utf-8"),
    ("x.csv", 'image,caption\n0.png,"' + "a\n" * (2**23 + 1), "field limit (16777216)). Close the double quote"),
    ("x.csv", "image,caption\n", "has no rows"),
    ("x.csv", "", "has no rows"),
    ("x.csv", "image,image\n0.png,a\n", "twice: image, image"),
    ("x.csv", "image,caption\ngone.png,a\n", "none of the first 1 images"),
    ("x.csv", "image,caption\n,a\n", "none of the first 1 images"),
    ("x.csv", "name,words\n0.png,a\n", "Columns: name, words"),
    ("x.jsonl", '{"image": "0.png", "caption": "a"}\n{"image"\n', "line 2 is no JSON ("),
    ("x.jsonl", '{"image": "0.png", "caption": "a"}\n[1]\n', "line 2 is no JSON object"),
    ("x.json", "[1, 2]", "item 0 is no JSON object"),
    ("x.json", "[", "is no JSON"),
    ("x.jsonl", b"\xff\xfe{}", "not UTF-8"),
    ("x.parquet", b"PAR1 not really PAR1", "no readable parquet"),
    ("x.parquet", b"", "no readable parquet"),
    ("x.tar", b"rubbish" * 200, "cannot be read"),
    ("x.tar", b"", "cannot be read"),
    ("x.txt", "a", "cannot be opened as data. Known are .parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files(tmp_path, name, content, message):
    write_images(tmp_path, 1)
    text = error_of(write(tmp_path / name, content))
    assert message in text and name in text


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_long_captions_are_read_whole(tmp_path, suffix):
    write_images(tmp_path, 2)
    captions = ["word " * 100_000, "short"]
    rows = [{"image": f"{index}.png", "caption": caption} for index, caption in enumerate(captions)]
    lines = [f"{row['image']},{row['caption']}" for row in rows] if suffix == "csv" else map(json.dumps, rows)
    head = ["image,caption"] if suffix == "csv" else []
    file = write(tmp_path / f"x.{suffix}", "\n".join([*head, *lines]))
    assert [each.captions for each in samples(file)] == [[caption.strip()] for caption in captions]


def test_a_file_that_ends_too_early_is_named(tmp_path):
    whole = tar(
        tmp_path / "x.tar", {f"{i}.{s}": image_bytes(i) for i in range(9) for s in ("png", "txt")}
    ).read_bytes()
    text = error_of(write(tmp_path / "cut.tar", whole[:5000]))
    assert "cut.tar" in text and "cannot be read to its end" in text
    content = bytearray(parquet(tmp_path / "x.parquet", [str(i) for i in range(600)]).read_bytes())
    middle = len(content) // 2
    content[middle - 9000 : middle] = bytes(9000)
    text = error_of(write(tmp_path / "damaged.parquet", bytes(content)))
    assert "damaged.parquet row" in text and "cannot be read from here on" in text


def test_files_of_one_source_must_agree(tmp_path):
    parquet(tmp_path / "a.parquet")
    pq.write_table(pa.table({"caption": ["b"]}), tmp_path / "b.parquet")
    assert "a.parquet' has image, caption" in error_of(tmp_path)
    write_images(tmp_path, 1)
    for name, header in (("c.csv", "image,caption"), ("d.csv", "image,text")):
        write(tmp_path / name, f"{header}\n0.png,a\n")
    assert "d.csv' has image, text" in error_of([tmp_path / "c.csv", tmp_path / "d.csv"])
    assert "mixes formats" in error_of([tmp_path / "a.parquet", tmp_path / "c.csv"])
    assert "several kinds of data" in error_of(tmp_path)


def test_splits_by_file_name(tmp_path):
    parquet(tmp_path / "train-00000-of-00001.parquet", ["a"])
    parquet(tmp_path / "val.parquet", ["b"])
    parquet(tmp_path / "test/0.parquet", ["c"])
    assert [samples(tmp_path, split=s)[0].captions for s in ("train", "validation", "val", "test")] == [
        ["a"], ["b"], ["b"], ["c"]
    ]  # fmt: skip
    assert "has the splits" in error_of(tmp_path) and "data.split" in error_of(tmp_path)
    message = error_of(tmp_path, split="tset")
    assert "no split 'tset'" in message and "train" in message and "validation" in message
    parquet(tmp_path / "train_station.parquet", ["d"])
    assert "files of no split: train_station.parquet" in error_of(tmp_path)
    assert [s.captions for s in samples(tmp_path / "val.parquet")] == [["b"]]
    assert "no split 'train'; there is validation" in error_of(tmp_path / "val.parquet", split="train")


def test_data_without_splits_is_train(tmp_path):
    path = parquet(tmp_path / "x.parquet", ["a"], split=["test"])
    assert len(samples(path, split="train")) == len(samples(tmp_path)) == 1
    assert "data.where.COLUMN=test" in error_of(path, split="test")


def test_splits_of_a_saved_data_set(tmp_path):
    both = datasets.DatasetDict({"train": dataset_of(["a"]), "test": dataset_of(["b"])})
    both.save_to_disk(tmp_path)
    assert samples(tmp_path, split="test")[0].captions == ["b"]
    assert "has the splits train, test" in error_of(tmp_path)
    (tmp_path / "train/state.json").write_text("{")
    assert "not a whole save_to_disk folder" in error_of(tmp_path, split="train")


def test_folders_without_data(tmp_path):
    assert "is empty" in error_of(tmp_path)
    write(tmp_path / "notes.txt", "x")
    write(tmp_path / ".hidden/x.parquet", "x")
    assert "holds only notes.txt" in error_of(tmp_path)
    write_images(tmp_path, 2)
    assert "without captions or classes. Add a metadata.csv" in error_of(tmp_path)
    write(tmp_path / "cat/x.png", image_bytes(0))
    write(tmp_path / "dog/y.png", image_bytes(0))
    assert "different depths (0.png, 1.png)" in error_of(tmp_path)
    assert "without captions or classes" in error_of(tmp_path / "0.png")
    assert "empty list" in error_of([])


def test_an_empty_data_set(tmp_path):
    assert "has no rows" in error_of(parquet(tmp_path / "x.parquet", []))


def test_paths_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the Hub for a path"))
    parquet(tmp_path / "data/pairs.parquet")
    assert "did you mean 'pairs.parquet'" in error_of("data/pair.parquet")
    assert "holds data" in error_of("./nothing")
    assert "does not exist either" in error_of("/no/such/folder/x")
    assert "holds pairs.parquet" in error_of("data/emoji")
    assert "matches no file" in error_of("data/*.csv")
    assert "no such file" in error_of(Path("owner/name"))


# The Hub: `load_dataset` is stood in for; what it is called with and what becomes of its answer are tested.


def test_a_hub_id_goes_to_load_dataset_as_a_stream(tmp_path, monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.IterableDatasetDict(
            {name: dataset_of(["a", "b"]).to_iterable_dataset() for name in ("train", "test")}
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [s.captions for s in samples("owner/name:config", split="test")] == [["a"], ["b"]]
    assert calls == [(("owner/name", "config"), {"streaming": True})]
    assert "has the splits train, test" in error_of("owner/name")
    assert "no split 'dev'" in error_of("owner/name", split="dev")


def test_a_hub_stream_without_features(tmp_path, monkeypatch):
    def rows():
        yield {"image": {"bytes": image_bytes(1), "path": None}, "caption": "a"}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"train": stream})
    assert [(s.captions, contents(s)) for s in samples("owner/name")] == [(["a"], image_bytes(1))]


def test_images_at_hub_addresses_are_fetched(tmp_path, monkeypatch):
    def rows():
        yield {"image": {"bytes": None, "path": "hf://datasets/o/n/0.png"}, "caption": "a"}
        yield {"image": {"bytes": None, "path": "hf://datasets/o/n/gone.png"}, "caption": "b"}

    def open_address(path, mode):
        if "gone" in path:
            raise FileNotFoundError(path)
        return io.BytesIO(image_bytes(1))

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"train": stream})
    monkeypatch.setattr("fsspec.open", open_address)
    assert [s.image["bytes"] for s in samples("owner/name")] == [image_bytes(1), None]


def test_an_offline_hub_is_one_line(tmp_path):
    code = (
        "from hf_clip.sources import open_source, SourceError\n"
        "try:\n    open_source('owner/name')\nexcept SourceError as error:\n    print(error)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "'owner/name' is no file or folder" in done.stdout and "HF_HUB_OFFLINE" in done.stdout


# Caption fields


@pytest.mark.parametrize(
    ("field", "captions"),
    [
        (None, []),
        (float("nan"), []),
        ("  ", []),
        (" a cat ", ["a cat"]),
        (["a", None, "", ["b"]], ["a", "b"]),
        ('["a", null, " b "]', ["a", "b"]),
        ("[]", []),
        ("[laughs]", ["[laughs]"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["a", 2]', ['["a", 2]']),
        ("[" * 100_000 + "]", ["[" * 100_000 + "]"]),
        (7, ["7"]),
        (b"caf\xc3\xa9", ["café"]),
        (b"caf\xe9", []),
        ("lone \ud800", []),
        ('["ok", "\\ud800"]', ["ok"]),
    ],
)
def test_caption_fields(field, captions):
    assert clean_captions(field) == captions


FIELDS = st.recursive(
    st.none() | st.text(st.characters()) | st.binary() | st.floats() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.text() | st.none()).map(json.dumps),
    max_leaves=8,
)


@settings(max_examples=soak_count(200, 5000), deadline=None, derandomize=True)
@given(FIELDS)
def test_any_caption_field_gives_clean_captions(field):
    captions = clean_captions(field)
    assert all(caption and caption == caption.strip() and caption.encode() for caption in captions)
    # A caption that was cleaned stays, unless it is itself a JSON list.
    assert clean_captions([c for c in captions if c[0] != "["]) == [c for c in captions if c[0] != "["]


@settings(max_examples=soak_count(100, 2000), deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1), min_size=1))
def test_any_caption_survives_csv_and_json(tmp_path_factory, texts):
    import csv

    folder = tmp_path_factory.mktemp("any")
    write_images(folder, 1)
    with open(folder / "x.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([["image", "caption"], *(["0.png", t] for t in texts)])
    rows = [{"image": "0.png", "caption": text} for text in texts]
    write(folder / "x.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("x.csv", "x.jsonl"):
        assert [s.captions for s in samples(folder / name)] == [clean_captions(text) for text in texts]
