"""The contrastive losses of the dual encoder, over one global batch on any number of ranks.

Shape suffixes: B pairs on this rank, N pairs on all ranks, D dimensions of the shared space, R rows and C columns of
one tile of scores.

Both losses score every image with every text: N x N scores, 4 GB at the paper's batch, of which only one tile exists
at a time. The forward pass keeps sums for each row and each column. The backward pass scores the tile again, turns it
into the loss's slope at each score, and multiplies that with the embeddings. That is one product of matrices in the
forward pass and three in the backward pass, for both directions together, and memory that grows with N alone. Where no
two pairs have one id, positives are on the diagonals of tiles.

A rank scores its B rows of images against all N columns of texts. The sums of a column are added up over the ranks.
Gradients follow the convention of data parallelism, which averages them over ranks: each rank's are R times what its
rows contribute on R ranks. Every rank that scored a text contributes to its gradient: the gather's backward pass sums
those parts on the rank that has the text.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Rows and columns of a tile. On a CPU its 2 MB stay in the cache near the core; a GPU is filled by no less.
_CPU_TILE = (512, 1024)
_GPU_TILE = (4096, 4096)

# Where no score can be larger than 2 to this power, and no sum of powers is smaller than 2 to that one, one power of
# each score serves its row and its column, without a maximum of either: float32 has powers from -126 to 127, and what
# falls below is less than 2^-46 of its sum.
_LARGEST_POWER, _SMALLEST_SUM = 100, -80
# Of scores, over which the sums would be too small in any case. At a scale of 100 they are up to 145.
_LARGEST_SCORE = 190

# torch's own product of float32 matrices is MKL's, which has no use for AVX-512 on CPUs that are not Intel's: oneDNN
# was seen 2.3 times faster on one of AMD's, with the same accuracy.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def matrix_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The product of two matrices in their own precision, whatever autocast says."""
    with torch.autocast(left.device.type, enabled=False):
        if _ONEDNN_LINEAR and left.device.type == "cpu" and left.dtype == torch.float32:
            return _ONEDNN_LINEAR(left, right.T, None, "none", [], "")
        return left @ right


def half_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The float32 product of two matrices that are rounded to bf16: fast where the device multiplies those fast."""
    left, right = left.bfloat16(), right.bfloat16()
    with torch.autocast(left.device.type, enabled=False):
        if left.device.type == "cuda":
            return torch.mm(left, right, out_dtype=torch.float32)
        # A CPU's product of halves rounds its sums too, but for oneDNN's of float32 in bf16, which torch 2.8 lacks.
        matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
        if matmul is None:
            return matrix_product(left.float(), right.float())
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            return matrix_product(left.float(), right.float())
        finally:
            matmul.fp32_precision = before


_PRODUCTS = {"float32": matrix_product, "bfloat16": half_product}


def _product(name: str, embeddings_BD: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if name not in _PRODUCTS:
        raise ValueError(f"`products={name}` is unknown: use one of {', '.join(_PRODUCTS)}.")
    return matrix_product if embeddings_BD.dtype == torch.float64 else _PRODUCTS[name]


def _spans(size: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, size)) for start in range(0, size, length))


def _tiles(
    image_BD: torch.Tensor, text_ND: torch.Tensor, scale: torch.Tensor, product: Callable
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Rows, columns, and the scores there: all tiles of `scale * image @ text.T`, the caller's to overwrite."""
    tile_rows, tile_columns = _CPU_TILE if image_BD.device.type == "cpu" else _GPU_TILE
    for rows in _spans(len(image_BD), tile_rows):
        scaled_RD = image_BD[rows] * scale
        for columns in _spans(len(text_ND), tile_columns):
            yield rows, columns, product(scaled_RD, text_ND[columns].T)


def _of_own_pairs(score_RC: torch.Tensor, rows: slice, columns: slice, own: slice) -> tuple[slice, torch.Tensor]:
    """Which of this rank's rows meet their own columns in a tile, and what is there: a view, empty for most tiles."""
    offset = own.start + rows.start - columns.start
    if not -len(score_RC) < offset < score_RC.shape[1]:
        return slice(0, 0), score_RC[0, :0]
    own_R = score_RC.diagonal(offset)
    first = rows.start + max(0, -offset)
    return slice(first, first + len(own_R)), own_R


def _are_positive(group_R: torch.Tensor, group_C: torch.Tensor) -> torch.Tensor:
    """(R, C), 1 where the groups are equal, 0 elsewhere."""
    # Compared and written as floats: seven times faster on a CPU than through integers or booleans.
    return torch.eq(group_R[:, None], group_C[None, :], out=group_R.new_empty(len(group_R), len(group_C)))


def _pull_back(
    needs_gradient: tuple[bool, ...],
    image_BD: torch.Tensor,
    text_ND: torch.Tensor,
    scale: torch.Tensor,
    slopes: Iterator[tuple[slice, slice, torch.Tensor]],
    factor: torch.Tensor,
    product: Callable,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of images, texts and scale, from the tiles of the loss's slope at each score, times `factor`."""
    needs_image, needs_text, needs_scale = needs_gradient[:3]
    needs_rows = needs_image or needs_scale
    image_gradient_BD = torch.zeros_like(image_BD if needs_rows else image_BD[:0])
    text_gradient_ND = torch.zeros_like(text_ND if needs_text else text_ND[:0])
    for rows, columns, slope_RC in slopes:
        if needs_rows:
            image_gradient_BD[rows] += product(slope_RC, text_ND[columns])
        if needs_text:
            text_gradient_ND[columns] += product(slope_RC.T, image_BD[rows])
    scale_gradient = (image_gradient_BD * image_BD).sum() * factor if needs_scale else None
    return (
        image_gradient_BD.mul_(scale * factor) if needs_image else None,
        text_gradient_ND.mul_(scale * factor) if needs_text else None,
        scale_gradient,
    )


def _refuse_second_derivatives() -> None:
    # once_differentiable would let gradients pass as constants unless the loss's own gradient needs one.
    if torch.is_grad_enabled():
        raise RuntimeError("The tiled losses have first derivatives only: drop create_graph=True.")


class _PowerSums(NamedTuple):
    """Sums of 2^score, one a row or one a column, each kept as `total * 2^maximum`: no score under- or overflows."""

    maximum: torch.Tensor
    total: torch.Tensor

    @classmethod
    def zeros(cls, size: int, like: torch.Tensor) -> "_PowerSums":
        return cls(like.new_full((size,), -math.inf), like.new_zeros(size))

    def add_(self, where: slice, scores: torch.Tensor, dim: int) -> None:
        maximum, total = self.maximum[where], self.total[where]
        raised = torch.maximum(maximum, scores.amax(dim))
        total.mul_((maximum - raised).exp2_()).add_((scores - raised.unsqueeze(dim)).exp2_().sum(dim))
        maximum.copy_(raised)

    def add_up_over_ranks_(self) -> None:
        own = self.maximum.clone()
        dist.all_reduce(self.maximum, op=dist.ReduceOp.MAX)
        self.total.mul_(own.sub_(self.maximum).exp2_())
        dist.all_reduce(self.total)

    def probabilities(self, where: slice, scores: torch.Tensor, dim: int) -> torch.Tensor:
        """Each score's fraction of its row's (dim 1) or its column's (dim 0) sum."""
        fraction_RC = (scores - self.maximum[where].unsqueeze(dim)).exp2_()
        return fraction_RC.mul_(self.total[where].reciprocal().unsqueeze(dim))


def _log2(total_B: torch.Tensor) -> torch.Tensor:
    """In double precision on a CPU, where a sum of powers with one offset for all has a logarithm of up to 120."""
    return (total_B.double() if total_B.device.type == "cpu" else total_B).log2()


def _sums_by_one_offset(
    image_BD: torch.Tensor, text_ND: torch.Tensor, scale: torch.Tensor, product: Callable, keep: Callable
) -> tuple[_PowerSums, _PowerSums] | None:
    """Sums of rows and of columns by one power a score; None where that would lose some. `keep` is shown tiles."""
    largest = scale.abs() * image_BD.norm(dim=1).amax() * text_ND.norm(dim=1).amax()
    if largest.isnan() or largest > _LARGEST_SCORE:
        return None
    offset = max(0, math.ceil(largest) - _LARGEST_POWER)
    row_B, column_N = image_BD.new_zeros(len(image_BD)), text_ND.new_zeros(len(text_ND))
    for rows, columns, score_RC in _tiles(image_BD, text_ND, scale, product):
        keep(rows, columns, score_RC)
        power_RC = (score_RC.sub_(offset) if offset else score_RC).exp2_()
        row_B[rows] += power_RC.sum(dim=1)
        column_N[columns] += power_RC.sum(dim=0)
    if torch.minimum(row_B.amin(), column_N.amin()) < 2.0**_SMALLEST_SUM:
        return None
    return _PowerSums(torch.full_like(row_B, offset), row_B), _PowerSums(torch.full_like(column_N, offset), column_N)


def _row_and_column_sums(
    image_BD: torch.Tensor, text_ND: torch.Tensor, scale: torch.Tensor, product: Callable, keep: Callable
) -> tuple[_PowerSums, _PowerSums]:
    """Sums of powers of this rank's rows, and over them of all columns. `keep` is shown all tiles of scores."""
    # Asking a GPU whether it can be done costs more than it saves there.
    if image_BD.device.type == "cpu" and (sums := _sums_by_one_offset(image_BD, text_ND, scale, product, keep)):
        return sums
    by_row, by_column = _PowerSums.zeros(len(image_BD), image_BD), _PowerSums.zeros(len(text_ND), text_ND)
    for rows, columns, score_RC in _tiles(image_BD, text_ND, scale, product):
        keep(rows, columns, score_RC)
        by_row.add_(rows, score_RC, dim=1)
        by_column.add_(columns, score_RC, dim=0)
    return by_row, by_column


def _probabilities(
    image_BD: torch.Tensor,
    text_ND: torch.Tensor,
    scale: torch.Tensor,
    by_row: _PowerSums,
    by_column: _PowerSums,
    product: Callable,
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Tiles of each score's fraction of its row's sum, and of its column's, added up."""
    has_one_offset, offset = False, 0.0
    if image_BD.device.type == "cpu":
        offset = by_row.maximum[0].item()
        has_one_offset = all(bool((sums.maximum == offset).all()) for sums in (by_row, by_column))
    of_row_B, of_column_N = by_row.total.reciprocal(), by_column.total.reciprocal()
    for rows, columns, score_RC in _tiles(image_BD, text_ND, scale, product):
        if has_one_offset:
            fraction_RC = (score_RC.sub_(offset) if offset else score_RC).exp2_()
            fraction_RC *= of_row_B[rows, None] + of_column_N[columns]
        else:
            fraction_RC = by_row.probabilities(rows, score_RC, dim=1)
            fraction_RC += by_column.probabilities(columns, score_RC, dim=0)
        yield rows, columns, fraction_RC


class _Softmax(torch.autograd.Function):
    """The symmetric cross entropy of B rows of a global batch's N x N scores. `own` is their slice of the N."""

    @staticmethod
    def forward(ctx, image_BD, text_ND, scale, group_N, count_N, own: slice, product) -> torch.Tensor:
        positive_B = image_BD.new_zeros(len(image_BD))

        def _keep_positives(rows: slice, columns: slice, score_RC: torch.Tensor) -> None:
            if group_N is None:
                where, own_R = _of_own_pairs(score_RC, rows, columns, own)
                positive_B[where] = own_R
            else:
                if columns.start == 0:
                    # Tiles are shown again where sums are taken in another way.
                    positive_B[rows] = 0
                are_positive_RC = _are_positive(group_N[own][rows], group_N[columns])
                positive_B[rows] += are_positive_RC.mul_(score_RC).sum(dim=1)

        # Powers of two instead of e: the factor between them goes into the scale, and exp2 is up to 5 times faster.
        by_row, by_column = _row_and_column_sums(image_BD, text_ND, scale / math.log(2), product, _keep_positives)
        is_distributed = len(text_ND) > len(image_BD)
        if is_distributed:
            by_column.add_up_over_ranks_()
        ctx.save_for_backward(image_BD, text_ND, scale, group_N, count_N, *by_row, *by_column)
        ctx.own, ctx.product = own, product

        # Maximum less positive first: where a pair's own score is the largest that is 0, and a small loss stays exact.
        if count_N is not None:
            positive_B /= count_N[own]
        row_loss_B = by_row.maximum - positive_B + _log2(by_row.total)
        column_loss_B = by_column.maximum[own] - positive_B + _log2(by_column.total[own])
        loss = (row_loss_B + column_loss_B).sum().to(image_BD) * (math.log(2) / (2 * len(text_ND)))
        if is_distributed:
            dist.all_reduce(loss)
        return loss

    @staticmethod
    def backward(ctx, gradient):
        _refuse_second_derivatives()
        image_BD, text_ND, scale, group_N, count_N, *sums = ctx.saved_tensors
        by_row, by_column = _PowerSums(*sums[:2]), _PowerSums(*sums[2:])
        weight_B = None if count_N is None else 2 / count_N[ctx.own, None]

        def slopes():
            tiles = _probabilities(image_BD, text_ND, scale / math.log(2), by_row, by_column, ctx.product)
            for rows, columns, slope_RC in tiles:
                if weight_B is None:
                    _of_own_pairs(slope_RC, rows, columns, ctx.own)[1].sub_(2)
                else:
                    are_positive_RC = _are_positive(group_N[ctx.own][rows], group_N[columns])
                    slope_RC.addcmul_(are_positive_RC, weight_B[rows], value=-1)
                yield rows, columns, slope_RC

        factor = gradient / (2 * len(image_BD))
        gradients = _pull_back(ctx.needs_input_grad, image_BD, text_ND, scale, slopes(), factor, ctx.product)
        return *gradients, None, None, None, None


def _negate_positives(
    tile_RC: torch.Tensor, rows: slice, columns: slice, group_N: torch.Tensor | None, own: slice
) -> torch.Tensor:
    """The tile with the other sign where rows and columns belong together, in place."""
    if group_N is None:
        _of_own_pairs(tile_RC, rows, columns, own)[1].neg_()
        return tile_RC
    return tile_RC.mul_(_are_positive(group_N[own][rows], group_N[columns]).mul_(-2).add_(1))


class _Sigmoid(torch.autograd.Function):
    """The mean over B rows of a global batch's N x N scores of each row's summed binary cross entropies."""

    @staticmethod
    def forward(ctx, image_BD, text_ND, scale, bias, group_N, own: slice, product) -> torch.Tensor:
        ctx.save_for_backward(image_BD, text_ND, scale, bias, group_N)
        ctx.own, ctx.product = own, product
        loss = image_BD.new_zeros(())
        for rows, columns, score_RC in _tiles(image_BD, text_ND, scale, product):
            answer_RC = _negate_positives(score_RC.add_(bias).neg_(), rows, columns, group_N, own)
            loss -= F.logsigmoid(answer_RC).sum()
        loss /= len(text_ND)
        if len(text_ND) > len(image_BD):
            dist.all_reduce(loss)
        return loss

    @staticmethod
    def backward(ctx, gradient):
        _refuse_second_derivatives()
        image_BD, text_ND, scale, bias, group_N = ctx.saved_tensors
        bias_gradient = torch.zeros_like(bias)

        def slopes():
            for rows, columns, score_RC in _tiles(image_BD, text_ND, scale, ctx.product):
                at = (rows, columns, group_N, ctx.own)
                slope_RC = _negate_positives(_negate_positives(score_RC.add_(bias), *at).sigmoid_(), *at)
                bias_gradient.add_(slope_RC.sum())
                yield rows, columns, slope_RC

        factor = gradient / len(image_BD)
        gradients = _pull_back(ctx.needs_input_grad, image_BD, text_ND, scale, slopes(), factor, ctx.product)
        return *gradients, bias_gradient * factor, None, None, None


def _gather(rows_BX: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in rank order."""
    world_size = dist.get_world_size()
    rows_NX = rows_BX.new_empty(world_size * len(rows_BX), *rows_BX.shape[1:])
    dist.all_gather(list(rows_NX.chunk(world_size)), rows_BX.contiguous())
    return rows_NX


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, in rank order: (N, D). Gradients flow back to each row's own rank, summed over the ranks."""

    @staticmethod
    def forward(ctx, rows_BD: torch.Tensor) -> torch.Tensor:
        return _gather(rows_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_ND: torch.Tensor) -> torch.Tensor:
        world_size = dist.get_world_size()
        gradient_BD = gradient_ND.new_empty(len(gradient_ND) // world_size, gradient_ND.shape[1])
        dist.reduce_scatter_tensor(gradient_BD, gradient_ND.contiguous())
        return gradient_BD


def _require_alike_on_all_ranks(size: int, has_ids: bool, device: torch.device) -> None:
    """Raises on all ranks where one differs from the others: they would wait for each other for ever."""
    extremes = torch.tensor([size, -size, has_ids, -has_ids], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    largest, minus_smallest, any_has_ids, minus_all_have_ids = extremes.tolist()
    if largest != -minus_smallest:
        raise ValueError(
            f"The ranks hold between {-minus_smallest} and {largest} pairs: pass as many on each rank (drop the last, "
            "partial batch), or the mean over ranks is not the mean over pairs."
        )
    if any_has_ids != -minus_all_have_ids:
        raise ValueError("Some ranks have `concept_ids` and others have none: pass them on every rank, or on none.")


def _global_batch(
    image_BD: torch.Tensor, text_BD: torch.Tensor, ids_B: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, slice]:
    """This rank's images, all ranks' texts and ids, and the slice of them that is this rank's."""
    is_distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if is_distributed:
        _require_alike_on_all_ranks(len(image_BD), ids_B is not None, image_BD.device)
    if image_BD.shape != text_BD.shape or image_BD.ndim != 2 or len(image_BD) == 0:
        raise ValueError(
            f"`image_embeds` has shape {tuple(image_BD.shape)} and `text_embeds` {tuple(text_BD.shape)}: pass two "
            "batches of the same shape (pairs, dimensions), with at least one pair."
        )
    if ids_B is not None and ids_B.shape != (len(image_BD),):
        raise ValueError(
            f"`concept_ids` has shape {tuple(ids_B.shape)}: pass one id for each pair, ({len(image_BD)},)."
        )
    dtype = torch.promote_types(torch.promote_types(image_BD.dtype, text_BD.dtype), torch.float32)
    image_BD, text_BD = image_BD.to(dtype), text_BD.to(dtype)
    if not is_distributed:
        return image_BD, text_BD, ids_B, slice(0, len(image_BD))
    first = dist.get_rank() * len(image_BD)
    ids_N = None if ids_B is None else _gather(ids_B)
    return image_BD, _GatherRows.apply(text_BD), ids_N, slice(first, first + len(image_BD))


def _groups(
    ids_N: torch.Tensor | None, embeddings_ND: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """The group of each pair, equal where the ids are, and how many pairs it has, both in the embeddings' dtype.

    None where no two pairs have one id.
    """
    if ids_N is None:
        return None, None
    _, group_N, count_G = torch.unique(ids_N, return_inverse=True, return_counts=True)
    if len(count_G) == len(ids_N):
        return None, None
    return group_N.to(embeddings_ND), count_G[group_N].to(embeddings_ND)


def _positives_lead(image_BD, text_ND, scale, group_N, count_N, own: slice) -> torch.Tensor:
    """By how much the mean score of positives exceeds that of all pairs, over the global batch.

    No scores are needed for it: a mean of scores is the score of a mean. Value and gradients follow the losses'
    convention over ranks.
    """
    if group_N is None:
        positive_BD = text_ND[own]
    else:
        group_N = group_N.long()
        group_sum_ND = torch.zeros_like(text_ND).index_add(0, group_N, text_ND)
        positive_BD = group_sum_ND[group_N[own]] / count_N[own, None]
    lead = scale * (image_BD * (positive_BD - text_ND.mean(dim=0))).sum() / len(image_BD)
    if len(text_ND) == len(image_BD):
        return lead
    mean = lead.detach() / dist.get_world_size()
    dist.all_reduce(mean)
    return lead + (mean - lead.detach())


_Function = TypeVar("_Function", bound=Callable)


def _untraced(function: _Function) -> _Function:
    """The function, left alone by `torch.compile`: it would unroll the loop over tiles into thousands of products."""
    return cast(_Function, torch.compiler.disable(function))


def _scalar(name: str, number: torch.Tensor, embeddings_BD: torch.Tensor) -> torch.Tensor:
    if number.numel() != 1:
        raise ValueError(f"`{name}` has shape {tuple(number.shape)}: pass one number, of shape () or (1,).")
    return number.to(embeddings_BD).reshape(())


@_untraced
def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    concept_ids: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    products: str = "float32",
) -> torch.Tensor:
    """Symmetric InfoNCE over the global batch (Radford et al. 2021, section 2.3 and figure 3), in tiles.

    Exact, at a memory that grows with N alone: what is kept for the backward pass is the embeddings, all ranks' texts,
    and four numbers a pair.

    Args:
        image_embeds: unit embeddings of this rank's images, (B, D).
        text_embeds: unit embeddings of their texts, (B, D), in the same order.
        logit_scale: what the cosines are multiplied by (the exponential of the learned parameter), of shape () or
            (1,).
        concept_ids: integers, (B,). Pairs with equal ids show the same concept: each is a positive of the other, not
            a negative, and a row's target is spread evenly over its positives (Khosla et al. 2020, "outside the
            logarithm"). None: each pair is its own only positive.
        label_smoothing: in [0, 1), the fraction of each row's target that is spread over the whole batch (Szegedy et
            al. 2016, section 7), as in `torch.nn.functional.cross_entropy`.
        products: "float32", or "bfloat16": of what is rounded to bf16, with sums in float32. It is faster where the
            device multiplies bf16 faster; gradients then differ by about 0.3%.

    Returns:
        A scalar, equal on all ranks: the loss of the global batch. Its gradients are those of this rank's pairs;
        averaged over ranks, as DDP does, they are the global batch's. Half-precision inputs are scored, summed and
        differentiated in float32. With several ranks its backward pass is a collective, as the forward one is.

    Raises:
        ValueError: shapes that do not agree, an empty batch, ranks with unequal batches or without the others' ids;
            unknown `products`.
    """
    image_BD, text_ND, ids_N, own = _global_batch(image_embeds, text_embeds, concept_ids)
    scale = _scalar("logit_scale", logit_scale, image_BD)
    group_N, count_N = _groups(ids_N, text_ND)
    loss = _Softmax.apply(image_BD, text_ND, scale, group_N, count_N, own, _product(products, image_BD))
    if not label_smoothing:
        return loss
    # A fraction of the target moves from the positives to all, and with it that fraction of the subtracted scores.
    return loss + label_smoothing * _positives_lead(image_BD, text_ND, scale, group_N, count_N, own)


@_untraced
def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    concept_ids: torch.Tensor | None = None,
    products: str = "float32",
) -> torch.Tensor:
    """SigLIP's loss over the global batch (Zhai et al. 2023, section 3.2 and algorithm 1), in tiles.

    Each image with each text is a question of its own: do they belong together? The answers' negative log
    likelihoods are summed over an image's texts, and averaged over images.

    Args:
        image_embeds, text_embeds, logit_scale: as in `contrastive_loss`.
        logit_bias: what is added to the scaled cosines, of shape () or (1,).
        concept_ids: integers, (B,). Pairs with equal ids belong together. None: each pair is its own only positive.
        products: as in `contrastive_loss`.

    Returns, raises: as `contrastive_loss`.
    """
    image_BD, text_ND, ids_N, own = _global_batch(image_embeds, text_embeds, concept_ids)
    scale = _scalar("logit_scale", logit_scale, image_BD)
    bias = _scalar("logit_bias", logit_bias, image_BD)
    group_N, _ = _groups(ids_N, text_ND)
    return _Sigmoid.apply(image_BD, text_ND, scale, bias, group_N, own, _product(products, image_BD))
