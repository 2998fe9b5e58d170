"""Our weights under the names of OpenAI's code and of OpenCLIP's, for tests that give both the same ones."""

import re

import torch

TRANSFORMER = [
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.layer_scale(\d)\.weight$", r".ls_\1.gamma"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
]
RESNET = [
    (r"^vision_model\.stem\.", "visual."),
    (r"^vision_model\.stages\.(\d)\.", lambda match: f"visual.layer{int(match[1]) + 1}."),
    (r"^(visual\..*)norm(\d)\.", r"\1bn\2."),
    (r"\.shortcut_conv\.", ".downsample.0."),
    (r"\.shortcut_norm\.", ".downsample.1."),
    (r"^vision_model\.head\.position_embedding\.weight$", "visual.attnpool.positional_embedding"),
    (r"^vision_model\.head\.", "visual.attnpool."),
    (r"^visual_projection\.", "visual.attnpool.c_proj."),
]


def in_openais_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of a dual encoder, under names that `load_state_dict` of the peers' models takes whole."""
    state, theirs = dict(model.state_dict()), {}
    for name in [name for name in state if re.search(r"encoder\.layers.*\.q_proj\.", name)]:
        block, _, part = name.partition(".self_attn.q_proj.")
        stacked = [state.pop(f"{block}.self_attn.{kind}_proj.{part}") for kind in "qkv"]
        state[f"{block}.attn.in_proj_{part}"] = torch.cat(stacked)
    is_resnet = model.config.vision_config.tower == "resnet"
    for name, tensor in state.items():
        for pattern, replacement in (*TRANSFORMER, *(RESNET if is_resnet else [])):
            name = re.sub(pattern, replacement, name)
        if name == "visual_projection.weight":
            name, tensor = "visual.proj", tensor.T
        elif name == "text_projection.weight" and "text_projection.bias" not in state:
            name, tensor = "text_projection", tensor.T
        theirs[name] = tensor
    return theirs
