"""Captions that a model writes, beside those that people wrote: BLEU, ROUGE-L, CIDEr-D, and how many are the same."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_clip.evaluation.cider import cider_d
from hf_clip.evaluation.labeled_images import describe_skipped, iterate_rows
from hf_clip.evaluation.retrieval import split_lines
from hf_clip.model.captioning_hf_clip import stream_captions
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.sources import Source


def tokens_of(caption: str) -> list[str]:
    """Words and numbers in lower case: what ROUGE-L, CIDEr-D and equality look at."""
    return re.findall(r"[^\W_]+", caption.lower())


class _Tokenizer:
    """`tokens_of`, as rouge-score calls a tokenizer: its own drops all letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return tokens_of(text)


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How near captions are to the references of their images.

    Args:
        captions: one for each image.
        references: for each image what people wrote, at least one.

    Returns:
        `bleu_4` (sacrebleu's corpus BLEU in lower case, as a fraction), `rouge_l` (rouge-score's F1 with the best
        reference, mean), `cider_d` (mean; about 0 to 2 for good captions, at most 10), `exact` (the fraction that is a
        reference but for case and punctuation).

    Raises:
        ValueError: for no caption, other numbers of both, and an image without a reference.
        ImportError: without sacrebleu and rouge-score.
    """
    if not captions or len(captions) != len(references):
        raise ValueError(f"`captions` has {len(captions)} and `references` {len(references)}: pass one of each a row.")
    if missing := [index for index, texts in enumerate(references) if not texts]:
        raise ValueError(f"`references[{missing[0]}]` is empty: pass at least one for each image.")
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    most = max(map(len, references))
    # A stream for each reference; None where an image has fewer.
    streams: Any = [[texts[n] if n < len(texts) else None for texts in references] for n in range(most)]
    bleu = BLEU(lowercase=True).corpus_score(list(captions), streams)
    rouge = RougeScorer(["rougeL"], tokenizer=_Tokenizer())
    rouge_l = [
        rouge.score_multi(list(texts), caption)["rougeL"].fmeasure
        for caption, texts in zip(captions, references, strict=True)
    ]
    tokens = [tokens_of(caption) for caption in captions]
    tokens_of_references = [[tokens_of(text) for text in texts] for texts in references]
    return {
        "bleu_4": bleu.score / 100,
        "rouge_l": sum(rouge_l) / len(rouge_l),
        "cider_d": sum(cider_d(tokens, tokens_of_references)) / len(tokens),
        "exact": sum(own in others for own, others in zip(tokens, tokens_of_references, strict=True)) / len(tokens),
    }


@dataclass
class CaptionResult:
    """What an evaluation of captions found.

    Attributes:
        title: what was evaluated.
        metrics: as `caption_metrics` gives them.
        skipped: how many images were skipped, by reason.
        seconds: time that the evaluation took, decoding included.
        captions: what the model wrote.
        references: what people wrote, for each image.
        generate: the arguments of `generate`.
    """

    title: str
    metrics: dict[str, float]
    skipped: Counter[str]
    seconds: float
    captions: list[str] = field(repr=False)
    references: list[list[str]] = field(repr=False)
    generate: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "task": "captions",
            "title": self.title,
            **self.metrics,
            "images": len(self.captions),
            "generate": self.generate,
            "examples": [
                {"caption": caption, "references": texts}
                for caption, texts in list(zip(self.captions, self.references, strict=True))[:20]
            ],
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        head = f"{'BLEU-4':>8}{'ROUGE-L':>9}{'CIDEr-D':>9}{'exact':>7}{'images':>8}"
        found = self.metrics
        row = f"{found['bleu_4']:8.3f}{found['rouge_l']:9.3f}{found['cider_d']:9.3f}{found['exact']:7.3f}"
        lines = [self.title, head, f"{row}{len(self.captions):8d}"]
        for caption, texts in list(zip(self.captions, self.references, strict=True))[:5]:
            lines.append(f"  {caption!r} for {texts[0]!r}")
        return "\n".join([*lines, *describe_skipped(self.skipped)])


def evaluate_captions(
    model: Any,
    processor: Any,
    source: Source,
    *,
    title: str | None = None,
    batch_size: int = 16,
    show_progress: bool | None = None,
    **generate: Any,
) -> CaptionResult:
    """Has a model caption a source's images, and compares with all captions that the source has for each.

    Args:
        model, processor: of a CoCa.
        source: with captions; lines of one field are captions of their own.
        title: what the result is called.
        batch_size: images captioned at once.
        show_progress: whether to draw a bar; by default where standard error is a terminal.
        generate: arguments of transformers' `generate`, such as `num_beams=4`.

    Raises:
        SourceError: if there are no captions. ValueError: if no image with a caption could be read; what
        `stream_captions` raises. ImportError: without sacrebleu and rouge-score.
    """
    started, source = time.perf_counter(), source.require_captions()
    named: list[list[str]] = []
    skipped: Counter[str] = Counter()

    def images() -> Iterator:
        for sample, _ in iterate_rows(source, ()):
            if texts := split_lines(sample.captions):
                named.append(texts)
                yield sample.image
            else:
                skipped["no_caption"] += 1

    options = {"return_errors": True, "show_progress": show_progress, **generate}
    captions, references = [], []
    for index, caption in enumerate(stream_captions(model, processor, images(), batch_size, **options)):
        if isinstance(caption, ImageDecodeError):
            skipped[str(caption.reason)] += 1
        else:
            captions.append(caption)
            references.append(named[index])
    title = title or f"captions on {source.name}"
    if not captions:
        raise ValueError(f"{title}: no image with a caption could be read: check the image and caption columns.")
    metrics = caption_metrics(captions, references)
    seconds = time.perf_counter() - started
    return CaptionResult(title, metrics, skipped, seconds, captions, references, generate)
