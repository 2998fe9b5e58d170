"""How a model is used, in snippets that were run: what stands below each is what it printed."""

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from .markdown import fenced

HEADING = "## Use"
IMAGE = "example.png"
IMAGE_SIZE = 224

PIPELINE = """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model={repo}{trust})
for row in classify({image}, candidate_labels={labels}, hypothesis_template={template}):
    print(f"{{row['score']:.3f}} {{row['label']}}")
"""
CLASSIFIER = """\
from hf_clip import ZeroShotClassifier, load

model, processor = load({repo})
classifier = ZeroShotClassifier(model, processor, {labels}, templates=[{template}])
for row in classifier.predict([{image}], top_k=3)[0]:
    print(f"{{row['score']:.3f}} {{row['label']}}")
"""
EMBEDDINGS = """\
import torch
from PIL import Image
from transformers import {model_class}, {processor_class}

model = {model_class}.from_pretrained({repo}{trust})
processor = {processor_class}.from_pretrained({repo}{trust})
inputs = processor(text={labels}, images=Image.open({image}), padding={padding}, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
cosines = output.image_embeds @ output.text_embeds.T
print([round(cosine, 3) for cosine in cosines[0].tolist()])
"""


@dataclass(frozen=True)
class Example:
    """What the snippets say of an image in the model's folder."""

    labels: tuple[str, ...] = ("a red circle", "a blue square", "a dog")
    template: str = "{}"
    image: str = IMAGE

    @property
    def widget(self) -> list[dict[str, str]] | None:
        """The example of the Hub's widget, which takes labels with commas between; None where labels hold some."""
        if any("," in label for label in self.labels):
            return None
        return [{"src": self.image, "candidate_labels": ", ".join(self.labels), "example_title": self.labels[0]}]

    @classmethod
    def of_card(cls, text: str, widget: list[dict[str, str]] | None) -> "Example":
        """The example that a card was written with, by its front matter and its snippets."""
        if not widget:
            return cls()
        labels = tuple(label.strip() for label in widget[0]["candidate_labels"].split(","))
        template = re.search(r'hypothesis_template=("(?:[^"\\]|\\.)*")', text)
        return cls(labels, json.loads(template[1]) if template else "{}", widget[0]["src"])


def draw_example(path: Path) -> None:
    """A red circle on white: the image of models that come with none."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    ImageDraw.Draw(image).ellipse([IMAGE_SIZE // 4] * 2 + [IMAGE_SIZE * 3 // 4] * 2, fill="red")
    image.save(path)


def usage(folder: Path, repo: str, example: Example, *, runs: bool = True) -> str:
    """The section of a card that shows a saved model's use, under the name `repo`.

    Raises:
        RuntimeError: if a snippet does not run.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    where = f"`{repo}` is this repository on the Hub, or a folder of its files. `{example.image}` lies in it."
    parts = [HEADING, where]
    shown = _snippets(kind, repo, example.image, example)
    run = _snippets(kind, str(folder.absolute()), str((folder / example.image).absolute()), example)
    for (said, code), (_, code_here) in zip(shown, run, strict=True):
        parts += [said, fenced(code, "python")]
        if runs:
            parts += ["It prints", fenced(_printed(code_here), "text")]
    return "\n\n".join(parts)


def _snippets(kind: str, repo: str, image: str, example: Example) -> list[tuple[str, str]]:
    """(what it shows, the code) of each snippet for a model of this `model_type`."""
    is_ours = kind.startswith("hf_clip")
    names = {
        "repo": _literal(repo),
        "image": _literal(image),
        "labels": _literal(list(example.labels)),
        "template": _literal(example.template),
        "trust": ", trust_remote_code=True" if is_ours else "",
        "padding": '"max_length"' if kind == "siglip" else "True",
        "model_class": {"clip": "CLIPModel", "siglip": "SiglipModel"}.get(kind, "AutoModel"),
        "processor_class": {"clip": "CLIPProcessor", "siglip": "SiglipProcessor"}.get(kind, "AutoProcessor"),
    }
    alone = f"With transformers alone, on `{example.image}` of this repository."
    if is_ours:
        alone += (
            " The model's code comes with it, and `trust_remote_code=True` runs that code; where `hf_clip` is "
            "installed, `import hf_clip` does in its place."
        )
    return [
        (alone, PIPELINE.format(**names)),
        ("With `hf_clip`, which encodes the labels once for any number of images:", CLASSIFIER.format(**names)),
        ("Unit embeddings of images and texts, and their cosines:", EMBEDDINGS.format(**names)),
    ]


def _literal(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _printed(code: str) -> str:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<snippet of the card>", "exec"), {"__name__": "__main__"})
    # Whatever it is: the card must not show what does not work.
    except Exception as error:
        raise RuntimeError(f"a snippet of the card does not run ({error}). It is:\n{code}") from error
    return printed.getvalue()
