"""Between and among fine-tuned models: weights mixed with the start's (WiSE-FT) and soups, picked by an evaluation."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_clip.conversion import load
from hf_clip.conversion.averaging import average_states, require_alike
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .config import NUMBERS_OF_TASKS
from .evaluate import evaluate_one, number_of, open_evaluations
from .recipe import load_recipe
from .recipe_error import RecipeError

logger = logging.getLogger(__name__)

# Numbers by name, of a model: what is measured on validation data, and on other data.
Evaluate = Callable[[HFCLIPModel, HFCLIPProcessor], Mapping[str, float]]

# The numbers of a task that are watched whichever picks.
LEADING = {
    "retrieval": ("image_to_text.recall_at_1", "text_to_image.recall_at_1"),
    "languages": ("image_to_text.median", "text_to_image.median"),
    "captions": ("exact",),
    "zero-shot": ("top_1",),
}
FRACTIONS = tuple(index / 10 for index in range(11))


@dataclass
class Mixture:
    """What `wise_ft` or `greedy_soup` found.

    Attributes:
        model, processor: of the best mixture.
        best: its entry in `curve`.
        curve: for each mixture that was evaluated, `weights` (one a model, in the order given) and `numbers`.
    """

    model: HFCLIPModel
    processor: HFCLIPProcessor
    best: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"best": self.best, "curve": self.curve}


def wise_ft(
    start: str | Path,
    end: str | Path,
    evaluate: Evaluate,
    by: str,
    *,
    fractions: Sequence[float] = FRACTIONS,
    less_is_better: bool = False,
) -> Mixture:
    """Weights between a start and what was fine-tuned from it (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).

    The numbers of each mixture are logged.

    Args:
        start, end: whatever `load` takes, of one shape.
        evaluate: the numbers of a model by name: that of validation data, and of any other data to be watched.
        by: the name of the number by which the best is picked. Of equals it is the one nearest to the start.
        fractions: of `end` in the mixture, 0 to 1.
        less_is_better: whether a smaller number is better.

    Raises:
        ValueError: no fractions, or others than 0 to 1; `evaluate` gives no number of that name.
        ConversionError: as `average_models`.
    """
    if not fractions or min(fractions) < 0 or max(fractions) > 1:
        raise ValueError(f"`fractions` are {list(fractions)}: give numbers in 0 to 1.")
    bench = _Bench([start, end], evaluate, by, less_is_better)
    for fraction in fractions:
        bench.try_weights([1 - fraction, fraction])
    return bench.mixture()


def greedy_soup(
    models: Sequence[str | Path],
    evaluate: Evaluate,
    by: str,
    *,
    less_is_better: bool = False,
) -> Mixture:
    """The mean of those of several fine-tuned models that help (a greedy soup, Wortsman et al. 2022, recipe 1).

    Models are tried from the best to the worst; each stays in the mean where that is no worse with it.

    Args, raises: as `wise_ft`.
    """
    if len(models) < 2:
        raise ValueError(f"`models` has {len(models)} entries: a soup needs two or more.")
    bench = _Bench(list(models), evaluate, by, less_is_better)
    alone = [
        bench.try_weights([float(place == index) for place in range(len(models))]) for index in range(len(models))
    ]
    order = sorted(range(len(models)), key=lambda index: -alone[index])
    members, value = [order[0]], alone[order[0]]
    for index in order[1:]:
        tried = [*members, index]
        found = bench.try_weights([(place in tried) / len(tried) for place in range(len(models))])
        if found >= value:
            members, value = tried, found
    return bench.mixture([(place in members) / len(members) for place in range(len(models))])


def evaluation_by_recipe(recipe: str | Path, by: str | None = None) -> tuple[Evaluate, str]:
    """What evaluates a model as a recipe has it (for `wise_ft`, `greedy_soup`), and the name of the number to pick by.

    The numbers are the leading ones of each evaluation, such as `validation.image_to_text.recall_at_1`, and the one to
    pick by.

    Args:
        recipe: as for `load_recipe`; it has evaluations.
        by: the number; None takes the recipe's `checkpoints.best`.

    Raises:
        RecipeError: the recipe has no evaluation, or none of that name; there is no number to pick by.
        SourceError: data of an evaluation cannot be read.
    """
    config = load_recipe(recipe)
    if not config.evaluations:
        raise RecipeError(f"{recipe} has no evaluations to pick by: add one.")
    by = by or config.checkpoints.best
    if by is None:
        raise RecipeError(f"`by` is not given, and {recipe} has no checkpoints.best: name a number to pick by.")
    name, _, number = by.partition(".")
    known = NUMBERS_OF_TASKS[config.evaluations[name].task] if name in config.evaluations else []
    if number not in known:
        names = [f"{each}.{LEADING[one.task][0]}" for each, one in config.evaluations.items()]
        raise RecipeError(f"`by={by}` is no number of the recipe's evaluations: give one such as {', '.join(names)}.")
    evaluations = open_evaluations(config)

    def evaluate(model: HFCLIPModel, processor: HFCLIPProcessor) -> dict[str, float]:
        if config.templates is not None:
            model.config.zero_shot_templates = config.templates
        numbers = {}
        for each in evaluations.values():
            result = {each.name: evaluate_one(model, processor, each, each.name)}
            wanted = dict.fromkeys([*(f"{each.name}.{leading}" for leading in LEADING[each.config.task]), by])
            for path in wanted:
                value = number_of(result, path)
                if value is not None:
                    numbers[path] = value
        return numbers

    return evaluate, by


class _Bench:
    """Mixtures of some models, each evaluated once."""

    def __init__(self, models: Sequence[str | Path], evaluate: Evaluate, by: str, less_is_better: bool):
        self.evaluate, self.by = evaluate, by
        self.sign = -1 if less_is_better else 1
        loaded = [load(model, dtype=torch.float32) for model in models]
        for name, each in zip(models, loaded, strict=True):
            require_alike(str(models[-1]), loaded[-1], str(name), each)
        self.states = [copy.copy(model.state_dict()) for model, _ in loaded]
        self.model, self.processor = copy.deepcopy(loaded[-1][0]), loaded[-1][1]
        self.curve: list[dict[str, Any]] = []

    def try_weights(self, weights: list[float]) -> float:
        """The number of a mixture; more is better."""
        self._set(weights)
        numbers = {name: float(value) for name, value in self.evaluate(self.model, self.processor).items()}
        if self.by not in numbers:
            raise ValueError(f"`by={self.by}` is not among what is evaluated: {', '.join(numbers)}.")
        self.curve.append({"weights": weights, "numbers": numbers})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        logger.info(f"{' + '.join(f'{weight:.3g}' for weight in weights)}: {shown}")
        return self.sign * numbers[self.by]

    def mixture(self, weights: list[float] | None = None) -> Mixture:
        """That of some weights, or the best, of which the first."""
        entries = [each for each in self.curve if weights is None or each["weights"] == weights]
        best = max(entries, key=lambda each: self.sign * each["numbers"][self.by])
        self._set(best["weights"])
        return Mixture(self.model, self.processor, best, self.curve)

    def _set(self, weights: list[float]) -> None:
        self.model.load_state_dict(average_states(self.states, weights))
        self.model.eval()
