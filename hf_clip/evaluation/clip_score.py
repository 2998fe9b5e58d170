"""CLIPScore (Hessel et al. 2021): how well images fit the texts that they were made from, or captions their images."""

# Shapes: N pairs, D width of the shared space.

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_clip.evaluation.features import Encoding, encode_images, encode_texts
from hf_clip.evaluation.labeled_images import describe_skipped
from hf_clip.model.embedding_hf_clip import embed_images, embed_texts
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.sources import Source, iterate_samples

# Pairs that a table shows at each end.
SHOWN = 3
TEXT_WIDTH = 60


def clip_score(
    model: DualEncoder,
    processor: Processor,
    images: Any,
    texts: str | Iterable[str],
    *,
    batch_size: int = 32,
    text_batch_size: int = 256,
) -> torch.Tensor:
    """How well each image fits its text: 100 times the cosine of their embeddings.

        scores = clip_score(model, processor, images, prompts)         # one for each pair
        best = images[clip_score(model, processor, images, "a red cat").argmax()]

    Their mean, 0 where that is negative, is what torchmetrics' `CLIPScore` gives.

    Args:
        images: N images, of any kind that `embed_images` takes.
        texts: N texts, or one for all images.
        batch_size, text_batch_size: images and texts encoded at once.

    Returns:
        (N,) float32 scores on the CPU.

    Raises:
        ValueError: for another number of texts than of images; what `embed_images` and `embed_texts` raise.
    """
    image_ND = embed_images(model, processor, images, batch_size=batch_size)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if len(texts) not in (1, len(image_ND)):
        raise ValueError(f"`texts` has {len(texts)} texts for {len(image_ND)} images: pass one for each, or one.")
    return _scores(image_ND, embed_texts(model, processor, texts, batch_size=text_batch_size))


def _scores(image_ND: torch.Tensor, text_ND: torch.Tensor) -> torch.Tensor:
    return 100 * (image_ND * text_ND).sum(dim=-1)


@dataclass
class ClipScoreResult:
    """What was found for the pairs of a data set.

    Attributes:
        title: what was scored.
        score: the mean of all scores, at least 0.
        scores: of each pair.
        rows: position of each pair in the data.
        texts: of each pair.
        ranks: where each image stands among those of its text, from 1: the images of one prompt in order.
        skipped: how many images were skipped, by reason.
        seconds: time that it took, decoding included.
    """

    title: str
    score: float
    scores: list[float] = field(repr=False)
    rows: list[int] = field(repr=False)
    texts: list[str] = field(repr=False)
    ranks: list[int] = field(repr=False)
    skipped: Counter[str]
    seconds: float

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        pairs = zip(self.rows, self.texts, self.scores, self.ranks, strict=True)
        return {
            "task": "clip-score",
            "title": self.title,
            "score": self.score,
            "pairs": [{"row": row, "text": text, "score": score, "rank": rank} for row, text, score, rank in pairs],
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The mean, and the pairs that fit best and worst, as plain text for a terminal."""
        order = sorted(range(len(self.scores)), key=lambda place: -self.scores[place])
        count = min(SHOWN, len(order) // 2)
        lines = [self.title, f"CLIP score {self.score:.3f} over {len(order)} pairs of {len(set(self.texts))} texts"]
        for place in (*order[:count], *order[len(order) - count :]):
            text = " ".join(self.texts[place].split())
            short = text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."
            lines.append(f"{self.scores[place]:8.3f}  row {self.rows[place]}: {short}")
        return "\n".join([*lines, *describe_skipped(self.skipped)])


def evaluate_clip_score(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    title: str | None = None,
    batch_size: int = 64,
    text_batch_size: int = 256,
    encoding: Encoding | None = None,
) -> ClipScoreResult:
    """CLIPScore of a source's images with their first captions, and the order of the images of each text.

    Args:
        source: images with captions, such as generated images and their prompts.
        title: what the result is called.
        batch_size, text_batch_size: images and texts encoded at once.
        encoding: more of how embeddings are made, in place of the batch sizes.

    Raises:
        SourceError: if there are no captions.
        ValueError: if no image with a caption could be read.
    """
    started = time.perf_counter()
    encoding = encoding or Encoding(batch_size, text_batch_size)
    source = source.require_captions()
    title = title or f"CLIP score on {source.name}"
    captioned: list[tuple[int, str]] = []
    skipped: Counter[str] = Counter()

    def make_images() -> Iterator:
        for row, sample in enumerate(iterate_samples(source)):
            if sample.captions and sample.captions[0].strip():
                captioned.append((row, sample.captions[0]))
                yield sample.image
            else:
                skipped["no_caption"] += 1
        if skipped and not captioned:
            raise ValueError(f"{title}: all {skipped.total()} captions are empty: check the caption column.")

    features = encode_images(model, processor, make_images(), total=source.num_rows, encoding=encoding)
    rows, texts = zip(*(captioned[position] for position in features.kept), strict=True)
    distinct = list(dict.fromkeys(texts))
    embeds = encode_texts(
        model, processor, distinct, batch_size=encoding.text_batch_size, processes=encoding.processes
    )
    place = {text: index for index, text in enumerate(distinct)}
    scores = _scores(features.embeddings, embeds[[place[text] for text in texts]])
    return ClipScoreResult(
        title=title,
        score=max(scores.mean().item(), 0.0),
        scores=scores.tolist(),
        rows=list(rows),
        texts=list(texts),
        ranks=_ranks(texts, scores.tolist()),
        skipped=features.skipped + skipped,
        seconds=time.perf_counter() - started,
    )


def _ranks(texts: Sequence[str], scores: Sequence[float]) -> list[int]:
    """The place of each score among those of its text, from 1; of equal scores the first comes first."""
    found: Counter[str] = Counter()
    ranks = [0] * len(scores)
    for place in sorted(range(len(scores)), key=lambda place: -scores[place]):
        found[texts[place]] += 1
        ranks[place] = found[texts[place]]
    return ranks
