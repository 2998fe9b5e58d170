"""Snippets of model cards: they print what the card says that they print, under the model's present name."""

import re

import pytest
from huggingface_hub import ModelCard

from hf_clip.hub import CardFacts, SnippetError, adapt_card, check_model_card, write_model_card
from tests.helpers.model_cards import LABELS, card_of

pytestmark = pytest.mark.slow


def snippets(text: str) -> list[tuple[str, str]]:
    """(code, what the card says that it prints)"""
    return re.findall(r"```python\n(.*?)\n```\n\nIt prints\n\n```text\n(.*?)\n```", text, re.S)


def test_snippets_print_what_the_card_says(saved, monkeypatch, capsys):
    _, body = card_of(saved, runs_snippets=True, example_labels=LABELS, example_template="a drawing of {}")
    monkeypatch.chdir(saved.parent)
    (saved.parent / "example.png").write_bytes((saved / "example.png").read_bytes())
    found = snippets(body)
    assert len(found) == body.count("```python") == 4
    for code, printed in found:
        exec(code, {})
        assert capsys.readouterr().out.rstrip() == printed
    classified, embedded, classified_by_transformers, embedded_by_transformers = (printed for _, printed in found)
    templates, scores = classified.split("\n", 1)
    assert templates == "templates: a drawing of {}" and embedded == embedded_by_transformers
    # The stock pipeline and the classifier agree.
    assert scores == classified_by_transformers and {line.split(" ", 1)[1] for line in scores.splitlines()} == {
        *LABELS
    }


def test_a_model_that_was_not_pushed_is_named_by_a_folder_from_which_it_loads(saved):
    _, body = card_of(saved, example_labels=LABELS)
    assert f"`{saved.name}` is the folder of this model: run the snippets in the folder that it lies in" in body
    assert f"{saved.name}/example.png" in body and "drawn for this card" not in body
    _, body = card_of(saved, repo_id="owner/name")
    assert "`owner/name` is this repository on the Hub" in body and "owner/name/example.png" not in body
    assert "The image was drawn for this card" in body


def test_a_snippet_that_does_not_run_is_no_card(saved):
    card_of(saved)
    before = (saved / "README.md").read_text(encoding="utf-8")
    (saved / "broken.png").write_bytes(b"no image")
    with pytest.raises(SnippetError, match="does not run"):
        card_of(saved, runs_snippets=True, example_image="broken.png")
    assert (saved / "README.md").read_text(encoding="utf-8") == before


def test_a_card_that_must_be_written_is_written_without_what_fails(saved, caplog):
    """Each part that cannot be made is one line; weights that took days have a card all the same."""
    (saved / "broken.png").write_bytes(b"no image")
    facts = CardFacts(
        "tiny",
        [{"name": "x", "dataset": "a b"}],
        results=[{"task": "magic", "title": "x"}],
        recipe=3,
        languages=["english"],
        plots=[("missing.png", "Missing")],
        example_image="broken.png",
        example_labels=LABELS,
    )
    text = write_model_card(saved, facts, may_lack_parts=True).read_text(encoding="utf-8")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("hf_clip.hub")]
    for part in ("training_data: ", "results: ", "recipe: ", "languages: ", "'missing.png' is not in", "its output"):
        assert any(part in line for line in said), part
    assert len(said) == 9 and all("\n" not in line for line in said)
    check_model_card(text)
    assert "was not evaluated" in text and text.count("```python") == 4 and "missing.png" not in text


def test_the_widget_shows_the_snippets_example(saved):
    front, _ = card_of(saved, example_labels=LABELS)
    assert front["widget"] == [
        {"src": "example.png", "candidate_labels": "a red square, something blue", "example_title": "a red square"}
    ]
    assert (saved / "example.png").is_file()
    # The widget takes labels apart at commas.
    assert "widget" not in card_of(saved, example_labels=["black, white", "red"])[0]


def test_a_card_is_adapted_to_its_name_on_the_hub_and_to_no_more(saved):
    card_of(saved, example_labels=LABELS, example_template="a drawing of {}")
    path = saved / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nA line of the user.\n", encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    adapt_card(saved, "owner/name")
    after = path.read_text(encoding="utf-8")
    assert "A line of the user." in after
    assert all('"owner/name"' in code and "a red square" in code for code, _ in snippets(after))
    assert "a drawing of {}" in after
    # All but the section of use is as it was.
    without = [re.sub(r"^## How to use\n.*?(?=^## )", "", text, flags=re.M | re.S) for text in (before, after)]
    assert without[0] == without[1]


def test_a_card_of_someone_elses_keeps_its_text(saved):
    path = saved / "README.md"
    path.write_text("---\nlicense: openrail\ntags:\n- vision\n---\n\n# Theirs\n\n## How to use\nof it\n", "utf-8")
    adapt_card(saved, "owner/name")
    card = ModelCard.load(path)
    assert (card.data.license, card.data.library_name, card.data.tags) == ("openrail", "transformers", ["vision"])
    assert card.text.strip() == "# Theirs\n\n## How to use\nof it"
