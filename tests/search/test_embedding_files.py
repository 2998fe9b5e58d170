"""Embeddings of data sets in files: whole, resumable, the same on any number of ranks; and exports of an index."""

import io

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_clip import embed_images
from hf_clip.search import Index, SearchError, embed_to_file, embedding_files
from hf_clip.search.store import as_matrix
from hf_clip_cli import main as cli
from tests.helpers.mock_hub import TOKEN, running_hub, use_in_this_process
from tests.helpers.search_toys import GrayEncoder, write_gray
from tests.helpers.squares import NAMES, SIZE, rows, write_parquet
from tests.helpers.toys import tiny_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(NAMES, SIZE)


@pytest.fixture(scope="module")
def content():
    found = rows(2)
    found[7]["image"]["bytes"] = b"broken"
    return found


@pytest.fixture
def data(content, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "PART_ROWS", 10)
    return write_parquet(tmp_path / "pairs.parquet", content)


def test_rows_hold_the_embeddings_of_the_images(clip, content, data, tmp_path):
    found = pq.read_table(embed_to_file(*clip, data, tmp_path / "out.parquet"))
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert found["index"].to_pylist() == list(range(len(content)))
    assert found["key"][9].as_py().endswith("pairs.parquet row 9")
    errors = {at: error for at, error in enumerate(found["error"].to_pylist()) if error}
    assert set(errors) == {7} and "damaged" in errors[7] and found["embedding"][7].as_py() is None
    readable = [io.BytesIO(row["image"]["bytes"]).getvalue() for at, row in enumerate(content) if at != 7]
    wanted = embed_images(*clip, readable)
    assert torch.allclose(torch.tensor(as_matrix(found["embedding"].drop_null())), wanted, atol=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.parquet", "pairs.parquet"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_that_was_stopped_goes_on_with_any_number_of_ranks(clip, data, tmp_path, monkeypatch, ranks):
    whole = pq.read_table(embed_to_file(*clip, data, tmp_path / "whole.parquet"))
    write, written = embedding_files._write_part, []

    def stop_at_the_third(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments[0])
        write(*arguments)

    monkeypatch.setattr(embedding_files, "_write_part", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(*clip, data, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    made = []
    monkeypatch.setattr(
        embedding_files, "_write_part", lambda *arguments: (made.append(arguments[0]), write(*arguments))
    )
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    for rank in reversed(range(ranks)):
        monkeypatch.setenv("RANK", str(rank))
        embed_to_file(*clip, data, tmp_path / "out.parquet")
    assert len(made) == 3 and not set(made) & set(written)
    assert pq.read_table(tmp_path / "out.parquet").equals(whole)


def test_parts_of_another_model_are_refused(clip, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        embed_to_file(*clip, data, tmp_path / "out.parquet")
    other, processor = tiny_clip(NAMES, SIZE)
    with torch.no_grad():
        other.visual_projection.weight.add_(1)
    with pytest.raises(SearchError, match="its model differs"):
        embed_to_file(other, processor, data, tmp_path / "out.parquet")
    with pytest.raises(SearchError, match="neither"):
        embed_to_file(*clip, data, tmp_path / "out.csv")


def test_the_command_writes_a_lance_table(clip, data, tmp_path, capsys):
    for part in clip:
        part.save_pretrained(tmp_path / "model")
    command = ["embed", str(data), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out.lance")]
    assert cli.main(command) == 0
    table = lancedb.connect(tmp_path).open_table("out")
    whole = pq.read_table(embed_to_file(*clip, data, tmp_path / "whole.parquet"))
    assert table.to_arrow().sort_by("index").equals(whole)
    assert cli.main(command) == 2 and "exists" in capsys.readouterr().err


def test_a_data_set_of_the_hub_is_written_when_it_answers(clip, data, tmp_path, monkeypatch):
    whole = pq.read_table(embed_to_file(*clip, data, tmp_path / "whole.parquet"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub({}, tmp_path / "hub") as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        hub.failures += [("repos/create", 400)]
        with pytest.raises(SearchError, match="hf://datasets/me/made cannot be written to"):
            embed_to_file(*clip, data, "hf://datasets/me/made")
        # Made once, and sent with the next call.
        monkeypatch.setattr(embedding_files, "rows_of", None)
        assert embed_to_file(*clip, data, "hf://datasets/me/made") == "hf://datasets/me/made"
        found = pq.read_table(hub.repositories["me/made"] / "data/train-00000-of-00001.parquet")
        assert found.equals(whole) and hub.private["me/made"] and not (tmp_path / "me--made.parquet").exists()
    with pytest.raises(SearchError, match="names no data set"):
        embed_to_file(*clip, data, "hf://datasets/made")


def test_the_command_sends_an_index_to_the_hub(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub({}, tmp_path / "hub") as hub:
        use_in_this_process(hub, monkeypatch, tmp_path / "cache")
        assert cli.main(["index", str(tmp_path / "photos"), "--export", "hf://datasets/me/photos"]) == 0
        found = pq.read_table(hub.repositories["me/photos"] / "data/train-00000-of-00001.parquet")
    index.export(tmp_path / "out.parquet")
    assert found.equals(pq.read_table(tmp_path / "out.parquet")) and "12 images" in capsys.readouterr().out
    assert cli.main(["index", str(tmp_path / "photos"), "--export", "out.csv"]) == 1
    assert "--export out.csv is neither" in capsys.readouterr().err


@pytest.fixture
def index(tmp_path):
    model = GrayEncoder()
    for value in range(12):
        write_gray(tmp_path / f"photos/{value}.png", value)
    (tmp_path / "photos/broken.png").write_bytes(b"broken")
    made = Index.open(tmp_path / "photos", model=model, processor=model.processor)
    made.update()
    return made


def test_an_index_is_exported_to_parquet_and_to_a_data_set(index, tmp_path):
    assert index.export(tmp_path / "out.parquet") == 12
    found = pq.read_table(tmp_path / "out.parquet")
    vectors = as_matrix(found["embedding"])
    assert found["path"].to_pylist() == sorted(f"{value}.png" for value in range(12))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    [hit] = index.search("gray 5", top_k=1)
    assert (
        hit.path == "5.png"
        and found.filter(pa.array([path == "5.png" for path in found["path"].to_pylist()])).num_rows
    )
    dataset = index.to_dataset()
    assert dataset.num_rows == 12 and np.allclose(dataset.with_format("numpy")[:]["embedding"], vectors)
    with pytest.raises(SearchError, match="neither"):
        index.export(tmp_path / "out.csv")


def test_an_index_is_exported_to_faiss(index, tmp_path):
    faiss = pytest.importorskip("faiss")
    index.export(tmp_path / "out.faiss")
    names = (tmp_path / "out.faiss.paths").read_text().splitlines()
    query = index._text_embeds(index._entry(), ["gray 5"])
    _, ids = faiss.read_index(str(tmp_path / "out.faiss")).search(query, 5)
    assert [names[at] for at in ids[0]] == [hit.path for hit in index.search("gray 5", top_k=5)]


def test_an_index_is_exported_to_qdrant(index):
    qdrant = pytest.importorskip("qdrant_client")
    client = qdrant.QdrantClient(":memory:")
    for _ in range(2):
        assert index.to_qdrant(client, "photos") == 12
    query = index._text_embeds(index._entry(), ["gray 5"])[0]
    found = client.query_points("photos", query=query.tolist(), limit=5).points
    assert [point.payload["path"] for point in found] == [hit.path for hit in index.search("gray 5", top_k=5)]
