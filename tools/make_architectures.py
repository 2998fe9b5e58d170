"""Writes hf_clip/assets/architectures/*.json, one named architecture a file, from the peers' hyperparameters.

python tools/make_architectures.py

The shapes are those of the `model_configs` that come with `open_clip_torch`; the image towers that it takes from timm
for SigLIP have their shape in timm's `vision_transformer.py`, repeated below, and its other trunks of timm are named.
Activations are theirs too: the exact
GELU in some towers of SigLIP for which transformers' configs name the tanh approximation. What a processor must do to
images is what all of OpenCLIP's published weights of an architecture ask for, and OpenCLIP's default where there are
none or where they differ. Configs that are no architecture of this package are printed with the reason.

A file holds:

- `name`, and `aliases`: further spellings. OpenAI's nine have OpenAI's names and `quick_gelu`. OpenCLIP's configs
  of the same names have `gelu`: they are named with `-gelu` here, and the alias `open_clip/NAME` is OpenCLIP's name
  of any architecture that it has.
- `config`: the fields of `HFCLIPConfig`.
- `preprocessing`: `mean`, `std`, `interpolation`, and `resize_mode`, "shortest" (the shorter side, then a crop of the
  middle) or "squash" (both sides).
- `tokenizer`: "clip" (OpenAI's vocabulary) or the Hub id of a tokenizer, with the options that OpenCLIP gives it.
- `parameters` of the `image` and the `text` tower, projections included, of the `decoder` of a CoCa, and in `total` (a
  temperature, and for SigLIP a bias, beyond those).
- `gflops` of the forward pass of one `image` at the architecture's size, and of one `text` of full context length:
  10^9 floating-point operations, as `torch.utils.flop_counter` counts them. Matrix products and convolutions count,
  two operations to a multiplication with its addition, attention over all pairs of tokens even where a mask hides
  half of them; norms, activations and additions do not.
"""

import importlib
import json
import re
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from hf_clip.conversion.coca import split_model_cfg
from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.timm_towers import timm_tower
from hf_clip.model.configuration_coca_hf_clip import HFCLIPCoCaConfig
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn

FOLDER = Path(__file__).resolve().parents[1] / "hf_clip" / "assets" / "architectures"

OPENAI_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B-32": "ViT-B/32",
    "ViT-B-16": "ViT-B/16",
    "ViT-L-14": "ViT-L/14",
    "ViT-L-14-336": "ViT-L/14@336px",
}
# The paper that scaled vision transformers wrote ViT-G for what OpenCLIP calls bigG, beside its ViT-g.
FURTHER_ALIASES = {"ViT-bigG-14": ["ViT-G/14"]}

# Width, depth, heads and ratio of the MLP of timm's SigLIP trunks (timm 1.0, models/vision_transformer.py).
SIGLIP_TRUNKS = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
SIGLIP_TRUNKS_WITH_GELU_TANH = re.compile(
    r"vit_(base_patch32_siglip_256|large_patch16_siglip_512|so400m_patch16_siglip_\d+|giantopt_patch16_siglip_\d+)"
)

# Ids of (padding, start, end) of the tokenizers that OpenCLIP names, by how the names begin or end.
SPECIAL_IDS = [
    ("bert-base-uncased", (0, 101, 102)),
    ("facebook/xlm-v-base", (1, 0, 2)),
    ("google/mt5-base", (0, None, 1)),
    (r"timm/.*SigLIP2.*", (0, 2, 1)),
    (r"timm/.*SigLIP.*", (1, None, 1)),
]
CLIP_IDS = (49407, 49406, 49407)

OPENAI_PREPROCESSING = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

TIMM_FIELDS = (
    "tower",
    "backbone",
    "backbone_kwargs",
    "hidden_size",
    "image_size",
    "pooling",
    "projection_type",
    "projection_bias",
    "projection_dropout",
    "hidden_act",
)

# Written even where they are the config's defaults: a file shows the shape of its towers.
VISION_SHAPE = {"tower", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"}
TEXT_SHAPE = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
ALWAYS = VISION_SHAPE | TEXT_SHAPE | {"patch_size", "max_position_embeddings", "hidden_act"}


def main() -> None:
    sys.path.insert(0, str(FOLDER.parents[2]))
    from tests.helpers.peers import load_timm

    load_timm()
    package = Path(distribution("open_clip_torch").locate_file("open_clip"))
    published = load_published(package)
    configs = {file.stem: json.loads(file.read_text()) for file in sorted((package / "model_configs").glob("*.json"))}
    for file in FOLDER.glob("*.json"):
        file.unlink()
    count = 0
    for name, theirs in configs.items():
        if reason := why_left_out(theirs):
            print(f"skipped: {name}: {reason}")
            continue
        architecture = describe(name, theirs, published)
        (FOLDER / file_name(architecture["name"])).write_text(as_text(architecture), encoding="utf-8")
        count += 1
    print(f"{count} architectures in {FOLDER}")


def file_name(name: str) -> str:
    return name.replace("/", "-").replace("@", "-").removesuffix("px") + ".json"


def load_published(package: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """OpenCLIP's table of weights, name -> tag -> entry, without its package's __init__, which needs torchvision."""
    bare = ModuleType("open_clip")
    bare.__path__ = [str(package)]
    sys.modules["open_clip"] = bare
    return importlib.import_module("open_clip.pretrained")._PRETRAINED


def why_left_out(theirs: dict[str, Any]) -> str | None:
    if "multimodal_cfg" in theirs:
        try:
            split_model_cfg(theirs)
        except ConversionError as error:
            return str(error)
    elif "hf_model_name" in theirs["text_cfg"]:
        return f"its text tower is transformers' {theirs['text_cfg']['hf_model_name']}"
    return None


def siglip_trunk(trunk: str) -> re.Match[str] | None:
    return re.fullmatch(r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<image>\d+)", trunk)


def describe(name: str, theirs: dict[str, Any], published: dict) -> dict[str, Any]:
    """The content of the file of OpenCLIP's config `name`."""
    base, is_quick = name.removesuffix("-quickgelu"), name.endswith("-quickgelu")
    ours = name
    if base in OPENAI_NAMES:
        ours = OPENAI_NAMES[base] if is_quick else f"{base}-gelu"
    aliases = [f"open_clip/{name}", *FURTHER_ALIASES.get(name, [])]
    if base in OPENAI_NAMES and is_quick:
        aliases = [name, f"openai/{ours}", *aliases]
    trunk = theirs["vision_cfg"].get("timm_model_name", "")
    is_siglip = siglip_trunk(trunk) is not None
    is_coca = "multimodal_cfg" in theirs
    config = {
        "model_type": "hf_clip_siglip" if is_siglip else "hf_clip_coca" if is_coca else "hf_clip",
        "projection_dim": theirs["embed_dim"],
        "vision_config": (siglip_vision if is_siglip else timm_vision if trunk else vision)(theirs),
        "text_config": text(theirs, is_siglip),
        **(decoder(theirs) if is_coca else {}),
    }
    return {
        "name": ours,
        "aliases": aliases,
        "config": config,
        "preprocessing": preprocessing(published.get(base, {}), is_quick),
        "tokenizer": tokenizer(theirs["text_cfg"]),
        **measure(config),
    }


def vision(theirs: dict[str, Any]) -> dict[str, Any]:
    cfg = theirs["vision_cfg"]
    width = cfg["width"]
    if isinstance(cfg["layers"], list):
        return {
            "tower": "resnet",
            "stem_width": width,
            "stage_depths": cfg["layers"],
            "hidden_size": 32 * width,
            "num_attention_heads": 32 * width // cfg.get("head_width", 64),
            "image_size": cfg["image_size"],
            "projection_bias": True,
        }
    fields = {
        "tower": "vit",
        "hidden_size": width,
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": cfg["layers"],
        "num_attention_heads": width // cfg.get("head_width", 64),
        "image_size": cfg["image_size"],
        "patch_size": cfg["patch_size"],
        "hidden_act": "quick_gelu" if theirs.get("quick_gelu") else "gelu",
        "layer_scale_init_value": cfg.get("ls_init_value"),
        "has_pre_norm": not cfg.get("no_ln_pre", False),
        "pooling": {"tok": "class", "avg": "average"}[cfg.get("pool_type", "tok")],
    }
    if cfg.get("attentional_pool"):
        fields["pooling"] = "queries"
        fields |= {"num_queries": cfg.get("attn_pooler_queries", 256), "pooling_heads": cfg["attn_pooler_heads"]}
    if fields["pooling"] == "average":
        fields["norm_before_pooling"] = not cfg.get("final_ln_after_pool", False)
    return without_defaults(fields, HFCLIPVisionConfig)


def decoder(theirs: dict[str, Any]) -> dict[str, Any]:
    cfg = theirs["multimodal_cfg"]
    return {
        "num_decoder_layers": cfg["layers"],
        "num_decoder_heads": cfg["heads"],
        "decoder_intermediate_size": 4 * cfg["width"],
    }


def siglip_vision(theirs: dict[str, Any]) -> dict[str, Any]:
    trunk = theirs["vision_cfg"]["timm_model_name"]
    found = siglip_trunk(trunk)
    width, depth, heads, ratio = SIGLIP_TRUNKS[found["size"]]
    fields = {
        "tower": "vit",
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": int(found["image"]),
        "patch_size": int(found["patch"]),
        "hidden_act": "gelu_pytorch_tanh" if SIGLIP_TRUNKS_WITH_GELU_TANH.fullmatch(trunk) else "gelu",
        "layer_norm_eps": 1e-6,
        "pooling": "attention",
        "has_class_token": False,
        "has_pre_norm": False,
        "patch_bias": True,
        "norm_before_pooling": True,
        "crops_remainder": int(found["image"]) % int(found["patch"]) > 0,
        "projection_type": "none",
    }
    return without_defaults(fields, HFCLIPVisionConfig)


def timm_vision(theirs: dict[str, Any]) -> dict[str, Any]:
    cfg = theirs["vision_cfg"]
    activation = "quick_gelu" if theirs.get("quick_gelu") else "gelu"
    tower = timm_tower(cfg, theirs["embed_dim"], cfg["image_size"], activation)
    return without_defaults({field: getattr(tower, field) for field in TIMM_FIELDS}, HFCLIPVisionConfig)


def text(theirs: dict[str, Any], is_siglip: bool) -> dict[str, Any]:
    cfg = theirs["text_cfg"]
    pad, start, end = CLIP_IDS
    if "hf_tokenizer_name" in cfg:
        pad, start, end = next(ids for name, ids in SPECIAL_IDS if re.fullmatch(name, cfg["hf_tokenizer_name"]))
    activation = "gelu_pytorch_tanh" if "act_kwargs" in cfg else "gelu"
    own = {"tower": "class_token", "pooling": "class", "pad_token_id": 0} if cfg.get("embed_cls") else {}
    fields = {
        "vocab_size": cfg["vocab_size"],
        "hidden_size": cfg["width"],
        "intermediate_size": int(cfg["width"] * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": cfg["layers"],
        "num_attention_heads": cfg["heads"],
        "max_position_embeddings": cfg["context_length"],
        "hidden_act": "quick_gelu" if theirs.get("quick_gelu") else activation,
        "layer_norm_eps": cfg.get("norm_kwargs", {}).get("eps", 1e-5),
        "is_causal": not cfg.get("no_causal_mask", False),
        "pooling": {"argmax": "eos", "eos": "first_eos", "last": "last"}[cfg.get("pool_type", "argmax")],
        "pad_token_id": pad,
        "bos_token_id": start,
        "eos_token_id": end,
        # SigLIP's projection is a part of the text tower, as transformers' SiglipModel has it.
        "projection_size": theirs["embed_dim"] if is_siglip and cfg.get("proj_type") != "none" else None,
        "projection_type": "none" if is_siglip else "linear",
        **own,
    }
    return without_defaults(fields, HFCLIPTextConfig)


def without_defaults(fields: dict[str, Any], config_class: type) -> dict[str, Any]:
    defaults = config_class()
    return {key: value for key, value in fields.items() if key in ALWAYS or value != getattr(defaults, key)}


def preprocessing(tags: dict[str, dict[str, Any]], is_quick: bool) -> dict[str, Any]:
    """What the weights of this activation have in common, else OpenCLIP's default, which is OpenAI's."""
    asked = [
        {key: tag[key] for key in OPENAI_PREPROCESSING}
        for tag in tags.values()
        if tag.get("quick_gelu", False) == is_quick
    ]
    if asked and all(one == asked[0] for one in asked):
        return asked[0]
    return OPENAI_PREPROCESSING


def tokenizer(cfg: dict[str, Any]) -> dict[str, Any]:
    return {"name": cfg.get("hf_tokenizer_name", "clip"), **cfg.get("tokenizer_kwargs", {})}


def measure(shape: dict[str, Any]) -> dict[str, Any]:
    """Parameters and GFLOPs, of the model built without memory."""
    config = config_of(shape)
    if config.vision_config.tower == "timm":
        importlib.import_module("timm.layers").set_fused_attn(False)
    # Attention written out: what a fused kernel is counted for depends on the kernel.
    with torch.device("meta"), NothingDrawn():
        model = AutoModel.from_config(config, attn_implementation="eager").eval()
    parameters = {
        "image": count_parameters(model.vision_model) + count_parameters(model.visual_projection),
        "text": count_parameters(model.text_model) + count_parameters(model.text_projection),
        "total": count_parameters(model),
    }
    if isinstance(config, HFCLIPCoCaConfig):
        parameters["decoder"] = count_parameters(model.text_decoder) + count_parameters(model.lm_head)
    # The counter follows modules by their gradients where there are any, and fails at bare parameters as inputs.
    model.requires_grad_(False)
    side, length = config.vision_config.image_size, config.text_config.max_position_embeddings
    pixels = torch.empty(1, config.vision_config.num_channels, side, side, device="meta")
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    return {
        "parameters": parameters,
        "gflops": {"image": gflops(model.get_image_features, pixels), "text": gflops(model.get_text_features, ids)},
    }


def config_of(shape: dict[str, Any]) -> Any:
    fields = {key: value for key, value in shape.items() if key != "model_type"}
    kinds = {kind.model_type: kind for kind in (HFCLIPConfig, HFCLIPSiglipConfig, HFCLIPCoCaConfig)}
    return kinds[shape["model_type"]](**fields)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gflops(forward: Callable, inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        forward(inputs)
    return round(counter.get_total_flops() / 1e9, 2)


def as_text(architecture: dict[str, Any]) -> str:
    """JSON with a line for each key, wrapped where it is long; no string of these files holds a space."""

    def lines(value: Any, key: str = "", indent: str = "") -> str:
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            inner = ",\n".join(lines(item, f'"{name}": ', indent + "  ") for name, item in value.items())
            return f"{indent}{key}{{\n{inner}\n{indent}}}"
        # A value stays on the line of its key.
        glued = json.dumps(value).replace('": ', '":\0')
        wrapped = textwrap.wrap(
            glued,
            width=110,
            initial_indent=indent + key,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        return "\n".join(wrapped).replace("\0", " ")

    return lines(architecture) + "\n"


if __name__ == "__main__":
    main()
