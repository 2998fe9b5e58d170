"""Averages of models that were trained from one start: their weights, each tensor by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .errors import ConversionError
from .loading import load


def average_models(
    models: Sequence[str | Path], weights: Sequence[float] | None = None, **options: Any
) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """A model whose weights are the weighted mean of others', in float32, with the processor of the last.

    Of a start and what was fine-tuned from it this is WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903), of several
    that were fine-tuned from one start a uniform soup (Wortsman et al. 2022, arXiv 2203.05482). `hf_clip.wise_ft`
    and `greedy_soup` find the weights by an evaluation.

    Args:
        models: two or more, each whatever `load` takes, of one shape and one vocabulary.
        weights: one a model; they are divided by their sum. None weighs all alike.
        options: further arguments of `load`.

    Raises:
        ValueError: fewer than two models, or weights that are not as many, negative, not finite or all zero.
        ConversionError: a model that cannot be read, or two of which the shapes or vocabularies differ.
    """
    if len(models) < 2:
        raise ValueError(f"`models` has {len(models)} entries: an average needs two or more.")
    weights = [1.0] * len(models) if weights is None else list(weights)
    if len(weights) != len(models):
        raise ValueError(f"`weights` has {len(weights)} entries for {len(models)} models: give one for each.")
    total = sum(weights)
    if min(weights) < 0 or not 0 < total < float("inf"):
        raise ValueError(f"`weights` are {weights}: give numbers of 0 or more, not all 0.")
    loaded = [load(model, dtype=torch.float32, **options) for model in models]
    for name, (model, processor) in zip(models, loaded, strict=True):
        require_alike(str(models[-1]), loaded[-1], str(name), (model, processor))
    model, processor = loaded[-1]
    states = [each.state_dict() for each, _ in loaded]
    model.load_state_dict(average_states(states, [weight / total for weight in weights]))
    return model.eval(), processor


def average_states(states: Sequence[dict[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted sum of each tensor; states of weight 0 take no part. Whole numbers are the last one's."""
    parts = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight]
    average = {}
    for name, tensor in states[-1].items():
        if not tensor.is_floating_point():
            average[name] = tensor.clone()
        elif len(parts) == 1:
            average[name] = parts[0][0][name].clone()
        else:
            # In double precision: the mean of equal weights is that weight.
            average[name] = sum((state[name].double() * weight for state, weight in parts)).to(tensor.dtype)  # type: ignore
    return average


def require_alike(
    one_name: str,
    one: tuple[HFCLIPModel, HFCLIPProcessor],
    other_name: str,
    other: tuple[HFCLIPModel, HFCLIPProcessor],
) -> None:
    """Raises ConversionError for two models whose weights are not those of one shape and one vocabulary."""
    ours, theirs = (
        {name: tuple(each.shape) for name, each in model.state_dict().items()} for model, _ in (one, other)
    )
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        raise ConversionError(
            f"{one_name} and {other_name} are of two shapes ({len(differing)} tensors differ: {name} is "
            f"{ours.get(name, 'not there')} and {theirs.get(name, 'not there')}): average what was trained from one "
            "start."
        )
    vocabularies = [processor.tokenizer.get_vocab() for _, processor in (one, other)]
    if vocabularies[0] != vocabularies[1]:
        raise ConversionError(
            f"{one_name} and {other_name} have two vocabularies: average what was trained from one start."
        )
