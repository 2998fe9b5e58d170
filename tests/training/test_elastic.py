"""A machine is lost: the launcher starts the others again, and the run goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_clip.training import load_recipe, train
from hf_clip.training.loop import Trainer
from tests.helpers.counts import soak_count
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe
from tests.helpers.warm_python import warm_python
from tests.training.test_ranks import free_port

ROOT = Path(__file__).parents[2]
STEPS, LOST_AT, BATCH = 8, 5, 24

# Each rank notes the pairs of its steps; those of the machine that will be lost stop amid a step.
RANK = f"""
import json, os, sys, time
from pathlib import Path
import pytest
from hf_clip_cli import main as cli
from hf_clip.training.loop import Trainer
from tests.helpers.quick_ends import end_quickly

end_quickly(pytest.MonkeyPatch())
name, rank, ranks = (os.environ[key] for key in ("MACHINE", "RANK", "WORLD_SIZE"))
update = Trainer.update

def note(run, batch):
    # A machine that starts slowly is waited for: the launcher begins again once it is there.
    while ranks == "2" and not Path("killed").exists() and not run.stop.is_asked():
        time.sleep(0.05)
    if name == "lost" and run.progress.step == {LOST_AT}:
        Path(f"lost-{{rank}}").write_text(str(os.getpid()))
        time.sleep(600)
    with open(f"seen-{{ranks}}-{{rank}}", "a") as file:
        file.write(json.dumps([run.progress.step, batch.sample_ids.tolist()]) + "\\n")
    return update(run, batch)

Trainer.update = note
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


def start_agent(machine: str, port: int, place: Path, file: Path) -> subprocess.Popen:
    """`torchrun` as on one of up to two machines, with two ranks."""
    timing = "last_call_timeout=10,keep_alive_interval=3,keep_alive_max_attempt=4"
    own = f"is_host={int(machine == 'kept')},{timing}"
    command = [*warm_python(), "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "2"]
    command += ["--max-restarts", "3", "--monitor-interval", "0.1", "--rdzv-backend", "c10d", "--rdzv-id", "squares"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", own, "--local-addr", "127.0.0.1"]
    command += ["--no-python", *warm_python(), str(place / "rank.py")]
    command += ["--recipe", str(file), "--output-dir", "run", "--resume", "auto"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "MACHINE": machine}
    # Else those who begin again find the addresses of those before them.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with (place / f"{machine}.log").open("w") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)


def notes(place: Path, ranks: int) -> dict[int, list[int]]:
    """The pairs of each step in the order of the global batch, where all of so many ranks saw theirs."""
    steps: dict[int, list[int]] = {}
    for rank in range(ranks):
        for line in (place / f"seen-{ranks}-{rank}").read_text().splitlines():
            step, ids = json.loads(line)
            steps.setdefault(step, []).extend(ids)
    return {step: ids for step, ids in steps.items() if len(ids) == BATCH}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the loopback's name is Linux's")
@pytest.mark.skipif(not soak_count(False, True), reason="half a minute of starting again: make soak")
def test_a_lost_machine_leaves_order_and_loss_as_they_were(tmp_path, monkeypatch):
    """Two machines of two ranks, `torchrun --nnodes 1:2 --max-restarts 3` on each, one killed amid a step."""
    content = recipe(write_parquet(tmp_path / "train.parquet", rows(3)), steps=STEPS, batch_size=BATCH, log_every=1)
    content["checkpoints"] = {"save_every": 2}
    content["data"] |= {"shuffle_block": 30, "lanes": 4}
    content["optimizer"] = {"learning_rate": 1e-3, "warmup_steps": 1, "epsilon": 1e-4}
    file = write_recipe(tmp_path / "recipe.yaml", content)
    (tmp_path / "rank.py").write_text(RANK)

    whole: dict[int, list[int]] = {}
    with monkeypatch.context() as patch:
        update = Trainer.update

        def note(run, batch):
            whole[run.progress.step] = batch.sample_ids.tolist()
            return update(run, batch)

        patch.setattr(Trainer, "update", note)
        train(load_recipe(file), tmp_path / "undisturbed")

    port = free_port()
    kept, lost = (start_agent(machine, port, tmp_path, file) for machine in ("kept", "lost"))
    try:
        ranks = [tmp_path / f"lost-{rank}" for rank in range(4)]
        deadline = time.monotonic() + 120
        while sum(file.exists() and bool(file.read_text()) for file in ranks) < 2:
            assert time.monotonic() < deadline and kept.poll() is lost.poll() is None, (
                tmp_path / "kept.log"
            ).read_text()
            time.sleep(0.05)
        lost.kill()
        for file_of_pid in filter(Path.exists, ranks):
            os.kill(int(file_of_pid.read_text()), signal.SIGKILL)
        (tmp_path / "killed").touch()
        assert kept.wait(180) == 0, (tmp_path / "kept.log").read_text()
    finally:
        for agent in (kept, lost):
            agent.kill()
            agent.wait()

    together, alone = notes(tmp_path, 4), notes(tmp_path, 2)
    # What was behind the last checkpoint is done again.
    assert sorted(together) == list(range(LOST_AT)) and sorted(alone) == list(range(LOST_AT - 1, STEPS))
    for found in (together, alone):
        assert found == {step: whole[step] for step in found}
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("undisturbed", "run")
    ]
    assert [line["step"] for line in lines[1]] == list(range(1, STEPS + 1))
    for one, other in zip(*lines, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert json.loads((tmp_path / "run/results.json").read_text())["processes"] == 2
