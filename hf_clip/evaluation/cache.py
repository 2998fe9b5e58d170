"""Embeddings kept on disk, so that an evaluation that was stopped goes on where it was."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image

# Of how many images a file holds the embeddings: what is lost by a stop, and read at once to know its key.
IMAGES_PER_FILE = 256


def default_cache_folder() -> Path:
    """`hf_clip/features` in the home of the Hub's caches (`HF_HOME`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_clip" / "features"


def model_key(model, processor) -> str:
    """A hash of all that embeddings of images depend on: weights, shape, pixels, this package's version.

    It reads every weight once, about a second a gigabyte: a sample of them would miss a small change.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (getattr(model, "config", None), getattr(processor, "image_processor", None)):
        content = part.to_dict() if hasattr(part, "to_dict") else repr(type(part))
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    digest.update(f"{type(model).__name__} {version('hf-clip')}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """A folder of embeddings, by the hash of the model and the hash of the very images that they belong to.

    A changed model, another crop, other images or another order find nothing; the same images under another name,
    or in another evaluation, are found. Files can be removed at any time; a damaged one counts as absent.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str, images: Iterable[Any]) -> Path:
        """Where the embeddings of these images stand; `key` says what made them."""
        digest = hashlib.blake2b(digest_size=16)
        for image in images:
            content = _content(image)
            # The length keeps apart what would be one when strung together.
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        return self.folder / key / f"{digest.hexdigest()}.safetensors"

    def read(self, path: Path) -> tuple[torch.Tensor, list[int], Counter[str]] | None:
        """(embeddings, positions of their images, images skipped, by reason), or None."""
        # Of a pipe in its place the reader would wait for ever.
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                embeddings_ND, metadata = file.get_tensor("embeddings"), file.metadata()
            if metadata["hash"] != _hash(embeddings_ND, metadata):
                return None
            return embeddings_ND, json.loads(metadata["kept"]), Counter(json.loads(metadata["skipped"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def write(self, path: Path, embeddings_ND: torch.Tensor, kept: list[int], skipped: Counter[str]) -> None:
        """Keep what `read` gives; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        metadata = {"kept": json.dumps(kept), "skipped": json.dumps(skipped)}
        metadata["hash"] = _hash(embeddings_ND, metadata)
        try:
            save_file({"embeddings": embeddings_ND.contiguous()}, unfinished, metadata)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def _hash(embeddings_ND: torch.Tensor, metadata: Mapping[str, str]) -> str:
    words = f"{embeddings_ND.dtype} {tuple(embeddings_ND.shape)} {metadata['kept']} {metadata['skipped']} "
    return hashlib.blake2b(words.encode() + embeddings_ND.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _content(image: Any) -> bytes:
    """Bytes that say which image it is."""
    if isinstance(image, dict):
        if image.get("bytes") is not None:
            return bytes(image["bytes"])
        image = image.get("path")
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            found = os.stat(image)
        except (OSError, ValueError):
            return f"no file {image}".encode(errors="replace")
        # Programs may set the time of the last change of a file's content, never of its state.
        state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        return f"file {os.path.abspath(image)} {state}".encode(errors="replace")
    if image is None:
        return b""
    try:
        # What the model sees: a palette and an orientation are in it.
        pixels = decode_image(image)
    except ImageDecodeError as error:
        return f"no image {error.reason}".encode()
    return f"{pixels.size} ".encode() + pixels.tobytes()
