"""Embeddings of labels that are kept on disk between two programs, each under the state of the model that made it.

They lie in Hugging Face's folder of assets (`HF_ASSETS_CACHE`, else `HF_HOME/assets`), below `hf_clip/labels`. The
environment variable `HF_CLIP_LABEL_CACHE` names another folder, or turns the cache off with `0`.
"""

# Shapes: C classes, D width of the shared space.

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from .embedding_hf_clip import dual_encoder
from .state_key_hf_clip import check_probe, probe_embeds, state_key
from .typing_hf_clip import DualEncoder, Processor

logger = logging.get_logger(__name__)

VARIABLE = "HF_CLIP_LABEL_CACHE"
# Below it, to encode takes no longer than to read the weights for their key.
LEAST_PROMPTS = 256
# Of all entries: the ones that were used longest ago go first.
MAX_BYTES = 512 * 2**20
FORMAT = "hf_clip label embeddings 1"


@dataclass
class LabelEmbeddings:
    """Embeddings of classes.

    Attributes:
        embeddings: (C, D) float32, unit length.
        equal: pairs of labels that became the same tokens.
    """

    embeddings: torch.Tensor
    equal: list[tuple[str, str]] = field(default_factory=list)


def cache_folder(cache: bool | str | Path | None = None) -> Path | None:
    """The folder of the cache, or None where it is off or cannot be made.

    Args:
        cache: a folder; False: none; None or True: what the environment says, and True for where it says off.
    """
    said = os.environ.get(VARIABLE, "")
    is_off = said.lower() in ("0", "off", "false", "no")
    if cache is False or (cache is None and is_off):
        return None
    try:
        if isinstance(cache, str | Path) or (said and not is_off):
            folder = Path(said if cache in (None, True) else str(cache)).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        return cached_assets_path("hf_clip", "labels")
    except (OSError, ValueError) as error:
        logger.info("embeddings of labels are not kept: %s", error)
        return None


def cached_labels(
    model: DualEncoder,
    processor: Processor,
    words: Mapping[str, Any],
    prompts: int,
    encode: Callable[[], LabelEmbeddings],
    cache: bool | str | Path | None = None,
) -> LabelEmbeddings:
    """What `encode` gives, from the cache where it is there.

    Args:
        words: all that the embeddings depend on besides model and processor: JSON.
        prompts: how many texts there are to encode. A few are encoded each time, unless `cache` says otherwise.
        cache: see `cache_folder`.
    """
    folder = cache_folder(cache) if cache not in (None, False) or prompts >= LEAST_PROMPTS else None
    if folder is None:
        return encode()
    try:
        key = _key(model, processor, words)
    except ValueError as error:
        # Weights that are not in memory have no key.
        logger.info("embeddings of labels are not kept: %s", error)
        return encode()
    file = folder / f"{key}.safetensors"
    found = _read(file, key, model, processor)
    if found is None:
        found = encode()
        _write(file, key, found, probe_embeds(model, processor, "text"))
    return found


def _key(model: DualEncoder, processor: Processor, words: Mapping[str, Any]) -> str:
    device = dual_encoder(model).device
    is_autocast = torch.is_autocast_enabled(device.type)
    computed = [device.type, str(torch.get_autocast_dtype(device.type)) if is_autocast else None]
    parts = [FORMAT, state_key(model, processor, "text"), computed, words]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read(file: Path, key: str, model: DualEncoder, processor: Processor) -> LabelEmbeddings | None:
    """What a file holds; None where it is not there, is damaged, or belongs to another state after all."""
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            embeddings_CD, probe_PD = content.get_tensor("embeddings"), content.get_tensor("probe")
        equal = [(one, other) for one, other in json.loads(metadata["equal"])]
        # safetensors notices that a file is cut off, and not that a bit is another.
        if metadata["key"] != key or metadata["digest"] != _digest(embeddings_CD, probe_PD, metadata["equal"]):
            raise ValueError("it is damaged")
        check_probe(probe_PD, model, processor, "text", file)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.info("%s is made again: %s", file, error)
        return None
    with contextlib.suppress(OSError):
        # When it was used last.
        os.utime(file)
    return LabelEmbeddings(embeddings_CD.to(dual_encoder(model).device), equal)


def _write(file: Path, key: str, found: LabelEmbeddings, probe_PD: torch.Tensor) -> None:
    """Puts an entry in its place whole, or not at all: a full disk ends no classification."""
    embeddings_CD, equal = found.embeddings.cpu().contiguous(), json.dumps(found.equal)
    if embeddings_CD.nbytes > MAX_BYTES or len(equal) > 2**20:
        return
    metadata = {"format": FORMAT, "key": key, "equal": equal, "digest": _digest(embeddings_CD, probe_PD, equal)}
    # Not by the process's id: threads and machines may write to one folder.
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        save_file({"embeddings": embeddings_CD, "probe": probe_PD}, partial, metadata)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
        _forget_oldest(file.parent)
    except (OSError, SafetensorError) as error:
        logger.info("embeddings of labels are not kept: %s", error)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _forget_oldest(folder: Path) -> None:
    """Deletes what was used longest ago, until `MAX_BYTES` are left."""
    entries = []
    for file in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):
            entries.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    excess = sum(size for _, size, _ in entries) - MAX_BYTES
    for _, size, file in sorted(entries):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            file.unlink()
        excess -= size


def _digest(embeddings_CD: torch.Tensor, probe_PD: torch.Tensor, equal: str) -> str:
    digest = hashlib.sha256(equal.encode())
    for tensor in (embeddings_CD, probe_PD):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(memoryview(cast(Any, tensor.contiguous().numpy())))
    return digest.hexdigest()


def equal_labels(classes: Sequence[tuple[str, ...]], keys: Sequence[int]) -> list[tuple[str, str]]:
    """Pairs of labels, of unlike classes, whose texts have the same key: the model sees the same tokens."""
    first: dict[int, int] = {}
    return [
        (classes[first[key]][0], names[0])
        for index, (names, key) in enumerate(zip(classes, keys, strict=True))
        if classes[first.setdefault(key, index)] != names
    ]
