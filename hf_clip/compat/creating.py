"""What OpenCLIP's `create_model` makes a model of: a name with or without weights, a repository, a folder."""

import copy
import difflib
import functools
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from hf_clip.conversion.confirm import class_of
from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.export_configs import open_clip_preprocess_cfg
from hf_clip.conversion.loading import load
from hf_clip.conversion.preprocessing import build_image_processor
from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, find_architecture, read_architectures
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .pretrained import Pretrained, find_pretrained, read_pretrained

logger = logging.getLogger(__name__)

_SCHEMES = {"hf-hub:": "hf-hub", "local-dir:": "local-dir"}
_DTYPES = {
    "fp32": torch.float32,
    "amp": torch.float32,
    "amp_bf16": torch.float32,
    "amp_bfloat16": torch.float32,
    "fp16": torch.float16,
    "pure_fp16": torch.float16,
    "bf16": torch.bfloat16,
    "pure_bf16": torch.bfloat16,
}


@dataclass(frozen=True)
class CreateOptions:
    """OpenCLIP's arguments of `create_model` beside the name and the weights, of the same names.

    Raises ValueError for a value of them that is not there.
    """

    load_weights: bool = True
    precision: str = "fp32"
    device: str | torch.device = "cpu"
    jit: bool = False
    force_quick_gelu: bool = False
    force_custom_text: bool = False
    force_patch_dropout: float | None = None
    force_image_size: int | Sequence[int] | None = None
    force_preprocess_cfg: Mapping[str, Any] | None = None
    force_context_length: int | None = None
    pretrained_image: bool = False
    pretrained_text: bool = True
    pretrained_hf: bool = True
    pretrained_image_path: str | None = None
    pretrained_text_path: str | None = None
    cache_dir: str | Path | None = None
    output_dict: bool | None = None
    require_pretrained: bool = False
    weights_only: bool = True

    def __post_init__(self):
        if self.precision not in _DTYPES:
            raise ValueError(f"`precision={self.precision}` is not known: use {', '.join(_DTYPES)}.")
        for name in ("pretrained_image", "pretrained_image_path", "pretrained_text_path"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}={getattr(self, name)}`: towers are not loaded one by one here: join them with "
                    "hf_clip.join_towers."
                )
        if self.jit:
            warnings.warn("`jit=True` has no effect: the model is not scripted.", stacklevel=4)

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.precision]

    @property
    def image_size(self) -> int | None:
        """Pixels of a side. Raises ValueError for sides of unlike lengths."""
        size = self.force_image_size
        if size is None or isinstance(size, int):
            return size
        if len(set(size)) != 1:
            raise ValueError(f"`force_image_size={tuple(size)}`: images are squares here: pass one number.")
        return size[0]


@functools.cache
def known_models() -> tuple[str, ...]:
    """OpenCLIP's names of the architectures that this drop-in makes, sorted as OpenCLIP sorts them: no CoCa's."""
    prefix = "open_clip/"
    made = [one for one in read_architectures().values() if one["config"]["model_type"] != HFCLIPCoCaConfig.model_type]
    spelled = [alias for one in made for alias in one["aliases"] if alias.startswith(prefix)]
    names = [alias.removeprefix(prefix) for alias in spelled]
    # Numbers by their size: B-16 before B-16-plus before B-32.
    return tuple(
        sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name.lower())])
    )


def parsed_name(model_name: str) -> tuple[str | None, str]:
    """ "hf-hub" or "local-dir" and what stands behind it; None and a name, spelled with dashes.

    Raises:
        FileNotFoundError: for a `local-dir:` that is no folder.
    """
    for prefix, kind in _SCHEMES.items():
        if model_name.startswith(prefix):
            name = model_name.removeprefix(prefix)
            if kind == "local-dir" and not Path(name).expanduser().is_dir():
                raise FileNotFoundError(f"There is no folder {name!r}, which {model_name} names.")
            return kind, name
    return None, model_name.replace("/", "-")


def read_model(
    model_name: str, pretrained: str | None, options: CreateOptions
) -> tuple[HFCLIPModel, HFCLIPImageProcessor]:
    """The model, with what `options` force, and what prepares its images.

    Raises:
        RuntimeError: for what is not known, cannot be had, or has random weights where they are refused.
    """
    kind, name = parsed_name(model_name)
    if options.require_pretrained and (not options.load_weights or kind is None and not pretrained):
        raise RuntimeError(f"{model_name} with `pretrained={pretrained}` has no weights: name a tag or a file.")
    try:
        if kind is not None:
            model, image_processor = _of_folder(model_name, name, pretrained, options)
        else:
            model, image_processor = _of_name(name, pretrained, options)
    except ConversionError as error:
        raise RuntimeError(f"{model_name} cannot be loaded: {error}") from error
    model = _forced(model, options)
    return model, _with_settings(image_processor, model.config, options.force_preprocess_cfg or {})


def _of_folder(
    model_name: str, source: str, pretrained: str | None, options: CreateOptions
) -> tuple[HFCLIPModel, HFCLIPImageProcessor]:
    if pretrained:
        logger.warning("`pretrained=%s` is ignored: %s says by itself which weights.", pretrained, model_name)
    arguments = {"image_size": options.image_size, "dtype": torch.float32, "cache_dir": options.cache_dir}
    model, processor = load(source, **arguments)
    if not options.load_weights:
        model = class_of(model.config)(model.config)
    return model, processor.image_processor


def _of_name(name: str, pretrained: str | None, options: CreateOptions) -> tuple[HFCLIPModel, HFCLIPImageProcessor]:
    architecture = f"open_clip/{name}"
    _require_known(name)
    found = find_pretrained(name, pretrained) if pretrained else None
    if pretrained and found is None and not os.path.isfile(pretrained):
        tags = ", ".join(read_pretrained().get(name, {})) or "none"
        raise RuntimeError(f"`pretrained={pretrained}` is neither a file nor a tag of {name}: it has {tags}.")
    preprocessing = {} if found is None else found.preprocessing
    if not pretrained or not options.load_weights:
        logger.warning("%s has random weights: no `pretrained` is loaded.", name)
        size = {} if options.image_size is None else {"vision_config": {"image_size": options.image_size}}
        config = HFCLIPConfig.from_architecture(architecture, **size)
        return class_of(config)(config), build_image_processor(preprocessing, config.vision_config.image_size)
    if found is not None:
        architecture = _with_activation(name, pretrained, found, options)
    weights = Path(pretrained) if found is None else found.find(options.cache_dir)
    model, processor = load(
        weights,
        architecture=architecture,
        preprocessing=preprocessing,
        image_size=options.image_size,
        dtype=torch.float32,
        cache_dir=options.cache_dir,
    )
    return model, processor.image_processor


def _require_known(name: str) -> None:
    """Raises RuntimeError for the name of no architecture, with the nearest."""
    if name not in (names := known_models()):
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
        raise RuntimeError(
            f"Model config for {name!r} not found. Nearest: {', '.join(near) or 'none'}; list_models() has all "
            f"{len(names)}."
        )


def _with_activation(name: str, tag: str, found: Pretrained, options: CreateOptions) -> str:
    """The architecture that weights of a tag are loaded as.

    OpenAI's were all trained with QuickGELU, and are loaded so under either name. For others the name decides, as it
    does in OpenCLIP, which warns.
    """
    known = find_architecture(f"open_clip/{name}")["config"]
    is_quick = options.force_quick_gelu or known["text_config"].get("hidden_act") == "quick_gelu"
    if is_quick == found.quick_gelu:
        return f"open_clip/{name}"
    if found.quick_gelu and tag.lower() == "openai":
        return f"open_clip/{name}-quickgelu"
    better = f"{name}-quickgelu" if found.quick_gelu else name.removesuffix("-quickgelu")
    warnings.warn(
        f"QuickGELU mismatch: {tag!r} was trained with quick_gelu={found.quick_gelu}, and {name!r} has "
        f"quick_gelu={is_quick}: its embeddings are wrong. Use {better!r}.",
        UserWarning,
        stacklevel=5,
    )
    return f"open_clip/{name}"


def _forced(model: HFCLIPModel, options: CreateOptions) -> HFCLIPModel:
    """The model with another activation, patch dropout or context length, where they are asked for."""
    config, state = copy.deepcopy(model.config), model.state_dict()
    text, vision = config.text_config, config.vision_config
    if options.force_quick_gelu:
        text.hidden_act = vision.hidden_act = "quick_gelu"
    if options.force_patch_dropout is not None:
        vision.patch_dropout = options.force_patch_dropout
    length = options.force_context_length
    if length not in (None, text.max_position_embeddings):
        if text.tower != "clip":
            raise ValueError(f"`force_context_length={length}`: this text tower has positions of its own.")
        name = "text_model.embeddings.position_embedding.weight"
        # As OpenCLIP resamples them.
        state[name] = F.interpolate(state[name].T[None], size=length, mode="linear")[0].T.contiguous()
        text.max_position_embeddings = length
    elif not options.force_quick_gelu and options.force_patch_dropout is None:
        return model
    return type(model).from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)


def _with_settings(
    image_processor: HFCLIPImageProcessor, config: HFCLIPConfig, settings: Mapping[str, Any]
) -> HFCLIPImageProcessor:
    """One with some settings of OpenCLIP's `preprocess_cfg` replaced."""
    given = {name: value for name, value in settings.items() if value is not None}
    if not given:
        return image_processor
    preprocess_cfg, missing = open_clip_preprocess_cfg(image_processor, config)
    if missing:
        raise ValueError(f"`{next(iter(given))}`: this model has {missing[0]}: use hf_clip.load(preprocessing=...).")
    return build_image_processor(preprocess_cfg | given, config.vision_config.image_size)
