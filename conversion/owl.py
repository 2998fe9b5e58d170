"""The CLIP within OWL-ViT and OWLv2 (Minderer et al. 2022, 2023), in transformers' `OwlViTModel` and `Owlv2Model`.

Both detectors hold the two towers of a CLIP, with other names for one norm, beside heads for classes and boxes. Their
texts have 16 tokens and are pooled at the highest id, as OpenAI's.
"""

from collections.abc import Mapping
from typing import Any, cast

from transformers import Owlv2Config, OwlViTConfig, PreTrainedConfig

from hf_clip.model.configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPConfig

from .chinese_clip import vit_fields
from .openai import with_weight_and_bias
from .rules import Rule

_CONFIGS = {"owlvit": OwlViTConfig, "owlv2": Owlv2Config}
MODEL_TYPES = tuple(_CONFIGS)

_POSITION_IDS = "0, 1, 2, ..., which the model makes itself"
OWL_RULES = [
    Rule("text_model.**", "text_model.**"),
    Rule("vision_model.**", "vision_model.**"),
    *with_weight_and_bias("vision_model.pre_layernorm", "vision_model.pre_layrnorm"),
    *(Rule(f"{tower}_model.embeddings.position_ids", why=_POSITION_IDS) for tower in ("text", "vision")),
    Rule("visual_projection.weight", "visual_projection.weight"),
    Rule("text_projection.weight", "text_projection.weight"),
    Rule("logit_scale", "logit_scale", is_scalar=True),
]

_TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor",
)  # fmt: skip


def config_from_owl(settings: Mapping[str, Any]) -> HFCLIPConfig:
    """The config of the CLIP within, from the `config.json` of an `OwlViTModel`, an `Owlv2Model`, or a detector."""
    theirs = _CONFIGS[settings["model_type"]].from_dict(dict(settings))
    text, vision = cast(PreTrainedConfig, theirs.text_config), cast(PreTrainedConfig, theirs.vision_config)
    fields = {name: getattr(text, name) for name in _TEXT_FIELDS}
    return HFCLIPConfig(
        text_config=fields | {"eos_token_id": POOL_AT_HIGHEST_ID},
        vision_config=vit_fields(vision),
        projection_dim=theirs.projection_dim,
        logit_scale_init_value=theirs.logit_scale_init_value,
    )
