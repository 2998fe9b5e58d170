"""The work of `hf-clip eval`: opens the data, measures each model, and writes the results where they are wanted."""

import json
import os
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_clip.evaluation.cache import FeatureCache, default_cache_folder
from hf_clip.evaluation.captions import evaluate_captions
from hf_clip.evaluation.clip_score import evaluate_clip_score
from hf_clip.evaluation.comparison import comparison_table
from hf_clip.evaluation.features import Encoding
from hf_clip.evaluation.few_shot import evaluate_few_shot
from hf_clip.evaluation.groups import evaluate_groups
from hf_clip.evaluation.languages import evaluate_languages
from hf_clip.evaluation.linear_probe import evaluate_linear_probe
from hf_clip.evaluation.operating_points import OperatingPoint
from hf_clip.evaluation.retrieval import evaluate_retrieval
from hf_clip.evaluation.robustness import evaluate_corruptions, evaluate_shift, fit_baselines
from hf_clip.evaluation.segmentation import evaluate_segmentation
from hf_clip.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot
from hf_clip.hub.card_updates import push_to_card, read_card
from hf_clip.messages import in_callers_words
from hf_clip.model.zero_shot_hf_clip import templates_of
from hf_clip.prompts import Prompts, load_prompts
from hf_clip.sources import DataSpec, Source, SourceError
from hf_clip.sources.files import is_hub_id
from hf_clip.sources.joined_captions import CaptionTable
from hf_clip.sources.values import is_single

from .arguments import load_options, values_by_column
from .evaluate import NEED_LABELS, check_comparison, check_words, need_labels, read_baselines
from .models import open_model, usable_device
from .usage import UsageError, one_line, printable

LANGUAGE_COLUMN = "lang"


def run_evaluation(options: Namespace) -> bool:
    """Runs a task as `hf-clip eval` was asked to, prints its table and writes what was wanted.

    Where a launcher started several processes they share the work, and the first one prints and writes.

    Args:
        options: of the task's parser.

    Returns:
        Whether all files could be written.

    Raises:
        UsageError: for arguments that cannot go together or files that cannot be written, before any work.
    """
    _check_cards(options)
    words = _read_words(options)
    baselines = _read_baselines(options)
    sources = _open_sources(options)
    _make_folders(options)
    processes = _join_processes(options.device)
    device = usable_device(options.device if processes is None else str(processes.device))
    encoding = Encoding(
        options.batch_size,
        cache=None if options.no_cache else FeatureCache(options.cache_dir or default_cache_folder()),
        processes=processes,
    )
    more = words | {"title": options.title, "encoding": encoding}
    if "shifted" in sources:
        more["baselines"] = baselines
    results, dtypes = {}, {}
    for name in options.model:
        model, processor = open_model(name, device, load_options(options))
        chosen = _templates_for(options, model, words)
        results[name] = TASKS[options.task](options, model, processor, sources, {**more, **chosen})
        if processes is None or processes.is_main_process:
            dtypes[name] = str(model.dtype).removeprefix("torch.")
            print(f"hf-clip: {printable(name)} was computed in {dtypes[name]} on {device}", file=sys.stderr)
        # Of several models one at a time takes memory.
        del model, processor
    is_first = processes is None or processes.is_main_process
    return _tell(options, results, dtypes) if is_first else True


def _templates_for(options: Namespace, model, words: dict[str, Any]) -> dict[str, Sequence[str]]:
    """The templates that were given, or those of the model; nothing for a task without texts."""
    if "templates" not in words:
        return {}
    templates = words["templates"] or templates_of(model)
    if options.task == "zero-shot" and (options.per_template or options.select_templates):
        check_comparison(templates)
    return {"templates": templates}


def _zero_shot(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    more |= {"multi_label": options.multi_label, "temperature": options.temperature, **_extras(options)}
    if options.operating_point is not None:
        more["operating_point"] = OperatingPoint(**options.operating_point)
    return evaluate_zero_shot(model, processor, sources["data"], by=_by(sources), **more)


def _retrieval(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    return evaluate_retrieval(model, processor, sources["data"], by=_by(sources), captions=options.captions, **more)


def _languages(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    return evaluate_languages(model, processor, sources["data"], reference=options.reference, **more)


def _linear_probe(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    by, validation = _by(sources), sources.get("validation")
    return evaluate_linear_probe(
        model, processor, sources["train"], sources["data"], validation=validation, seed=options.seed, by=by, **more
    )


def _few_shot(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    more |= {"shots": options.shots, "num_seeds": options.num_seeds, "validation": sources.get("validation")}
    return evaluate_few_shot(model, processor, sources["train"], sources["data"], **more)


def _robustness(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    if "shifted" in sources:
        return evaluate_shift(model, processor, sources["data"], sources["shifted"], **more)
    chosen = {"corruptions": options.corruptions, "severities": options.severities}
    return evaluate_corruptions(
        model, processor, sources["data"], **more, **{key: value for key, value in chosen.items() if value}
    )


def _segmentation(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    looks = {name: getattr(options, name) for name in ("attention", "scales", "resolution", "batch_size")}
    words = {name: more[name] for name in ("labels", "templates", "title")}
    return evaluate_segmentation(model, processor, sources["data"], background=options.background, **looks, **words)


def _groups(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    return evaluate_groups(model, processor, sources["data"], by=options.by, **more)


def _clip_score(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    return evaluate_clip_score(model, processor, sources["data"], **more)


def _captions(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    generate = {} if options.max_tokens is None else {"max_new_tokens": options.max_tokens}
    given = {"title": more["title"], "batch_size": options.batch_size, "num_beams": options.beams}
    return evaluate_captions(model, processor, sources["data"], **given, **generate)


TASKS = {
    "zero-shot": _zero_shot,
    "retrieval": _retrieval,
    "languages": _languages,
    "linear-probe": _linear_probe,
    "few-shot": _few_shot,
    "robustness": _robustness,
    "captions": _captions,
    "segmentation": _segmentation,
    "groups": _groups,
    "clip-score": _clip_score,
}
# What a source must have beside images.
NEEDS = {
    "retrieval": Source.require_captions,
    "clip-score": Source.require_captions,
    "segmentation": lambda source: source,
    "groups": lambda source: source,
    "languages": lambda source: source,
    "captions": Source.require_captions,
}


def _extras(options: Namespace) -> dict[str, bool]:
    """What else is to be found on the images, as `evaluate_zero_shot` names it."""
    return {
        "per_template": options.per_template,
        "select_templates": options.select_templates is not None,
        "fit_temperature": options.fit_temperature,
    }


def _check_cards(options: Namespace) -> None:
    """Whether each model has a card that can be written."""
    for model in options.model if options.push_to_card else []:
        if not Path(model).is_dir():
            from huggingface_hub import get_token

            if get_token() is None:
                raise UsageError(f"--push-to-card: there is no token to write to {model} with: log in first.")
        try:
            read_card(model)
        except ValueError as error:
            raise UsageError(f"--push-to-card: {one_line(error)}") from error


def _make_folders(options: Namespace) -> None:
    """What cannot be made after the work cannot be made now; some file systems say so only to those who try."""
    for option, folder, fix in (
        ("--plots", options.plots, "name another folder"),
        ("--cache-dir", None if options.no_cache else options.cache_dir, "name another folder, or give --no-cache"),
    ):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{option} {folder} cannot be made ({error.strerror}): {fix}.") from None


def _read_words(options: Namespace) -> dict[str, Any]:
    """Templates and class names for the tasks that put classes into words; None for the model's templates."""
    if not hasattr(options, "templates"):
        return {}
    labels, templates = options.labels, options.templates
    if options.prompts is not None:
        prompts = _read_prompts(options.prompts)
        if not labels and prompts.classes:
            # Errors about class names speak of the flag that brought them.
            options.parser.said_as = {"labels": "--prompts"}
        labels, templates = labels or prompts.classes or None, prompts.templates
        if not labels and options.task in NEED_LABELS:
            raise need_labels(options.task)
        check_words(Namespace(**{**vars(options), "prompts": None, "templates": templates}))
    return {"labels": labels, "templates": templates}


def _read_prompts(name: str) -> Prompts:
    try:
        return load_prompts(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {name}: {one_line(error)}") from error


def _read_baselines(options: Namespace) -> list[tuple[float, float]]:
    file = getattr(options, "baselines", None)
    if file is None:
        return []
    found = read_baselines(file)
    try:
        fit_baselines(found)
    except ValueError as error:
        raise UsageError(f"--baselines {file}: {error}") from None
    return found


def _open_sources(options: Namespace) -> dict[str, Source]:
    """The data by its role; all of it is opened before any is encoded."""
    where = values_by_column(options.where)
    spec = _spec(options, options.data, options.split, where)
    data = _open(spec)
    wanted = list(options.by) if hasattr(options, "by") else []
    for column in wanted:
        if column not in data.columns:
            raise UsageError(f"--by {column}: {data.name} has the columns {', '.join(data.columns)}.")
    is_asked = hasattr(options, "by") and options.task != "groups"
    if is_asked and LANGUAGE_COLUMN in data.columns and LANGUAGE_COLUMN not in wanted:
        wanted += _language_column(spec)
    sources = {"data": _open(replace(spec, keyword_columns=wanted)) if wanted else data}
    if hasattr(options, "train_data"):
        train_data = options.train_data or options.data
        train_where = values_by_column(options.train_where, "--train-where")
        sources["train"] = _open(_spec(options, train_data, options.train_split, train_where), "train")
        if options.validation_split is not None:
            spec = _spec(options, train_data, options.validation_split, train_where)
            sources["validation"] = _open(spec, "train", split="--validation-split")
    if getattr(options, "shifted_data", None):
        shifted_where = values_by_column(options.shifted_where, "--shifted-where")
        sources["shifted"] = _open(
            _spec(options, options.shifted_data, options.shifted_split, shifted_where), "shifted"
        )
    need = NEEDS.get(options.task, Source.require_label)
    return {role: need(source) for role, source in sources.items()}


def _open(spec: DataSpec, role: str = "", **flags: str) -> Source:
    """The data of a role, whose errors name its own flags: --train-split for "train"."""
    try:
        return spec.open()
    except SourceError as error:
        if not role:
            raise
        own = {name: f"--{role}-{name}" for name in ("data", "split", "where")}
        raise SourceError(in_callers_words(str(error), own | flags, between=" ")) from error


def _language_column(spec: DataSpec) -> list[str]:
    """The column of languages, to be measured unasked; none where rows have lists, one language for each caption."""
    rows = _open(replace(spec, keyword_columns=[LANGUAGE_COLUMN])).dataset
    return [LANGUAGE_COLUMN] if is_single(next(iter(rows), {}).get(LANGUAGE_COLUMN)) else []


def _spec(options: Namespace, data: Sequence[str], split: str | None, where: dict[str, list[str]]) -> DataSpec:
    return DataSpec(
        data[0] if len(data) == 1 else data,
        split=split,
        where=where,
        image_column=options.image_column,
        caption_columns=getattr(options, "caption_columns", None),
        # Groups need no classes; a source needs a column beside images.
        label_column=options.by[0] if options.task == "groups" else getattr(options, "label_column", None),
        concept_column=getattr(options, "concept_column", None),
        mask_column=getattr(options, "mask_column", None),
        join=_table(options) if options.task == "languages" else None,
    )


def _table(options: Namespace) -> CaptionTable:
    where = {options.language_column: options.languages} if options.languages else {}
    files = options.captions_data
    return CaptionTable(
        files[0] if len(files) == 1 else files,
        options.key_column,
        options.caption_column,
        language_column=options.language_column,
        where=where,
    )


def _by(sources: dict[str, Source]) -> tuple[str, ...]:
    return tuple(sources["data"].keyword_columns)


def _join_processes(device: str | None):
    """Accelerate's state where a launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


def _tell(options: Namespace, results: dict[str, Any], dtypes: dict[str, str]) -> bool:
    """Writes files first, as what is printed may have no reader. Returns whether all was written."""
    results = {model: _without_one_language(options, result) for model, result in results.items()}
    revision = {} if options.revision is None else {"revision": options.revision}
    source = {"data": options.data, **revision}
    contents = [
        {"model": model, "dtype": dtypes[model], **source, **result.to_dict()} for model, result in results.items()
    ]
    if is_hub_id(options.data[0]):
        for content in contents:
            content["dataset"] = options.data[0].partition(":")[0]
    first = next(iter(results.values()))
    extras: list[tuple[str, Callable[[], Iterable[str | Path]]]] = []
    if options.output is not None:
        content = contents[0] if len(contents) == 1 else {"results": contents}
        extras.append(("--output", lambda: _write_whole(options.output, json.dumps(content, indent=2) + "\n")))
    if (chosen := getattr(options, "select_templates", None)) is not None:
        extras.append(("prompts", lambda: [_write_prompts(first, chosen)]))
    if (saved := getattr(options, "save", None)) is not None:
        extras.append(("decisions", lambda: [first.decisions.save(saved)]))
    if options.plots is not None:
        plots = _plots(first, contents)
        extras += [("plot", lambda file=options.plots / name, draw=draw: [draw(file)]) for name, draw in plots.items()]
    if options.push_to_card:
        extras.append(("card", lambda: [push_to_card(content["model"], content) for content in contents]))
    written, has_failed = [], False
    for what, write in extras:
        # What took hours is told even where its plot cannot be drawn.
        try:
            written += [f"{what}: {name}" for name in write()]
        except Exception as error:
            has_failed = True
            print(f"hf-clip: {what}: {one_line(error)}", file=sys.stderr)
    print(first.table() if len(results) == 1 else comparison_table(contents))
    for line in written:
        print(line)
    return not has_failed


def _write_whole(file: Path, text: str) -> list[Path]:
    """Writes a file that keeps what it had if the disk is full; a device, such as /dev/stdout, is written at once."""
    folder = file.resolve().parent
    if (file.exists() and not file.is_file()) or not os.access(folder, os.W_OK):
        file.write_text(text, encoding="utf-8")
        return []
    unfinished = folder / f".{file.name}.{uuid.uuid4().hex}.tmp"
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file.resolve())
    finally:
        unfinished.unlink(missing_ok=True)
    return []


def _plots(result, contents: Sequence[dict[str, Any]]) -> dict[str, Callable[[Path], Path]]:
    """File name of each plot, and what draws it: those of one result, or one of all results."""
    from hf_clip.evaluation.plots.result_charts import charts_of, plot_comparison

    return charts_of(result) if len(contents) == 1 else {"comparison.png": partial(plot_comparison, contents)}


def _without_one_language(options: Namespace, result):
    """A result without its languages, where there is one: the same numbers again."""
    groups = getattr(result, "groups", {})
    if len(groups.get(LANGUAGE_COLUMN, ())) != 1 or LANGUAGE_COLUMN in options.by:
        return result
    return replace(result, groups={name: rows for name, rows in groups.items() if name != LANGUAGE_COLUMN})


def _write_prompts(result: ZeroShotResult, file: Path) -> Path:
    """The chosen templates and the classes, as `load_prompts` reads them."""
    import yaml

    classes = [names[0] if len(names) == 1 else list(names) for names in result.class_names]
    content = {
        "name": file.stem,
        "source": f"chosen by forward selection: {result.title}",
        "templates": [template for template, _ in result.selected_templates or []],
        "classes": classes,
    }
    file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file
