"""Ray on two nodes of this machine, one of which dies: the same table; and the same answers as one process."""

import random
import threading

import pyarrow.parquet as pq
import pytest

from hf_clip.search import Index, SearchError, embed_to_file, embedding_files, ray_nodes
from tests.helpers import ray_worker
from tests.helpers.counts import soak_count
from tests.helpers.search_toys import GrayEncoder, write_gray
from tests.helpers.squares import NAMES, SIZE, rows, write_parquet
from tests.helpers.toys import tiny_clip

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "setup_worker_path": ray_worker.__file__}
IS_SOAK = soak_count(0, 1) == 1
# That a node died is noticed within seconds, not within a quarter of a minute.
NOTICED = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
    made = Cluster(initialize_head=True, head_node_args={**NODE, **quiet, "_system_config": NOTICED})
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def second(cluster):
    """A second node, which the last test that asks for it kills."""
    return cluster.add_node(**NODE)


def test_actors_give_the_answers_of_one_process(cluster, second, tmp_path):
    third = cluster.add_node(**NODE) if IS_SOAK else None
    model = GrayEncoder()
    for value in range(60):
        write_gray(tmp_path / f"{value}.png", value, size=8 + value)
    alone = Index.open(tmp_path, model=model, processor=model.processor)
    alone.update()
    many = Index.open(tmp_path, model=model, processor=model.processor, ray=cluster.address)
    for where in (None, "width < 40", "width > 1000"):
        assert many.search("gray 7", where=where, top_k=30) == alone.search("gray 7", where=where, top_k=30)
    assert many.recommend(["3.png"], ["9.png"]) == alone.recommend(["3.png"], ["9.png"])
    with pytest.raises(SearchError) as told:
        many.search("gray 7", where="nope = 1")
    assert "`where=nope = 1` cannot be understood" in str(told.value) and "_rowid" not in str(told.value)
    # Rows that were added since, and a node that is no more.
    write_gray(tmp_path / "new.png", 7)
    alone.update()
    if third:
        cluster.remove_node(third, allow_graceful=False)
    hits = many.search("gray 7", top_k=61)
    assert hits == alone.search("gray 7", top_k=61) and {hits[0].path, hits[1].path} == {"7.png", "new.png"}


def test_a_node_that_dies_in_the_middle_changes_no_bit_of_the_table(cluster, second, tmp_path, monkeypatch):
    clip = tiny_clip(NAMES, SIZE)
    content = rows(2)
    content[7]["image"]["bytes"] = b"broken"
    monkeypatch.setattr(embedding_files, "PART_ROWS", 4)
    data = write_parquet(tmp_path / "pairs.parquet", content)
    whole = pq.read_table(embed_to_file(*clip, data, tmp_path / "whole.parquet"))
    write, written = embedding_files._write_part, []

    def kill_after_the_second(*arguments):
        write(*arguments)
        written.append(arguments[0])
        if len(written) == 2:
            cluster.remove_node(second, allow_graceful=False)

    monkeypatch.setattr(embedding_files, "_write_part", kill_after_the_second)
    found = pq.read_table(embed_to_file(*clip, data, tmp_path / "out.parquet", ray=cluster.address))
    assert found.equals(whole) and len(written) == len(set(written)) == len(content) // 4
    assert second not in cluster.list_all_nodes()


@pytest.mark.skipif(not IS_SOAK, reason="kills at random moments: make soak")
def test_kills_at_random_moments_change_no_bit(cluster, tmp_path, monkeypatch):
    clip, draw = tiny_clip(NAMES, SIZE), random.Random(0)
    monkeypatch.setattr(embedding_files, "PART_ROWS", 2)
    data = write_parquet(tmp_path / "pairs.parquet", rows(8))
    whole = pq.read_table(embed_to_file(*clip, data, tmp_path / "whole.parquet"))
    for number in range(10):
        node = cluster.add_node(**NODE)
        killer = threading.Timer(draw.uniform(0, 8), cluster.remove_node, (node,), {"allow_graceful": False})
        killer.start()
        output = embed_to_file(*clip, data, tmp_path / f"{number}.parquet", ray=cluster.address)
        killer.join()
        assert pq.read_table(output).equals(whole)


def test_an_address_without_an_answer_is_one_line():
    pytest.importorskip("ray").shutdown()
    with pytest.raises(SearchError, match="`ray=nowhere` cannot be reached") as told:
        ray_nodes.connect("nowhere")
    assert "\n" not in str(told.value)
