"""A saved model to the Hub: prepared as a repository that loads anywhere, shown, and uploaded."""

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_clip.conversion import convert

from .markdown import one_line
from .model_card import CardFacts, adapt_card, write_model_card
from .package_version import made_with
from .published_files import CARD, describe_files, files_to_publish, refuse_credentials, size_text
from .upload import PushArgumentError, PushError, upload

FORMATS = ("hf_clip", "transformers", "peft")
# Of an adapter of PEFT: what is pushed of its folder.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", CARD)
# Of more files that are not sent than this, the line about them names the first ones and their number.
NAMES_SHOWN = 8

logger = logging.getLogger(__name__)


def push(
    source: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    to: str = "hf_clip",
    message: str | None = None,
    load_options: Mapping[str, Any] | None = None,
) -> str:
    """Pushes the model of a folder or file, of any format that `load` takes, and returns its URL.

    The repository is prepared in a temporary folder, which is removed whatever happens: weights, config, processor,
    tokenizer, the code (for "hf_clip"), the card with its snippets run again, and those files of the folder that
    are known by their content to belong to it (`published_files`). All files are logged before they are sent, and
    nothing is sent if one of them holds a credential.

    Args:
        source: folder of the model, or a file of weights.
        repo_id: owner/name on the Hub; it is made where there is none.
        private: whether a new repository is private; one that exists must be, then.
        revision: branch, made where there is none.
        to: "hf_clip", for all that this package can express; "transformers", so that `CLIPModel` or `SiglipModel` and
            their own processors load it, without other code; "peft", of a folder of adapters, those alone: in the
            other formats they are merged into their base.
        message: of the commit.
        load_options: arguments of `load` about what the source does not say, and the dtype to send.

    Returns:
        The URL of the repository or branch.

    Raises:
        PushArgumentError: for a source, a name or a format that cannot be used, before any work.
        ConversionError: if the model cannot be read, or transformers cannot express it.
        CardError: if the folder's card cannot be read.
        PushError: if a file holds a credential or links out of the folder, and if the upload fails. The same push
            again sends no file twice.
    """
    source = Path(source)
    _check_arguments(source, repo_id, to)
    # Not in the model's folder: weights of many gigabytes would stay there if the process were killed.
    with tempfile.TemporaryDirectory(prefix="hf-clip-push-", ignore_cleanup_errors=True) as temporary:
        prepared = Path(temporary) / repo_id.split("/")[-1]
        _prepare_on_disk(source, prepared, repo_id, to=to, load_options=load_options)
        try:
            return upload(
                prepared,
                repo_id,
                private=private,
                revision=revision,
                message=message or f"Upload model with hf_clip {made_with()['hf_clip']}",
            )
        except PushArgumentError:
            raise
        except PushError as error:
            raise PushError(f"{error} Push again to go on: files that the Hub has are not sent twice.") from None


def prepare(
    source: Path,
    output_dir: Path,
    repo_id: str,
    *,
    to: str = "hf_clip",
    load_options: Mapping[str, Any] | None = None,
) -> None:
    """Writes the repository that `push` uploads to a folder that is not there yet. Raises what `push` does."""
    if to == "peft":
        _prepare_adapter(source, output_dir, repo_id)
        return
    beside = files_to_publish(source) if source.is_dir() else {}
    convert(source, to=to, output_dir=output_dir, **(load_options or {}))
    for file in beside:
        target = output_dir / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    # The model is there; a part of its card that fails is a line.
    if (output_dir / CARD).is_file():
        adapt_card(output_dir, repo_id, may_lack_parts=True)
    else:
        write_model_card(output_dir, _facts(source, repo_id), may_lack_parts=True)
    refuse_credentials(sorted(path for path in output_dir.rglob("*") if path.is_file()), output_dir)
    kinds = {file.relative_to(source): kind for file, kind in beside.items()}
    _list_files(output_dir, source, {Path(CARD): "card", **kinds}, repo_id)


def _prepare_adapter(source: Path, output_dir: Path, repo_id: str) -> None:
    """The files of an adapter's folder, which are what PEFT and `load` read."""
    output_dir.mkdir(parents=True)
    for name in ADAPTER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, output_dir / name)
    files = sorted(output_dir.iterdir())
    refuse_credentials(files, output_dir)
    logger.info(f"{repo_id}: {', '.join(f'{file.name} {size_text(file.stat().st_size)}' for file in files)}")


def _check_arguments(source: Path, repo_id: str, to: str) -> None:
    if not source.exists():
        raise PushArgumentError(f"`source={source}` does not exist: give a model's folder, or a file of weights.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushArgumentError(f"`repo_id={repo_id}` is not a repository's name (owner/name): {error}") from error
    if to not in FORMATS:
        raise PushArgumentError(f"`to={to}` is not known: use {' or '.join(FORMATS)}.")
    if to == "peft" and not all((source / name).is_file() for name in ADAPTER_FILES[:2]):
        raise PushArgumentError(
            f"`to=peft` is for a folder of adapters, and {source} has no {' and no '.join(ADAPTER_FILES[:2])}: a run "
            "with `lora` leaves one in its folder `adapters`."
        )


def _prepare_on_disk(source: Path, prepared: Path, repo_id: str, **options: Any) -> None:
    try:
        prepare(source, prepared, repo_id, **options)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise PushError(
            f"{prepared.parent.parent} has too little space for a copy of the model: set TMPDIR to a folder with more."
        ) from None


def _list_files(prepared: Path, source: Path, kinds: dict[Path, str], repo_id: str) -> None:
    """Logs which files are sent, and which of the source's folder are not."""
    files = describe_files(prepared, kinds)
    logger.info(f"{repo_id}: {len(files)} files, {size_text(sum(file.size for file in files))}")
    width = max(len(file.path) for file in files)
    for file in files:
        logger.info(f"  {file.path:<{width}}  {size_text(file.size):>7}  {file.kind}")
    if not source.is_dir():
        return
    sent = {parent.as_posix() for file in files for parent in (Path(file.path), Path(file.path).parent)}
    there = {path.relative_to(source).as_posix(): path for path in (*source.iterdir(), *source.glob("plots/*"))}
    skipped = sorted(name + "/" * path.is_dir() for name, path in there.items() if name not in sent)
    if skipped:
        more = f" and {len(skipped) - NAMES_SHOWN} more" if len(skipped) > NAMES_SHOWN else ""
        logger.info(f"Not sent: {', '.join(skipped[:NAMES_SHOWN])}{more}")


def _facts(source: Path, repo_id: str) -> CardFacts:
    """What is known of a model that comes without a card."""
    results = []
    try:
        if (source / "results.json").is_file():
            measured = json.loads((source / "results.json").read_bytes())
            results = list(measured["evaluations"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning(f"The card is written without results: {source / 'results.json'} has none ({one_line(error)}).")
    return CardFacts(model_name=repo_id.split("/")[-1], training_data=[], results=results, repo_id=repo_id)
