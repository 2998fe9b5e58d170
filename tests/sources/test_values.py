"""Values of the data as text: one spelling a value, and no words of Python."""

import json
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip.sources import ValueKindError, as_text, class_index, clean_captions
from tests.helpers.counts import soak_count


@pytest.mark.parametrize(
    ("field", "captions"),
    [
        (None, []),
        (float("nan"), []),
        ("  ", []),
        (" a cat ", ["a cat"]),
        (["a", None, "", ["b"]], ["a", "b"]),
        ('["a", null, " b "]', ["a", "b"]),
        ("[]", []),
        ("[laughs]", ["[laughs]"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["a", 2]', ['["a", 2]']),
        ("[" * 100_000 + "]", ["[" * 100_000 + "]"]),
        (7, ["7"]),
        (b"caf\xc3\xa9", ["café"]),
        (b"caf\xe9", []),
        ("lone \ud800", []),
        ('["ok", "\\ud800"]', ["ok"]),
    ],
)
def test_caption_fields(field, captions):
    assert clean_captions(field) == captions


FIELDS = st.recursive(
    st.none() | st.text(st.characters()) | st.binary() | st.floats() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.text() | st.none()).map(json.dumps),
    max_leaves=8,
)


@settings(max_examples=soak_count(100, 5000), deadline=None, derandomize=True)
@given(FIELDS)
def test_any_caption_field_gives_clean_captions(field):
    captions = clean_captions(field)
    assert all(caption and caption == caption.strip() and caption.encode() for caption in captions)
    # A caption that was cleaned stays, unless it is itself a JSON list.
    assert clean_captions([c for c in captions if c[0] != "["]) == [c for c in captions if c[0] != "["]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (float("nan"), None),
        ("001", "001"),
        (" a ", " a "),
        (3, "3"),
        (3.0, "3"),
        (-1.0, "-1"),
        (2.5, "2.5"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (True, "true"),
        (np.bool_(False), "false"),
        (np.int8(4), "4"),
        (np.float32(4), "4"),
        (Decimal("3.00"), "3"),
        (b"caf\xc3\xa9", "café"),
        (date(2021, 3, 4), "2021-03-04"),
    ],
)
def test_a_value_has_one_text(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize("value", [[], ["cat", "dog"], {"raw": "a"}, {1}, object(), np.zeros(2)])
def test_what_has_no_text_is_said_to_have_none(value):
    with pytest.raises(ValueKindError, match="^holds (an|a) "):
        as_text(value)


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("3", 3),
        ("003", 3),
        ("3.0", 3),
        (" 3 ", 3),
        ("True", 1),
        ("false", 0),
        ("-1", None),
        ("3.5", None),
        ("a", None),
    ],
)
def test_labels_that_stand_for_an_index_of_a_class(label, index):
    assert class_index(label) == index
