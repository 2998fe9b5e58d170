"""Which columns hold the images, the captions, the labels and the concepts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from .errors import SourceError, column_error, how_to_set

# Within a role, the first group with a name among the columns wins; two names of one group are ambiguous.
# `txt` is first because tars often repeat it as a field of their `json`.
COLUMN_NAMES = {
    "image_column": (
        ("image",),
        ("jpg", "jpeg", "png", "webp", "img", "image", "images", "photo"),
        ("file_name", "filename", "image_path", "image_file", "filepath", "file", "path"),
    ),
    "caption_columns": (
        ("txt",),
        ("caption", "captions"),
        ("text", "texts"),
        ("title", "titles", "sentence", "sentences", "description", "alt_text"),
    ),
    "label_column": (("label", "labels"), ("class", "cls", "fine_label", "class_name", "category")),
    "concept_column": (("concept",), ("concept_id",)),
}


# Calls what it is given on one process, and gives the result, or raises the error, on all.
Share = Callable[[Callable[[], Any]], Any]


def on_its_own(make: Callable[[], Any]) -> Any:
    """The `Share` of a process that works alone."""
    return make()


IMAGE_KINDS = ("image", "bytes", "text", "texts")
# Objects are chosen too, so that the message is about them.
TEXT_KINDS = ("text", "texts", "object", "other")


@dataclass(frozen=True)
class Request:
    """What the caller asked for, as given to `open_source`."""

    split: str | None
    image_column: str | None
    caption_columns: tuple[str, ...] | None
    keyword_columns: tuple[str, ...]
    extra_columns: tuple[str, ...]
    label_column: str | None
    concept_column: str | None
    where: dict[str, tuple[str, ...]]
    mask_column: str | None = None
    has_joined: bool = False
    share: Share = on_its_own


@dataclass(frozen=True)
class Columns:
    """The columns that are read, by what they hold. `lists` are those whose fields are lists of texts, `extra` those
    that the caller wants as they are."""

    image: str
    captions: tuple[str, ...]
    keywords: tuple[str, ...]
    label: str | None
    concept: str | None
    where: tuple[str, ...]
    lists: tuple[str, ...] = ()
    mask: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def read(self) -> list[str]:
        texts = (*self.captions, *self.keywords, self.label, self.concept)
        named = (self.image, *texts, self.mask, *self.where, *self.extra)
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def images(self) -> list[str]:
        """The columns of images, masks among them."""
        return [self.image] if self.mask is None else [self.image, self.mask]


def choose_columns(name: str, kinds: Mapping[str, str], request: Request) -> Columns:
    """The columns to read.

    Args:
        name: of the data, for messages.
        kinds: of each column, as `kind_of_feature` and `kind_of_values` have them: "image", "bytes", "text", "texts",
            "label", "object" or "other".
        request: what the caller set.

    Raises:
        SourceError: a column is missing, cannot be chosen, or holds what its role has no use for.
    """
    mask = request.mask_column
    if mask is not None and kinds.get(mask) not in IMAGE_KINDS:
        raise column_error(name, "mask_column", kinds, mask)
    kinds_of_images = {column: kind for column, kind in kinds.items() if column != mask}
    image = _choose_image_column(name, kinds_of_images, request.image_column)
    rest = [column for column in kinds_of_images if column != image and kinds[column] != "image"]
    captions = request.caption_columns
    if captions is None:
        found = _find_column(name, "caption_columns", [c for c in rest if kinds[c] in TEXT_KINDS], kinds)
        captions = () if found is None else (found,)
    label = request.label_column or _find_column(name, "label_column", rest, kinds)
    if label is None and [kinds[column] for column in rest].count("label") == 1:
        label = next(column for column in rest if kinds[column] == "label")
    concept = request.concept_column or _find_column(name, "concept_column", rest, kinds)
    asked = {
        "caption_columns": captions,
        "keyword_columns": request.keyword_columns,
        "extra_columns": request.extra_columns,
        "label_column": (label,),
        "concept_column": (concept,),
        "where": request.where,
    }
    for option, columns in asked.items():
        for column in columns:
            if column is not None and column not in kinds:
                raise column_error(name, option, kinds, column)
            if column is not None and kinds[column] == "object":
                raise SourceError(
                    f"column {column!r} of {name!r} holds objects, not texts or numbers. Columns: {', '.join(kinds)}. "
                    f"Write what is wanted of them into a column of its own, and set `{option}` to that."
                )
    if not captions and label is None and mask is None and not request.has_joined:
        raise column_error(name, "caption_columns", kinds)
    texts = (captions, request.keyword_columns, label, concept)
    return Columns(image, *texts, tuple(request.where), mask=mask, extra=request.extra_columns)


def _choose_image_column(name: str, kinds: Mapping[str, str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in kinds:
            raise column_error(name, "image_column", kinds, wanted)
        if kinds[wanted] not in IMAGE_KINDS:
            raise SourceError(
                f"column {wanted!r} of {name!r} holds neither images nor bytes nor paths. Columns: "
                f"{', '.join(kinds)}. {how_to_set('image_column')}."
            )
        return wanted
    images = [column for column, kind in kinds.items() if kind == "image"]
    if len(images) == 1:
        return images[0]
    candidates = images or [column for column, kind in kinds.items() if kind in IMAGE_KINDS]
    found = _find_column(name, "image_column", candidates, kinds)
    if found is None:
        raise column_error(name, "image_column", kinds)
    return found


def _find_column(name: str, option: str, candidates: Sequence[str], kinds: Mapping[str, str]) -> str | None:
    for group in COLUMN_NAMES[option]:
        found = [column for column in candidates if column.lower() in group]
        if len(found) > 1:
            raise SourceError(
                f"{name!r} has several columns that could be the {option.replace('_', ' ')}: "
                f"{', '.join(found)} (of {', '.join(kinds)}). {how_to_set(option)}."
            )
        if found:
            return found[0]
    return None


def kind_of_feature(feature: Any) -> str:
    """What a column of this type holds; lists of images and of bytes count as such, for lists of one are taken."""
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "label"
    if isinstance(feature, dict):
        return "image" if "bytes" in feature and set(feature) <= {"bytes", "path"} else "object"
    if isinstance(feature, datasets.List | datasets.LargeList):
        kind = kind_of_feature(feature.feature)
        return {"text": "texts", "label": "other"}.get(kind, kind)
    kind = getattr(feature, "dtype", "other")
    return {"binary": "bytes", "large_binary": "bytes", "string": "text", "large_string": "text"}.get(kind, "other")


def kind_of_values(values: Sequence[Any]) -> str:
    """As `kind_of_feature`, of a column without a type, by its first values."""
    there = [value for value in values if value is not None]
    if any(isinstance(value, list | tuple) for value in there):
        items = [item for value in there for item in (value if isinstance(value, list | tuple) else [value])]
        kind = kind_of_values(items)
        return "texts" if kind == "text" else kind
    if any(isinstance(value, dict) and ("bytes" in value or isinstance(value.get("path"), str)) for value in there):
        return "image"
    if there and all(isinstance(value, dict) for value in there):
        return "object"
    if any(isinstance(value, str) for value in there):
        return "text"
    return "bytes" if any(isinstance(value, bytes) for value in there) else "other"
