"""What processes do together besides steps: evaluations, waits, and telling who is slow."""

import json
import os
import signal
from pathlib import Path

import pytest

from hf_clip.evaluation import features
from hf_clip.training import load_recipe, loop, speed, train
from hf_clip.training.loop import TrainingIncomplete, TrainingStopped
from hf_clip.training.progress import ProgressLog
from hf_clip.training.speed import OwnTime, SpeedMeter, count_pair_flops, describe_stragglers, peak_teraflops
from tests.helpers.counts import soak_count
from tests.helpers.quick_ends import end_quickly
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe

ROWS = 72


@pytest.fixture
def file(tmp_path):
    data = str(write_parquet(tmp_path / "train.parquet", rows(ROWS // 24)))
    evaluations = {
        "seen": {"data": [data]},
        "colors": {"task": "zero-shot", "data": [data], "label_column": "caption"},
    }
    return write_recipe(
        tmp_path / "recipe.yaml",
        recipe(data, steps=3, batch_size=24, evaluations=evaluations, device_teraflops=1e-3),
    )


def train_and_look(file: Path, folder: Path, on_rank_1: str | None = None) -> tuple[str, dict, int, list[str]]:
    """How the run ended here, the evaluations' numbers, how many images were encoded here, and what was said."""
    patch = pytest.MonkeyPatch()
    end_quickly(patch)
    # Of the parts in which images are dealt.
    features.IMAGES_PER_FILE = 10
    is_odd, found, encoded, said = os.environ.get("RANK") == "1", {}, [], []
    decode, run, numbers = features.decode_image, loop.run_evaluations, SpeedMeter.numbers

    def decode_image(image):
        encoded.append(image)
        if is_odd and len(encoded) == 12:
            if on_rank_1 == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if on_rank_1 == "failure":
                raise MemoryError("no more")
        return decode(image)

    def run_evaluations(*args, **options):
        results = run(*args, **options)
        found.update({name: result.to_dict() | {"seconds": 0} for name, result in results.items()})
        return results

    def slow_numbers(meter, *args):
        meter.stream.seconds += 5.0 * is_odd
        return numbers(meter, *args)

    patch.setattr(features, "decode_image", decode_image)
    patch.setattr(loop, "run_evaluations", run_evaluations)
    patch.setattr(SpeedMeter, "numbers", slow_numbers)
    patch.setattr(ProgressLog, "say", lambda log, text: said.append(text))
    try:
        train(load_recipe(file), folder)
    except (TrainingStopped, TrainingIncomplete) as ended:
        return str(ended), found, len(encoded), said
    finally:
        patch.undo()
    return "finished", found, len(encoded), said


@pytest.mark.slow
def test_two_processes_evaluate_together_and_name_the_slow_one(file, tmp_path):
    alone = train_and_look(file, tmp_path / "alone")
    assert alone[0] == "finished" and alone[2] == 2 * ROWS
    both = run_on_ranks(train_and_look, 2, file, tmp_path / "both")
    assert [ended for ended, *_ in both] == ["finished"] * 2
    # Of 72 images in parts of 10, one process has the odd ones.
    assert [encoded for _, _, encoded, _ in both] == [2 * 40, 2 * 32]
    assert both[0][1] == both[1][1]
    for name, numbers in alone[1].items():
        assert set(both[0][1][name]) == set(numbers)
    assert both[0][1]["colors"]["top_1"] == alone[1]["colors"]["top_1"]
    # At the second line of numbers, and no more.
    [said] = [text for text in both[0][3] if text.startswith("All wait for process 1 on ")]
    assert "s of it reading)" in said
    lines = [json.loads(line) for line in (tmp_path / "both/metrics.jsonl").read_text().splitlines()]
    assert all(line["waiting_for_slowest"] > 0.5 for line in lines if "loss" in line)
    for place in ("alone", "both"):
        first = json.loads((tmp_path / place / "metrics.jsonl").read_text().splitlines()[0])
        assert 0 < first["waiting_for_data"] < 1 and first["mfu"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", soak_count([], ["signal", "failure"]))
def test_what_ends_one_processs_part_ends_the_evaluation_on_all(file, tmp_path, kind):
    for ended, found, *_ in run_on_ranks(train_and_look, 2, file, tmp_path / "run", kind):
        if kind == "signal":
            assert found == {} and "saved at step 3" in ended
        else:
            assert set(found) == {"colors"} and "The evaluation seen at step 3 failed" in ended
            assert "no more" in ended


def test_a_process_is_named_where_all_wait_for_it():
    quick, slow = OwnTime(0.1, 0.9, "a"), OwnTime(1.4, 1.0, "b")
    assert describe_stragglers([quick, quick, slow], 10, 3.0) == {
        2: "All wait for process 2 on b: it takes 0.24 s a step by itself (0.14 s of it reading), the median 0.1 s."
    }
    # A hundredth of the steps' time is not worth a word.
    assert describe_stragglers([quick, quick, slow], 10, 300.0) == {}
    assert describe_stragglers([quick, quick, quick], 10, 3.0) == {}


def test_operations_are_those_of_the_plan(file):
    from dataclasses import replace

    from hf_clip.training.build import build_start
    from hf_clip.training.plan import flops_of_step, footprint

    config = load_recipe(file)
    model, _ = build_start(config.model, ["a red square"], 0)
    flops = count_pair_flops(model)
    tokens = 24 * model.config.text_config.max_position_embeddings
    planned = flops_of_step(config, footprint(config), 1)
    assert flops.count(24, 24, tokens, 1) == pytest.approx(planned, rel=0.01)
    assert flops.count(24, 24, tokens // 2, 1) < 0.95 * planned
    frozen = replace(flops, image_learns=False)
    assert flops.count(24, 24, tokens, 1) - frozen.count(24, 24, tokens, 1) == 24 * 2 * flops.image


def test_a_devices_peak_is_that_of_its_own_name():
    assert peak_teraflops("NVIDIA H100 80GB HBM3", "bf16") == 989.0
    assert peak_teraflops("NVIDIA H100 PCIe", "bf16") == 756.0
    assert peak_teraflops("NVIDIA L40S", "bf16") == 362.0 and peak_teraflops("NVIDIA L4", "bf16") == 121.0
    assert peak_teraflops("NVIDIA L40", "bf16") is None and peak_teraflops("NVIDIA GH200 480GB", "bf16") == 989.0
    assert peak_teraflops("NVIDIA A100-SXM4-80GB", "bf16") == 312.0
    assert peak_teraflops("NVIDIA H100 PCIe", "no") is None and peak_teraflops("cpu", "bf16") is None
    assert speed.PEAK_TERAFLOPS["A10G"] < speed.PEAK_TERAFLOPS["A10"]
