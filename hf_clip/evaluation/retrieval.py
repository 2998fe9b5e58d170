"""Retrieval: which text belongs to an image, and which image to a text."""

# Shapes: N images, M texts, P pairs that belong together, D width of the shared space, I and J a tile's
# sides.

import re
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from hf_clip.evaluation.features import Encoding, encode_images, encode_texts
from hf_clip.evaluation.labeled_images import describe_skipped, iterate_rows, value_of
from hf_clip.model.loss_hf_clip import matrix_product
from hf_clip.model.typing_hf_clip import DualEncoder, Processor
from hf_clip.sources import Source

CUTOFFS = (1, 5, 10)

# Cosines closer than this are one: equal embeddings differ by rounding with their place in a matrix product.
TIE_TOLERANCE = 1e-6

# What float32 leaves of an embedding's length once it was normalized.
UNIT_TOLERANCE = 5e-7
ROWS_AT_ONCE = 16384


@dataclass
class Ranks:
    """Where the true candidates stand, for the queries of one direction.

    Attributes:
        ranks: rank of the best placed true candidate of each query, from 1; 0 where a query has none.
        margins: its cosine minus that of the best false candidate; positive where the true one comes first.
        positives: number of true candidates of each query.
    """

    ranks: torch.Tensor
    margins: torch.Tensor
    positives: torch.Tensor

    def metrics(self, candidate_count: int) -> dict[str, float | int]:
        """Recalls, median and mean reciprocal rank, and their counts, over the queries with a true candidate."""
        has_positive = self.positives > 0
        ranks = self.ranks[has_positive].numpy()
        if not len(ranks):
            raise ValueError("no query has a true candidate: `positives` is empty.")
        return {
            **{f"recall_at_{k}": float((ranks <= k).mean()) for k in CUTOFFS},
            "median_rank": float(np.median(ranks)),
            "mean_reciprocal_rank": float((1 / ranks).mean()),
            "chance_at_1": float(self.positives[has_positive].double().mean()) / candidate_count,
            "queries": len(ranks),
            "candidates": candidate_count,
        }


def retrieval_metrics(image_embeds, text_embeds, positives: Sequence[int | Iterable[int]]) -> dict[str, dict]:
    """Recall at 1, 5 and 10, median and mean reciprocal rank by cosine, from images to texts and the other way.

    A query counts as found at k if any of its true candidates is among the first k. Ties are resolved against
    the model: a false candidate with the cosine of the true one (within 1e-6) is placed before it, so a model
    that gives one embedding to everything scores 0 and not 1. True candidates of one query never stand in each
    other's way.

    Args:
        image_embeds: (N, D) tensor or array; it need not be normalized.
        text_embeds: (M, D) likewise.
        positives: for each image the index of its text, or the indices of its texts.

    Returns:
        `image_to_text` and `text_to_image`, each with `recall_at_1`, `recall_at_5`, `recall_at_10`,
        `median_rank`, `mean_reciprocal_rank`, `chance_at_1` (what a random order scores), `queries` and `candidates`.
        Queries without a true candidate are skipped; all candidates stay.

    Raises:
        ValueError: if shapes or indices do not fit, nothing belongs together, or an embedding holds NaN or
            infinity.
    """
    image_ranks, text_ranks = rank_positives(image_embeds, text_embeds, positives)
    return {
        "image_to_text": image_ranks.metrics(len(text_ranks.ranks)),
        "text_to_image": text_ranks.metrics(len(image_ranks.ranks)),
    }


def rank_positives(
    image_embeds, text_embeds, positives: Sequence[int | Iterable[int]], *, tile_size: int = 2048
) -> tuple[Ranks, Ranks]:
    """Ranks of the images' texts and of the texts' images, as `retrieval_metrics` counts them.

    Both directions come from one sweep over tiles of `tile_size` x `tile_size` cosines; the whole N x M is
    never held.
    """
    image_ND = _unit_embeddings("image_embeds", image_embeds)
    text_MD = _unit_embeddings("text_embeds", text_embeds)
    if image_ND.shape[1] != text_MD.shape[1]:
        raise ValueError(f"images have {image_ND.shape[1]} dimensions, texts {text_MD.shape[1]}: use one model.")
    images_P, texts_P = _pairs(positives, len(image_ND), len(text_MD))
    cosines_P = torch.cat(
        [
            (image_ND[images] * text_MD[texts]).sum(-1)
            for images, texts in zip(images_P.split(ROWS_AT_ONCE), texts_P.split(ROWS_AT_ONCE), strict=True)
        ]
    )
    sides = _Side(len(image_ND), images_P, cosines_P), _Side(len(text_MD), texts_P, cosines_P)
    for row in range(0, len(image_ND), tile_size):
        rows = slice(row, row + tile_size)
        # Pairs are sorted by image.
        start, end = torch.searchsorted(images_P, torch.tensor([row, row + tile_size])).tolist()
        row_images_P, row_texts_P = images_P[start:end] - row, texts_P[start:end]
        for column in range(0, len(text_MD), tile_size):
            columns = slice(column, column + tile_size)
            cosines_IJ = matrix_product(image_ND[rows], text_MD[columns].T)
            inside = (row_texts_P >= column) & (row_texts_P < column + tile_size)
            cosines_IJ[row_images_P[inside], row_texts_P[inside] - column] = -torch.inf
            sides[0].see_negatives(rows, cosines_IJ)
            sides[1].see_negatives(columns, cosines_IJ.T)
    return sides[0].ranks(), sides[1].ranks()


class _Side:
    """What one direction knows while the tiles go by."""

    def __init__(self, query_count: int, queries_P: torch.Tensor, cosines_P: torch.Tensor):
        self.positives = torch.bincount(queries_P, minlength=query_count)
        worst_N = cosines_P.new_full((query_count,), -torch.inf)
        self.best_positive = worst_N.scatter_reduce(0, queries_P, cosines_P, "amax")
        self.best_negative = worst_N.clone()
        self.negatives_ahead = torch.zeros(query_count, dtype=torch.long)

    def see_negatives(self, queries: slice, cosines: torch.Tensor) -> None:
        """Count the tile's candidates before the best true one; true candidates hold minus infinity."""
        is_ahead_IJ = cosines >= self.best_positive[queries, None] - TIE_TOLERANCE
        # A sum of booleans takes ten times as long as one of floats, which are exact for these counts.
        self.negatives_ahead[queries] += is_ahead_IJ.to(cosines.dtype).sum(1).long()
        self.best_negative[queries] = torch.maximum(self.best_negative[queries], cosines.amax(1))

    def ranks(self) -> Ranks:
        ranks_N = torch.where(self.positives > 0, self.negatives_ahead + 1, 0)
        return Ranks(ranks_N, self.best_positive - self.best_negative, self.positives)


def _unit_embeddings(name: str, embeddings) -> torch.Tensor:
    """Float unit embeddings, the given ones where they are such: half a million of them are a gigabyte."""
    embeddings = torch.as_tensor(embeddings).detach().cpu()
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"{name} has the shape {tuple(embeddings.shape)}: pass one row for each item, at least one.")
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norms = torch.cat([rows.norm(dim=-1) for rows in embeddings.split(ROWS_AT_ONCE)])
    # A comparison with NaN is false: a model that diverged would seem to have nothing before its true
    # candidates.
    if broken := int((~torch.isfinite(norms)).sum()):
        raise ValueError(
            f"{name} holds NaN or infinity in {broken} of {len(embeddings)} rows: the model has "
            "diverged or overflows in its dtype. Evaluate an earlier checkpoint, or in float32."
        )
    return embeddings if (norms - 1).abs().max() < UNIT_TOLERANCE else F.normalize(embeddings, dim=-1)


def _pairs(positives: Sequence[int | Iterable[int]], image_count: int, text_count: int):
    """Images and texts that belong together, each pair once, sorted by image: two long tensors (P,)."""
    if len(positives) != image_count:
        raise ValueError(f"positives has {len(positives)} entries for {image_count} images: pass one for each.")
    pairs = [
        (image, int(text))
        for image, texts in enumerate(positives)
        for text in (set(map(int, texts)) if np.iterable(texts) else {texts})
    ]
    if not pairs:
        raise ValueError("no image has a text that belongs to it: `positives` is empty.")
    images_P, texts_P = torch.tensor(pairs).T.contiguous()
    if texts_P.min() < 0 or texts_P.max() >= text_count:
        wrong = pairs[int(((texts_P < 0) | (texts_P >= text_count)).nonzero()[0])]
        raise ValueError(f"positives[{wrong[0]}] is text {wrong[1]}, but texts go from 0 to {text_count - 1}.")
    return images_P, texts_P


@dataclass
class RetrievalResult:
    """What a retrieval evaluation found.

    Attributes:
        title: what was evaluated.
        metrics: as `retrieval_metrics` gives them.
        skipped: how many images were skipped, by reason.
        seconds: time that the evaluation took, decoding included.
        names: the M candidates.
        targets: for each of the N images the index of its name, the first where it has several.
        rows: for each of the N images its position in the data that was given, skipped ones counted.
        ranks: `Ranks` of the images' names.
        image_embeds, text_embeds: (N, D) and (M, D) float32 unit embeddings on the CPU.
        groups: for each column that was asked for, the metrics among the images of each value and their texts alone.
        captions: which captions of an image were candidates, "first" or "all".
        caption_counts: the fewest and the most captions of an image.
    """

    title: str
    metrics: dict[str, dict]
    skipped: Counter[str]
    seconds: float
    names: list[str] = field(repr=False)
    targets: list[int] = field(repr=False)
    rows: list[int] = field(repr=False)
    ranks: Ranks = field(repr=False)
    image_embeds: torch.Tensor = field(repr=False)
    text_embeds: torch.Tensor = field(repr=False)
    groups: dict[str, dict[str, dict]] = field(default_factory=dict, repr=False)
    captions: str = "first"
    caption_counts: tuple[int, int] = (1, 1)

    def to_dict(self) -> dict:
        """Numbers and counts, ready for JSON."""
        return {
            "task": "retrieval",
            "title": self.title,
            **self.metrics,
            "captions": self.captions,
            "captions_per_image": list(self.caption_counts),
            "by": self.groups,
            "skipped": dict(self.skipped),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The numbers as plain text for a terminal."""
        lines = [self.title, *_metric_lines("", {"": self.metrics})]
        lines.append(f"chance: R@1 {self.metrics['image_to_text']['chance_at_1']:.4f} image to text")
        lines.append(self._describe_captions())
        for column, values in self.groups.items():
            lines += ["", *_metric_lines(column, values)]
        lines += describe_skipped(self.skipped)
        return "\n".join(lines)

    def _describe_captions(self) -> str:
        fewest, most = self.caption_counts
        if self.captions == "first":
            return "captions: the first of each image"
        return f"captions: all of each image, {fewest if fewest == most else f'{fewest} to {most}'}"

    def best_and_worst(self, count: int) -> tuple[list[int], list[int]]:
        """The `count` images whose names came first by the widest margin, and those placed last, by index.

        With fewer than 2 x `count` images both lists are shorter, so that no image is in both.
        """
        ranks, margins = self.ranks.ranks.tolist(), self.ranks.margins.tolist()
        order = sorted(range(len(ranks)), key=lambda index: (ranks[index], -margins[index]))
        count = min(count, len(order) // 2)
        return order[:count], order[::-1][:count]

    def top_names(self, index: int, count: int) -> list[tuple[int, float]]:
        """The `count` best candidates of image `index`, best first: (index of the name, cosine)."""
        cosines_M = self.text_embeds @ self.image_embeds[index]
        scores, names = cosines_M.topk(min(count, len(self.names)))
        return list(zip(names.tolist(), scores.tolist(), strict=True))


def _metric_lines(column: str, metrics_by_value: dict[str, dict]) -> list[str]:
    width = max(len(column), *map(len, metrics_by_value)) + 2 if column else 0
    titles = f"{'R@1':>7}{'R@5':>7}{'R@10':>7}{'median':>8}{'MRR':>7}{'queries':>9}{'candidates':>12}"
    lines = [f"{column:{width}}{'':14}{titles}"]
    for value, metrics in metrics_by_value.items():
        for direction, label in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
            found = metrics[direction]
            recalls = "".join(f"{found[f'recall_at_{k}']:7.3f}" for k in CUTOFFS)
            ranks = f"{found['median_rank']:8g}{found['mean_reciprocal_rank']:7.3f}"
            lines.append(f"{value:{width}}{label:14}{recalls}{ranks}{found['queries']:9d}{found['candidates']:12d}")
    return lines


@dataclass(frozen=True)
class RetrievalItem:
    """An image's captions, what it shows, and its value in each column that results are wanted by."""

    row: int
    concept: Hashable | None
    captions: list[str]
    values: tuple[str | None, ...] = ()


def evaluate_pairs(
    model: DualEncoder,
    processor: Processor,
    pairs: Iterable[tuple[object, Hashable | None, str | None]],
    *,
    title: str = "retrieval",
    batch_size: int = 64,
    text_batch_size: int = 256,
    total: int | None = None,
) -> RetrievalResult:
    """Retrieval between images and names, one name for each concept as a candidate.

    Candidates are the names of the concepts whose images could be read: a concept's name is that of its
    first image. Concepts with the same name (compared without case and spacing) share one candidate, since
    no model could tell them apart.

    Args:
        pairs: (image, concept, name) of each image. An image is of any kind that `decode_image` reads;
            with images decoded beforehand (PIL, or the uint8 arrays of the image processor's
            `resize_and_crop`) the same list can be evaluated again and again. A concept of None means that
            the name is the concept.
        title: what the result is called.
        batch_size, text_batch_size: images and texts encoded at once.
        total: number of pairs, for the progress bar.

    Raises:
        ValueError: if no image with a name could be read, or all have one name: then nothing is to be found.
    """
    items = (
        (image, RetrievalItem(row, concept, [name.strip()] if name and name.strip() else []))
        for row, (image, concept, name) in enumerate(pairs)
    )
    encoding = Encoding(batch_size, text_batch_size)
    return _evaluate_items(model, processor, items, title=title, encoding=encoding, total=total)


def evaluate_retrieval(
    model: DualEncoder,
    processor: Processor,
    source: Source,
    *,
    title: str | None = None,
    batch_size: int = 64,
    text_batch_size: int = 256,
    captions: Literal["first", "all"] = "all",
    by: Sequence[str] = (),
    encoding: Encoding | None = None,
) -> RetrievalResult:
    """Retrieval over a source; images are decoded as they come and not kept.

    The concept column, where there is one, tells which images show the same.

    Args:
        captions: "all": every caption is a candidate, and an image's are all those of its concept (five an image in
            Flickr30k and COCO); lines of one field are captions of their own. "first": the first caption of the first
            caption column is an image's name, and the only candidate of its concept, as `evaluate_pairs` has it.
        by: columns, for each of whose values the same is measured among its images and texts alone, such as the
            language; opened as the source's `keyword_columns`.
        title: what the result is called.
        batch_size, text_batch_size: images and texts encoded at once.
        encoding: more of how embeddings are made, in place of the batch sizes.

    Raises:
        SourceError: if there are no captions, or the source was opened without a column of `by`.
        ValueError: if `captions` is neither; if no image with a caption could be read, or all have one.
    """
    if captions not in ("first", "all"):
        raise ValueError(f"`captions={captions!r}` is unknown: use 'first' or 'all'.")
    source = source.require_captions()
    items = (
        (
            sample.image,
            RetrievalItem(row, sample.concept, found, tuple(value_of(source, content, column) for column in by)),
        )
        for row, (sample, content) in enumerate(iterate_rows(source, by))
        for found in [split_lines(sample.captions) if captions == "all" else sample.captions[:1]]
    )
    return _evaluate_items(
        model,
        processor,
        items,
        title=title or f"retrieval on {source.name}",
        encoding=encoding or Encoding(batch_size, text_batch_size),
        total=source.num_rows,
        has_one_name=captions == "first",
        by=by,
    )


def split_lines(captions: Iterable[str]) -> list[str]:
    """The captions, those of one field on lines of their own."""
    # `splitlines` would also cut where no line ends, such as at U+0085, which latin-1 makes of the "..." of Windows.
    return [line.strip() for caption in captions for line in re.split(r"\r\n|\r|\n", caption) if line.strip()]


def _evaluate_items(
    model: DualEncoder,
    processor: Processor,
    items: Iterable[tuple[object, RetrievalItem]],
    *,
    title: str,
    encoding: Encoding,
    total: int | None,
    has_one_name: bool = True,
    by: Sequence[str] = (),
) -> RetrievalResult:
    started = time.perf_counter()
    named, unnamed = [], Counter()

    def make_images() -> Iterator:
        for image, item in items:
            if item.captions:
                named.append(item)
                yield image
            else:
                unnamed["no_caption"] += 1
        if unnamed and not named:
            raise ValueError(f"{title}: all {unnamed.total()} captions are empty: check the caption column.")

    features = encode_images(model, processor, make_images(), total=total, encoding=encoding)
    kept = [named[position] for position in features.kept]
    names, positives = candidates_of(kept, has_one_name)
    counts = [len(item.captions) for item in kept]
    if len(names) < 2:
        raise ValueError(
            f"{title}: all {len(kept)} images have one name, {names[0]!r}, which any model finds: check the caption "
            "and concept columns, and what `where` keeps."
        )
    text_embeds_MD = encode_texts(
        model, processor, names, batch_size=encoding.text_batch_size, processes=encoding.processes
    )
    image_ranks, text_ranks = rank_positives(features.embeddings, text_embeds_MD, positives)
    embeddings = features.embeddings, text_embeds_MD
    return RetrievalResult(
        title=title,
        metrics={
            "image_to_text": image_ranks.metrics(len(names)),
            "text_to_image": text_ranks.metrics(len(kept)),
        },
        skipped=features.skipped + unnamed,
        seconds=time.perf_counter() - started,
        names=names,
        targets=[texts[0] for texts in positives],
        rows=[item.row for item in kept],
        ranks=image_ranks,
        image_embeds=features.embeddings,
        text_embeds=text_embeds_MD,
        groups={
            column: _metrics_by_value(embeddings, positives, [item.values[position] for item in kept])
            for position, column in enumerate(by)
        },
        captions="first" if has_one_name else "all",
        caption_counts=(min(counts), max(counts)),
    )


def candidates_of(items: Sequence[RetrievalItem], has_one_name: bool) -> tuple[list[str], list[list[int]]]:
    """Candidates without duplicates, and for each image the indices of its own."""
    texts_of_concept: dict[Hashable, list[str]] = {}
    for item in items:
        if item.concept is not None and not (has_one_name and item.concept in texts_of_concept):
            texts_of_concept.setdefault(item.concept, []).extend(item.captions)
    index_of_name: dict[str, int] = {}
    names, positives = [], []
    for item in items:
        texts = item.captions if item.concept is None else texts_of_concept[item.concept]
        indices = []
        for text in texts:
            index = index_of_name.setdefault(" ".join(text.split()).casefold(), len(names))
            if index == len(names):
                names.append(text)
            indices.append(index)
        positives.append(list(dict.fromkeys(indices)))
    return names, positives


def _metrics_by_value(embeddings, positives: list[list[int]], values: list[str | None]) -> dict[str, dict]:
    """Metrics within each value: its images among the texts that belong to them, and the other way."""
    image_embeds_ND, text_embeds_MD = embeddings
    found = {}
    for value in sorted({value for value in values if value is not None}):
        images = [image for image, own in enumerate(values) if own == value]
        texts = sorted({text for image in images for text in positives[image]})
        index_of = {text: index for index, text in enumerate(texts)}
        found[value] = retrieval_metrics(
            image_embeds_ND[images],
            text_embeds_MD[texts],
            [[index_of[text] for text in positives[image]] for image in images],
        )
    return found
