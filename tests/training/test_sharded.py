"""Weights that are sharded over processes (FSDP2) take the steps of one process, by hand and as Accelerate shards."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
    prepare_multi_gpu_env,
)
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_clip import HFCLIPModel
from hf_clip.training import load_recipe, train
from hf_clip.training.build import build_start
from hf_clip.training.checkpoint import CheckpointError, damage, save_state
from hf_clip.training.config import RecipeError
from hf_clip.training.decisions import decide, sharded_precision
from hf_clip.training.distributed import (
    full_model,
    full_tensor,
    give_plain_parameters,
    load_optimizer_state,
    optimizer_state,
)
from hf_clip.training.ema import WeightAverage
from hf_clip.training.objective import ContrastiveObjective
from hf_clip.training.optimizer import make_optimizer
from hf_clip.training.sharded_checkpoint import ShardWriter, load_shards, sharded_state
from hf_clip.training.step import TrainStep
from hf_clip.training.stream.coordination import Coordinator
from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import NAMES, recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import assert_close, configure, gradients, make_batch, make_train_step, weights
from tests.helpers.warm_python import warm_python
from tests.training.test_ranks import free_port, relative_error

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
# Clipping changes what such a small number of updates comes to only where it is far below the norms.
STRICT = ["ema_decay=0.5", "optimizer.max_gradient_norm=0.05"]
MUON = "optimizer.algorithm=muon"


@pytest.fixture
def folder(tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
    return tmp_path


def sharded_train_step(config, state: dict | None = None, precision: str = "no", dtype=torch.float64) -> TrainStep:
    """As `prepare` and Accelerate make it on GPUs, on a mesh of CPUs."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model, processor = build_start(config.model, NAMES, config.seed)
    model.to(dtype).set_attn_implementation("eager")
    if state is not None:
        model.load_state_dict(state)
    give_plain_parameters(model)
    objective = ContrastiveObjective(model, config.data.keyword_weight)
    options = {"mesh": mesh, "mp_policy": sharded_precision(precision)}
    for layer in [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]:
        fully_shard(layer, **options)
    fully_shard(objective, **options)
    average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
    optimizer = make_optimizer(model, config.optimizer)
    return TrainStep(config, decide(config), objective, optimizer, processor, average)


def sharded_updates(folder: Path, overrides: list[str]) -> tuple:
    """Two updates; after the first all is saved, and gone on with in another model too."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config = configure(folder / f"{rank}", overrides)
    train_step = sharded_train_step(config)
    outcomes = [train_step.update(make_batch(24, rank, world_size, seed=0), 0)]
    state = full_model(train_step.model).state_dict()
    rest = {
        "optimizer": optimizer_state(train_step.objective, train_step.optimizer),
        "update": train_step.state_dict(),
    }
    if rank == 0:
        # As a checkpoint: one rank writes it, all read it.
        torch.save(rest, folder / "state.pt")
    dist.barrier()
    rest = torch.load(folder / "state.pt", weights_only=True)
    resumed = sharded_train_step(config, state)
    load_optimizer_state(resumed.objective, resumed.optimizer, rest["optimizer"])
    resumed.load_state_dict(rest["update"])
    outcomes += [one.update(make_batch(24, rank, world_size, seed=1), 1) for one in (train_step, resumed)]
    with resumed.average.in_place():
        averaged = full_model(resumed.model).state_dict()
    own = [full_model(one.model).state_dict() for one in (train_step, resumed)]
    return outcomes, own, averaged, resumed.model.visual_projection.weight.to_local().numel()


@pytest.mark.parametrize(
    ("algorithm", "micro"),
    soak_count([("adamw", "4"), ("muon", "null")], list(product(["adamw", "muon"], ["null", "4"]))),
)
def test_sharded_weights_take_the_same_steps_and_are_saved_whole(folder, micro, algorithm):
    """Losses, norms, clipped updates, moving average, and all of it once more behind a checkpoint."""
    overrides = [*STRICT, f"optimizer.algorithm={algorithm}"]
    alone = make_train_step(configure(folder, overrides))
    outcomes = [alone.update(make_batch(seed=step), step) for step in range(2)]
    for theirs, own, averaged, shard in run_on_ranks(
        sharded_updates, 2, folder, [*overrides, f"micro_batch_size={micro}"]
    ):
        for outcome, step in zip(theirs, (0, 1, 1), strict=True):
            assert float(outcome.loss) == pytest.approx(float(outcomes[step].loss), rel=1e-9)
            assert outcome.gradient_norm > 10 * 0.05
            assert float(outcome.gradient_norm) == pytest.approx(float(outcomes[step].gradient_norm), rel=1e-9)
        for state in own:
            assert state["logit_scale"].shape == ()
            assert_close(state, weights(alone), 1e-8)
        with alone.average.in_place():
            assert_close(averaged, weights(alone), 1e-8)
        assert shard == alone.model.visual_projection.weight.numel() // 2


def saves_in_the_background(folder: Path) -> tuple:
    """A checkpoint that is written while a step goes on, read into another model; and two that cannot be written."""
    rank, world_size, coordinator = dist.get_rank(), dist.get_world_size(), Coordinator(2)
    config = configure(folder / f"{rank}", STRICT)
    train_step = sharded_train_step(config)
    train_step.update(make_batch(24, rank, world_size, seed=0), 0)
    kept, writer, place = full_model(train_step.model).state_dict(), ShardWriter(coordinator), folder / "checkpoint-1"

    def state_of(one: TrainStep) -> dict:
        return sharded_state(one.model, one.objective, one.optimizer, one.average)

    writer.start(place, state_of(train_step), lambda aside: save_state(aside, {"step": 1}), lambda: None)
    train_step.update(make_batch(24, rank, world_size, seed=1), 1)
    writer.wait()
    other = sharded_train_step(config)
    load_shards(place, state_of(other), other, coordinator)
    read, problems = full_model(other.model).state_dict(), []

    def refuse(*_) -> None:
        raise OSError("no space left")

    for write, then in ((refuse, lambda: None), (lambda _: None, refuse)):
        with pytest.raises(CheckpointError) as caught:
            writer.start(folder / "checkpoint-2", state_of(train_step), write, then)
            writer.wait()
        problems.append(str(caught.value))
    return kept, read, full_model(train_step.model).state_dict(), problems, damage(place)


@pytest.mark.slow
@pytest.mark.skipif(not soak_count(False, True), reason="a launched run below writes shards too: make soak")
def test_shards_are_written_as_they_were_while_the_steps_go_on(folder):
    for kept, read, later, problems, found in run_on_ranks(saves_in_the_background, 2, folder):
        assert found is None
        assert all(torch.equal(each, read[name]) for name, each in kept.items())
        assert not torch.equal(kept["visual_projection.weight"], later["visual_projection.weight"])
        # Told on the process that only waits too.
        assert len(problems) == 2 and all("could not be written (no space left)" in each for each in problems)
    assert not list(folder.glob(".*"))


def spoilt_updates(folder: Path) -> tuple:
    """One update, and one in which rank 1's shard of one gradient has an infinity."""
    rank = dist.get_rank()
    train_step = sharded_train_step(configure(folder / f"{rank}", [MUON, *STRICT]))
    assert train_step.update(make_batch(24, rank, 2), 0).is_update
    before = full_model(train_step.model).state_dict(), train_step.average.state_dict()["weights"]
    backward = train_step.backward

    def spoilt(batch, step):
        loss = backward(batch, step)
        if rank == 1:
            train_step.model.visual_projection.weight.grad.to_local()[0, 0] = float("inf")
        return loss

    train_step.backward = spoilt
    outcome = train_step.update(make_batch(24, rank, 2, seed=1), 1)
    return outcome, before, (full_model(train_step.model).state_dict(), train_step.average.state_dict()["weights"])


def test_no_shard_is_updated_where_one_is_bad(folder):
    for outcome, before, now in run_on_ranks(spoilt_updates, 2, folder):
        assert not outcome.is_update and not outcome.gradient_norm.isfinite()
        for ours, theirs in zip(now, before, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(each, theirs[name]) for name, each in ours.items())


def copied_updates(folder: Path, dtype: torch.dtype) -> dict:
    rank = dist.get_rank()
    train_step = make_train_step(configure(folder / f"{rank}", [MUON, "micro_batch_size=4"]), dtype)
    for step in range(3):
        train_step.update(make_batch(24, rank, 2, seed=step), step)
    return weights(train_step)


def test_muon_leaves_the_same_weights_on_all_processes(folder):
    first, second = run_on_ranks(copied_updates, 2, folder, torch.float32)
    assert all(torch.equal(each, second[name]) for name, each in first.items())
    # Muon rounds to bf16 on the way, where the last bit of a sum can tip over: float64 does without that.
    alone = make_train_step(configure(folder, [MUON]))
    for step in range(3):
        alone.update(make_batch(seed=step), step)
    assert_close(run_on_ranks(copied_updates, 2, folder, torch.float64)[0], weights(alone), 1e-8)


def half_precision_gradients(folder: Path, micro: str) -> tuple[torch.dtype, dict]:
    rank = dist.get_rank()
    config = configure(folder / f"{rank}", [f"micro_batch_size={micro}"])
    train_step = sharded_train_step(config, precision="bf16", dtype=torch.float32)
    loss = train_step.backward(make_batch(24, rank, 2), 0)
    return loss.dtype, {name: full_tensor(each.grad) for name, each in train_step.model.named_parameters()}


@pytest.mark.parametrize("micro", ["null", "2"])
def test_gradients_of_layers_in_bf16_are_added_up_in_float32(folder, micro):
    exact = make_train_step(configure(folder), torch.float32)
    exact.backward(make_batch(), 0)
    expected = gradients(exact)
    for dtype, found in run_on_ranks(half_precision_gradients, 2, folder, micro):
        assert dtype == torch.float32
        for name in ("visual_projection.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"):
            # Sums in bf16 would have nothing below its 8 bits.
            assert (found[name].bfloat16() != found[name]).float().mean() > 0.5, name
            assert relative_error(found[name], expected[name]) < 0.1, name


SHARD_ON_CPUS = """
import sys
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from hf_clip_cli import main as cli
from hf_clip.training import decisions, optimizer

# In bf16 the last bit of a sum, which depends on who adds up, tips over elements by a hundredth.
optimizer.is_fast_at_bf16 = lambda device: False

class ShardingAccelerator(Accelerator):
    # Accelerate shards on GPUs alone: what its state has there, from the launcher's environment.
    def __init__(self, **options):
        super().__init__(**options)
        plugin = FullyShardedDataParallelPlugin()
        if self.mixed_precision != "no":
            plugin.set_mixed_precision(self.mixed_precision)
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)

    def prepare(self, *args):
        prepared = super().prepare(*args)
        names = [name for name, each in prepared[0].named_modules() if type(each).__name__.startswith("FSDP")]
        print("sharded apart:", *names)
        return prepared

decisions.Accelerator = ShardingAccelerator
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


def pages_config(place: Path, **changes) -> Path:
    """`fsdp2.yaml` as docs/training.md has it, but for `changes`."""
    block = next(block for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S) if "fsdp_config" in block)
    file = place / "fsdp2.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(block) | changes))
    return file


def accelerate_launch(arguments: list, place: Path, config: Path) -> subprocess.CompletedProcess:
    launcher = [*warm_python(), "-m", "accelerate.commands.launch", "--config_file", config, "--no_python"]
    command = [*launcher, *warm_python(), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        list(map(str, command)), cwd=place, env=environment, capture_output=True, text=True, timeout=240
    )


def test_the_pages_config_is_one_that_accelerate_reads(tmp_path):
    file = pages_config(tmp_path)
    assert load_config_from_file(str(file)).distributed_type == DistributedType.FSDP
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "-m", "hf_clip", "train"])
    told = _validate_launch_command(arguments)[0]
    assert (told.use_fsdp, told.fsdp_version, told.num_processes) == (True, 2, 8)
    environment = prepare_multi_gpu_env(told)
    assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback's name is Linux's")
def test_a_run_that_accelerate_launches_and_shards_ends_as_one_process_would(tmp_path, monkeypatch):
    """The page's config on 2 processes, by Muon, killed and resumed."""
    data = write_parquet(tmp_path / "train.parquet", rows(3))
    content = recipe(data, batch_size=24, steps=2, ema_decay=0.5, micro_batch_size=6)
    content["checkpoints"] = {"save_every": 1}
    content["optimizer"] |= {"algorithm": "muon", "epsilon": 1e-4, "warmup_steps": 1}
    file = write_recipe(tmp_path / "recipe.yaml", content)
    script = tmp_path / "shard.py"
    script.write_text(SHARD_ON_CPUS)
    config = pages_config(tmp_path, num_processes=2, main_process_port=free_port())
    ended = accelerate_launch([script, "--recipe", file, "--output-dir", "run"], tmp_path, config)
    assert ended.returncode == 0, ended.stderr
    assert "model.text_model.encoder.layers.0 model.vision_model.layers.0" in ended.stdout
    assert "broadcast_buffers" not in ended.stderr
    # Each process has written its own shards, and the manifest has all of them.
    checkpoint = tmp_path / "run/checkpoints/checkpoint-1"
    hashes = json.loads((checkpoint / "manifest.json").read_text())
    assert {"shards/.metadata", "shards/__0_0.distcp", "shards/__1_0.distcp", "training_state.pt"} <= hashes.keys()
    assert not list(checkpoint.glob("*.safetensors")) and damage(checkpoint) is None
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    # As if it had been killed before its last checkpoint.
    shutil.rmtree(tmp_path / "run/checkpoints/checkpoint-2")
    (tmp_path / "run/results.json").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "on_one")
    resumed = accelerate_launch([script, "--output-dir", "run", "--resume"], tmp_path, config)
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from step 1" in resumed.stderr

    monkeypatch.setattr("hf_clip.training.optimizer.is_fast_at_bf16", lambda device: False)
    alone = train(load_recipe(file), tmp_path / "alone")
    # One process takes over what two have sharded.
    train(load_recipe(file), tmp_path / "on_one", resume=True)
    together = json.loads((tmp_path / "run/results.json").read_text())
    assert (alone["processes"], together["processes"]) == (1, 2)
    theirs = HFCLIPModel.from_pretrained(tmp_path / "alone").state_dict()
    for name in ("run", "on_one"):
        assert_close(HFCLIPModel.from_pretrained(tmp_path / name).state_dict(), theirs, 1e-4)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_what_accelerate_would_not_do_on_a_cpu_is_refused_instead_of_ignored(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr("hf_clip.training.decisions.is_deepspeed_available", lambda: True)
    monkeypatch.setattr("hf_clip.training.decisions.Accelerator", lambda **_: PlainAccelerator())
    with pytest.raises(RecipeError, match=rf"asks for {name}, .*\(1 on cpu here\): launch with torchrun"):
        decide(configure(tmp_path))


class PlainAccelerator:
    """What Accelerate makes of any config on a CPU."""

    is_fsdp2, distributed_type, num_processes = False, DistributedType.NO, 1
