"""Zero-shot classification as in the paper (section 3.1): a classifier whose weights are encoded label texts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

# Shapes: B images of a batch, N images, C classes, T classes of a tile, K labels kept, D width of the shared
# space.

import json
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from .embedding_hf_clip import batched, check_finite, dual_encoder, encode_texts, evaluation_mode, image_batches
from .image_decoding_hf_clip import ImageDecodeError
from .state_key_hf_clip import check_probe, probe_embeds, state_parts
from .typing_hf_clip import DualEncoder, Processor

# The paper's first choice (section 3.1.4), for models that were not saved with templates of their own.
DEFAULT_TEMPLATES = ("a photo of a {}.",)

# Classes scored at once: with 32 images, 1 MB of logits.
TILE = 8192
FILE_FORMAT = "hf_clip zero-shot classifier"


def templates_of(model) -> tuple[str, ...]:
    """The templates that a model is to be evaluated with: those of its config, else `DEFAULT_TEMPLATES`."""
    return tuple(getattr(getattr(model, "config", None), "zero_shot_templates", None) or DEFAULT_TEMPLATES)


class ZeroShotClassifier:
    """Classifies images by labels given as words.

    A class's embedding is the mean of the normalized embeddings of its names in all templates, normalized again
    (section 3.1.4 of the paper): an ensemble in the space of embeddings, as cheap to use as a single prompt. The
    embeddings are computed once, when the classifier is made, `batch_size` texts at a time, and scored in tiles:
    beyond the C embeddings themselves, memory grows neither with labels nor with templates. `save` and `load` keep
    them.

    Scores are what the model was trained to give: the softmax over all labels, or, for models with a `logit_bias`
    (SigLIP), each label's sigmoid. `hf_clip.evaluation.calibrate` fits `temperature`, by which logits are divided.

    Args:
        model: a dual encoder with `encode_image`, `encode_text`, `logit_scale` and, if trained so, `logit_bias`.
        processor: its processor.
        labels: C labels, or lists of several names for one class, which is shown by the first. Two classes may share a
            name, as in published lists of ImageNet's; then they share a score.
        templates: texts in which `{}` stands for the label; ["{}"] makes each label its own text. By default those
            that the model was saved with (`config.zero_shot_templates`), else `DEFAULT_TEMPLATES`.
        rejection: names for a further class of images that show none of the labels, such as "something else".
        temperature: above 1 makes scores less sure, below 1 more.
        batch_size: texts encoded at once.

    Attributes:
        labels: list of C strings, the first name of each class.
        classes: tuple of C tuples of all names.
        templates: tuple of strings.
        rejection: tuple of names, or None.
        class_embeddings: (C, D) float32 unit embeddings on the model's device.
        rejection_embedding: (1, D) likewise, or None.

    Raises:
        TypeError: if `labels` or `templates` is one string instead of several.
        ValueError: if there are no labels or no templates, a template lacks its `{}`, the temperature is not above 0,
            or the model gives NaN or infinity.

    Warns:
        UserWarning: if classes of different names become the same token ids (cut at the model's context, say): the
            model cannot tell them apart.
    """

    def __init__(
        self,
        model: DualEncoder,
        processor: Processor,
        labels: Iterable[str | Sequence[str]],
        templates: Iterable[str] | None = None,
        *,
        rejection: str | Sequence[str] | None = None,
        temperature: float = 1.0,
        batch_size: int = 256,
    ):
        model = dual_encoder(model)
        classes = _checked_classes(labels)
        templates = tuple(_checked_texts("templates", templates_of(model) if templates is None else templates))
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no '{{}}': put '{{}}' where the label belongs.")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} is not above 0.")
        rejected = None if rejection is None else _checked_class("rejection", rejection)
        everything = classes if rejected is None else (*classes, rejected)
        embeddings = _encode_classes(model, processor, everything, templates, batch_size)
        self._hold(model, processor, classes, templates, rejected, temperature, embeddings)

    def _hold(self, model, processor, classes, templates, rejection, temperature: float, embeddings: torch.Tensor):
        self.model, self.processor = model, processor
        self.classes, self.templates, self.rejection = classes, templates, rejection
        self.labels = [names[0] for names in classes]
        self.temperature = temperature
        self.class_embeddings = embeddings[: len(classes)]
        self.rejection_embedding = None if rejection is None else embeddings[len(classes) :]

    @property
    def has_sigmoid(self) -> bool:
        """Whether the model scores each label by itself, as it was trained (SigLIP), instead of all by a softmax."""
        return getattr(self.model, "logit_bias", None) is not None

    def save(self, file: str | Path) -> Path:
        """Writes embeddings and words to a safetensors file, with the key of the state that they belong to.

        Weights, adapters, settings and tokenizer are in the key; the embeddings of two probe texts stand beside it.

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
        return self._logits(image_embeds, self.class_embeddings)

    def _logits(self, image_embeds_BD: torch.Tensor, class_embeddings_TD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            scale = self.model.logit_scale.float().exp().reshape(())
            logits_BT = scale * image_embeds_BD.to(class_embeddings_TD) @ class_embeddings_TD.T
            bias = getattr(self.model, "logit_bias", None)
            return logits_BT if bias is None else logits_BT + bias.float().reshape(())

    def embed(self, images, batch_size: int = 32, **options) -> torch.Tensor:
        """(N, D) float32 unit embeddings of images on the model's device. Arguments, errors: those of `predict`."""
        batches = image_batches(self.model, self.processor, images, batch_size, **options)
        embeddings = [embeddings_BD for _, embeddings_BD in batches if embeddings_BD is not None]
        if not embeddings:
            raise ValueError("`images` is empty: pass at least one.")
        return torch.cat(embeddings)

    def rank(
        self, image_embeds: torch.Tensor, top_k: int | None = None, *, multi_label: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and indices of the best classes of (B, D) unit embeddings, both (B, K), best first.

        Of equal scores the class that stands first comes first. Index C is the rejection class. Arguments and errors
        are those of `predict`.
        """
        is_softmax = not (multi_label or self.has_sigmoid)
        total = len(self.labels) + (self.rejection is not None and not multi_label)
        kept = total if top_k is None else min(top_k, total)
        tile = TILE if kept < TILE else total
        tiles = list(zip(range(0, len(self.labels), tile), self.class_embeddings.split(tile), strict=True))
        if total > len(self.labels):
            tiles.append((len(self.labels), self.rejection_embedding))
        best_BK = indices_BK = normalizer_B1 = None
        with torch.inference_mode():
            for start, class_embeddings_TD in tiles:
                logits_BT = self._logits(image_embeds, class_embeddings_TD) / self.temperature
                indices_BT = torch.arange(start, start + logits_BT.shape[1], device=logits_BT.device)
                indices_BT = indices_BT.expand_as(logits_BT)
                if is_softmax:
                    of_tile_B1 = logits_BT.logsumexp(-1, keepdim=True)
                    normalizer_B1 = of_tile_B1 if start == 0 else torch.logaddexp(normalizer_B1, of_tile_B1)
                if best_BK is not None:
                    logits_BT = torch.cat([best_BK, logits_BT], dim=-1)
                    indices_BT = torch.cat([indices_BK, indices_BT], dim=-1)
                # topk does not say which of two equal logits comes first; a stable sort does.
                best_BK, places_BK = logits_BT.sort(dim=-1, descending=True, stable=True)
                best_BK, places_BK = best_BK[:, :kept], places_BK[:, :kept]
                indices_BK = indices_BT.gather(-1, places_BK)
            if is_softmax:
                return (best_BK - normalizer_B1).exp(), indices_BK
            if not self.has_sigmoid:
                best_BK = best_BK - self._logits(image_embeds, self.rejection_embedding) / self.temperature
            return best_BK.sigmoid(), indices_BK

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
            images: images of any kind that `decode_image` takes, in a list or any other iterable, (B, ...) array or
                tensor; a folder's path, for the images below it in sorted order; a `datasets` data set or stream.
            batch_size: images encoded at once.
            top_k: how many labels to give for each image; None gives all of them.
            multi_label: judge each label by itself, as several may apply. Models trained with a softmax then need a
                rejection class: a label's score is the softmax of the two.
            threshold: labels of lower scores are left out; where all are, the list is empty.
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
        return list(self.stream(images, batch_size, top_k, **options))

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
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} is below 1: set it to 1 or more, or to None for all labels.")
        if multi_label and not self.has_sigmoid and self.rejection is None:
            raise ValueError(
                "multi_label=True: this model was trained with a softmax, which judges a label only against others. "
                "Give the classifier something to weigh each label against, such as rejection='something else'."
            )
        batches = image_batches(
            self.model,
            self.processor,
            images,
            batch_size,
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


def _encode_classes(model, processor, classes, templates, batch_size: int) -> torch.Tensor:
    """(C, D) float32 unit embeddings of classes that are tuples of names."""
    prompts = (
        # Not str.format: labels and templates may hold braces of their own.
        (number, template.replace("{}", name))
        for number, names in enumerate(classes)
        for name in names
        for template in templates
    )
    sums_CD, keys_C = None, [0] * len(classes)
    with evaluation_mode(model):
        for batch in _of_like_length(prompts, batch_size):
            numbers, texts = zip(*batch, strict=True)
            embeddings_BD, ids = encode_texts(model, processor, texts)
            if sums_CD is None:
                sums_CD = embeddings_BD.new_zeros(len(classes), embeddings_BD.shape[1])
            sums_CD.index_add_(0, torch.tensor(numbers, device=sums_CD.device), embeddings_BD)
            for number, row in zip(numbers, ids.tolist(), strict=True):
                keys_C[number] += hash(_without_padding(row))
        embeddings_CD = check_finite(F.normalize(sums_CD, dim=-1), "labels")
    _warn_of_equal_texts(classes, keys_C)
    return embeddings_CD


def _of_like_length(prompts: Iterable[tuple[int, str]], batch_size: int) -> Iterator[list[tuple[int, str]]]:
    """Batches of prompts, sorted by length within every 16: padding is work."""
    for several in batched(prompts, 16 * batch_size):
        yield from batched(sorted(several, key=lambda prompt: len(prompt[1])), batch_size)


def _without_padding(ids: list[int]) -> tuple[int, ...]:
    end = len(ids)
    while end > 1 and ids[end - 1] == ids[end - 2]:
        end -= 1
    return tuple(ids[:end])


def _warn_of_equal_texts(classes: Sequence[tuple[str, ...]], keys_C: list[int]) -> None:
    first: dict[int, int] = {}
    pairs = [
        (classes[first[key]][0], names[0])
        for number, (names, key) in enumerate(zip(classes, keys_C, strict=True))
        if classes[first.setdefault(key, number)] != names
    ]
    if pairs:
        others = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
        one, other = (name if len(name) <= 60 else f"{name[:57]}..." for name in pairs[0])
        warnings.warn(
            f"labels {one!r} and {other!r}{others} become the same tokens (cut at the model's context, or alike but "
            "for case and spaces): their scores will be equal. Shorten them, or let their first words differ.",
            stacklevel=4,
        )


def _checked_classes(labels: Iterable[str | Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    if isinstance(labels, str):
        raise TypeError(f"labels={labels!r} is one string: pass a list of strings.")
    classes = tuple(_checked_class("labels", names) for names in labels)
    if not classes:
        raise ValueError("labels is empty: pass at least one.")
    return classes


def _checked_class(name: str, names: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(
        _checked_texts(name, [names] if isinstance(names, str) or not isinstance(names, list | tuple) else names)
    )


def _checked_texts(name: str, texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"{name}={texts!r} is one string: pass a list of strings.")
    checked = list(texts)
    if not checked:
        raise ValueError(f"{name} is empty: pass at least one.")
    for text in checked:
        if not isinstance(text, str):
            raise TypeError(f"{name} holds {text!r}, which is {type(text).__name__}: pass strings.")
    return checked
