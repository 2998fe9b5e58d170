"""Yes, no, or "look at it": a classifier with thresholds whose error was measured on labeled images."""

# Shapes: B images of a batch, C concepts, D width of the shared space.

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from .embedding_hf_clip import image_batches
from .image_decoding_hf_clip import ImageDecodeError
from .typing_hf_clip import DualEncoder, Processor
from .zero_shot_hf_clip import ZeroShotClassifier

YES, NO, LOOK = "yes", "no", "look at it"


class Decisions:
    """Says of images whether they show concepts, each by its own thresholds.

        decisions = Decisions.load("decisions.safetensors", model, processor)
        decisions.decide(["a.jpg"])     # [[{"label": "cat", "answer": "yes", "score": 0.31}, ...]]

    A score is the cosine of the image and the concept. Thresholds come from labeled images alone
    (`hf_clip.evaluate_zero_shot` with an `operating_point`): without them nobody knows what a cosine means. What was
    measured holds for images like those; for others it has to be measured again.

    Args:
        classifier: its labels are the concepts.
        yes_from: C cosines from which a concept is answered "yes".
        no_below: C cosines below which it is answered "no". What lies between is to be looked at.
        report: what was measured, ready for JSON.

    Raises:
        ValueError: if there are not as many thresholds as labels, or a "no" reaches above its "yes".
    """

    def __init__(
        self,
        classifier: ZeroShotClassifier,
        yes_from: Sequence[float],
        no_below: Sequence[float],
        report: Mapping[str, Any] | None = None,
    ):
        count = len(classifier.labels)
        if len(yes_from) != count or len(no_below) != count:
            raise ValueError(
                f"{len(yes_from)} `yes_from`, {len(no_below)} `no_below` and {count} labels: give one of each a label."
            )
        # Not `>`: of NaN nothing is true, and every image would be one to look at.
        if not all(no <= yes for yes, no in zip(yes_from, no_below, strict=True)):
            raise ValueError(
                "a `no_below` is above its `yes_from`, so that an image would be answered both, or one is no number."
            )
        self.classifier, self.report = classifier, dict(report or {})
        self.yes_from, self.no_below = list(map(float, yes_from)), list(map(float, no_below))

    def answers(self, image_embeds: torch.Tensor) -> list[list[dict[str, Any]]]:
        """For each of (B, D) unit embeddings, its concepts with `label`, `answer` and `score`, in their order."""
        classes_CD = self.classifier.class_embeddings
        with torch.inference_mode():
            scores_BC = (image_embeds.to(classes_CD) @ classes_CD.T).cpu()
        return [
            [
                {"label": label, "answer": YES if score >= yes else NO if score < no else LOOK, "score": score}
                for label, score, yes, no in zip(
                    self.classifier.labels, scores_C, self.yes_from, self.no_below, strict=True
                )
            ]
            for scores_C in scores_BC.tolist()
        ]

    def decide(self, images, batch_size: int = 32, **options) -> list[list[dict[str, Any]]]:
        """For each image its concepts with `label`, `answer` ("yes", "no" or "look at it") and `score`.

        Arguments and errors are those of `ZeroShotClassifier.predict`.
        """
        # With `return_errors` there are errors among them.
        return cast(list[list[dict[str, Any]]], list(self.stream(images, batch_size, **options)))

    def stream(self, images, batch_size: int = 32, **options) -> Iterator[list[dict[str, Any]] | ImageDecodeError]:
        """`decide`, one image after the other."""
        classifier = self.classifier
        batches = image_batches(
            classifier.model, classifier.processor, images, batch_size, dtype=classifier.dtype, **options
        )

        def answers():
            for batch, embeddings_BD in batches:
                found = iter(() if embeddings_BD is None else self.answers(embeddings_BD))
                for item in batch:
                    yield item if isinstance(item, ImageDecodeError) else next(found)

        return answers()

    def save(self, file: str | Path) -> Path:
        """Writes embeddings, words, thresholds and what was measured to a safetensors file, as the classifier does."""
        report = torch.frombuffer(bytearray(json.dumps(self.report).encode()), dtype=torch.uint8)
        thresholds = torch.tensor([self.yes_from, self.no_below], dtype=torch.float64)
        return self.classifier.save(file, also={"thresholds": thresholds, "report": report})

    @classmethod
    def load(cls, file: str | Path, model: DualEncoder, processor: Processor) -> "Decisions":
        """The decisions of a file that `save` wrote, without encoding a label.

        Raises:
            ValueError: for a file of another kind, and one that belongs to another state of the text tower.
        """
        classifier = ZeroShotClassifier.load(file, model, processor)
        with safe_open(file, framework="pt") as content:
            if "thresholds" not in content.keys():  # noqa: SIM118
                raise ValueError(f"{file} holds a classifier without thresholds: measure them on labeled images.")
            thresholds, report = content.get_tensor("thresholds"), content.get_tensor("report")
        if thresholds.shape != (2, len(classifier.labels)):
            raise ValueError(f"{file} has not two thresholds for each of its labels: write it again.")
        yes_from, no_below = thresholds.tolist()
        return cls(classifier, yes_from, no_below, json.loads(report.numpy().tobytes()))
