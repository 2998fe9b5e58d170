"""Batches: each process's part of the pairs of a step, drawn from its lanes."""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from warnings import warn

import numpy as np
import torch

from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.sources.cache import fetching, forget_ahead
from hf_clip.sources.remote import giving_up
from hf_clip.training.augmentation import DRAWS_PER_IMAGE, uniforms
from hf_clip.training.config import AugmentationConfig, DataConfig
from hf_clip.training.distillation import TeacherEmbeddings
from hf_clip.training.texts import TextTokens

from .coordination import Coordinator, LaneState, Position, merge_positions
from .data import TrainingData
from .decoding import BadPair, Decoder, Pair
from .errors import DataError, LaneStopped
from .order import choose_lanes, choose_shuffle_block, deal, require_lanes, rows_of_lane
from .prefetch import choose_workers, prefetch, prefetch_one
from .reading import LaneReader
from .validation import is_held_out

# Draws of a pair that few recipes have a use for.
_CHOICES = ("synthetic", "negative")

# So many unreadable pairs in a row, and a block of them, end the search for a readable one.
MIN_BAD_IN_A_ROW = 100


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch.

    Attributes:
        images: (B, H, W, 3) uint8 at the model's size; for a NaFlex model, which sees each image
            in a shape of its own, a list of B tensors (H, W, 3).
        captions: of each pair as many as the recipe draws for a pass: the first of all pairs, then the second.
        keywords: some of each pair, with commas between; None where the recipe gives them no weight.
        concept_ids: (B,) int64. Pairs with one id are positives of each other.
        negatives: a hard negative of each pair, its own caption where it has none; None where the recipe gives them no
            weight.
        has_negative: (B,) bool, where there are negatives.
        teachers: what stored teachers make of the images and their first captions.
        may_flip, may_crop: (B,) bool, by the words of the captions.
        sample_ids: (B,) int64, of the rows, over all sources.
        epochs: (B,) how often the source of each pair was passed through before.
        position: how far this rank's lanes are after it.
        tokens: of captions, keywords and negatives, where the stream makes them.
    """

    images: torch.Tensor | list[torch.Tensor]
    captions: list[str]
    keywords: list[str] | None
    concept_ids: torch.Tensor
    may_flip: torch.Tensor
    may_crop: torch.Tensor
    sample_ids: np.ndarray
    epochs: np.ndarray
    position: Position
    tokens: TextTokens | None = None
    negatives: list[str] | None = None
    has_negative: torch.Tensor | None = None
    teachers: tuple[TeacherEmbeddings, ...] = ()

    @property
    def further_texts(self) -> list[str]:
        """What is encoded behind the captions."""
        return [*(self.keywords or []), *(self.negatives or [])]


class PairStream:
    """Global batches of pairs, one slice a rank, each rank reading and decoding its own lanes only.

    Args:
        data: what `open_training_source` returned.
        config: the recipe's data section.
        image_processor: brings images to the model's size.
        batch_size: pairs over all ranks.
        seed: of the order and of the captions drawn.
        augmentation: the recipe's section; its words mark images that must not be mirrored, or that may be cut.
        rank, world_size: which lanes are read here. All ranks must make their streams together.
        is_stopped: asked between pairs: once it is true on any rank, `batches` ends on all.
        tokens_of: makes the tokens of captions and keywords, in the thread that reads.
        coordinator: by which the processes agree; None makes one.

    Raises:
        DataError: lanes, processes and batch do not divide each other, or a source has fewer shards than lanes; a lane
        has fewer rows than its share, where that is known.
    """

    def __init__(
        self,
        data: TrainingData,
        config: DataConfig,
        image_processor: HFCLIPImageProcessor,
        batch_size: int,
        seed: int,
        augmentation: AugmentationConfig,
        rank: int = 0,
        world_size: int = 1,
        is_stopped: Callable[[], bool] = lambda: False,
        tokens_of: Callable[[list[str], list[str] | None], TextTokens] | None = None,
        coordinator: Coordinator | None = None,
    ):
        self.tokens_of = tokens_of
        self.data, self.config, self.image_processor = data, config, image_processor
        self.batch_size, self.seed, self.is_stopped = batch_size, seed, is_stopped
        self.shards = data.shards
        lengths = [shards_of_source.lengths for shards_of_source in self.shards]
        unknown = [len(of_source) for of_source in lengths if (of_source < 0).any()]
        self._totals = None if unknown else [int(of_source.sum()) for of_source in lengths]
        self.num_rows = None if self._totals is None else sum(self._totals)
        fewest = min(unknown, default=None)
        self.lanes = config.lanes or choose_lanes(batch_size, self.num_rows, fewest, world_size)
        require_lanes(self.lanes, batch_size, world_size)
        self._check_num_shards(fewest)
        self.shuffle_block = config.shuffle_block or choose_shuffle_block(self.lanes)
        self.own_lanes = range(rank * self.lanes // world_size, (rank + 1) * self.lanes // world_size)
        self.pieces = dict(zip(self.own_lanes, deal(lengths, self.lanes, self.own_lanes), strict=True))
        if self.num_rows is not None:
            for lane in range(self.lanes):
                self._require_share(lane, LaneState(rows_read=self._rows_of(lane)))
        self.decoder = Decoder(image_processor, self._fits_in_memory(), augmentation, config)
        self.coordinator = coordinator or Coordinator(world_size)
        # For which this process waited for its own pairs.
        self.seconds = 0.0

    def batches(self, position: Position | None = None, reads_ahead: bool = False) -> Iterator[Batch]:
        """Batches from `position` on, the start by default, until stopped. The same position gives the same batches.

        Args:
            position: of all lanes, from `gather`, of any number of ranks.
            reads_ahead: makes the next batch in a thread while one is used.

        Raises:
            DataError: a lane has fewer readable pairs than its share, more than `max_bad_fraction` cannot be read, or
                another rank failed. SourceError: a file cannot be read any further. All ranks raise at one step.
        """
        states = self._states(position)
        local = self._local_batches(states)
        with giving_up(self.is_stopped), closing(prefetch(local) if reads_ahead else local) as local:
            while True:
                started = time.perf_counter()
                batch, found, error = next(local)
                self.seconds += time.perf_counter() - started
                if not self._all_can_go_on(found, error):
                    return
                assert batch is not None
                yield batch

    def gather(self, position: Position) -> Position:
        """The position of all lanes, from that of each rank. All ranks must call it. JSON-able."""
        return merge_positions(self.coordinator.gather(position))

    def fetched(self) -> Counter[str]:
        """What all ranks fetched from addresses, as `fetching` has it. All ranks must call it."""
        return sum(self.coordinator.gather(fetching()), Counter())

    @staticmethod
    def epoch(position: Position) -> int:
        """The epoch in which the slowest lane of a position is."""
        return min((state["at"][0] for state in position.get("states", {}).values()), default=0)

    @staticmethod
    def skipped(position: Position) -> Counter[str]:
        """How many pairs were skipped by reason, each once, up to a position."""
        return sum((Counter(state["skipped"]) for state in position.get("states", {}).values()), Counter())

    def _check_num_shards(self, fewest: int | None) -> None:
        if fewest is None:
            return
        advice = f"write the data in a multiple of {self.lanes} shards, or set data.lanes to a divisor of their number"
        if fewest < self.lanes:
            raise DataError(
                f"{self.data.name} has {fewest} shards, fewer than data.lanes={self.lanes}. To fix it, {advice}."
            )
        if fewest % self.lanes and fewest < 10 * self.lanes:
            warn(
                f"{self.data.name} has {fewest} shards for {self.lanes} lanes: pairs of lanes with fewer shards come "
                f"up to {-(-fewest // self.lanes) / (fewest // self.lanes):.2g} times as often as others. To fix it, "
                f"{advice}.",
                stacklevel=3,
            )

    def _fits_in_memory(self) -> bool:
        if self.num_rows is None:
            return False
        rows = sum(map(self._rows_of, self.own_lanes))
        return rows * 3 * self.image_processor.most_pixels <= self.config.decoded_cache_gb * 1e9

    def _rows_of(self, lane: int) -> int:
        return sum(len(rows_of_lane(total, lane, self.lanes)) for total in self._totals or ())

    def _states(self, position: Position | None) -> dict[int, LaneState]:
        if not position:
            return {lane: LaneState() for lane in self.own_lanes}
        if position["lanes"] != self.lanes:
            raise DataError(
                f"The run to resume has {position['lanes']} lanes, this one has {self.lanes}. Set data.lanes="
                f"{position['lanes']}, or start a new run."
            )
        return {lane: LaneState.from_json(position["states"][str(lane)]) for lane in self.own_lanes}

    def _local_batches(
        self, states: dict[int, LaneState]
    ) -> Generator[tuple[Batch | None, Position, Exception | None]]:
        """Batches of this rank's lanes with the position after each; an error is the last item."""
        count = choose_workers() if self.config.workers is None else self.config.workers
        workers = ThreadPoolExecutor(count, "decode") if count else None
        share = self.batch_size // self.lanes
        try:
            lanes = [self._pairs(lane, state, workers) for lane, state in states.items()]
            while True:
                taken = [next(lane) for lane in lanes for _ in range(share)]
                position = self._position(states)
                yield self._batch(taken, position), position, None
        except Exception as error:
            yield None, self._position(states), error
        finally:
            forget_ahead()
            if workers is not None:
                workers.shutdown(cancel_futures=True)

    def _position(self, states: dict[int, LaneState]) -> Position:
        return {"lanes": self.lanes, "states": {str(lane): state.to_json() for lane, state in states.items()}}

    def _pairs(self, lane: int, state: LaneState, workers: ThreadPoolExecutor | None) -> Iterator[tuple[Pair, int]]:
        """Every readable pair of a lane with its pass, endlessly; `state` is kept."""
        block_rows = max(self.shuffle_block // self.lanes, 1)
        pieces, weights = self.pieces[lane], self.data.weights
        kept, is_stopped = self.decoder.kept, self.is_stopped
        held_out = partial(is_held_out, fraction=self.config.validation_fraction)
        reader = LaneReader(self.shards, pieces, weights, self.seed, lane, block_rows, kept, is_stopped, held_out)
        share = self.batch_size // self.lanes
        tickets = reader.tickets(state.position, partial(prefetch_one, workers))

        def pairs() -> Iterator[tuple[Pair, int]]:
            bad_in_a_row, epoch = 0, state.position.epoch
            for ticket, pair in self.decoder.in_order(tickets, workers, 2 * share):
                reader.require_not_stopped()
                if ticket.epoch > epoch == 0:
                    self._require_share(lane, state)
                epoch, state.position = ticket.epoch, ticket.after
                is_bad = isinstance(pair, BadPair)
                if ticket.pass_index == 0:
                    state.rows_read += 1
                    state.skipped.update([pair.reason] if is_bad else [])
                    state.first_skipped = state.first_skipped or (f"{pair.key} ({pair.reason})" if is_bad else None)
                if not is_bad:
                    bad_in_a_row = 0
                    yield pair, ticket.pass_index
                    continue
                bad_in_a_row += 1
                if bad_in_a_row > max(block_rows, MIN_BAD_IN_A_ROW):
                    raise DataError(
                        f"{self.data.name}: {bad_in_a_row} pairs in a row cannot be read, the last is {pair.key} "
                        f"({pair.reason}). Check the storage, then resume the run."
                    )

        return pairs()

    def _require_share(self, lane: int, state: LaneState) -> None:
        pairs = state.rows_read - state.skipped.total()
        share = self.batch_size // self.lanes
        if pairs >= share:
            return
        skipped = "".join(f", {count} skipped as {reason}" for reason, count in state.skipped.items())
        found = f"{pairs} readable pairs{skipped}" if skipped else f"{pairs} pairs"
        if self.lanes == 1:
            lower = f"Lower batch_size{f' to {pairs} or less' if pairs > 1 else ''}"
            few = f"{self.data.name} has {found}, fewer than batch_size={self.batch_size}"
        else:
            few = (
                f"Lane {lane} of {self.lanes} of {self.data.name} has {found}, fewer than its share of {share} of "
                f"batch_size={self.batch_size}"
            )
            lower = "Lower batch_size or data.lanes"
        raise DataError(f"{few}. {lower}, or add data.")

    def _all_can_go_on(self, position: Position, error: Exception | None) -> bool:
        """Whether no rank was stopped.

        Raises on all ranks where one has an error, or where all together found too many unreadable pairs.
        """
        lanes, is_stopped = position["states"].values(), isinstance(error, LaneStopped)
        stopped, failed, in_first_epoch, read, bad = self.coordinator.sum(
            [
                int(is_stopped),
                int(error is not None and not is_stopped),
                sum(lane["at"][0] == 0 for lane in lanes),
                sum(lane["rows_read"] for lane in lanes),
                self.skipped(position).total(),
            ]
        )
        if failed:
            self.coordinator.raise_on_all(None if is_stopped else error)
        # A fraction of the first few pairs says little, unless there are no more.
        least = min(self.shuffle_block, self.num_rows or self.shuffle_block) if in_first_epoch else 0
        if bad > self.config.max_bad_fraction * max(read, least):
            all_lanes = self.gather(position)
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped(all_lanes).most_common())
            first = next(filter(None, (lane.get("first_skipped") for lane in all_lanes["states"].values())))
            raise DataError(
                f"{self.data.name}: {bad} of {read} pairs cannot be read ({reasons}; the first is {first}), more than "
                f"data.max_bad_fraction={self.config.max_bad_fraction}. Fix the data, or raise that fraction."
            )
        return not stopped

    def _batch(self, taken: list[tuple[Pair, int]], position: Position) -> Batch:
        pairs = [pair for pair, _ in taken]
        images = [torch.from_numpy(pair.image) for pair in pairs]
        sample_ids = np.array([pair.sample_id for pair in pairs])
        epochs = np.array([pass_index for _, pass_index in taken])
        captions, keywords, negatives = self._texts(pairs, epochs, sample_ids)
        further = [*(keywords or []), *(negatives or [])]
        return Batch(
            images=torch.stack(images) if self.image_processor.max_num_patches is None else images,
            captions=captions,
            keywords=keywords,
            concept_ids=torch.tensor([pair.concept for pair in pairs]),
            may_flip=torch.tensor([pair.may_flip for pair in pairs]),
            may_crop=torch.tensor([pair.may_crop for pair in pairs]),
            sample_ids=sample_ids,
            epochs=epochs,
            position=position,
            tokens=self.tokens_of(captions, further) if self.tokens_of else None,
            negatives=negatives,
            has_negative=torch.tensor([bool(pair.negatives) for pair in pairs]) if negatives else None,
            teachers=_teachers(pairs, captions),
        )

    def _texts(
        self, pairs: list[Pair], epochs: np.ndarray, sample_ids: np.ndarray
    ) -> tuple[list[str], list[str] | None, list[str] | None]:
        """Captions of each pair, some of its keywords in random order (a caption where it has none), a negative."""
        config = self.config
        has_keywords, has_negatives = bool(config.keyword_weight), bool(config.negative_weight)
        keyword_draws = 1 + config.max_keywords if has_keywords else 0
        count = 1 + keyword_draws + (config.captions_per_image - 1) + len(_CHOICES)
        # Behind those of the augmentation. What a recipe does not ask for comes last: it changes no other draw.
        draws = uniforms(self.seed, epochs, sample_ids, DRAWS_PER_IMAGE + count)[:, DRAWS_PER_IMAGE:].astype(float)
        choices = dict(zip(_CHOICES, draws[:, -len(_CHOICES) :].T, strict=True))
        known = self._drawn_kind(pairs, choices["synthetic"])
        drawn = [
            _draw(texts, [row[0], *row[1 + keyword_draws : -len(_CHOICES)]])
            for texts, row in zip(known, draws.tolist(), strict=True)
        ]
        captions = [texts[index] for index in range(config.captions_per_image) for texts in drawn]
        keywords = negatives = None
        if has_keywords:
            rows = zip(pairs, captions, draws[:, 1 : 1 + keyword_draws].tolist(), strict=False)
            keywords = [self._keywords(pair.keywords, row) or caption for pair, caption, row in rows]
        if has_negatives:
            rows = zip(pairs, captions, choices["negative"].tolist(), strict=False)
            negatives = [_draw(pair.negatives or [caption], [draw])[0] for pair, caption, draw in rows]
        return captions, keywords, negatives

    def _drawn_kind(self, pairs: list[Pair], draws: np.ndarray) -> list[list[str]]:
        """The captions of each pair among which one is drawn: those of people, or a model's."""
        is_synthetic = draws < self.config.synthetic_probability
        return [
            pair.synthetic if pair.synthetic and chosen else pair.captions
            for pair, chosen in zip(pairs, is_synthetic.tolist(), strict=True)
        ]

    def _keywords(self, keywords: list[str], draws: list[float]) -> str:
        left, most = list(keywords), min(self.config.max_keywords, len(keywords))
        count = 1 + int(draws[0] * most) if most else 0
        return ", ".join(left.pop(int(draw * len(left))) for draw in draws[1 : 1 + count])


def _teachers(pairs: list[Pair], captions: list[str]) -> tuple[TeacherEmbeddings, ...]:
    """Of each stored teacher, the embeddings of the images and of their first captions."""
    made = []
    for index in range(len(pairs[0].teachers)):
        images = [pair.teachers[index][0] for pair in pairs]
        texts = []
        for pair, caption in zip(pairs, captions, strict=False):
            texts.append(pair.teachers[index][1][[*pair.captions, *pair.synthetic].index(caption)])
        made.append(TeacherEmbeddings(*(torch.from_numpy(np.stack(each)).float() for each in (images, texts))))
    return tuple(made)


def _draw(texts: list[str], draws: list[float]) -> list[str]:
    """One text a draw, each once before any comes again."""
    left: list[str] = []
    drawn = []
    for draw in draws:
        left = left or list(texts)
        drawn.append(left.pop(int(draw * len(left))))
    return drawn
