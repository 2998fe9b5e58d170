"""One step: cached gradients replay what was drawn, bad steps change nothing, averages follow."""

import json
import os
import platform
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from hf_clip.training.augmentation import mixed_fraction
from hf_clip.training.config import RecipeError
from hf_clip.training.decisions import decide
from hf_clip.training.optimizer import learning_rate_fraction
from hf_clip.training.prepare import note_on_batch_statistics
from hf_clip.training.step import TrainStep
from hf_clip.training.stream import Batch
from hf_clip.training.trainer import TrainingDiverged
from tests.helpers.ranks import run_on_ranks
from tests.helpers.steps import assert_close, configure, gradients, make_batch, make_train_step, make_trainer, weights
from tests.helpers.warm_python import warm_python

RANDOM = [
    "model.config.vision_config.patch_dropout=0.5",
    "model.config.vision_config.attention_dropout=0.3",
    "model.config.text_config.attention_dropout=0.3",
]


def test_both_passes_draw_the_same(tmp_path):
    """Cached gradients with dropout and dropped patches are those of one graph over the same draws."""
    train_step = make_train_step(configure(tmp_path, [*RANDOM, "micro_batch_size=10"]))
    batch = make_batch()
    train_step.objective.train()
    loss = train_step.backward(batch, step=3)
    cached = gradients(train_step)
    train_step.optimizer.zero_grad()

    parts, share = [], mixed_fraction(train_step.config.seed, 3, train_step.config.augmentation.mixup)
    spans = [slice(0, 10), slice(10, 20), slice(20, 24)]
    texts = train_step._texts(batch, spans)
    for index, rows in enumerate(spans):
        train_step._seed(3, index)
        parts.append(train_step.objective(train_step._images(batch, rows, share), texts.parts[index]))
    image_BD, text_ND = (torch.cat(column) for column in zip(*(embeddings for embeddings, *_ in parts), strict=True))
    in_one_graph = train_step.objective.loss(image_BD, text_ND[texts.places], parts[0][1], batch.concept_ids, share)
    in_one_graph.backward()
    assert loss == in_one_graph
    assert_close(cached, gradients(train_step))
    # And another step draws again.
    assert train_step.backward(batch, step=4) != loss


def test_odd_batches_are_not_mixed_two_by_two(tmp_path):
    with pytest.raises(RecipeError, match="two by two, and a process has 24 of a batch, in pieces of 5"):
        make_train_step(configure(tmp_path, ["micro_batch_size=5"]))


def test_two_runs_of_one_process_may_differ_in_precision(tmp_path):
    """Accelerate keeps the first one's, as a notebook that trains twice would find."""
    for precision in ("no", "bf16", "no"):
        train_step = make_train_step(configure(tmp_path, [f"mixed_precision={precision}"]))
        assert train_step.accelerator.mixed_precision == precision


def test_smoothing_of_labels_is_refused_for_the_sigmoid_loss(tmp_path):
    with pytest.raises(RecipeError, match="label_smoothing=0.1 is for the softmax's targets"):
        make_train_step(configure(tmp_path, ["label_smoothing=0.1", "model.config.logit_bias_init_value=-2.0"]))


def test_micro_batches_hold_the_activations_of_one(tmp_path):
    """What is alive at the end of a forward pass with a graph, in values, is the micro-batch's."""
    alive = {}
    for micro in (24, 4):
        train_step = make_train_step(configure(tmp_path, [f"micro_batch_size={micro}"]))
        sizes: list[int] = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        most = 0
        embed = train_step.objective.forward

        def forward(*args, sizes=sizes, embed=embed, **kwargs):
            nonlocal most
            sizes.clear()
            result = embed(*args, **kwargs)
            most = max(most, sum(sizes))
            return result

        train_step.objective.forward = forward
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train_step.update(make_batch(), 0)
        alive[micro] = most
    assert alive[4] < 0.35 * alive[24]


def test_a_whole_batch_is_encoded_once(tmp_path):
    for overrides, forwards in (([], 1), (["micro_batch_size=24"], 1), (["micro_batch_size=100"], 1)):
        train_step = make_train_step(configure(tmp_path, overrides))
        calls = []
        train_step.objective.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        train_step.update(make_batch(), 0)
        assert len(calls) == forwards


@pytest.mark.parametrize("switch", ["gradient_checkpointing", "torch_compile"])
def test_switches_leave_the_gradients_as_they_are(tmp_path, switch, monkeypatch):
    compiled = []
    compile_in_place = nn.Module.compile

    def compile_for_test(module):
        # Inductor takes minutes to start; what it compiles is not the point here.
        compiled.append(module)
        compile_in_place(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_for_test)
    plain = make_train_step(configure(tmp_path, RANDOM))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        other = make_train_step(configure(tmp_path, [*RANDOM, f"{switch}=true"]))
    recomputed = []
    other.model.vision_model.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_: recomputed.append(1))
    for train_step in (plain, other):
        train_step.objective.train()
        train_step.backward(make_batch(), 0)
    assert_close(gradients(other), gradients(plain), 1e-9)
    if switch == "gradient_checkpointing":
        assert len(recomputed) == 2
    else:
        assert compiled == [other.model.vision_model, other.model.text_model]
    assert other.model.state_dict().keys() == plain.model.state_dict().keys()


def test_what_cannot_be_is_refused_before_work_starts(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="mixed_precision=fp16 needs a CUDA GPU, and the device is cpu: use bf16"):
        decide(configure(tmp_path, ["mixed_precision=fp16"]))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(
        RecipeError, match="micro_batch_size=8 does not go with DeepSpeed.* or launch with DDP or FSDP2"
    ):
        decide(configure(tmp_path, ["micro_batch_size=8"]))
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="set fsdp_version: 2"):
        decide(configure(tmp_path))


RESNET = {"tower": "resnet", "stem_width": 4, "stage_depths": [1, 1, 1, 1], "hidden_size": 128, "image_size": 32}


def test_batch_norms_are_spoken_of_where_batches_are_looked_at_in_parts(tmp_path):
    shape = "{" + ", ".join(f"{key}: {value}" for key, value in RESNET.items()) + ", num_attention_heads: 4}"
    overrides = [f"model.config.vision_config={shape}"]
    config = configure(tmp_path, [*overrides, "micro_batch_size=8"])
    model = make_train_step(config).model
    assert "they see 8 of the batch's 24 pairs at a time" in note_on_batch_statistics(model, config, 8)
    whole_batch = configure(tmp_path, overrides)
    assert note_on_batch_statistics(model, whole_batch, 24) is None
    assert "they see 12 of" in note_on_batch_statistics(model, whole_batch, 12)
    frozen = configure(tmp_path, [*overrides, "micro_batch_size=8", "optimizer.vision_tower.trainable_groups=1"])
    assert note_on_batch_statistics(model, frozen, 8) is None
    vit = configure(tmp_path, ["micro_batch_size=8"])
    assert note_on_batch_statistics(make_train_step(vit).model, vit, 8) is None


FAULTS = """
import resource, torch
from hf_clip.training.device import keep_freed_memory

def faults():
    # Tensors of several sizes around those at which glibc changes its ways, made and freed by turns.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.ones(2**size) for size in (14, 17, 20, 23, 24)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_freed_memory_is_used_again_instead_of_asked_for_again():
    """But for those who have told malloc themselves."""
    counts = []
    for told in ({}, {"MALLOC_TOP_PAD_": "0"}):
        environment = {**os.environ, **told}
        run = subprocess.run(
            [*warm_python(), "-c", FAULTS], env=environment, capture_output=True, text=True, check=True
        )
        counts.append(int(run.stdout))
    assert counts[0] < 0.1 * counts[1] and counts[1] > 10_000


def enlarged(batch: Batch) -> Batch:
    """With images of 32 x 32 pixels, for the ResNet."""
    return replace(batch, images=batch.images.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_running_statistics_move_once_for_each_micro_batch(tmp_path, checkpointing):
    """In neither the pass without a graph nor in what gradient checkpointing makes again, and as normalized there."""
    shape = "{" + ", ".join(f"{key}: {value}" for key, value in RESNET.items()) + ", num_attention_heads: 4}"
    overrides = [f"model.config.vision_config={shape}", "micro_batch_size=8"]
    train_step = make_train_step(configure(tmp_path, [*overrides, f"gradient_checkpointing={checkpointing}"]))
    twin = make_train_step(configure(tmp_path, overrides)).model.train()
    batch = enlarged(make_batch())
    share = mixed_fraction(train_step.config.seed, 0, train_step.config.augmentation.mixup)
    assert train_step.update(batch, 0).is_update
    with torch.no_grad():
        for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
            twin.get_image_features(train_step._images(batch, rows, share))
    expected = dict(twin.vision_model.named_buffers())
    moved = [name for name in expected if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(moved) > 30
    for name, buffer in train_step.model.vision_model.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-10, atol=1e-12)
    # A bad step leaves them too: the forward that gave no number had moved them.
    before = {name: buffer.clone() for name, buffer in train_step.model.named_buffers()}
    spoil(train_step, {1}, "loss")
    assert not train_step.update(enlarged(make_batch(seed=1)), 1).is_update
    assert all(torch.equal(buffer, before[name]) for name, buffer in train_step.model.named_buffers())


def spoil(train_step: TrainStep, steps: set[int], what: str) -> None:
    """Makes the loss or a gradient of some updates (from 1) a NaN."""
    backward, count = train_step.backward, 0

    def spoilt(batch, step):
        nonlocal count
        count += 1
        loss = backward(batch, step)
        if count in steps and what == "loss":
            return loss * float("nan")
        if count in steps:
            train_step.model.visual_projection.weight.grad[0, 0] = float("inf")
        return loss

    train_step.backward = spoilt


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_changes_nothing_and_is_counted(tmp_path, what):
    train_step = make_train_step(configure(tmp_path, ["ema_decay=0.9"]))
    spoil(train_step, {2}, what)
    assert train_step.update(make_batch(seed=0), 0).is_update
    before = weights(train_step), json.dumps(repr(train_step.state_dict()["average"]))
    moments = {key: value.clone() for key, value in train_step.optimizer.state[train_step.model.logit_scale].items()}
    outcome = train_step.update(make_batch(seed=1), 1)
    assert not outcome.is_update and train_step.bad_steps == 1
    assert train_step.bad_batches == [(1, list(range(100, 124)))]
    assert all(torch.equal(each, before[0][name]) for name, each in weights(train_step).items())
    assert json.dumps(repr(train_step.state_dict()["average"])) == before[1]
    now = train_step.optimizer.state[train_step.model.logit_scale]
    assert all(torch.equal(value, now[key]) for key, value in moments.items())
    assert train_step.update(make_batch(seed=2), 2).is_update
    assert train_step.bad_steps == 1 and train_step.bad_batches == []
    assert not torch.equal(train_step.model.logit_scale, before[0]["logit_scale"])


def bad_run(folder: Path, bad_rank: int) -> tuple:
    """The end of a run in which one rank's gradients are spoilt at all steps from the second."""
    rank = dist.get_rank()
    config = configure(folder / f"{rank}", ["max_bad_steps=2"])
    train_step = make_train_step(config)
    run = make_trainer(config, folder, train_step)
    if rank == bad_rank:
        # Before the ranks' gradients are averaged, as a defective device would have it.
        weight = train_step.model.text_projection.weight
        weight.register_hook(lambda gradient: gradient * (float("nan") if run.progress.step else 1.0))
    message = None
    for step in range(4):
        run.progress.step = step
        before = weights(train_step)
        try:
            is_update = run.update(make_batch(24, rank, 2, seed=step)).is_update
        except TrainingDiverged as error:
            message, is_update = str(error), False
        unchanged = all(torch.equal(each, before[name]) for name, each in weights(train_step).items())
        assert is_update != unchanged
        if message is not None:
            return step, message, weights(train_step)
    return ()


def test_no_rank_updates_where_one_is_bad_and_the_run_stops_with_the_ids(tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
    first, second = run_on_ranks(bad_run, 2, tmp_path, 1)
    assert first[0] == second[0] == 2
    assert "the last of 2 in a row that updated nothing" in first[1] and "lower optimizer.learning_rate" in second[1]
    assert all(torch.equal(each, second[2][name]) for name, each in first[2].items())
    lines = [json.loads(line) for line in (tmp_path / "bad_batches.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert [line["sample_ids"] for line in lines] == [list(range(100, 124)), list(range(200, 224))]


class TestScaler:
    """A gradient scaler on the CPU in the place of a GPU's."""

    @pytest.fixture
    def train_step(self, tmp_path):
        train_step = make_train_step(configure(tmp_path), torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
        optimizer = train_step.optimizer.optimizer
        train_step.optimizer = AcceleratedOptimizer(optimizer, scaler=scaler)
        train_step.accelerator.scaler = scaler
        train_step.accelerator.unscale_gradients = lambda: scaler.unscale_(optimizer)
        return train_step

    def test_scaled_gradients_give_the_same_update(self, train_step, tmp_path):
        plain = make_train_step(configure(tmp_path), torch.float32)
        plain.update(make_batch(), 0)
        assert train_step.update(make_batch(), 0).is_update
        assert_close(weights(train_step), weights(plain), 1e-5)

    def test_an_overflow_is_no_bad_step_while_the_scale_can_shrink(self, train_step):
        before = weights(train_step)
        spoil(train_step, {1, 2, 3}, "gradient")
        scales = []
        for step in range(3):
            assert not train_step.update(make_batch(seed=step), step).is_update
            scales.append(train_step.accelerator.scaler.get_scale())
        # From 4 it shrank twice; at 1 the gradient itself must be bad.
        assert scales[:2] == [2.0, 1.0] and train_step.bad_steps == 1
        assert all(torch.equal(each, before[name]) for name, each in weights(train_step).items())
        state = train_step.state_dict()["scaler"]
        train_step.accelerator.scaler.update(64.0)
        train_step.load_state_dict({**train_step.state_dict(), "scaler": state})
        assert train_step.accelerator.scaler.get_scale() == scales[2]

    def test_a_loss_that_is_no_number_is_bad_whatever_the_scale(self, train_step):
        spoil(train_step, {1}, "loss")
        assert not train_step.update(make_batch(), 0).is_update and train_step.bad_steps == 1


def test_the_average_is_what_is_released(tmp_path):
    config = configure(tmp_path, ["ema_decay=0.6"])
    train_step = make_train_step(config)
    run = make_trainer(config, tmp_path, train_step)
    expected = weights(train_step)
    for step in range(4):
        run.update(
            make_batch(seed=step),
        )
        run.progress.step += 1
        # Until the sixth update the average is over fewer.
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {name: decay * each + (1 - decay) * weights(train_step)[name] for name, each in expected.items()}
    own = weights(train_step)
    with run.released_model() as model:
        assert_close(dict(model.named_parameters()), expected)
        assert (model.visual_projection.weight - own["visual_projection.weight"]).abs().max() > 1e-5
    assert all(torch.equal(each, own[name]) for name, each in weights(train_step).items())

    resumed = make_train_step(config)
    resumed.load_state_dict(run.train_step.state_dict())
    with resumed.average.in_place():
        assert_close(weights(resumed), expected)


def test_gradients_are_clipped_together(tmp_path):
    train_step = make_train_step(configure(tmp_path, ["optimizer.max_gradient_norm=0.05"]))
    norms = []
    step = train_step.optimizer.step
    train_step.optimizer.step = lambda: (norms.append(nn.utils.get_total_norm(gradients(train_step).values())), step())
    outcome = train_step.update(make_batch(), 0)
    assert outcome.gradient_norm > 0.5 and norms == [pytest.approx(0.05, rel=1e-4)]


def test_rates_rise_and_fall_for_every_group_alike(tmp_path):
    config = configure(tmp_path, ["optimizer.text_tower.learning_rate_factor=0.1"])
    train_step = make_train_step(config)
    train_step.update(make_batch(), 3)
    fraction = learning_rate_fraction(3, config.steps, config.optimizer)
    rates = {round(group["lr"] / (1e-3 * fraction), 9) for group in train_step.optimizer.param_groups}
    assert rates == {1.0, 0.1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("micro_batch_size=0", "micro_batch_size=0 must be 1 or more, or null"),
        ("mixed_precision=fp8", "mixed_precision='fp8' is not known: use 'auto', 'no', 'bf16' or 'fp16'"),
        ("max_bad_steps=0", "max_bad_steps=0 must be 1 or more"),
        ("ema_decay=1.0", "ema_decay=1.0 must lie between 0 and 1"),
        ("optimizer.vision_tower.layer_decay=0", "vision_tower.layer_decay=0.0 must lie in 0 to 1, above 0"),
        (
            "optimizer.text_tower.learning_rate_factor=0",
            "learning_rate_factor=0.0 .* trainable_groups=0 freezes a tower",
        ),
        ("optimizer.text_tower.trainable_groups=-1", "text_tower.trainable_groups=-1 must be 0 or more"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        configure(tmp_path, [override])
