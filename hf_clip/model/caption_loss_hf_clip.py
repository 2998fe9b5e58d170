"""The caption loss: cross entropy of each next token, in tiles, so that the logits are never all there.

Shape suffixes: N tokens, W width, V tokens of the vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F

# Numbers of a tile's logits: 32 MiB in float32, of which three are there at a time.
TILE_NUMBERS = 2**23
IGNORED = -100


def caption_labels(input_ids: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """(B, T - 1) what each token but the last should be followed by; `IGNORED` for padding."""
    labels_BT = input_ids[:, 1:]
    return labels_BT if pad_token_id is None else labels_BT.masked_fill(labels_BT == pad_token_id, IGNORED)


def caption_loss(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, tile_tokens: int | None = None
) -> torch.Tensor:
    """The sum over tokens of -log p(label), p being the softmax of `states @ weight.T`.

    As `torch.nn.functional.cross_entropy(..., reduction="sum")` of all logits, which for 128 captions of 75 tokens in
    OpenAI's vocabulary are 1.9 GB, and as much again for each map beside them. Here a tile's logits are made, turned
    into the tile's share of the gradients at once, and dropped.

    Args:
        states: (..., W) of the tokens.
        weight: (V, W).
        labels: (...) ids, `IGNORED` (-100) for tokens that have no next one.
        tile_tokens: tokens of a tile; None: as many as make logits of 32 MiB in float32.

    Returns:
        A scalar, in float32 or float64. Divide by the number of labels that are not ignored for the mean.
    """
    states_NW, labels_N = states.reshape(-1, states.shape[-1]), labels.reshape(-1)
    if states_NW.shape[0] != labels_N.shape[0]:
        raise ValueError(f"`states` has {states_NW.shape[0]} tokens and `labels` {labels_N.shape[0]}: pass as many.")
    tile = tile_tokens or max(1, TILE_NUMBERS // weight.shape[0])
    loss: Any = _TiledCrossEntropy.apply(states_NW, weight, labels_N, tile)
    return loss


class _TiledCrossEntropy(torch.autograd.Function):
    """Gradients are made with the loss, in the forward pass: the backward pass multiplies them by its own."""

    @staticmethod
    def forward(
        ctx: Any, states_NW: torch.Tensor, weight_VW: torch.Tensor, labels_N: torch.Tensor, tile: int
    ) -> torch.Tensor:
        dtype = torch.promote_types(states_NW.dtype, torch.float32)
        kind = states_NW.device.type
        with torch.autocast(kind, enabled=False):
            return _in_tiles(ctx, states_NW, weight_VW.to(states_NW.dtype), labels_N, tile, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_states, of_weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            (of_states * grads[0]).to(ctx.dtypes[0]) if needs[0] else None,
            (of_weight * grads[0]).to(ctx.dtypes[1]) if needs[1] else None,
            None,
            None,
        )


def _in_tiles(
    ctx: Any,
    states_NW: torch.Tensor,
    weight_VW: torch.Tensor,
    labels_N: torch.Tensor,
    tile: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    needs_states, needs_weight = ctx.needs_input_grad[:2]
    loss = torch.zeros((), dtype=dtype, device=states_NW.device)
    of_states = torch.zeros_like(states_NW, dtype=dtype) if needs_states else states_NW.new_empty(0)
    of_weight = torch.zeros_like(weight_VW, dtype=dtype) if needs_weight else weight_VW.new_empty(0)
    ctx.dtypes = states_NW.dtype, weight_VW.dtype
    for start in range(0, len(labels_N), tile):
        rows = slice(start, start + tile)
        states_TW, labels_T = states_NW[rows], labels_N[rows]
        is_label_T = labels_T != IGNORED
        logits_TV = (states_TW @ weight_VW.T).to(dtype)
        own_T1 = labels_T.clamp(min=0)[:, None]
        norms_T = logits_TV.logsumexp(dim=1)
        loss += ((norms_T - logits_TV.gather(1, own_T1)[:, 0]) * is_label_T).sum()
        if not (needs_states or needs_weight):
            continue
        # Their softmax, less one at the label: the gradient of the logits.
        grad_TV = logits_TV.sub_(norms_T[:, None]).exp_()
        grad_TV.scatter_add_(1, own_T1, torch.full_like(own_T1, -1, dtype=dtype))
        grad_TV *= is_label_T[:, None]
        if needs_states:
            of_states[rows] = grad_TV.to(weight_VW.dtype) @ weight_VW
        if needs_weight:
            of_weight.addmm_(grad_TV.T, states_TW.to(dtype))
    ctx.save_for_backward(of_states, of_weight)
    return loss


def mean_caption_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`caption_loss` over the number of labels; 0 where there are none."""
    return caption_loss(states, weight, labels) / (labels != IGNORED).sum().clamp(min=1)


def plain_caption_loss(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`caption_loss` with all logits at once: what tests and the benchmark compare it with."""
    logits = F.linear(states, weight).flatten(0, -2)
    return F.cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=IGNORED)
