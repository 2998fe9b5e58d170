"""Learning from teachers: a student's scores of a batch drawn to those of other models, or of its own start.

Shape suffixes: B pairs of this rank, N pairs of all ranks, R rows at a time, D dimensions of a shared space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hf_clip.model.loss_hf_clip import _gather, _GatherRows

from .recipe_error import require

# Rows of scores that are held at once.
ROWS = 1024


@dataclass
class DistillationConfig:
    """Distillation: for every image the student's distribution over the captions of the batch is drawn to a teacher's,
    and for every caption that over the images (Vasu et al. 2023, "MobileCLIP", equation 2)."""

    weight: float = 0.5
    """The weight of distillation, 0 to 1; the contrastive loss has the rest."""
    from_start: bool = False
    """Whether the model at its start is a teacher, against forgetting. It sees the same augmented images."""

    def __post_init__(self):
        require(0 < self.weight <= 1, f"`weight={self.weight}` must lie in 0 to 1, above 0.")


class TeacherEmbeddings(NamedTuple):
    """What a teacher makes of a batch: (B, D) images and captions whose products are its logits."""

    images: torch.Tensor
    texts: torch.Tensor


def distillation_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    teachers: Sequence[TeacherEmbeddings],
) -> torch.Tensor:
    """The mean Kullback-Leibler divergence of a student's rows and columns from each teacher's, over the global batch.

    It is 0 where the student scores as all teachers do. Gradients follow the convention of `contrastive_loss` over
    ranks. Collective.

    Args:
        image_embeds, text_embeds: (B, D) the student's unit embeddings.
        logit_scale: a scalar, by which its cosines are multiplied.
        teachers: one or more; their divergences are averaged.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        wide = torch.promote_types(image_embeds.dtype, torch.float32)
        image_BD, text_BD = image_embeds.to(wide) * logit_scale, text_embeds.to(wide)
        image_ND, text_ND = _all_ranks(image_BD), _all_ranks(text_BD)
        total = image_BD.new_zeros(())
        for teacher in teachers:
            of_image_BD, of_text_BD = teacher.images.to(wide), teacher.texts.to(wide)
            total = total + _divergence(image_BD, text_ND, of_image_BD, _all_ranks(of_text_BD))
            total = total + _divergence(text_BD, image_ND, of_text_BD, _all_ranks(of_image_BD))
        return mean_over_ranks(total / (2 * len(teachers) * len(image_BD)))


def _divergence(row_BD, column_ND, teacher_row_BD, teacher_column_ND) -> torch.Tensor:
    """The sum over rows of the divergence from the teacher's distribution over columns."""

    def _of_rows(row_RD, teacher_row_RD, column_ND):
        student = F.log_softmax(row_RD @ column_ND.T, dim=1)
        teacher = F.log_softmax(teacher_row_RD @ teacher_column_ND.T, dim=1)
        return F.kl_div(student, teacher, reduction="sum", log_target=True)

    total = row_BD.new_zeros(())
    for row_RD, teacher_row_RD in zip(row_BD.split(ROWS), teacher_row_BD.split(ROWS), strict=True):
        if len(row_BD) > ROWS:
            total = total + checkpoint(_of_rows, row_RD, teacher_row_RD, column_ND, use_reentrant=False)
        else:
            total = total + _of_rows(row_RD, teacher_row_RD, column_ND)
    return total


def negatives_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    has_negative: torch.Tensor,
) -> torch.Tensor:
    """How well a caption is told from a hard negative of its image: the mean over the global batch of -log p(caption).

    Args:
        image_embeds, text_embeds, negative_embeds: (B, D) unit embeddings.
        logit_scale: a scalar.
        has_negative: (B,) of pairs without one the negative takes no part.
    """
    wide = torch.promote_types(image_embeds.dtype, torch.float32)
    lead_B = (image_embeds.to(wide) * (negative_embeds.to(wide) - text_embeds.to(wide))).sum(1)
    loss_B = F.softplus(logit_scale * lead_B) * has_negative
    return mean_over_ranks(loss_B.sum() / len(loss_B))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_ranks(rows_BD: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks; gradients flow back to where they came from."""
    if not _is_distributed():
        return rows_BD
    return _GatherRows.apply(rows_BD) if rows_BD.requires_grad else _gather(rows_BD)


def mean_over_ranks(loss: torch.Tensor) -> torch.Tensor:
    """The mean of the ranks' losses as the value, with this rank's own gradient: data parallelism averages those."""
    if not _is_distributed():
        return loss
    mean = loss.detach() / dist.get_world_size()
    dist.all_reduce(mean)
    return loss + (mean - loss.detach())
