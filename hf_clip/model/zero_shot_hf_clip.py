"""Zero-shot classification as in the paper (section 3.1): a classifier whose weights are encoded label texts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

# Shapes: B images of a batch, N images, C classes, T classes of a tile, K labels kept, D width of the shared
# space.

import json
import math
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

from .device_hf_clip import computing_in, fast_dtype
from .embedding_hf_clip import check_finite, dual_encoder, evaluation_mode, image_batches
from .image_decoding_hf_clip import ImageDecodeError
from .label_cache_hf_clip import LabelEmbeddings, cached_labels, equal_labels
from .localization_hf_clip import Locating
from .state_key_hf_clip import check_probe, probe_embeds, state_parts
from .text_batches_hf_clip import encode_batch, text_batches
from .typing_hf_clip import DualEncoder, Processor

# The paper's first choice (section 3.1.4), for models that were not saved with templates of their own.
DEFAULT_TEMPLATES = ("a photo of a {}.",)

# Classes scored at once: with 32 images, 1 MB of logits.
TILE = 8192
# Below it logits leave the range of float32, and scores become NaN.
MIN_TEMPERATURE = 1e-6
FILE_FORMAT = "hf_clip zero-shot classifier"


def templates_of(model) -> tuple[str, ...]:
    """The templates that a model is to be evaluated with: those of its config, else `DEFAULT_TEMPLATES`."""
    return tuple(getattr(getattr(model, "config", None), "zero_shot_templates", None) or DEFAULT_TEMPLATES)


class ZeroShotClassifier(Locating):
    """Classifies images by labels given as words.

        classifier = ZeroShotClassifier.from_pretrained("openai/clip-vit-base-patch32", labels=["cat", "dog"])
        classifier.predict(["a.jpg", "b.jpg"], top_k=1)

    A class's embedding is the mean of the normalized embeddings of its names in all templates, normalized again
    (section 3.1.4 of the paper): an ensemble in the space of embeddings, as cheap to use as a single prompt. The
    embeddings are computed once, when the classifier is made, `batch_size` texts at a time, and scored in tiles:
    beyond the C embeddings themselves, memory grows neither with labels nor with templates. `save` and `load` keep
    them.

    Scores are what the model was trained to give: the softmax over all labels, or, for models with a `logit_bias`
    (SigLIP), each label's sigmoid. `hf_clip.evaluation.calibrate` fits `temperature`, by which logits are divided.

    Args:
        model: a dual encoder with `encode_image`, `encode_text`, `logit_scale` and, if trained so, `logit_bias`; it
            may be wrapped (PEFT, DistributedDataParallel, torch.compile).
        processor: its processor.
        labels: C labels, or lists of several names for one class, which is shown by the first. Two classes may share a
            name, as in published lists of ImageNet's; then they share a score. The name of a data set with known
            prompts ("ImageNet"; see `list_prompts`), or a file of prompts, stands for its classes.
        templates: texts in which `{}` stands for the label; ["{}"] makes each label its own text. The name of a data
            set, or a file of prompts, stands for its templates. By default those that the model was saved with
            (`config.zero_shot_templates`), else `DEFAULT_TEMPLATES`.
        rejection: names for a further class of images that show none of the labels, such as "something else".
        temperature: above 1 makes scores less sure, below 1 more.
        batch_size: texts encoded at once.
        tokenizer_kwargs: arguments of the tokenizer for all texts, such as `max_length`.
        dtype: what to compute embeddings in, of labels and images: "float32", "bfloat16", "float16", or "auto" for
            bf16 where the device is fast at it. None: the model's own. Weights stay as they are.
        cache: a folder where embeddings of labels are kept between programs; False: none are. By default those of 256
            texts or more lie in Hugging Face's folder of assets, 512 MB at most; the environment variable
            `HF_CLIP_LABEL_CACHE` names another folder, or turns it off with `0`. Weights, adapters, settings and
            tokenizer are in the key, and a damaged file is made again.

    Attributes:
        labels: list of C strings, the first name of each class.
        classes: tuple of C tuples of all names.
        templates: tuple of strings.
        rejection: tuple of names, or None.
        class_embeddings: (C, D) float32 unit embeddings on the model's device.
        rejection_embedding: (1, D) likewise, or None.
        temperature: a number of MIN_TEMPERATURE or more, which can be set.
        dtype: what embeddings of images are computed in, as given; None: the model's own.

    Raises:
        TypeError: if `labels` or `templates` is one string that names no data set, or holds something else than
            strings; if `model` holds no dual encoder.
        ValueError: if there are no labels or no templates, a template lacks its `{}`, the temperature is not a number
            of MIN_TEMPERATURE or more, or the model gives NaN or infinity.

    Warns:
        UserWarning: if classes of different names become the same token ids (cut at the model's context, say): the
            model cannot tell them apart. If there is a single class and the scores are a softmax, which is always 1.
    """

    def __init__(
        self,
        model: DualEncoder,
        processor: Processor,
        labels: Iterable[str | Sequence[str]] | str,
        templates: Iterable[str] | str | None = None,
        *,
        rejection: str | Sequence[str] | None = None,
        temperature: float = 1.0,
        batch_size: int = 256,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = "auto",
        cache: bool | str | Path | None = None,
    ):
        model = dual_encoder(model)
        classes = _checked_classes(labels)
        texts = _checked_templates(templates_of(model) if templates is None else templates)
        rejected = None if rejection is None else _checked_class("rejection", rejection)
        self.temperature = temperature
        everything = classes if rejected is None else (*classes, rejected)
        with computing_in(model, dtype):
            found = cached_labels(
                model,
                processor,
                {"classes": everything, "templates": texts, "tokenizer": dict(tokenizer_kwargs or {})},
                len(texts) * sum(map(len, everything)),
                partial(_encode_classes, model, processor, everything, texts, batch_size, tokenizer_kwargs),
                cache,
            )
        _warn_of_equal_texts(found.equal)
        self._hold(model, processor, classes, texts, rejected, temperature, found.embeddings)
        self.dtype = dtype
        if len(everything) == 1 and not self.has_sigmoid:
            warnings.warn(
                "`labels` holds a single label, whose score will be 1 for every image: a softmax compares labels. "
                "Give more, or a `rejection` such as 'something else'.",
                stacklevel=2,
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        labels: Iterable[str | Sequence[str]] | str,
        templates: Iterable[str] | str | None = None,
        *,
        rejection: str | Sequence[str] | None = None,
        temperature: float = 1.0,
        batch_size: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = "auto",
        cache: bool | str | Path | None = None,
        **options: Any,
    ) -> "ZeroShotClassifier":
        """The classifier of a checkpoint: a Hub id, a folder, or a file of any format that `hf_clip.load` takes.

        Args:
            source: the checkpoint, or a folder of `hf_clip.export_model`.
            labels, templates, rejection, temperature, batch_size, cache: as for the class.
            device: where the model goes.
            dtype: of the model: "float32", "bfloat16", "float16", or "auto" for bf16 where the device is fast at it.
                None keeps the file's.
            options: other arguments of `hf_clip.load`, such as `revision` or `architecture`. Where the package is not
                installed, those of `from_pretrained` of transformers' Auto classes, which read the checkpoint then.

        Raises:
            ValueError: if the checkpoint is not there or cannot be read (`hf_clip.conversion.ConversionError`).
        """
        # Before a gigabyte is fetched.
        classes, texts = _checked_classes(labels), None if templates is None else _checked_templates(templates)
        model, processor = _load_pair(source, device, dtype, options)
        return cls(
            model,
            processor,
            classes,
            texts,
            rejection=rejection,
            temperature=temperature,
            batch_size=batch_size,
            dtype=None,
            cache=cache,
        )

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        if isinstance(temperature, bool | str):
            raise TypeError(f"`temperature` is {temperature!r}: pass a number, such as 1.0.")
        value = float(temperature)
        # Not `<`: NaN is no number either.
        if not MIN_TEMPERATURE <= value < math.inf:
            raise ValueError(
                f"`temperature={value}` would give scores that are no numbers, or 0 and 1 alone: set it to "
                f"{MIN_TEMPERATURE} or more."
            )
        self._temperature = value

    def _hold(self, model, processor, classes, templates, rejection, temperature: float, embeddings: torch.Tensor):
        self.model, self.processor, self.dtype = model, processor, None
        self.classes, self.templates, self.rejection = classes, templates, rejection
        self.labels = [names[0] for names in classes]
        self.temperature = temperature
        self.class_embeddings = embeddings[: len(classes)]
        self.rejection_embedding = None if rejection is None else embeddings[len(classes) :]

    @property
    def has_sigmoid(self) -> bool:
        """Whether the model scores each label by itself, as it was trained (SigLIP), instead of all by a softmax."""
        return getattr(self.model, "logit_bias", None) is not None

    def save(self, file: str | Path, also: Mapping[str, torch.Tensor] | None = None) -> Path:
        """Writes embeddings and words to a safetensors file, with the key of the state that they belong to.

        Weights, adapters, settings and tokenizer are in the key; the embeddings of two probe texts stand beside it.

        Args:
            file: where to.
            also: more tensors for the file, such as thresholds.

        Raises:
            ValueError: if the model's weights are not in memory.
        """
        file, embeddings = Path(file), self.class_embeddings
        if self.rejection_embedding is not None:
            embeddings = torch.cat([embeddings, self.rejection_embedding])
        words = {
            "classes": self.classes,
            "templates": self.templates,
            "rejection": self.rejection,
            "temperature": self.temperature,
        }
        # Not in the header, which safetensors holds to 100 MB.
        text = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
        content = {
            "embeddings": embeddings.cpu().contiguous(),
            "words": text,
            "probe": probe_embeds(self.model, self.processor, "text"),
            **(also or {}),
        }
        state = json.dumps(state_parts(self.model, self.processor, "text"))
        # Not by the process's id: threads and machines may write to one folder.
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            save_file(content, partial, {"format": FILE_FORMAT, "state": state})
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        return file

    @classmethod
    def load(cls, file: str | Path, model: DualEncoder, processor: Processor) -> "ZeroShotClassifier":
        """The classifier of a file that `save` wrote, without encoding a label.

        Raises:
            ValueError: if the file holds no classifier, or one of another state: other weights, another adapter,
                activation, tokenizer or dtype.
        """
        model = dual_encoder(model)
        try:
            with safe_open(file, framework="pt") as content:
                metadata = content.metadata() or {}
                if metadata.get("format") != FILE_FORMAT or "state" not in metadata:
                    raise ValueError(f"{file} holds no zero-shot classifier: write one with ZeroShotClassifier.save.")
                embeddings, text, probe = map(content.get_tensor, ("embeddings", "words", "probe"))
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}): write it again.") from None
        kept, found = json.loads(metadata["state"]), state_parts(model, processor, "text")
        if others := [part for part in found if kept.get(part) != found[part]]:
            raise ValueError(
                f"{file} belongs to another state of the text tower: other {', '.join(others)}. Load the model that "
                "it was saved with, in the same dtype, or make the classifier again from its labels."
            )
        check_probe(probe, model, processor, "text", file)
        words = json.loads(text.numpy().tobytes())
        classes = tuple(map(tuple, words["classes"]))
        rejection = None if words["rejection"] is None else tuple(words["rejection"])
        loaded = cls.__new__(cls)
        templates, temperature = tuple(words["templates"]), words["temperature"]
        loaded._hold(model, processor, classes, templates, rejection, temperature, embeddings.to(model.device))
        return loaded

    def logits(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """(B, C) float32 logits of (B, D) unit embeddings: cosines times the model's scale, plus its bias."""
        return self._logits(self._checked_embeds(image_embeds), self.class_embeddings)

    def _checked_embeds(self, image_embeds: torch.Tensor) -> torch.Tensor:
        width = self.class_embeddings.shape[1]
        if image_embeds.ndim != 2 or image_embeds.shape[1] != width:
            raise ValueError(f"`image_embeds` has shape {tuple(image_embeds.shape)}: pass (N, {width}) embeddings.")
        return image_embeds

    def _logits(self, image_embeds_BD: torch.Tensor, class_embeddings_TD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            device = class_embeddings_TD.device
            scale = self.model.logit_scale.float().exp().reshape(()).to(device)
            logits_BT = scale * image_embeds_BD.to(class_embeddings_TD) @ class_embeddings_TD.T
            bias = getattr(self.model, "logit_bias", None)
            return logits_BT if bias is None else logits_BT + bias.float().reshape(()).to(device)

    def embed(
        self, images, batch_size: int = 32, *, image_column: str | None = None, show_progress: bool | None = None
    ) -> torch.Tensor:
        """(N, D) float32 unit embeddings of images on the model's device. Arguments and errors are as in `predict`."""
        options: dict[str, Any] = {"image_column": image_column, "show_progress": show_progress, "dtype": self.dtype}
        batches = image_batches(self.model, self.processor, images, batch_size, **options)
        embeddings = [embeddings_BD for _, embeddings_BD in batches if embeddings_BD is not None]
        if not embeddings:
            raise ValueError("`images` is empty: pass at least one.")
        return torch.cat(embeddings)

    def rank(
        self, image_embeds: torch.Tensor, top_k: int | None = None, *, multi_label: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and indices of the best classes of (B, D) unit embeddings, both (B, K), best first.

        Of equal scores the class that stands first comes first. Index C is the rejection class.

        Raises:
            ValueError: as `predict`, for `top_k` and `multi_label`, and for embeddings of another width.
        """
        self._checked_embeds(image_embeds)
        self._check_ranking(top_k, multi_label)
        is_softmax = not (multi_label or self.has_sigmoid)
        total = len(self.labels) + (self.rejection is not None and not multi_label)
        kept = total if top_k is None else min(top_k, total)
        tile = TILE if kept < TILE else total
        tiles = list(zip(range(0, len(self.labels), tile), self.class_embeddings.split(tile), strict=True))
        if self.rejection_embedding is not None and not multi_label:
            tiles.append((len(self.labels), self.rejection_embedding))
        best_BK = self.class_embeddings.new_empty(len(image_embeds), 0)
        indices_BK = torch.empty_like(best_BK, dtype=torch.long)
        normalizer_B1 = best_BK.new_full((len(image_embeds), 1), -math.inf)
        with torch.inference_mode():
            for start, class_embeddings_TD in tiles:
                logits_BT = self._logits(image_embeds, class_embeddings_TD) / self.temperature
                indices_BT = torch.arange(start, start + logits_BT.shape[1], device=logits_BT.device)
                indices_BT = indices_BT.expand_as(logits_BT)
                if is_softmax:
                    normalizer_B1 = torch.logaddexp(normalizer_B1, logits_BT.logsumexp(-1, keepdim=True))
                logits_BT = torch.cat([best_BK, logits_BT], dim=-1)
                indices_BT = torch.cat([indices_BK, indices_BT], dim=-1)
                # topk does not say which of two equal logits comes first; a stable sort does.
                best_BK, places_BK = logits_BT.sort(dim=-1, descending=True, stable=True)
                best_BK, places_BK = best_BK[:, :kept], places_BK[:, :kept]
                indices_BK = indices_BT.gather(-1, places_BK)
            if is_softmax:
                return (best_BK - normalizer_B1).exp(), indices_BK
            if self.rejection_embedding is not None and not self.has_sigmoid:
                best_BK = best_BK - self._logits(image_embeds, self.rejection_embedding) / self.temperature
            return best_BK.sigmoid(), indices_BK

    def _check_ranking(self, top_k: int | None, multi_label: bool) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k={top_k}` is below 1: set it to 1 or more, or to None for all labels.")
        if multi_label and not self.has_sigmoid and self.rejection is None:
            raise ValueError(
                "`multi_label=True` scores each label by itself, and this model was trained with a softmax, which "
                "compares labels. Make the classifier with a class to compare each with, such as "
                "`rejection='something else'`."
            )

    def rows(self, scores: torch.Tensor, indices: torch.Tensor, threshold: float = 0.0) -> list[list[dict]]:
        """What `rank` found, as `predict` gives it."""
        names = [*self.labels, *(self.rejection or ())[:1]]
        return [
            [
                {"label": names[index], "score": score}
                for index, score in zip(indices_K, scores_K, strict=True)
                if score >= threshold
            ]
            for indices_K, scores_K in zip(indices.tolist(), scores.tolist(), strict=True)
        ]

    def predict(self, images, batch_size: int = 32, top_k: int | None = None, **options) -> list[list[dict]]:
        """For each image its labels with their scores, best first.

        Args:
            images: images of any kind that `decode_image` takes, in a list or any other iterable; a (N, ...) array or
                tensor; a folder's path, for the images below it in natural order; a data set or stream of `datasets`.
            batch_size: images encoded at once.
            top_k: how many labels to give for each image; None gives all of them.
            multi_label: score each label by itself, as several may apply. Models trained with a softmax then need a
                rejection class: a label's score is the softmax of the two.
            threshold: labels of lower scores are dropped; where all are, the list is empty.
            image_column: the column of a data set's rows; by default the one of `datasets`' type Image, or "image".
            return_errors: give the ImageDecodeError of an image that cannot be decoded in place of its list.
            show_progress: whether to draw a bar on standard error; by default where that is a terminal.

        Returns:
            One list per image of dicts with `label` and `score`. The scores of a softmax sum to 1 over all labels
            and the rejection class, which stands among them under its first name, except with `multi_label`.

        Raises:
            TypeError: if `images` is one image instead of several.
            ImageDecodeError: (a ValueError) with the position of an image that cannot be decoded.
            ValueError: if `top_k` or `batch_size` is below 1, if `multi_label` needs a rejection class, if rows have
                no such column, or if the model gives NaN or infinity.
        """
        # With `return_errors` there are errors among them.
        return cast(list[list[dict]], list(self.stream(images, batch_size, top_k, **options)))

    def stream(
        self,
        images,
        batch_size: int = 32,
        top_k: int | None = None,
        *,
        multi_label: bool = False,
        threshold: float = 0.0,
        image_column: str | None = None,
        return_errors: bool = False,
        show_progress: bool | None = None,
    ) -> Iterator[list[dict] | ImageDecodeError]:
        """`predict`, one image after the other: for streams longer than memory. Arguments are checked at once."""
        self._check_ranking(top_k, multi_label)
        batches = image_batches(
            self.model,
            self.processor,
            images,
            batch_size,
            dtype=self.dtype,
            image_column=image_column,
            return_errors=return_errors,
            show_progress=show_progress,
        )

        def answers():
            for batch, embeddings_BD in batches:
                ranked = () if embeddings_BD is None else self.rank(embeddings_BD, top_k, multi_label=multi_label)
                found = iter(self.rows(*ranked, threshold) if ranked else ())
                for item in batch:
                    yield item if isinstance(item, ImageDecodeError) else next(found)

        return answers()


def _encode_classes(
    model: DualEncoder,
    processor: Processor,
    classes: Sequence[tuple[str, ...]],
    templates: Sequence[str],
    batch_size: int,
    tokenizer_kwargs: Mapping[str, Any] | None,
) -> LabelEmbeddings:
    """Embeddings of classes that are tuples of names."""
    named = [(index, name) for index, names in enumerate(classes) for name in names]
    # Template by template: what a template begins with is computed once for many labels.
    # Not str.format: labels and templates may hold braces of their own.
    texts = (template.replace("{}", name) for template in templates for _, name in named)
    groups = (group for group in range(len(templates)) for _ in named)
    batches = text_batches(processor, texts, batch_size, groups, **(tokenizer_kwargs or {}))
    sums_CD, keys_C = torch.empty(0), [0] * len(classes)
    with evaluation_mode(model):
        for batch in batches:
            embeddings_BD = encode_batch(model, batch)
            indices = [named[position % len(named)][0] for position in batch.positions]
            if not len(sums_CD):
                sums_CD = embeddings_BD.new_zeros(len(classes), embeddings_BD.shape[1])
            sums_CD.index_add_(0, torch.tensor(indices, device=sums_CD.device), embeddings_BD)
            for index, row in zip(indices, batch.input_ids.tolist(), strict=True):
                keys_C[index] += hash(_without_padding(row))
        embeddings_CD = check_finite(F.normalize(sums_CD, dim=-1), "labels")
    # Outside inference mode: a tensor like any other, from which a linear probe may start.
    return LabelEmbeddings(embeddings_CD.clone(), equal_labels(classes, keys_C))


def _without_padding(ids: list[int]) -> tuple[int, ...]:
    end = len(ids)
    while end > 1 and ids[end - 1] == ids[end - 2]:
        end -= 1
    return tuple(ids[:end])


def _warn_of_equal_texts(pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        others = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
        one, other = (name if len(name) <= 60 else f"{name[:57]}..." for name in pairs[0])
        warnings.warn(
            f"labels {one!r} and {other!r}{others} become the same tokens (cut at the model's context, or alike but "
            "for case and spaces): their scores will be equal. Shorten them, or let their first words differ.",
            stacklevel=4,
        )


def _load_pair(source, device, dtype, options: dict[str, Any]) -> tuple[Any, Any]:
    """Model and processor of a checkpoint: by this package where it is installed, else by the Auto classes."""
    asked, dtype = dtype, fast_dtype(dtype, device or "cpu")
    try:
        from hf_clip import load, load_exported
        from hf_clip.export.runtime import is_exported
    except ImportError:
        model = AutoModelForZeroShotImageClassification.from_pretrained(source, dtype=dtype or "auto", **options)
        processor = AutoProcessor.from_pretrained(source, **options)
        return model.eval() if device is None else model.eval().to(device), processor
    if is_exported(source):
        if options or asked not in (None, "auto", "float32", torch.float32):
            raise TypeError(f"{source} is exported, and takes no {next(iter(options), 'dtype')}: drop it.")
        return load_exported(source, device=device)
    return load(source, device=device, dtype=dtype, **options)


def _named_prompts(argument: str, name: str) -> Any:
    """The prompts of the data set, or of the file, that one string names."""
    try:
        from hf_clip.prompts import load_prompts
    except ImportError:
        raise TypeError(f"`{argument}` is one string, {name!r:.60}: pass a list of strings.") from None
    try:
        return load_prompts(name)
    except ValueError as error:
        raise TypeError(
            f"`{argument}` is one string: pass a list of strings, or the name of a data set. {error}"
        ) from None


def _checked_classes(labels: Iterable[str | Sequence[str]] | str) -> tuple[tuple[str, ...], ...]:
    if isinstance(labels, str):
        prompts = _named_prompts("labels", labels)
        if not prompts.classes:
            raise ValueError(f"`labels={labels}`: {prompts.name} has templates and no classes: pass a list of labels.")
        return prompts.classes
    classes = tuple(_checked_class("labels", names) for names in labels)
    if not classes:
        raise ValueError("`labels` is empty: pass at least one.")
    return classes


def _checked_templates(templates: Iterable[str] | str) -> tuple[str, ...]:
    if isinstance(templates, str) and "{}" in templates:
        raise TypeError(f"`templates` is one string, {templates!r:.60}: pass a list of strings.")
    if isinstance(templates, str):
        return _named_prompts("templates", templates).templates
    texts = tuple(_checked_texts("templates", templates))
    for text in texts:
        if "{}" not in text:
            raise ValueError(f"`templates` holds {text!r}, which has no '{{}}': put '{{}}' where the label belongs.")
    return texts


def _checked_class(argument: str, names: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(_checked_texts(argument, names if isinstance(names, list | tuple) else [names]))


def _checked_texts(argument: str, texts: Iterable[Any]) -> list[str]:
    checked = list(texts)
    if not checked:
        raise ValueError(f"`{argument}` is empty, or holds an empty list: pass at least one text.")
    for text in checked:
        if not isinstance(text, str):
            raise TypeError(f"`{argument}` holds {text!r:.60}, which is {type(text).__name__}: pass strings.")
    return checked
