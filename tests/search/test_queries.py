"""Questions to an index: texts, images, mixtures, conditions, recommendations, and whether there is a match."""

import sys

import numpy as np
import pytest

from hf_clip.search import Index, SearchError
from hf_clip.search.queries import compose, diversify
from tests.helpers.search_toys import GrayEncoder, write_gray

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return GrayEncoder()


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for value in range(60):
        write_gray(folder / f"{value}.png", value, size=8 + value)
    made = Index.open(folder, model=model, processor=model.processor)
    made.update()
    return made


@pytest.fixture(scope="module")
def unit(model):
    return torch_unit(model.image_embeds)


def torch_unit(embeddings):
    return (embeddings / embeddings.norm(dim=1, keepdim=True)).detach().numpy()[:60]


def test_a_text_finds_by_cosine_similarity_in_falling_order(index, model, unit):
    hits = index.search("gray 7", top_k=60)
    text = model.encode_text(model.processor(text=["gray 7"])["input_ids"])[0].detach().numpy()
    scores = unit @ text
    assert [hit.path for hit in hits] == [f"{at}.png" for at in np.argsort(-scores)]
    assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=2e-3) and hits.is_exact


def test_an_image_and_an_indexed_image_find_the_same(index, unit, tmp_path):
    nearest = [f"{at}.png" for at in np.argsort(-unit @ unit[9])]
    assert [hit.path for hit in index.near(write_gray(tmp_path / "like.png", 9), top_k=5)] == nearest[:5]
    # An indexed one is no answer to itself.
    assert [hit.path for hit in index.near("9.png", top_k=5)] == nearest[1:6]
    assert [hit.path for hit in index.search(images=np.full((8, 8, 3), 9, np.uint8), top_k=5)] == nearest[:5]


def test_mixtures_center_each_modality(index, model, unit):
    hits = index.search("gray 7", near="9.png", minus="gray 11", top_k=60)
    places = {hit.path: place for place, hit in enumerate(hits)}
    assert max(places["7.png"], places["9.png"]) < 6 and places["11.png"] > 30
    alone = index.search("gray 7", near="9.png", weights=[0.01, 1], top_k=1)
    assert alone[0].path == "9.png"
    assert index.search("gray 7", near="9.png", weights=[1, 0.01], top_k=1)[0].path == "7.png"
    with pytest.raises(ValueError, match="`weights` has 1 numbers for 2 parts"):
        index.search("gray 7", near="9.png", weights=[1])


def test_what_all_texts_have_in_common_says_nothing_in_a_mixture():
    from hf_clip.search.calibration import Calibration
    from hf_clip.search.queries import Term

    gap, image, text = np.eye(4, dtype=np.float32)[:3]
    nothing, none = np.zeros((4, 4), np.float32), np.zeros(0, np.float32)
    known = Calibration(nothing, nothing[:0], 0.9 * gap, np.zeros(4, np.float32), nothing, none, none)
    terms = [Term((0.9 * gap + 0.43 * text).astype(np.float32), True), Term(image, False)]
    mixed, plain = compose(terms, known), compose(terms, None)
    assert abs(mixed @ gap) < 0.01 and mixed @ text > 0.7 and plain @ gap > 0.6


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("width = 15", {7}),
        ("width < 20 AND height > 17", {10, 11}),
        ("path LIKE '1_.png'", set(range(10, 20))),
        ("path IN ('3.png', '5.png') OR width > 66", {3, 5, 59}),
        ("taken > '2024-01-01'", set()),
    ],
)
def test_conditions_are_exact(index, unit, where, kept):
    hits = index.search("gray 7", where=where, top_k=60)
    assert {hit.path for hit in hits} == {f"{value}.png" for value in kept}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(("where", "named"), [("nope > 3", "nope"), ("width >", "width"), ("width = 'a'", "width")])
def test_a_condition_that_cannot_be_understood_is_one_line(index, where, named):
    with pytest.raises(SearchError, match="`where=.*cannot be understood") as told:
        index.search("gray 7", where=where)
    assert "\n" not in str(told.value) and named in str(told.value) and "missing = false" not in str(told.value)


def test_a_condition_reaches_no_row_that_questions_do_not_find(index):
    for where in ("true) OR (true", "true) -- "):
        with pytest.raises(SearchError, match="`where=.*cannot be understood"):
            index.search("gray 7", where=where)


def test_what_is_there_is_told_from_what_is_not(index):
    there = [index.search(f"gray {value}").match_probability for value in range(0, 60, 5)]
    not_there = [index.search(f"gray {value}").match_probability for value in range(100, 160, 5)]
    assert np.median(there) > 0.8 and np.median(not_there) < 0.2
    assert np.mean([one > other for one in there for other in not_there]) > 0.95
    assert index.search("gray 7").has_match
    # No more than texts about anything at all: not likely is no low match yet.
    hits = index.search("gray 7")
    hits.match_probability = 0.2
    assert hits.has_match
    hits.match_probability = 0.04
    assert not hits.has_match
    # Of images and mixtures nothing is claimed.
    assert index.near("9.png").match_probability is None
    assert index.search("gray 7", near="9.png").match_probability is None


def test_a_name_that_describes_what_was_found_better_speaks_against_a_match(tmp_path, model):
    for value in range(0, 60, 2):
        write_gray(tmp_path / f"{value}.png", value)
    index = Index.open(tmp_path, model=model, processor=model.processor)
    index.update()
    # Their images are those of the even values beside them.
    not_there = [f"gray {value}" for value in range(1, 60, 8)]
    before = [index.search(text).match_probability for text in not_there]
    named = Index.open(tmp_path, model=model, processor=model.processor, names=[f"gray {one}" for one in range(0, 60)])
    assert named.update().encoded == 0
    after = [named.search(text).match_probability for text in not_there]
    assert np.mean(after) < 0.7 * np.mean(before)
    # The index keeps them, and a name is no rival of itself.
    kept = Index.open(tmp_path, model=model, processor=model.processor)
    assert [kept.search(text).match_probability for text in not_there] == after
    assert np.mean([kept.search(f"gray {value}").match_probability for value in range(0, 60, 8)]) > 0.9


def test_recommendations_skip_what_was_named_and_turn_from_what_is_disliked(index, unit):
    liked, disliked = ["7.png", "9.png"], ["11.png"]
    hits = index.recommend(liked, disliked, top_k=10, diversity=0)
    assert len(hits) == 10 and not {hit.path for hit in hits} & {*liked, *disliked}
    center = unit.mean(0)
    wanted = unit[[7, 9]].mean(0) - center
    likeness = [float(wanted @ (unit[int(hit.path[:-4])] - center)) for hit in hits]
    assert np.mean(likeness) > 0
    # The score is what mixtures have: of the centered question with the centered image.
    unit_of = lambda vector: vector / np.linalg.norm(vector)  # noqa: E731
    question = unit_of(unit_of(unit_of(unit[[7, 9]].mean(0)) - center) - 0.5 * unit_of(unit[11] - center))
    found = [float(question @ (unit[int(hit.path[:-4])] - center)) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], found, atol=2e-2)
    # Of several liked alone it is a cosine.
    middle = unit_of(unit[liked_rows := [7, 9]].mean(0))
    alone = index.recommend([f"{one}.png" for one in liked_rows], top_k=5, diversity=0)
    cosines = [float(middle @ unit[int(hit.path[:-4])]) for hit in alone]
    np.testing.assert_allclose([hit.score for hit in alone], cosines, atol=2e-3)
    with pytest.raises(SearchError, match="'gone.png' is no image of the index"):
        index.recommend(["gone.png"])
    with pytest.raises(SearchError, match="`liked` is empty"):
        index.recommend([])


def test_diversity_takes_one_of_each_kind_before_a_second():
    kinds = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2]]
    rows = [{"score": score} for score in (0.99, 0.98, 0.97, 0.9, 0.8)]
    assert diversify(rows, kinds, 3, 0.0) == [0, 1, 2]
    assert diversify(rows, kinds, 3, 0.5) == [0, 3, 4]


def test_an_index_that_is_not_there_is_told_in_the_words_of_python(tmp_path):
    with pytest.raises(SearchError, match="holds no index: run `update` first"):
        Index.open(tmp_path).search("dog")


def test_storage_that_gives_no_answer_is_no_empty_index(tmp_path, monkeypatch):
    def refuse(*_, **options):
        # As LanceDB raises it.
        raise ValueError("Failed to connect to namespace: ... Connection refused")

    monkeypatch.setattr("lancedb.connect", refuse)
    with pytest.raises(SearchError, match="`index=s3://bucket/photos` cannot be reached: .*Connection refused"):
        Index.open(tmp_path, index="s3://bucket/photos").search("dog")


def test_a_package_that_is_deferred_runs_once_something_of_it_is_asked_for(tmp_path, monkeypatch):
    from hf_clip import search

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deferred_toy").mkdir()
    (tmp_path / "deferred_toy/__init__.py").write_text("from . import part\nheavy = part.value + 1\n")
    (tmp_path / "deferred_toy/part.py").write_text("value = 1\n")
    search._defer("deferred_toy")
    from deferred_toy.part import value

    package = sys.modules["deferred_toy"]
    assert value == 1 and "heavy" not in vars(package)
    assert package.heavy == 2
    with pytest.raises(AttributeError):
        _ = package.nothing


def test_nothing_asked_for_is_an_error(index):
    with pytest.raises(SearchError, match="nothing is asked for"):
        index.search()


def test_a_model_that_changed_is_noticed_at_a_question(index, model):
    import torch

    other = Index.open(index.root)
    changed = GrayEncoder()
    with torch.no_grad():
        changed.of_all_texts.add_(1.0)
    other._asked_for = type(index._asked_for)(changed, changed.processor)
    entry = other._store.entries()[0]
    with pytest.raises(SearchError, match="gives other embeddings than when"):
        other._text_embeds(entry, ["gray 7"])


def test_many_rows_are_asked_by_an_approximate_index_whose_recall_was_measured(tmp_path, monkeypatch):
    from hf_clip.search import approximate, queries

    model = GrayEncoder()
    for value in range(0, 256, 4):
        for copy in range(4):
            file = write_gray(tmp_path / f"{value}_{copy}.png", value)
            file.write_bytes(file.read_bytes() + bytes([copy]))
    monkeypatch.setattr(approximate, "EXACT_ROWS", 200)
    monkeypatch.setattr(queries, "EXACT_ROWS", 200)
    index = Index.open(tmp_path, model=model, processor=model.processor)
    index.update()
    facts = index.status()["models"][0]["search"]
    assert facts["kind"] == "IVF_RQ" and facts["recall_at_10"] >= 0.99 and facts["nprobes"] <= facts["partitions"]
    hits = index.search("gray 200", top_k=4)
    assert not hits.is_exact and {hit.path for hit in hits} == {f"200_{copy}.png" for copy in range(4)}
    assert index.search("gray 200", where="path LIKE '204%'", top_k=9).is_exact
    # A row that is newer than the index is found, one that is gone is not.
    write_gray(tmp_path / "new.png", 200)
    (tmp_path / "200_0.png").unlink()
    index.update()
    found = {hit.path for hit in index.search("gray 200", top_k=4)}
    assert found == {"200_1.png", "200_2.png", "200_3.png", "new.png"}
