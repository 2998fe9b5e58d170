"""Results into a card that exists: in the place of the same measured before, and nothing else changes."""

import difflib
from collections import Counter

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip.hub import put_results
from tests.helpers.counts import soak_count
from tests.helpers.model_cards import EVERY, FEW_SHOT, PROBE, RETRIEVAL, ZERO_SHOT, card_of


def parts(text: str) -> tuple[dict, list[str]]:
    """A card's model-index by (task, title, metric), and the lines of its body."""
    card = ModelCard(text)
    values = {(one.task_type, one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert len(values) == len(card.data.eval_results)
    return values, card.text.splitlines()


def changed(before: list[str], after: list[str]) -> list[str]:
    """Lines that went (-) and came (+)."""
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return [f"{line[0]} {line[1:]}" for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("result", "key"),
    [*zip(EVERY, ("image_to_text", "top_1", "top_1", "shots", "corrupted_top_1"), strict=True)],
    ids=[result["task"] for result in EVERY],
)
def test_what_is_measured_again_stands_in_its_own_place(saved, result, key):
    card_of(saved, results=EVERY)
    text = (saved / "README.md").read_text(encoding="utf-8") + "\nA line of mine: 0.345 | `x` *y*\n"
    assert put_results(text, EVERY, "tiny") == text
    others = {"image_to_text": {**RETRIEVAL["image_to_text"], "recall_at_1": 0.7}}
    others["shots"] = [FEW_SHOT["shots"][0], {**FEW_SHOT["shots"][1], "mean": 0.7}]
    again = {**result, key: others.get(key, 0.7)}
    updated = put_results(text, [again], "tiny")
    assert put_results(updated, [again], "tiny") == updated and put_results(updated, [result], "tiny") == text
    (values, lines), (new_values, new_lines) = parts(text), parts(updated)
    assert [new_values[one] for one in values if values[one] != new_values[one]] == [0.7]
    came, gone = sorted(changed(lines, new_lines))
    assert gone.startswith(f"- | {result['title']} |") and came.startswith(f"+ | {result['title']} |")
    assert "0.700" in came and len(lines) == len(new_lines) and list(values) == list(new_values)


def test_results_come_into_a_card_that_has_none_or_others(saved):
    card_of(saved, results=[])
    text = put_results((saved / "README.md").read_text(encoding="utf-8"), [ZERO_SHOT], "tiny")
    assert "was not evaluated" not in text and "| fashion | 0.345 |" in text and "R@k is the" in text
    assert put_results(text, [ZERO_SHOT], "tiny") == text
    assert list(parts(text)[0].values()) == [0.345, 0.333]
    both = put_results(text, [RETRIEVAL], "tiny")
    assert all(line.startswith("+ ") for line in changed(parts(text)[1], parts(both)[1]))
    assert both.index("| unseen style") < both.index("Each number was measured") < both.index("## Architecture")
    # A second evaluation of a protocol is a row more.
    other = put_results(both, [{**ZERO_SHOT, "title": "photos"}], "tiny")
    # Titles of other letters are told apart too.
    more = put_results(other, [{**ZERO_SHOT, "title": title} for title in ("日本の写真", "中国的照片")], "tiny")
    assert len(parts(more)[0]) == len(parts(other)[0]) + 4
    [line] = changed(parts(both)[1], parts(other)[1])
    assert line.startswith("+ | photos | 0.345 |") and other.count("| zero-shot |") == both.count("| zero-shot |") == 1


def test_fewer_numbers_leave_none_of_the_old():
    text = put_results("", [FEW_SHOT, PROBE], "tiny")
    fewer = {**FEW_SHOT, "shots": FEW_SHOT["shots"][:1]}
    values, lines = parts(put_results(text, [fewer], "tiny"))
    assert [metric for _, _, metric in values] == ["accuracy_1_shot", "accuracy", "mean_per_class_accuracy"]
    assert sum(line.startswith("| fashion |") for line in lines) == 2


def test_skipped_images_are_counted_until_there_are_none():
    text = put_results("# A model\n", [ZERO_SHOT, PROBE], "tiny")
    some = put_results(text, [{**ZERO_SHOT, "skipped": {"broken": 3}}], "tiny")
    assert sorted(changed(parts(text)[1], parts(some)[1])) == ["+ ", "+ - fashion, zero-shot: skipped 3 (broken)."]
    more = put_results(some, [{**ZERO_SHOT, "skipped": {"broken": 4, "no_label": 1}}, PROBE], "tiny")
    assert "skipped 4 (broken), 1 (no label)." in more and more.count("skipped") == 1
    assert put_results(more, [ZERO_SHOT], "tiny") == text


def test_a_precision_other_than_float32_is_named_until_it_is_measured_again():
    text = put_results("# A model\n", [{**ZERO_SHOT, "dtype": "float32"}], "tiny")
    half = {**ZERO_SHOT, "dtype": "bfloat16"}
    noted = put_results(text, [half], "tiny")
    assert sorted(changed(parts(text)[1], parts(noted)[1])) == ["+ ", "+ - fashion, zero-shot: computed in bfloat16."]
    both = put_results(noted, [{**half, "skipped": {"broken": 3}}], "tiny")
    assert "- fashion, zero-shot: computed in bfloat16; skipped 3 (broken)." in both and both.count("computed in") == 1
    assert put_results(both, [ZERO_SHOT], "tiny") == text


THEIRS = """---
# My own notes
license: openrail  # not in our list
library_name: open_clip
model-index:
- name: theirs
  results:
  - task: {type: image-classification}
    dataset: {type: owner/birds, name: Birds}
    metrics:
    - {type: accuracy, value: 0.9, verified: false}
    source: {url: https://example.org, name: elsewhere}
tags: [vision]
---
# Theirs

```text
| zero-shot | top-1 | top-5 | mean per class | chance | images | classes | templates |
| --- | --- | --- | --- | --- | --- | --- | --- |
```

## Evaluation

Good ones.

## More

The end, without a last line's end."""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_card_of_someone_elses_gets_the_results_and_keeps_all_else(newline):
    before = THEIRS.replace("\n", newline)
    after = put_results(before, [ZERO_SHOT], "tiny")
    assert put_results(after, [ZERO_SHOT], "tiny") == after and after.count("\n") == after.count(newline)
    lines = changed(before.split(newline), after.split(newline))
    gone = [line for line in lines if line[0] == "-"]
    # The model-index is rewritten; what it says stays.
    assert all(line[2:5] in ("  -", "   ") for line in gone)
    data, was = (yaml.safe_load(text.split("---")[1]) for text in (after, before))
    [model], [old] = data.pop("model-index"), was.pop("model-index")
    assert data == was and model["results"][0] == old["results"][0] and len(model["results"]) == 2
    good, more = after.index("Good ones."), after.index("## More")
    assert good < after.index("| fashion | 0.345 |") < more and "# My own notes" in after and "# not in our" in after


TABLE = put_results("", [ZERO_SHOT], "tiny").split("## Evaluation")[1].split("\n\n")[1].split("\n")
NOTE = "- fashion, zero-shot: skipped 3 (broken)."
LINES = [*TABLE, f"\n{NOTE}\n", "", "", "## Evaluation", "# Title", "---", "```", "~~~~", "text", "| x |"]


@pytest.mark.slow
@settings(deadline=None, max_examples=soak_count(100, 2000))
@given(st.lists(st.sampled_from(LINES), max_size=12).map("\n".join), st.sampled_from([{}, {"broken": 2}]))
def test_whatever_a_card_holds_pushing_twice_is_pushing_once(body, skipped):
    result = {**ZERO_SHOT, "skipped": skipped, "top_1": 0.999}
    once = put_results(f"---\ntags: [a]\n---\n{body}", [result], "tiny")
    assert put_results(once, [result], "tiny") == once
    gone = Counter(line for line in body.split("\n") if line) - Counter(once.split("\n"))
    # Nothing goes but what was measured before.
    assert all(line.startswith(("| fashion |", "- fashion, zero-shot: skipped")) for line in gone)
    assert "| fashion | 0.999 |" in once
