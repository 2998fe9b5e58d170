"""From a sample to an image of the model's size with its captions, or the reason why there is none."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from hf_clip.model.image_decoding_hf_clip import ImageDecodeError
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.sources import Sample, SourceError, clean_captions
from hf_clip.training.config import AugmentationConfig, DataConfig
from hf_clip.training.data_config import teacher_columns

from .data import label_captions
from .errors import DataError
from .images import training_pixels
from .reading import Ticket


@dataclass(frozen=True, slots=True)
class Pair:
    """A readable pair.

    `image` is uint8 (H, W, 3) at one of the model's sizes; `concept` names what it shows; whether it may be mirrored
    and cut is told by the words of its captions. `synthetic` are further captions, `negatives` wrong ones. Each
    of `teachers` has the embeddings (D,) of the image and (texts, D) of captions and synthetic ones.
    """

    sample_id: int
    image: np.ndarray
    captions: list[str]
    keywords: list[str]
    concept: int
    may_flip: bool
    may_crop: bool
    synthetic: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    teachers: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


@dataclass(frozen=True, slots=True)
class BadPair:
    """A pair that cannot be read: its key names the row, `reason` is one word."""

    key: str
    reason: str


class Decoder:
    """Decodes tickets, in workers where there are some, and keeps the pairs where they fit into memory.

    Args:
        image_processor: brings images to the model's size.
        keeps_pairs: whether each image is decoded once for the whole run.
        augmentation: the recipe's section; its words mark images that must not be mirrored, or that may be cut.
        config: the recipe's data section, which says what texts a pair has besides.
    """

    def __init__(
        self,
        image_processor: HFCLIPImageProcessor,
        keeps_pairs: bool,
        augmentation: AugmentationConfig,
        config: DataConfig,
    ):
        self.config = config
        self.image_processor = image_processor
        self.keeps_pairs = keeps_pairs
        self.no_flip_words = [word.lower() for word in augmentation.no_flip_words]
        self.crop_words = [word.lower() for word in augmentation.crop_words]
        self.kept: dict[int, Pair | BadPair] = {}

    def decode(self, sample_id: int, sample: Sample) -> Pair | BadPair:
        captions, synthetic = self._captions(sample)
        if not captions:
            return BadPair(sample.key, "no_caption")
        try:
            image = training_pixels(self.image_processor, sample.image)
        except ImageDecodeError as error:
            return BadPair(sample.key, error.reason)
        # Without concepts, images with one caption are positives of each other: nothing could tell them apart.
        concept = sample.concept if sample.concept is not None else captions[0]
        digest = hashlib.blake2b(concept.encode(errors="surrogatepass"), digest_size=8).digest()
        concept_id = int.from_bytes(digest, "little", signed=True)
        words = " ".join([*captions, *synthetic]).lower()
        may_flip = not any(word in words for word in self.no_flip_words)
        may_crop = any(word in words for word in self.crop_words)
        teachers = self._teachers(sample, len(captions) + len(synthetic))
        if teachers is None:
            return BadPair(sample.key, "no_teacher")
        negatives = self._texts(sample, self.config.negative_columns)
        texts = (synthetic, negatives, teachers)
        return Pair(sample_id, image, captions, sample.keywords, concept_id, may_flip, may_crop, *texts)

    def _teachers(self, sample: Sample, count: int) -> tuple[tuple[np.ndarray, np.ndarray], ...] | None:
        """What stored teachers made of the image and its `count` captions; None where one lacks some."""
        found = []
        for name in self.config.teachers:
            image, captions = (sample.extra[column] for column in teacher_columns(name))
            if not isinstance(image, bytes) or not isinstance(captions, bytes) or len(captions) != count * len(image):
                return None
            image_D = np.frombuffer(image, np.float16)
            found.append((image_D, np.frombuffer(captions, np.float16).reshape(count, len(image_D))))
        return tuple(found)

    def _captions(self, sample: Sample) -> tuple[list[str], list[str]]:
        """Those that people wrote, or class names make, and those that a model wrote; the latter alone stand in."""
        captions = sample.captions
        if self.config.label_templates is not None:
            captions = label_captions(self.config.label_templates, sample.labels)
        synthetic = self._texts(sample, self.config.synthetic_columns)
        return (captions, synthetic) if captions else (synthetic, [])

    @staticmethod
    def _texts(sample: Sample, columns: list[str]) -> list[str]:
        return [text for column in columns for text in clean_captions(sample.extra[column])]

    def in_order(
        self, tickets: Iterator[Ticket], workers: Executor | None, depth: int
    ) -> Iterator[tuple[Ticket, Pair | BadPair]]:
        """Each ticket with its pair. `workers` are up to `depth` tickets ahead; without them it is done here."""
        waiting: deque[tuple[Ticket, Future | None]] = deque()
        failure = None
        try:
            for ticket in tickets:
                future = None
                if workers is not None and ticket.sample_id not in self.kept and ticket.sample is not None:
                    future = workers.submit(self.decode, ticket.sample_id, ticket.sample)
                waiting.append((ticket, future))
                if workers is None or len(waiting) > depth:
                    yield self._finish(*waiting.popleft())
        except (DataError, SourceError) as error:
            failure = error
        # What was read before the failure comes first, however far ahead the workers were.
        while waiting:
            yield self._finish(*waiting.popleft())
        if failure is not None:
            raise failure

    def _finish(self, ticket: Ticket, future: Future | None) -> tuple[Ticket, Pair | BadPair]:
        result = self.kept.get(ticket.sample_id) if self.keeps_pairs else None
        if result is None:
            if future is None:
                # The rows of kept pairs alone are not read.
                assert ticket.sample is not None
                result = self.decode(ticket.sample_id, ticket.sample)
            else:
                result = future.result()
            if self.keeps_pairs:
                self.kept[ticket.sample_id] = result
        return ticket, result
