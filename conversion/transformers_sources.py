"""Models of transformers that are a CLIP, or hold one, under names or settings of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_clip.model.configuration_hf_clip import HFCLIPConfig

from . import chinese_clip, owl
from .rules import Rule


@dataclass(frozen=True)
class TransformersSource:
    """How a folder of one `model_type` is read.

    Attributes:
        config: from what its `config.json` holds.
        rules: the table between its names and this package's.
        holds_more: the CLIP is a part of it, at times under a prefix.
    """

    config: Callable[[Mapping[str, Any]], HFCLIPConfig]
    rules: Sequence[Rule]
    holds_more: bool = False


_CHINESE_CLIP = TransformersSource(chinese_clip.config_from_chinese_clip, chinese_clip.CHINESE_CLIP_RULES)
_OWL = TransformersSource(owl.config_from_owl, owl.OWL_RULES, holds_more=True)
# Those of `CLIPModel`, `MetaClip2Model` and `SiglipModel` are read as this package's own.
TRANSFORMERS_SOURCES = {chinese_clip.MODEL_TYPE: _CHINESE_CLIP, **dict.fromkeys(owl.MODEL_TYPES, _OWL)}
