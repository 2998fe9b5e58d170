"""Which images are kept out of training for validation: by their content, whatever file, row or order they come in."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, cast

import datasets

from hf_clip.sources import Source, iterate_samples
from hf_clip.sources.sample import image_of


def is_held_out(image: Mapping[str, Any], fraction: float | None) -> bool:
    """Whether an image, {"bytes", "path"}, is among the given fraction of all. One without content never is."""
    if fraction is None:
        return False
    content, path = image["bytes"], image["path"] or ""
    if content is None or "://" in path:
        # Data may be moved: the folder of a file and its name are what stays.
        content = "/".join(PurePosixPath(path).parts[-2:]).encode(errors="surrogatepass")
    if not content:
        return False
    digest = hashlib.blake2b(content, digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def held_out_part(source: Source, fraction: float) -> Source:
    """The rows of a source whose images are held out, in their order."""
    rows = cast(datasets.IterableDataset, _HeldOut(source, fraction))
    return replace(source, dataset=rows, num_rows=None, file_starts=(), find_rows=None)


def held_out_parts(sources: Sequence[Source], fraction: float) -> Source:
    """As `held_out_part`, of several sources whose columns may differ: their images, captions and concepts."""
    rows = cast(datasets.IterableDataset, _Union([held_out_part(source, fraction) for source in sources]))
    return Source(
        dataset=rows,
        name=", ".join(source.name for source in sources),
        image_column="image",
        caption_columns=("caption",),
        concept_column="concept" if any(source.concept_column for source in sources) else None,
        columns=("image", "caption", "concept"),
    )


@dataclass(frozen=True)
class _Union:
    sources: list[Source]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for source in self.sources:
            for sample in iterate_samples(source):
                yield {"image": sample.image, "caption": sample.captions, "concept": sample.concept}


@dataclass(frozen=True)
class _HeldOut:
    source: Source
    fraction: float

    def __iter__(self) -> Iterator[dict[str, Any]]:
        source = self.source
        for row in source.dataset:
            image = image_of(row[source.image_column], source.folder, source.name, source.name)
            if image is not None and is_held_out(image, self.fraction):
                yield row

    def select_columns(self, columns: Sequence[str]) -> "_HeldOut":
        """All of them: which rows are held out is told by their images."""
        return self

    def take(self, count: int) -> Iterator[dict[str, Any]]:
        """The first rows."""
        return islice(self, count)
