"""Two processes train as one does: the same loss and gradients, one folder, one end."""

import json
import os
import re
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hf_clip.training import load_recipe, train
from hf_clip.training.checkpoint import newest_checkpoint
from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import AUGMENTATION, configure, gradients, make_batch, make_train_step
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
    """A recipe with augmentation, keywords, and several images of one concept in a batch."""
    data = write_parquet(tmp_path / "train.parquet", rows(3))
    content = recipe(data, batch_size=24, augmentation=AUGMENTATION, log_every=1, steps=5)
    content["data"] |= {"keyword_columns": ["keywords"], "keyword_weight": 0.5, "shuffle_block": 30}
    content["optimizer"] = {"learning_rate": 1e-3, "warmup_steps": 1, "epsilon": 1e-4}
    return write_recipe(tmp_path / "recipe.yaml", content)


LOSSES = {"softmax": {"label_smoothing": 0.1}, "sigmoid": {"model.config.logit_bias_init_value": -2.0}}
MICRO_BATCHES = (None, 4)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


def first_updates(folder: Path) -> dict[tuple, list[tuple]]:
    """(loss, gradients by name and their norm before clipping) of two updates on the ranks that there are."""
    updates = {}
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    for (name, changes), micro, dtype in product(LOSSES.items(), MICRO_BATCHES, TOLERANCES):
        overrides = [f"{key}={value}" for key, value in changes.items()]
        overrides += [] if micro is None else [f"micro_batch_size={micro}"]
        train_step = make_train_step(configure(folder / f"{rank}", overrides), dtype)
        taken = updates[name, micro, dtype] = []
        step_of_optimizer = train_step.optimizer.step

        def step_and_keep(train_step=train_step, step_of_optimizer=step_of_optimizer, taken=taken):
            taken.append(gradients(train_step))
            step_of_optimizer()

        train_step.optimizer.step = step_and_keep
        for step in range(2):
            outcome = train_step.update(make_batch(24, rank, world_size, seed=step), step)
            taken[step] = (outcome.loss, {**taken[step], "norm": outcome.gradient_norm})
    return updates


def relative_error(ours: torch.Tensor, theirs: torch.Tensor, least: float = 0.0) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=least)).item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    for rank in range(4):
        (folder / f"{rank}").mkdir()
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The updates of one process, whole batch."""
    return first_updates(folder)


@pytest.mark.parametrize("world_size", soak_count([4], [1, 2, 4]))
def test_any_number_of_processes_takes_the_steps_of_one(folder, alone, world_size):
    """With and without micro-batches: loss and every gradient of the first step, and of the second, after an update.

    The unequal last micro-batch, augmentation, keywords and concepts that are several pairs' take part.
    """
    for rank in run_on_ranks(first_updates, world_size, folder):
        for (name, micro, dtype), updates in rank.items():
            for ours, theirs in zip(updates, alone[name, None, dtype], strict=True):
                assert ours[0].dtype == dtype and relative_error(ours[0], theirs[0]) < TOLERANCES[dtype]
                # A bias of attention's keys has no gradient but rounding: that is measured by the others' size.
                largest = max(gradient.abs().max().item() for gradient in theirs[1].values())
                least = (1e-6 if dtype == torch.float64 else 1e-2) * largest
                assert ours[1].keys() == theirs[1].keys()
                for parameter, gradient in theirs[1].items():
                    error = relative_error(ours[1][parameter], gradient, least)
                    assert error < TOLERANCES[dtype], (name, micro, dtype, parameter)
                assert theirs[1]["logit_scale"].abs() > 1e-4
                assert ("logit_bias" in theirs[1]) == (name == "sigmoid")


SIGNAL_TO_RANK_1 = """
import os, signal, sys
from hf_clip_cli import main as cli
from hf_clip.training.loop import Trainer

update = Trainer.update

def update_and_signal(run, batch):
    if run.progress.step == 1 and run.accelerator.process_index == 1:
        os.kill(os.getpid(), signal.{name})
    return update(run, batch)

Trainer.update = update_and_signal
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(arguments: list, place: Path) -> subprocess.CompletedProcess:
    launcher = [*warm_python(), "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    port = ["--master-port", str(free_port())]
    command = [*launcher, *port, "--no-python", *warm_python(), *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback's name is Linux's")
def test_a_launched_run_stops_as_one_goes_on_and_ends_as_one_process_would(file, tmp_path):
    script = tmp_path / "stop_rank_1.py"
    script.write_text(SIGNAL_TO_RANK_1.format(name="SIGTERM"))
    stopped = launch([script, "--recipe", file, "--output-dir", "run"], tmp_path)
    assert stopped.returncode == 1, stopped.stderr
    # The launcher ends the slower rank before it can say so too.
    assert ": saved at step 2. Go on with --resume" in stopped.stderr
    assert newest_checkpoint(tmp_path / "run/checkpoints", pytest.fail).name == "checkpoint-2"

    ended = launch(["-m", "hf_clip", "train", "--output-dir", "run", "--resume"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("Going on from step 2") == 1
    assert ended.stderr.count("The model is in run") == 1

    alone = train(load_recipe(file), tmp_path / "alone")
    together = json.loads((tmp_path / "run/results.json").read_text())
    assert (alone["processes"], together["processes"]) == (1, 2)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "run")
    ]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5]
    for one, other in zip(*lines, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate", "logit_scale"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback's name is Linux's")
def test_a_rank_that_dies_takes_the_run_down_by_its_name(file, tmp_path):
    """Within the time of `launch`: the other rank waits for it in a sum of gradients, and must not for ever."""
    script = tmp_path / "kill_rank_1.py"
    script.write_text(SIGNAL_TO_RANK_1.format(name="SIGKILL"))
    dead = launch([script, "--recipe", file, "--output-dir", "run"], tmp_path)
    assert dead.returncode == 1
    assert re.search(r"Root Cause.*rank +: 1 \(local_rank: 1\)\s+exitcode +: -9 .*SIGKILL", dead.stderr, re.DOTALL)
    assert not (tmp_path / "run/results.json").exists()


def test_a_folder_that_is_taken_is_said_by_one_line_of_each_rank(file, tmp_path):
    """What the first process finds wrong, the others learn, instead of waiting for it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("steps: [")
    taken = run_on_ranks(refusal, 2, file, tmp_path / "run")
    assert all("is not empty" in message for message in taken)
    broken = run_on_ranks(refusal, 2, file, tmp_path / "run", True)
    assert all("while parsing" in message for message in broken)


def refusal(file: Path, folder: Path, resume: bool = False) -> str:
    try:
        train(load_recipe(file), folder, resume=resume)
    except ValueError as error:
        return str(error)
    return ""
