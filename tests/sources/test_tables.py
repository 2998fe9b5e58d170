"""CSV, TSV, JSON lines: what is wrong is told in one line, and a bad row is one row."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip.sources import clean_captions, iterate_samples, list_shards, open_source
from tests.helpers.counts import soak_count
from tests.helpers.data_files import error_of, image_bytes, samples, write, write_images, write_pairs, write_tar

BAD_FILES = [
    ("x.csv", "image,caption\n0.png,a,b\n", "line 2 has 3 fields, the header has 2"),
    ("x.csv", 'image,caption\n0.png,"a\n', "cannot be read from line 2 on"),
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
    ("x.jsonl", '{"image"\n', "line 1 is no JSON ("),
    ("x.jsonl", "[1]\n", "line 1 is no JSON object"),
    ("x.json", "[1, 2]", "row 0 is no JSON object"),
    ("x.json", "[", "is no JSON"),
    ("x.jsonl", b"\xff\xfe{}", "not UTF-8"),
    ("x.parquet", b"PAR1 not really PAR1", "no readable parquet"),
    ("x.parquet", b"", "no readable parquet"),
    ("x.tar", b"rubbish" * 200, "cannot be read"),
    ("x.tar", b"", "cannot be read"),
    ("x.txt", "a", "cannot be opened as data. Known are .parquet"),
]


@pytest.mark.slow
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
    read = samples(write_tar(tmp_path / "x.tar", members | {"3.png": image_bytes(3), "3.txt": "three"}))
    assert [s.captions for s in read] == [[], ["no image"], [], ["three"]]
    assert [s.image["bytes"] for s in read] == [b"rubbish", None, image_bytes(2), image_bytes(3)]
    write_images(tmp_path, 1)
    rows = [{"image": "0.png", "caption": "a"}, {"image": "gone.png", "caption": "b"}, {"caption": "c"}]
    read = samples(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows))))
    assert [s.image["path"] for s in read] == [str(tmp_path / "0.png"), str(tmp_path / "gone.png"), None]


@pytest.mark.slow
def test_a_file_that_ends_too_early_is_named(tmp_path):
    whole = write_tar(
        tmp_path / "x.tar", {f"{i}.{s}": image_bytes(i) for i in range(9) for s in ("png", "txt")}
    ).read_bytes()
    text = error_of(write(tmp_path / "cut.tar", whole[:5000]))
    assert "cut.tar" in text and "cannot be read to its end" in text
    content = bytearray(write_pairs(tmp_path / "x.parquet", [str(i) for i in range(600)]).read_bytes())
    middle = len(content) // 2
    content[middle - 9000 : middle] = bytes(9000)
    text = error_of(write(tmp_path / "damaged.parquet", bytes(content)))
    assert "damaged.parquet row" in text and "cannot be read from here on" in text


@pytest.mark.slow
@settings(max_examples=soak_count(100, 2000), deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1), min_size=1))
def test_any_caption_survives_csv_and_json(tmp_path_factory, texts):

    folder = tmp_path_factory.mktemp("any")
    write_images(folder, 1)
    with open(folder / "x.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([["image", "caption"], *(["0.png", t] for t in texts)])
    rows = [{"image": "0.png", "caption": text} for text in texts]
    write(folder / "x.jsonl", "\n".join(map(json.dumps, rows)))
    for name in ("x.csv", "x.jsonl"):
        assert [s.captions for s in samples(folder / name)] == [clean_captions(text) for text in texts]


@pytest.mark.parametrize(
    ("table", "captions"),
    [
        ('image\tcaption\n0.png\t"red" cat\n0.png\t5" screen\n0.png\t"open\n', '"red" cat|5" screen|"open'),
        ('caption\timage\n"hello" he said\t0.png\nplain\t0.png\n', '"hello" he said|plain'),
        # What begins with one quote would end at the other, and swallow a row.
        ('caption\timage\n"open\t0.png\nb\t0.png\n"open\t0.png\n', '"open|b|"open'),
        ('image\tcaption\n0.png\t"two\nlines"\n0.png\t"say ""hi"""\n', 'two\nlines|say "hi"'),
    ],
)  # fmt: skip
def test_tsv_has_quotes_only_where_all_of_them_close(tmp_path, table, captions):
    write_images(tmp_path, 1)
    source = open_source(write(tmp_path / "x.tsv", table))
    expected = [[caption] for caption in captions.split("|")]
    assert [s.captions for s in iterate_samples(source)] == expected
    assert [s.captions for shard in list_shards(source) for s in shard.read()] == expected


def test_a_quote_far_into_a_tsv_file_is_a_quote(tmp_path):
    write_images(tmp_path, 1)
    table = "image\tcaption\n" + "0.png\tplain\n" * 300 + '0.png\t"red" cat\n0.png\tend\n'
    read = samples(write(tmp_path / "x.tsv", table))
    assert len(read) == 302 and read[300].captions == ['"red" cat'] and read[300].key.endswith("line 302")


BAD_ROWS = [
    ("x.csv", "image,caption\n0.png,a\n", "0.png,a cat, with a comma\n", "line 3 has 3 fields, the header has 2"),
    ("x.csv", "image,caption\n0.png,a\n", "0.png\n", "line 3 has 1 field, the header has 2"),
    ("x.csv", "image,caption\n0.png,a\n", '0.png,"red" cat\n', "line 3 is no CSV"),
    ("x.jsonl", '{"image": "0.png", "caption": "a"}\n', '{"image"\n', "line 2 is no JSON ("),
    ("x.jsonl", '{"image": "0.png", "caption": "a"}\n', "[1]\n", "line 2 is no JSON object: '[1]'"),
]


@pytest.mark.parametrize(("name", "first", "bad", "message"), BAD_ROWS)
def test_one_bad_row_is_one_skipped_row(tmp_path, caplog, name, first, bad, message):
    write_images(tmp_path, 1)
    good = first.splitlines(keepends=True)[-1]
    source = open_source(write(tmp_path / name, first + bad + good * 2 + bad))
    for read in (list(iterate_samples(source)), [s for shard in list_shards(source) for s in shard.read()]):
        assert [s.captions for s in read] == [["a"], [], ["a"], ["a"], []]
        assert [s.image["path"] is None for s in read] == [False, True, False, False, True]
    assert message in caplog.text
    assert len(caplog.records) == 1, "one line a kind, however many rows and passes"


def test_a_row_that_is_no_utf8_costs_itself_alone(tmp_path, caplog):
    write_images(tmp_path, 1)
    rows = [b"0.png,plain\n"] * 150 + [b"0.png,caf\xe9\n", b"0.png,end\n"]
    read = samples(write(tmp_path / "x.csv", b"image,caption\n" + b"".join(rows)))
    assert len(read) == 152 and read[150].captions == [] and read[151].captions == ["end"]
    assert "line 152 is not UTF-8 (byte 0xe9)" in caplog.text


@pytest.mark.parametrize("first_line", ["a red cat\t0.png", "a red cat\thttp://x.invalid/0.png"])
def test_a_table_without_a_header_is_called_so(tmp_path, first_line):
    write_images(tmp_path, 1)
    message = error_of(write(tmp_path / "x.tsv", f"{first_line}\na dog\t0.png\n"))
    assert "is no header, but a row: write the names of the columns above it" in message


def test_a_column_that_begins_late_can_be_named(tmp_path):
    write_images(tmp_path, 1)
    rows = [{"image": "0.png", "caption": "a"}] * 150 + [{"image": "0.png", "caption": "a", "late": "b"}]
    table = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    read = samples(table, caption_columns="late")
    assert len(read) == 151 and read[149].captions == [] and read[150].captions == ["b"]
    assert "no column 'later'" in error_of(table, caption_columns="later")


def test_a_file_that_is_gone_is_one_line(tmp_path):
    write_images(tmp_path, 1)
    write(tmp_path / "train.csv", "image,caption\n0.png,a\n")
    (tmp_path / "z.csv").symlink_to(tmp_path / "gone.csv")
    assert "z.csv' cannot be read (No such file or directory)" in error_of(
        [tmp_path / "train.csv", tmp_path / "z.csv"]
    )
    assert "is no file or folder" in error_of("a" * 300)


def test_a_column_of_maps_that_nothing_reads_refuses_no_file(tmp_path):
    pairs = pa.array([[("a", "b")]] * 3, pa.map_(pa.string(), pa.string()))
    images = [{"bytes": image_bytes(index), "path": None} for index in range(3)]
    pq.write_table(pa.table({"image": images, "caption": ["x", "y", "z"], "extra": pairs}), tmp_path / "maps.parquet")
    assert [sample.captions for sample in samples(tmp_path / "maps.parquet")] == [["x"], ["y"], ["z"]]
