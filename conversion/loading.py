"""`load`: any CLIP checkpoint as a model and its processor."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig, find_architecture
from hf_clip.model.modeling_hf_clip import HFCLIPModel, HFCLIPSiglipModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .errors import ConversionError, naming
from .infer_config import config_of_shape, openai_config, see_shape
from .locating import Located, locate
from .open_clip import Layout, config_of_model_cfg, layout_of_names, open_clip_rules, rules_of_layout
from .preprocessing import (
    OPENAI_TRANSFORM,
    clip_tokenizer,
    image_processor_of,
    image_processor_of_folder,
    open_clip_tokenizer,
    processor_of,
    tokenizer_of_folder,
)
from .rules import Rule, leftovers, shapes_as_ours, to_ours
from .safe_torch.weights import WeightsFile, read_torch_file

logger = logging.getLogger(__name__)

# Buffers that older versions of transformers wrote into checkpoints.
_POSITION_IDS = [
    Rule(f"{tower}.embeddings.position_ids", why="0, 1, 2, ..., which the model makes itself")
    for tower in ("text_model", "vision_model")
]
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class Told:
    """What the caller says of a source that does not say it itself; None for what it leaves to the source."""

    architecture: str | None
    hidden_act: str | None
    config: HFCLIPConfig | None
    source_format: str | None
    tokenizer: str | Path | PreTrainedTokenizerBase | None
    preprocessing: Mapping[str, Any] | None


@dataclass
class _Found:
    """What is known of a source before its weights are looked at closer.

    `tokenizer` is "clip" for OpenAI's vocabulary, or the folder or Hub id of another.
    """

    format: str
    description: str
    config: HFCLIPConfig
    preprocessing: Mapping[str, Any]
    tokenizer: str | Path
    tokenizer_options: Mapping[str, Any]


def load(
    source: str | Path,
    *,
    architecture: str | None = None,
    hidden_act: str | None = None,
    config: HFCLIPConfig | None = None,
    source_format: str | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """The model of a checkpoint, in evaluation mode, with the processor that makes its inputs.

    The format is found by looking: a folder or Hub id of this package, of transformers' CLIP or SigLIP (SigLIP 2 of
    fixed resolution too), or of OpenCLIP; a file of weights (OpenAI's TorchScript archive, a state dict, a training
    checkpoint of OpenCLIP's; of torch.save or safetensors); or one of OpenAI's names, such as "ViT-B/32", where its
    file is at hand. Nothing in a file is run. `model.source_format` says what was found: "hf_clip", "transformers",
    "open_clip" or "openai".

    Args:
        source: path, Hub id (OpenCLIP's prefixes `hf-hub:` and `local-dir:` may stand before it) or name.
        architecture, hidden_act, config, source_format: what a file of weights alone does not tell, one of the four.
            An architecture's name is enough; `hidden_act` is, where the shapes are those of known architectures that
            differ in no more; `config` is the whole shape; `source_format="openai"` says that a state dict is what
            OpenAI's `build_model` takes, which finds the shape itself.
        tokenizer: a tokenizer, or the folder or Hub id of one, in place of the source's.
        preprocessing: `mean`, `std`, `interpolation`, `resize_mode` and `fill_color`, in place of the source's; what
            it leaves out is OpenAI's.
        dtype: of the model. None keeps the file's; where a file mixes several (OpenAI's), float32, which is exact.
        device: where the model goes.
        revision, cache_dir, token, local_files_only: of a repository on the Hub.

    Raises:
        ConversionError: (a ValueError) if the source is not there, cannot be read, or does not say something that the
            caller must say; the message says what to pass.
        ValueError: for an unknown architecture, and for arguments that contradict the source.
    """
    hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    told = Told(architecture, hidden_act, config, source_format, tokenizer, preprocessing)
    with naming(source):
        located = locate(source, **hub)
        if located.kind in ("hf_clip", "transformers"):
            model, processor, description = _load_native(located, told, dtype)
            model.source_format = located.kind
        else:
            weights = read_torch_file(located.weights)
            _strip_module_prefix(weights.tensors)
            found = _know(located, weights, told, hub)
            processor = _make_processor(found, told, hub)
            model, description = _build(weights, found, dtype), found.description
            model.source_format = found.format
    logger.info("%s: %s; %s.", source, description, str(model.dtype).removeprefix("torch."))
    return model.to(device) if device is not None else model, processor


def _load_native(located: Located, told: Told, dtype) -> tuple[HFCLIPModel, HFCLIPProcessor, str]:
    """A folder whose names are this package's: transformers reads it, and nothing may be left over."""
    _refuse_told(located, told)
    config = HFCLIPConfig.from_pretrained(located.path)
    # A file has no say in the kernels that run it: transformers would fetch those that it names.
    config._attn_implementation = None
    # Of the tensors nothing is kept: transformers reads them again.
    dtypes = {name: tensor.dtype for name, tensor in read_torch_file(located.weights).tensors.items()}
    model, report = _class_of(config).from_pretrained(
        located.path,
        config=config,
        dtype=dtype or "auto",
        output_loading_info=True,
        # They are told below, with what else does not fit.
        ignore_mismatched_sizes=True,
    )
    dropped = {name for rule in _POSITION_IDS for name in rule.theirs}
    mismatched = [f"{name} {tuple(there)} instead of {tuple(here)}" for name, there, here in report["mismatched_keys"]]
    if problems := leftovers(sorted(report["unexpected_keys"] - dropped), sorted(report["missing_keys"]), mismatched):
        raise ConversionError(f"{located.path}: {problems}")
    _refuse_other_numbers(located.weights, dtypes, model.state_dict())
    if located.kind == "hf_clip" and told.tokenizer is None and told.preprocessing is None:
        processor = HFCLIPProcessor.from_pretrained(located.path, trust_remote_code=False)
    else:
        processor = _native_processor(located.path, config, told)
        model.config.text_config = config.text_config
    return model, processor, f"{located.kind} folder of a {config.model_type}"


def _native_processor(folder: Path, config: HFCLIPConfig, told: Told) -> HFCLIPProcessor:
    if told.preprocessing is None:
        image_processor = image_processor_of_folder(folder)
    else:
        image_processor = image_processor_of(told.preprocessing, config.vision_config.image_size)
    tokenizer = told.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = tokenizer_of_folder(tokenizer or folder, config.text_config.max_position_embeddings)
    # Their tokenizers clean texts themselves, as far as their library does.
    return processor_of(config, image_processor, tokenizer)


def _refuse_told(located: Located, told: Told) -> None:
    """A config that is there is not overruled: it is the source's word."""
    given = [name for name in ("architecture", "hidden_act", "config", "source_format") if getattr(told, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)} given, and the source says by itself what it is: leave {' and '.join(given)} out, or "
            "pass a file of weights without a config."
        )


def _strip_module_prefix(tensors: dict[str, torch.Tensor]) -> None:
    """Names of a model that was saved within DistributedDataParallel or torch.compile, as without them."""
    for prefix in ("module.", "_orig_mod."):
        while tensors and all(name.startswith(prefix) for name in tensors):
            for name in list(tensors):
                tensors[name.removeprefix(prefix)] = tensors.pop(name)


def _know(located: Located, weights: WeightsFile, told: Told, hub: Mapping[str, Any]) -> _Found:
    """What the source is, and all that must agree with it."""
    if located.kind == "open_clip":
        _refuse_told(located, told)
        return _know_open_clip_folder(located, hub)
    names = weights.tensors
    layout = layout_of_names(names)
    is_native = layout is None and any(name.startswith("vision_model.") for name in names)
    if layout is None and not is_native:
        some = ", ".join(sorted(names)[:5])
        raise ConversionError(f"{located.path} holds no CLIP of a known format; its tensors are {some}, ...")
    what = {"torchscript": "TorchScript archive", "torch": "torch file", "safetensors": "safetensors file"}[
        weights.kind
    ]
    is_openai = layout is not None and all(name in names for name in _OPENAI_NUMBERS)
    if is_openai:
        # Only the modules that OpenAI scripted hold these three numbers.
        _refuse_told(located, told)
    elif told.source_format == "openai":
        is_openai = layout in (Layout(image, "clip", False, "matrix") for image in ("vit", "resnet"))
        if not is_openai:
            raise ConversionError(f"{located.path} is not what OpenAI's build_model takes: leave source_format out.")
    elif told.source_format is not None:
        raise ValueError(f"source_format={told.source_format!r}: 'openai' can be said, other formats are seen.")
    if is_openai:
        # All that OpenAI published was trained with QuickGELU and has heads of 64; the rest is in the shapes.
        config = openai_config(see_shape(_shapes(names, rules_of_layout(layout))))
        return _Found("openai", f"OpenAI's {what}", config, OPENAI_TRANSFORM, "clip", {})
    format_name = "open_clip" if layout is not None else "transformers"
    rules = [] if layout is None else rules_of_layout(layout)
    return _know_bare_weights(located, weights, told, format_name, rules, what)


def _know_open_clip_folder(located: Located, hub: Mapping[str, Any]) -> _Found:
    model_cfg = located.config.get("model_cfg", located.config)
    config = config_of_model_cfg(model_cfg, lambda name: _backbone_config(name, hub))
    text_cfg = model_cfg["text_cfg"]
    name = text_cfg.get("hf_tokenizer_name") or "clip"
    if text_cfg.get("tokenizer_mode"):
        raise ConversionError(
            f"tokenizer_mode={text_cfg['tokenizer_mode']!r} of {located.path} has no counterpart here."
        )
    if name != "clip":
        own = any(located.path.glob("tokenizer*")) or any(located.path.glob("*.model"))
        name = located.path if own else name
    return _Found(
        "open_clip",
        f"OpenCLIP folder ({located.weights.name})",
        config,
        located.config.get("preprocess_cfg", {}),
        name,
        text_cfg.get("tokenizer_kwargs") or {},
    )


def _know_bare_weights(
    located: Located, weights: WeightsFile, told: Told, format_name: str, rules: list[Rule], what: str
) -> _Found:
    """Weights that come alone: the architecture is named, or recognized by its shapes, or its config is given."""
    preprocessing: Mapping[str, Any] = OPENAI_TRANSFORM
    tokenizer: dict[str, Any] = {"name": "clip"}
    name, config = told.architecture, told.config
    if name is not None and config is not None:
        raise ValueError("architecture and config are given: they say the same, leave one out.")
    if config is None:
        try:
            if name is None:
                name, config = config_of_shape(see_shape(_shapes(weights.tensors, rules)), told.hidden_act)
            else:
                _refuse_two_meanings(name, told.hidden_act)
                config = HFCLIPConfig.from_architecture(name)
        except ConversionError as error:
            raise ConversionError(f"{located.path} does not say what model it is: {error}") from error
        known = find_architecture(name)
        preprocessing, tokenizer = known["preprocessing"], dict(known["tokenizer"])
        what = f"{what} with the shapes of {known['name']}"
    if told.hidden_act is not None:
        config.text_config.hidden_act = config.vision_config.hidden_act = told.hidden_act
    description = f"{format_name} names in a {what}, {config.vision_config.hidden_act}"
    return _Found(format_name, description, config, preprocessing, tokenizer.pop("name"), tokenizer)


def _refuse_two_meanings(name: str, hidden_act: str | None) -> None:
    """OpenAI's models and OpenCLIP's of the same names differ in nothing but the activation."""
    known = find_architecture(name)
    try:
        theirs = find_architecture(f"open_clip/{name}")
    except ValueError:
        return
    if theirs["name"] != known["name"] and hidden_act is None:
        raise ConversionError(
            f"architecture={name!r} has quick_gelu with OpenAI and gelu with OpenCLIP: pass architecture="
            f"'openai/{name}' or 'open_clip/{name}'."
        )


def _shapes(tensors: Mapping[str, torch.Tensor], rules: list[Rule]) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes_as_ours(shapes, rules) if rules else shapes


def _backbone_config(name: str, hub: Mapping[str, Any]):
    options = {key: value for key, value in hub.items() if key != "revision"}
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"OpenCLIP's text tower is transformers' {name!r}, whose config is needed and cannot be had: fetch it "
            "once with a connection, or put it into the Hub's cache."
        ) from error


def _make_processor(found: _Found, told: Told, hub: Mapping[str, Any]) -> HFCLIPProcessor:
    config = found.config
    image_processor = image_processor_of(
        found.preprocessing if told.preprocessing is None else told.preprocessing, config.vision_config.image_size
    )
    if isinstance(told.tokenizer, PreTrainedTokenizerBase):
        return processor_of(config, image_processor, told.tokenizer)
    options = {key: value for key, value in hub.items() if key != "revision"}
    name = str(told.tokenizer if told.tokenizer is not None else found.tokenizer)
    if name == "clip":
        return processor_of(config, image_processor, clip_tokenizer(config.text_config))
    tokenizer, cleaning = open_clip_tokenizer(name, found.tokenizer_options, config.text_config, **options)
    return processor_of(config, image_processor, tokenizer, cleaning)


def _class_of(config: HFCLIPConfig) -> type[HFCLIPModel]:
    return HFCLIPSiglipModel if isinstance(config, HFCLIPSiglipConfig) else HFCLIPModel


def _build(weights: WeightsFile, found: _Found, dtype: torch.dtype | str | None) -> HFCLIPModel:
    """The model on top of the file's tensors: only what must be cast, joined or transposed is copied."""
    tensors = weights.tensors
    model_class = _class_of(found.config)
    with torch.device("meta"):
        empty = model_class(found.config).state_dict()
    expected = {name: tensor.shape for name, tensor in empty.items()}
    if found.format == "transformers":
        rules = [Rule(name, name) for name in expected] + _POSITION_IDS
    else:
        layout = layout_of_names(tensors)
        rules = open_clip_rules(found.config) if layout is None else rules_of_layout(layout)
    dtype = _resolve_dtype(tensors, dtype)
    try:
        state = to_ours(tensors, rules, expected, dtype)
    except ConversionError as error:
        raise ConversionError(f"{weights.path}: {error}") from error
    _refuse_other_numbers(weights.path, {name: tensor.dtype for name, tensor in state.items()}, empty)
    return model_class.from_pretrained(None, config=found.config, state_dict=state, dtype=dtype)


def _refuse_other_numbers(path: Path, dtypes: Mapping[str, torch.dtype], model: Mapping[str, torch.Tensor]) -> None:
    """Whole numbers are those of a quantized model, without what makes weights of them; complex ones have no place."""
    floating = {name for name, tensor in model.items() if tensor.is_floating_point()}
    other = [f"{name} ({dtype})" for name, dtype in dtypes.items() if name in floating and not dtype.is_floating_point]
    if other:
        raise ConversionError(
            f"{path} has {len(other)} tensors of another type than floating point, which the model's are: "
            f"{', '.join(other[:5])}. Save the model with weights of floating point, not quantized."
        )


def _resolve_dtype(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | str | None) -> torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, None)
    if dtype not in (None, "auto"):
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} is no floating-point type: use torch.float32, torch.float16 or the like.")
        return dtype
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32
