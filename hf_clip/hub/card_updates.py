"""Measured numbers into a model's card, in its folder or on the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, constants
from huggingface_hub.errors import RemoteEntryNotFoundError

from hf_clip.hub import put_results, redact


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
