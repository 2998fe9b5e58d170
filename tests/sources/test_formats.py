"""Every format comes out as the same samples, in streams and in shards."""

import json
import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_clip.sources import DataSpec, iterate_samples, list_shards, open_source
from tests.helpers.data_files import (
    CAPTIONS,
    IMAGE_TYPE,
    contents,
    dataset_of,
    error_of,
    image_bytes,
    quoted,
    samples,
    write,
    write_images,
    write_pairs,
    write_tar,
)


def make_parquet_of_datasets(folder):
    dataset_of().to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def make_parquet_of_pyarrow(folder):
    return write_pairs(folder / "pairs.parquet")


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
    write_tar(folder / "1.tar", members[3] | members[4])
    write_tar(folder / "0.tar", members[0] | {"a/1.json": json.dumps({"caption": "x"})} | members[1] | members[2])
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


def test_lists_and_patterns_of_files(tmp_path):
    first, second = (
        write_pairs(tmp_path / "b.parquet", ["one"]),
        write_pairs(tmp_path / "a[1].parquet", ["two", "three"]),
    )
    assert [s.captions for s in samples([first, str(second)])] == [["one"], ["two"], ["three"]]
    source = open_source(str(tmp_path / "*.parquet"))
    read = list(iterate_samples(source))
    assert [s.captions for s in read] == [["two"], ["three"], ["one"]]
    assert source.num_rows == 3
    assert source.dataset.num_shards == 2
    assert "a[1].parquet row 1" in read[1].key and "b.parquet row 0" in read[2].key


def test_an_image_inside_a_file_is_never_taken_from_the_working_folder(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "x.tar", {"0.png": image_bytes(7), "0.txt": "seven"})
    table = write_pairs(tmp_path / "x.parquet", ["zero"])
    work = tmp_path / "work"
    write(work / "0.png", b"another image")
    monkeypatch.chdir(work)
    assert contents(samples(shard)[0]) == image_bytes(7)
    assert contents(samples(table, where={"caption": "zero"})[0]) == image_bytes(0)


def test_large_shards_are_read_in_parts(tmp_path, monkeypatch):
    path = write_pairs(tmp_path / "x.parquet", [str(i) for i in range(20)], row_group_size=10)
    monkeypatch.setattr("hf_clip.sources.readers.IMAGES_AT_A_TIME", 3)
    lengths, iter_batches = [], pq.ParquetFile.iter_batches

    def counted(self, *args, **kwargs):
        for batch in iter_batches(self, *args, **kwargs):
            lengths.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    source = open_source(path)
    assert sum(lengths) <= 6
    assert [s.captions for s in iterate_samples(source)] == [[str(i)] for i in range(20)]
    assert max(lengths) == 3
    assert [shard.num_rows for shard in list_shards(source)] == [10, 10], "a shard is a row group"


def test_files_of_one_source_must_agree(tmp_path):
    write_pairs(tmp_path / "a.parquet")
    pq.write_table(pa.table({"caption": ["b"]}), tmp_path / "b.parquet")
    assert "a.parquet' has image, caption" in error_of(tmp_path)
    write_images(tmp_path, 1)
    for name, header in (("c.csv", "image,caption"), ("d.csv", "image,text")):
        write(tmp_path / name, f"{header}\n0.png,a\n")
    assert "d.csv' has image, text" in error_of([tmp_path / "c.csv", tmp_path / "d.csv"])
    assert "mixes formats" in error_of([tmp_path / "a.parquet", tmp_path / "c.csv"])
    assert "several kinds of data" in error_of(tmp_path)


def test_an_empty_data_set(tmp_path):
    assert "has no rows" in error_of(write_pairs(tmp_path / "x.parquet", []))


def lists_of_images(kind) -> list:
    return [[kind(image_bytes(i))] for i in range(5)]


def make_lists_of_structs(folder):
    columns = {"images": lists_of_images(lambda content: {"bytes": content, "path": None}), "caption": CAPTIONS}
    pq.write_table(pa.table(columns), folder / "lists.parquet")
    return folder / "lists.parquet"


def make_lists_of_bytes(folder):
    pq.write_table(pa.table({"image": lists_of_images(bytes), "caption": CAPTIONS}), folder / "lists.parquet")
    return folder / "lists.parquet"


def make_typed_lists(folder):
    features = datasets.Features({"images": datasets.List(datasets.Image()), "text": datasets.Value("string")})
    columns = {"images": lists_of_images(lambda content: {"bytes": content, "path": None}), "text": CAPTIONS}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


def make_lists_of_paths(folder):
    rows = [{"images": [n], "text": t} for n, t in zip(write_images(folder), CAPTIONS, strict=True)]
    return write(folder / "x.jsonl", "\n".join(map(json.dumps, rows)))


def make_structs_with_relative_paths(folder):
    """Some with bytes, too, beside a file of the same name with another image."""
    write_images(folder / "images")
    write(folder / "0.png", image_bytes(9))
    images = [{"bytes": image_bytes(0), "path": "0.png"}]
    images += [{"bytes": None, "path": f"images/{i}.png"} for i in range(1, 5)]
    table = pa.table({"image": pa.array(images, IMAGE_TYPE), "caption": CAPTIONS})
    pq.write_table(table, folder / "structs.parquet", row_group_size=2)
    return folder / "structs.parquet"


@pytest.mark.parametrize(
    "make",
    [
        make_lists_of_structs,
        make_lists_of_bytes,
        make_typed_lists,
        make_lists_of_paths,
        make_structs_with_relative_paths,
    ],
)
def test_lists_of_one_image_and_paths_relative_to_the_table(make, tmp_path, monkeypatch):
    data = make(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = open_source(data)
    for read in (iterate_samples(source), (sample for shard in list_shards(source) for sample in shard.read())):
        assert [(sample.captions, contents(sample)) for sample in read] == [
            ([text], image_bytes(i)) for i, text in enumerate(CAPTIONS)
        ]


def test_a_list_of_several_images_costs_its_row(tmp_path, caplog):
    images = [[image_bytes(0)], [image_bytes(1), image_bytes(2)], [], [image_bytes(3)]]
    pq.write_table(pa.table({"image": images, "caption": list("abcd")}), tmp_path / "x.parquet")
    read = samples(tmp_path / "x.parquet")
    assert [s.image["bytes"] for s in read] == [image_bytes(0), None, None, image_bytes(3)]
    assert "x.parquet row 1 holds a list of 2 (bytes) where an image belongs" in caplog.text


def test_data_spec_opens_what_open_source_does(tmp_path):
    columns = {"concept": list("aabbc"), "word": list("vwxyz"), "label": [0, 1, 0, 1, 0]}
    parquet_file = write_pairs(tmp_path / "x.parquet", **columns)
    roles = {
        "image_column": "image",
        "caption_columns": ["caption"],
        "keyword_columns": ["word"],
        "label_column": "label",
        "concept_column": "concept",
        "where": {"concept": ["a", "c"]},
        "split": "train",
    }
    by_spec = list(iterate_samples(DataSpec(parquet_file, **roles).open()))
    assert by_spec == samples(parquet_file, **roles)
    assert [(s.concept, s.keywords, s.label) for s in by_spec] == [
        ("a", ["v"], "0"), ("a", ["w"], "1"), ("c", ["z"], "0")
    ]  # fmt: skip
