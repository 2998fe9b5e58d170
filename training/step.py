"""One update of the weights by a global batch, whole or in micro-batches.

Shape suffixes: B pairs of this rank, H and W rows and columns, C = 3 colors, D dimensions of the shared space.

A contrast looks at all pairs of a batch at once, so that its micro-batches cannot just add their gradients up. With
cached gradients (Gao et al. 2021, "GradCache") they can: all micro-batches are embedded without a graph; the loss of
the global batch gives the gradient of each embedding; then each micro-batch is embedded once more, and pulls its
embeddings' gradients back into the weights. That is exact, costs one more forward, and holds the activations of one
micro-batch. Whatever draws at random draws the same both times: augmentation by the pairs' ids, dropout by a seed of
each micro-batch. Batch norms' running statistics move in one of the two. Images wait as bytes.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .augmentation import DRAWS_PER_IMAGE, augment, mix_neighbours, mixed_share, uniforms
from .config import TrainConfig
from .ema import WeightAverage
from .full_tensors import whole
from .layer_groups import BatchStatistics, locked_modules
from .optimizer import clamp_logit_scale, learning_rate_fraction, set_learning_rate
from .stream import Batch


class Outcome(NamedTuple):
    """The global batch's loss, the norm of its gradient, and whether the weights were updated by it."""

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    is_update: bool


@dataclass
class Updater:
    """Makes the steps of a run.

    Args:
        objective: `ContrastiveObjective` and `optimizer`, both as `accelerator.prepare` has them.
        average: follows the weights, where there is one.

    `bad_steps` counts the steps that updated nothing, as their loss or gradient was not finite; `bad_batches` holds
    (step, ids of this rank's samples) of those in a row until now.
    """

    config: TrainConfig
    accelerator: Accelerator
    objective: torch.nn.Module
    optimizer: torch.optim.Optimizer
    processor: HFCLIPProcessor
    average: WeightAverage | None = None
    bad_steps: int = 0
    bad_batches: list[tuple[int, list[int]]] = field(default_factory=list)

    def __post_init__(self):
        self._locked = locked_modules(self.model, self.config.optimizer)
        self._statistics = BatchStatistics(self.model)

    @property
    def model(self) -> HFCLIPModel:
        return self.accelerator.unwrap_model(self.objective).model

    def update(self, batch: Batch, step: int) -> Outcome:
        """The update of `step`, counted from 0. Collective: every rank brings its share of the batch.

        Where loss or gradient is not finite no rank updates: both are sums over all ranks, so all see the same.
        """
        self.objective.train()
        for module in self._locked:
            module.training = False
        config = self.config.optimizer
        set_learning_rate(self.optimizer, learning_rate_fraction(step, self.config.steps, config))
        statistics = self._statistics.take()
        loss = self.backward(batch, step)
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), config.max_gradient_norm)
        gradient_norm = whole(norm)
        is_update = bool((loss + gradient_norm).isfinite())
        if is_update:
            self.optimizer.step()
            self.bad_batches.clear()
            if self.model.logit_bias is None:
                clamp_logit_scale(self.model.logit_scale, config.max_logit_scale)
            if self.average is not None:
                self.average.follow()
        else:
            # The forward that gave no number has moved them already.
            self._statistics.put_back(statistics)
            if not self._shrinks_scale(loss):
                self.bad_steps += 1
                self.bad_batches.append((step, batch.sample_ids_B.tolist()))
        self.optimizer.zero_grad()
        return Outcome(loss, gradient_norm, is_update)

    def _shrinks_scale(self, loss: torch.Tensor) -> bool:
        """Whether fp16's gradient scaler was to blame: it makes gradients overflow until it has found its scale."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return False
        can_shrink = scaler.get_scale() > 1 and bool(loss.isfinite())
        scaler.update()
        return can_shrink

    def backward(self, batch: Batch, step: int) -> torch.Tensor:
        """The global batch's loss; its gradients are in the parameters, averaged over ranks."""
        spans = self._micro_batches(len(batch.captions))
        texts = [self._texts(batch, rows) for rows in spans]
        concept_ids = batch.concept_ids_B.to(self.accelerator.device)
        share = mixed_share(self.config.seed, step, self.config.augmentation.mixup)
        if len(spans) == 1:
            self._seed(step, 0)
            pixel_values = self._pixel_values(batch, spans[0], share)
            loss = self.objective(pixel_values, **texts[0], concept_ids=concept_ids, mixed_share=share)
            self._pull_back(loss)
            return loss.detach()

        def embed(index: int):
            self._seed(step, index)
            return self.objective(self._pixel_values(batch, spans[index], share), **texts[index])

        with torch.no_grad(), self._statistics.kept():
            embedded = [embed(index) for index in range(len(spans))]
        cached_BD = [torch.cat(parts).requires_grad_() for parts in zip(*(part for part, _ in embedded), strict=True)]
        factors = [factor.requires_grad_() for factor in embedded[0][1]]
        loss = self.accelerator.unwrap_model(self.objective).loss(cached_BD, factors, concept_ids, share)
        gradients = torch.autograd.grad(loss, cached_BD + factors)
        for index, rows in enumerate(spans):
            is_last = index == len(spans) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                embeddings, scalars = embed(index)
                # A scalar is part of each micro-batch, and its gradient of all of them together.
                parts = [gradient[rows] for gradient in gradients[: len(embeddings)]]
                parts += [gradient / len(spans) for gradient in gradients[len(embeddings) :]]
                pairs = zip(embeddings + scalars, parts, strict=True)
                self._pull_back(sum((value * part).sum() for value, part in pairs))
        return loss.detach()

    def _pull_back(self, value: torch.Tensor) -> None:
        # Gradient checkpointing makes layers again on the way, batch norms among them.
        with self._statistics.kept():
            self.accelerator.backward(value)

    def _micro_batches(self, size: int) -> list[slice]:
        micro = self.config.micro_batch_size or size
        return [slice(first, min(first + micro, size)) for first in range(0, size, micro)]

    def _seed(self, step: int, index: int) -> None:
        # What dropout draws is a function of its place: no generator's state need be kept, here or for a resumed run.
        place = [self.config.seed, step, self.accelerator.process_index, index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _pixel_values(self, batch: Batch, rows: slice, share: float) -> torch.Tensor:
        """Augmented, mixed and normalized images, (rows, C, H, W)."""
        device, config = self.accelerator.device, self.config
        draws = uniforms(config.seed, batch.epochs_B[rows], batch.sample_ids_B[rows], DRAWS_PER_IMAGE)
        images_BCHW = augment(
            batch.images_BHWC[rows].to(device),
            torch.from_numpy(draws).to(device),
            batch.may_flip_B[rows].to(device),
            batch.may_crop_B[rows].to(device),
            config.augmentation,
        )
        images_BCHW = mix_neighbours(images_BCHW, share)
        processor = self.processor.image_processor
        mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (processor.image_mean, processor.image_std)
        )
        return ((images_BCHW - mean) / std).contiguous(memory_format=torch.channels_last)

    def _texts(self, batch: Batch, rows: slice) -> dict[str, dict[str, torch.Tensor]]:
        """Tokens of captions and, where there are any, of keywords."""
        return {
            name: dict(self.processor(text=texts[rows], return_tensors="pt").to(self.accelerator.device))
            for name, texts in (("captions", batch.captions), ("keywords", batch.keywords))
            if texts is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimizer. Collective where weights are sharded."""
        scaler = self.accelerator.scaler
        return {
            "bad_steps": self.bad_steps,
            "bad_batches": self.bad_batches,
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad_steps, self.bad_batches = state["bad_steps"], list(state["bad_batches"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
