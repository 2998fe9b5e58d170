"""The contrastive losses of the dual encoder, over one global batch on any number of ranks.

Shape suffixes: B pairs on this rank, N pairs on all ranks, D dimensions of the shared space.

The paper's loss (figure 3) is symmetric: each picture chooses among all texts of the batch, each text among all
pictures. On R ranks, a rank scores its B rows against all N columns, in both directions, and returns the mean over
its rows. Two facts make that the gradient of one big batch. All ranks hold equally many rows, so the mean of the
ranks' means is the global mean, and averaging gradients over ranks (what DDP does) is the average that it needs.
And a column's gradient is owed by every rank that scored it: the gather's backward sums those parts and brings them
home. Nobody holds N x N scores.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, in rank order: (N, D). Gradients flow back to each row's own rank, summed over the ranks."""

    @staticmethod
    def forward(ctx, rows_BD: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient_ND: torch.Tensor) -> torch.Tensor:
        world_size = dist.get_world_size()
        gradient_BD = gradient_ND.new_empty(len(gradient_ND) // world_size, gradient_ND.shape[1])
        dist.reduce_scatter_tensor(gradient_BD, gradient_ND.contiguous())
        return gradient_BD


def _gather_ids(ids_B: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(ids_B) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, ids_B.contiguous())
    return torch.cat(parts)


def _require_alike_on_all_ranks(size: int, has_ids: bool, device: torch.device) -> None:
    """Ranks that differ would wait for each other for ever: they find out together, and all raise."""
    extremes = torch.tensor([size, -size, has_ids, -has_ids], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    largest, minus_smallest, any_has_ids, minus_all_have_ids = extremes.tolist()
    if largest != -minus_smallest:
        raise ValueError(
            f"The ranks hold between {-minus_smallest} and {largest} pairs: give each rank equally many "
            "(drop the last, partial batch), or the mean over ranks is not the mean over pairs."
        )
    if any_has_ids != -minus_all_have_ids:
        raise ValueError("Some ranks have ids and others none: give ids on every rank, or on none.")


def _cross_entropy(logits_BN: torch.Tensor, first_column: int, is_positive_BN: torch.Tensor | None) -> torch.Tensor:
    """Mean over rows of the cross entropy to the row's own column, or evenly to all its positives."""
    if is_positive_BN is None:
        own_B = torch.arange(len(logits_BN), device=logits_BN.device) + first_column
        return F.cross_entropy(logits_BN, own_B)
    log_probabilities_BN = logits_BN.log_softmax(dim=-1)
    count_B = is_positive_BN.sum(dim=-1)
    return -((log_probabilities_BN * is_positive_BN).sum(dim=-1) / count_B).mean()


def contrastive_loss(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    logit_scale: torch.Tensor,
    ids_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE over the global batch (Radford et al. 2021, section 2.3 and figure 3).

    Args:
        image_BD: unit vectors of this rank's pictures, (B, D).
        text_BD: unit vectors of their texts, (B, D), in the same order.
        logit_scale: the factor on the cosines (the exponential of the learned parameter), a scalar.
        ids_B: integers, (B,). Pairs with equal ids show the same thing: each is a positive of the other, not a
            negative, and a row's target is spread evenly over its positives (Khosla et al. 2020, "outside the
            logarithm"). None: each pair is its own only positive.

    Returns:
        A scalar, equal on all ranks: the loss of the global batch. Its gradients are those of this rank's share;
        averaged over ranks, as DDP does, they are the global batch's. Half-precision inputs are scored in float32.

    Raises:
        ValueError: shapes that do not agree, an empty batch, ranks with unequal batches or without the others' ids.
    """
    is_distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if is_distributed:
        _require_alike_on_all_ranks(len(image_BD), ids_B is not None, image_BD.device)
    if image_BD.shape != text_BD.shape or image_BD.ndim != 2 or len(image_BD) == 0:
        raise ValueError(
            f"Pictures {tuple(image_BD.shape)} and texts {tuple(text_BD.shape)} must be two batches of the same shape "
            "(pairs, dimensions), with at least one pair."
        )
    if ids_B is not None and ids_B.shape != (len(image_BD),):
        raise ValueError(f"ids has shape {tuple(ids_B.shape)}: one id a pair is needed, ({len(image_BD)},).")
    if image_BD.dtype in (torch.float16, torch.bfloat16):
        image_BD, text_BD = image_BD.float(), text_BD.float()

    with torch.autocast(image_BD.device.type, enabled=False):
        if not is_distributed:
            is_positive = None if ids_B is None else ids_B[:, None] == ids_B[None, :]
            return _symmetric(image_BD, text_BD, image_BD, text_BD, logit_scale, 0, is_positive)
        image_ND, text_ND = _GatherRows.apply(image_BD), _GatherRows.apply(text_BD)
        is_positive = None if ids_B is None else ids_B[:, None] == _gather_ids(ids_B)[None, :]
        first_column = dist.get_rank() * len(image_BD)
        loss = _symmetric(image_BD, text_BD, image_ND, text_ND, logit_scale, first_column, is_positive)
        # The value becomes the global batch's on every rank, so that all ranks judge alike whether it is finite;
        # the gradient stays that of this rank's rows.
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return loss + (mean / dist.get_world_size() - loss.detach())


def _symmetric(image_BD, text_BD, image_ND, text_ND, logit_scale, first_column, is_positive_BN) -> torch.Tensor:
    scale = logit_scale.to(image_BD.dtype)
    from_images = _cross_entropy(scale * image_BD @ text_ND.T, first_column, is_positive_BN)
    from_texts = _cross_entropy(scale * text_BD @ image_ND.T, first_column, is_positive_BN)
    return (from_images + from_texts) / 2
