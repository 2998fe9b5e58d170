"""Batches across requests: what threads ask for at the same time one worker encodes together."""

# Shapes: N items, D width of the shared space.

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from hf_clip.search.models import LazyModel

# Items encoded at once; one request of more is encoded in several parts by the encoder itself.
TEXTS_AT_ONCE, IMAGES_AT_ONCE, CAPTIONS_AT_ONCE = 256, 32, 16


@dataclass
class Asked:
    """A request that waits, and where its answer goes."""

    kind: str
    items: list[Any]
    answer: Future = field(default_factory=Future)


class Batcher:
    """A queue and the thread that empties it.

    Nothing waits for company: while the worker encodes, others queue, and it takes them together when it is done.

    Args:
        encoders: for each kind of items what gives their (N, D) embeddings, or captions, in their order.
        limits: how many items of a kind it takes together.
    """

    def __init__(self, encoders: Mapping[str, Callable[[list[Any]], Any]], limits: Mapping[str, int]):
        self._encoders, self._limits = dict(encoders), dict(limits)
        self._waiting: deque[Asked] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        # How many items each batch had: what tests and the benchmark look at.
        self.sizes: deque[int] = deque(maxlen=1000)
        self._worker = threading.Thread(target=self._work, name="hf-clip-batches", daemon=True)
        self._worker.start()

    def encode(self, kind: str, items: Sequence[Any], timeout: float | None = None) -> Any:
        """(N, D) embeddings of the items, or their captions.

        Raises what their encoder does, TimeoutError, RuntimeError once closed.
        """
        asked = Asked(kind, list(items))
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the server is stopping.")
            self._waiting.append(asked)
            self._changed.notify()
        try:
            return asked.answer.result(timeout)
        finally:
            # One that nobody waits for any more is not encoded.
            asked.answer.cancel()

    def close(self) -> None:
        """Lets the worker finish what waits, and ends it."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[Asked]:
        """The oldest request and those of its kind that fit beside it; none once closed."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return []
                self._changed.wait()
            kind, room = self._waiting[0].kind, self._limits[self._waiting[0].kind]
            taken: list[Asked] = []
            for asked in list(self._waiting):
                if asked.kind == kind and (not taken or len(asked.items) <= room):
                    room -= len(asked.items)
                    taken.append(asked)
                    self._waiting.remove(asked)
            return taken

    def _answer(self, batch: list[Asked]) -> None:
        batch = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        encode = self._encoders[batch[0].kind]
        items = [item for asked in batch for item in asked.items]
        self.sizes.append(len(items))
        try:
            found_ND = encode(items)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            # One request's items are no reason for another's to fail.
            for asked in batch:
                self._answer_alone(encode, asked)
            return
        first = 0
        for asked in batch:
            asked.answer.set_result(found_ND[first : first + len(asked.items)])
            first += len(asked.items)

    def _answer_alone(self, encode: Callable[[list[Any]], Any], asked: Asked) -> None:
        try:
            asked.answer.set_result(encode(asked.items))
        except Exception as error:
            asked.answer.set_exception(error)


class BatchedModel(LazyModel):
    """A model that is loaded, and encodes what several threads ask for together."""

    def __init__(self, model: LazyModel):
        super().__init__(model.source, None, model.options, model.device)
        self._loaded = model.load()
        encoders = {"texts": super().embed_texts, "images": self._encode_images, "captions": self._write}
        limits = {"texts": TEXTS_AT_ONCE, "images": IMAGES_AT_ONCE, "captions": CAPTIONS_AT_ONCE}
        self.batcher = Batcher(encoders, limits)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return self.batcher.encode("texts", texts)

    def embed_images(self, images: list) -> np.ndarray:
        """Images, or what `prepare` made of them, which waits in a fraction of their memory."""
        return self.batcher.encode("images", [one if is_prepared(one) else self.prepare(one) for one in images])

    def _encode_images(self, inputs: list) -> np.ndarray:
        firsts = range(0, len(inputs), IMAGES_AT_ONCE)
        return np.concatenate([self.embed_pixels(inputs[first : first + IMAGES_AT_ONCE]) for first in firsts])

    def caption(self, inputs: Sequence[Mapping[str, Any]]) -> list[str]:
        """A caption, the likeliest word by word, for what `prepare` made of each image."""
        return self.batcher.encode("captions", inputs)

    def _write(self, inputs: list) -> list[str]:
        from hf_clip.model.captioning_hf_clip import write_captions
        from hf_clip.model.embedding_hf_clip import evaluation_mode, stack_inputs

        model, processor = cast(Any, self._loaded)
        texts: list[str] = []
        with evaluation_mode(model):
            for first in range(0, len(inputs), CAPTIONS_AT_ONCE):
                pixels = stack_inputs(inputs[first : first + CAPTIONS_AT_ONCE])["pixel_values"]
                texts += write_captions(model, processor, pixels)
        return texts


def is_prepared(image: Any) -> bool:
    return isinstance(image, Mapping) and "pixel_values" in image
