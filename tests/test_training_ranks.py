"""Two processes train as one does: the same loss and gradients, one folder, one end."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from hf_clip.training import load_recipe, train
from hf_clip.training.build import build_model, build_processor
from hf_clip.training.checkpoint import newest_checkpoint
from hf_clip.training.loop import Progress, Run
from hf_clip.training.objective import ContrastiveObjective
from hf_clip.training.optimizer import make_optimizer
from hf_clip.training.stream import PairStream, open_training_source
from tests.ranks import run_on_ranks
from tests.squares import recipe, rows, write_parquet, write_recipe

ROOT = Path(__file__).parents[1]
AUGMENTATION = {"rotation": 10, "flip": 0.5, "hue": 0.1, "cutout": 0.5}


@pytest.fixture
def file(tmp_path):
    """A recipe with augmentation, keywords, and several pictures of one concept in a batch."""
    data = write_parquet(tmp_path / "train.parquet", rows(3))
    content = recipe(data, batch_size=24, augmentation=AUGMENTATION, log_every=1, steps=5)
    content["data"] |= {"keyword_columns": ["keywords"], "keyword_weight": 0.5, "shuffle_block": 30}
    content["optimizer"] = {"learning_rate": 1e-3, "warmup_steps": 1, "epsilon": 1e-4}
    return write_recipe(tmp_path / "recipe.yaml", content)


def first_updates(file: Path) -> list[tuple]:
    """(loss, gradients by name, ids of this rank's pairs) of two float64 updates by the product's stream and step."""
    config = load_recipe(file)
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    source = open_training_source(config.data)
    processor = build_processor(config.model, source)
    model = build_model(config.model, processor, config.seed).double()
    model.set_attn_implementation("eager")
    objective = ContrastiveObjective(model, config.data.keyword_weight)
    objective, optimizer = accelerator.prepare(objective, make_optimizer(model, config.optimizer))
    rank, world_size = accelerator.process_index, accelerator.num_processes
    stream = PairStream(source, config.data, processor.image_processor, 24, 0, ["left"], rank, world_size)
    run = Run(config, Path("."), accelerator, objective, optimizer, processor, Progress())
    gradients: list[dict] = []
    clip = accelerator.clip_grad_norm_

    def keep_and_clip(parameters, max_norm):
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        return clip(parameters, max_norm)

    accelerator.clip_grad_norm_ = keep_and_clip
    updates = []
    batches = stream.batches()
    for step in range(2):
        batch = next(batches)
        loss, _ = run.update(batch)
        run.progress.step += 1
        updates.append((loss, gradients[step], batch.sample_ids_B.tolist()))
    return updates


def relative_error(ours: torch.Tensor, theirs: torch.Tensor, least: float = 0.0) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=least)).item()


def test_two_processes_take_the_steps_of_one(file):
    """In float64, to 1e-10: loss and every gradient of the first step, and of the second, after an update."""
    ranks = run_on_ranks(first_updates, 2, file)
    for step, (loss, gradients, ids) in enumerate(first_updates(file)):
        first, second = ranks[0][step], ranks[1][step]
        assert first[2] + second[2] == ids
        for rank in (first, second):
            assert rank[0].dtype == torch.float64 and relative_error(rank[0], loss) < 1e-10
            # A bias of attention's keys has no gradient but rounding: that is measured by the others' size.
            least = 1e-6 * max(gradient.abs().max().item() for gradient in gradients.values())
            for name, gradient in gradients.items():
                assert relative_error(rank[1][name], gradient, least) < 1e-10, name
        assert gradients["logit_scale"].abs() > 0


STOP_RANK_1 = """
import os, signal, sys
from hf_clip import cli
from hf_clip.training.loop import Run

update = Run.update

def update_and_signal(run, batch):
    if run.progress.step == 1 and run.accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(run, batch)

Run.update = update_and_signal
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


def launch(arguments: list, place: Path) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = [*launcher, "--master-port", str(port), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback's name is Linux's")
def test_a_launched_run_stops_as_one_goes_on_and_ends_as_one_process_would(file, tmp_path):
    script = tmp_path / "stop_rank_1.py"
    script.write_text(STOP_RANK_1)
    stopped = launch([script, "--recipe", file, "--output-dir", "run"], tmp_path)
    assert stopped.returncode == 1, stopped.stderr
    # The launcher ends the slower rank before it can say so too.
    assert ": saved at step 2. Go on with --resume" in stopped.stderr
    assert newest_checkpoint(tmp_path / "run/checkpoints", pytest.fail).name == "checkpoint-2"

    ended = launch(["-m", "hf_clip.training", "--output-dir", "run", "--resume"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Going on from step 2") == 1
    assert ended.stderr.count("The model and its card are in run") == 1

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
