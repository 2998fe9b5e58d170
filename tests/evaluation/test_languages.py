"""Retrieval by language of joined captions, its table and its plot."""

import pytest

from hf_clip import evaluate_languages
from hf_clip.evaluation.comparison import compare
from hf_clip.evaluation.plots.result_charts import plot_languages
from hf_clip.hub.result_tables import eval_results, result_tables
from hf_clip.sources import CaptionTable, open_source
from tests.evaluation.test_evaluation import png, write_parquet
from tests.helpers.data_files import write
from tests.helpers.toys import LookupEncoder

TABLE = """\
concept,lang,caption
d,en,dog
c,en,cat
b,en,bird
d,de,Hund
c,de,Katze
b,de,Vogel
d,fr,chien
c,fr,chat
d,ja,pet
c,ja,pet
b,ja,tori
"""
TEXTS = {
    **dict.fromkeys(("dog", "Hund", "chien", "pet"), [1.0, 0, 0]),
    **dict.fromkeys(("cat", "chat", "Vogel", "tori"), [0, 1.0, 0]),
    **dict.fromkeys(("bird", "Katze"), [0, 0, 1.0]),
}


def evaluate(folder, **options):
    images = write_parquet(
        folder / "a.parquet", [png(0), png(1), png(2), png(0)], concept=["d", "c", "b", None], caption=["x"] * 4
    )
    table = CaptionTable(write(folder / "names.csv", TABLE), "concept", **{"language_column": "lang", **options})
    model = LookupEncoder([[1.0, 0.1, 0], [0.1, 1.0, 0], [0, 0.1, 1.0]], TEXTS)
    return model, open_source(images, join=table)


@pytest.fixture
def result(tmp_path):
    model, source = evaluate(tmp_path)
    found = evaluate_languages(model, model.processor, source, title="pets")
    # Images once, and those without a key not at all.
    assert sum(count for kind, count, _ in model.calls if kind == "image") == 3
    return found


def test_each_language_has_its_own_candidates(result):
    recalls = {
        language: tuple(found[way]["recall_at_1"] for way in ("image_to_text", "text_to_image"))
        for language, found in result.languages.items()
    }
    # In German only the dog is right. In French there is no bird. One Japanese name is of two concepts: the dog finds
    # it, and is found by it; the cat is nearer to that of the bird.
    assert recalls["en"] == recalls["fr"] == (1, 1)
    assert recalls["de"] == pytest.approx((1 / 3, 1 / 3))
    assert recalls["ja"] == pytest.approx((2 / 3, 1 / 2))
    counts = {
        name: (each["image_to_text"]["queries"], each["image_to_text"]["candidates"])
        for name, each in result.languages.items()
    }
    assert counts == {"en": (3, 3), "de": (3, 3), "fr": (2, 2), "ja": (3, 2)}
    assert result.summary("image_to_text") == {
        "median": pytest.approx(2 / 3),
        "reference": 1,
        "ratio": pytest.approx(2 / 3),
    }
    assert result.skipped == {"no_caption": 1} and result.ranked() == ["en", "fr", "ja", "de"]


def test_it_is_told_in_a_table_in_json_on_the_card_and_in_a_plot(result, tmp_path):
    lines = result.table().splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["en", "fr", "ja", "de"]
    assert lines[5].split() == ["de", "0.333", "1.000", "1.000", "0.333", "1.000", "1.000", "3", "3"]
    assert lines[6] == "image to text: the median R@1 of the other 3 is 0.667, 0.67 of that of en (1.000)"
    assert lines[-1] == "skipped: 1 no_caption"
    content = result.to_dict()
    assert content["image_to_text"]["ratio"] == pytest.approx(2 / 3) and [*content["languages"]][-1] == "de"
    card = result_tables([content])
    assert "| pets | de | 0.333 | 1.000 | 0.333 | 1.000 | 3 | 3 |" in card
    assert "| pets | median without en | 0.667 | - | 0.500 | - | - | - |" in card
    assert "| pets | median / en | 0.67 | - | 0.50 | - | - | - |" in card
    numbers = {each.metric_type: each.metric_value for each in eval_results([content])}
    assert numbers["image_to_text_recall_at_1"] == 1 and numbers["image_to_text_recall_at_1_median"] == 0.6667
    compared = compare([{**content, "model": "a"}, {**content, "model": "b"}])
    assert compared["a"]["text to image median"] == 0.5
    assert plot_languages(result, tmp_path / "languages.png").stat().st_size > 1000


def test_captions_without_languages_or_without_the_reference_are_refused(tmp_path):
    model, source = evaluate(tmp_path, language_column=None)
    with pytest.raises(
        ValueError, match="`source`: .* has captions without languages: open it with a table to `join`"
    ):
        evaluate_languages(model, model.processor, source)
    model, source = evaluate(tmp_path)
    with pytest.raises(ValueError, match="`reference=la`: the images have captions in de, en, fr, ja: name one"):
        evaluate_languages(model, model.processor, source, reference="la")
    model, source = evaluate(tmp_path, where={"lang": "en"})
    with pytest.raises(ValueError, match="`reference=en`: the images have captions in en alone"):
        evaluate_languages(model, model.processor, source)
