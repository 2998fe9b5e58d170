"""The sources of a recipe, opened, with their weights."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from hf_clip.sources import DataSpec, Shards, Source, SourceError, clean_captions, list_shards
from hf_clip.sources.cache import set_bound
from hf_clip.sources.columns import Share, on_its_own
from hf_clip.sources.errors import UnlikeColumnsError
from hf_clip.sources.remote import suffix_of
from hf_clip.training.config import DataConfig


@dataclass(frozen=True)
class TrainingData:
    """What is trained on: sources with captions, and how often an epoch passes through each."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    label_templates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return ", ".join(source.name for source in self.sources)

    @property
    def num_rows(self) -> int | None:
        """Of all sources, where it is known without reading them."""
        rows = [source.num_rows for source in self.sources if source.num_rows is not None]
        return sum(rows) if len(rows) == len(self.sources) else None

    @property
    def shards(self) -> list[Shards]:
        """The parts of each source that are read on their own, found again."""
        return [list_shards(source) for source in self.sources]

    def captions(self) -> Iterator[str]:
        """All captions and keywords, without reading the images."""
        for source in self.sources:
            if self.label_templates:
                yield from self._of_labels(source)
            columns = [*source.caption_columns, *source.keyword_columns] if not self.label_templates else []
            joined, keys = source.joined, set()
            for row in source.dataset.select_columns(columns if joined is None else [*columns, joined.key_column]):
                for column in columns:
                    yield from clean_captions(row[column])
                if joined is not None and row[joined.key_column] not in keys:
                    # Many images have one key.
                    keys.add(row[joined.key_column])
                    yield from joined.of(row[joined.key_column])

    def _of_labels(self, source: Source) -> Iterator[str]:
        """The captions that class names make."""
        names = source.label_names
        if names is None:
            assert source.label_column is not None
            rows = source.dataset.select_columns([source.label_column])
            names = dict.fromkeys(str(row[source.label_column]) for row in rows)
        for name in names:
            yield from label_captions(self.label_templates, [name])


def label_captions(templates: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The texts that templates make of class names."""
    return [template.replace("{}", label) for label in labels for template in templates]


def open_training_source(config: DataConfig, share: Share = on_its_own) -> TrainingData:
    """The recipe's training data: with `weights`, each entry of `train` is a source; else files of a kind are one.

    Args:
        config: the recipe's data section.
        share: as for `open_source`; `Coordinator.share` where several processes open it together.

    Raises:
        SourceError: for what is wrong with it as a whole.
    """
    set_bound(int(config.shard_cache_gb * 1e9))
    groups: list[Sequence[str]]
    if config.weights is None:
        groups = [list(group) for _, group in groupby(config.train, _kind)]
    else:
        groups = [[item] for item in config.train]
    sources = tuple(_open(group, config, share) for group in groups)
    weights = tuple(config.weights or [1.0] * len(sources))
    return TrainingData(sources, weights, tuple(config.label_templates or ()))


def describe_fetching(fetched: Counter[str]) -> str:
    """A line on what a run fetched from addresses, and what it had to ask for again."""
    repeated = Counter({name: count for name, count in fetched.items() if name not in ("parts", "bytes")})
    reasons = ", ".join(f"{count} {name}" for name, count in repeated.most_common())
    again = f"; {repeated.total()} requests were made again ({reasons})" if repeated else ""
    return f"Fetched {fetched['parts']} shards, {fetched['bytes'] / 1e9:.2f} GB{again}."


def _kind(item: str) -> str:
    """Alike for files that are read as one source; a folder and an id on the Hub are sources of their own."""
    return item if item.startswith("@") else suffix_of(item) or item


def _open(items: Sequence[str], config: DataConfig, share: Share) -> Source:
    spec = DataSpec(
        items[0] if len(items) == 1 else items,
        split=config.split,
        where=config.where,
        image_column=config.image_column,
        caption_columns=config.caption_columns,
        keyword_columns=config.keyword_columns,
        extra_columns=config.extra_columns,
        label_column=config.label_column,
        concept_column=config.concept_column,
        join=None if config.join is None else config.join.table(),
    )
    try:
        source = spec.open(share)
    except UnlikeColumnsError as error:
        raise SourceError(
            f"{str(error).removesuffix('.')}, or set `weights`, such as {[1] * len(items)}: each entry of `data` is "
            "then a source of its own."
        ) from error
    if config.label_templates is not None:
        return source.require_label()
    if not source.has_captions and source.label_column is not None:
        raise SourceError(
            f"{source.name!r} has class labels in column {source.label_column!r} and no captions: set "
            '`label_templates`, such as ["a photo of a {}."], or `caption_columns`.'
        )
    return source.require_captions()
