"""The named architectures: each is the peer's to the parameter and in what parameters do not show, by any spelling."""

import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hf_clip import HFCLIPConfig, HFCLIPModel, HFCLIPSiglipConfig, HFCLIPSiglipModel, list_architectures
from hf_clip.model.configuration_hf_clip import find_architecture, read_architectures
from hf_clip.model.modeling_text_hf_clip import HFCLIPTextModel
from hf_clip.model.modeling_timm_hf_clip import NothingDrawn
from tests.helpers.counts import soak_count
from tests.helpers.peers import load_open_clip, load_openai_module, load_timm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ARCHITECTURES = read_architectures()
# CoCa's are compared in tests/conversion/test_coca.py.
PLAIN = [name for name, one in ARCHITECTURES.items() if one["config"]["model_type"] != "hf_clip_coca"]
# One of each kind, where all would take long.
KINDS = [
    "RN50x4",
    "RN101-gelu",
    "ViT-B/32",
    "ViT-L-14-336-gelu",
    "ViT-M-16-alt",
    "ViT-e-14",
    "ViT-H-14-CLIPA-336",
    "ViT-L-14-worldwide-quickgelu",
    "ViT-bigG-14-worldwide-378",
    "ViT-B-32-SigLIP2-256",
    "ViT-SO400M-14-SigLIP-384",
    "ViT-SO400M-16-SigLIP-i18n-256",
    "ViT-gopt-16-SigLIP2-256",
    "convnext_large_d",
    "EVA02-B-16",
    "MobileCLIP2-S0",
]
COMPARED = soak_count(KINDS, PLAIN)

# Tables 19 and 20 of the paper: embedding dimension; input resolution, layers or blocks, and width of the image
# tower, and its patch; width and heads of the text tower.
PAPER = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 512, 8),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 640, 10),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768, 12),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024, 16),
    "ViT-B/32": (512, 224, 12, 768, 32, 512, 8),
    "ViT-B/16": (512, 224, 12, 768, 16, 512, 8),
    "ViT-L/14": (768, 224, 24, 1024, 14, 768, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768, 12),
}
SHORT_NAMES = {"QuickGELU": "quick_gelu", "GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "tok": "class"}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(name: str) -> HFCLIPModel:
    config = HFCLIPConfig.from_architecture(name)
    if config.vision_config.tower == "timm":
        load_timm()
    with torch.device("meta"), NothingDrawn():
        return (HFCLIPSiglipModel if isinstance(config, HFCLIPSiglipConfig) else HFCLIPModel)(config)


def open_clip_name(name: str) -> str:
    (ours,) = (alias for alias in ARCHITECTURES[name]["aliases"] if alias.startswith("open_clip/"))
    return ours.removeprefix("open_clip/")


@functools.cache
def generator():
    spec = importlib.util.spec_from_file_location("make_architectures", ROOT / "tools/make_architectures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMPARED)
def test_an_architecture_has_the_parameters_that_its_file_says(name):
    model = build(name)
    image = count(model.vision_model) + count(model.visual_projection)
    text = count(model.text_model) + count(model.text_projection)
    assert ARCHITECTURES[name]["parameters"] == {"image": image, "text": text, "total": count(model)}
    has_bias = ARCHITECTURES[name]["config"]["model_type"] == "hf_clip_siglip"
    assert count(model) == image + text + 1 + has_bias


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_openais_nine_are_the_papers(name):
    dimensions, side, layers, width, patch, text_width, heads = PAPER[name]
    with torch.device("meta"):
        theirs = load_openai_module("model").CLIP(
            dimensions, side, layers, width, patch, 77, 49408, text_width, heads, 12
        )
    assert ARCHITECTURES[name]["parameters"]["total"] == count(theirs)
    assert ARCHITECTURES[name]["parameters"]["image"] == count(theirs.visual)
    config = HFCLIPConfig.from_architecture(name)
    assert (config.text_config.hidden_act, config.text_config.num_attention_heads) == ("quick_gelu", heads)
    assert config.vision_config.image_size == side
    if patch is None:
        assert config.vision_config.num_attention_heads == theirs.visual.attnpool.num_heads
    else:
        assert config.vision_config.hidden_act == "quick_gelu"
        assert config.vision_config.num_attention_heads == width // 64


def build_open_clip(name: str):
    load_timm()
    open_clip = load_open_clip()
    config = open_clip.get_model_config(name)
    model_class = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        return model_class(**config)


def activation_of(mlp) -> str:
    layer = mlp.gelu if hasattr(mlp, "gelu") else mlp.act
    name = type(layer).__name__
    return "gelu_pytorch_tanh" if getattr(layer, "approximate", "none") == "tanh" else SHORT_NAMES[name]


def their_text(theirs) -> dict:
    text = getattr(theirs, "text", theirs)
    block = text.transformer.resblocks[0]
    pooling = text.pool_type if text is not theirs else text.text_pool_type
    return {
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": activation_of(block.mlp),
        "layer_norm_eps": block.ln_1.eps,
        "is_causal": text.attn_mask is not None,
        "pooling": {"argmax": "eos"}.get(pooling, pooling),
        "max_position_embeddings": text.positional_embedding.shape[0],
    }


def their_vision(theirs) -> dict:
    visual = theirs.visual
    if hasattr(visual, "attnpool"):
        return {"num_attention_heads": visual.attnpool.num_heads, "image_size": visual.image_size}
    if hasattr(visual, "trunk") and "siglip" not in visual.trunk.default_cfg["architecture"]:
        patches = getattr(visual.trunk, "patch_embed", None)
        size = patches.img_size if getattr(patches, "strict_img_size", False) else visual.image_size
        return {"hidden_size": visual.trunk.head_hidden_size, "image_size": size[0]}
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        assert trunk.attn_pool.num_heads == trunk.blocks[0].attn.num_heads
        assert activation_of(trunk.attn_pool.mlp) == activation_of(trunk.blocks[0].mlp)
        return {
            "num_attention_heads": trunk.blocks[0].attn.num_heads,
            "hidden_act": activation_of(trunk.blocks[0].mlp),
            "layer_norm_eps": trunk.norm.eps,
            "has_pre_norm": not isinstance(trunk.norm_pre, torch.nn.Identity),
            "has_class_token": trunk.cls_token is not None,
            "pooling": {"map": "attention"}[trunk.global_pool],
            "norm_before_pooling": not isinstance(trunk.norm, torch.nn.Identity),
            "image_size": trunk.patch_embed.img_size[0],
            "patch_size": trunk.patch_embed.patch_size[0],
        }
    block = visual.transformer.resblocks[0]
    return {
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": activation_of(block.mlp),
        "layer_norm_eps": block.ln_1.eps,
        "has_pre_norm": not isinstance(visual.ln_pre, torch.nn.Identity),
        "pooling": {"tok": "class", "avg": "average"}[visual.pool_type],
        "norm_before_pooling": visual.pool_type == "avg" and not visual.final_ln_after_pool,
        "image_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_an_architecture_is_open_clips(name):
    theirs = build_open_clip(open_clip_name(name))
    assert ARCHITECTURES[name]["parameters"]["total"] == count(theirs)
    assert ARCHITECTURES[name]["parameters"]["image"] == count(theirs.visual)
    config = HFCLIPConfig.from_architecture(name)
    expected = their_text(theirs)
    text = {key: getattr(config.text_config, key) for key in expected}
    # Their "eos" is the first end token; ours with id 2 would be the highest id.
    assert {**text, "pooling": text["pooling"].removeprefix("first_")} == expected
    if expected["pooling"] == "eos" and config.text_config.vocab_size != 49408:
        their_end = getattr(theirs, "text_eos_id", None)
        assert (config.text_config.pooling, config.text_config.eos_token_id) == ("first_eos", their_end)
    expected = their_vision(theirs)
    assert {key: getattr(config.vision_config, key) for key in expected} == expected


@pytest.mark.slow
def test_every_config_of_open_clip_is_an_architecture_or_said_to_be_none():
    names = {open_clip_name(name) for name in ARCHITECTURES}
    open_clip = load_open_clip()
    for name in open_clip.list_models():
        assert (name in names) == (generator().why_left_out(open_clip.get_model_config(name)) is None), name


@pytest.mark.slow
@pytest.mark.parametrize("name", soak_count(KINDS[::8], list(ARCHITECTURES)))
def test_the_files_are_the_scripts(name):
    theirs = load_open_clip().get_model_config(open_clip_name(name))
    published = load_open_clip().pretrained._PRETRAINED
    described = generator().describe(open_clip_name(name), theirs, published)
    file = generator().FOLDER / generator().file_name(name)
    assert file.read_text(encoding="utf-8") == generator().as_text(described)


def test_gflops_are_those_of_the_matrix_products():
    """ViT-B/32 written out: two operations to a product, attention over all pairs of tokens."""

    def transformer(tokens, width, layers, dimensions):
        per_layer = tokens * 12 * width**2 + 2 * tokens**2 * width
        return layers * per_layer + width * dimensions

    image = 2 * (49 * 3 * 32**2 * 768 + transformer(50, 768, 12, 512))
    text = 2 * transformer(77, 512, 12, 512)
    assert find_architecture("ViT-B/32")["gflops"] == {"image": round(image / 1e9, 2), "text": round(text / 1e9, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("ViT-B/32", "openai"),
        ("ViT-H-14", "laion2b_s32b_b79k"),
        ("ViT-H-14-378-quickgelu", "dfn5b"),
        ("ViT-L-14-CLIPA", "datacomp1b"),
        ("ViT-B-16-SigLIP2", "webli"),
        ("ViT-H-14-worldwide-378", "metaclip2_worldwide"),
    ],
)
def test_preprocessing_is_what_the_published_weights_ask_for(name, tag):
    asked = load_open_clip().get_pretrained_cfg(open_clip_name(name), tag)
    preprocessing = ARCHITECTURES[name]["preprocessing"]
    assert set(preprocessing) == {"mean", "std", "interpolation", "resize_mode"}
    assert preprocessing == {key: list(asked[key]) if key in ("mean", "std") else asked[key] for key in preprocessing}


def test_weights_that_differ_in_preprocessing_leave_openais():
    squash = {**generator().OPENAI_PREPROCESSING, "resize_mode": "squash"}
    quick = {**squash, "interpolation": "bilinear", "quick_gelu": True}
    assert generator().preprocessing({"a": squash, "b": squash, "c": quick}, is_quick=False) == squash
    assert generator().preprocessing({"a": squash, "c": quick}, is_quick=True)["interpolation"] == "bilinear"
    differing = {"a": squash, "b": {**squash, "mean": (0.5, 0.5, 0.5)}}
    assert generator().preprocessing(differing, is_quick=False) == generator().OPENAI_PREPROCESSING


def test_list_architectures_is_sorted_with_openais_names():
    names = list_architectures()
    assert set(PAPER) <= set(names) and len(names) == len(set(names)) == len(ARCHITECTURES)
    assert [name for name in names if name.startswith("RN")][:6] == [
        "RN50",
        "RN50-gelu",
        "RN50x4",
        "RN50x4-gelu",
        "RN50x16",
        "RN50x16-gelu",
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_and_alias_is_one_architectures(name):
    for spelling in (name, *ARCHITECTURES[name]["aliases"]):
        assert find_architecture(spelling)["name"] == name


@pytest.mark.parametrize("name", PAPER)
def test_openais_names_are_quick_gelu_in_any_spelling_and_open_clips_are_said_to_be(name):
    dashed = name.replace("/", "-").replace("@", "-").removesuffix("px")
    for spelling in (name, dashed, dashed.lower(), dashed.replace("-", "_"), f"{dashed}-quickgelu", f"openai/{name}"):
        config = HFCLIPConfig.from_architecture(spelling)
        assert config.text_config.hidden_act == "quick_gelu", spelling
    for spelling in (f"open_clip/{dashed}", f"{dashed}-gelu", f"OpenCLIP/{dashed}".lower()):
        config = HFCLIPConfig.from_architecture(spelling)
        assert config.text_config.hidden_act == "gelu", spelling
    assert HFCLIPConfig.from_architecture(f"open_clip/{dashed}-quickgelu").text_config.hidden_act == "quick_gelu"


def test_case_tells_g_from_big_g_and_raises_where_it_does_not():
    assert find_architecture("ViT-g/14")["name"] == "ViT-g-14"
    assert find_architecture("ViT-G/14")["name"] == "ViT-bigG-14"
    with pytest.raises(ValueError, match="'vit-g-14' fits several architectures. Nearest: ViT-bigG-14, ViT-g-14"):
        find_architecture("vit-g-14")


def test_an_unknown_name_raises_with_the_nearest():
    with pytest.raises(ValueError, match=r"'ViT-B/23' is not a known architecture\. Nearest: ViT-B/32.*doctor"):
        HFCLIPConfig.from_architecture("ViT-B/23")
    with pytest.raises(ValueError, match="Nearest: ViT-SO400M-14-SigLIP"):
        HFCLIPConfig.from_architecture("SO400M-14-SigLIP")
    with pytest.raises(
        ValueError, match=f"Nearest: none. `hf-clip doctor --architectures` shows all {len(ARCHITECTURES)}"
    ):
        HFCLIPConfig.from_architecture("???")


def test_without_the_files_the_error_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_clip.model.configuration_hf_clip._ARCHITECTURES", tmp_path)
    assert list_architectures() == []
    with pytest.raises(ValueError, match="pip install hf_clip"):
        HFCLIPConfig.from_architecture("ViT-B/32")


def test_a_worldwide_text_is_pooled_at_its_end_token_and_not_at_the_highest_id():
    """MetaCLIP 2's end token is id 2, which in configs of OpenAI's models means the highest id."""
    small = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = HFCLIPConfig.from_architecture("ViT-H-14-worldwide", text_config={**small, "num_attention_heads": 2})
    torch.manual_seed(0)
    output = HFCLIPTextModel(config.text_config)(torch.tensor([[0, 98, 7, 2, 1], [0, 2, 1, 1, 1]]))
    assert torch.equal(output.pooler_output, output.last_hidden_state[[0, 1], [3, 1]])


def test_siglip_architectures_are_siglip_configs():
    config = HFCLIPConfig.from_architecture("ViT-B-16-SigLIP", vision_config={"image_size": 32})
    assert type(config) is HFCLIPSiglipConfig and config.vision_config.image_size == 32
    assert type(HFCLIPConfig.from_architecture("ViT-B/16")) is HFCLIPConfig
    assert json.loads(config.to_json_string())["model_type"] == "hf_clip_siglip"
