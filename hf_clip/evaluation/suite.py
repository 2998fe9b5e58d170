"""Many named data sets, one table, beside the numbers that others published."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from hf_clip.evaluation.features import Encoding
from hf_clip.evaluation.retrieval import evaluate_retrieval
from hf_clip.evaluation.zero_shot import evaluate_zero_shot
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.prompts import load_prompts
from hf_clip.sources import DataSpec

TASKS = ("zero-shot", "retrieval")


@dataclass(frozen=True)
class SuiteEntry:
    """A data set of a suite.

    Attributes:
        name: in the table.
        data: which data, and which of its columns; paths are relative to the suite's file.
        task: "zero-shot" or "retrieval".
        metric: what the table shows, such as "top_1" or "text_to_image.recall_at_1".
        prompts: a data set of `list_prompts`, for its templates and, unless the data knows its classes, their names.
        templates: instead of those of `prompts`; without either, those that the model was saved with.
        captions: "first" or "all", as `evaluate_retrieval` takes it.
        published: numbers of other models by their names.
    """

    name: str
    data: DataSpec
    task: str = "zero-shot"
    metric: str = "top_1"
    prompts: str | None = None
    templates: Sequence[str] = ()
    captions: Literal["first", "all"] = "all"
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass
class SuiteResult:
    """What a suite found.

    Attributes:
        results: `to_dict()` of each data set's result by its name.
        scores: the number that the table shows.
        published: numbers of others by data set and model.
        failed: why a data set could not be evaluated.
    """

    results: dict[str, dict] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    published: dict[str, Mapping[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return vars(self)

    def table(self) -> str:
        """This model's numbers beside the others', as plain text for a terminal."""
        models = list(dict.fromkeys(model for numbers in self.published.values() for model in numbers))
        name_width = max(map(len, [*self.scores, *self.failed, "data set"])) + 2
        columns = [("this model", 12), *((model, len(model) + 2) for model in models)]
        lines = [f"{'data set':{name_width}}" + "".join(f"{title:>{width}}" for title, width in columns)]
        for name, score in self.scores.items():
            numbers = [score, *(self.published[name].get(model) for model in models)]
            cells = zip(numbers, columns, strict=True)
            row = ("-".rjust(width) if number is None else f"{number:{width}.3f}" for number, (_, width) in cells)
            lines.append(f"{name:{name_width}}" + "".join(row))
        lines += [f"{name:{name_width}}  not evaluated: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)


def read_suite(file: str | Path, only: Iterable[str] | None = None) -> list[SuiteEntry]:
    """The data sets of a YAML file whose key `datasets` maps names to the attributes of `SuiteEntry`.

    Raises:
        ValueError: if the file is none such, a key is unknown, or `only` names a data set that is not in it.
    """
    import yaml

    path = Path(file)
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        found = content["datasets"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no suite: a YAML file with a key `datasets` ({' '.join(str(error).split())})."
        ) from None
    of_data = {each.name for each in fields(DataSpec)}
    known = {each.name for each in fields(SuiteEntry)} - {"name"} | of_data
    entries = []
    for name, settings in found.items():
        if not isinstance(settings, dict) or "data" not in settings:
            raise ValueError(f"{path}: {name} has no `data`: name files, a folder or a Hub id.")
        if unknown := sorted(settings.keys() - known):
            raise ValueError(
                f"{path}: {name} has unknown keys: {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
            )
        spec = DataSpec(**{key: value for key, value in settings.items() if key in of_data})
        more = {key: value for key, value in settings.items() if key not in of_data}
        entry = SuiteEntry(name, spec, **more)
        if entry.task not in TASKS:
            raise ValueError(f"{path}: {name}: task {entry.task!r} is unknown: use {' or '.join(TASKS)}.")
        entries.append(entry)
    if only is None:
        return entries
    if missing := sorted(set(only) - found.keys()):
        raise ValueError(f"{', '.join(missing)}: not in {path}, which has {', '.join(found)}.")
    return [entry for entry in entries if entry.name in set(only)]


def run_suite(
    model: DualEncoder,
    processor: Processor,
    entries: Iterable[SuiteEntry],
    folder: str | Path = ".",
    *,
    encoding: Encoding | None = None,
) -> SuiteResult:
    """Evaluates a model on each data set; one that cannot be had or read is noted, and the others go on.

    Args:
        folder: that relative paths of data start from: the suite file's.
        encoding: how embeddings are made.
    """
    suite = SuiteResult()
    for entry in entries:
        try:
            result = _evaluate(model, processor, entry, Path(folder), encoding or Encoding())
        except (ValueError, OSError) as error:
            suite.failed[entry.name] = " ".join(str(error).split())
            continue
        suite.results[entry.name] = result.to_dict()
        score = _number(suite.results[entry.name], entry.metric)
        if score is None:
            suite.failed[entry.name] = f"`metric={entry.metric}` is no number of the task {entry.task}."
            continue
        suite.scores[entry.name] = score
        suite.published[entry.name] = entry.published
    return suite


def _number(result: Mapping[str, Any], metric: str) -> float | None:
    """A number of a result by its dotted name, if it has it."""
    found: Any = result
    for key in metric.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None


def _evaluate(model: DualEncoder, processor: Processor, entry: SuiteEntry, folder: Path, encoding: Encoding):
    given = entry.data.data
    names = [given] if isinstance(given, str | Path) else given
    local = [path if (path := folder / name).exists() else name for name in names]
    source = replace(entry.data, data=local[0] if len(local) == 1 else local).open()
    if entry.task == "retrieval":
        return evaluate_retrieval(
            model, processor, source, title=entry.name, captions=entry.captions, encoding=encoding
        )
    labels, templates = None, entry.templates or None
    if entry.prompts:
        prompts = load_prompts(entry.prompts)
        labels, templates = prompts.classes or None, entry.templates or prompts.templates
    return evaluate_zero_shot(
        model,
        processor,
        source,
        labels=labels,
        templates=templates,
        title=entry.name,
        encoding=encoding,
    )
