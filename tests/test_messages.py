"""An error's arguments are called as its reader knows them."""

import pytest

from hf_clip.messages import in_callers_words

MESSAGE = "`label_column=colour` is no column of x.csv: set `label_column` to one of a, b, or call `load`."


@pytest.mark.parametrize(
    ("names", "between", "expected"),
    [
        ({}, "=", MESSAGE),
        (
            {"label_column": "--label-column"},
            " ",
            "--label-column colour is no column of x.csv: set --label-column to one of a, b, or call `load`.",
        ),
        (
            {"label_column": "evaluations.fashion.label_column"},
            ": ",
            "evaluations.fashion.label_column: colour is no column of x.csv: set evaluations.fashion.label_column "
            "to one of a, b, or call `load`.",
        ),
    ],
)
def test_arguments_are_called_as_the_caller_knows_them(names, between, expected):
    assert in_callers_words(MESSAGE, names, between=between) == expected
