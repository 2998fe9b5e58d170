"""OpenAI's names: of the archives at openaipublic, of their state dicts, and of most of OpenCLIP's.

The tables follow `model.py` of https://github.com/openai/CLIP.
"""

from hf_clip.model.configuration_hf_clip import HFCLIPConfig

from .rules import Rule

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def with_weight_and_bias(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.{name}", f"{ours}.{name}") for name in ("weight", "bias")]


def transformer_layer(theirs: str, ours: str, attention_name: str = "self_attn") -> list[Rule]:
    """A residual attention block. Its query, key and value matrices are one, and split by rows."""
    attention = [f"{ours}.{attention_name}.{name}_proj" for name in "qkv"]
    return [
        *with_weight_and_bias(f"{theirs}.ln_1", f"{ours}.layer_norm1"),
        Rule(f"{theirs}.attn.in_proj_weight", tuple(f"{name}.weight" for name in attention)),
        Rule(f"{theirs}.attn.in_proj_bias", tuple(f"{name}.bias" for name in attention)),
        *with_weight_and_bias(f"{theirs}.attn.out_proj", f"{ours}.{attention_name}.out_proj"),
        *with_weight_and_bias(f"{theirs}.ln_2", f"{ours}.layer_norm2"),
        *with_weight_and_bias(f"{theirs}.mlp.c_fc", f"{ours}.mlp.fc1"),
        *with_weight_and_bias(f"{theirs}.mlp.c_proj", f"{ours}.mlp.fc2"),
    ]


def text_tower(prefix: str = "") -> list[Rule]:
    """The text transformer without its projection. `prefix` is OpenCLIP's "text." where it has the tower by itself."""
    return [
        Rule(f"{prefix}token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        Rule(f"{prefix}positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *transformer_layer(f"{prefix}transformer.resblocks.*", "text_model.encoder.layers.*"),
        *with_weight_and_bias(f"{prefix}ln_final", "text_model.final_layer_norm"),
    ]


LOGIT_SCALE = [Rule("logit_scale", "logit_scale", is_scalar=True)]

VISION_TRANSFORMER = [
    Rule("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    Rule("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    Rule("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    *with_weight_and_bias("visual.ln_pre", "vision_model.pre_layrnorm"),
    *transformer_layer("visual.transformer.resblocks.*", "vision_model.encoder.layers.*"),
    *with_weight_and_bias("visual.ln_post", "vision_model.post_layernorm"),
    Rule("visual.proj", "visual_projection.weight", transpose=True),
]


def _batch_norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.{name}", f"{ours}.{name}") for name in _BATCH_NORM]


def _resnet_stage(theirs: str, ours: str) -> list[Rule]:
    return [
        *(Rule(f"{theirs}.*.conv{n}.weight", f"{ours}.*.conv{n}.weight") for n in (1, 2, 3)),
        *(rule for n in (1, 2, 3) for rule in _batch_norm(f"{theirs}.*.bn{n}", f"{ours}.*.norm{n}")),
        Rule(f"{theirs}.*.downsample.0.weight", f"{ours}.*.shortcut_conv.weight"),
        *_batch_norm(f"{theirs}.*.downsample.1", f"{ours}.*.shortcut_norm"),
    ]


RESNET = [
    *(Rule(f"visual.conv{n}.weight", f"vision_model.stem.conv{n}.weight") for n in (1, 2, 3)),
    *(rule for n in (1, 2, 3) for rule in _batch_norm(f"visual.bn{n}", f"vision_model.stem.norm{n}")),
    *(rule for n in (1, 2, 3, 4) for rule in _resnet_stage(f"visual.layer{n}", f"vision_model.stages.{n - 1}")),
    Rule("visual.attnpool.positional_embedding", "vision_model.head.position_embedding.weight"),
    *(
        rule
        for name in ("q_proj", "k_proj", "v_proj")
        for rule in with_weight_and_bias(f"visual.attnpool.{name}", f"vision_model.head.{name}")
    ),
    # The pooled embedding before its output projection is the tower's output, and the projection the model's.
    *with_weight_and_bias("visual.attnpool.c_proj", "visual_projection"),
]

# Numbers that the archives hold as tensors.
ARCHIVE_NUMBERS = [
    Rule("input_resolution", why="config.json has it as image_size"),
    Rule("context_length", why="config.json has it as max_position_embeddings"),
    Rule("vocab_size", why="config.json has it"),
]


def openai_rules(config: HFCLIPConfig) -> list[Rule]:
    """The table between OpenAI's names and those of a model of this config."""
    image_tower = RESNET if config.vision_config.tower == "resnet" else VISION_TRANSFORMER
    projection = Rule("text_projection", "text_projection.weight", transpose=True)
    return [*text_tower(), projection, *LOGIT_SCALE, *image_tower, *ARCHIVE_NUMBERS]
