"""The training pairs, in an order that is a function of the seed alone.

A source is read in blocks of `shuffle_block` pairs. Pictures of a block are decoded in threads, unreadable pairs
are counted and left out, and the rest is shuffled by a permutation drawn from (seed, epoch, block). Batches are cut
from the endless sequence of blocks and epochs, so no pair is dropped at the end of an epoch, and each rank takes its
own slice of every global batch. `datasets`' shuffle buffer is not used: it loses and repeats samples on resume.
"""

import hashlib
import queue
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from hf_clip.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.images_hf_clip import ImageDecodeError
from hf_clip.sources import Sample, Source, iterate_samples, open_source

from .config import DataConfig


class DataError(ValueError):
    """The data cannot be trained on; the message says what was found and the mend."""


@dataclass(frozen=True)
class Position:
    """A place in the endless sequence: the next pair to be read."""

    epoch: int = 0
    block: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Pair:
    """A readable pair. `picture` is uint8 (H, W, 3) at the model's size; `concept` names what it shows."""

    sample_id: int
    picture: np.ndarray
    captions: list[str]
    keywords: list[str]
    concept: int


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch. `position` is where the sequence goes on after it."""

    pictures_BHWC: torch.Tensor
    captions: list[str]
    keywords: list[str] | None
    concept_ids_B: torch.Tensor
    may_flip_B: torch.Tensor
    sample_ids_B: np.ndarray
    epochs_B: np.ndarray
    position: Position


def open_training_source(config: DataConfig) -> Source:
    """The recipe's training data. Raises SourceError for what is wrong with it as a whole."""
    return open_source(
        config.train,
        split=config.split,
        image_column=config.image_column,
        caption_columns=config.caption_columns,
        concept_column=config.concept_column,
        keyword_columns=config.keyword_columns,
        where=config.where,
    ).require_captions()


class PairStream:
    """Global batches of pairs from a source, one slice a rank.

    Args:
        source: what `open_source` returned, with captions.
        config: the recipe's data section.
        image_processor: brings pictures to the model's size.
        batch_size: pairs over all ranks.
        seed: of the order and of the captions drawn.
        no_flip_words: a picture with one of them in a caption is marked as not to be mirrored.
        rank, world_size: which slice.

    `bad_pairs` counts what was left out by reason, each unreadable pair once.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        image_processor: HFCLIPImageProcessor,
        batch_size: int,
        seed: int,
        no_flip_words: list[str],
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise DataError(
                f"batch_size={batch_size} cannot be divided among {world_size} processes: "
                f"set it to {max(batch_size // world_size, 1) * world_size}."
            )
        self.source = source
        self.config = config
        self.image_processor = image_processor
        self.batch_size, self.seed = batch_size, seed
        self.rank_slice = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.no_flip_words = [word.lower() for word in no_flip_words]
        self.bad_pairs: Counter[str] = Counter()
        self._counted: set[int] = set()
        self._only_block: list[Pair] | None = None

    def batches(self, position: Position | None = None) -> Iterator[Batch]:
        """Endless batches from `position` on, the start by default. The same position gives the same batches.

        Raises:
            DataError: fewer readable pairs than a batch, or more than `max_bad_fraction` unreadable ones.
        """
        taken: list[tuple[Pair, int]] = []
        for pair, epoch, after in self._pairs(position or Position()):
            taken.append((pair, epoch))
            if len(taken) == self.batch_size:
                yield self._batch(taken[self.rank_slice], after)
                taken = []

    def _pairs(self, start: Position) -> Iterator[tuple[Pair, int, Position]]:
        """Every readable pair of every epoch with its epoch and the position after it."""
        position = start
        while True:
            pairs_seen = 0
            for block in self._blocks(position.block):
                order = np.random.default_rng([self.seed, position.epoch, position.block]).permutation(len(block))
                pairs_seen += len(block)
                for offset in range(position.offset, len(block)):
                    position = replace(position, offset=offset + 1)
                    yield block[order[offset]], position.epoch, position
                position = Position(position.epoch, position.block + 1)
            if start.block == 0 and pairs_seen < self.batch_size:
                raise self._too_few(pairs_seen)
            start = position = Position(position.epoch + 1)

    def _blocks(self, first: int) -> Iterator[list[Pair]]:
        if self._only_block is not None:
            yield from [self._only_block][first:]
            return
        rows = islice(iterate_samples(self.source), first * self.config.shuffle_block, None)
        if first == 0:
            samples = list(islice(rows, self.config.shuffle_block))
            block = self._decode(samples)
            if len(samples) < self.config.shuffle_block:
                if len(block) < self.batch_size:
                    raise self._too_few(len(block))
                self._only_block = block
            yield block
            if self._only_block is not None:
                return
        # While one block is trained on, the next is decoded.
        chunks = iter(lambda: list(islice(rows, self.config.shuffle_block)), [])
        yield from read_ahead(map(self._decode, chunks))

    def _decode(self, samples: list[Sample]) -> list[Pair]:
        with ThreadPoolExecutor() as pool:
            pairs = list(pool.map(self._to_pair, samples))
        bad = [(sample, reason) for sample, reason in zip(samples, pairs, strict=True) if isinstance(reason, str)]
        for sample, reason in bad:
            if sample.index not in self._counted:
                self._counted.add(sample.index)
                self.bad_pairs[reason] += 1
        # The last, short block of a long source is measured as a whole one: one bad pair of its three is no verdict.
        of = self.config.shuffle_block if samples[0].index else len(samples)
        if len(bad) > self.config.max_bad_fraction * of:
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r for _, r in bad).most_common())
            raise DataError(
                f"{self.source.name}: {len(bad)} of {len(samples)} pairs cannot be read ({reasons}; the first is "
                f"{bad[0][0].key}), more than data.max_bad_fraction={self.config.max_bad_fraction}: mend the data, "
                "or raise that fraction."
            )
        return [pair for pair in pairs if isinstance(pair, Pair)]

    def _to_pair(self, sample: Sample) -> Pair | str:
        """The pair, or the reason why there is none."""
        if not sample.captions:
            return "no_caption"
        try:
            picture = self.image_processor.resize_and_crop(sample.image)
        except ImageDecodeError as error:
            return error.reason
        # Without concepts, pictures with one caption are positives of each other: nothing could tell them apart.
        concept = sample.concept if sample.concept is not None else sample.captions[0]
        digest = hashlib.blake2b(concept.encode(errors="surrogatepass"), digest_size=8).digest()
        concept_id = int.from_bytes(digest, "little", signed=True)
        return Pair(sample.index, picture, sample.captions, sample.keywords, concept_id)

    def _too_few(self, pairs: int) -> DataError:
        left_out = "".join(f", {count} left out as {reason}" for reason, count in self.bad_pairs.items())
        return DataError(
            f"{self.source.name} has {pairs} readable pairs{left_out}, fewer than batch_size={self.batch_size}: "
            f"lower batch_size{f' to {pairs} or less' if pairs > 1 else ''}, or give more data."
        )

    def _batch(self, taken: list[tuple[Pair, int]], position: Position) -> Batch:
        pairs = [pair for pair, _ in taken]
        return Batch(
            pictures_BHWC=torch.from_numpy(np.stack([pair.picture for pair in pairs])),
            captions=[self._draw(pair, epoch).choice(pair.captions) for pair, epoch in taken],
            keywords=[self._keywords(pair, epoch) for pair, epoch in taken] if self.config.keyword_weight else None,
            concept_ids_B=torch.tensor([pair.concept for pair in pairs]),
            may_flip_B=torch.tensor([self._may_flip(pair) for pair in pairs]),
            sample_ids_B=np.array([pair.sample_id for pair in pairs]),
            epochs_B=np.array([epoch for _, epoch in taken]),
            position=position,
        )

    def _draw(self, pair: Pair, epoch: int) -> random.Random:
        # A text seeds by every bit of its hash, alike in every process.
        return random.Random(f"{self.seed} {epoch} {pair.sample_id}")

    def _keywords(self, pair: Pair, epoch: int) -> str:
        """Some of the pair's keywords, in random order; a caption where it has none."""
        draw = self._draw(pair, epoch)
        if not pair.keywords:
            return draw.choice(pair.captions)
        count = draw.randint(1, min(self.config.max_keywords, len(pair.keywords)))
        return ", ".join(draw.sample(pair.keywords, count))

    def _may_flip(self, pair: Pair) -> bool:
        text = " ".join(pair.captions).lower()
        return not any(word in text for word in self.no_flip_words)


def read_ahead(items: Iterator, depth: int = 1) -> Iterator:
    """The same items, made in a thread up to `depth` ahead of their use; what the thread raises is raised here."""
    done, stopped = object(), threading.Event()
    ready: queue.Queue = queue.Queue(depth)

    def put(item) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((done, None))
        except BaseException as error:
            put((done, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
