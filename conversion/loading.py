"""`load`: any CLIP checkpoint as a model and its processor.

Read are a folder or Hub id of this package, of OpenCLIP, or of transformers' CLIP, SigLIP, SigLIP 2 (of fixed
resolution, and NaFlex), MetaCLIP 2, Chinese-CLIP, OWL-ViT or OWLv2 (the CLIP in it); a file of weights (OpenAI's
TorchScript archive, a state dict, LongCLIP's, a training checkpoint of OpenCLIP's; of torch.save or safetensors); and
one of OpenAI's names, such as "ViT-B/32", where its file is on this machine; a folder or Hub id of an adapter of PEFT,
put on its base. The Hub is asked once about a repository, within seconds; where it gives no answer, the cache is used.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig, find_architecture
from hf_clip.model.configuration_limits_hf_clip import LIMITS
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import CLEANINGS, HFCLIPProcessor

from .adapters import WAYS, base_of, put_on
from .check_processor import fit_processor
from .coca import published_config
from .confirm import class_of, expected_tensors, refuse_absurd_counts, refuse_unconfirmed_counts
from .errors import ConversionError, one_line_errors, short_reason
from .hints import FORMATS, refuse_contradictions
from .hub_files import HubOptions, fetch_settings
from .infer_config import config_of_openai_shape, fits, has_two_meanings, infer_shape, recognize
from .locating import OPEN_CLIP_CONFIG, Located, locate
from .long_clip import is_long_clip, join_positions
from .open_clip import (
    Layout,
    config_from_model_cfg,
    layout_of_file,
    layout_of_names,
    open_clip_rules,
    rules_of_layout,
)
from .preprocessing import (
    OPENAI_TRANSFORM,
    build_image_processor,
    build_processor,
    check_settings_files,
    cleaning_of_transformers,
    in_patches,
    load_image_processor,
    load_tokenizer,
    open_clip_tokenizer,
    openai_tokenizer,
    scale_image_processor,
    set_cleaning,
)
from .rules import Rule, import_tensors, renamed_shapes, shown_names
from .safe_torch.weights import WeightsFile, read_weights
from .transformers_sources import TRANSFORMERS_SOURCES, TransformersSource
from .wrapped import Within, find_clip

logger = logging.getLogger(__name__)

# Buffers that older versions of transformers wrote into checkpoints.
_POSITION_IDS = [
    Rule(f"{tower}.embeddings.position_ids", why="0, 1, 2, ..., which the model makes itself")
    for tower in ("text_model", "vision_model")
]
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
# Formats whose tensors have this package's names.
_NATIVE_FORMATS = ("hf_clip", "transformers")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
KINDS: dict[str, type[HFCLIPConfig]] = {
    kind.model_type: kind for kind in (HFCLIPConfig, HFCLIPSiglipConfig, HFCLIPCoCaConfig)
}


@dataclass(frozen=True)
class LoadOptions:
    """What the caller says about a source; None where the source says it itself. The arguments of `load`."""

    architecture: str | None = None
    hidden_act: str | None = None
    config: HFCLIPConfig | None = None
    source_format: str | None = None
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    preprocessing: Mapping[str, Any] | None = None
    image_size: int | None = None
    text_cleaning: str | None = None
    base: str | Path | None = None
    adapter: str = "merge"

    def __post_init__(self):
        self._check_types()
        if self.adapter not in WAYS:
            raise ValueError(f"`adapter={self.adapter}` is not known: use {' or '.join(WAYS)}.")
        if self.hidden_act is not None and self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"`hidden_act={self.hidden_act}` is not known: use {', '.join(ACTIVATIONS)}.")
        if self.text_cleaning not in (None, "none", *CLEANINGS):
            known = ", ".join((*CLEANINGS, "none"))
            raise ValueError(f"`text_cleaning={self.text_cleaning}` is not known: use {known}.")
        if self.source_format is not None and self.source_format not in FORMATS:
            known = ", ".join(FORMATS)
            raise ValueError(f"`source_format={self.source_format}` is not known: use {known}, or drop it.")
        # Both are fitted to each other: the caller's own may be used for another checkpoint.
        for name in ("config", "tokenizer"):
            object.__setattr__(self, name, copy.deepcopy(getattr(self, name)))

    def _check_types(self) -> None:
        """Raises ValueError for what is of another kind, which would look like a fault of the source."""
        kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
            "architecture": (str, "its name"),
            "config": (HFCLIPConfig, "an HFCLIPConfig"),
            "tokenizer": ((str, Path, PreTrainedTokenizerBase), "a tokenizer, or the folder or Hub id of one"),
            "preprocessing": (Mapping, "a dictionary, such as {'mean': 0.5, 'std': 0.5}"),
            "image_size": (int, "a number of pixels"),
        }
        for name, (kind, what) in kinds.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or value is True):
                raise ValueError(f"`{name}={str(value):.60}` is of type {type(value).__name__}: pass {what}.")
        if self.image_size is not None and not 1 <= self.image_size <= LIMITS["image_size"]:
            raise ValueError(f"`image_size={self.image_size}`: pass 1 to {LIMITS['image_size']} pixels.")


@dataclass
class _Checkpoint:
    """What a source is, found from its settings and from the names and shapes of its weights.

    Attributes:
        format: "hf_clip", "transformers", "open_clip", "openai" or "long_clip".
        description: for the log.
        folder: with image processor and tokenizer in the files of transformers; None for other formats.
        preprocessing: OpenCLIP's `preprocess_cfg`, where there is no such folder.
        tokenizer: "clip" for OpenAI's vocabulary, or the folder or Hub id of another, where there is no such folder.
        tokenizer_options: OpenCLIP's `tokenizer_kwargs`.
        rules: the table of its names, where the names of the weights do not tell it.
    """

    format: str
    description: str
    config: HFCLIPConfig
    folder: Path | None = None
    preprocessing: Mapping[str, Any] | None = None
    tokenizer: str | Path = "clip"
    tokenizer_options: Mapping[str, Any] | None = None
    rules: Sequence[Rule] | None = None


def load(
    source: str | Path,
    *,
    architecture: str | None = None,
    hidden_act: str | None = None,
    config: HFCLIPConfig | None = None,
    source_format: str | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    text_cleaning: str | None = None,
    base: str | Path | None = None,
    adapter: str = "merge",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """The model of a checkpoint, in evaluation mode, with the processor that makes its inputs.

    The format is found from the content; what is read, the top of this module says. Nothing in a file is run, and
    what a config says is compared with the weights before anything of that size is made. `model.source_format` says
    what was found: "hf_clip", "transformers", "open_clip", "openai" or "long_clip".

    Args:
        source: path, Hub id (OpenCLIP's prefixes `hf-hub:` and `local-dir:` may stand before it) or name.
        architecture: name of the model's architecture, such as "open_clip/ViT-B-32", for a file of weights alone. A
            source that says it by itself must agree with this and the next three.
        hidden_act: "quick_gelu", "gelu" or "gelu_pytorch_tanh", for a file of weights alone. Enough where its shapes
            are those of known architectures that differ in no more.
        config: the shape of the model, for a file of weights alone whose architecture has no name.
        source_format: "openai" says that a state dict is what OpenAI's `build_model` takes, which needs no more.
        tokenizer: a tokenizer, or the folder or Hub id of one, in place of the source's.
        preprocessing: `mean`, `std`, `interpolation`, `resize_mode`, `fill_color`; a missing one is OpenAI's.
        image_size: another resolution than the checkpoint's, in pixels; see `HFCLIPModel.set_image_size`. Of a NaFlex
            model, as many patches as a square of that side has.
        text_cleaning: what is done to texts, in place of what the source says: "whitespace", "lower" or "canonicalize"
            (see `HFCLIPProcessor`), or "none". What a tokenizer does by itself stays.
        base: of an adapter, any source; None is the one that it names. All arguments but `revision` are about it.
        adapter: "merge" puts it into the weights; "keep" returns a `peft.PeftModel` in which it is trainable.
        dtype: of the model. None keeps the file's; where a file mixes several (OpenAI's), float32, which is exact.
        device: where the model goes; None is the CPU.
        revision, cache_dir, token, local_files_only: of repositories on the Hub, as `huggingface_hub` takes them.

    Raises:
        CheckpointNotFoundError: (a ConversionError) if there is no file, folder or repository of that name.
        ConversionError: (a ValueError) if the source cannot be read, contradicts an argument, or does not say what
            the caller must then say; the message is one line, and says what to pass.
        ValueError: for an unknown architecture, device or dtype.
    """
    said = (architecture, hidden_act, config, source_format, tokenizer, preprocessing, image_size, text_cleaning)
    options = LoadOptions(*said, base, adapter)
    dtype, hub = _check_dtype(dtype), HubOptions(revision, cache_dir, token, local_files_only)
    _check_device(device)
    model, processor, description = _load(source, options, hub, dtype)
    logger.info("%s: %s; %s.", source, description, str(model.dtype).removeprefix("torch."))
    return (model if device is None else cast(Any, model).to(device)), processor


def _load(
    source: str | Path, options: LoadOptions, hub: HubOptions, dtype: torch.dtype | None, is_base: bool = False
) -> tuple[HFCLIPModel, HFCLIPProcessor, str]:
    """Model and processor, and a description of what the source is. What is large is made last, when all agrees."""
    with one_line_errors(source):
        located = locate(source, hub)
        if located.kind == "adapter" and is_base:
            raise ConversionError(f"{source} is an adapter itself")
        if located.kind == "adapter":
            return _load_adapter(source, located, options, hub, dtype)
        if options.base is not None:
            raise ValueError(f"`base={options.base}` is for an adapter of PEFT, which {source} is not: drop it.")
        if options.adapter == "keep" and not is_base:
            raise ValueError(f"`adapter=keep` is for an adapter of PEFT, which {source} is not: drop it.")
        found = _examine(located, options, hub)
        checkpoint, processor = found.checkpoint, found.processor
        with found.within.in_errors():
            weights = join_positions(found.within.take(read_weights(located.weights)))
            model = _build(weights, checkpoint.config, found.rules, found.expected, dtype)
    if options.image_size is not None:
        _scale(model, processor, options.image_size)
    model.source_format = checkpoint.format
    return model, processor, checkpoint.description


@dataclass(frozen=True)
class _Examined:
    """What is known of a source before its weights are read: how to read them, and its processor."""

    within: Within
    checkpoint: _Checkpoint
    rules: list[Rule]
    expected: dict[str, torch.Tensor]
    processor: HFCLIPProcessor


def _examine(located: Located, options: LoadOptions, hub: HubOptions) -> _Examined:
    outline = read_weights(located.weights, on_meta=True)
    theirs = _transformers_source(located)
    holds_more = theirs is not None and theirs.holds_more
    within = find_clip(outline, may_be_wrapped=located.may_be_wrapped or holds_more)
    with within.in_errors():
        outline = within.take(outline)
        checkpoint = _identify(located, outline, options, hub)
        outline = join_positions(outline)
        expected = expected_tensors(checkpoint.config, outline)
        rules = _rules_of(checkpoint, outline, expected)
        with _told_by_shapes(outline, rules, checkpoint.config, options):
            _refuse_other_weights(outline, rules, expected)
        processor = _make_processor(checkpoint, options, hub)
        fit_processor(processor, checkpoint.config, is_own=checkpoint.format == "hf_clip")
    return _Examined(within, checkpoint, rules, expected, processor)


def load_processor(source: str | Path, *, cache_dir: str | Path | None = None) -> HFCLIPProcessor:
    """The processor that `load` returns with a model, without reading the weights: their names and shapes suffice.

    Raises what `load` raises, and ConversionError for an adapter of PEFT, whose processor is its base's.
    """
    options, hub = LoadOptions(), HubOptions(cache_dir=cache_dir)
    with one_line_errors(source):
        located = locate(source, hub)
        if located.kind == "adapter":
            raise ConversionError(f"{source} is an adapter of PEFT: name its base, whose processor it has.")
        return _examine(located, options, hub).processor


def _load_adapter(
    source: str | Path, located: Located, options: LoadOptions, hub: HubOptions, dtype: torch.dtype | None
) -> tuple[HFCLIPModel, HFCLIPProcessor, str]:
    """The model that an adapter was trained on, with the adapter, and the base's processor."""
    base = base_of(located.path, located.config, options.base)
    # The revision that was asked for is the adapter's.
    revision = located.config.get("revision") if options.base is None else None
    base_hub = replace(hub, revision=revision if isinstance(revision, str) else None)
    keeps, image_size = options.adapter == "keep", options.image_size
    # Saved modules have the shapes with which they were trained.
    base_options = replace(options, base=None, image_size=image_size if keeps else None)
    try:
        model, processor, description = _load(base, base_options, base_hub, dtype if keeps else None, is_base=True)
    except ConversionError as error:
        raise ConversionError(
            f"{source} is an adapter of PEFT for {base}, which cannot be loaded ({short_reason(error)}): pass `base` "
            "(a checkpoint of any format, or a Hub id)."
        ) from None
    source_format = model.source_format
    tensors = read_weights(located.weights).tensors
    model = put_on(model, located.path, located.config, tensors, dtype=dtype, keeps=keeps)
    if image_size is not None and not keeps:
        _scale(model, processor, image_size)
    model.source_format = source_format
    kind = str(located.config.get("peft_type"))
    return model, processor, f"adapter of PEFT ({kind}, {'kept' if keeps else 'merged'}) on {base}, {description}"


def _scale(model: HFCLIPModel, processor: HFCLIPProcessor, image_size: int) -> None:
    """Has model and processor take images of another size."""
    scale_image_processor(processor, image_size / model.config.vision_config.image_size)
    model.set_image_size(image_size)


def _check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """None for the file's own. Raises ValueError for what is no type of floating-point numbers."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found in (None, "auto") and dtype in (None, "auto"):
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype={dtype}` is no floating-point type: use float32, float16 or bfloat16.")
    return found


def _check_device(device: torch.device | str | None) -> None:
    """Raises ValueError for a device that is not there, or that nothing runs on, before weights are read."""
    if device is None:
        return
    try:
        torch.ones(1, device=device).sum().item()
    # Each backend that is not there raises in its own way.
    except (RuntimeError, AssertionError, ImportError, NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(
            f"`device={device}` cannot be used ({short_reason(error)[:160]}): drop it, or use cpu."
        ) from error


def _identify(located: Located, outline: WeightsFile, options: LoadOptions, hub: HubOptions) -> _Checkpoint:
    """What the source is, and all that must agree with it."""
    if located.kind != "file":
        check_settings_files(located.path)
        return _as_hinted(located, _identify_folder(located, outline, hub), options)
    layout = layout_of_names(outline.tensors)
    is_native = layout is None and any(name.startswith("vision_model.") for name in outline.tensors)
    if layout is None and not is_native:
        raise ConversionError(_describe_unknown(located.path, outline))
    container = {"torchscript": "TorchScript archive", "torch": "torch file"}.get(outline.kind, "safetensors file")
    # Only the modules that OpenAI scripted hold these three numbers, and LongCLIP is OpenAI's models trained on.
    is_long = is_long_clip(outline.tensors)
    is_openai = layout is not None and (is_long or all(name in outline.tensors for name in _OPENAI_NUMBERS))
    if options.source_format == "openai" and not is_openai:
        is_openai = layout in [Layout(image, "clip", False, "matrix") for image in ("vit", "resnet")]
        if not is_openai:
            raise ConversionError(f"{located.path} is not what OpenAI's build_model takes: drop `source_format`.")
    if is_openai and layout is not None:
        # All that OpenAI published was trained with QuickGELU and has heads of 64; the rest is in the shapes.
        config = config_of_openai_shape(infer_shape(_shapes(outline, rules_of_layout(layout))))
        format_name, whose = ("long_clip", "LongCLIP's") if is_long else ("openai", "OpenAI's")
        found = _Checkpoint(format_name, f"{whose} {container}", config, preprocessing=OPENAI_TRANSFORM)
        return _as_hinted(located, found, options)
    rules = [] if layout is None else rules_of_layout(layout)
    found = _identify_bare_weights(located, outline, options, rules, container)
    # The others made it what it is.
    return _as_hinted(located, found, replace(options, architecture=None, hidden_act=None, config=None))


def _as_hinted(located: Located, found: _Checkpoint, options: LoadOptions) -> _Checkpoint:
    """What was found. Raises ValueError where the caller says something else of it."""
    hints = {name: getattr(options, name) for name in ("architecture", "hidden_act", "config", "source_format")}
    refuse_contradictions(located.path, found.format, found.config, **hints)
    return found


def _describe_unknown(path: Path, outline: WeightsFile) -> str:
    """What a file of weights is that holds no CLIP by itself."""
    names = sorted(outline.tensors)
    if any(".lora_" in name or name.startswith("base_model.") for name in names):
        return (
            f"{path} holds an adapter of PEFT, not a model; its tensors are {shown_names(names)}: pass its folder, "
            "with adapter_config.json."
        )
    return f"{path} holds no CLIP of a known format; its tensors are {shown_names(names)}."


def _transformers_source(located: Located) -> TransformersSource | None:
    """How a folder of transformers' is read whose names are not this package's; None for all else."""
    return TRANSFORMERS_SOURCES.get(located.config["model_type"]) if located.kind == "transformers" else None


def _identify_folder(located: Located, outline: WeightsFile, hub: HubOptions) -> _Checkpoint:
    if located.kind == "open_clip":
        file = located.path / OPEN_CLIP_CONFIG
        refuse_unconfirmed_counts(located.config, outline, file)
        with one_line_errors(file):
            return _identify_open_clip_folder(located, hub)
    _refuse_classifier(located.config, outline, located.path)
    file = located.path / "config.json"
    with one_line_errors(file):
        theirs = _transformers_source(located)
        settings = dict(located.config) if theirs is not None else HFCLIPConfig.get_config_dict(located.path)[0]
        refuse_absurd_counts(settings, file)
        refuse_unconfirmed_counts(settings, outline, file)
        if theirs is not None:
            config = theirs.config(settings)
        else:
            config = KINDS.get(str(settings.get("model_type")), HFCLIPConfig).from_dict(settings)
    # A file has no say in the kernels that run it: transformers would fetch those that it names.
    config._attn_implementation = None
    config.name_or_path = str(located.path)
    description = f"{located.kind} folder of a {located.config.get('model_type')}"
    rules = None if theirs is None else theirs.rules
    return _Checkpoint(located.kind, description, config, folder=located.path, rules=rules)


def _refuse_classifier(settings: Mapping[str, Any], outline: WeightsFile, folder: Path) -> None:
    """Raises ConversionError for a classifier of images, which is saved under a CLIP's config without being one."""
    named = settings.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    towers = {tensor.partition(".")[0] for tensor in outline.tensors}
    if name.isidentifier() and name.endswith("ForImageClassification") and "text_model" not in towers:
        raise ConversionError(
            f"{folder} is a classifier of images ({name:.80}), with no text tower: load it by "
            f"{name:.80}.from_pretrained."
        )


def _identify_open_clip_folder(located: Located, hub: HubOptions) -> _Checkpoint:
    model_cfg = located.config.get("model_cfg", located.config)
    config = config_from_model_cfg(model_cfg, lambda name: _tower_config(name, hub))
    text_cfg = model_cfg["text_cfg"]
    name = text_cfg.get("hf_tokenizer_name") or "clip"
    if mode := text_cfg.get("tokenizer_mode"):
        raise ConversionError(f"{located.path} has tokenizer_mode={mode!r}, which has no counterpart here.")
    if name != "clip":
        own = any(located.path.glob("tokenizer*")) or any(located.path.glob("*.model"))
        name = located.path if own else name
    return _Checkpoint(
        "open_clip",
        f"OpenCLIP folder ({located.weights.name})",
        config,
        preprocessing=located.config.get("preprocess_cfg", {}),
        tokenizer=name,
        tokenizer_options=text_cfg.get("tokenizer_kwargs") or {},
    )


def _identify_bare_weights(
    located: Located, outline: WeightsFile, options: LoadOptions, rules: list[Rule], container: str
) -> _Checkpoint:
    """Weights that come alone: the architecture is named, or recognized by its shapes, or its config is given."""
    preprocessing: Mapping[str, Any] = OPENAI_TRANSFORM
    tokenizer: dict[str, Any] = {"name": "clip"}
    name, config, what = options.architecture, options.config, container
    if name is not None and config is not None:
        raise ValueError("`architecture` and `config` say the same: leave one out.")
    if name is None and config is None and "lm_head.weight" in (shapes := _shapes(outline, rules)):
        with one_line_errors(located.path):
            config = published_config(shapes)
    if config is None:
        try:
            if name is None:
                name, config = recognize(_shapes(outline, rules), options.hidden_act)
            else:
                _refuse_two_meanings(name, options.hidden_act)
                config = HFCLIPConfig.from_architecture(name)
        except ConversionError as error:
            raise ConversionError(f"{located.path} does not say what model it is: {error}") from None
        known = find_architecture(name)
        preprocessing, tokenizer = known["preprocessing"], dict(known["tokenizer"])
        what = f"{container} with the shapes of {known['name']}"
    if options.hidden_act is not None:
        config.text_config.hidden_act = config.vision_config.hidden_act = options.hidden_act
    format_name = "open_clip" if rules else "transformers"
    description = f"{format_name} names in a {what}, {config.vision_config.hidden_act}"
    name = tokenizer.pop("name")
    return _Checkpoint(
        format_name,
        description,
        config,
        preprocessing=preprocessing,
        tokenizer=name,
        tokenizer_options=tokenizer,
    )


def _refuse_two_meanings(name: str, hidden_act: str | None) -> None:
    """OpenAI's models and OpenCLIP's of the same names differ in nothing but the activation."""
    if hidden_act is None and has_two_meanings(name):
        raise ConversionError(
            f"`architecture={name}` has quick_gelu with OpenAI and gelu with OpenCLIP: pass "
            f"`architecture=openai/{name}` or `architecture=open_clip/{name}`."
        )


def _shapes(outline: WeightsFile, rules: list[Rule]) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in outline.tensors.items()}
    return renamed_shapes(shapes, rules) if rules else shapes


def _tower_config(name: str, hub: HubOptions) -> PreTrainedConfig:
    try:
        folder = Path(name) if Path(name).is_dir() else fetch_settings(name, hub.without_revision())
        check_settings_files(folder)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"OpenCLIP's text tower is transformers' {name!r}, whose config is needed and cannot be had "
            f"({short_reason(error)[:200]}): fetch it once with a connection, or put it into the Hub's cache."
        ) from error


def _make_processor(checkpoint: _Checkpoint, options: LoadOptions, hub: HubOptions) -> HFCLIPProcessor:
    config, folder = checkpoint.config, checkpoint.folder
    if folder is not None:
        check_settings_files(folder, config.text_config.vocab_size)
        is_whole = (folder / "processor_config.json").is_file()
        if checkpoint.format == "hf_clip" and is_whole and options.tokenizer is None and options.preprocessing is None:
            processor = HFCLIPProcessor.from_pretrained(folder, trust_remote_code=False)
            if options.text_cleaning is not None:
                set_cleaning(processor, options.text_cleaning)
            return processor
    if options.preprocessing is not None or folder is None:
        settings = checkpoint.preprocessing if options.preprocessing is None else options.preprocessing
        image_processor = build_image_processor(settings or {}, config.vision_config.image_size)
        if config.vision_config.tower == "naflex":
            image_processor = in_patches(image_processor, config.vision_config)
    else:
        image_processor = load_image_processor(folder)
    name = options.tokenizer if options.tokenizer is not None else folder or checkpoint.tokenizer
    if name == "clip":
        tokenizer = openai_tokenizer(config.text_config)
        return build_processor(config, image_processor, tokenizer, options.text_cleaning)
    told = dict(checkpoint.tokenizer_options or {})
    if checkpoint.format in _NATIVE_FORMATS and not told:
        tokenizer = load_tokenizer(name, config.text_config, hub.without_revision())
        cleaning = options.text_cleaning or cleaning_of_transformers(config, tokenizer)
        return build_processor(config, image_processor, tokenizer, cleaning)
    if options.text_cleaning is not None:
        told.pop("clean", None)
    tokenizer, cleaning = open_clip_tokenizer(name, told, config.text_config, hub.without_revision())
    return build_processor(config, image_processor, tokenizer, options.text_cleaning or cleaning)


def _rules_of(checkpoint: _Checkpoint, outline: WeightsFile, expected: Mapping[str, torch.Tensor]) -> list[Rule]:
    """The table that leads from the file's names to the model's."""
    if checkpoint.rules is not None:
        return list(checkpoint.rules)
    if checkpoint.format in _NATIVE_FORMATS:
        return [Rule(name, name) for name in expected] + _POSITION_IDS
    layout = layout_of_file(outline.tensors, checkpoint.config)
    return open_clip_rules(checkpoint.config) if layout is None else rules_of_layout(layout)


def _refuse_other_weights(outline: WeightsFile, rules: list[Rule], expected: Mapping[str, torch.Tensor]) -> None:
    """Raises ConversionError unless the names, shapes and types of the file are the model's; no tensor is read.

    Whole numbers are those of a quantized model, without what makes weights of them; complex ones have no place.
    """
    with one_line_errors(outline.path):
        state = _import(WeightsFile(outline.path, outline.kind, dict(outline.tensors), {}), rules, expected, None)
    other = [
        f"{name} ({tensor.dtype})"
        for name, tensor in state.items()
        if expected[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if other:
        raise ConversionError(
            f"{outline.path} has {len(other)} tensors of another type than floating point, which the model's are: "
            f"{', '.join(other[:5])}. Save the model with weights of floating point, not quantized."
        )


@contextmanager
def _told_by_shapes(
    outline: WeightsFile, rules: list[Rule], config: HFCLIPConfig, options: LoadOptions
) -> Iterator[None]:
    """Has an error about weights of another architecture than the caller's say what theirs is, not list tensors."""
    try:
        yield
    except ConversionError:
        if options.architecture is None:
            raise
        try:
            shape = infer_shape(_shapes(outline, rules))
        except ConversionError:
            shape = None
        if shape is None or fits(config, shape):
            raise
        raise ConversionError(
            f"{outline.path} is not of `architecture={options.architecture}`, but holds a {shape}: name the "
            "architecture that it was trained with, or drop it."
        ) from None


def _import(
    weights: WeightsFile, rules: list[Rule], expected: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    try:
        return import_tensors(weights.tensors, rules, shapes, dtype)
    except ConversionError as error:
        raise ConversionError(f"{weights.path}: {error}") from None


def _build(
    weights: WeightsFile,
    config: HFCLIPConfig,
    rules: list[Rule],
    expected: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
) -> HFCLIPModel:
    """The model on top of the file's tensors: only what must be cast, joined or transposed is copied."""
    found = {tensor.dtype for tensor in weights.tensors.values() if tensor.is_floating_point()}
    dtype = dtype or (found.pop() if len(found) == 1 else torch.float32)
    state = _import(weights, rules, expected, dtype)
    return class_of(config).from_pretrained(None, config=config, state_dict=state, dtype=dtype)
