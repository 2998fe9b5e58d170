"""Embeddings kept on disk, so that an evaluation that was stopped goes on where it was."""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image, ImageFile
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image, readable_formats
from hf_clip.model.state_key_hf_clip import check_probe, probe_embeds, state_key
from hf_clip.model.typing_hf_clip import DualEncoder, Processor

logger = logging.getLogger(__name__)

# Of how many images a file holds the embeddings: what is lost by a stop, and read at once to know its key.
IMAGES_PER_FILE = 256
# The file in a model's folder that tells whether the model still gives the same embeddings.
PROBE = "probe.safetensors"


def default_cache_folder() -> Path:
    """`hf_clip/features` in the home of the Hub's caches (`HF_HOME`)."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_clip" / "features"


class FeatureCache:
    """A folder of embeddings, by the state of the model and the hash of the very images that they belong to.

    A changed model, adapter or processor, another crop, other images or another order find nothing; the same images
    under another name, or in another evaluation, are found. Files can be removed at any time; a damaged one counts as
    absent. A folder that cannot be read or written costs one warning, and never the evaluation.
    """

    def __init__(self, cache_dir: str | Path):
        self.cache_dir = Path(cache_dir)
        self._is_given_up = False

    def key(self, model: DualEncoder, processor: Processor, kind: str) -> str | None:
        """The name of the subfolder of embeddings that this model makes, `kind` saying how; None if nothing is kept.

        It reads every weight once, about a second a gigabyte: a sample of them would miss a small change. What no key
        sees, such as a hook, the embedding of one probe image does, which is kept in the folder.
        """
        if self._is_given_up:
            return None
        try:
            key = f"{state_key(model, processor, 'image')}-{version('hf-clip')}-{kind}-{_decoder()}"
            file = self.cache_dir / key / PROBE
            if file.is_file():
                check_probe(load_file(file)["probe"], model, processor, "image", file)
            else:
                self._write(file, {"probe": probe_embeds(model, processor, "image")}, {})
        # Whatever it is: features that are not kept are made again.
        except Exception as error:
            self._give_up(error)
            return None
        return key

    def path(self, key: str, images: Iterable[Any]) -> Path:
        """The file of the embeddings of these images; `key` says what made them."""
        digest = hashlib.blake2b(digest_size=16)
        for image in images:
            content = _content(image)
            # The length keeps apart what would be one when strung together.
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        return self.cache_dir / key / f"{digest.hexdigest()}.safetensors"

    def read(self, path: Path) -> tuple[torch.Tensor, list[int], Counter[str]] | None:
        """(embeddings, positions of their images, skipped images by reason), or None."""
        try:
            # A pipe of that name would be waited for without end.
            if not path.is_file():
                return None
            with safe_open(path, "pt") as file:
                embeddings_ND, metadata = file.get_tensor("embeddings"), file.metadata()
            if metadata["hash"] != _hash(embeddings_ND, metadata):
                return None
            return embeddings_ND, json.loads(metadata["kept"]), Counter(json.loads(metadata["skipped"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def write(self, path: Path, embeddings: torch.Tensor, kept: list[int], skipped: Mapping[str, int]) -> None:
        """Keeps what `read` gives: (N, D) embeddings. The file appears whole or not at all, whoever else writes it."""
        if self._is_given_up:
            return
        metadata = {"kept": json.dumps(kept), "skipped": json.dumps(skipped)}
        metadata["hash"] = _hash(embeddings, metadata)
        try:
            self._write(path, {"embeddings": embeddings.contiguous()}, metadata)
        except (OSError, SafetensorError) as error:
            self._give_up(error)

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes of several machines may have one number: a name that nobody else draws.
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            save_file(tensors, unfinished, metadata)
            os.replace(unfinished, path)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _give_up(self, error: Exception) -> None:
        self._is_given_up = True
        reason = " ".join(str(error).split())
        fix = (
            " Free some space, or name another folder for features, or set the variable HF_HOME to one."
            if isinstance(error, OSError | SafetensorError)
            else ""
        )
        logger.warning(
            f"Features of images are not kept in {self.cache_dir}, and are made again next time ({reason}).{fix}"
        )


def _decoder() -> str:
    """A hash of what says which images can be decoded: an opener that is registered later, truncated files allowed."""
    state = (PIL.__version__, readable_formats(), ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    return hashlib.blake2b(repr(state).encode(), digest_size=4).hexdigest()


def _hash(embeddings: torch.Tensor, metadata: Mapping[str, str]) -> str:
    words = f"{embeddings.dtype} {tuple(embeddings.shape)} {metadata['kept']} {metadata['skipped']} "
    return hashlib.blake2b(words.encode() + embeddings.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _content(image: Any) -> bytes:
    """Bytes that tell the image from others."""
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
