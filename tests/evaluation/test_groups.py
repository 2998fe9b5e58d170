"""Rates of labels by group: counts that add up, exact intervals, and a place in the card."""

import numpy as np
import pytest
from huggingface_hub import ModelCard

from hf_clip import evaluate_groups, open_source
from hf_clip.evaluation.operating_points import interval
from hf_clip.hub import put_results
from tests.helpers.squares import encode, write_parquet
from tests.helpers.toys import LookupEncoder, gray

# An image's gray value says which label is nearest.
IMAGES = [[1, 0], [0, 1], [1, 0.1]]
GROUPS = ["one"] * 6 + ["other"] * 4 + [None]
VALUES = [0, 0, 0, 1, 2, 0, 1, 1, 1, 0, 1]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    model = LookupEncoder(IMAGES, {"person": [1, 0], "animal": [0, 1]})
    content = [
        {"image": {"bytes": encode(np.asarray(gray(value))), "path": None}, "group": group, "age": value % 2}
        for value, group in zip(VALUES, GROUPS, strict=True)
    ]
    file = write_parquet(tmp_path_factory.mktemp("faces") / "faces.parquet", content)
    source = open_source(file, label_column="group", keyword_columns=["age"])
    labels = {"labels": ["person", "animal"], "templates": ["{}"]}
    return evaluate_groups(model, model.processor, source, by=["group", "age"], title="faces", **labels)


def test_rates_are_counts_of_the_first_label_with_exact_intervals(result):
    assert result.images == 11 and list(result.groups["group"]) == ["one", "other"]
    assert result.groups["group"]["one"] == [
        {"label": "person", **interval(5, 6)},
        {"label": "animal", **interval(1, 6)},
    ]
    assert [row["hits"] for row in result.groups["group"]["other"]] == [1, 3]
    assert [row["hits"] for row in result.overall] == [6, 5]
    assert sum(rows[0]["images"] for rows in result.groups["age"].values()) == 11
    assert "0.8333 [0.3588, 0.9958]" in result.table() and "95% intervals" in result.table()


def test_the_card_has_them_in_a_table_and_not_among_its_scores(result):
    text = put_results("---\ntags: [x]\n---\n\n# tiny\n", [result.to_dict()], "tiny")
    assert "| faces | group: one | person | 0.833 | 0.359 to 0.996 | 6 |" in text
    assert "| faces | all images | animal | 0.455 |" in text
    assert ModelCard(text).data.eval_results is None
    assert put_results(text, [result.to_dict()], "tiny") == text


def test_what_says_nothing_is_refused(result):
    with pytest.raises(ValueError, match="fewer than two"):
        evaluate_groups(None, None, None, labels=["person"], by=["group"])
    with pytest.raises(ValueError, match="`by` names no column"):
        evaluate_groups(None, None, None, labels=["person", "animal"], by=[])
