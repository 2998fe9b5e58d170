"""Zero-shot classification as in the paper (section 3.1): a classifier whose weights are encoded label texts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

# Shapes: B pictures of a batch, C classes, D width of the shared space.

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch.nn import functional as F


@contextmanager
def evaluation_mode(model: torch.nn.Module):
    """Run the body without dropout and gradients, and leave every module in the mode it was found in."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        # One by one: model.train() would also switch on modules that the caller had frozen in evaluation
        # mode.
        for module in trained:
            module.training = True


def batched(items: Iterable, batch_size: int) -> Iterator[list]:
    """Lists of `batch_size` items in order, the last one shorter. Raises ValueError if it is below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1: set it to 1 or more.")
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def unit_text_vectors(model, processor, texts: Sequence[str]) -> torch.Tensor:
    """(len(texts), D) float32 unit vectors on the model's device, from one forward pass."""
    encoding = processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
    mask = encoding.get("attention_mask")
    vectors_BD = model.encode_text(
        encoding["input_ids"].to(model.device),
        None if mask is None else mask.to(model.device),
        normalize=False,
    )
    # In half precision a unit vector is only unit to three digits: normalise after widening.
    return F.normalize(vectors_BD.float(), dim=-1)


def unit_image_vectors(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, D) float32 unit vectors on the model's device, from one forward pass over (B, 3, H, W)."""
    pixels = pixel_values.to(model.device, model.dtype)
    return F.normalize(model.encode_image(pixels, normalize=False).float(), dim=-1)


class ZeroShotClassifier:
    """Classifies pictures by labels given as words.

    A class's vector is the mean of the normalised vectors of its templates, normalised again (section 3.1.4
    of the paper): an ensemble in the space of vectors, as cheap to use as a single prompt. The vectors are
    computed once, when the classifier is made, `batch_size` texts at a time, so that memory does not grow
    with labels x templates.

    Args:
        model: a dual encoder with `encode_image`, `encode_text` and `logit_scale`.
        processor: its processor.
        labels: C labels. Two classes may share a name, as in published lists of ImageNet's; then they share a
            score.
        templates: texts in which `{}` stands for the label. By default a label is its own text. For models
            trained on sentences of the web the paper found "a photo of a {}." to be a good first choice.
        batch_size: texts encoded at once.

    Attributes:
        labels: list of C strings.
        templates: tuple of strings.
        class_vectors_CD: (C, D) float32 unit vectors on the model's device.

    Raises:
        TypeError: if `labels` or `templates` is one string instead of several.
        ValueError: if there are no labels or no templates, or a template lacks its `{}`.
    """

    def __init__(
        self,
        model,
        processor,
        labels: Iterable[str],
        templates: Iterable[str] = ("{}",),
        *,
        batch_size: int = 256,
    ):
        self.model = model
        self.processor = processor
        self.labels = _checked_texts("labels", labels)
        self.templates = tuple(_checked_texts("templates", templates))
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no '{{}}': put '{{}}' where the label belongs.")
        self.class_vectors_CD = self._encode_classes(batch_size)

    def _encode_classes(self, batch_size: int) -> torch.Tensor:
        prompts = (
            # Not str.format: labels and templates may hold braces of their own.
            (index, template.replace("{}", label))
            for index, label in enumerate(self.labels)
            for template in self.templates
        )
        sums_CD = None
        with evaluation_mode(self.model):
            for batch in batched(prompts, batch_size):
                class_ids, texts = zip(*batch, strict=True)
                vectors_BD = unit_text_vectors(self.model, self.processor, texts)
                if sums_CD is None:
                    sums_CD = vectors_BD.new_zeros(len(self.labels), vectors_BD.shape[1])
                sums_CD.index_add_(0, torch.tensor(class_ids, device=sums_CD.device), vectors_BD)
            return F.normalize(sums_CD, dim=-1)

    def logits(self, image_vectors_BD: torch.Tensor) -> torch.Tensor:
        """(B, C) float32 logits of (B, D) unit vectors: cosines times the model's logit scale."""
        with torch.inference_mode():
            scale = self.model.logit_scale.float().exp().reshape(())
            return scale * image_vectors_BD.to(self.class_vectors_CD) @ self.class_vectors_CD.T

    def predict(self, images: Iterable, batch_size: int = 32, top_k: int | None = None) -> list[list[dict]]:
        """For each picture its labels with their scores, best first.

        Args:
            images: pictures of any kind that the processor takes, in a list or any other iterable.
            batch_size: pictures encoded at once.
            top_k: how many labels to give for each picture; None gives all of them.

        Returns:
            One list per picture of dicts with `label` and `score`; scores are the softmax over all labels, so
            they sum to 1 if `top_k` is None.

        Raises:
            TypeError: if `images` is one picture instead of several.
            ValueError: if `top_k` or `batch_size` is below 1; whatever the processor raises for a broken
                picture.
        """
        # A single path would be taken apart into its letters, a single picture fail obscurely.
        if isinstance(images, str | bytes | dict) or not isinstance(images, Iterable):
            raise TypeError(f"images is one {type(images).__name__}: pass a list of pictures, [picture] for one.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} is below 1: set it to 1 or more, or to None for all labels.")
        kept = len(self.labels) if top_k is None else min(top_k, len(self.labels))
        predictions = []
        with evaluation_mode(self.model):
            for batch in batched(images, batch_size):
                pixel_values = self.processor(images=batch, return_tensors="pt")["pixel_values"]
                logits_BC = self.logits(unit_image_vectors(self.model, pixel_values))
                scores_BK, classes_BK = logits_BC.softmax(dim=-1).topk(kept, dim=-1)
                for scores, classes in zip(scores_BK.tolist(), classes_BK.tolist(), strict=True):
                    pairs = zip(classes, scores, strict=True)
                    predictions.append([{"label": self.labels[index], "score": score} for index, score in pairs])
        return predictions


def _checked_texts(name: str, texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"{name}={texts!r} is one string: pass a list of strings.")
    checked = list(texts)
    if not checked:
        raise ValueError(f"{name} is empty: pass at least one.")
    for text in checked:
        if not isinstance(text, str):
            raise TypeError(f"{name} holds {text!r}, which is {type(text).__name__}: pass strings.")
    return checked
