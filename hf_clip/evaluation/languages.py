"""Retrieval in each language of captions that a table gives, over the same images."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch

from hf_clip.evaluation.features import Encoding, ImageFeatures, encode_images, encode_texts
from hf_clip.evaluation.labeled_images import describe_skipped, iterate_rows
from hf_clip.evaluation.retrieval import RetrievalItem, candidates_of, rank_positives, split_lines
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.sources import Source
from hf_clip.sources.joined_captions import JoinedCaptions

WAYS = ("image_to_text", "text_to_image")


@dataclass
class LanguagesResult:
    """What `evaluate_languages` found.

    Attributes:
        title: what was evaluated.
        languages: for each language what `retrieval_metrics` gives, by its name.
        reference: the language with which the others are compared.
        skipped: how many images were skipped, by reason.
        seconds: time that the evaluation took, decoding included.
    """

    title: str
    languages: dict[str, dict[str, dict]]
    reference: str
    skipped: Counter[str]
    seconds: float

    def summary(self, way: str) -> dict[str, float | None]:
        """R@1 of the reference, the median of the others, and its ratio to the reference's (None where that is 0).

        Args:
            way: "image_to_text" or "text_to_image".
        """
        recalls = {language: found[way]["recall_at_1"] for language, found in self.languages.items()}
        reference = recalls.pop(self.reference)
        middle = median(recalls.values())
        return {"median": middle, "reference": reference, "ratio": middle / reference if reference else None}

    def ranked(self) -> list[str]:
        """The languages, that of the highest mean R@1 of both ways first."""
        return sorted(self.languages, key=lambda language: (-self._mean(language), language))

    def _mean(self, language: str) -> float:
        return sum(self.languages[language][way]["recall_at_1"] for way in WAYS) / len(WAYS)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "task": "languages",
            "title": self.title,
            "reference": self.reference,
            **{way: self.summary(way) for way in WAYS},
            "languages": {language: self.languages[language] for language in self.ranked()},
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        width = max(len(self.title), *(len(language) for language in self.languages), 20) + 2
        lines = [f"{self.title:{width}}{'image to text':>23}{'text to image':>23}"]
        lines.append(
            f"{'':{width}}{'R@1':>9}{'R@5':>7}{'R@10':>7}{'R@1':>9}{'R@5':>7}{'R@10':>7}{'images':>8}{'texts':>7}"
        )
        for language in self.ranked():
            found = self.languages[language]
            cells = "".join(
                f"{found[way][f'recall_at_{k}']:{9 if k == 1 else 7}.3f}" for way in WAYS for k in (1, 5, 10)
            )
            counts = found["image_to_text"]
            lines.append(f"{language:{width}}{cells}{counts['queries']:8d}{counts['candidates']:7d}")
        for way in WAYS:
            found = self.summary(way)
            ratio = "-" if found["ratio"] is None else f"{found['ratio']:.2f}"
            lines.append(
                f"{way.replace('_', ' ')}: the median R@1 of the other {len(self.languages) - 1} is "
                f"{found['median']:.3f}, {ratio} of that of {self.reference} ({found['reference']:.3f})"
            )
        return "\n".join([*lines, *describe_skipped(self.skipped)])


def evaluate_languages(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    reference: str = "en",
    title: str | None = None,
    encoding: Encoding | None = None,
) -> LanguagesResult:
    """Retrieval among images and their captions of one language, for each; images are encoded once.

    Every caption of the language is a candidate, and an image's are all those of its concept. All languages
    have the same images but for those without a caption, and fewer candidates where concepts share a name.

    Args:
        source: opened with `join`, a table with a `language_column`. Captions of its own take no part.
        reference: the language with which the others are compared.
        title: what the result is called.
        encoding: how embeddings are made.

    Raises:
        ValueError: the source's captions say no language, or there is no other one than the reference, or not that; no
            image with a caption could be read, or all of a language's captions are one.
    """
    started, encoding = time.perf_counter(), encoding or Encoding()
    title = title or f"languages of {source.name}"
    joined = source.joined
    if joined is None or not joined.has_languages:
        raise ValueError(f"`source`: {source.name!r} has captions without languages: open it with a table to `join`.")
    features, kept, skipped = _encode(model, processor, source, joined, encoding)
    languages = sorted({language for items in kept for language in items})
    if reference not in languages:
        raise ValueError(
            f"`reference={reference}`: the images have captions in {', '.join(languages) or 'no language'}: name one."
        )
    if len(languages) < 2:
        raise ValueError(
            f"`reference={reference}`: the images have captions in {reference} alone: nothing to compare."
        )
    found = {}
    for language in languages:
        rows = [row for row, items in enumerate(kept) if language in items]
        names, positives = candidates_of([kept[row][language] for row in rows], has_one_name=False)
        texts_MD = encode_texts(
            model, processor, names, batch_size=encoding.text_batch_size, processes=encoding.processes
        )
        ranks = rank_positives(features.embeddings[torch.tensor(rows)], texts_MD, positives)
        counts = len(names), len(rows)
        found[language] = {way: each.metrics(count) for way, each, count in zip(WAYS, ranks, counts, strict=True)}
    return LanguagesResult(title, found, reference, skipped, time.perf_counter() - started)


def _encode(
    model: DualEncoder, processor: Processor, source: Source, joined: JoinedCaptions, encoding: Encoding
) -> tuple[ImageFeatures, list[dict[str, RetrievalItem]], Counter[str]]:
    """The embeddings of the images, the captions of each by language, and what was skipped."""
    named: list[dict[str, RetrievalItem]] = []
    unnamed: Counter[str] = Counter()

    def make_images() -> Iterator:
        for row, (sample, content) in enumerate(iterate_rows(replace(source, caption_columns=()))):
            captions = joined.by_language(content[joined.key_column])
            if captions:
                items = {name: RetrievalItem(row, sample.concept, split_lines(own)) for name, own in captions.items()}
                named.append(items)
                yield sample.image
            else:
                unnamed["no_caption"] += 1

    features = encode_images(model, processor, make_images(), total=source.num_rows, encoding=encoding)
    return features, [named[position] for position in features.kept], features.skipped + unnamed
