"""Which data, and which of its columns: what recipes, evaluations, the suite and the command have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .columns import Share, on_its_own
from .joined_captions import CaptionTable
from .opening import open_source
from .sample import Source


@dataclass(frozen=True)
class DataSpec:
    """A description of data that `open` opens. See `open_source` for what each field takes.

    Attributes:
        data: files, a folder, or a Hub id.
        split: the split to use, if the data has several.
        where: keep the rows whose column has the value, or one of a list of values.
        image_column: the column of images; None finds it by its name.
        caption_columns: the columns of captions, likewise.
        keyword_columns: columns of words for what an image shows.
        extra_columns: further columns, as they are.
        label_column: the column of class labels, likewise.
        concept_column: the column whose equal values mark images of one thing, likewise.
        mask_column: the column of images whose pixels are indices of classes; none by default.
        join: captions of another table, as `open_source` takes it.
    """

    data: str | Path | Sequence[str | Path]
    split: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    caption_columns: Sequence[str] | None = None
    keyword_columns: Sequence[str] = ()
    extra_columns: Sequence[str] = ()
    label_column: str | None = None
    concept_column: str | None = None
    mask_column: str | None = None
    join: CaptionTable | None = None

    def open(self, share: Share = on_its_own) -> Source:
        """The data as a stream of undecoded samples. Raises SourceError for whatever is wrong with it."""
        return open_source(
            self.data,
            split=self.split,
            image_column=self.image_column,
            caption_columns=self.caption_columns,
            keyword_columns=self.keyword_columns,
            extra_columns=self.extra_columns,
            label_column=self.label_column,
            concept_column=self.concept_column,
            where=self.where,
            mask_column=self.mask_column,
            join=self.join,
            share=share,
        )
