"""Two processes take the steps of one where pairs have more texts, teachers speak, or adapters learn."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import NAMES
from tests.helpers.steps import configure, gradients, make_batch, make_train_step
from tests.helpers.toys import scatter_weights

KINDS = {
    "texts": ["data.captions_per_image=2", "data.negative_columns=[wrong]", "data.negative_weight=0.7"],
    "start": ["augmentation.mixup=0", "distillation={from_start: true, weight: 0.6}"],
    "adapters": ["lora={rank: 2}"],
}


def first_step(folder: Path, kind: str, micro: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients on the ranks that there are, in float64."""
    is_distributed = dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_distributed else (0, 1)
    place = folder / f"{kind}-{micro}-{world_size}-{rank}"
    place.mkdir()
    overrides = [*KINDS[kind], *([] if micro is None else [f"micro_batch_size={micro}"])]
    train_step = make_train_step(configure(place, overrides))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, each in train_step.model.named_parameters():
            if ".lora_B." in name:
                each.normal_(std=0.1)
    if kind == "start":
        train_step.teacher = scatter_weights(make_train_step(configure(place)).model, 0.2)
    batch = make_batch(24, rank, world_size)
    if kind == "texts":
        own = range(rank * 24 // world_size, (rank + 1) * 24 // world_size)
        batch.captions.extend(NAMES[(3 * index) % 24] for index in own)
        object.__setattr__(batch, "negatives", [NAMES[(5 * index + 1) % 24] for index in own])
        object.__setattr__(batch, "has_negative", torch.tensor([index % 3 > 0 for index in own]))
    loss = train_step.backward(batch, 0)
    return loss, gradients(train_step)


@pytest.mark.slow
@pytest.mark.parametrize("kind", soak_count(["texts"], list(KINDS)))
def test_two_processes_take_the_step_of_one(tmp_path, kind):
    expected_loss, expected = first_step(tmp_path, kind, None)
    largest = max(each.abs().max() for each in expected.values())
    for loss, found in run_on_ranks(first_step, 2, tmp_path, kind, 4 if kind == "texts" else None):
        assert abs(loss - expected_loss) < 1e-10
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).abs().max() < 1e-10 * largest, name
