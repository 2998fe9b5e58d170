"""Finds a checkpoint: a file, a folder, a repository on the Hub, or one of OpenAI's names."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointNotFoundError, ConversionError, near_name, short_reason
from .hub_files import HubOptions, open_repository

# OpenAI's names, those of the files that its `clip.load` keeps, and repositories with the same weights.
OPENAI_FILES = {
    "RN50": ("RN50.pt", "timm/resnet50_clip.openai"),
    "RN101": ("RN101.pt", "timm/resnet101_clip.openai"),
    "RN50x4": ("RN50x4.pt", "timm/resnet50x4_clip.openai"),
    "RN50x16": ("RN50x16.pt", "timm/resnet50x16_clip.openai"),
    "RN50x64": ("RN50x64.pt", "timm/resnet50x64_clip.openai"),
    "ViT-B/32": ("ViT-B-32.pt", "openai/clip-vit-base-patch32"),
    "ViT-B/16": ("ViT-B-16.pt", "openai/clip-vit-base-patch16"),
    "ViT-L/14": ("ViT-L-14.pt", "openai/clip-vit-large-patch14"),
    "ViT-L/14@336px": ("ViT-L-14-336px.pt", "openai/clip-vit-large-patch14-336"),
}

# Types in a config.json of models that can be read, and their formats.
NATIVE_TYPES = {
    **dict.fromkeys(("hf_clip", "hf_clip_siglip", "hf_clip_coca"), "hf_clip"),
    **dict.fromkeys(("clip", "siglip", "siglip2", "metaclip_2", "chinese_clip", "owlvit", "owlv2"), "transformers"),
}
OPEN_CLIP_CONFIG = "open_clip_config.json"
ADAPTER_CONFIG = "adapter_config.json"
# Stands in the folders that `hf-clip export` writes.
EXPORT_MANIFEST = "hf_clip_export.json"
# The better ones first. A checkpoint in shards has an index beside them.
_NATIVE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What trainers leave beside weights, under the same suffixes.
_NO_WEIGHTS = re.compile(r"training_args|optimizer|scheduler|scaler|rng_state")
# A config.json holds some kilobytes, with the names of 20,000 classes 2 MB.
MAX_CONFIG_BYTES = 4 * 1024 * 1024
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Located:
    """A checkpoint on this machine.

    Attributes:
        kind: "hf_clip" or "transformers" (a folder with a config.json of one of NATIVE_TYPES), "open_clip" (a folder
            with OpenCLIP's config), "adapter" (a folder of PEFT's) or "file" (weights alone).
        path: the folder, or the file.
        weights: the file of weights, or the index of its shards.
        config: what the folder's config holds.
        may_be_wrapped: whether the file may hold more than a model: nothing of its name says that it does not.
    """

    kind: str
    path: Path
    weights: Path
    config: Mapping[str, Any]

    @property
    def may_be_wrapped(self) -> bool:
        is_named = self.weights.name.removesuffix(".index.json") in _NATIVE_WEIGHTS
        return self.kind == "file" or (self.kind in NATIVE_TYPES.values() and not is_named)


def locate(source: str | Path, hub: HubOptions) -> Located:
    """Finds what `source` names, fetching the needed files of a repository.

    Raises:
        CheckpointNotFoundError: (a ConversionError) if there is nothing of that name.
        ConversionError: if nothing of it can be read; the message says where it was looked for.
    """
    name = plain_name(source)
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, {item.name for item in path.iterdir()})
    if path.exists():
        return Located("file", path, path, {})
    if name in OPENAI_FILES:
        file = _find_openai_file(name, hub.cache_dir)
        return Located("file", file, file, {})
    if not _is_repository(name):
        raise CheckpointNotFoundError(
            f"there is no {name!r}: give a file or folder that exists, a repository (owner/name), or one of OpenAI's "
            f"names ({', '.join(OPENAI_FILES)}).{near_name(name)}"
        )
    return _open_repository(name, hub)


def plain_name(source: str | Path) -> str:
    """A source without OpenCLIP's prefixes."""
    return str(source).removeprefix("local-dir:").removeprefix("hf-hub:")


def _is_repository(name: str) -> bool:
    looks_local = name.startswith(".") or Path(name).suffix in _WEIGHTS_SUFFIXES
    return _REPOSITORY.fullmatch(name) is not None and not looks_local


def _find_openai_file(name: str, cache_dir: str | Path | None) -> Path:
    file, repository = OPENAI_FILES[name]
    # ~/.cache/clip is where OpenAI's package and OpenCLIP keep what they downloaded.
    folders = [Path(folder).expanduser() for folder in (cache_dir, "~/.cache/clip", ".") if folder is not None]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    looked = " and ".join(str(folder.absolute()) for folder in folders)
    raise ConversionError(
        f"OpenAI's {name} is not on this machine: looked for {file} in {looked}. Put the file there, or pass its "
        f"path; the same weights are on the Hub as {repository!r}."
    )


def _open_folder(folder: Path, names: Iterable[str]) -> Located:
    loose = _weights_of_any_name(names)
    if len(loose) == 1 and not {"config.json", OPEN_CLIP_CONFIG, ADAPTER_CONFIG}.intersection(names):
        # Such as `hf-clip convert --to openai` leaves.
        return Located("file", folder / loose[0], folder / loose[0], {})
    kind, config, weights = _look_into(folder, set(names))
    return Located(kind, folder, folder / weights, config)


def _look_into(folder: Path, names: set[str]) -> tuple[str, dict[str, Any], str]:
    """Format, config and file of weights of a folder that holds its settings, and whose files would be `names`."""
    if ADAPTER_CONFIG in names:
        weights = _first(_ADAPTER_WEIGHTS, names)
        if weights is None:
            raise ConversionError(f"{folder} has an {ADAPTER_CONFIG}, but no {' or '.join(_ADAPTER_WEIGHTS)}.")
        return "adapter", read_json(folder / ADAPTER_CONFIG), weights
    if EXPORT_MANIFEST in names:
        raise ConversionError(
            f"{folder} is exported, for another runtime: hf_clip.load_exported takes it. It has no weights that could "
            "be loaded, converted or trained: name the checkpoint that it was made of."
        )
    config = read_json(folder / "config.json") if "config.json" in names else {}
    kind = config.get("model_type")
    if not isinstance(kind, str | None):
        raise ConversionError(f"{folder / 'config.json'} has model_type={kind!r:.80}, which names no model.")
    weights, loose = _first(_NATIVE_WEIGHTS, names), _weights_of_any_name(names)
    # Some repositories hold OpenCLIP's format and transformers'. The latter needs no conversion, but there are those
    # whose config.json has no towers, and names a class of their own code.
    is_whole = OPEN_CLIP_CONFIG not in names or any(name in config for name in ("text_config", "vision_config"))
    if kind in NATIVE_TYPES and weights is not None and is_whole:
        return NATIVE_TYPES[kind], config, weights
    if OPEN_CLIP_CONFIG in names:
        weights = _first(_OPEN_CLIP_WEIGHTS, names) or _only_weights(folder, names)
        return "open_clip", read_json(folder / OPEN_CLIP_CONFIG), weights
    if kind in NATIVE_TYPES and len(loose) == 1:
        # What a training script left, beside the settings of the model that it began with.
        return NATIVE_TYPES[kind], config, loose[0]
    if kind in NATIVE_TYPES:
        several = f" Of {', '.join(loose[:5])}, leave one." if loose else ""
        raise ConversionError(
            f"{folder} has a config.json, but no weights: {' or '.join(_NATIVE_WEIGHTS)} is missing.{several}"
        )
    found = f"a config.json of model_type={kind!r}" if config else "neither config.json"
    hint = f" To load weights without a config, pass the file: {', '.join(loose[:5])}." if loose else ""
    raise ConversionError(
        f"{folder} has {found} {'and no' if config else 'nor'} {OPEN_CLIP_CONFIG}: of folders, those of this package, "
        f"of transformers' CLIP and its like ({', '.join(NATIVE_TYPES)}) and of OpenCLIP can be read.{hint}"
    )


def _first(wanted: Iterable[str], names: set[str]) -> str | None:
    for name in wanted:
        for candidate in (name, f"{name}.index.json"):
            if candidate in names:
                return candidate
    return None


def _weights_of_any_name(names: Iterable[str]) -> list[str]:
    """The files that may be weights, by their suffix. What is in folders within is another runtime's."""
    own = (name for name in names if "/" not in name and not _NO_WEIGHTS.match(name))
    return sorted(name for name in own if name.endswith(_WEIGHTS_SUFFIXES))


def _only_weights(folder: Path, names: set[str]) -> str:
    found = _weights_of_any_name(names)
    if len(found) != 1:
        raise ConversionError(
            f"{folder} has {len(found)} files of weights ({', '.join(found[:5]) or 'none'}), none of a name that "
            f"OpenCLIP gives them: leave one, or name it {_OPEN_CLIP_WEIGHTS[0]}."
        )
    return found[0]


def read_json(file: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a file of JSON. Raises ConversionError: in one line, what is wrong with the file."""
    try:
        if (size := file.stat().st_size) > max_bytes:
            raise ConversionError(f"{file} has {size} bytes, more than the {max_bytes} that settings need.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise ConversionError(f"{file} cannot be read ({error.strerror}): check its rights.") from error
    # Of text nested a thousand deep, the last.
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(
            f"{file} cannot be read as JSON ({short_reason(error)[:160]}): fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} holds a {type(content).__name__}, not settings: fetch it again.")
    return content


def _open_repository(name: str, hub: HubOptions) -> Located:
    """Settings first: they say which weights are wanted. Then those, and no others."""
    repository = open_repository(name, hub)
    folder = repository.fetch_settings()
    kind, config, weights = _look_into(folder, set(repository.files))
    files = [weights]
    if weights.endswith(".index.json"):
        shards = read_json(folder / weights).get("weight_map", {})
        files += sorted({str(shard) for shard in shards.values()} if isinstance(shards, dict) else [])
    repository.fetch(files)
    return Located(kind, folder, folder / weights, config)
