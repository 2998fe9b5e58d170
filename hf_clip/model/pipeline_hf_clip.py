"""The zero-shot pipeline: transformers' own by its arguments and results, with the labels encoded once.

    pipe = pipeline("zero-shot-image-classification", model=folder, pipeline_class=HFCLIPZeroShotPipeline)
    pipe(images, candidate_labels=["a cat", "a dog"], templates=["a photo of {}.", "a drawing of {}."], top_k=1)

The stock pipeline encodes all labels again for every image. Once this package is imported, the task
"hf-clip-zero-shot" names this class too.
"""

# Shapes: B images of a batch, K labels kept, H and W pixels.

import base64
import binascii
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Real
from types import GeneratorType
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForZeroShotImageClassification, Pipeline
from transformers.image_utils import load_image

from .embedding_hf_clip import (
    check_finite,
    dual_encoder,
    evaluation_mode,
    image_inputs,
    open_images,
    unit_image_embeds,
)
from .image_decoding_hf_clip import ImageDecodeError, decode_image
from .state_key_hf_clip import LiveState
from .zero_shot_hf_clip import ZeroShotClassifier

TASK = "hf-clip-zero-shot"
# Sets of labels whose embeddings are kept.
MAX_CACHED = 8
# What each label is compared with where labels are scored by themselves and nothing else was named.
REJECTION = "something else"

_FETCHING = ("timeout",)
# Seconds to wait for a server; transformers waits for ever.
TIMEOUT = 10.0
_CLASSIFYING = (
    "candidate_labels",
    "hypothesis_template",
    "templates",
    "rejection",
    "multi_label",
    "top_k",
    "tokenizer_kwargs",
)


class HFCLIPZeroShotPipeline(Pipeline):
    """Zero-shot classification of images, over transformers' `ZeroShotImageClassificationPipeline`.

    Label embeddings are kept between calls and computed again when labels, templates, or anything of the text tower,
    the processor or its tokenizer changes: weights, adapters that are switched, hooks, settings. Weights are told
    apart by identity, position in memory and version, never by their values: a write that torch does not count
    (`parameter.data.add_(...)`) goes unnoticed; `clear_cache()` forgets them. Threads may share a pipeline.

    Unlike everything else here, it does not use the templates that were saved with the model: its default is that of
    transformers' pipeline, "This is a photo of {}."

    Lists are classified in batches of `batch_size` (32 by default), of the pipeline or of a call.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *, batch_size: int = 32, **kwargs):
        super().__init__(batch_size=batch_size, **kwargs)
        self.model = dual_encoder(self.model)
        if self.processor is None:
            raise ValueError("the pipeline has no processor: pass processor=, as hf_clip.load gives it.")
        self._cache: OrderedDict[tuple, tuple[LiveState, ZeroShotClassifier]] = OrderedDict()
        # Threads that ask for the same labels wait for the first to encode them.
        self._lock = threading.RLock()

    def __call__(self, image=None, candidate_labels=None, **kwargs):
        """Scores of labels for an image or several.

        Args:
            image: an image, or a list, generator or torch data set of images, an array of several, a data set of
                `datasets` or a column of one; each image of any kind that `decode_image` takes, or a URL, or base64 as
                text. `images` is taken for it too.
            candidate_labels: the labels, texts or numbers; a list of names stands for one class, shown by the first.
            hypothesis_template: text around a label, with `{}` for it; "This is a photo of {}." by default.
            templates: several such texts, whose embeddings are averaged, instead of one.
            rejection: names for what is none of the labels; see `ZeroShotClassifier`.
            multi_label: score each label by itself. With models trained with a softmax, each is then compared with
                the rejection class, "something else" by default.
            tokenizer_kwargs: arguments of the tokenizer for all texts.
            top_k: the best labels only; `threshold`: those of such a score only.
            timeout: seconds to wait for the server of a URL, 10 by default. transformers' `load_image` fetches it,
                from any address: a program that is given URLs by strangers fetches them itself, from where it allows.
            batch_size, num_workers: as for every pipeline.

        Returns:
            A list of {"score", "label"}, best first, for an image; a list of such lists for what knows its length; a
            generator of them for a generator, a stream or a torch data set. Scores are the softmax over the labels,
            or sigmoids where the model was trained so.

        Raises:
            ImageDecodeError: (a ValueError) for an image that cannot be had.
            ValueError: if there are no labels or no image; whatever `ZeroShotClassifier` raises.
        """
        image = kwargs.pop("images", image)
        if image is None:
            raise ValueError("there is no image: pass one as `image`, or a list of them.")
        if isinstance(image, list | tuple) and not image:
            return []
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        if isinstance(image, tuple) or getattr(image, "ndim", 0) == 4:
            image = list(image)
        if _is_run(image):
            # Read one after the other: a list of all would hold every image of a data set.
            found = cast(Iterable, super().__call__((one for one in open_images(image)), **kwargs))
            return list(found) if isinstance(image, Sized) else found
        return super().__call__(image, **kwargs)

    @property
    def _processor(self) -> Any:
        # Never None: the constructor asks for it.
        return self.processor

    def clear_cache(self) -> None:
        """Forgets all label embeddings."""
        with self._lock:
            self._cache.clear()

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor. With the code, so that `trust_remote_code=True` finds the task too."""
        super().save_pretrained(save_directory, **kwargs)
        self._processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **kwargs):
        known = {*_FETCHING, *_CLASSIFYING, "threshold"}
        if unknown := sorted(kwargs.keys() - known):
            raise ValueError(f"{', '.join(unknown)} is no argument here. There are {', '.join(sorted(known))}.")
        if isinstance(labels := kwargs.get("candidate_labels"), str):
            raise TypeError(f"`candidate_labels` is one string, {labels!r:.60}: pass a list of strings.")
        if kwargs.get("templates") is not None and kwargs.get("hypothesis_template") is not None:
            raise ValueError("`hypothesis_template` and `templates` are both given: put the one among the others.")
        top_k = kwargs.get("top_k")
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k={top_k}` is below 1: set it to 1 or more, or to None for all labels.")
        given = {name: value for name, value in kwargs.items() if value is not None}
        if "candidate_labels" in given:
            given["candidate_labels"] = list(given["candidate_labels"])
        fetching, classifying = (
            {name: given[name] for name in names if name in given} for names in (_FETCHING, _CLASSIFYING)
        )
        return fetching, classifying, {"threshold": given["threshold"]} if "threshold" in given else {}

    def preprocess(self, image, timeout: float = TIMEOUT) -> dict[str, torch.Tensor]:
        decoded = decode_image(_fetched(image, timeout))
        # transformers puts images into batches that are of one shape. What is padding in all of them, the model drops.
        is_naflex = getattr(getattr(self._processor, "image_processor", None), "max_num_patches", None) is not None
        return image_inputs(self._processor, [decoded], **({"do_pad": True} if is_naflex else {}))

    def _forward(self, model_inputs, candidate_labels=(), top_k=None, multi_label=False, **options) -> dict:
        classifier = self._classifier([_as_text(label) for label in candidate_labels], multi_label, **options)
        # A number comes back as the number that was given, as from the stock pipeline.
        shown = [_first(label) for label in candidate_labels] + list((classifier.rejection or ())[:1])
        with evaluation_mode(self.model):
            embeddings_BD = check_finite(unit_image_embeds(self.model, model_inputs), "images")
        scores_BK, indices_BK = classifier.rank(embeddings_BD, top_k, multi_label=multi_label)
        return {"scores": scores_BK, "indices": indices_BK, "shown": [shown] * len(embeddings_BD)}

    def postprocess(self, model_outputs, threshold: float = 0.0) -> list[dict]:
        # One image, whether it came alone, as a batch of one, or out of a batch.
        shown = model_outputs["shown"]
        shown = shown[0] if isinstance(shown[0], list) else shown
        [scores_K], [indices_K] = model_outputs["scores"].tolist(), model_outputs["indices"].tolist()
        found = zip(scores_K, indices_K, strict=True)
        return [{"score": score, "label": shown[index]} for score, index in found if score >= threshold]

    def _classifier(
        self,
        labels: Sequence[str | Sequence[str]],
        multi_label: bool,
        hypothesis_template: str = "This is a photo of {}.",
        templates: Sequence[str] | None = None,
        rejection: str | Sequence[str] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
    ) -> ZeroShotClassifier:
        """The classifier of these words and of the weights as they are now."""
        if rejection is None and multi_label and getattr(self.model, "logit_bias", None) is None:
            rejection = REJECTION
        is_one_template = templates is None
        templates = [hypothesis_template] if templates is None else templates
        key = (*map(_frozen, (labels, templates, rejection)), repr(sorted((tokenizer_kwargs or {}).items())))
        state = LiveState(self.model, self._processor, "text")
        with self._lock:
            kept_state, classifier = self._cache.get(key, (None, None))
            # Its state may be equal and its model another wrapper of it, or one that wraps it no more.
            if classifier is None or kept_state != state or classifier.model is not dual_encoder(self.model):
                with _own_arguments(is_one_template):
                    classifier = ZeroShotClassifier(
                        self.model,
                        self._processor,
                        labels,
                        templates,
                        rejection=rejection,
                        tokenizer_kwargs=tokenizer_kwargs,
                        dtype=None,
                    )
            self._cache[key] = state, classifier
            self._cache.move_to_end(key)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return classifier


# Of `save_pretrained`, which writes the task into config.json. Under a name of its own: under the stock one the
# stock pipeline would ask for trust in this code.
_IMPL = {"impl": HFCLIPZeroShotPipeline, "pt": (AutoModelForZeroShotImageClassification,), "type": "multimodal"}
setattr(HFCLIPZeroShotPipeline, "_registered_impl", {TASK: _IMPL})  # noqa: B010


@contextlib.contextmanager
def _own_arguments(is_one_template: bool) -> Iterator[None]:
    """Has errors of `ZeroShotClassifier` name the pipeline's arguments."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise
        message = str(error).replace("`labels", "`candidate_labels")
        if is_one_template:
            message = message.replace("`templates", "`hypothesis_template")
        raise type(error)(message) from error


def _fetched(image, timeout: float):
    """The image of a URL, bytes of base64; anything else as it is."""
    if not isinstance(image, str):
        return image
    if image.startswith(("http://", "https://")):
        try:
            return load_image(image, timeout=timeout)
        # Whatever it is: addresses, servers, what they send. The address may hold a secret.
        except Exception as error:
            raise ImageDecodeError(
                f"an image by URL cannot be had ({type(error).__name__}): fetch it yourself and pass its bytes.", "url"
            ) from error
    if not image.startswith("data:image/") and (len(image) < 4096 and os.path.exists(image)):
        return image
    try:
        # Nothing shorter is an image; a path that is mistyped shall be called a path.
        encoded = image.partition(",")[2] if image.startswith("data:") else image if len(image) > 64 else ""
        return base64.b64decode(encoded, validate=True) or image
    except (binascii.Error, ValueError) as error:
        if image.startswith("data:"):
            raise ImageDecodeError(f"{image[:60]!r}... is no base64: encode the image again.", "broken") from error
        return image


def _is_run(image) -> bool:
    """Whether it is a data set of `datasets`, a column of one, or the like: what `Pipeline` takes for one image."""
    if hasattr(image, "cast_column"):
        # A stream of `datasets` is a torch data set too, of rows that are no images.
        return True
    if isinstance(image, list | str | bytes | bytearray | memoryview | Mapping | GeneratorType | Dataset):
        return False
    return isinstance(image, Iterable) and not hasattr(image, "ndim")


def _as_text(label: Any) -> Any:
    """A label in words: numbers too, as the stock pipeline takes them. The classifier refuses anything else."""
    if isinstance(label, list | tuple):
        return [_as_text(name) for name in label]
    return f"{label}" if isinstance(label, Real) and not isinstance(label, bool) else label


def _first(label):
    return label[0] if isinstance(label, list | tuple) and label else label


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
