"""The sources of a recipe, opened, with their weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hf_clip.sources import DataSpec, Source, clean_captions
from hf_clip.training.config import DataConfig


@dataclass(frozen=True)
class TrainingData:
    """What is trained on: sources with captions, and how often an epoch passes through each."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        return ", ".join(source.name for source in self.sources)

    @property
    def num_rows(self) -> int | None:
        """Of all sources, where it is known without reading them."""
        rows = [source.num_rows for source in self.sources if source.num_rows is not None]
        return sum(rows) if len(rows) == len(self.sources) else None

    def captions(self) -> Iterator[str]:
        """All captions and keywords, without reading the images."""
        for source in self.sources:
            columns = [*source.caption_columns, *source.keyword_columns]
            for row in source.dataset.select_columns(columns):
                for column in columns:
                    yield from clean_captions(row[column])


def open_training_source(config: DataConfig) -> TrainingData:
    """The recipe's training data: with `weights`, each entry of `train` is a source; else files of a kind are one.

    Raises:
        SourceError: for what is wrong with it as a whole.
    """
    groups: list[Sequence[str]]
    if config.weights is None:
        groups = [list(group) for _, group in groupby(config.train, _kind)]
    else:
        groups = [[item] for item in config.train]
    sources = tuple(_open(group, config) for group in groups)
    return TrainingData(sources, tuple(config.weights or [1.0] * len(sources)))


def _kind(item: str) -> str:
    """Alike for files that are read as one source; a folder and an id on the Hub are sources of their own."""
    return Path(item).suffix.lower() or item


def _open(items: Sequence[str], config: DataConfig) -> Source:
    spec = DataSpec(
        items[0] if len(items) == 1 else items,
        split=config.split,
        where=config.where,
        image_column=config.image_column,
        caption_columns=config.caption_columns,
        keyword_columns=config.keyword_columns,
        concept_column=config.concept_column,
    )
    return spec.open().require_captions()
