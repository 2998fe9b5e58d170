"""DeepSpeed in this package's steps: by a stand-in of its engine, and by itself where it is installed."""

import dataclasses
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper
from safetensors.torch import load_file

from hf_clip.training import load_recipe, train
from hf_clip.training.config import RecipeError
from hf_clip.training.decisions import decide
from hf_clip.training.deepspeed import autocast_forward, take_over_steps
from hf_clip.training.distributed import full_model, give_plain_parameters
from tests.helpers.steps import configure, gradients, make_batch, make_train_step
from tests.training.test_ranks import file, launch  # noqa: F401 - a fixture


class DeepSpeedAccelerator:
    """What stands of Accelerate where it drives DeepSpeed."""

    is_fsdp2, distributed_type, num_processes = False, DistributedType.DEEPSPEED, 2
    device, scaler, process_index = torch.device("cpu"), None, 0

    def __init__(self, zero_stage: int = 0, engine=None, **told):
        plugin = SimpleNamespace(zero_stage=zero_stage, deepspeed_config=told)
        self.state = SimpleNamespace(deepspeed_plugin=plugin)
        self.deepspeed_engine_wrapped = DeepSpeedEngineWrapper(engine)

    def unwrap_model(self, model):
        return model

    def reduce(self, tensor):
        return tensor

    def backward(self, loss):
        self.deepspeed_engine_wrapped.backward(loss)

    def clip_grad_norm_(self, parameters, max_norm):
        return self.deepspeed_engine_wrapped.get_global_grad_norm()


class Engine:
    """What is asked of DeepSpeed's engine; as it does, it zeroes gradients behind an update."""

    def __init__(self, module, optimizer):
        self.module, self.optimizer, self.calls = module, optimizer, []

    def backward(self, loss):
        self.calls.append("backward")
        loss.backward()

    def step(self):
        self.calls.append("step")
        self.optimizer.step()
        self.zero_grad()

    def zero_grad(self):
        self.calls.append("zero_grad")
        self.module.zero_grad()


def test_deepspeed_is_told_the_batch_and_leaves_clipping_and_casting(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    config = configure(tmp_path, ["optimizer.max_gradient_norm=0.7"])
    with pytest.raises(RecipeError, match="DeepSpeed, which is not installed: pip install deepspeed"):
        monkeypatch.setattr("hf_clip.training.decisions.is_deepspeed_available", lambda: False)
        decide(config)
    monkeypatch.setattr("hf_clip.training.decisions.is_deepspeed_available", lambda: True)

    def make(zero_stage=0, overrides=(), **told):
        def accelerator(mixed_precision, **_):
            assert mixed_precision == "no"
            return DeepSpeedAccelerator(zero_stage, **told)

        monkeypatch.setattr("hf_clip.training.decisions.Accelerator", accelerator)
        return decide(configure(tmp_path, overrides)).accelerator.state.deepspeed_plugin.deepspeed_config

    with pytest.raises(RecipeError, match="zero_stage=2 leaves parts of .*: set zero_stage: 0"):
        make(2)
    with pytest.raises(RecipeError, match="enables bf16, .* set the recipe's mixed_precision=bf16"):
        make(bf16={"enabled": "True"})
    told = {"train_micro_batch_size_per_gpu": 12, "gradient_clipping": 0.0}
    assert make(overrides=["mixed_precision=bf16"], gradient_clipping=1.0) == told


@pytest.mark.parametrize("is_finite", [True, False])
def test_the_engine_updates_when_the_step_says_so(tmp_path, is_finite):
    config = configure(tmp_path, ["optimizer.max_gradient_norm=0.05", "max_bad_steps=3"])
    plain, driven = make_train_step(config), make_train_step(config)
    engine = Engine(driven.objective, driven.optimizer)
    driven.decisions = dataclasses.replace(driven.decisions, accelerator=DeepSpeedAccelerator(engine=engine))
    driven.optimizer = take_over_steps(driven.accelerator, DeepSpeedOptimizerWrapper(driven.optimizer), 0.05)
    for train_step in (plain, driven):
        if not is_finite:
            train_step.model.visual_projection.weight.data[0, 0] = torch.nan
    outcomes = [train_step.update(make_batch(), 3) for train_step in (plain, driven)]
    assert outcomes[0].is_update is outcomes[1].is_update is is_finite
    assert engine.calls == ["backward", *["step", "zero_grad"][: 2 * is_finite], "zero_grad"]
    assert not gradients(driven)
    if is_finite:
        assert torch.equal(outcomes[0].gradient_norm, outcomes[1].gradient_norm)
    for one, other in zip(plain.model.parameters(), driven.model.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_the_objective_casts_by_itself(tmp_path):
    objective = make_train_step(configure(tmp_path), torch.float32).objective
    end = objective.model.config.text_config.eos_token_id
    kinds = []
    objective.model.visual_projection.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    images, texts = torch.zeros(2, 3, 16, 16), [{"input_ids": torch.tensor([[0, end]] * 2)}]
    for precision in ("no", "bf16"):
        autocast_forward(objective, torch.device("cpu"), precision)
        objective(images, texts)
    assert kinds == [torch.float32, torch.bfloat16]


def test_a_model_with_another_shape_of_scale_is_handed_out_with_its_own(tmp_path):
    model = make_train_step(configure(tmp_path)).model
    assert full_model(model) is model
    scale = model.logit_scale.detach().clone()
    give_plain_parameters(model)
    assert torch.equal(full_model(model).logit_scale, scale)


# Accelerate has DeepSpeed on accelerators only. Rank 1 is asked to stop in its second step.
ON_A_CPU = """
import os, signal, sys
import accelerate
from accelerate.state import DistributedType, PartialState
from hf_clip.training import decisions
from hf_clip.training.loop import Trainer

class Accelerator(accelerate.Accelerator):
    def __init__(self, cpu, **options):
        super().__init__(cpu=False, **options)

def update_and_signal(run, batch):
    if run.progress.step == 1 and run.accelerator.process_index == 1 and "--resume" not in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)
    return update(run, batch)

PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)
decisions.Accelerator = Accelerator
update, Trainer.update = Trainer.update, update_and_signal

from hf_clip_cli import main as cli
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="the loopback's name is Linux's")
def test_deepspeed_itself_trains_stops_and_goes_on_as_one_process_would(file, tmp_path, monkeypatch):  # noqa: F811
    for name, value in {"USE_DEEPSPEED": "true", "DEEPSPEED_ZERO_STAGE": "0"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    script = tmp_path / "on_a_cpu.py"
    script.write_text(ON_A_CPU)
    stopped = launch([script, "--recipe", file, "--output-dir", "run"], tmp_path)
    assert ": saved at step 2. Go on with --resume" in stopped.stderr
    ended = launch([script, "--output-dir", "run", "--resume"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    train(load_recipe(file), tmp_path / "alone")
    ours, alone = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "alone")
    )
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5]
    for one, other in zip(ours, alone, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate", "logit_scale"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run", "alone")]
    assert {name: tensor.shape for name, tensor in weights[0].items()} == {
        name: tensor.shape for name, tensor in weights[1].items()
    }
