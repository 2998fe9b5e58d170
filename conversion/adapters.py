"""Adapters of PEFT (LoRA, DoRA and their like): put on the model that they were trained on, and merged or kept."""

import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .errors import ConversionError, short_reason
from .rules import describe_skipped, shown_names

logger = logging.getLogger(__name__)

_MAX_NAME = 1000
# The number of a layer.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")

WAYS = ("merge", "keep")
# Before the names of the modules that PEFT was put on.
_WRAPPER = "base_model.model."
_ADAPTER = "default"
# What the names of our modules and of transformers' dual encoders begin with, and those of their towers alone.
_PARTS = ("text_model.", "vision_model.", "visual_projection.", "text_projection.", "logit_")
_PARTS_OF_A_TOWER = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "final_layer_norm.", "head.")
_TOWERS = {"VisionModel": "vision_model", "TextModel": "text_model"}
# How PyTorch tells of a tensor that has another shape than its place.
_OTHER_SHAPE = re.compile(r"size mismatch for (?:base_model\.model\.)?(\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)")
# Parameters that layers share, which PEFT does not save with each.
_SHARED = ("vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d.")


def base_of(folder: Path, settings: Mapping[str, Any], base: str | os.PathLike | None) -> str:
    """The model that an adapter belongs on: the caller's, or the one that its settings name.

    Raises:
        ConversionError: if there is neither.
    """
    named = settings.get("base_model_name_or_path") if base is None else os.fspath(base)
    if not isinstance(named, str) or not named:
        raise ConversionError(
            f"{folder} holds an adapter of PEFT, which does not say what model it was trained on: pass `base` (a "
            "checkpoint of any format, or a Hub id)."
        )
    if not named.isprintable() or len(named) > _MAX_NAME:
        raise ConversionError(f"{folder} names as its base what is no name ({shown_names([named])}): pass `base`.")
    return named


def put_on(
    model: HFCLIPModel,
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None,
    keeps: bool,
) -> Any:
    """The model with the adapter of a folder: merged into its weights, or kept as a `peft.PeftModel` around it.

    Merging is done in float32. Of an adapter that was kept, the parameters are trainable and the model's are not.

    Args:
        model: what the adapter was trained on. It is changed.
        folder: of the adapter. settings: what its `adapter_config.json` holds. tensors: of its file of weights.
        dtype: of the merged model; None is the model's. keeps: whether the adapter is kept.

    Raises:
        ImportError: without peft.
        ConversionError: if the adapter does not fit the model, whole.
    """
    peft = _import_peft(folder)
    names = {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}
    root, prefix = _root_of(model, folder, settings, names)
    _refuse_unusable(peft, folder, settings, names)
    if keeps and root is not model:
        raise ConversionError(
            f"{folder} was trained on another module than the dual encoder ({prefix!r}), and cannot be kept on it: "
            "pass `adapter=merge`."
        )
    dtype = dtype or model.dtype
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that transformers is about to drop: nothing that a caller could change.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        adapted = peft.PeftModel(root if keeps else root.float(), _config(peft, folder, root, names))
    _fill(peft, adapted, folder, tensors, prefix)
    adapted.eval()
    if keeps:
        return adapted
    adapted.merge_and_unload(safe_merge=True)
    # PEFT has frozen them.
    model.requires_grad_(True)
    cast(nn.Module, model).to(dtype)
    return model.eval()


def _refuse_unusable(
    peft: Any, folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Raises ConversionError for an adapter of an unknown kind, of whole numbers, or with ranks of no tensor of it.

    PEFT makes tensors of the ranks that the settings name before it looks at the file's.
    """
    kind = settings.get("peft_type")
    if kind not in [known.value for known in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING]:
        raise ConversionError(
            f"{folder} holds an adapter of the kind peft_type={kind!r:.80}, which peft {peft.__version__} does not "
            "know: pip install -U peft, if it is a newer one's."
        )
    # Indices are of weights (SHiRA), and of vectors that layers share (VB-LoRA).
    whole = [name for name, one in tensors.items() if not one.is_floating_point() and "indices" not in name]
    if whole:
        raise ConversionError(
            f"{folder}: {len(whole)} tensors of the adapter are not of floating point: {shown_names(whole)}."
        )
    longest = max((max(tensor.shape, default=1) for tensor in tensors.values()), default=1)
    patterns = settings.get("rank_pattern")
    ranks = [settings.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    if wrong := [rank for rank in ranks if type(rank) is int and rank > longest]:
        raise ConversionError(
            f"{folder}: a rank of {wrong[0]} is more than any tensor of the adapter has (at most {longest}): its "
            "settings are of another adapter, or damaged."
        )


def _import_peft(folder: Path) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"{folder} holds an adapter of PEFT ({error}): pip install peft") from error
    return peft


def _root_of(
    model: HFCLIPModel, folder: Path, settings: Mapping[str, Any], names: Mapping[str, Any]
) -> tuple[nn.Module, str]:
    """The module whose names the adapter has, and how they differ from the dual encoder's.

    That is the dual encoder, one that a module of the user's held (under a prefix), or a tower by itself. The second
    is the prefix, or the tower's name.
    """
    if any(name.startswith(_PARTS) for name in names):
        return model, ""
    prefixes = {
        before
        for name in names
        for part in _PARTS
        if (before := name.partition(f".{part}")[0] + ".") and f".{part}" in name
    }
    if len(prefixes) == 1:
        (prefix,) = prefixes
        root: nn.Module = model
        for name in reversed(prefix.removesuffix(".").split(".")):
            holder = nn.Module()
            holder.add_module(name, root)
            root = holder
        return root, prefix
    trained_on = settings.get("auto_mapping")
    class_name = str(trained_on.get("base_model_class")) if isinstance(trained_on, dict) else ""
    if any(name.startswith(_PARTS_OF_A_TOWER) for name in names):
        for kind, tower in _TOWERS.items():
            if kind in class_name:
                return getattr(model, tower), f"{tower}."
    raise ConversionError(
        f"{folder} holds an adapter of PEFT for another model than a CLIP of these names; its tensors are "
        f"{shown_names(sorted(names))}."
    )


def _config(peft: Any, folder: Path, root: nn.Module, names: Mapping[str, Any]) -> Any:
    """PEFT's config of the folder, with the modules spelt out of which the file has tensors.

    The patterns that it was trained with may fit more modules here: an adapter of one tower is put on both.
    """
    config = peft.PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise ConversionError(
            f"{folder} holds an adapter of PEFT of the kind {config.peft_type.value}, which changes the inputs of a "
            "language model: of a CLIP, those that change weights can be loaded."
        )
    # Would import what it names.
    if getattr(config, "megatron_config", None) is not None:
        raise ConversionError(f"{folder} holds an adapter of a model of Megatron-LM, which is no CLIP.")
    own = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    modules = [name for name, _ in root.named_modules() if name]
    held = {one for one in modules if any(name.startswith(f"{one}.{own}") for name in names)}
    missing = _missing_layers(peft, config, modules, held)
    for field, value in {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}.items():
        if hasattr(config, field):
            setattr(config, field, value)
    if getattr(config, "target_modules", None):
        config.target_modules = held
    if saved := getattr(config, "modules_to_save", None):
        named = [one for one in modules if one.endswith(tuple(saved))]
        there = [one for one in named if any(name.startswith(f"{one}.") for name in names)]
        missing += [f"{one}.{key}" for one in there for key in root.get_submodule(one).state_dict()]
        # Of these the file has nothing, under whatever name: those of a head of the user's own are in no CLIP.
        lost = [one for one in saved if not any(f"{one}." in name for name in names)]
        missing += [one for one in named if one.endswith(tuple(lost))] if lost else []
        config.modules_to_save = there or None
    if missing := [one for one in missing if one not in names]:
        raise ConversionError(
            f"{folder}: the adapter lacks {len(missing)} of what its settings name: {shown_names(missing)}. It was "
            "trained on another model, or its file is cut."
        )
    config.inference_mode = False
    return config


def _missing_layers(peft: Any, config: Any, modules: list[str], held: set[str]) -> list[str]:
    """Modules that the settings name, of which the file has other layers' alone.

    A list of names is asked for, which most adapters have: patterns of strangers may take for ever.
    """
    if not isinstance(getattr(config, "target_modules", None), list | set):
        return []
    if isinstance(getattr(config, "exclude_modules", None), str):
        return []
    kinds = {_LAYER.sub("*", one) for one in held}
    alike = [one for one in modules if one not in held and _LAYER.sub("*", one) in kinds]
    return [one for one in alike if peft.tuners.tuners_utils.check_target_module_exists(config, one)]


def _fill(peft: Any, adapted: Any, folder: Path, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """The file's tensors into the adapter. Raises ConversionError unless all that are a CLIP's have their place."""
    try:
        found = peft.set_peft_model_state_dict(adapted, dict(tensors), adapter_name=_ADAPTER)
    except RuntimeError as error:
        first = _OTHER_SHAPE.search(str(error))
        reason = "{} is {} in the file and {} on this model".format(*first.groups()) if first else short_reason(error)
        raise ConversionError(
            f"{folder} is an adapter for a model of other shapes ({reason}): pass the `base` that it was trained on."
        ) from None
    own = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[adapted.peft_config[_ADAPTER].peft_type]
    missing = [
        name
        for name in found.missing_keys
        if own in name and f".{_ADAPTER}" in name and not any(one in name for one in _SHARED)
    ]
    if missing:
        raise ConversionError(f"{folder}: the adapter lacks {len(missing)} tensors: {shown_names(missing)}.")
    left = [name.removeprefix(_WRAPPER) for name in found.unexpected_keys]
    homeless = [name for name in left if name.removeprefix(prefix).startswith((*_PARTS, *_PARTS_OF_A_TOWER))]
    if homeless:
        raise ConversionError(
            f"{folder}: the model has no place for {len(homeless)} tensors of the adapter, which was trained on "
            f"another: {shown_names(homeless)}."
        )
    if left:
        logger.warning("%s: %s", folder, describe_skipped(left))
