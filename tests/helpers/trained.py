"""A small model that has learned something: a ViT that tells the colors of `tests.helpers.squares` apart."""

import torch

from hf_clip import HFCLIPModel, HFCLIPProcessor
from hf_clip.model.image_decoding_hf_clip import decode_image
from tests.helpers.squares import COLOURS, CORNERS, square
from tests.helpers.toys import tiny_clip

TEXTS = [f"a {color} square" for color in COLOURS]


def trained_clip(steps: int = 50) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """`tiny_clip` of one layer, after so many steps; in a second or two it is sure of every color."""
    model, processor = tiny_clip(TEXTS, num_hidden_layers=1)
    batches = [
        processor(
            text=TEXTS,
            images=[decode_image(square(f"{text} at the {corner}", seed=0)) for text in TEXTS],
            return_tensors="pt",
        )
        for corner in CORNERS
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model(**batches[step % len(batches)], return_loss=True).loss.backward()
        optimizer.step()
    return model.eval(), processor
