"""Columns: found by name or set, of labels, concepts, captions, and what keeps rows."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clip.sources import SourceError, iterate_samples, list_shards, open_source
from tests.helpers.data_files import (
    CAPTIONS,
    dataset_of,
    error_of,
    samples,
    write,
    write_images,
    write_pairs,
    write_tar,
)


def test_blank_concepts_and_labels_are_none(tmp_path):
    write_pairs(tmp_path / "x.parquet", concept=["", " ", "a", None, "b"], label=["", "dog", " ", "cat", None])
    read = samples(tmp_path / "x.parquet")
    assert [s.concept for s in read] == [None, None, "a", None, "b"]
    assert [s.label for s in read] == [None, "dog", None, "cat", None]
    write_pairs(tmp_path / "nan.parquet", concept=[float("nan")] * 5)
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
    path = write_pairs(tmp_path / "x.parquet", ["a", "", None], keywords=[["k", " "], [], None])
    assert [s.captions for s in samples(path, caption_columns=("caption", "keywords"))] == [
        ["a", "k"],
        [],
        [],
    ]
    assert [s.captions for s in samples(path, caption_columns="keywords")] == [["k"], [], []]
    assert [s.captions for s in samples(path)] == [["a"], [], []]


def test_ambiguous_columns_name_the_choices_and_the_option(tmp_path):
    path = write_pairs(tmp_path / "x.parquet", ["a"], captions=["b"])
    message = error_of(path)
    assert "caption, captions" in message and "Set `caption_columns` to some of them" in message
    assert samples(path, caption_columns="captions")[0].captions == ["b"]
    table = write(tmp_path / "x.csv", "file_name,path,text\na.png,b.png,t\n")
    assert "file_name, path" in error_of(table) and "`image_column`" in error_of(table)


def test_a_set_column_that_is_missing(tmp_path):
    path = write_pairs(tmp_path / "x.parquet")
    for option in ("image_column", "caption_columns", "label_column", "concept_column"):
        message = error_of(path, **{option: "nope"})
        assert "'nope'" in message and "Columns: image, caption" in message and f"`{option}`: " in message
    assert "neither images" in error_of(write_pairs(tmp_path / "y.parquet", ["a"], n=[1]), image_column="n")


def test_columns_that_cannot_be_found(tmp_path):
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": None}], "n": [1]}), tmp_path / "x.parquet")
    assert "no column that looks like a caption. Columns: image, n" in error_of(tmp_path / "x.parquet")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "y.parquet")
    assert "no column that looks like an image. Columns: caption" in error_of(tmp_path / "y.parquet")
    assert "image" in error_of(write_tar(tmp_path / "z.tar", {"0.txt": "a"}))


def test_columns_of_objects_are_refused_by_name(tmp_path):
    objects = [{"raw": "a dog", "lang": "en"}] * 5
    for option, column in (("caption_columns", "captions"), ("label_column", "label"), ("concept_column", "concept")):
        folder = tmp_path / option
        file = write_pairs(folder / "x.parquet", **{column: objects})
        message = error_of(file, **{option: column})
        assert f"column {column!r} of" in message
        assert f"holds objects, not texts or numbers. Columns: image, caption, {column}" in message
        write_images(folder, 1)
        rows = [{"image": "0.png", "words": "a", column: objects[0]}, {"image": "0.png", "words": "b", column: None}]
        table = write(folder / "x.jsonl", "\n".join(map(json.dumps, rows)))
        assert f"column {column!r} of" in error_of(table, **{option: column})
        others = dict.fromkeys(("caption_columns", "label_column", "concept_column"), "words")
        assert [s.captions for s in samples(table, **others)] == [["a"], ["b"]]


def test_single_objects_among_texts_cost_their_row_and_are_named(tmp_path, caplog):
    write_images(tmp_path, 1)
    values = ["a cat", {"raw": "a dog"}, [["nested"]], [{"raw": "x"}], True, float("nan"), 7, ["one", None, "two"]]
    rows = [{"image": "0.png", "caption": value, "label": value, "concept": value} for value in values]
    read = samples(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows))))
    assert [s.captions for s in read] == [["a cat"], [], ["nested"], [], [], [], ["7"], ["one", "two"]]
    assert [s.concept for s in read] == ["a cat", None, "nested", None, "true", None, "7", None]
    assert [s.labels for s in read] == [("a cat",), (), ("nested",), (), ("true",), (), ("7",), ("one", "two")]
    assert "x.jsonl line 2 column 'caption' holds an object (keys raw), not texts" in caplog.text
    assert "x.jsonl line 2 column 'concept' holds an object (keys raw), not a text or number" in caplog.text
    assert not any("{" in text or "[" in text for s in read for text in (*s.captions, *s.labels, s.concept or ""))


def test_a_column_of_lists_is_no_column_of_single_labels(tmp_path):
    one, several = [["cat"], [], None, ["dog"], ["cat"]], [["cat", "dog"], ["cat"], [], ["dog"], ["dog", "cat"]]
    for suffix, labels in (("typed", pa.list_(pa.string())), ("plain", None)):
        columns = {"label": pa.array(one, labels) if labels else one}
        read = samples(write_pairs(tmp_path / f"{suffix}.parquet", **columns))
        assert [s.label for s in read] == ["cat", None, None, "dog", "cat"]
    read = samples(write_pairs(tmp_path / "several.parquet", label=several))
    assert [s.labels for s in read] == [("cat", "dog"), ("cat",), (), ("dog",), ("dog", "cat")]
    with pytest.raises(SourceError, match="parquet row 0 .*has 2 labels .cat, dog., and one is wanted. Set `label_c"):
        read[0].label  # noqa: B018


def test_where_knows_one_spelling_of_booleans_and_whole_numbers(tmp_path):
    write_images(tmp_path, 1)
    table = write(tmp_path / "x.csv", "image,caption,ok,n\n0.png,a,True,3.0\n0.png,b,false,3\n0.png,c,TRUE,30\n")
    assert [s.captions for s in samples(table, where={"ok": True})] == [["a"], ["c"]]
    assert [s.captions for s in samples(table, where={"ok": "False"})] == [["b"]]
    assert [s.captions for s in samples(table, where={"n": 3})] == [["a"], ["b"]]
    floats = write_pairs(tmp_path / "x.parquet", n=[3.0, 1.0, None, 2.5, 3.0], ok=[True, False, True, None, False])
    assert len(samples(floats, where={"n": "3"})) == 2 and len(samples(floats, where={"ok": "True"})) == 2
    assert "`where`: the value of 'n' holds an object (keys min)" in error_of(floats, where={"n": {"min": 1}})


def test_keywords_and_labels_of_tables_may_be_lists(tmp_path):
    write_images(tmp_path, 1)
    rows = [{"image": "0.png", "caption": "a", "tags": ["x", "y"], "label": ["cat", "dog"]}]
    rows.append({"image": "0.png", "caption": "b", "tags": "z", "label": "cat"})
    table = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    read = samples(table, keyword_columns="tags")
    assert [(s.keywords, s.labels) for s in read] == [(["x", "y"], ("cat", "dog")), (["z"], ("cat",))]
    assert len(samples(table, where={"label": "dog"})) == 1


def test_lists_in_a_table_of_texts_are_json(tmp_path):
    write_images(tmp_path, 1)
    lines = ["image,caption,label", '0.png,"[""a cat"", ""a pet""]","[""cat"", ""dog""]"']
    lines += ["0.png,[blurry] a cat,cat", '0.png,"[a, b]","[3, null]"', "0.png,[1],[]"]
    read = samples(write(tmp_path / "x.csv", "\n".join(lines)))
    assert [s.labels for s in read] == [("cat", "dog"), ("cat",), ("3",), ()]
    assert [s.captions for s in read] == [["a cat", "a pet"], ["[blurry] a cat"], ["[a, b]"], ["[1]"]]


@pytest.mark.parametrize("column", ["caption", "label"])
@pytest.mark.parametrize("text", ["['bird', 'cat']", "{'raw': 'a cat'}", "['it''s', None]"])
def test_lists_as_pandas_writes_them_are_refused(tmp_path, column, text):
    write_images(tmp_path, 1)
    row = {"caption": "a cat", "label": "cat"} | {column: text}
    lines = ["image,caption,label", "0.png,a,b", f'0.png,"{row["caption"]}","{row["label"]}"']
    source = open_source(write(tmp_path / "x.csv", "\n".join(lines)))
    for read in (lambda: list(iterate_samples(source)), lambda: [list(shard.read()) for shard in list_shards(source)]):
        with pytest.raises(
            SourceError, match=f"x.csv line 3.*: column '{column}' holds the text of .*json.dumps"
        ) as error:
            read()
        assert "\n" not in str(error.value)


def test_a_label_beyond_the_names_is_called_so(tmp_path):
    names = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    table = pq.read_table(write_pairs(tmp_path / "x.parquet", label=[0, 1, -1, 7, 0]))
    features = datasets.Features({**datasets.Features.from_arrow_schema(table.schema), **names})
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert source.label_names == ("cat", "dog")
    read = iterate_samples(source)
    assert [next(read).label for _ in range(3)] == ["cat", "dog", None]
    with pytest.raises(SourceError, match="x.parquet row 3 has a label beyond the names of the classes"):
        next(read)
