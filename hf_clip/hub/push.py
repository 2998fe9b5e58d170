"""A saved model to the Hub: prepared as a repository that loads anywhere, then uploaded."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_clip.conversion import convert

from .model_card import CardFacts, adapt_card, write_model_card
from .package_version import made_with
from .upload import PushArgumentError, PushError, refuse_secrets, upload

FORMATS = ("hf_clip", "transformers")
# What goes along with the model, its processor and its card, where it is there.
ALONG = ("README.md", "LICENSE*", "NOTICE*", "recipe.yaml", "results.json", "example.png", "plots/*")
PREPARED = ".push"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    to: str = "hf_clip",
    message: str | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Pushes the model of a folder, of any format that `load` takes, and returns its URL.

    The repository is prepared in `FOLDER/.push`: weights, processor, tokenizer, the code (for "hf_clip"), the card
    with snippets run anew, and what `ALONG` names. It is removed when all is on the Hub.

    Args:
        private, revision, message, say: as `upload` takes them.
        to: "hf_clip", for all that this package can express; "transformers", so that `CLIPModel` or `SiglipModel` and
            their own processors load it, without other code.

    Raises:
        PushArgumentError: for a folder, a name or a format that cannot be used, before any work.
        ConversionError: if the folder cannot be read, or transformers cannot express the model.
        PushError: if what would be sent holds a token of the Hub, or is a link out of the folder; if the upload fails:
            then the prepared folder stays, and the message has the command that goes on.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PushArgumentError(f"`folder={folder}` is not a folder: give one that holds a model.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushArgumentError(f"`repo_id={repo_id}` is not a repository's name (owner/name): {error}") from error
    prepared = folder / PREPARED
    if prepared.exists():
        shutil.rmtree(prepared)
    try:
        prepare(folder, prepared, repo_id, to=to)
    except BaseException:
        shutil.rmtree(prepared, ignore_errors=True)
        raise
    try:
        url = upload(
            prepared,
            repo_id,
            private=private,
            revision=revision,
            message=message or f"Upload model with hf_clip {made_with()['hf_clip']}",
            say=say,
        )
    except PushError as error:
        command = ["hf", "upload", repo_id, str(prepared), "."]
        command += ["--private"] * private + (["--revision", revision] if revision else [])
        raise PushError(f"{error} What was prepared is kept. Go on with: {shlex.join(command)}") from None
    shutil.rmtree(prepared)
    return url


def prepare(folder: Path, output_dir: Path, repo_id: str, *, to: str = "hf_clip") -> None:
    """Writes the repository that `push` uploads to a folder that is not there yet. Raises what `push` does."""
    if to not in FORMATS:
        raise PushArgumentError(f"`to={to}` is not known: use {' or '.join(FORMATS)}.")
    along = [file for pattern in ALONG for file in sorted(folder.glob(pattern)) if file.is_file()]
    for file in along:
        # A folder from elsewhere may link to whatever its author would like to read.
        if not file.resolve().is_relative_to(folder.resolve()):
            raise PushError(f"{file} is a link to {file.resolve()}, outside of the folder: put a copy in its place.")
    convert(folder, to=to, output_dir=output_dir)
    for file in along:
        target = output_dir / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if (output_dir / "README.md").is_file():
        adapt_card(output_dir, repo_id)
    else:
        write_model_card(output_dir, _facts(folder, repo_id))
    refuse_secrets(output_dir)


def _facts(folder: Path, repo_id: str) -> CardFacts:
    """What is known of a model that comes without a card."""
    results = folder / "results.json"
    measured = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    return CardFacts(
        model_name=repo_id.split("/")[-1],
        training_data=[],
        results=list(measured.get("evaluations", {}).values()),
        repo_id=repo_id,
    )
