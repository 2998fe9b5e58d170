"""Zero-shot classification as in the paper (section 3.1): a classifier whose weights are encoded label texts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

# Shapes: B images of a batch, N images, C classes, T classes of a tile, K labels kept, D width of the shared
# space.

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers.utils import logging

from .image_decoding_hf_clip import ImageDecodeError, decode_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif")

# Classes scored at once: with 32 images, 1 MB of logits.
TILE = 8192
FILE_FORMAT = "hf_clip zero-shot classifier"


@contextmanager
def evaluation_mode(model: torch.nn.Module):
    """Run the body without dropout and gradients, and leave every module in the mode it was found in."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        # One by one: model.train() would also switch on modules that the caller had frozen in evaluation
        # mode.
        for module in trained:
            module.training = True


def batched(items: Iterable, batch_size: int) -> Iterator[list]:
    """Lists of `batch_size` items in order, the last one shorter. Raises ValueError if it is below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is below 1: set it to 1 or more.")
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def unit_text_embeds(model, processor, texts: Sequence[str]) -> torch.Tensor:
    """(len(texts), D) float32 unit embeddings on the model's device, from one forward pass."""
    return _encode_texts(model, processor, texts)[0]


def _encode_texts(model, processor, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings of texts, and their token ids."""
    encoding = processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
    mask = encoding.get("attention_mask")
    embeddings_BD = model.encode_text(
        encoding["input_ids"].to(model.device),
        None if mask is None else mask.to(model.device),
        normalize=False,
    )
    # In half precision a unit embedding is only unit to three digits: normalize after widening.
    return F.normalize(embeddings_BD.float(), dim=-1), encoding["input_ids"]


def unit_image_embeds(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, D) float32 unit embeddings on the model's device, from one forward pass over (B, 3, H, W)."""
    return F.normalize(model.encode_image(pixel_values.to(model.device), normalize=False).float(), dim=-1)


def check_finite(embeddings: torch.Tensor, of: str) -> torch.Tensor:
    """The embeddings. Raises ValueError if one holds NaN or infinity: every score would be NaN."""
    if not torch.isfinite(embeddings).all():
        raise ValueError(
            f"embeddings of {of} hold NaN or infinity: the model has diverged or overflows in "
            f"{str(embeddings.dtype)[6:]} or its own dtype. Take an earlier checkpoint, or load it in float32."
        )
    return embeddings


def uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model that `torch.compile` wraps, whose tensors bear their own names; any other as it is."""
    return getattr(model, "_orig_mod", model)


def hash_of_text_tower(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the text tower's tensors: what label embeddings depend on.

    It reads every weight once (a quarter of a second for ViT-B/32's), so it is for saving and loading, not for calls.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(uncompiled(model).state_dict().items()):
        if name.startswith("text_"):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


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
        templates: texts in which `{}` stands for the label. By default a label is its own text. For models
            trained on sentences of the web the paper found "a photo of a {}." to be a good first choice.
        rejection: names for a further class of images that show none of the labels, such as "something else".
        temperature: above 1 makes scores less sure, below 1 more.
        batch_size: texts encoded at once.

    Attributes:
        labels: list of C strings, the first name of each class.
        classes: tuple of C tuples of all names.
        templates: tuple of strings.
        rejection: tuple of names, or None.
        class_embeddings_CD: (C, D) float32 unit embeddings on the model's device.
        rejection_embedding_1D: likewise (1, D), or None.

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
        model,
        processor,
        labels: Iterable[str | Sequence[str]],
        templates: Iterable[str] = ("{}",),
        *,
        rejection: str | Sequence[str] | None = None,
        temperature: float = 1.0,
        batch_size: int = 256,
    ):
        classes = _checked_classes(labels)
        templates = tuple(_checked_texts("templates", templates))
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
        self.class_embeddings_CD = embeddings[: len(classes)]
        self.rejection_embedding_1D = None if rejection is None else embeddings[len(classes) :]

    @property
    def has_sigmoid(self) -> bool:
        """Whether the model scores each label by itself, as it was trained (SigLIP), instead of all by a softmax."""
        return getattr(self.model, "logit_bias", None) is not None

    def save(self, file: str | Path) -> Path:
        """Writes embeddings and words to a safetensors file, with the hash of the text tower that they belong to."""
        file, embeddings = Path(file), self.class_embeddings_CD
        if self.rejection_embedding_1D is not None:
            embeddings = torch.cat([embeddings, self.rejection_embedding_1D])
        words = {
            "classes": self.classes,
            "templates": self.templates,
            "rejection": self.rejection,
            "temperature": self.temperature,
        }
        # Not in the header, which safetensors holds to 100 MB.
        text = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        save_file(
            {"embeddings": embeddings.cpu().contiguous(), "words": text},
            partial,
            {"format": FILE_FORMAT, "text_tower": hash_of_text_tower(self.model)},
        )
        os.replace(partial, file)
        return file

    @classmethod
    def load(cls, file: str | Path, model, processor) -> "ZeroShotClassifier":
        """The classifier of a file that `save` wrote, without encoding a text.

        Raises:
            ValueError: if the file holds no classifier, or one of other weights than the model's text tower.
        """
        try:
            with safe_open(file, framework="pt") as content:
                metadata = content.metadata() or {}
                if metadata.get("format") != FILE_FORMAT:
                    raise ValueError(f"{file} holds no zero-shot classifier: write one with ZeroShotClassifier.save.")
                embeddings, text = content.get_tensor("embeddings"), content.get_tensor("words")
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}): write it again.") from None
        if metadata["text_tower"] != hash_of_text_tower(model):
            raise ValueError(
                f"{file} belongs to other weights than this model's text tower: load the model that it was saved "
                "with, in the same dtype, or make the classifier anew from its labels."
            )
        words = json.loads(text.numpy().tobytes())
        classes = tuple(map(tuple, words["classes"]))
        rejection = None if words["rejection"] is None else tuple(words["rejection"])
        loaded = cls.__new__(cls)
        templates, temperature = tuple(words["templates"]), words["temperature"]
        loaded._hold(model, processor, classes, templates, rejection, temperature, embeddings.to(model.device))
        return loaded

    def logits(self, image_embeds_BD: torch.Tensor) -> torch.Tensor:
        """(B, C) float32 logits of (B, D) unit embeddings: cosines times the model's scale, plus its bias."""
        return self._logits(image_embeds_BD, self.class_embeddings_CD)

    def _logits(self, image_embeds_BD: torch.Tensor, class_embeddings_TD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            scale = self.model.logit_scale.float().exp().reshape(())
            logits_BT = scale * image_embeds_BD.to(class_embeddings_TD) @ class_embeddings_TD.T
            return logits_BT + self.model.logit_bias.float().reshape(()) if self.has_sigmoid else logits_BT

    def embed(self, images, batch_size: int = 32, **options) -> torch.Tensor:
        """(N, D) float32 unit embeddings of images on the model's device. Arguments, errors: those of `predict`."""
        batches = self._batches(images, batch_size, **options)
        embeddings = [embeddings_BD for _, embeddings_BD in batches]
        if not embeddings:
            raise ValueError("there are no images to encode: pass at least one.")
        return torch.cat(embeddings)

    def rank(
        self, image_embeds_BD: torch.Tensor, top_k: int | None = None, *, multi_label: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and numbers of the best classes of (B, D) unit embeddings, both (B, K), best first.

        Of equal scores the class that stands first comes first. Number C is the rejection class. Arguments and errors
        are those of `predict`.
        """
        is_softmax = not (multi_label or self.has_sigmoid)
        total = len(self.labels) + (self.rejection is not None and not multi_label)
        kept = total if top_k is None else min(top_k, total)
        tile = TILE if kept < TILE else total
        tiles = list(zip(range(0, len(self.labels), tile), self.class_embeddings_CD.split(tile), strict=True))
        if total > len(self.labels):
            tiles.append((len(self.labels), self.rejection_embedding_1D))
        best_BK, numbers_BK, normalizer_B1 = None, None, None
        with torch.inference_mode():
            for start, class_embeddings_TD in tiles:
                logits_BT = self._logits(image_embeds_BD, class_embeddings_TD) / self.temperature
                numbers_BT = torch.arange(start, start + logits_BT.shape[1], device=logits_BT.device)
                numbers_BT = numbers_BT.expand_as(logits_BT)
                if is_softmax:
                    of_tile_B1 = logits_BT.logsumexp(-1, keepdim=True)
                    normalizer_B1 = of_tile_B1 if start == 0 else torch.logaddexp(normalizer_B1, of_tile_B1)
                if best_BK is not None:
                    logits_BT = torch.cat([best_BK, logits_BT], dim=-1)
                    numbers_BT = torch.cat([numbers_BK, numbers_BT], dim=-1)
                # topk does not say which of two equal logits comes first; a stable sort does.
                best_BK, places_BK = logits_BT.sort(dim=-1, descending=True, stable=True)
                best_BK, places_BK = best_BK[:, :kept], places_BK[:, :kept]
                numbers_BK = numbers_BT.gather(-1, places_BK)
            if is_softmax:
                return (best_BK - normalizer_B1).exp(), numbers_BK
            if not self.has_sigmoid:
                best_BK = best_BK - self._logits(image_embeds_BD, self.rejection_embedding_1D) / self.temperature
            return best_BK.sigmoid(), numbers_BK

    def rows(self, scores_BK: torch.Tensor, numbers_BK: torch.Tensor, threshold: float = 0.0) -> list[list[dict]]:
        """What `rank` found, as `predict` gives it."""
        names = [*self.labels, *(self.rejection or ())[:1]]
        return [
            [
                {"label": names[number], "score": score}
                for number, score in zip(numbers, scores, strict=True)
                if score >= threshold
            ]
            for numbers, scores in zip(numbers_BK.tolist(), scores_BK.tolist(), strict=True)
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
        batches = self._batches(
            images, batch_size, image_column=image_column, return_errors=return_errors, show_progress=show_progress
        )

        def answers():
            for batch, embeddings_BD in batches:
                found = iter(self.rows(*self.rank(embeddings_BD, top_k, multi_label=multi_label), threshold))
                for item in batch:
                    yield item if isinstance(item, ImageDecodeError) else next(found)

        return answers()

    def _batches(
        self, images, batch_size, *, image_column=None, return_errors=False, show_progress=None
    ) -> Iterator[tuple[list, torch.Tensor]]:
        """Images, errors among them, and the embeddings of those without."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is below 1: set it to 1 or more.")
        images = open_images(images, image_column)
        if show_progress is None:
            show_progress = sys.stderr is not None and sys.stderr.isatty()
        total = len(images) if isinstance(images, Sized) else None
        shown = logging.tqdm(images, total=total, unit="image", leave=False, disable=not show_progress)

        def decoded():
            for position, image in enumerate(shown):
                try:
                    yield decode_image(image)
                except ImageDecodeError as error:
                    if not return_errors:
                        raise ImageDecodeError(f"images[{position}]: {error}", error.reason) from error
                    yield error

        def encoded():
            for batch in batched(decoded(), batch_size):
                readable = [item for item in batch if not isinstance(item, ImageDecodeError)]
                embeddings_BD = self.class_embeddings_CD[:0]
                if readable:
                    # Not around the loop: between two batches the caller's own code runs.
                    with evaluation_mode(self.model):
                        pixel_values = self.processor(images=readable, return_tensors="pt")["pixel_values"]
                        embeddings_BD = check_finite(unit_image_embeds(self.model, pixel_values), "images")
                yield batch, embeddings_BD

        return encoded()


def open_images(images, image_column: str | None = None) -> Iterable:
    """An iterable of images for `decode_image`, from what `ZeroShotClassifier.predict` takes."""
    if isinstance(images, str | Path) and Path(images).is_dir():
        found = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise ValueError(f"{images} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        return found
    # A single path would be taken apart into its letters, an array into its rows or its channels.
    is_one = isinstance(images, str | bytes | Path | Mapping) or getattr(images, "ndim", 4) in (2, 3)
    if is_one or not isinstance(images, Iterable):
        raise TypeError(f"images is one {type(images).__name__}: pass a list of images, [image] for one.")
    features = getattr(images, "features", None) or {}
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    column = image_column or (columns[0] if columns else None)
    if columns:
        # Undecoded: a stream of datasets ends at its first broken image.
        undecoded = type(features[columns[0]])(decode=False)
        for name in columns:
            images = images.cast_column(name, undecoded)
    return _ImageRun(images, column) if isinstance(images, Sized) else _images_of_rows(images, column)


class _ImageRun:
    """The images of a collection that knows its length."""

    def __init__(self, rows, column: str | None):
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator:
        return _images_of_rows(self.rows, self.column)


def _images_of_rows(rows: Iterable, column: str | None) -> Iterator:
    for row in rows:
        # What `decode_image` takes as an image is a mapping of bytes and path.
        if isinstance(row, Mapping) and (column is not None or not row.keys() <= {"bytes", "path"}):
            wanted = column or "image"
            if wanted not in row:
                raise ValueError(f"rows have no column {wanted!r}: set image_column to one of {', '.join(row)}.")
            row = row[wanted]
        yield row


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
            embeddings_BD, ids = _encode_texts(model, processor, texts)
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
