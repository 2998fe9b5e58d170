"""How a model is used, in snippets that were run: what follows each is what it printed."""

import contextlib
import io
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .markdown import fenced, one_line

logger = logging.getLogger(__name__)

HEADING = "## How to use"
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
print("templates:", *classifier.templates)
for row in classifier.predict([{image}], top_k=3)[0]:
    print(f"{{row['score']:.3f}} {{row['label']}}")
"""
EMBEDDINGS = """\
from hf_clip import embed_images, embed_texts, load

model, processor = load({repo})
image_embeds = embed_images(model, processor, [{image}])
text_embeds = embed_texts(model, processor, {labels})
similarities = image_embeds @ text_embeds.T
print([round(similarity, 3) for similarity in similarities[0].tolist()])
"""
TRANSFORMERS_EMBEDDINGS = """\
import torch
from PIL import Image
from transformers import {model_class}, {processor_class}

model = {model_class}.from_pretrained({repo}{trust})
processor = {processor_class}.from_pretrained({repo}{trust})
inputs = processor(text={labels}, images=Image.open({image}), padding={padding}, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
similarities = output.image_embeds @ output.text_embeds.T
print([round(similarity, 3) for similarity in similarities[0].tolist()])
"""
CAPTIONS = """\
from hf_clip import caption_images, load

model, processor = load({repo})
print(caption_images(model, processor, [{image}], num_beams=4))
"""
CAPTION_PIPELINE = """\
from transformers import pipeline

write = pipeline("image-text-to-text", model={repo}{trust})
print(write({image}, text="")[0]["generated_text"])
"""


class SnippetError(RuntimeError):
    """A snippet of the card that does not run."""


@dataclass(frozen=True)
class Example:
    """The image in the model's folder that the snippets classify, and the labels that they offer."""

    labels: tuple[str, ...] = ("a red circle", "a blue square", "a dog")
    template: str = "{}"
    image: str = IMAGE

    @property
    def widget(self) -> list[dict[str, str]] | None:
        """The example of the Hub's widget, which separates labels by commas; None where a label has one."""
        if any("," in label for label in self.labels):
            return None
        return [{"src": self.image, "candidate_labels": ", ".join(self.labels), "example_title": self.labels[0]}]

    @classmethod
    def of_card(cls, text: str, widget: Any) -> "Example":
        """The example that a card was written with, by its front matter and its snippets."""
        shown = widget[0] if isinstance(widget, list) and widget and isinstance(widget[0], dict) else {}
        labels, image = shown.get("candidate_labels"), shown.get("src")
        # The widgets of others show images anywhere on the web.
        if not isinstance(labels, str) or not isinstance(image, str) or not re.fullmatch(r"[\w -]+\.png", image):
            return cls()
        template = re.search(r'hypothesis_template=("(?:[^"\\]|\\.)*")', text)
        return cls(
            tuple(label.strip() for label in labels.split(",")), json.loads(template[1]) if template else "{}", image
        )


def draw_example(path: Path) -> None:
    """Draws a red circle on white: the example of models that have no image of their own."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    ImageDraw.Draw(image).ellipse([IMAGE_SIZE // 4] * 2 + [IMAGE_SIZE * 3 // 4] * 2, fill="red")
    image.save(path)


def usage(folder: Path, repo: str, example: Example, *, runs: bool = True, may_lack_output: bool = False) -> str:
    """The section of a card that shows a saved model's use, under the name `repo`.

    Args:
        folder: of the model and of the example's image.
        repo: the model's name in the snippets.
        example: what they show.
        runs: whether they are run.
        may_lack_output: whether a snippet that does not run is shown without its output, with a warning in the log.

    Returns:
        Markdown.

    Raises:
        SnippetError: if a snippet does not run, unless `may_lack_output`.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    # A name without an owner is no repository's: the model was not pushed yet.
    is_pushed = "/" in repo
    where = f"`{repo}` is this repository on the Hub, or a folder with its files, `{example.image}` among them."
    if not is_pushed:
        where = (
            f"`{repo}` is the folder of this model: run the snippets in the folder that it lies in, or write its path."
        )
    if example.labels == Example.labels:
        where += " The image was drawn for this card: what is printed of it says nothing about the model's data."
    parts = [HEADING, where]
    shown = _snippets(kind, repo, example.image if is_pushed else f"{repo}/{example.image}", example)
    run = _snippets(kind, str(folder.absolute()), str((folder / example.image).absolute()), example)
    for (said, code), (_, code_here) in zip(shown, run, strict=True):
        parts += [said, fenced(code, "python")]
        if not runs:
            continue
        try:
            parts += ["It prints", fenced(_printed(code_here), "text")]
        except SnippetError as error:
            if not may_lack_output:
                raise
            logger.warning(f"A snippet of the card is written without its output: {one_line(error)}")
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
    alone = f"With transformers alone, on `{example.image}`:"
    if is_ours:
        alone = (
            "With transformers alone. The model's code is in this repository, and `trust_remote_code=True` runs it; "
            "where `hf_clip` is installed, `import hf_clip` replaces that."
        )
    writes = [
        ("It writes captions, with `hf_clip`:", CAPTIONS.format(**names)),
        ("and with transformers alone, `text` being how they begin:", CAPTION_PIPELINE.format(**names)),
    ]
    return [
        (
            "With `hf_clip`, which embeds the labels once for any number of images:",
            CLASSIFIER.format(**names),
        ),
        ("Unit embeddings of images and texts, and their cosine similarities:", EMBEDDINGS.format(**names)),
        (alone, PIPELINE.format(**names)),
        ("The embeddings, with transformers alone:", TRANSFORMERS_EMBEDDINGS.format(**names)),
        *(writes if kind == "hf_clip_coca" else []),
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
        raise SnippetError(f"a snippet of the card does not run ({error}). It is:\n{code}") from error
    return printed.getvalue()
