"""The license that a model is given under, from those of its data."""

from collections.abc import Iterable, Mapping
from typing import Any

# The Hub's names of licenses, from the least to the most demanding: a work made from several bears the last.
LICENSES = (
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


def card_license(training_data: Iterable[Mapping[str, Any]]) -> tuple[str | None, str]:
    """The Hub's name of the license for a model trained on such data, and a sentence that says why.

    Whether weights inherit the licenses of their data is not settled; declared is the most demanding one of
    them, whose terms include those of the others. None if some data comes without a license, "other" if one
    is not in `LICENSES`.
    """
    given = [item.get("license") for item in training_data]
    names = sorted({str(license) for license in given if license})
    listed = ", ".join(names)
    if not given:
        return None, "Nor is its license known, so none is declared for the model."
    if not all(given):
        return None, "The license of some of the data is not known, so none is declared for the model."
    known = [name.lower() for name in names if name.lower() in LICENSES]
    if len(known) < len(names):
        return "other", f"The data comes under {listed}; who uses the model should observe all of them."
    chosen = max(known, key=LICENSES.index)
    if len(names) == 1:
        return chosen, f"All of the data comes under {listed}, and so the model is given under it too."
    return chosen, (
        f"The data comes under {listed}; the model is given under the most demanding of these, {chosen}, and the "
        "attributions above go along with it."
    )
