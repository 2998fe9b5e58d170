"""Finished runs side by side: the numbers of their evaluations in one table, before training and after."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clip.evaluation.comparison import numbers_of

from .run_folder import RESULTS

START = "before training"


@dataclass(frozen=True)
class RunComparison:
    """The numbers of some runs.

    Attributes:
        names: of the columns: the runs, and the start of the first where it was evaluated.
        rows: by evaluation and number, its value in each column; None where it was not measured.
        details: by what was trained (steps, seconds, ...), its value in each column as text.
    """

    names: list[str]
    rows: dict[str, list[float | None]]
    details: dict[str, list[str]]

    def table(self) -> str:
        """Lines for a terminal; the last column is the last run's change from the first column."""
        width = max(map(len, [*self.rows, *self.details, ""]))
        columns = [max(len(name), 8) for name in self.names]
        lines = [" " * width + "".join(f"  {name:>{size}}" for name, size in zip(self.names, columns, strict=True))]
        lines[0] += "    change" if len(self.names) > 1 else ""
        for row, values in self.rows.items():
            shown = ["-" if value is None else f"{value:.4f}" for value in values]
            line = f"{row:{width}}" + "".join(f"  {text:>{size}}" for text, size in zip(shown, columns, strict=True))
            if len(values) > 1 and values[0] is not None and values[-1] is not None:
                line += f"  {values[-1] - values[0]:+8.4f}"
            lines.append(line)
        for row, texts in self.details.items():
            lines.append(
                f"{row:{width}}" + "".join(f"  {text:>{size}}" for text, size in zip(texts, columns, strict=True))
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"runs": self.names, "numbers": self.rows, "details": self.details}


def compare_runs(runs: Sequence[str | Path]) -> RunComparison:
    """The evaluations of finished runs, and the first one's before it was trained (`eval_at_start`).

    Args:
        runs: their folders.

    Raises:
        ValueError: a folder holds no finished run; the runs have no evaluation.
    """
    found = [_read(Path(run)) for run in runs]
    names = _names([Path(run) for run in runs])
    columns = [each["evaluations"] for each in found]
    if found[0].get("evaluations_at_start"):
        columns, names = [found[0]["evaluations_at_start"], *columns], [START, *names]
    try:
        numbers = [_numbers(column) for column in columns]
        started = [_details(each) for each in found]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{RESULTS} of a run is not as training writes it ({reason}): evaluate the run again."
        ) from error
    rows = {
        row: [column.get(row) for column in numbers] for row in dict.fromkeys(row for each in numbers for row in each)
    }
    if not rows:
        raise ValueError(f"{', '.join(map(str, runs))}: no evaluation in {RESULTS}: add evaluations to the recipe.")
    at_start = [dict.fromkeys(started[0], "-")] * (len(names) - len(found))
    details = {name: [each[name] for each in [*at_start, *started]] for name in started[0]}
    return RunComparison(names, rows, {name: texts for name, texts in details.items() if set(texts) != {"-"}})


def _details(run: Mapping[str, Any]) -> dict[str, str]:
    """What was trained, as text."""
    skipped = run.get("pairs_skipped")
    return {
        "steps": _shown(run.get("step")),
        "best step": _shown((run.get("best") or {}).get("step")),
        "seconds": _shown(run.get("train_seconds")),
        "pairs skipped": _shown(None if skipped is None else sum(skipped.values())),
    }


def _read(run: Path) -> dict[str, Any]:
    file = run / RESULTS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{run} holds no finished run: there is no {RESULTS}.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("evaluations"), dict):
        raise ValueError(f"{file} is not that of a run: it has no evaluations.")
    return content


def _names(runs: list[Path]) -> list[str]:
    """The last parts of their paths, as many as tell them apart."""
    for parts in range(1, 1 + max(len(run.absolute().parts) for run in runs)):
        names = ["/".join(run.absolute().parts[-parts:]) for run in runs]
        if len(set(names)) == len(runs):
            return names
    raise ValueError(f"{runs[0]} stands there twice: compare different runs.")


def _numbers(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for name, result in evaluations.items():
        found |= {
            f"{name}, {column}": float(value) for column, value in numbers_of(result).items() if value is not None
        }
    return found


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}"
