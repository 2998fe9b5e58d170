"""Embeddings as a data set on the Hub: one parquet file, which `datasets.load_dataset` finds there."""

import re
from pathlib import Path

from .errors import SearchError, one_line

HUB = "hf://datasets/"
FILE = "data/train-00000-of-00001.parquet"


def hub_name(output: str | Path) -> str | None:
    """OWNER/NAME of hf://datasets/OWNER/NAME; None for a path.

    Raises:
        SearchError: it begins so, and names no data set.
    """
    text = str(output)
    if not text.startswith(HUB):
        return None
    name = text.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise SearchError(f"`output={text}` names no data set: write {HUB}OWNER/NAME.")
    return name


def push_file(file: Path, name: str) -> None:
    """Puts a parquet file into a data set, which is made, private, where there is none.

    Raises:
        SearchError: the Hub refuses it, or gives no answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    # Its errors and those of the connection are of several families.
    try:
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        message = "Upload embeddings"
        api.upload_file(
            path_or_fileobj=file, path_in_repo=FILE, repo_id=name, repo_type="dataset", commit_message=message
        )
    except Exception as error:
        raise SearchError(
            f"{HUB}{name} cannot be written to ({one_line(error)[:160]}): log in with a token that may write (hf auth "
            "login), and call it again."
        ) from error
