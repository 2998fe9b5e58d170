"""Measured results into a model's card, in its folder or on the Hub: nothing else in the card changes.

The model-index is made by huggingface_hub's `eval_results_to_model_index`. Its `metadata_update(overwrite=True)` would
put it into the card, and does not serve here: it writes a card on the Hub alone, not one in a folder; the tables would
come by a second commit, and a reader in between (or after a second that failed) sees numbers that contradict each
other; it writes the whole front matter again, without its comments and in another form; and of an evaluation that has
fewer numbers than the last time, it leaves the old ones. Rows are put into the tables one by one, not into a region
that is written as a whole: only the new result is at hand, and what people wrote around the others' rows is theirs.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from .card_text import FRONT_MATTER, CardError, read_card_text, read_front_matter
from .markdown import escape
from .result_tables import (
    MEASURED,
    NOT_EVALUATED,
    Result,
    eval_results,
    metric_kind,
    metric_kinds,
    note_of,
    result_tables,
    start_of_note,
)
from .upload import redact

# A key of the front matter's top level with all that belongs to it; lists may stand as far left as their key.
MODEL_INDEX = re.compile(r"^model-index:.*?(?=^[^\s-]|\Z)", re.M | re.S)
HEADING = "## Evaluation"


def push_to_card(model: str | Path, result: Mapping[str, Any]) -> str:
    """Writes a result's numbers into a model's card, into its model-index and its tables.

    Numbers of the same evaluation that the card has are replaced; all else stays. A second push changes nothing.

    Args:
        model: its folder (a card is made where there is none), or its id on the Hub, which needs a token that may
            write.
        result: `to_dict()` of a result.

    Returns:
        Where the card is: its file, or the URL of the repository.

    Raises:
        CardError: if the card cannot be read, or the Hub refuses it; the message holds no secret.
    """
    before, commit = read_card(model)
    repo_id = _repo_id(model)
    name = repo_id.split("/")[-1] if commit else Path(model).resolve().name
    after = put_results(_new_card(name) if before is None else before, [result], name)
    if commit is None:
        path = Path(model) / constants.REPOCARD_NAME
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_bytes(after.encode())
        os.replace(unfinished, path)
        return str(path)
    if after != before:
        try:
            HfApi().upload_file(
                repo_id=repo_id,
                path_or_fileobj=after.encode(),
                path_in_repo=constants.REPOCARD_NAME,
                commit_message=f"Results: {result['title']}",
                # Another's commit in between makes this one fail, and is not undone by it.
                parent_commit=commit,
            )
        # Whatever it is: networks, servers, rights.
        except Exception as error:
            raise _card_error(f"the card of {repo_id} could not be written", error) from None
    return f"{constants.ENDPOINT}/{repo_id}"


def read_card(model: str | Path) -> tuple[str | None, str | None]:
    """A model's card, if results can be written into it.

    Returns:
        The text of the card, None where there is no card; and the commit that it is of, None for a folder.

    Raises:
        CardError: if the card cannot be read, or results cannot be added to it; the message holds no secret.
    """
    folder, commit = Path(model), None
    try:
        if folder.is_dir():
            path = folder / constants.REPOCARD_NAME
        else:
            api, repo_id = HfApi(), _repo_id(model)
            commit = api.model_info(repo_id).sha
            try:
                path = Path(api.hf_hub_download(repo_id, constants.REPOCARD_NAME, revision=commit))
            # Only a card that is not there: one that could not be fetched would be overwritten.
            except RemoteEntryNotFoundError:
                return None, commit
        text = read_card_text(path) if path.is_file() else None
        read_front_matter(text or "", str(path) if commit is None else constants.REPOCARD_NAME)
        return text, commit
    # Whatever it is: networks, servers, rights.
    except Exception as error:
        raise _card_error(f"the card of {model} cannot be read", error) from None


def _repo_id(model: str | Path) -> str:
    return str(model).removeprefix("hf-hub:")


def _card_error(what: str, error: Exception) -> CardError:
    return CardError(f"{what}: {redact(' '.join(str(error).split()) or type(error).__name__)[:500]}")


def _new_card(name: str) -> str:
    data = ModelCardData(library_name="transformers", pipeline_tag="zero-shot-image-classification")
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n"


def put_results(text: str, results: Sequence[Result], name: str) -> str:
    """A card's text with measured results, in its model-index and in its tables.

    Numbers and rows of an evaluation that the card has (same task, same title) are replaced where they stand. New
    tables are put below the heading "Evaluation". All else stays as it is, byte for byte.

    Args:
        text: of the card.
        results: `to_dict()` of each evaluation's result.
        name: the model's, for a card without a model-index.

    Returns:
        The new text.

    Raises:
        ValueError: for an unknown task, and two results of one title.
        CardError: for a card whose front matter cannot be read.
    """
    has_crlf = 0 < text.count("\n") == text.count("\r\n")
    if has_crlf:
        text = text.replace("\r\n", "\n")
    found = FRONT_MATTER.match(text) or FRONT_MATTER.match(text := f"---\n---\n\n{text}")
    assert found is not None
    start, front, body = text[: found.start("yaml")], found["yaml"], text[found.end() :]
    front = _with_index(front, results, name)
    for result in results:
        body = _with_rows(body, result)
    updated = f"{start}{front}---\n{body}"
    return updated.replace("\n", "\r\n") if has_crlf else updated


def _with_index(front: str, results: Sequence[Result], name: str) -> str:
    """The front matter with the results in its model-index; its other lines are not rewritten."""
    data = read_front_matter(f"---\n{front}---\n", "the card")
    if not eval_results(results):
        return front
    [model] = data.get("model-index") or [{"name": name, "results": []}]
    entries: list[dict[str, Any]] = [*model["results"]]
    for result in results:
        for entry in eval_results_to_model_index(name, eval_results([result]))[0]["results"]:
            _put_entry(entries, entry, metric_kinds(result))
    block = yaml_dump({"model-index": [{**model, "results": entries}]}, sort_keys=False)
    if MODEL_INDEX.search(front):
        return MODEL_INDEX.sub(lambda _: block, front)
    return front + block


def _put_entry(entries: list[dict[str, Any]], new: dict[str, Any], kinds: set[str]) -> None:
    """Puts a data set's numbers into a model-index, in the place of those of these kinds that it had."""
    for index, entry in enumerate(entries):
        if _identity(entry) == _identity(new):
            old = entry.get("metrics") or []
            stays = [metric_kind(str(metric.get("type"))) not in kinds for metric in old]
            kept = [metric for metric, does_stay in zip(old, stays, strict=True) if does_stay]
            first = sum(stays[: stays.index(False)]) if False in stays else len(kept)
            entries[index] = {**entry, "metrics": [*kept[:first], *new["metrics"], *kept[first:]]}
            return
    entries.append(new)


def _identity(entry: dict[str, Any]) -> tuple:
    """What the Hub tells results apart by."""
    task, data = entry.get("task") or {}, entry.get("dataset") or {}
    return task.get("type"), *(data.get(key) for key in ("type", "config", "split", "revision"))


def _with_rows(body: str, result: Result) -> str:
    """A card's body with the rows of a result in its task's table, and its note."""
    head, rule, *rows = result_tables([{**result, "skipped": {}, "dtype": "float32"}]).split("\n")
    lines = body.split("\n")
    tables = [number for number in _prose(lines)[0] if lines[number : number + 2] == [head, rule]]
    if not tables:
        return _with_line(_with_table(body, "\n".join([head, rule, *rows])), result, rows[-1])
    start = end = tables[0] + 2
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    is_old = [line.startswith(f"| {escape(result['title'])} |") for line in lines[start:end]]
    first = start + is_old.index(True) if True in is_old else end
    before = lines[:first]
    after = [line for line, old in zip(lines[first:end], is_old[first - start :], strict=True) if not old]
    return _with_line("\n".join([*before, *rows, *after, *lines[end:]]), result, [*before, *rows, *after][-1])


def _with_table(body: str, table: str) -> str:
    """A new table, below the heading of the card's results."""
    for sentence in (NOT_EVALUATED, MEASURED):
        if sentence in body:
            return body.replace(sentence, f"{table}\n\n{MEASURED}", 1)
    lines = body.split("\n")
    numbers, open_fence = _prose(lines)
    starts = [number for number in numbers if lines[number].strip() == HEADING]
    ends = [number for number in numbers if starts and number > starts[0] and re.match("##? ", lines[number])]
    if ends:
        before = "\n".join(lines[: ends[0]]).rstrip()
        return "\n".join([f"{before}\n\n{table}\n", *lines[ends[0] :]])
    # Where the end of the card closed a fence, the table must not stand in it.
    before = f"{body.rstrip()}\n{open_fence}".rstrip()
    return f"{before}\n\n{table}\n" if starts else f"{before}\n\n{HEADING}\n\n{table}\n\n{MEASURED}\n"


def _with_line(body: str, result: Result, last_row: str) -> str:
    """A card's body with the result's note below its table; without it where there is none."""
    lines = body.split("\n")
    new = [note] if (note := note_of(result)) else []
    old = [number for number in _prose(lines)[0] if lines[number].startswith(start_of_note(result))]
    for number in reversed(old[bool(new) :]):
        # A paragraph that is gone leaves one empty line, not two.
        is_alone = lines[number - 1 : number] == [""] == lines[number + 1 : number + 2]
        del lines[number : number + 1 + is_alone]
    if old and new:
        lines[old[0]] = new[0]
    if old or not new:
        return "\n".join(lines)
    end = len(lines) - lines[::-1].index(last_row)
    return "\n".join([*lines[:end], "", *new, *lines[end:]])


def _prose(lines: Sequence[str]) -> tuple[list[int], str]:
    """The indices of the lines outside fenced code, and the fence that is still open at the end."""
    numbers, fence = [], ""
    for number, line in enumerate(lines):
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            numbers.append(number)
    return numbers, fence
