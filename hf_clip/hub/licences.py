"""The licence that a model is given under, from those of its data."""

from collections.abc import Iterable, Mapping
from typing import Any

# The Hub's names of licences, from the least to the most demanding: a work made from several bears the last.
LICENCES = (
    "cc0-1.0",
    "unlicense",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "apache-2.0",
    "cc-by-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
)


def card_licence(training_data: Iterable[Mapping[str, Any]]) -> tuple[str | None, str]:
    """The Hub's name of the licence for a model trained on such data, and a sentence that says why.

    Whether weights inherit the licences of their data is not settled; declared is the most demanding one of
    them, whose terms include those of the others. None if some data comes without a licence, "other" if one
    is not in `LICENCES`.
    """
    given = [item.get("licence") for item in training_data]
    names = sorted({str(licence) for licence in given if licence})
    listed = ", ".join(names)
    if not given:
        return None, "Nor is its licence known, so none is declared for the model."
    if not all(given):
        return None, "The licence of some of the data is not known, so none is declared for the model."
    known = [name.lower() for name in names if name.lower() in LICENCES]
    if len(known) < len(names):
        return "other", f"The data comes under {listed}; who uses the model should observe all of them."
    chosen = max(known, key=LICENCES.index)
    if len(names) == 1:
        return chosen, f"All of the data comes under {listed}, and so the model is given under it too."
    return chosen, (
        f"The data comes under {listed}; the model is given under the most demanding of these, {chosen}, and the "
        "attributions above go along with it."
    )
