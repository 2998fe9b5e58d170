"""Search in a folder of images by a text, in plain Python: python examples/search_folder.py photos/ "two dogs" """

import sys
from pathlib import Path

import numpy as np

from hf_clip import embed_images, embed_texts, load


def main(folder: str, query: str, source: str = "openai/clip-vit-base-patch32") -> list[str]:
    model, processor = load(source)
    images = sorted(str(file) for file in Path(folder).rglob("*") if file.suffix in (".jpg", ".jpeg", ".png", ".webp"))
    # Embeddings are kept beside the images: those that came since are encoded, and no other again.
    kept = Path(folder) / "embeddings.npz"
    known = dict(zip(*np.load(kept).values(), strict=True)) if kept.exists() else {}
    if new := [image for image in images if image not in known]:
        known.update(zip(new, embed_images(model, processor, new).numpy(), strict=True))
        np.savez(kept, images=list(known), embeds=np.stack(list(known.values())))
    # Embeddings have unit length, so that a product is the cosine similarity.
    scores = np.stack([known[image] for image in images]) @ embed_texts(model, processor, [query]).numpy()[0]
    best = np.argsort(-scores)[:5]
    for index in best:
        print(f"{scores[index]:.4f}  {images[index]}")
    return [images[index] for index in best]


if __name__ == "__main__":
    main(*sys.argv[1:4])
