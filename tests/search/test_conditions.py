"""Conditions in SQL: what would end before it should, or cost gigabytes, is refused before the database sees it."""

import pytest

from hf_clip import SearchError
from hf_clip.search.conditions import PLAIN_FUNCTIONS, check_condition


@pytest.mark.parametrize(
    "where",
    [
        "width > 3 AND (height < 2 OR taken IS NULL)",
        "path IN ('a).png', 'it''s (1).png', '--.png')",
        "strpos(lower(path), 'x;y') > 0 AND NOT (width=3)",
        "\"path\" LIKE '%(%' AND width IN (1, 2)",
        "((width)) > 2 and (taken) >= '2024-01-01'",
    ],
)
def test_whole_expressions_are_let_through(where):
    check_condition(where, longest=2000, functions=PLAIN_FUNCTIONS)


@pytest.mark.parametrize(
    "where",
    ["true) OR (true", "true) -- ", "true) ORDER BY (path", "true /*", "((true)", "path = 'a", 'x = "a', "true; drop"],
)
def test_what_ends_before_it_should_is_refused(where):
    with pytest.raises(SearchError, match="`where=.*cannot be understood"):
        check_condition(where)


@pytest.mark.parametrize(
    "where",
    [
        "length(repeat('x', 2000000000)) > 0",
        "repeat ('x', 9) = path",
        'length("repeat"(path, 20000000)) > 0',
        "length(`repeat`(path, 20000000)) > 0",
        "array_length(range(0, 300000000)) > 1",
        "lpad(path, 20000000) > 'a'",
        "a.repeat(path, 3) > 'a'",
        " OR ".join(["width > 1"] * 3000),
        "_repeat('x', 3) > 'a'",
    ],
)
def test_strangers_call_nothing_that_costs_much(where):
    with pytest.raises(SearchError, match="is not called here|are the most"):
        check_condition(where, longest=2000, functions=PLAIN_FUNCTIONS)
