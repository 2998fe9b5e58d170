"""The engine of the rules: every tensor claimed once, moved right in both directions, and errors that name names."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_clip import HFCLIPConfig, HFCLIPModel, HFCLIPSiglipConfig, HFCLIPSiglipModel
from hf_clip.conversion import ConversionError
from hf_clip.conversion.open_clip import open_clip_rules
from hf_clip.conversion.openai import openai_rules
from hf_clip.conversion.rules import Rule, export_tensors, import_tensors, renamed_shapes

RULES = [
    Rule("blocks.*.in", ("layers.*.q", "layers.*.k", "layers.*.v")),
    Rule("proj", "projection.weight", transpose=True),
    Rule("pos", "positions", has_leading_axis=True),
    Rule(("query", "keys_values"), "joined", parts=(1, 2)),
    Rule("scale", "scale", is_scalar=True),
    Rule("trunk.**", "backbone.**"),
    Rule("trunk.ids", why="counted"),
]


def theirs() -> dict[str, torch.Tensor]:
    shapes = {
        "blocks.0.in": (6, 4),
        "blocks.11.in": (6,),
        "proj": (4, 3),
        "pos": (1, 5, 4),
        "query": (2, 4),
        "keys_values": (4, 4),
        "scale": (),
        "trunk.a.0.weight": (3,),
    }
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return tensors | {"trunk.ids": torch.arange(3)}


EXPECTED = {
    "layers.0.q": (2, 4), "layers.0.k": (2, 4), "layers.0.v": (2, 4),
    "layers.11.q": (2,), "layers.11.k": (2,), "layers.11.v": (2,),
    "projection.weight": (3, 4), "positions": (5, 4), "joined": (6, 4), "scale": (1,), "backbone.a.0.weight": (3,),
}  # fmt: skip


def test_there_and_back():
    given_tensors, before = theirs(), theirs()
    before = {name: tensor.clone() for name, tensor in given_tensors.items()}
    ours = import_tensors(given_tensors, RULES, EXPECTED)
    assert not given_tensors, "what was moved must not be held twice"
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == EXPECTED
    assert torch.equal(ours["layers.0.k"], before["blocks.0.in"][2:4])
    assert torch.equal(ours["projection.weight"], before["proj"].T)
    assert torch.equal(ours["joined"], torch.cat([before["query"], before["keys_values"]]))
    back = export_tensors(ours, RULES)
    del before["trunk.ids"]
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_splits_are_views_and_nothing_else_is_copied():
    tensors = theirs()
    storages = {name: tensor.untyped_storage().data_ptr() for name, tensor in tensors.items()}
    ours = import_tensors(tensors, RULES, EXPECTED)
    for name, source in [("layers.0.q", "blocks.0.in"), ("layers.0.v", "blocks.0.in"), ("positions", "pos")]:
        assert ours[name].untyped_storage().data_ptr() == storages[source]


def test_dtype_is_kept_or_cast_where_it_floats():
    tensors = {"scale": torch.ones((), dtype=torch.float16), "trunk.count": torch.tensor(3), "proj": torch.ones(2, 2)}
    expected = {"scale": (), "backbone.count": (), "projection.weight": (2, 2)}
    kept = import_tensors(dict(tensors), RULES, expected)
    assert [kept[name].dtype for name in expected] == [torch.float16, torch.int64, torch.float32]
    cast = import_tensors(dict(tensors), RULES, expected, torch.bfloat16)
    assert [cast[name].dtype for name in expected] == [torch.bfloat16, torch.int64, torch.bfloat16]


def failing(tensors: dict, expected: dict, rules=RULES) -> str:
    before = dict(tensors)
    with pytest.raises(ConversionError) as caught:
        import_tensors(tensors, rules, expected)
    assert tensors.keys() == before.keys(), "nothing may move before all is checked"
    return str(caught.value)


def test_leftovers_on_both_sides_are_counted_named_and_matched():
    tensors = {f"projj{n:02}": torch.ones(1) for n in range(12)}
    message = failing(tensors, {"projection.weight": (1,), "scale": ()})
    assert "the model has no counterpart of 12 tensors of the file: projj00, projj01" in message
    assert "projj05" not in message.partition("nearest")[0] and "projj04 and 7 more" in message
    assert "the file lacks 2 tensors of the model: projection.weight, scale" in message
    layers = {"blocks.0.in": torch.ones(3, 1), "blocks.1.in": torch.ones(3, 1)}
    wanted = {f"layers.0.{name}": (1, 1) for name in "qkv"}
    message = failing(layers, wanted)
    assert "the model has no counterpart of 3 tensors of the file: layers.1.k, layers.1.q, layers.1.v" in message
    near = failing({"logit_scal": torch.ones(())}, {"logit_scale": ()}, [Rule("logit_scale", "logit_scale")])
    assert "(nearest to the first: logit_scale)" in near


def test_shapes_are_compared_before_anything_moves():
    message = failing({"proj": torch.ones(4, 3), "scale": torch.ones(())}, {"projection.weight": (4, 3), "scale": ()})
    assert "shapes differ in 1 tensor: projection.weight (3, 4) instead of (4, 3)." in message


def test_what_cannot_be_split_or_joined_says_so():
    assert "divide into 3 parts" in failing({"blocks.0.in": torch.ones(4, 2)}, {})
    assert "first axis should be of length 1" in failing({"pos": torch.ones(2, 3, 4)}, {"positions": (3, 4)})
    assert "keys_values" in failing({"query": torch.ones(2, 2)}, {"joined": (6, 2)})
    with pytest.raises(ConversionError, match="this format cannot hold 1 tensor of the model: other"):
        export_tensors({"other": torch.ones(1)}, RULES)


def test_two_claims_are_refused():
    rules = [Rule("a.*", "b.*"), Rule("*.c", "d.*")]
    with pytest.raises(ConversionError, match="a.c is claimed by 2 rules"):
        renamed_shapes({"a.c": (1,)}, rules)
    with pytest.raises(ConversionError, match="mixes two formats"):
        renamed_shapes({"a": (1,), "b": (1,)}, [Rule("a", "c"), Rule("b", "c")])
    with pytest.raises(ValueError, match="say why"):
        Rule("a")


@given(st.lists(st.from_regex(r"[a-z0-9_]{1,5}", fullmatch=True), min_size=1, max_size=5))
def test_stars_keep_what_they_stand_for(pieces):
    name = "trunk.x." + ".".join(pieces)
    assert renamed_shapes({name: (2,)}, RULES) == {name.replace("trunk", "backbone", 1): (2,)}
    if len(pieces) == 1:
        assert f"layers.{pieces[0]}.q" in renamed_shapes({f"blocks.{pieces[0]}.in": (3,)}, RULES)


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
RESNET = {
    "tower": "resnet", "stem_width": 8, "stage_depths": [1, 2, 1, 1], "hidden_size": 256, "num_attention_heads": 4,
    "image_size": 64, "projection_bias": True,
}  # fmt: skip
SIGLIP = {
    "pooling": "attention", "has_class_token": False, "has_pre_norm": False, "patch_bias": True,
    "norm_before_pooling": True, "projection_type": "none",
}  # fmt: skip
MODELS = {
    "ViT": ({}, TINY | {"image_size": 16, "patch_size": 8}, HFCLIPConfig),
    "ResNet": ({}, RESNET, HFCLIPConfig),
    "layer scale": (
        {"layer_scale_init_value": 0.1},
        TINY | {"image_size": 16, "patch_size": 8, "layer_scale_init_value": 0.1},
        HFCLIPConfig,
    ),
    "SigLIP": (
        {"projection_type": "none", "projection_size": 32, "pooling": "last", "is_causal": False},
        TINY | SIGLIP | {"image_size": 16, "patch_size": 8},
        HFCLIPSiglipConfig,
    ),
}


@pytest.mark.parametrize("table", [openai_rules, open_clip_rules])
@pytest.mark.parametrize("kind", MODELS)
def test_tables_are_whole_and_bijective(table, kind):
    """Every tensor of a model has one place in the format, and comes back from there bit for bit."""
    text, vision, config_class = MODELS[kind]
    config = config_class(text_config=TINY | text | {"vocab_size": 64}, vision_config=vision, projection_dim=32)
    model = (HFCLIPSiglipModel if config_class is HFCLIPSiglipConfig else HFCLIPModel)(config)
    state = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    if table is openai_rules and kind in ("SigLIP", "layer scale"):
        with pytest.raises(ConversionError, match="this format cannot hold"):
            export_tensors(state, table(config))
        return
    names = export_tensors(state, table(config))
    again = import_tensors(names, table(config), {name: tensor.shape for name, tensor in state.items()})
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
