"""`find_duplicates`: embeddings find pairs, the pixel check decides, groups form around the best image."""

# Shapes: P pairs.

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_clip.model.image_decoding_hf_clip import ImageDecodeError

from ..errors import SearchError, writing
from ..updating import Update, progress_bar
from .candidates import count_blocks, near_pairs
from .check import compare
from .grouping import make_groups
from .images import Content, Images, check_apart, read_images
from .looks import pixel_hash
from .plan import KEEP, MOVE, Duplicate, DuplicatePlan, Group, PlannedImage
from .quality import Quality, measure_quality, quality_of_look, why_better

if TYPE_CHECKING:
    from ..index import Index

logger = logging.getLogger(__name__)

# Pairs of a lesser cosine are not compared, and of each image so many at most.
LEAST_SIMILARITY, TOP_K = 0.7, 32
# Images whose pixels differ are listed as similar from here on.
SIMILAR = 0.95
# In the folder of an index: what was compared, 8 bytes a file.
COMPARED = "compared.bin"
# Looks are read for so many images ahead.
AHEAD = 64
# Levels of 255 by which small squares of equal pixels differ at most, as one may have been decoded at a reduced size.
_NEARLY = 24


@dataclass(frozen=True)
class _Match:
    kind: str
    how: str
    similarity: float


class _Comparison:
    """Two images at a time, each pair once."""

    def __init__(self, plan: DuplicatePlan, similar_above: float):
        self.plan, self.similar_above = plan, similar_above
        self.owners: list[tuple[Images, Content]] = []
        self.similarities: dict[tuple[int, int], float] = {}
        self.same = cache(self._same)
        self.quality = cache(self._quality)
        self._pixel_hash = cache(self._hash_of)

    def add(self, images: Images) -> range:
        """Numbers of the contents of a set of images."""
        first = len(self.owners)
        self.owners += [(images, content) for content in images.contents]
        return range(first, len(self.owners))

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """Reads the looks of these images in threads."""
        by_set: dict[int, tuple[Images, list[Content]]] = {}
        for number in numbers:
            images, content = self.owners[number]
            by_set.setdefault(id(images), (images, []))[1].append(content)
        for images, contents in by_set.values():
            images.read_ahead(contents)

    def _same(self, best: int, other: int) -> _Match | None:
        (images, content), (other_images, other_content) = self.owners[best], self.owners[other]
        similarity = self.similarities.get((min(best, other), max(best, other)), 0.0)
        if content.hash == other_content.hash:
            return _Match("same_bytes", "", 1.0)
        looks = images.look(content), other_images.look(other_content)
        for look, one in zip(looks, (content, other_content), strict=True):
            if look.error is not None:
                self.plan.unreadable[one.first.path] = look.error
                return None
        first, second = looks
        animated = first.is_animated or second.is_animated
        if not animated and self._may_be_equal(first, second):
            hashes = self._pixel_hash(best), self._pixel_hash(other)
            if hashes[0] == hashes[1] != "" and first.is_deep == second.is_deep:
                return _Match("same_pixels", "the same pixels in other bytes", similarity)
        verdict = compare(first, second)
        if verdict.is_same:
            return _Match("edited", verdict.reason, similarity)
        if similarity >= self.similar_above:
            pair = {"first": content.first.path, "second": other_content.first.path}
            self.plan.similar.append({**pair, "similarity": round(similarity, 4), "why": verdict.reason})
        return None

    @staticmethod
    def _may_be_equal(first, second) -> bool:
        if (first.width, first.height) != (second.width, second.height):
            return False
        return int(np.abs(first.pixels.astype(int) - second.pixels).max()) <= _NEARLY

    def _hash_of(self, number: int) -> str:
        images, content = self.owners[number]
        look = images.look(content)
        if look.digest is not None:
            return look.digest
        try:
            return pixel_hash(images.file(content))
        except (OSError, ImageDecodeError, MemoryError):
            return ""

    def _quality(self, number: int) -> Quality:
        images, content = self.owners[number]
        look, size = images.look(content), content.first.size
        if images.is_table:
            return quality_of_look(look, size)
        return measure_quality(images.file(content), look, size)

    def choose(self, numbers: Sequence[int]) -> int:
        """The best of several that are one image; where one of them was known before, the best of those."""
        known = [number for number in numbers if not self.owners[number][1].is_new]
        best = max(known or numbers, key=lambda number: self.quality(number).rank)
        equal = [
            number
            for number in known or numbers
            if number == best or ((match := self.same(best, number)) and match.kind == "same_pixels")
        ]
        # Bytes beyond those that equal pixels need bring nothing; metadata does.
        return max(equal, key=lambda number: (self.quality(number).tags, -self.quality(number).size))


def find_duplicates(
    index: "Index",
    against: "Index | str | Path | None" = None,
    *,
    only_new: bool = False,
    least_similarity: float = LEAST_SIMILARITY,
    top_k: int = TOP_K,
    similar_above: float = SIMILAR,
    show_progress: bool | None = None,
) -> DuplicatePlan:
    """The images of an index that are there more than once: equal bytes, equal pixels, or one image edited.

    The index is brought up to date first. Pairs of near embeddings are compared by their pixels; each member of a
    group is the same image as the best one of the group, not only as another member. `apply_plan` moves files.

    Args:
        index: of a folder of images, or of a table.
        against: another index, or a folder or table: its images stay, and those of `index` that are in it are members.
        only_new: compare only images that came since the last comparison of `index`, with all; only they are members.
        least_similarity: cosine from which on two images are compared. Lower finds more and takes longer.
        top_k: the nearest images that each is compared with, at most.
        similar_above: cosine from which on images whose pixels differ are listed as similar.
        show_progress: on standard error; by default where that is a terminal.

    Raises:
        SearchError: there is no index and no model to make one with; both are one folder; `only_new` with `against`,
            or with an index on object storage.
    """
    if only_new and (against is not None or index._store.is_remote):
        reason = "`against`" if against is not None else "an index on object storage"
        raise SearchError(f"`only_new` does not go with {reason}: drop one of them.")
    for name, value in (("least_similarity", least_similarity), ("similar_above", similar_above)):
        if not -1 <= value <= 1:
            raise ValueError(f"`{name}={value}` is no cosine from -1 to 1.")
    other = None if against is None else _other_index(index, against)
    reports = [index.update(show_progress=show_progress)]
    if other is not None:
        reports.append(_update_other(other, index, show_progress))
    plan = DuplicatePlan(root=_absolute(index), against=None if other is None else _absolute(other))
    plan.model = index._entry().source
    for each in (index, other):
        plan.unreadable |= {} if each is None else each.errors()
    images = read_images(index)
    plan.images = sum(report.total for report in reports)
    plan.names = images.names
    comparison = _Comparison(plan, similar_above)
    if other is not None:
        _against(comparison, images, read_images(other), least_similarity, top_k, show_progress)
    else:
        _within(comparison, images, only_new, least_similarity, top_k, show_progress)
    plan.groups.sort(key=lambda group: group.best.path)
    plan.similar.sort(key=lambda pair: -pair["similarity"])
    return plan


def _absolute(index: "Index") -> str:
    return os.path.abspath(index.root) if Path(index.root).exists() else str(index.root)


def _other_index(index: "Index", against: "Index | str | Path") -> "Index":
    from ..index import Index

    other = against if isinstance(against, Index) else Index.open(against)
    check_apart(index, other)
    return other


def _update_other(other: "Index", index: "Index", show_progress: bool | None) -> Update:
    """Brings another index up to date with the model of the first; its own model stays the current one."""
    before = [entry for entry in other._store.entries() if entry.is_current]
    other._asked_for = index._model(index._entry())
    report = other.update(show_progress=show_progress)
    for entry in before:
        now = other._entry()
        if entry.id != now.id:
            with other._store.locked(), writing(other.place):
                now.is_current, entry.is_current = False, True
                other._store.put(now, entry)
    return report


def _within(comparison: _Comparison, images: Images, only_new: bool, least: float, top_k: int, show) -> None:
    """Groups among the images of one index."""
    numbers = comparison.add(images)
    file = Path(images.index.place) / COMPARED
    keys = {image.path: _key(image) for content in images.contents for image in content.images}
    if only_new:
        before = _read_compared(file)
        for content in images.contents:
            content.images.sort(key=lambda image: keys[image.path] not in before)
            content.is_new = keys[content.first.path] not in before
    new = np.array([content.is_new for content in images.contents], bool)
    if only_new:
        pairs = _pairs_of_new(images.embeds, np.flatnonzero(new), least, top_k, show)
    else:
        pairs = _near(images.embeds, None, least, top_k, show)
    neighbors: dict[int, list[int]] = defaultdict(list)
    order = np.argsort(-pairs[2])
    for first, second, similarity in zip(*(part[order].tolist() for part in pairs), strict=True):
        comparison.similarities[first, second] = similarity
        neighbors[first].append(second)
        neighbors[second].append(first)

    def rank(number: int):
        content = images.contents[number]
        return content.is_new, -(content.first.width or 0) * (content.first.height or 0), -content.first.size

    found = make_groups(
        _reading(comparison, sorted(neighbors, key=rank), neighbors, show),
        neighbors,
        comparison.same,
        comparison.choose,
    )
    grouped = {number for best, members in found for number in (best, *members)}
    alone = [(number, {}) for number in numbers if number not in grouped and len(images.contents[number].images) > 1]
    for best, members in [*found, *alone]:
        group = _group(comparison, best, members)
        if only_new:
            for member in group.members:
                if keys[member.path] in before:
                    member.action, member.why = KEEP, "it was there at the last comparison"
        comparison.plan.groups.append(group)
    if only_new:
        comparison.plan.groups = [
            group for group in comparison.plan.groups if any(keys[one.path] not in before for one in group.members)
        ]
    if not images.index._store.is_remote:
        _write_compared(file, keys.values())


def _against(comparison: _Comparison, images: Images, others: Images, least: float, top_k: int, show) -> None:
    """Groups of images of one index around images of another."""
    comparison.add(images)
    first_other = len(images.contents)
    comparison.add(others)
    by_hash = {content.hash: first_other + at for at, content in enumerate(others.contents)}
    rows, columns, similarities = _near(images.embeds, others.embeds, least, top_k, show)
    neighbors: dict[int, list[int]] = defaultdict(list)
    for at in np.argsort(-similarities):
        one, other = int(rows[at]), int(columns[at]) + first_other
        comparison.similarities[one, other] = float(similarities[at])
        neighbors[one].append(other)
    wanted = [n for n, content in enumerate(images.contents) if content.hash in by_hash or n in neighbors]
    found: dict[int, dict[int, _Match]] = defaultdict(dict)
    for number in _reading(comparison, wanted, neighbors, show):
        content = images.contents[number]
        if content.hash in by_hash:
            found[by_hash[content.hash]][number] = _Match("same_bytes", "", 1.0)
            continue
        matches = [(other, match) for other in neighbors[number] if (match := comparison.same(other, number))]
        if matches:
            best, match = min(matches, key=lambda pair: (pair[1].kind != "same_pixels", -pair[1].similarity))
            found[best][number] = match
    comparison.plan.groups = [
        _group(comparison, best, members, is_of_another=True) for best, members in sorted(found.items())
    ]


def _reading(comparison: _Comparison, order: Sequence[int], neighbors, show) -> Iterable[int]:
    """The images in their order, those ahead read in threads, with a bar."""
    # A table is read once, from its beginning.
    all_of_them = dict.fromkeys(one for number in order for one in (number, *neighbors[number]))
    comparison.read_ahead(number for number in all_of_them if comparison.owners[number][0].is_table)
    with progress_bar(len(order), show, " images compared") as bar:
        for begin in range(0, len(order), AHEAD):
            part = order[begin : begin + AHEAD]
            comparison.read_ahead(dict.fromkeys(one for number in part for one in (number, *neighbors[number])))
            for number in part:
                yield number
                bar.update()


def _near(embeds, others, least: float, top_k: int, show):
    with progress_bar(count_blocks(len(embeds), None if others is None else len(others)), show, " blocks") as bar:
        return near_pairs(embeds, others, least=least, top_k=top_k, tick=bar.update)


def _pairs_of_new(embeds: np.ndarray, new: np.ndarray, least: float, top_k: int, show):
    """Pairs of which one is new at least, each once, the first index below the second."""
    # Its own nearest is the image itself.
    rows, columns, similarity = _near(embeds[new], embeds, least, top_k + 1, show)
    pairs = np.sort(np.stack([new[rows] if len(new) else rows, columns]), 0)
    # Two new ones find each other.
    _, once = np.unique(pairs[0].astype(np.int64) * len(embeds) + pairs[1], return_index=True)
    once = once[pairs[0, once] != pairs[1, once]]
    return pairs[0, once], pairs[1, once], similarity[once]


def _group(comparison: _Comparison, best: int, members: dict[int, _Match], is_of_another: bool = False) -> Group:
    images, content = comparison.owners[best]
    group = Group(content.first, "")
    if not is_of_another:
        for copy in content.images[1:]:
            group.members.append(_duplicate(images, copy, _Match("same_bytes", "", 1.0), "the same bytes"))
    for number, match in members.items():
        owner, other = comparison.owners[number]
        why = _why(comparison, best, number, match, is_of_another)
        for copy in other.images:
            group.members.append(_duplicate(owner, copy, match, why))
    kinds = {match.kind for match in members.values()}
    if is_of_another:
        group.why = f"it is of {comparison.plan.against}"
    elif not kinds:
        group.why = "of equal bytes, the oldest file with the shortest name"
    elif comparison.owners[best][1].is_new or not any(comparison.owners[one][1].is_new for one in members):
        group.why = f"it has the most detail, or as much in a better file ({comparison.quality(best)} pixels)"
    else:
        group.why = "it was there before the others"
    return group


def _why(comparison: _Comparison, best: int, number: int, match: _Match, is_of_another: bool) -> str:
    if match.kind == "same_bytes":
        return "the same bytes"
    qualities = comparison.quality(best), comparison.quality(number)
    if qualities[1].rank > qualities[0].rank and match.kind != "same_pixels":
        return f"better than the one that stays ({qualities[1]} pixels, {qualities[1].size} bytes)"
    why = why_better(*qualities, match.kind == "same_pixels")
    return f"in both: {why}" if is_of_another else why


def _duplicate(images: Images, image: PlannedImage, match: _Match, why: str) -> Duplicate:
    stays = images.stays(image.path)
    return Duplicate(
        **vars(image),
        kind=match.kind,
        action=KEEP if stays else MOVE,
        how=match.how,
        why=stays or why,
        similarity=round(match.similarity, 4),
    )


# What was compared.


def _key(image: PlannedImage) -> int:
    digest = hashlib.blake2b(f"{image.hash}\0{image.path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _read_compared(file: Path) -> set[int]:
    try:
        return set(np.frombuffer(file.read_bytes(), "<u8").tolist())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise SearchError(f"{file} cannot be read ({error}): compare all once, without `only_new`.") from error


def _write_compared(file: Path, keys: Iterable[int]) -> None:
    aside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with writing(file.parent):
        aside.write_bytes(np.fromiter(sorted(keys), "<u8").tobytes())
        aside.replace(file)
