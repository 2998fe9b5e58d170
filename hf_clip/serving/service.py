"""What the server does, without HTTP: embed, classify, search, thumbnails. Threads call it at the same time."""

# Shapes: N images or texts, D width of the shared space.

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hf_clip.model.captioning_hf_clip import writes_captions
from hf_clip.model.embedding_hf_clip import dual_encoder
from hf_clip.model.image_decoding_hf_clip import ImageDecodeError, decode_image
from hf_clip.model.text_batches_hf_clip import text_lengths, tokenized
from hf_clip.model.zero_shot_hf_clip import ZeroShotClassifier
from hf_clip.prompts import list_prompts
from hf_clip.search.conditions import PLAIN_FUNCTIONS, check_condition
from hf_clip.search.errors import SearchError
from hf_clip.search.index import Index
from hf_clip.search.models import LazyModel

from .batching import BatchedModel
from .errors import RequestError
from .limits import Limits
from .thumbnails import Thumbnails

if TYPE_CHECKING:
    from hf_clip.search.queries import Hit, Hits

# Classifiers of different labels that are kept.
CLASSIFIERS = 16
# By date are ordered so many of the best; so many are recommended, of which pages are parts.
DATED = RECOMMENDED = 600
# What a processor makes of one image.
ImageInputs = dict[str, torch.Tensor]


def open_index(root: str | Path, limits: Limits | None = None, **options: Any) -> "Service":
    """The service of an index; arguments are those of `Index.open`. Raises SearchError."""
    index = Index.open(root, **options)
    model = BatchedModel(index.warm())
    index.warm(lambda _: model)
    return Service(model, index, limits)


def open_model(source: Any, processor: Any = None, limits: Limits | None = None, **options: Any) -> "Service":
    """The service of a model alone.

    Args:
        source: what `hf_clip.load` takes, or a dual encoder.
        processor: of a dual encoder that is given.
        options: more arguments of `load`.
    """
    device = options.pop("device", None)
    return Service(BatchedModel(LazyModel(source, processor, options, device)), None, limits)


class Service:
    """A warm model, an index of images if there is one, and what is kept of both.

    Attributes:
        name: the model's, as answers give it.
        width: D, of embeddings.
    """

    def __init__(self, model: BatchedModel, index: Index | None = None, limits: Limits | None = None):
        self.model, self.index, self.limits = model, index, limits or Limits()
        self.name = Path(model.source).name if Path(model.source).exists() else model.source
        # The first call is slow; it is made before anybody waits.
        self.width = int(model.embed_texts(["warm"]).shape[1])
        self._classifiers: OrderedDict[tuple, Future[ZeroShotClassifier]] = OrderedDict()
        self._lock = threading.Lock()
        self._decoders = threading.BoundedSemaphore(self.limits.decoders)
        self.thumbnails = Thumbnails(self._image_of, self.limits.thumbnail_bytes, self.limits.decoders)

    def close(self) -> None:
        self.model.batcher.close()

    # What is sent.

    def read_image(self, content: bytes, param: str) -> ImageInputs:
        """What the model takes of the image of a file's bytes. Raises RequestError.

        A few are decoded at once, and no decoded image is kept: however many are sent, memory is bounded.
        """
        with self._decoders:
            try:
                return self.model.prepare(decode_image(content, max_pixels=self.limits.pixels))
            except ImageDecodeError as error:
                # The limit is the server's, not an argument of the caller's.
                limit = f"Scale it down: {self.limits.pixels // 10**6} million pixels are the most."
                said = f"the image is too large. {limit}" if error.reason == "too_large" else str(error)
                raise RequestError(400, f"`{param}`: {said}", param, f"image_{error.reason}") from error

    # Embeddings.

    def embed(self, inputs: Sequence[str | ImageInputs]) -> tuple[np.ndarray, int]:
        """(N, D) float32 unit embeddings of texts and images, in their order, and how many tokens the texts had."""
        embeddings_ND = np.empty((len(inputs), self.width), np.float32)
        tokens = 0
        places = [at for at, one in enumerate(inputs) if isinstance(one, str)]
        if places:
            texts = [str(inputs[at]) for at in places]
            embeddings_ND[places] = self.model.embed_texts(texts)
            tokens = self.count_tokens(texts)
        places = [at for at, one in enumerate(inputs) if not isinstance(one, str)]
        if places:
            embeddings_ND[places] = self.model.embed_images([inputs[at] for at in places])
        return embeddings_ND, tokens

    def count_tokens(self, texts: list[str]) -> int:
        """How many tokens the model reads of texts, with those at their begin and end."""
        _, processor = self.model.load()
        ids, mask = tokenized(processor, texts)
        return sum(text_lengths(processor, ids, mask))

    # Captions.

    @property
    def writes_captions(self) -> bool:
        return writes_captions(self.model.load()[0])

    def caption(self, images: list[ImageInputs]) -> list[str]:
        """A caption for each image. Raises RequestError where the model writes none."""
        if not self.writes_captions:
            raise RequestError(
                404, f"{self.name} writes no captions: start the server with a CoCa.", None, "no_captions"
            )
        return self.model.caption(images)

    # Classification.

    def classify(
        self,
        images: list[ImageInputs],
        labels: str | Sequence[str | Sequence[str]],
        templates: str | Sequence[str] | None = None,
        *,
        reject: str | None = None,
        multi_label: bool = False,
        top_k: int | None = None,
    ) -> tuple[list[list[dict[str, Any]]], tuple[str, ...]]:
        """For each image its labels with scores, best first, and the templates that were put around labels."""
        classifier = self._classifier(labels, templates, reject)
        embeddings_ND = torch.from_numpy(self.model.embed_images(images)).to(classifier.class_embeddings.device)
        try:
            ranked = classifier.rank(embeddings_ND, top_k, multi_label=multi_label)
        except ValueError as error:
            message = str(error).replace("`rejection='something else'`", "`reject`")
            raise RequestError(400, message, "multi_label" if multi_label else "top_k") from error
        return classifier.rows(*ranked), classifier.templates

    def _classifier(self, labels, templates, reject) -> ZeroShotClassifier:
        for name, value in (("labels", labels), ("templates", templates)):
            # Another text would be read as a file's path.
            if isinstance(value, str) and value not in list_prompts():
                raise RequestError(400, f"`{name}={value[:60]}` is no data set with known prompts: send a list.", name)
        key = tuple(_frozen(one) for one in (labels, templates, reject))
        with self._lock:
            made = self._classifiers.get(key)
            is_mine = made is None
            if made is None:
                made = self._classifiers[key] = Future()
            self._classifiers.move_to_end(key)
            while len(self._classifiers) > CLASSIFIERS:
                self._classifiers.popitem(last=False)
        if not is_mine:
            return made.result()
        # Without the lock: thousands of labels take long, and others have theirs already.
        try:
            made.set_result(self._make_classifier(labels, templates, reject))
        except BaseException as error:
            made.set_exception(error)
            with self._lock:
                if self._classifiers.get(key) is made:
                    del self._classifiers[key]
        return made.result()

    def _make_classifier(self, labels, templates, reject) -> ZeroShotClassifier:
        self._check_words(labels, templates, reject)
        model, processor = self.model.load()
        try:
            return ZeroShotClassifier(model, processor, labels, templates, rejection=reject, dtype=None, cache=False)
        except (TypeError, ValueError) as error:
            raise RequestError(400, str(error), "labels") from error

    def _check_words(self, labels, templates, reject) -> None:
        if isinstance(labels, str):
            return
        has_sigmoid = getattr(dual_encoder(self.model.load()[0]), "logit_bias", None) is not None
        if len(labels) == 1 and reject is None and not has_sigmoid:
            raise RequestError(
                400, "`labels` holds one label, which would always score 1: send more, or `reject`.", "labels"
            )
        count = len(labels) * (1 if templates is None or isinstance(templates, str) else max(len(templates), 1))
        if count > self.limits.label_texts:
            limit = self.limits.label_texts
            raise RequestError(400, f"`labels` times `templates` is {count} texts: {limit} are the most.", "labels")

    # Search.

    def search(self, *, order: str = "best", offset: int = 0, top_k: int = 20, **question: Any) -> "tuple[Hits, bool]":
        """The hits from `offset` on, and whether there are more.

        Args:
            order: "best", or "newest" and "oldest" of the DATED best; those without a date come last.
            question: arguments of `Index.search`, or `liked` and `disliked` of `Index.recommend`, and `where`.
        """
        index = self._index()
        # Of others than the same ones a second page would be one of another order.
        wanted = offset + top_k + 1 if order == "best" else DATED
        liked, disliked, where = question.pop("liked", []), question.pop("disliked", []), question.pop("where", None)
        try:
            if where:
                check_condition(where, longest=self.limits.condition, functions=PLAIN_FUNCTIONS)
            if liked:
                hits = index.recommend(liked, disliked, where=where, top_k=RECOMMENDED)
            else:
                # Not `near` of the index, which takes paths of any file.
                hits = index.search(question.pop("query", ()), where=where, top_k=wanted, **question)
        except (SearchError, ValueError) as error:
            raise RequestError(400, self._without_places(str(error)), _param_of(str(error))) from error
        if order != "best":
            hits.hits = by_date(hits.hits, order)
        has_more = len(hits) > offset + top_k
        hits.hits = hits.hits[offset : offset + top_k]
        return hits, has_more

    def _index(self) -> Index:
        if self.index is None:
            raise RequestError(
                404, "there is no index here: the server was started with a model alone.", None, "no_index"
            )
        return self.index

    def _without_places(self, message: str) -> str:
        """A message without folders of this machine."""
        index = self._index()
        for place, name in ((index.place, "the index"), (index.root, "the images' folder")):
            # As it was given last: it may be a part of the whole one, and as short as a dot.
            for path in (os.path.abspath(place), str(place)):
                message = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", lambda _, name=name: name, message)
        return message

    def _image_of(self, row: int, size: int) -> Image.Image:
        index = self._index()
        path = index.path_of(row)
        if path is None:
            raise RequestError(404, f"the index has no row {row}: search again.", None, "no_row")
        try:
            return index.image(path, least_edge=size)
        except ImageDecodeError as error:
            raise RequestError(
                404, "the image of this row is gone, or cannot be read any more.", None, "no_image"
            ) from error

    def describe(self) -> dict[str, Any]:
        """What there is: the model, whether it writes captions, and how many images the index holds."""
        described: dict[str, Any] = {"status": "ok", "model": self.name, "width": self.width, "index": None}
        described["captions"] = self.writes_captions
        if self.index is not None:
            described["index"] = {"name": Path(self.index.root).resolve().name, "rows": len(self.index)}
        return described


def by_date(hits: "Sequence[Hit]", order: str) -> "list[Hit]":
    """The hits by date; those without one last, best first."""
    dated = [hit for hit in hits if hit.taken]
    dated.sort(key=lambda hit: hit.taken or "", reverse=order == "newest")
    return [*dated, *(hit for hit in hits if not hit.taken)]


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list | tuple) else value


def _param_of(message: str) -> str | None:
    """The field that a message of the library names first."""
    _, mark, rest = message.partition("`")
    return rest.partition("`")[0].partition("=")[0] if mark else None
