"""Captions of another table, joined to images by a key."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clip.sources import CaptionTable, SourceError, iterate_samples, list_shards, open_source
from tests.helpers.data_files import write, write_pairs

ROWS = [("a", "en", "one"), ("b", "en", "two"), ("a", "de", "eins"), ("a", "fr", "one"), ("z", "de", "zett")]


@pytest.fixture
def images(tmp_path):
    return write_pairs(
        tmp_path / "images.parquet", ["own 0", "own 1", "own 2", None], id=pa.array(list("abc") + ["a"])
    )


def write_table(folder, kind: str):
    if kind == "csv":
        lines = ["id,lang,caption", *(",".join(row) for row in ROWS)]
        return write(folder / "names.csv", "\n".join(lines) + "\n")
    if kind == "jsonl":
        lines = [json.dumps(dict(zip(("id", "lang", "caption"), row, strict=True))) for row in ROWS]
        return write(folder / "names.jsonl", "\n".join(lines) + "\n")
    columns = dict(zip(("id", "lang", "caption"), zip(*ROWS, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / "names.parquet")
    return folder / "names.parquet"


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_images_get_the_captions_of_their_key(kind, images, tmp_path):
    table = CaptionTable(write_table(tmp_path, kind), "id", language_column="lang")
    source = open_source(images, join=table)
    # In the order of the table, equal ones once; the table does not know c.
    expected = [["one", "eins"], ["two"], [], ["one", "eins"]]
    assert [sample.captions for sample in iterate_samples(source)] == expected
    # As the stream of training reads them: parts, from any row on.
    read = [sample.captions for shard in list_shards(source) for sample in shard.read(1)]
    assert read == [["two"], ["one", "eins"]]
    assert source.joined is not None
    assert source.joined.by_language("a") == {"en": ["one"], "de": ["eins"], "fr": ["one"]}
    # Named columns come first, and keep images that the table does not know.
    both = open_source(images, caption_columns="caption", join=table)
    expected = [["own 0", "one", "eins"], ["own 1", "two"], ["own 2"], ["one", "eins"]]
    assert [sample.captions for sample in iterate_samples(both)] == expected


def test_rows_of_the_table_are_kept_by_their_values(images, tmp_path):
    table = CaptionTable(write_table(tmp_path, "csv"), "id", where={"lang": ["de", "fr"]})
    assert [sample.captions for sample in iterate_samples(open_source(images, join=table))] == [
        ["eins", "one"],
        [],
        [],
        ["eins", "one"],
    ]


def test_keys_that_are_numbers_on_one_side_join(tmp_path):
    """A table in CSV has texts, and pandas makes 3.0 of a 3 in a column with gaps."""
    images = write_pairs(tmp_path / "images.parquet", ["x", "y"], id=pa.array([3.0, None]))
    table = CaptionTable(write(tmp_path / "names.csv", "id,caption\n3,three\n"), "id")
    assert [sample.captions for sample in iterate_samples(open_source(images, join=table))] == [["three"], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_column": "key"}, "`key_column`: .*names.csv' has no column 'key'. Columns: id, lang, caption"),
        ({"caption_column": "name"}, "`caption_column`: .*names.csv' has no column 'name'"),
        ({"language_column": "tongue"}, "`language_column`: .*names.csv' has no column 'tongue'"),
        ({"where": {"tongue": "de"}}, "`where`: .*names.csv' has no column 'tongue'"),
        ({"where": {"lang": "la"}}, "has no row to `join`: check its columns, and its `where`"),
        ({"key_column": "lang"}, "has no column 'lang'. Columns: image, caption, id"),
        ({"key_column": "caption", "caption_column": "lang"}, r"no value of column 'caption' .*own 0.*one, two, eins"),
    ],
)
def test_a_table_that_cannot_be_joined_is_an_error(options, message, images, tmp_path):
    table = CaptionTable(write_table(tmp_path, "csv"), **{"key_column": "id", **options})
    with pytest.raises(SourceError, match=message):
        open_source(images, join=table)
