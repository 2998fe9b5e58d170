"""Captions that lie in a table of their own, joined to images by a key that both have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .columns import COLUMN_NAMES
from .errors import SourceError, column_error, first_names, report_row
from .files import list_files
from .marks import PROBLEM
from .readers import read_rows
from .remote import is_address
from .sample import Source, clean_captions, single_text
from .values import as_text, spellings

# Rows of the images' data in which a key of the table must be found.
ROWS_TO_LOOK_AT = 1000


@dataclass(frozen=True)
class CaptionTable:
    """A table of captions, and how its rows belong to images.

    Attributes:
        data: CSV, TSV, JSON lines or parquet: a file, several, or a folder of such.
        key_column: the column that it and the images' data have. Several rows with a value are several captions.
        caption_column: the column of captions; None finds it by its name.
        language_column: the column that says in which language a caption is; none by default.
        where: keep the rows whose column has the value, or one of a list of values.
    """

    data: str | Path | Sequence[str | Path]
    key_column: str
    caption_column: str | None = None
    language_column: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> "JoinedCaptions":
        """The table, held in memory. Raises SourceError where it lacks a column, or no row is kept."""
        files = [str(file) for file in list_files(self.data)[0]]
        if remote := [file for file in files if is_address(file)]:
            raise SourceError(f"{remote[0]!r}: a table to `join` is read whole. Fetch it to this machine.")
        name = first_names(files, 3)
        accepted = {column: _spelled(value) for column, value in self.where.items()}
        captions: dict[str, list[tuple[str | None, str]]] = {}
        for file in files:
            column: str | None = None
            for key, row in read_rows(file):
                if PROBLEM in row:
                    report_row(key, row[PROBLEM], file)
                    continue
                column = column or self._caption_column(file, row)
                if all(_spelled(row.get(each)) & values for each, values in accepted.items()):
                    self._add(captions, row, column, key, file)
        if not captions:
            raise SourceError(f"{name!r} has no row to `join`: check its columns, and its `where`.")
        return JoinedCaptions(name, self.key_column, captions, self.language_column is not None)

    def _caption_column(self, file: str, row: Mapping[str, Any]) -> str:
        """The column of captions; a SourceError where one of the others is not there."""
        for option, wanted in (("key_column", self.key_column), ("language_column", self.language_column)):
            if wanted is not None and wanted not in row:
                raise column_error(file, option, row, wanted)
        for column in self.where:
            if column not in row:
                raise column_error(file, "where", row, column)
        if self.caption_column is not None:
            if self.caption_column not in row:
                raise column_error(file, "caption_column", row, self.caption_column)
            return self.caption_column
        for names in COLUMN_NAMES["caption_columns"]:
            if found := [column for column in row if column.lower() in names and column != self.key_column]:
                return found[0]
        raise column_error(file, "caption_column", row)

    def _add(self, captions: dict, row: Mapping[str, Any], column: str, key: str, file: str) -> None:
        value, language = single_text(row.get(self.key_column), self.key_column, key, file), None
        if self.language_column is not None:
            language = single_text(row.get(self.language_column), self.language_column, key, file)
        if value and value.strip():
            captions.setdefault(value, []).extend((language, text) for text in clean_captions(row.get(column)))


@dataclass(frozen=True)
class JoinedCaptions:
    """A `CaptionTable` that was read.

    Attributes:
        name: what the user knows it by, for messages.
        key_column: the column by which it is joined.
        captions: by the value of that column, (language, caption) in the order of the table.
        has_languages: whether the table says them.
    """

    name: str
    key_column: str
    captions: Mapping[str, Sequence[tuple[str | None, str]]]
    has_languages: bool

    def of(self, value: Any) -> list[str]:
        """The captions of a value of the column, equal ones once; none where the table does not know it."""
        return list(dict.fromkeys(text for _, text in self.captions.get(as_text(value) or "", ())))

    def by_language(self, value: Any) -> dict[str, list[str]]:
        """The captions of a value by their language."""
        found: dict[str, list[str]] = {}
        for language, text in self.captions.get(as_text(value) or "", ()):
            if language is not None:
                found.setdefault(language, []).append(text)
        return found

    def require_keys_of(self, source: Source) -> None:
        """Raises SourceError where no row among the source's first has a value that the table knows."""
        rows = list(islice(source.dataset.select_columns([self.key_column]), ROWS_TO_LOOK_AT))
        if not any(self.of(row[self.key_column]) for row in rows):
            theirs = [as_text(row[self.key_column]) or "" for row in rows[:3]]
            raise SourceError(
                f"`join`: no value of column {self.key_column!r} in the first {len(rows)} rows of {source.name!r} "
                f"(such as {first_names(theirs)}) is in {self.name!r} (such as "
                f"{first_names(list(self.captions)[:3])}). Check `key_column`."
            )


def _spelled(value: Any) -> set[str]:
    values = value if isinstance(value, list | tuple | set) else [value]
    return {spelling for item in values for spelling in spellings(as_text(item) or "")}
