"""One update of the weights by a global batch, whole or in micro-batches.

Shape suffixes: B pairs of this rank, N their texts (captions, then keywords), H and W rows and columns, C = 3 colors,
D dimensions of the shared space.

A contrastive loss looks at all pairs of a batch at once, so that its micro-batches cannot just add their gradients up.
With cached gradients (Gao et al. 2021, "GradCache") they can: all micro-batches but the first are embedded without a
graph, then the first with its graph; the loss of the global batch gives the gradient of each embedding; the first
pulls its embeddings' gradients back into the weights, and each other one is embedded once more and does the same. The
texts of a micro-batch are of like length, and not those of its images. That is exact, costs one more forward of all
but one, and holds the activations of one micro-batch. Whatever is random is the same both times: augmentation by the
pairs' ids, dropout by a seed of each micro-batch. Batch norms' running statistics move where there is a graph, in the
order of the micro-batches. Images wait as bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .augmentation import DRAWS_PER_IMAGE, augment, mix_neighbours, mixed_fraction, uniforms
from .captions import caption_factor
from .config import AugmentationConfig, TrainConfig
from .decisions import Decisions
from .distillation import TeacherEmbeddings
from .distributed import full_tensor, is_sharded
from .ema import WeightAverage
from .layer_groups import BatchStatistics, frozen_modules
from .lora import adapter_tensors, frozen_by_adapters, load_adapter_tensors
from .native_aspect import in_patches, rows_of_one_size
from .objective import ContrastiveObjective
from .optimizer import clamp_logit_scale, learning_rate_fraction, set_learning_rate
from .recipe_error import RecipeError
from .speed import Stopwatch
from .stages import Stage
from .stream import Batch
from .texts import StepTexts, tokens_of


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        loss: of the global batch, a scalar.
        gradient_norm: of the loss, before clipping, a scalar.
        is_update: whether the weights were updated.
        fix: what to change, where images that are not finite explain why the weights were not; else None.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    is_update: bool
    fix: str | None = None


@dataclass
class TrainStep:
    """Makes the steps of a run.

    Attributes:
        objective: `ContrastiveObjective` and `optimizer`, both from `prepare`.
        average: follows the weights, where there is one.
        teacher: the model at its start, frozen, where the recipe learns from it.
        bad_steps: how many steps updated nothing, as their loss or gradient was not finite.
        bad_batches: (step, ids of this rank's samples) of those in a row until now.
        is_sound: False while an update is under way: weights and optimizer may then be of different steps.
    """

    config: TrainConfig
    decisions: Decisions
    objective: torch.nn.Module
    optimizer: torch.optim.Optimizer
    processor: HFCLIPProcessor
    average: WeightAverage | None = None
    teacher: HFCLIPModel | None = None
    bad_steps: int = 0
    bad_batches: list[tuple[int, list[int]]] = field(default_factory=list)
    is_sound: bool = True

    def __post_init__(self):
        if self.processor.image_processor.max_num_patches is not None and self.config.augmentation.mixup:
            raise RecipeError(
                f"augmentation.mixup={self.config.augmentation.mixup} mixes images of one size, and a NaFlex model "
                "takes each at its own: set augmentation.mixup=0."
            )
        self._frozen = frozen_modules(self.model, self.config.optimizer)
        if self.config.lora is not None:
            self._frozen += frozen_by_adapters(self.model, self.config.lora)
        self._statistics = BatchStatistics(self.model)
        # What of a step no other process can hold up: sharded weights are gathered all the way.
        self.alone = Stopwatch(self.decisions.device)
        self.text_tokens = 0
        cast(Any, self.accelerator.unwrap_model(self.objective)).on_loss = self.alone.stop
        self._is_sharded = is_sharded(self.model)
        self._interpolates, self.stage = False, None
        self._own_patch_dropout = self.model.config.vision_config.patch_dropout

    def begin(self, stage: Stage) -> None:
        """Has the steps that follow be those of a stage."""
        self.stage = stage
        own = self._own_patch_dropout
        self._drop_patches(own if stage.patch_dropout is None else stage.patch_dropout)
        size = self.model.config.vision_config.image_size
        self._interpolates = stage.image_size not in (None, size)

    @contextmanager
    def own_settings(self) -> Iterator[None]:
        """The model's config is its own within the block, whatever the stage: as it is to be saved."""
        before = self.model.config.vision_config.patch_dropout
        self._drop_patches(self._own_patch_dropout)
        try:
            yield
        finally:
            self._drop_patches(before)

    def _drop_patches(self, fraction: float) -> None:
        for module in self.model.vision_model.modules():
            if hasattr(module, "config"):
                cast(Any, module.config).patch_dropout = fraction
        self.model.config.vision_config.patch_dropout = fraction

    @property
    def accelerator(self) -> Accelerator:
        return self.decisions.accelerator

    @property
    def model(self) -> HFCLIPModel:
        return self.accelerator.unwrap_model(self.objective).model

    def update(self, batch: Batch, step: int) -> StepResult:
        """The update of `step`, counted from 0. Collective: every rank brings its part of the batch.

        Where loss or gradient is not finite no rank updates: both are sums over all ranks, so all see the same.
        """
        self.objective.train()
        for module in self._frozen:
            module.training = False
        config = self.config.optimizer
        set_learning_rate(self.optimizer, learning_rate_fraction(step, self.config.total_steps, config))
        statistics = self._statistics.take()
        try:
            self.alone.start()
            loss = self.backward(batch, step)
            norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), config.max_gradient_norm)
            gradient_norm = full_tensor(cast(torch.Tensor, norm))
            is_update = bool((loss + gradient_norm).isfinite())
            self.alone.add()
        except BaseException:
            # Weights and optimizer are still those of the step before: so must the rest be, which may yet be saved.
            self._statistics.put_back(statistics)
            self.optimizer.zero_grad()
            raise
        fix = None
        if is_update:
            self._apply()
        else:
            # The forward that gave no number has moved them already.
            self._statistics.put_back(statistics)
            if not self._shrinks_scale(loss):
                self.bad_steps += 1
                self.bad_batches.append((step, batch.sample_ids.tolist()))
                fix = self._fix_of_images(batch, step)
        self.optimizer.zero_grad()
        return StepResult(loss, gradient_norm, is_update, fix)

    def _apply(self) -> None:
        self.is_sound = False
        self.optimizer.step()
        self.bad_batches.clear()
        if self.model.logit_bias is None:
            clamp_logit_scale(self.model.logit_scale, self.config.optimizer.max_logit_scale)
        if self.average is not None:
            self.average.follow()
        self.is_sound = True

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
        spans = self._micro_batches(len(batch.sample_ids))
        texts = self._texts(batch, spans)
        own = self._own_arguments(texts)
        concept_ids = batch.concept_ids.to(self.accelerator.device)
        more = self._further_facts(batch, texts, spans)
        fraction = mixed_fraction(self.config.seed, step, self.config.augmentation.mixup)
        if len(spans) == 1:
            self._seed(step, 0)
            images = self._images(batch, spans[0], fraction)
            loss = self.objective(images, texts.parts[0], texts.places, concept_ids, fraction, **more, **own[0])
            self._pull_back(loss)
            return self._over_ranks(loss.detach(), own)

        def embed(index: int, **own: Any):
            self._seed(step, index)
            return self.objective(self._images(batch, spans[index], fraction), texts.parts[index], **own)

        def syncs(index: int):
            is_last = index == len(spans) - 1
            return nullcontext() if is_last else self.accelerator.no_sync(self.objective)

        with torch.no_grad(), self._statistics.kept():
            others = [embed(index) for index in range(1, len(spans))]
        with syncs(0):
            first = embed(0, **own[0])
        image_BD, text_ND = (
            torch.cat([part.detach() for part in parts])
            for parts in zip(first[0], *(embeddings for embeddings, _, _ in others), strict=True)
        )
        cached = [each.requires_grad_() for each in (image_BD, text_ND.index_select(0, texts.places))]
        factors = [factor.detach().requires_grad_() for factor in first[1]]
        loss = self.accelerator.unwrap_model(self.objective).loss(*cached, factors, concept_ids, fraction, **more)
        of_image_BD, of_text_ND, *of_factors = torch.autograd.grad(loss, cached + factors)
        loss = loss.detach()
        for index, rows in enumerate(spans):
            with syncs(index):
                embeddings, scalars, added = embed(index, **own[index]) if index else first
                # Its graph goes with its backward pass.
                first = ([], [], [])
                # A scalar is part of each micro-batch, and its gradient of all of them together.
                parts = [of_image_BD[rows], of_text_ND[texts.rows[index]]]
                parts += [gradient / len(spans) for gradient in of_factors]
                pairs = zip(embeddings + scalars, parts, strict=True)
                self._pull_back(cast(torch.Tensor, sum(added) + sum((value * part).sum() for value, part in pairs)))
                loss = loss + sum(each.detach() for each in added)
        return self._over_ranks(loss, own)

    def _own_arguments(self, texts: StepTexts) -> list[dict[str, Any]]:
        """What the objective takes of each micro-batch to compute all of its losses. Collective."""
        if texts.images is None:
            return [{}] * len(texts.parts)
        weight = cast(Any, self.model.config).caption_loss_weight
        factor = caption_factor(texts, self.model, weight, self.accelerator)
        return [{"image_rows": rows, "caption_factor": factor} for rows in texts.images]

    def _over_ranks(self, loss: torch.Tensor, own: list[dict[str, Any]]) -> torch.Tensor:
        """The global batch's loss. The contrastive loss is; what is added to it is a rank's part."""
        return cast(torch.Tensor, self.accelerator.reduce(loss, "mean")) if own[0] else loss

    @torch.no_grad()
    def _further_facts(self, batch: Batch, texts: StepTexts, spans: list[slice]) -> dict[str, Any]:
        """What the loss takes besides embeddings, where the recipe asks for it: negatives, and what teachers say."""
        device, more = self.accelerator.device, {}
        if batch.has_negative is not None:
            more["has_negative"] = batch.has_negative.to(device)
        teachers = [TeacherEmbeddings(each.images.to(device), each.texts.to(device)) for each in batch.teachers]
        if self.teacher is not None:
            images = []
            for rows in spans:
                made = self._images(batch, rows, 0.0)
                inputs: dict[str, Any] = {"pixel_values": made} if isinstance(made, torch.Tensor) else made
                images.append(self.teacher.encode_image(**inputs))
            parts: list[dict[str, Any]] = [{**chunk} for part in texts.parts for chunk in part]
            chunks = [self.teacher.encode_text(**chunk) for chunk in parts]
            text_BD = torch.cat(chunks).index_select(0, texts.places[: len(batch.sample_ids)])
            root = self.teacher.logit_scale.exp().sqrt()
            teachers.append(TeacherEmbeddings(torch.cat(images) * root, text_BD * root))
        if teachers:
            more["teachers"] = teachers
        return more

    def _pull_back(self, value: torch.Tensor) -> None:
        # Gradient checkpointing makes layers again on the way, batch norms among them.
        with self._statistics.kept():
            self.accelerator.backward(value)

    def _micro_batches(self, size: int) -> list[slice]:
        micro = self.decisions.micro_batch_size
        if self.config.stages:
            # As it was decided for a run of one batch size.
            micro = min((self.stage and self.stage.micro_batch_size) or size, size)
        return [slice(first, min(first + micro, size)) for first in range(0, size, micro)]

    def _seed(self, step: int, index: int) -> None:
        # Dropout is a function of seed, step and micro-batch: no generator's state need be kept for a resumed run.
        entropy = [self.config.seed, step, self.accelerator.process_index, index]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def _images(self, batch: Batch, rows: slice, fraction: float) -> torch.Tensor | dict[str, Any]:
        """Augmented, mixed and normalized images, (rows, C, H, W); for a NaFlex model what it takes of them."""
        if isinstance(batch.images, torch.Tensor):
            images_BCHW = mix_neighbours(self._augmented(batch, rows, self.config.augmentation), fraction)
            pixels_BCHW = self._normalized(images_BCHW)
            more = {"interpolate_pos_encoding": True}
            return {"pixel_values": pixels_BCHW, **more} if self._interpolates else pixels_BCHW
        patch_size = self.processor.image_processor.patch_size
        groups = rows_of_one_size(batch.images, rows)
        augmented = (self._augmented(batch, group, self.config.augmentation) for group in groups)
        return in_patches([self._normalized(images_BCHW) for images_BCHW in augmented], groups, patch_size)

    def _augmented(self, batch: Batch, rows: slice | list[int], strengths: AugmentationConfig) -> torch.Tensor:
        """(rows, C, H, W) in [0, 1], of images of one size."""
        device, images = self.accelerator.device, batch.images
        if isinstance(images, list):
            images = torch.stack([images[row] for row in cast(list[int], rows)])
        else:
            images = images[rows]
        draws = uniforms(self.config.seed, batch.epochs[rows], batch.sample_ids[rows], DRAWS_PER_IMAGE)
        return augment(
            images.to(device),
            torch.from_numpy(draws).to(device),
            batch.may_flip[rows].to(device),
            batch.may_crop[rows].to(device),
            strengths,
        )

    def _normalized(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        processor = self.processor.image_processor
        mean, std = (
            torch.tensor(values, device=images_BCHW.device)[:, None, None]
            for values in (processor.image_mean, processor.image_std)
        )
        return ((images_BCHW - mean) / std).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _fix_of_images(self, batch: Batch, step: int) -> str | None:
        """What to change where the images of a bad step are not finite, on any process. Collective."""
        processor = self.processor.image_processor
        augmented = self.augmented_images(batch)
        by_augmentation, by_normalization = self.decisions.on_any_process(
            not all(each.isfinite().all() for each in augmented),
            not all(self._normalized(each).isfinite().all() for each in augmented),
        )
        if by_augmentation:
            return f"the augmentation gave images that are not finite: lower {self._excessive_strengths(batch)}"
        if by_normalization:
            return (
                f"the normalization gave images that are not finite: image_mean is {list(processor.image_mean)} and "
                f"image_std is {list(processor.image_std)}, by which images are divided"
            )
        return None

    def augmented_images(self, batch: Batch, strengths: AugmentationConfig | None = None) -> list[torch.Tensor]:
        """All images as the recipe changes them, those of one size together: (some, C, H, W) in [0, 1]."""
        strengths = strengths or self.config.augmentation
        images = batch.images
        groups = [slice(None)] if isinstance(images, torch.Tensor) else rows_of_one_size(images, slice(None))
        return [self._augmented(batch, group, strengths) for group in groups]

    def _excessive_strengths(self, batch: Batch) -> str:
        """The strengths of the augmentation that alone give images that are not finite."""
        given, none = self.config.augmentation, AugmentationConfig()
        excessive = []
        for name in (each.name for each in fields(AugmentationConfig)):
            value = getattr(given, name)
            if isinstance(value, float) and value != getattr(none, name):
                alone = replace(none, **{name: value})
                if not all(each.isfinite().all() for each in self.augmented_images(batch, alone)):
                    excessive.append(f"augmentation.{name} (now {value})")
        return " and ".join(excessive) or "its strengths"

    def _texts(self, batch: Batch, spans: list[slice]) -> StepTexts:
        """Tokens of captions and, where there are any, of keywords, for each micro-batch."""
        tokens = batch.tokens or tokens_of(self.processor, batch.captions, batch.further_texts)
        objective: ContrastiveObjective = self.accelerator.unwrap_model(self.objective)
        # Sharded weights are put together for each chunk, by all processes together.
        texts = objective.deal_texts(tokens, spans, self.accelerator.device, has_one_chunk=self._is_sharded)
        self.text_tokens += sum(chunk["input_ids"].numel() for part in texts.parts for chunk in part)
        return texts

    def state_dict(self, *, has_average: bool = True) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimizer. Collective where weights are sharded."""
        scaler = self.accelerator.scaler
        return {
            "bad_steps": self.bad_steps,
            "bad_batches": self.bad_batches,
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(is_whole=has_average),
            "adapters": adapter_tensors(self.model),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bad_steps, self.bad_batches = state["bad_steps"], list(state["bad_batches"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        load_adapter_tensors(self.model, state["adapters"])
