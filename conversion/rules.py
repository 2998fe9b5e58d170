"""Tables of rules that rename, split, join and transpose tensors, and the engine that applies them both ways.

A table says for every tensor of another format which tensors of ours it holds. Read from left to right it loads,
from right to left it saves; nothing is written twice. Every tensor must be claimed by exactly one rule.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .errors import ConversionError

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    `*` in a name stands for one dotted piece and `**` for one or more, the same on both sides. A rule without stars
    takes its tensor from a rule with stars that would fit too.

    Args:
        theirs: name in the other format; several, and their rows (dimension 0) together are ours.
        ours: name in this package's models; several, and theirs is split along dimension 0 into them, in this order.
            None: the tensor is dropped, and `why` says why that loses nothing.
        transpose: a matrix that the other format stores the other way round.
        has_leading_axis: theirs has an axis of length 1 in front that ours lacks.
        is_scalar: a number, which is stored as () by some and as (1,) by others.
        parts: of the several names, how many equal parts of the rows each one takes; one each where not given.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...] = ()
    transpose: bool = False
    has_leading_axis: bool = False
    is_scalar: bool = False
    parts: tuple[int, ...] = ()
    why: str = ""

    def __post_init__(self):
        for side in ("theirs", "ours"):
            if isinstance(getattr(self, side), str):
                object.__setattr__(self, side, (getattr(self, side),))
        if not self.ours and not self.why:
            raise ValueError(f"The rule for {self.theirs[0]!r} drops it: say why.")


@dataclass(frozen=True)
class _Step:
    """A rule with its stars filled in."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]


def import_tensors(
    tensors: dict[str, torch.Tensor], rules: Sequence[Rule], expected: Shapes, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of another format under this package's names, as a model's state dict.

    Takes the tensors out of `tensors` one by one, so that none is held twice; pieces of a split tensor are views of
    it. All names and shapes are checked before the first tensor moves.

    Args:
        expected: name to shape of everything that the model holds.
        dtype: of the floating-point results; None keeps each tensor's own.

    Raises:
        ConversionError: naming the tensors that no rule claims, those that the model needs and the file lacks, those
            that the model does not have, and those of other shapes.
    """
    steps, unclaimed = _match_rules(tensors, rules, is_import=True)
    shapes = _shapes_after(steps, tensors, expected)
    others = [
        f"{name} {tuple(shape)} instead of {tuple(expected[name])}"
        for name, shape in shapes.items()
        if name in expected and tuple(shape) != tuple(expected[name])
    ]
    homeless = sorted(set(shapes) - set(expected))
    if problems := describe_mismatch(unclaimed + homeless, sorted(set(expected) - set(shapes)), others):
        raise ConversionError(problems)
    result = {}
    for step in steps:
        for name, tensor in zip(
            step.targets, _convert(step, [tensors.pop(name) for name in step.sources]), strict=True
        ):
            if step.rule.is_scalar:
                tensor = tensor.reshape(tuple(expected[name]))
            result[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return result


def export_tensors(tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule]) -> dict[str, torch.Tensor]:
    """A model's state dict under another format's names. Tensors that need no joining share memory with the model's.

    Raises:
        ConversionError: naming the tensors that the format does not take.
    """
    steps, unclaimed = _match_rules(tensors, rules, is_import=False)
    if unclaimed:
        raise ConversionError(_listing("this format cannot hold {} of the model", unclaimed) + ".")
    return {
        name: tensor
        for step in steps
        for name, tensor in zip(
            step.targets, _convert_to_other(step, [tensors[name] for name in step.sources]), strict=True
        )
    }


def describe_mismatch(unexpected: Sequence[str], missing: Sequence[str], mismatched: Sequence[str]) -> str:
    """One sentence on what does not fit between a file and a model; empty where all does."""
    problems = [
        _listing("the model has no counterpart of {} of the file", unexpected, near=missing),
        _listing("the file lacks {} of the model", missing, near=unexpected),
        _listing("shapes differ in {}", mismatched),
    ]
    problems = [problem for problem in problems if problem]
    return f"{'; '.join(problems)}. The file and the architecture do not belong together." if problems else ""


def renamed_shapes(shapes: Shapes, rules: Sequence[Rule]) -> dict[str, tuple[int, ...]]:
    """Name to shape under this package's names, of those tensors that a rule claims. Nothing is read or checked."""
    tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    steps, _ = _match_rules(tensors, rules, is_import=True)
    return _shapes_after(steps, tensors, {})


def _match_rules(names: Iterable[str], rules: Sequence[Rule], is_import: bool) -> tuple[list[_Step], list[str]]:
    """The steps that move all names, in the order of the table, and the names that no rule claims."""
    sides = [(rule.theirs, rule.ours) if is_import else (rule.ours, rule.theirs) for rule in rules]
    exact: dict[str, list[tuple[int, int, tuple[str, ...]]]] = {}
    patterns: list[tuple[int, int, re.Pattern[str]]] = []
    for index, (left, _) in enumerate(sides):
        for position, name in enumerate(left):
            if "*" in name:
                patterns.append((index, position, _pattern(name)))
            else:
                exact.setdefault(name, []).append((index, position, ()))
    unclaimed: list[str] = []
    claims: dict[tuple[int, tuple[str, ...]], dict[int, str]] = {}
    for name in names:
        found = exact.get(name) or [
            (index, position, match.groups())
            for index, position, pattern in patterns
            if (match := pattern.fullmatch(name))
        ]
        if len(found) > 1:
            raise ConversionError(f"{name} is claimed by {len(found)} rules of the table: keep one of them.")
        if not found:
            unclaimed.append(name)
            continue
        index, position, stars = found[0]
        claims.setdefault((index, stars), {})[position] = name
    steps = []
    for (index, stars), found_names in sorted(claims.items(), key=lambda claim: claim[0][0]):
        left, right = sides[index]
        if len(found_names) < len(left):
            missing = [_filled(name, stars) for position, name in enumerate(left) if position not in found_names]
            there = ", ".join(map(_shown, found_names.values()))
            raise ConversionError(f"{_listing('the file lacks {} that belong to others', missing)}: {there}.")
        steps.append(
            _Step(rules[index], tuple(_filled(n, stars) for n in left), tuple(_filled(n, stars) for n in right))
        )
    return steps, unclaimed


_STARS = re.compile(r"\*\*?")


def _pattern(name: str) -> re.Pattern:
    parts = [re.escape(part) for part in _STARS.split(name)]
    stars = ["(.+)" if star == "**" else "([^.]+)" for star in _STARS.findall(name)]
    return re.compile("".join(part + star for part, star in zip(parts, [*stars, ""], strict=True)))


def _filled(name: str, stars: Sequence[str]) -> str:
    values = iter(stars)
    return _STARS.sub(lambda _: next(values), name)


def _convert(step: _Step, tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    if not step.targets:
        return ()
    tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    if step.rule.has_leading_axis:
        if tensor.shape[0] != 1:
            raise ConversionError(f"{step.sources[0]} is {tuple(tensor.shape)}: its first axis should be of length 1.")
        tensor = tensor[0]
    return _split(step, tensor.T.contiguous() if step.rule.transpose else tensor)


def _convert_to_other(step: _Step, tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
    tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    if step.rule.transpose:
        tensor = tensor.T.contiguous()
    if step.rule.has_leading_axis:
        tensor = tensor[None]
    if step.rule.is_scalar:
        tensor = tensor.reshape(())
    return _split(step, tensor)


def _split(step: _Step, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    if len(step.targets) == 1:
        return (tensor,)
    parts = step.rule.parts or (1,) * len(step.targets)
    if tensor.ndim == 0 or tensor.shape[0] % sum(parts):
        raise ConversionError(
            f"{step.sources[0]} is {tuple(tensor.shape)}: its first axis should divide into {sum(parts)} parts, for "
            f"{', '.join(step.targets)}."
        )
    return tensor.split([tensor.shape[0] // sum(parts) * part for part in parts])


def _shapes_after(steps: Sequence[_Step], tensors: Mapping[str, torch.Tensor], expected: Shapes) -> dict[str, tuple]:
    """Shapes under our names, found by moving tensors without content."""
    shapes: dict[str, tuple] = {}
    for step in steps:
        empty = [torch.empty(tensors[name].shape, device="meta") for name in step.sources]
        for name, tensor in zip(step.targets, _convert(step, empty), strict=True):
            if name in shapes:
                raise ConversionError(f"two tensors of the file are {name} here: it mixes two formats.")
            is_number = step.rule.is_scalar and tensor.numel() == 1
            shapes[name] = tuple(expected.get(name, ())) if is_number else tuple(tensor.shape)
    return shapes


def _listing(problem: str, names: Sequence[str], near: Iterable[str] = (), limit: int = 5) -> str:
    """`problem` with the count in its braces, and the first names; empty where there are none."""
    if not names:
        return ""
    nearest = difflib.get_close_matches(names[0], list(near), n=1, cutoff=0.6)
    hint = f" (nearest to the first: {nearest[0]})" if nearest else ""
    return f"{problem.format(_tensors(len(names)))}: {shown_names(names, limit)}{hint}"


def shown_names(names: Sequence[str], limit: int = 5) -> str:
    """The first of some names, as part of a line."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(_shown, names[:limit])) + more


def describe_skipped(names: Sequence[str]) -> str:
    """That these tensors are beside a CLIP, and not loaded."""
    count = (
        "1 tensor is not the CLIP's and is" if len(names) == 1 else f"{len(names)} tensors are not the CLIP's and are"
    )
    return f"{count} not loaded: {shown_names(names)}."


def _shown(name: str) -> str:
    """Names come from files: anything may stand in them."""
    return name if name.isprintable() and len(name) <= 120 else ascii(name[:80])


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"
