"""OpenCLIP's zero-shot classifier: weights (D, classes) that image features are multiplied with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.utils import logging

from hf_clip.prompts import load_prompts


def build_zero_shot_classifier(
    model: Any,
    tokenizer: Callable[[list[str]], torch.Tensor],
    classnames: Sequence[str],
    templates: Sequence[Callable[[str], str] | str],
    num_classes_per_batch: int | None = 10,
    device: str | torch.device = "cpu",
    use_tqdm: bool = False,
) -> torch.Tensor:
    """The mean of each class's unit embeddings over templates, of unit length again.

    Args:
        model: with `encode_text(ids, normalize=True)`.
        tokenizer: makes ids of a list of texts.
        classnames: one a class.
        templates: functions of a class's name, or texts with `{}` in its place.
        num_classes_per_batch: classes that are encoded at once; None for all.
        device: where the ids go; the model's.
        use_tqdm: draw a bar.

    Returns:
        (D, classes).

    Raises:
        TypeError: for one string in the place of several.
        ValueError: for no class or no template.
    """
    for name, given in (("classnames", classnames), ("templates", templates)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"`{name}` is of type {type(given).__name__}: pass a list, with one or more.")
        if not given:
            raise ValueError(f"`{name}` is empty: pass one or more.")
    size = num_classes_per_batch or len(classnames)
    starts = range(0, len(classnames), size)
    weights = []
    with torch.no_grad():
        for start in logging.tqdm(starts, unit="batch") if use_tqdm else starts:
            batch = classnames[start : start + size]
            texts = [_filled(template, name) for name in batch for template in templates]
            embeddings = model.encode_text(tokenizer(texts).to(device), normalize=True)
            means = embeddings.reshape(len(batch), len(templates), -1).mean(dim=1)
            weights.append(means / means.norm(dim=1, keepdim=True))
    return torch.cat(weights).T


def _filled(template: Callable[[str], str] | str, name: str) -> str:
    return template.format(name) if isinstance(template, str) else template(name)


def imagenet_classnames() -> tuple[str, ...]:
    """ImageNet's 1,000 classes as OpenAI cleaned their names."""
    return load_prompts("ImageNet").labels


def imagenet_templates(best: bool = False) -> tuple[Callable[[str], str], ...]:
    """OpenAI's 80 templates for ImageNet, or the best seven, as functions of a class's name."""
    prompts = load_prompts("ImageNet")
    return tuple(template.format for template in (prompts.best_templates if best else prompts.templates))
