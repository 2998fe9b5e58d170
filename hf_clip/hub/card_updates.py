"""Measured results into a model's card, in its folder or on the Hub: nothing else in the card changes."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCardData, constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from .markdown import escape
from .result_tables import (
    MEASURED,
    NOT_EVALUATED,
    Result,
    eval_results,
    left_out,
    metric_kind,
    metric_kinds,
    result_tables,
    start_of_left_out,
)
from .upload import redact

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(?:\n|\Z)", re.M | re.S)
# A key of the front matter's top level with all that belongs to it; lists may stand as far left as their key.
MODEL_INDEX = re.compile(r"^model-index:.*?(?=^[^\s-]|\Z)", re.M | re.S)
HEADING = "## Results"


def push_to_card(model: str | Path, result: Mapping[str, Any]) -> str:
    """Writes a result's numbers into a model's card, in its model-index and its tables, and says where.

    The same measured before gives way, all else stays: a second push of the same changes nothing.

    Args:
        model: its folder (the card is made where there is none), or its id on the Hub, which needs a token that may
            write.
        result: `to_dict()` of a result.

    Raises:
        ValueError: if the card cannot be read, or the Hub does not take it; the message has no secret in it.
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
                # Someone else's commit meanwhile makes this one fail, and is not undone by it.
                parent_commit=commit,
            )
        # Whatever it is: networks, servers, rights.
        except Exception as error:
            raise _failure(f"the card of {repo_id} could not be written", error) from None
    return f"{constants.ENDPOINT}/{repo_id}"


def read_card(model: str | Path) -> tuple[str | None, str | None]:
    """(text of a model's card or None, commit that it is of or None for a folder).

    Raises:
        ValueError: if it cannot be read, or numbers cannot be written into it; the message has no secret in it.
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
            # Not of what is missing here alone: the card that could not be fetched would be written over.
            except RemoteEntryNotFoundError:
                return None, commit
        # Bytes: ends of lines stay as they are.
        text = path.read_bytes().decode("utf-8") if path.is_file() else None
        put_results(text or "", [], "")
        return text, commit
    # Whatever it is: networks, servers, rights, what people write.
    except Exception as error:
        raise _failure(f"the card of {model} cannot be read", error) from None


def _repo_id(model: str | Path) -> str:
    return str(model).removeprefix("hf-hub:")


def _failure(what: str, error: Exception) -> ValueError:
    return ValueError(f"{what}: {redact(' '.join(str(error).split()) or type(error).__name__)[:500]}")


def _new_card(name: str) -> str:
    data = ModelCardData(library_name="transformers", pipeline_tag="zero-shot-image-classification")
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n"


def put_results(text: str, results: Sequence[Result], name: str) -> str:
    """A card's text with measured results, in its model-index and in its tables.

    Numbers and rows of an evaluation that the card has (same protocol, same title) give way to the new ones where they
    stand. Tables that are not there yet come below the heading "Results". All else stays as it is, byte for byte.

    Args:
        name: of the model, for a card without a model-index.

    Raises:
        ValueError: for an unknown protocol, two results of one title, and a card whose front matter cannot be read.
    """
    has_crlf = 0 < text.count("\n") == text.count("\r\n")
    if has_crlf:
        text = text.replace("\r\n", "\n")
    found = FRONT_MATTER.match(text) or FRONT_MATTER.match(text := f"---\n---\n\n{text}")
    start, front, body = text[: found.start("yaml")], found["yaml"], text[found.end() :]
    front = _with_index(front, results, name)
    for result in results:
        body = _with_rows(body, result)
    updated = f"{start}{front}---\n{body}"
    return updated.replace("\n", "\r\n") if has_crlf else updated


def _with_index(front: str, results: Sequence[Result], name: str) -> str:
    """The front matter with the results in its model-index; its other lines are not written anew."""
    if not eval_results(results):
        # Read all the same: what cannot be added to is told before there is something to add.
        results = ()
    try:
        [model] = (yaml.safe_load(front) or {}).get("model-index") or [{"name": name, "results": []}]
        entries: list[dict[str, Any]] = [*model["results"]]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the card's front matter has no model-index that can be added to ({reason}).") from None
    for result in results:
        for entry in eval_results_to_model_index(name, eval_results([result]))[0]["results"]:
            _put_entry(entries, entry, metric_kinds(result))
    if not results:
        return front
    block = yaml_dump({"model-index": [{**model, "results": entries}]}, sort_keys=False)
    if MODEL_INDEX.search(front):
        return MODEL_INDEX.sub(lambda _: block, front)
    return front + block


def _put_entry(entries: list[dict[str, Any]], new: dict[str, Any], kinds: set[str]) -> None:
    """A data set's numbers among those of a model-index; those of these kinds that it had are gone."""
    for place, entry in enumerate(entries):
        if _identity(entry) == _identity(new):
            old = entry.get("metrics") or []
            stays = [metric_kind(str(metric.get("type"))) not in kinds for metric in old]
            kept = [metric for metric, does_stay in zip(old, stays, strict=True) if does_stay]
            first = sum(stays[: stays.index(False)]) if False in stays else len(kept)
            entries[place] = {**entry, "metrics": [*kept[:first], *new["metrics"], *kept[first:]]}
            return
    entries.append(new)


def _identity(entry: dict[str, Any]) -> tuple:
    """What the Hub tells results apart by."""
    task, data = entry.get("task") or {}, entry.get("dataset") or {}
    return task.get("type"), *(data.get(key) for key in ("type", "config", "split", "revision"))


def _with_rows(body: str, result: Result) -> str:
    """A card's body with the rows of a result in its protocol's table, and the line of what was left out."""
    head, rule, *rows = result_tables([{**result, "skipped": {}}]).split("\n")
    lines = body.split("\n")
    places = [place for place in _prose(lines)[0] if lines[place : place + 2] == [head, rule]]
    if not places:
        return _with_line(_with_table(body, "\n".join([head, rule, *rows])), result, rows[-1])
    start = end = places[0] + 2
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    is_old = [line.startswith(f"| {escape(result['title'])} |") for line in lines[start:end]]
    first = start + is_old.index(True) if True in is_old else end
    before = lines[:first]
    after = [line for line, old in zip(lines[first:end], is_old[first - start :], strict=True) if not old]
    return _with_line("\n".join([*before, *rows, *after, *lines[end:]]), result, [*before, *rows, *after][-1])


def _with_table(body: str, table: str) -> str:
    """A new table, where a card has its results."""
    for place in (NOT_EVALUATED, MEASURED):
        if place in body:
            return body.replace(place, f"{table}\n\n{MEASURED}", 1)
    lines = body.split("\n")
    places, open_fence = _prose(lines)
    starts = [place for place in places if lines[place].strip() == HEADING]
    ends = [place for place in places if starts and place > starts[0] and re.match("##? ", lines[place])]
    if ends:
        before = "\n".join(lines[: ends[0]]).rstrip()
        return "\n".join([f"{before}\n\n{table}\n", *lines[ends[0] :]])
    # Where the end of the card closed a fence, the table must not stand in it.
    before = f"{body.rstrip()}\n{open_fence}".rstrip()
    return f"{before}\n\n{table}\n" if starts else f"{before}\n\n{HEADING}\n\n{table}\n\n{MEASURED}\n"


def _with_line(body: str, result: Result, last_row: str) -> str:
    """The line of the images that were left out, below its table; none where none were."""
    lines = body.split("\n")
    new = [left_out(result)] if result.get("skipped") else []
    places = [place for place in _prose(lines)[0] if lines[place].startswith(start_of_left_out(result))]
    for place in reversed(places[bool(new) :]):
        # A paragraph that is gone leaves one empty line, not two.
        is_alone = lines[place - 1 : place] == [""] == lines[place + 1 : place + 2]
        del lines[place : place + 1 + is_alone]
    if places and new:
        lines[places[0]] = new[0]
    if places or not new:
        return "\n".join(lines)
    place = len(lines) - lines[::-1].index(last_row)
    return "\n".join([*lines[:place], "", *new, *lines[place:]])


def _prose(lines: Sequence[str]) -> tuple[list[int], str]:
    """The numbers of the lines outside fenced code, and the fence that is still open at the end."""
    places, fence = [], ""
    for place, line in enumerate(lines):
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            places.append(place)
    return places, fence
