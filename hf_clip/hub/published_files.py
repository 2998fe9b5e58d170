"""Which files of a model's folder are published with the model: known by what is in them, never by a pattern of names.

Weights, config, processor, tokenizer and code are no files of the folder: they are written from the loaded model. What
can come from the folder are the card, the image that its snippets show, texts of licenses, plots that this package
drew, and what a training run recorded of itself.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from .card_text import read_card_text, read_front_matter
from .credentials import find_credential_in_file
from .snippets import HEADING, Example
from .upload import PushError

CARD, PLOTS = "README.md", "plots"
# What `Software` says in the PNGs that this package draws.
DRAWN_BY = "hf_clip"
LICENSE_NAME = re.compile(r"(?:LICEN[SC]E|NOTICE|COPYING|COPYRIGHT)(?:[-_.][\w-]+)*?(?:\.(?:txt|md|rst))?", re.I)
NOT_LICENSES = (".pem", ".key", ".crt", ".json", ".yaml", ".yml", ".toml", ".ini", ".env", ".py", ".sh", ".csv")
LARGEST_LICENSE = 1 << 20

# What writing a model leaves, by the names that transformers gives it.
WRITTEN_KINDS = (
    (re.compile(r"model.*\.safetensors(?:\.index\.json)?"), "weights"),
    (re.compile(r"(?:config|generation_config)\.json"), "config"),
    (re.compile(r"(?:pre)?processor_config\.json|chat_template\.\w+"), "processor"),
    (re.compile(r"(?:tokenizer|special_tokens|added_tokens|vocab|merges|spiece|sentencepiece).*"), "tokenizer"),
    (re.compile(r"modules\.json|sentence_bert_config\.json"), "sentence-transformers"),
    (re.compile(r"\w+_hf_clip\.py|__init__\.py"), "code"),
)


@dataclass(frozen=True)
class PublishedFile:
    """A file that a push sends: its path in the repository, what it is, and its size in bytes."""

    path: str
    kind: str
    size: int


def files_to_publish(folder: Path) -> dict[Path, str]:
    """The files of a model's folder that are published besides the model, each with what it is.

    Raises:
        CardError: if the folder's card cannot be read.
        PushError: if a file in the place of one, sent or not, holds a credential, or is a link out of the folder: a
            folder from elsewhere may link to whatever its author would like to read.
    """
    found = {file: kind for file, kind in _candidates(folder) if _is_inside(file, folder)}
    refuse_credentials(found, folder)
    return {file: kind for file, kind in found.items() if CHECKS[kind](file)}


def describe_files(folder: Path, known: dict[Path, str]) -> list[PublishedFile]:
    """Every file of a prepared repository, the largest first; `known` has what those are that were copied."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = file.relative_to(folder)
        kind = known.get(path) or next((kind for name, kind in WRITTEN_KINDS if name.fullmatch(path.name)), "model")
        found.append(PublishedFile(path.as_posix(), kind, file.stat().st_size))
    return sorted(found, key=lambda file: -file.size)


def refuse_credentials(files: Iterable[Path], folder: Path) -> None:
    """Raises PushError that names the first of a folder's files which holds a credential, and its kind."""
    for file in files:
        if (kind := find_credential_in_file(file)) is not None:
            raise PushError(
                f"{file.relative_to(folder)} holds {kind}; nothing was sent. Remove it from the file, and revoke it "
                "if anyone else may have read the file."
            )


def size_text(size: int) -> str:
    """A number of bytes as people read it: 605 MB."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"


def _candidates(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that may be what their place says."""
    yield folder / CARD, "card"
    yield folder / _example_image(folder / CARD), "example image"
    yield folder / "recipe.yaml", "recipe"
    yield folder / "results.json", "results"
    for file in sorted(folder.iterdir()):
        if LICENSE_NAME.fullmatch(file.name) and file.suffix.lower() not in NOT_LICENSES:
            yield file, "license"
    if (folder / PLOTS).is_dir():
        yield from ((file, "plot") for file in sorted((folder / PLOTS).iterdir()))


def _example_image(card: Path) -> str:
    if not card.is_file():
        return Example.image
    text = read_card_text(card)
    section = re.search(rf"^{HEADING}$.*?(?=^## |\Z)", text, re.M | re.S)
    return Example.of_card(section[0] if section else "", read_front_matter(text, str(card)).get("widget")).image


def _is_inside(file: Path, folder: Path) -> bool:
    if not file.is_file():
        return False
    if not file.resolve().is_relative_to(folder.resolve()):
        raise PushError(f"{file} is a link to {file.resolve()}, outside of the folder: replace it by a copy.")
    return True


def _is_license(file: Path) -> bool:
    """Whether a file of a license's name is a text."""
    content = file.read_bytes()
    return len(content) <= LARGEST_LICENSE and _is_text(content)


def _is_text(content: bytes) -> bool:
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0e-\x1f]", text)


def _is_png(file: Path) -> bool:
    return _png_texts(file) is not None


def _is_drawn_here(file: Path) -> bool:
    return (_png_texts(file) or {}).get("Software", "").split(" ")[0] == DRAWN_BY


def _png_texts(file: Path) -> dict[str, str] | None:
    """The texts in a PNG; None for another file."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            image.verify()
            return {key: str(value) for key, value in image.info.items() if isinstance(key, str)}
    # Whatever it is: files that only bear the name.
    except Exception:
        return None


def _is_recipe(file: Path) -> bool:
    try:
        return isinstance(yaml.safe_load(file.read_bytes()), dict)
    # What PyYAML makes no error of its own of, too, such as deep nesting and dates that are none.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return False


def _is_results(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "evaluations" in content


CHECKS: dict[str, Callable[[Path], bool]] = {
    # It was read for the image that it shows.
    "card": Path.is_file,
    "example image": _is_png,
    "recipe": _is_recipe,
    "results": _is_results,
    "license": _is_license,
    "plot": _is_drawn_here,
}
