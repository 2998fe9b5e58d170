"""Chinese-CLIP: transformers' `ChineseCLIPModel`, whose text tower is a BERT that is pooled at its first token.

Facts are from transformers' modeling_chinese_clip.py and from https://github.com/OFA-Sys/Chinese-CLIP, whose text
towers are RoBERTa-wwm-ext and RBT3: BERT's layers with BERT's vocabulary.
"""

from collections.abc import Mapping
from typing import Any, cast

from transformers import BertConfig, ChineseCLIPConfig, PreTrainedConfig

from hf_clip.model.configuration_hf_clip import HFCLIPConfig

from .rules import Rule

MODEL_TYPE = "chinese_clip"

_POSITION_IDS = "0, 1, 2, ..., which the model makes itself"
CHINESE_CLIP_RULES = [
    # Names of the two halves of a BERT.
    Rule("text_model.embeddings.**", "text_model.backbone.embeddings.**"),
    Rule("text_model.encoder.**", "text_model.backbone.encoder.**"),
    Rule("text_model.embeddings.position_ids", why=_POSITION_IDS),
    Rule("text_model.embeddings.token_type_ids", why="zeros, which the model makes itself"),
    Rule("text_model.pooler.**", why="texts are pooled at their first token, before it"),
    Rule("vision_model.**", "vision_model.**"),
    Rule("vision_model.embeddings.position_ids", why=_POSITION_IDS),
    Rule("visual_projection.weight", "visual_projection.weight"),
    Rule("text_projection.weight", "text_projection.weight"),
    Rule("logit_scale", "logit_scale", is_scalar=True),
]

# What BERT's config and `ChineseCLIPTextConfig` have in common.
_TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "type_vocab_size", "initializer_range", "pad_token_id",
)  # fmt: skip
# What the vision transformers of this package and of transformers' relatives of CLIP have in common.
_VIT_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor",
)  # fmt: skip


def config_from_chinese_clip(settings: Mapping[str, Any]) -> HFCLIPConfig:
    """The config of the same model, from the `config.json` of a `ChineseCLIPModel`."""
    theirs = ChineseCLIPConfig.from_dict(dict(settings))
    text = cast(PreTrainedConfig, theirs.text_config)
    backbone = BertConfig(**{name: getattr(text, name) for name in _TEXT_FIELDS})
    fields: dict[str, Any] = {
        "text_config": {
            "tower": "transformers",
            "tower_config": backbone.to_dict(),
            "pooling": "first",
            "hidden_act": "gelu",
            **{name: getattr(backbone, name) for name in ("vocab_size", "hidden_size", "max_position_embeddings")},
            "pad_token_id": backbone.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        "vision_config": vit_fields(cast(PreTrainedConfig, theirs.vision_config)),
        "projection_dim": theirs.projection_dim,
        "logit_scale_init_value": theirs.logit_scale_init_value,
    }
    return HFCLIPConfig(**fields)


def vit_fields(vision: PreTrainedConfig) -> dict[str, Any]:
    """The fields of an image tower that is CLIP's, from a config of transformers."""
    fields = {name: getattr(vision, name) for name in _VIT_FIELDS}
    return fields | {"crops_remainder": fields["image_size"] % fields["patch_size"] > 0}


def is_chinese_clip(config: HFCLIPConfig) -> bool:
    """Whether the text tower is of Chinese-CLIP's kind; of the image tower that says nothing."""
    text = config.text_config
    return text.tower_config is not None and text.tower_config.model_type == "bert" and text.pooling == "first"


def chinese_clip_config(config: HFCLIPConfig) -> ChineseCLIPConfig:
    """The config of transformers' own model for the same weights, of a config that `is_chinese_clip`."""
    backbone, vision = config.text_config.tower_config, config.vision_config
    assert backbone is not None
    return ChineseCLIPConfig(
        text_config={name: getattr(backbone, name) for name in _TEXT_FIELDS},
        vision_config={name: getattr(vision, name) for name in (*_VIT_FIELDS, "projection_dim")},
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
    )
