"""The work of `hf-clip eval`: opens the data, measures, and writes the result where it is wanted."""

import json
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_clip.evaluation.cache import FeatureCache, default_cache_folder
from hf_clip.evaluation.features import Encoding
from hf_clip.evaluation.few_shot import evaluate_few_shot
from hf_clip.evaluation.linear_probe import evaluate_linear_probe
from hf_clip.evaluation.retrieval import evaluate_retrieval
from hf_clip.evaluation.robustness import evaluate_corruptions, evaluate_shift, fit_baselines
from hf_clip.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot
from hf_clip.hub.card_updates import push_to_card, read_card
from hf_clip.prompts import Prompts, load_prompts
from hf_clip.sources import Source, open_source
from hf_clip.sources.files import is_hub_id
from hf_clip_cli.usage import UsageError, check_file

LANGUAGE_COLUMN = "lang"
DEFAULT_TEMPLATES = ("a photo of a {}.",)


def run_evaluation(options: Namespace, load: Callable[[str, Any], tuple]) -> None:
    """Runs a protocol as `hf-clip eval` was asked to, prints its table and writes what was wanted.

    Where a launcher started several processes they share the work, and the first one prints and writes.

    Args:
        options: of the verb's parser.
        load: gives model and processor for `options.model` and a device.

    Raises:
        UsageError: for arguments that cannot go together or places that cannot be written to, before any work.
    """
    _check_places(options)
    words = _read_words(options)
    baselines = _read_baselines(options)
    sources = _open_sources(options)
    _make_folders(options)
    processes = _join_processes(options.device)
    model, processor = load(options.model, options.device if processes is None else str(processes.device))
    encoding = Encoding(
        options.batch_size,
        cache=None if options.no_cache else FeatureCache(options.cache_dir or default_cache_folder()),
        processes=processes,
    )
    measure = PROTOCOLS[options.protocol]
    more = {"title": options.title, "encoding": encoding}
    if options.protocol == "robustness" and "shifted" in sources:
        more["baselines"] = baselines
    result = measure(options, model, processor, sources, words | more)
    if processes is None or processes.is_main_process:
        _tell(options, result)


def _zero_shot(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    more |= {"multi_label": options.multi_label, "temperature": options.temperature, **_extras(options)}
    return evaluate_zero_shot(model, processor, sources["data"], by=_by(options, sources), **more)


def _retrieval(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    return evaluate_retrieval(
        model, processor, sources["data"], by=_by(options, sources), captions=options.captions, **more
    )


def _linear_probe(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    by, validation = _by(options, sources), sources.get("validation")
    return evaluate_linear_probe(
        model, processor, sources["train"], sources["data"], validation=validation, seed=options.seed, by=by, **more
    )


def _few_shot(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    more |= {"shots": options.shots, "num_seeds": options.seeds, "validation": sources.get("validation")}
    return evaluate_few_shot(model, processor, sources["train"], sources["data"], **more)


def _robustness(options: Namespace, model, processor, sources: dict[str, Source], more: dict):
    if "shifted" in sources:
        return evaluate_shift(model, processor, sources["data"], sources["shifted"], **more)
    chosen = {"corruptions": options.corruption, "severities": options.severity}
    return evaluate_corruptions(
        model, processor, sources["data"], **more, **{key: value for key, value in chosen.items() if value}
    )


PROTOCOLS = {
    "zero-shot": _zero_shot,
    "retrieval": _retrieval,
    "linear-probe": _linear_probe,
    "few-shot": _few_shot,
    "robustness": _robustness,
}


def _extras(options: Namespace) -> dict[str, bool]:
    """What else is to be found on the images, as `evaluate_zero_shot` names it."""
    return {
        "per_template": options.per_template,
        "select_templates": options.select_templates is not None,
        "fit_temperature": options.fit_temperature,
    }


def _check_places(options: Namespace) -> None:
    """What would fail after hours of work fails now."""
    if options.output is not None:
        check_file("--output", options.output, "result.json")
    if (chosen := getattr(options, "select_templates", None)) is not None:
        check_file("--select-templates", chosen, "templates.yaml")
        if chosen.suffix.lower() not in (".yaml", ".yml"):
            raise UsageError(f"--select-templates {chosen}: name a file that ends in .yaml, as --prompts reads it.")
    if options.plots is not None:
        if options.plots.exists() and not options.plots.is_dir():
            raise UsageError(f"--plots {options.plots} is a file: name a folder.")
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise UsageError("--plots needs matplotlib: pip install 'hf_clip[demo]'.") from error
    if options.push_to_card:
        place = Path(options.model)
        if place.is_file():
            raise UsageError(f"--push-to-card: {place} is a file, which has no card: convert it to a folder first.")
        if not place.is_dir():
            from huggingface_hub import get_token

            if get_token() is None:
                raise UsageError(f"--push-to-card: there is no token to write to {options.model} with: log in first.")
        try:
            read_card(options.model)
        except ValueError as error:
            raise UsageError(f"--push-to-card: {error}") from error


def _make_folders(options: Namespace) -> None:
    """What cannot be made after the work cannot be made now; some places tell only those who try."""
    cache = None if options.no_cache else options.cache_dir or default_cache_folder()
    for option, folder, mend in (
        ("--plots", options.plots, "name another folder"),
        ("--cache-dir", cache, "name another folder, or give --no-cache"),
    ):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{option} {folder} cannot be made ({error.strerror}): {mend}.") from None


def _read_words(options: Namespace) -> dict[str, Any]:
    """Templates and class names for the protocols that put classes into words."""
    if not hasattr(options, "template"):
        return {}
    if options.prompts is not None and options.template:
        raise UsageError("--prompts and --template both give templates: leave one out.")
    names = None if options.label_names is None else _read_names(options.label_names)
    templates = options.template or DEFAULT_TEMPLATES
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"--template {template!r} has no '{{}}': put '{{}}' where the class's name belongs.")
    if options.prompts is not None:
        prompts = _read_prompts(options.prompts)
        names, templates = names or prompts.classes or None, prompts.templates
    if options.protocol == "zero-shot":
        _check_studies(options, templates)
    return {"labels": names, "templates": templates}


def _check_studies(options: Namespace, templates: Sequence[str]) -> None:
    if options.multi_label and any(_extras(options).values()):
        raise UsageError(
            "--per-template, --select-templates and --fit-temperature need one label an image: leave out "
            "--multi-label."
        )
    if len(templates) < 2 and (options.per_template or options.select_templates):
        raise UsageError(
            "--per-template and --select-templates compare templates: give two or more with --template, or --prompts."
        )


def _read_prompts(name: str) -> Prompts:
    try:
        return load_prompts(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {name}: {error}") from error


def _read_names(file: Path) -> list[str]:
    try:
        # With or without the byte order mark that Windows' editors write.
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--label-names {file}: this is no text file in UTF-8 that can be read ({error}).") from None
    if not names or "" in names:
        place = f"line {names.index('') + 1} is empty" if names else "it is empty"
        raise UsageError(f"--label-names {file}: {place}: write the name of one class a line, in their order.")
    return names


def _read_baselines(options: Namespace) -> list[tuple[float, float]]:
    file = getattr(options, "baselines", None)
    if file is None:
        return []
    if not options.shifted_data:
        raise UsageError("--baselines are of two data sets: name the second with --shifted-data.")
    try:
        found = [(float(row["top_1"]), float(row["shifted_top_1"])) for row in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--baselines {file} is no JSON list of objects with top_1 and shifted_top_1 ({error})."
        ) from None
    try:
        fit_baselines(found)
    except ValueError as error:
        raise UsageError(f"--baselines {file}: {error}") from None
    return found


def _open_sources(options: Namespace) -> dict[str, Source]:
    """The data by its role; all of it is opened before any is encoded."""
    where = values_by_column(options.where)
    data = _open(options, options.data, options.split, where)
    wanted = list(options.by) if hasattr(options, "by") else []
    for column in wanted:
        if column not in data.columns:
            raise UsageError(f"--by {column}: {data.name} has the columns {', '.join(data.columns)}.")
    if hasattr(options, "by") and LANGUAGE_COLUMN in data.columns and LANGUAGE_COLUMN not in wanted:
        wanted.append(LANGUAGE_COLUMN)
    sources = {"data": _open(options, options.data, options.split, where, wanted) if wanted else data}
    if hasattr(options, "train_data"):
        if not (options.train_data or options.train_split or options.train_where):
            raise UsageError(
                f"{options.protocol} trains: say on what, with --train-data, --train-split or --train-where."
            )
        train_data = options.train_data or options.data
        train_where = values_by_column(options.train_where, "--train-where")
        sources["train"] = _open(options, train_data, options.train_split, train_where)
        if options.validation_split is not None:
            sources["validation"] = _open(options, train_data, options.validation_split, train_where)
    if getattr(options, "shifted_data", None):
        if options.corruption or options.severity:
            raise UsageError("--shifted-data and --corruption are two measurements: ask for one at a time.")
        sources["shifted"] = _open(options, options.shifted_data, options.split, {})
    need = Source.require_captions if options.protocol == "retrieval" else Source.require_label
    return {role: need(source) for role, source in sources.items()}


def _open(options: Namespace, data, split: str | None, where: dict, by: Sequence[str] = ()) -> Source:
    return open_source(
        data[0] if len(data) == 1 else data,
        split=split,
        image_column=options.image_column,
        caption_columns=getattr(options, "caption_column", None),
        keyword_columns=by,
        label_column=getattr(options, "label_column", None),
        concept_column=getattr(options, "concept_column", None),
        where=where,
    )


def _by(options: Namespace, sources: dict[str, Source]) -> tuple[str, ...]:
    return sources["data"].keyword_columns


def values_by_column(conditions: Sequence[str], option: str = "--where") -> dict[str, list[str]]:
    """The values that rows may have in each column; a column named twice may have either value."""
    values: dict[str, list[str]] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise UsageError(f"{option} {condition!r} is not COLUMN=VALUE.")
        values.setdefault(column, []).append(value)
    return values


def _join_processes(device: str | None):
    """Accelerate's state where a launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


def _tell(options: Namespace, result) -> None:
    groups = getattr(result, "groups", {})
    if len(groups.get(LANGUAGE_COLUMN, ())) == 1 and LANGUAGE_COLUMN not in options.by:
        # All in one language: the same numbers again.
        result = replace(result, groups={name: rows for name, rows in groups.items() if name != LANGUAGE_COLUMN})
    print(result.table())
    content = {"model": options.model, "data": options.data, **result.to_dict()}
    if is_hub_id(options.data[0]):
        content["dataset"] = options.data[0].partition(":")[0]
    if options.output is not None:
        options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if getattr(options, "select_templates", None) is not None:
        _write_prompts(result, options.select_templates)
        print(f"prompts: {options.select_templates}")
    if options.plots is not None:
        from hf_clip.evaluation.plots.result_charts import draw_charts

        for plot in draw_charts(result, options.plots):
            print(f"plot: {plot}")
    if options.push_to_card:
        print(f"card: {push_to_card(options.model, content)}")


def _write_prompts(result: ZeroShotResult, file: Path) -> None:
    """The chosen templates and the classes, as `load_prompts` reads them."""
    import yaml

    classes = [names[0] if len(names) == 1 else list(names) for names in result.class_names]
    content = {
        "name": file.stem,
        "source": f"chosen by forward selection: {result.title}",
        "templates": [template for template, _ in result.selected_templates],
        "classes": classes,
    }
    file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
