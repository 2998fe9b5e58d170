"""Recipes of a tiny CoCa on squares."""

from tests.helpers.squares import recipe


def coca_recipe(data, **changes) -> dict:
    """`recipe`, of a model that writes captions."""
    content = recipe(data, objective="contrastive + caption")
    content["model"]["config"]["text_config"] |= {"tower": "class_token", "pooling": "class"}
    content["model"]["config"] |= {
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_intermediate_size": 64,
    }
    return content | changes
