"""Which class of a list of names each label of a data set is: by index, or by name, never by chance of order."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from hf_clip.sources import class_index

# Of two lists in one order many names differ in their words, and hardly any looks like that of another class.
MOST_CONTRADICTIONS = 0.02
# Names that say nothing, such as WordNet's n01440764: in sorted order they are all that a folder knows.
CODE = re.compile(r"[A-Za-z]{0,2}[\W_]*\d+")
# A minus and the point of a decimal number tell names apart, as a hyphen and a full stop do not.
OF_NUMBERS = re.compile(r"(?<![^\W_])-(?=\d)|(?<=\d)[.,](?=\d)")
LEADING_NUMBER = re.compile(r"^\d+[\s._-]+(?=\D)")


class ClassNames:
    """The classes of an evaluation, and the index that each label of the data has among them.

    Labels are indices where the data has whole numbers (or folders called so), and names otherwise. Where the data has
    names of its own and the caller gives others, the two lists are matched by their words.

    Args:
        given: the classes in the order of their indices, each by one name or several; None takes the data's own, or
            the labels that occur.
        own: the names that the data has for its classes, if any.
        data: what the data is called, for messages.
        has_numbers: the label column holds whole numbers.

    Attributes:
        names: all names of each class; empty until `settle` where neither list is there.

    Raises:
        ValueError: if the data's own names cannot be matched with those that are given.
    """

    def __init__(
        self,
        given: Iterable[str | Sequence[str]] | None,
        own: Sequence[str] | None,
        data: str,
        *,
        has_numbers: bool = False,
    ):
        self.names = [(names,) if isinstance(names, str) else tuple(names) for names in given or own or ()]
        self._data, self._has_numbers, self._takes_indices = data, has_numbers, True
        self._is_settled = bool(self.names)
        self._index_of = self._indices_of_own(own, bool(given))

    def of_other_data(self, own: Sequence[str] | None, data: str) -> "ClassNames":
        """The same classes for the labels of other data, which are told by their names alone."""
        other = ClassNames.__new__(ClassNames)
        other.names, other._data, other._is_settled = self.names, data, True
        other._has_numbers = other._takes_indices = False
        other._index_of = other._indices_of_own(own, True)
        return other

    def __len__(self) -> int:
        return len(self.names)

    def find(self, label: str, key: str) -> int | None:
        """The index of a label's class; None as long as classes are not settled.

        Raises:
            ValueError: if the label is none of the classes or of two, or is an index without a name; `key` says in
                which row.
        """
        if self._index_of is not None:
            if label not in self._index_of:
                raise ValueError(f"{key}: {label!r} is none of the {len(self)} classes that {self._data} has.")
            return self._index_of[label]
        if not self._is_settled:
            if class_index(label) is not None or label.lstrip("-").isdigit():
                raise ValueError(
                    f"{key}: label {label!r} has no name. Give the names of all classes as `labels`, in the order of "
                    "their indices."
                )
            return None
        return self._find_given(label, key)

    def settle(self, labels: Iterable[Sequence[str]]) -> None:
        """Takes the labels that occur for the classes, in sorted order, where no list names them."""
        if not self._is_settled:
            self.names = [(name,) for name in sorted({label for several in labels for label in several})]
            self._index_of = {names[0]: index for index, names in enumerate(self.names)}
            self._is_settled = True

    def indices(self, labels: Iterable[str]) -> dict[str, int]:
        """The index of each label's class, once classes are settled."""
        found = {label: self.find(label, self._data) for label in set(labels)}
        return {label: index for label, index in found.items() if index is not None}

    def _find_given(self, label: str, key: str) -> int:
        index = class_index(label) if self._takes_indices else None
        by_name = set() if self._has_numbers else self._with_name(label)
        if index is not None and index < len(self) and by_name and index not in by_name:
            raise ValueError(
                f"{key}: {label!r} is one class by its index and another by its name. Give `labels` that are no "
                f"numerals, such as '{label} things', in the order of the indices."
            )
        if index is not None and (index in by_name or not by_name):
            if index >= len(self):
                raise ValueError(f"{key}: {self._beyond(label)}")
            return index
        if len(by_name) > 1:
            raise ValueError(
                f"{key}: {label!r} is the name of {len(by_name)} classes: use their indices as labels of the data."
            )
        if not by_name:
            raise ValueError(
                f"{key}: {label!r} is none of the {len(self)} classes. Give the names of all classes as `labels`."
            )
        return next(iter(by_name))

    def _beyond(self, label: str, index: int | None = None) -> str:
        """Why a label is no index; `index` is the number in it, where it is more than a number."""
        index = class_index(label) if index is None else index
        first = " Indices begin at 0, not at 1." if index == len(self) else ""
        return (
            f"label {label!r} is beyond the {len(self)} names of `labels`, whose indices are 0 to {len(self) - 1}."
            f"{first}"
        )

    def _with_name(self, label: str) -> set[int]:
        """Classes of the name, as it is written or but for case, spaces and marks."""
        exact = {index for index, names in enumerate(self.names) if label in names}
        return exact or self._simple_names().get(_simple(label), set())

    def _simple_names(self) -> Mapping[str, set[int]]:
        if "_simple" not in vars(self):
            self._simple: dict[str, set[int]] = {}
            for index, names in enumerate(self.names):
                for name in names:
                    self._simple.setdefault(_simple(name), set()).add(index)
        return self._simple

    def _indices_of_own(self, own: Sequence[str] | None, has_given: bool) -> dict[str, int] | None:
        """Index by each of the data's own names; None where it has none."""
        if not own:
            return None
        if not has_given:
            return {name: index for index, name in enumerate(own)}
        found = (self._by_number(own) if self._takes_indices else None) or self._by_words(own)
        if found is None and self._takes_indices:
            self._refuse_numbers_from_one(own)
            found = list(range(len(own))) if self._may_be_in_order(own) else None
        if found is None:
            raise ValueError(self._no_match(own))
        return dict(zip(own, found, strict=True))

    def _by_number(self, own: Sequence[str]) -> list[int] | None:
        """Indices that the names are, such as those of folders 0 to 9, or class_0 to class_9."""
        prefix = own[0].rstrip("0123456789") if len(own) > 1 else ""
        indices = _numbers_after(own, prefix) or _numbers_after(own, prefix := "")
        if indices is None:
            return None
        by_name = [self._with_name(name) for name in own]
        beyond = [name for name, index in zip(own, indices, strict=True) if index >= len(self)]
        if all(by_name) and (beyond or prefix):
            return None
        if beyond:
            if prefix:
                return None
            raise ValueError(f"{self._data}: {self._beyond(beyond[0])}")
        for name, index, classes in zip(own, indices, by_name, strict=True):
            if classes and index not in classes:
                raise ValueError(
                    f"{self._data}: class {name!r} is one class by its index and another by its name. Give `labels` "
                    f"that are no numerals, such as '{name} things', in the order of the indices."
                )
        return indices

    def _refuse_numbers_from_one(self, own: Sequence[str]) -> None:
        """Raises ValueError for folders c1 to c10 and ten names: by their letters, c10 would be the second of them."""
        prefix = own[0].rstrip("0123456789")
        numbers = _numbers_after(own, prefix)
        if numbers is not None and max(numbers) == len(self):
            last = own[numbers.index(len(self))]
            raise ValueError(
                f"{self._data}: {self._beyond(last, len(self))} Number them from 0, or give each class the data's "
                "name among its own."
            )

    def _by_words(self, own: Sequence[str]) -> list[int] | None:
        """Each name's class, if every one has its own; the same words suffice where both lists are of one length."""
        exact = [self._candidates(name, by_words=False) for name in own]
        for candidates in (exact, [one or self._candidates(name) for one, name in zip(exact, own, strict=True)]):
            found = [next(iter(one)) for one in candidates if len(one) == 1]
            if len(found) == len(set(found)) == len(own) and (candidates is exact or len(own) == len(self)):
                return found
        return None

    def _candidates(self, name: str, by_words: bool = True) -> set[int]:
        """Classes that a name of the data may mean; it may list several with commas, or begin with a number."""
        variants = {name, LEADING_NUMBER.sub("", name), *re.split(r",(?!\d)", name)}
        if not by_words:
            return set().union(*(self._with_name(variant) for variant in variants))
        wanted = [found for variant in variants if (found := _words(variant))]
        if "_word_sets" not in vars(self):
            self._word_sets = [(_words(name), index) for index, names in enumerate(self.names) for name in names]
        return {
            index for words, index in self._word_sets if words and any(one <= words or words <= one for one in wanted)
        }

    def _may_be_in_order(self, own: Sequence[str]) -> bool:
        """Whether the given names are the data's in its order: most are alike there, and hardly one elsewhere."""
        if len(own) != len(self):
            return False
        if all(CODE.fullmatch(name) for name in own):
            # Codes of one length have one order. Of others nobody knows whether the names follow letters or numbers.
            return sorted(own) == sorted(own, key=_by_their_numbers)
        candidates = [self._candidates(name, by_words=False) or self._candidates(name) for name in own]
        alike = sum(index in one for index, one in enumerate(candidates))
        contradictions = sum(bool(one) and index not in one for index, one in enumerate(candidates))
        return 2 * alike >= len(own) and contradictions <= MOST_CONTRADICTIONS * len(own)

    def _no_match(self, own: Sequence[str]) -> str:
        unlike = next((name for name in own if len(self._candidates(name)) != 1), own[0])
        pairs = zip(own[:3], self.names, strict=False)
        shown = ", ".join(f"{name!r} would be {names[0]!r}" for name, names in pairs)
        return (
            f"{self._data}: its {len(own)} class names and the {len(self)} of `labels` cannot be matched by words: "
            f"{unlike!r} is not one class there. By their order alone {shown}. Leave `labels` out to use the "
            "data's own names, or give each class the data's name among its own."
        )


def _numbers_after(names: Sequence[str], prefix: str) -> list[int] | None:
    """The numbers that follow a prefix in all names, if they differ."""
    found = [class_index(name.removeprefix(prefix)) for name in names if name.startswith(prefix)]
    numbers = [number for number in found if number is not None]
    return numbers if len(set(numbers)) == len(names) else None


def _by_their_numbers(name: str) -> list[tuple[int, str]]:
    """The key that sorts c2 before c10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


def _simple(name: str) -> str:
    """A name but for case, spaces, hyphens and quotes; one that is nothing else stays as it is.

    What else is no letter may be all that tells two names apart: vowel signs in Hindi, C++ and C#, emoji.
    """
    text = _normalized(name)
    parts = " ".join(_spaced(text, _is_space_or_mark).split())
    # Between digits something must stay: 1-5 is not 15.
    return re.sub(r"(?<!\d) | (?!\d)", "", parts) or text


def _words(name: str) -> frozenset[str]:
    """The words of a name, those of CamelCase and snake_case too; symbols and vowel signs belong to their words."""
    text = _normalized(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name)))
    return frozenset(_spaced(text, _is_between_words).split())


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().replace("\N{MINUS SIGN}", "-")


def _spaced(text: str, is_space: Callable[[str], bool]) -> str:
    """The text with spaces for what counts as such, numbers kept whole."""
    kept = {found.start() for found in OF_NUMBERS.finditer(text)}
    return "".join(
        " " if is_space(letter) and position not in kept else letter for position, letter in enumerate(text)
    )


def _is_space_or_mark(letter: str) -> bool:
    """Spaces, underscores, dashes, quotes, full stops, commas, and the slash, which no folder can have in its name."""
    return letter.isspace() or letter in ".,;/'\"`" or unicodedata.category(letter) in ("Pc", "Pd", "Pi", "Pf")


def _is_between_words(letter: str) -> bool:
    # Cf joins the parts of one emoji, and letters of Hindi and Persian.
    category = unicodedata.category(letter)
    return letter in "|~^`" or letter != "#" and category[0] not in "LMNS" and category != "Cf"
