"""A page for a CLIP model: it names what an image shows, and finds images by texts and by images.

It needs transformers and Gradio alone. The model's own code comes with it from the Hub.
"""

import gradio as gr
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

# Put here when the Space is made.
MODEL_ID = "owner/name"
TEMPLATES: list[str] = ["a photo of a {}."]
MOST_IMAGES = 200


def load(model_id: str):
    model = AutoModelForZeroShotImageClassification.from_pretrained(model_id, trust_remote_code=True)
    return model.eval(), AutoProcessor.from_pretrained(model_id, trust_remote_code=True)


class Shown:
    """A model as the page asks it. Embeddings are of unit length, (N, D)."""

    def __init__(self, model, processor):
        self.model, self.processor = model, processor

    def embed(self, images: list | None = None, texts: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of images and of texts; models of every kind take both at once."""
        blank = [Image.new("RGB", (64, 64))] if not images else images
        given = self.processor(text=texts or ["a"], images=blank, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            made = self.model(**given)
        return F.normalize(made.image_embeds, dim=-1), F.normalize(made.text_embeds, dim=-1)

    def classify(self, image, labels: str, templates: str) -> dict[str, float]:
        names = list(dict.fromkeys(name.strip() for name in labels.replace("\n", ",").split(",") if name.strip()))
        around = [line.strip() for line in templates.splitlines() if line.strip()] or TEMPLATES
        if image is None or not names:
            raise gr.Error("Give an image, and some labels.")
        if any("{}" not in template for template in around):
            raise gr.Error("A template needs {} where the label belongs.")
        texts = [template.replace("{}", name) for name in names for template in around]
        image_1D, text_ND = self.embed([image.convert("RGB")], texts)
        classes_CD = F.normalize(text_ND.reshape(len(names), len(around), -1).mean(1), dim=-1)
        logits_C = self.model.logit_scale.exp().reshape(()) * (image_1D @ classes_CD.T)[0]
        bias = getattr(self.model, "logit_bias", None)
        scores_C = logits_C.softmax(-1) if bias is None else (logits_C + bias.reshape(())).sigmoid()
        return dict(zip(names, scores_C.tolist(), strict=True))

    def take(self, gallery: list | None) -> torch.Tensor | None:
        """Embeddings of the visitor's images, kept until others come."""
        images = [image.convert("RGB") for image, _ in (gallery or [])[:MOST_IMAGES]]
        parts = [self.embed(images[at : at + 16])[0] for at in range(0, len(images), 16)]
        return torch.cat(parts) if parts else None

    def search(self, gallery: list | None, taken: torch.Tensor | None, text: str, image) -> list:
        if taken is None or not gallery or not (text.strip() or image is not None):
            raise gr.Error("Give some images to search in, and a text or an image to search for.")
        if image is not None:
            asked_1D, _ = self.embed([image.convert("RGB")])
        else:
            _, asked_1D = self.embed(texts=[text.strip()])
        scores_N = (taken @ asked_1D.T)[:, 0]
        order = scores_N.argsort(descending=True).tolist()
        return [(gallery[at][0], f"{scores_N[at]:.3f}") for at in order]


def build(shown: Shown) -> gr.Blocks:
    with gr.Blocks(title=MODEL_ID, analytics_enabled=False) as page:
        gr.Markdown(f"# {MODEL_ID}\nA dual encoder of images and texts, in the embedding space of CLIP.")
        with gr.Tab("Classify"), gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"])
                labels = gr.Textbox(label="Labels, with commas", value="cat, dog, bird")
                templates = gr.Textbox(label="Templates, one a line", value="\n".join(TEMPLATES), lines=2)
                classify = gr.Button("Classify", variant="primary")
            scores = gr.Label(label="Scores", num_top_classes=20)
            classify.click(shown.classify, [image, labels, templates], scores)
        with gr.Tab("Search"):
            images = gr.Gallery(label="Images to search in", type="pil", columns=6, height=300, interactive=True)
            with gr.Row():
                text = gr.Textbox(label="What they show", scale=2)
                like = gr.Image(type="pil", label="or an image like them", height=160, sources=["upload", "clipboard"])
            search = gr.Button("Search", variant="primary")
            found = gr.Gallery(label="Best first", columns=6, interactive=False)
            taken = gr.State()
            images.change(shown.take, images, taken)
            for event in (search.click, text.submit):
                event(shown.search, [images, taken, text, like], found)
    return page


if __name__ == "__main__":
    build(Shown(*load(MODEL_ID))).launch()
