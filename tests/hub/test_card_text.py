"""Cards that people wrote: what cannot be read is one line that names the file, the place and the fix."""

import pytest

from hf_clip.hub import CardError, adapt_card, check_model_card, put_results
from hf_clip.hub.card_text import read_card_text, read_front_matter
from hf_clip.hub.card_updates import push_to_card
from tests.helpers.model_cards import ZERO_SHOT

FINE = "---\npipeline_tag: zero-shot-image-classification\nlibrary_name: transformers\n{}---\n# x\n"
# Front matter, what the error says of it.
BROKEN = [
    ("a: [\n", "not YAML (line 3: "),
    ("license: mit\nkey: 'a\n", "not YAML (line 4: "),
    ("x: !!python/object:os.x {}\n", "could not determine a constructor"),
    ("- a\n", "the front matter is a list: it must be a table"),
    ("only words\n", "the front matter is a text: it must be a table"),
    ("1: 2\n", "the key 1 of the front matter is 1: it must be a text"),
    ("tags: 3\n", "'tags' in the front matter is 3: it must be a list"),
    ("tags: [a, 3]\n", "3 of 'tags' in the front matter is 3: it must be a text"),
    ("language: [no]\n", "False of 'language' in the front matter is False: it must be a text"),
    ("language: {en: 1}\n", "'language' in the front matter is a table: it must be a text or a list"),
    ("license: [mit]\n", "'license' in the front matter is a list: it must be a text"),
    ("widget: {src: a.png}\n", "'widget' in the front matter is a table: it must be a list"),
    ("model-index: 3\n", "'model-index' in the front matter is 3: it must be a list"),
    ("model-index: [a]\n", "the entry of 'model-index' is a text: it must be a table"),
    ("model-index: [a, b]\n", "has 2 models: a card describes one"),
    ("model-index: [{name: x}]\n", "'results' of 'model-index' is None: it must be a list"),
    ("model-index: [{name: x, results: [{task: 3}]}]\n", "'task' of a result of 'model-index' is 3"),
    ("model-index: [{name: x, results: [{metrics: {a: 1}}]}]\n", "'metrics' of a result of 'model-index' is a table"),
    ("model-index: [{name: x, results: [{metrics: [1]}]}]\n", "a metric of 'model-index' is 1"),
    ("date: 2024-13-45\n", "the front matter cannot be read (month must be in 1..12): correct that value"),
    ("? {a: 1}\n: 2\n", "the front matter "),
    ("tags: " + "[" * 1000 + "]" * 1000 + "\n", "the front matter is nested too deeply: remove brackets"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("front", "said"), BROKEN, ids=[front.strip()[:60] for front, _ in BROKEN])
def test_front_matter_that_cannot_be_used_is_one_line(tmp_path, front, said):
    (tmp_path / "README.md").write_text(f"---\n{front}---\n# x\n", encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "hf_clip"}')
    before = (tmp_path / "README.md").read_bytes()
    for attempt in (
        lambda: check_model_card(f"---\n{front}---\n# x\n"),
        lambda: put_results(f"---\n{front}---\n# x\n", [ZERO_SHOT], "tiny"),
        lambda: adapt_card(tmp_path, "owner/name"),
        lambda: push_to_card(tmp_path, ZERO_SHOT),
    ):
        with pytest.raises(CardError) as raised:
            attempt()
        assert said in str(raised.value) and "\n" not in str(raised.value)
        assert "README.md" in str(raised.value) or "the card" in str(raised.value)
    assert (tmp_path / "README.md").read_bytes() == before


def test_a_card_that_is_not_utf_8_is_called_so(tmp_path):
    (tmp_path / "README.md").write_bytes("# Modèle\n".encode("latin-1"))
    with pytest.raises(CardError, match=r"README\.md is not UTF-8 \(byte 5\): save it as UTF-8\."):
        read_card_text(tmp_path / "README.md")
    with pytest.raises(CardError, match=r"README\.md is not UTF-8"):
        push_to_card(tmp_path, ZERO_SHOT)


def test_a_card_that_begins_with_a_byte_order_mark_keeps_its_front_matter(tmp_path):
    text = "---\nlicense: mit\n---\n# x\n"
    (tmp_path / "README.md").write_bytes(f"\ufeff{text}".encode())
    assert read_card_text(tmp_path / "README.md") == text
    assert read_front_matter(f"\ufeff{text}", "x") == {"license": "mit"}


@pytest.mark.parametrize("front", ["language: en\n", "language: [en, fr]\ndatasets: owner/name\n", "tags: null\n", ""])
def test_front_matter_that_the_hub_takes_is_taken(front):
    check_model_card(FINE.format(front))


@pytest.mark.parametrize("front", ["", "---\n---\n", "---\n# a comment\n---\n"])
def test_a_card_without_fields_gets_results(front):
    assert "| fashion | 0.345 |" in put_results(f"{front}# x\n", [ZERO_SHOT], "tiny")
