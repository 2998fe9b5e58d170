"""Embeddings of an image's positions: the published formulas, written out over the peers' own towers."""

import pytest
import torch
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from hf_clip import HFCLIPConfig, HFCLIPModel
from hf_clip.conversion import load
from hf_clip.model.modeling_dense_hf_clip import ATTENTIONS
from tests.helpers.checkpoints import open_clip_config, openai_model, openai_state, write_open_clip_folder
from tests.helpers.toys import scatter_weights, tiny_clip

TOLERANCE = 1e-5
# In OpenCLIP's words: what the paper has, and layer scale, no norm before the layers, an average behind the norm.
KNOBS = [
    {},
    {"ls_init_value": 0.1, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "patch_size": 7},
]


def last_block(block, tokens: torch.Tensor, attention: str, grid: tuple[int, int]) -> torch.Tensor:
    """OpenCLIP's last `ResidualAttentionBlock`, attending as the papers say."""
    if attention == "plain":
        return block(tokens)
    own, normed = block.attn, block.ln_1(tokens)
    batch, length, width = normed.shape
    query, key, value = (
        part.reshape(batch, length, own.num_heads, -1).transpose(1, 2)
        for part in F.linear(normed, own.in_proj_weight, own.in_proj_bias).chunk(3, dim=-1)
    )
    scale = (width // own.num_heads) ** -0.5
    by_query, by_key = (each @ each.transpose(-1, -2) * scale for each in (query, key))
    if attention == "query-key":
        weights = by_query.softmax(-1) + by_key.softmax(-1)
    elif attention == "value":
        weights = torch.eye(length)
    elif attention == "query":
        weights = by_query.softmax(-1)
    else:
        near = torch.zeros(length, length)
        for one in range(length - 1):
            for other in range(length - 1):
                down, across = one // grid[1] - other // grid[1], one % grid[1] - other % grid[1]
                near[one + 1, other + 1] = torch.tensor(-(down**2 + across**2) / 50.0).exp()
        weights = (by_key + near).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
    mixed = block.ls_1(F.linear(mixed, own.out_proj.weight, own.out_proj.bias))
    if attention != "query-key":
        return mixed
    tokens = tokens + mixed
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


@pytest.mark.parametrize("knobs", KNOBS, ids=["paper", "others"])
def test_every_attention_of_a_vit_is_the_formula_over_open_clips_transformer(knobs, tmp_path):
    peer = write_open_clip_folder(tmp_path / "theirs", open_clip_config(vision=knobs)).visual.eval()
    model, _ = load(tmp_path / "theirs")
    pixels = torch.randn(2, 3, 32, 32)
    side = 32 // knobs.get("patch_size", 8)
    with torch.inference_mode():
        *blocks, last = peer.transformer.resblocks
        tokens = peer._embeds(pixels)
        for block in blocks:
            tokens = block(tokens)
        for attention in ATTENTIONS:
            theirs = peer.ln_post(last_block(last, tokens, attention, (side, side)))[:, 1:] @ peer.proj
            ours = model.dense_image_features(pixels, attention=attention)
            assert ours.shape == (2, side, side, 40)
            assert (ours - F.normalize(theirs, dim=-1).unflatten(1, (side, side))).abs().max() <= TOLERANCE
            unscaled = model.dense_image_features(pixels, attention=attention, normalize=False)
            assert torch.allclose(unscaled.flatten(1, 2), theirs, atol=1e-4)
        assert torch.equal(model.dense_image_features(pixels), model.dense_image_features(pixels, attention="query"))


def test_a_resnet_gives_the_value_path_of_its_attention_pool(tmp_path):
    peer = openai_model(
        vision_layers=(1, 1, 1, 1), vision_width=8, image_resolution=64, vision_patch_size=None
    ).float()
    torch.save(openai_state(peer), tmp_path / "model.pt")
    model, _ = load(tmp_path / "model.pt", dtype="float32")
    tower, pixels = peer.visual, torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = []
        tower.attnpool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        tower(pixels)
        pool, tokens = tower.attnpool, maps[0].flatten(2).transpose(1, 2)
        theirs = pool.c_proj(pool.v_proj(tokens + pool.positional_embedding[1:]))
        ours = model.dense_image_features(pixels)
        assert (ours - F.normalize(theirs, dim=-1).unflatten(1, (2, 2))).abs().max() <= TOLERANCE
        # Sizes that the strides round in their own ways.
        assert model.dense_image_features(torch.randn(1, 3, 95, 64)).shape[1:3] == (3, 2)


def test_siglip_gives_what_its_head_makes_of_each_token_alone(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**small, "vocab_size": 40}, vision_config={**small, "image_size": 32, "patch_size": 8}
    )
    peer = scatter_weights(SiglipModel(config))
    peer.save_pretrained(tmp_path)
    model = HFCLIPModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = peer.vision_model(pixels).last_hidden_state
        theirs = torch.stack([peer.vision_model.head(tokens[:, [place]]) for place in range(16)], dim=1)
        ours = model.dense_image_features(pixels)
    assert (ours - F.normalize(theirs, dim=-1).unflatten(1, (4, 4))).abs().max() <= TOLERANCE


def test_naflex_gives_grids_of_one_shape_at_a_time():
    vision = {"tower": "naflex", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "patch_size": 8, "num_patches": 16, "image_size": 32, "pooling": "attention"}
    vision |= {"has_class_token": False, "projection_type": "none"}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = scatter_weights(HFCLIPModel(HFCLIPConfig(text_config=text, vision_config=vision, projection_dim=32)))
    patches, shapes = torch.randn(2, 16, 192), torch.tensor([[2, 5], [2, 5]])
    mask = torch.zeros(2, 16, dtype=torch.long)
    mask[:, :10] = 1
    with torch.inference_mode():
        ours = model.dense_image_features(patches, pixel_attention_mask=mask, spatial_shapes=shapes)
        tower = model.vision_model
        tokens = tower(patches, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
        one = F.normalize(tower.head(tokens[:, [7]]), dim=-1)
    assert ours.shape == (2, 2, 5, 32) and (ours[:, 1, 2] - one).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match="2 x 5 and 3 x 4 patches.*one shape at a time"):
        model.dense_image_features(patches, spatial_shapes=[(2, 5), (3, 4)])


def test_of_any_other_tower_each_position_is_a_window_around_it():
    vision = {"tower": "convnet", "image_size": 32, "stem_width": 8, "stage_widths": [32], "stage_depths": [1]}
    vision |= {"hidden_size": 32, "hidden_act": "gelu", "pool_grid": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = scatter_weights(HFCLIPModel(HFCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    pixels = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        ours = model.dense_image_features(pixels)
        # Position (3, 5) is the 4 pixels from (12, 20): its window begins 6 pixels before.
        window = F.interpolate(pixels[:, :, 6:22, 14:30], size=(32, 32), mode="bilinear", align_corners=False)
        assert ours.shape == (2, 8, 12, 16)
        assert (ours[:, 3, 5] - model.encode_image(window)).abs().max() <= TOLERANCE
    assert not model.has_dense_features


def test_images_of_other_sizes_have_more_positions_and_a_wrong_word_is_refused():
    model, _ = tiny_clip(["a cat"])
    assert model.has_dense_features
    with torch.inference_mode():
        assert model.dense_image_features(torch.randn(1, 3, 40, 64)).shape == (1, 5, 8, 16)
        halves = model.half().dense_image_features(torch.randn(1, 3, 32, 32), attention="neighbors")
    assert halves.dtype == torch.float16
    with pytest.raises(ValueError, match="`attention='clear'` is not known: use one of 'plain', 'query-key'"):
        model.dense_image_features(torch.randn(1, 3, 32, 32), attention="clear")
    with pytest.raises(TypeError, match="normalise"):
        model.dense_image_features(torch.randn(1, 3, 32, 32), normalise=False)


def test_training_reaches_the_tower_and_dropped_patches_are_refused():
    model, _ = tiny_clip(["a cat"])
    model.train().dense_image_features(torch.randn(1, 3, 32, 32)).sum().backward()
    assert model.vision_model.encoder.layers[-1].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.vision_model.config.patch_dropout = 0.5
    with pytest.raises(ValueError, match=r"`patch_dropout=0.5` drops patches.*model.eval\(\)"):
        model.dense_image_features(torch.randn(1, 3, 32, 32))
