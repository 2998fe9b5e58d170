"""Evaluation: every metric by hand on a case small enough to see, and against scikit-learn on a larger one."""

import io
import json
import sys
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from hf_clip.evaluation import (
    encode_images,
    encode_texts,
    evaluate_pairs,
    evaluate_retrieval,
    evaluate_zero_shot,
    plot_retrievals,
    plot_similarity,
    plot_training,
    retrieval,
    retrieval_metrics,
)
from hf_clip.sources import SourceError, open_source
from tests.helpers.counts import soak_count
from tests.helpers.toys import LookupEncoder, gray, tiny_clip

# Each label is its own text.
PLAIN = ["{}"]
FASHION = Path(__file__).parents[2] / "examples/fashion/test_small.parquet"


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray(value)).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path: Path, images: list[bytes | None], **columns) -> str:
    pq.write_table(pa.table({"image": [{"bytes": image, "path": None} for image in images], **columns}), path)
    return str(path)


# Metrics


def test_retrieval_by_hand():
    # Cosines, a row for each image:  1.0  0.6  0.8   the true text of image 0 is text 0: rank 1
    #                                   0.0  0.8  0.6   of image 1 it is text 2: rank 2
    #                                  -1.0 -0.6 -0.8   of image 2 it is text 0: rank 3
    images = [[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]
    texts = [[2.0, 0.0], [0.6, 0.8], [0.8, 0.6]]
    metrics = retrieval_metrics(images, texts, [0, 2, 0])
    assert metrics["image_to_text"] == pytest.approx(
        {
            "recall_at_1": 1 / 3,
            "recall_at_5": 1,
            "recall_at_10": 1,
            "median_rank": 2,
            "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 3) / 3,
            "chance_at_1": 1 / 3,
            "queries": 3,
            "candidates": 3,
        }
    )
    # Text 0: images 0 and 2 are true, and image 0 comes first. Text 1 has no image. Text 2: 0.8 comes before its
    # 0.6, so rank 2.
    assert metrics["text_to_image"] == pytest.approx(
        {
            "recall_at_1": 1 / 2,
            "recall_at_5": 1,
            "recall_at_10": 1,
            "median_rank": 1.5,
            "mean_reciprocal_rank": (1 + 1 / 2) / 2,
            "chance_at_1": 1.5 / 3,
            "queries": 2,
            "candidates": 3,
        }
    )


def test_ties_count_against_the_model():
    # Text 0 is the image's; text 1 has the same embedding.
    metrics = retrieval_metrics([[1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0])
    assert metrics["image_to_text"]["recall_at_1"] == 0
    assert metrics["image_to_text"]["median_rank"] == 2
    # A tie among an image's own texts is none.
    metrics = retrieval_metrics([[1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [{0, 1}])
    assert metrics["image_to_text"]["recall_at_1"] == 1


def test_a_model_that_gives_one_embedding_to_everything_finds_nothing():
    embedding = torch.randn(1, 24)
    metrics = retrieval_metrics(embedding.repeat(50, 1), embedding.repeat(40, 1), [index % 40 for index in range(50)])
    assert metrics["image_to_text"]["recall_at_10"] == metrics["text_to_image"]["recall_at_10"] == 0
    assert metrics["image_to_text"]["median_rank"] == 40


def test_equal_embeddings_tie_wherever_they_stand():
    # The same dot product differs in its last bit with the column it stands in.
    texts = torch.randn(1, 512).repeat(301, 1)
    images = torch.randn(97, 512)
    ranks, _ = retrieval.rank_positives(images, texts, [index * 3 for index in range(97)], tile_size=64)
    assert set(ranks.ranks.tolist()) == {301}


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_scikit_learns_top_k_accuracy(k):
    images, texts = torch.randn(300, 16, dtype=torch.float64), torch.randn(60, 16, dtype=torch.float64)
    targets = torch.randint(60, (300,))
    images += 0.5 * texts[targets]
    cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    ours = retrieval_metrics(images, texts, targets.tolist())["image_to_text"][f"recall_at_{k}"]
    assert 0.1 < ours < 1
    assert ours == pytest.approx(top_k_accuracy_score(targets, cosines, k=k, labels=range(60)), abs=1e-12)


def slow_ranks(cosines, positives):
    """Rank of the best true candidate of each row, counted one by one."""
    ranks = []
    for row, true in zip(cosines, positives, strict=True):
        best = max((row[index] for index in true), default=None)
        wrong = [value for index, value in enumerate(row) if index not in true]
        ranks.append(0 if best is None else 1 + sum(value >= best - retrieval.TIE_TOLERANCE for value in wrong))
    return ranks


@settings(max_examples=soak_count(40, 2000), deadline=None)
@given(data=st.data())
def test_tiles_change_nothing(data):
    image_count, text_count = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    texts_of = st.sets(st.integers(0, text_count - 1), max_size=3)
    positives = data.draw(st.lists(texts_of, min_size=image_count, max_size=image_count).filter(any))
    # Few directions, so that ties are common.
    numbers = st.sampled_from([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0], [0.0, 0.0]])
    images, texts = (torch.tensor([data.draw(numbers) for _ in range(n)]) for n in (image_count, text_count))
    cosines = (images @ texts.T).tolist()
    image_ranks, text_ranks = retrieval.rank_positives(
        images, texts, positives, tile_size=data.draw(st.integers(1, 13))
    )
    assert image_ranks.ranks.tolist() == slow_ranks(cosines, positives)
    images_of = [{image for image, true in enumerate(positives) if text in true} for text in range(text_count)]
    assert text_ranks.ranks.tolist() == slow_ranks(zip(*cosines, strict=True), images_of)


def test_all_cosines_are_never_held_at_once(monkeypatch):
    sizes = []
    see = retrieval._Side.see_negatives

    def spy(side, queries, cosines_IJ):
        sizes.append(cosines_IJ.untyped_storage().nbytes())
        see(side, queries, cosines_IJ)

    monkeypatch.setattr(retrieval._Side, "see_negatives", spy)
    retrieval.rank_positives(torch.randn(5000, 4), torch.randn(4500, 4), [0] * 5000)
    assert max(sizes) <= 4 * 2048**2 and len(sizes) == 2 * 3 * 3


@pytest.mark.parametrize(
    "images, texts, positives, said",
    [
        ([[1.0, float("nan")]], [[1.0, 0.0]], [0], "image_embeds holds NaN or infinity in 1 of 1"),
        ([[1.0, 0.0]], [[float("inf"), 0.0]], [0], "text_embeds holds NaN"),
        ([[1.0, 0.0]], [[1.0, 0.0]], [1], "positives.0. is text 1, but texts go from 0 to 0"),
        ([[1.0, 0.0]], [[1.0, 0.0]], [0, 0], "2 entries for 1 images"),
        ([[1.0, 0.0]], [[1.0, 0.0]], [[]], "no image has a text"),
        ([[1.0, 0.0]], [[1.0]], [0], "2 dimensions, texts 1"),
        (torch.empty(0, 2), [[1.0, 0.0]], [], "image_embeds has the shape"),
    ],
)
def test_what_cannot_be_ranked(images, texts, positives, said):
    with pytest.raises(ValueError, match=said):
        retrieval_metrics(images, texts, positives)


# Embeddings


def test_bad_images_are_skipped_and_counted_by_reason(capfd):
    model = LookupEncoder(torch.eye(4), {"x": [1.0, 0, 0, 0]})
    model.train()
    stream = [
        gray(2),
        b"no image",
        None,
        {"bytes": png(1), "path": None},
        b"",
        png(3)[:45],
        Image.fromarray(gray(3)),
    ]
    features = encode_images(model, model.processor, stream, batch_size=2)
    assert features.kept == [0, 3, 6]
    assert features.embeddings.tolist() == torch.eye(4)[[2, 1, 3]].tolist()
    assert features.skipped == {"unknown_format": 1, "missing": 1, "empty": 1, "truncated": 1}
    # Batches are filled from the readable ones, nothing was trained on the way, and no bar without a terminal.
    assert model.calls == [("image", 2, False), ("image", 1, False)]
    assert model.training and not features.embeddings.requires_grad
    assert capfd.readouterr().err == ""


def test_nothing_to_encode_is_an_error():
    model = LookupEncoder(torch.eye(2), {"x": [1.0, 0.0]})
    with pytest.raises(ValueError, match="2 missing, 1 unknown_format"):
        encode_images(model, model.processor, [None, b"?", None])
    with pytest.raises(ValueError, match="the data set is empty"):
        encode_images(model, model.processor, [])
    with pytest.raises(ValueError, match="no texts"):
        encode_texts(model, model.processor, [])


def test_embeddings_do_not_depend_on_the_batch():
    texts = [f"{count} red {thing}" for count in range(3) for thing in ("square", "a much longer caption", "x")]
    model, processor = tiny_clip(texts)
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)) for seed in range(5)
    ]
    torch.testing.assert_close(
        encode_texts(model, processor, texts, batch_size=2), encode_texts(model, processor, texts), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        encode_images(model, processor, images, batch_size=2).embeddings,
        encode_images(model, processor, images).embeddings,
        atol=1e-5,
        rtol=0,
    )


# Retrieval over data

NAMES = {"red apple": [1.0, 0, 0], "Red  Apple": [1.0, 0, 0], "pear": [0, 1.0, 0], "plum": [0, 0, 1.0]}


def fruit_pairs():
    """(image, concept, name): gray 0 looks like an apple, 1 like a pear, 2 like a plum that is half a pear."""
    return [
        (gray(0), "apple", "red apple"),
        (gray(0), "apple", "another name, which is no candidate"),
        (b"broken", "apple", "red apple"),
        (gray(0), "second apple", "Red  Apple"),
        (gray(1), None, "pear"),
        (gray(1), "plum", "plum"),
        (gray(2), "plum", "plum"),
        (gray(2), "nameless", "  "),
    ]


def evaluate_fruit(pairs=None):
    model = LookupEncoder([[1.0, 0.1, 0], [0, 1.0, 0], [0, 0.5, 1.0]], NAMES)
    return evaluate_pairs(model, model.processor, pairs or fruit_pairs(), title="fruit", batch_size=2)


def test_one_name_a_concept_and_duplicates_merged():
    result = evaluate_fruit()
    assert result.names == ["red apple", "pear", "plum"]
    assert result.targets == [0, 0, 0, 1, 2, 2]
    assert result.rows == [0, 1, 3, 4, 5, 6]
    assert result.skipped == {"unknown_format": 1, "no_caption": 1}
    found = result.metrics["image_to_text"]
    assert (found["queries"], found["candidates"]) == (6, 3)
    # Image 4 is drawn like the pear; all others find their names.
    assert found["recall_at_1"] == pytest.approx(5 / 6)
    assert result.metrics["text_to_image"]["recall_at_1"] == pytest.approx(2 / 3)


def test_images_decoded_beforehand_give_the_same_and_can_be_evaluated_again():
    decoded = [(image, *rest) for image, *rest in fruit_pairs() if not isinstance(image, bytes)]
    as_pillow = [(Image.fromarray(image), *rest) for image, *rest in decoded]
    assert evaluate_fruit(decoded).metrics == evaluate_fruit(decoded).metrics == evaluate_fruit().metrics
    assert evaluate_fruit(as_pillow).metrics == evaluate_fruit().metrics


def test_results_are_json_and_print_what_was_counted():
    result = evaluate_fruit()
    numbers = json.loads(json.dumps(result.to_dict()))
    assert numbers["task"] == "retrieval" and numbers["image_to_text"]["candidates"] == 3
    assert numbers["skipped"] == {"unknown_format": 1, "no_caption": 1}
    header, titles, to_text, *_ = lines = result.table().splitlines()
    assert header == "fruit" and "R@1" in titles
    assert to_text.split()[-7:] == ["0.833", "1.000", "1.000", "1", "0.889", "6", "3"]
    assert lines[-1] == "skipped: 1 no_caption, 1 unknown_format"


def test_best_and_worst():
    best, worst = evaluate_fruit().best_and_worst(2)
    # The apples by the margin of cosines that they share; the wrongly named image first among the worst.
    assert set(best) < {0, 1, 2, 3} and worst[0] == 4
    assert not set(best) & set(worst)
    best, worst = evaluate_fruit().best_and_worst(100)
    assert sorted(best + worst) == list(range(6))
    names = evaluate_fruit().top_names(4, 2)
    assert [index for index, _ in names] == [1, 0] or names[0] == (1, pytest.approx(1.0))


def test_retrieval_over_a_source_equals_the_same_over_pairs(tmp_path):
    pairs = [pair for pair in fruit_pairs() if pair[1] is not None]
    images = [image if isinstance(image, bytes) else png(int(image[0, 0, 0])) for image, *_ in pairs]
    columns = {"caption": [pair[2] for pair in pairs], "concept": [pair[1] for pair in pairs]}
    source = open_source(write_parquet(tmp_path / "fruit.parquet", images, **columns))
    model = LookupEncoder([[1.0, 0.1, 0], [0, 1.0, 0], [0, 0.5, 1.0]], NAMES)
    result = evaluate_retrieval(model, model.processor, source, batch_size=3, captions="first")
    expected = evaluate_fruit(pairs)
    assert (result.metrics, result.names, result.rows, result.skipped) == (
        expected.metrics,
        expected.names,
        expected.rows,
        expected.skipped,
    )
    assert "fruit.parquet" in result.title


def test_a_source_without_what_is_asked_for(tmp_path):
    model = LookupEncoder(torch.eye(2), {"x": [1.0, 0.0]})
    unlabeled = open_source(write_parquet(tmp_path / "a.parquet", [png(0)], caption=["x"]))
    with pytest.raises(SourceError, match="label"):
        evaluate_zero_shot(model, model.processor, unlabeled, templates=PLAIN)
    captionless = open_source(write_parquet(tmp_path / "b.parquet", [png(0)], label=["x"]))
    with pytest.raises(SourceError, match="caption"):
        evaluate_retrieval(model, model.processor, captionless)


# Zero-shot over data


def test_zero_shot_by_hand(tmp_path):
    # Three images of "up", one of "down", none of "left"; one of the three is drawn like "down".
    file = write_parquet(
        tmp_path / "signs.parquet",
        [png(0), png(0), png(1), png(1), b"broken", png(0)],
        label=["up", "up", "up", "down", "up", None],
    )
    model = LookupEncoder(torch.eye(3), {"up": [1.0, 0, 0], "down": [0, 1.0, 0], "left": [0, 0, 1.0]})
    derived = evaluate_zero_shot(model, model.processor, open_source(file), templates=PLAIN)
    assert [row["label"] for row in derived.per_class] == ["down", "up"]
    names = ["down", "up", "left"]
    result = evaluate_zero_shot(model, model.processor, open_source(file), templates=PLAIN, labels=names, batch_size=2)
    assert result.top_1 == pytest.approx(3 / 4)
    assert result.mean_per_class == pytest.approx((2 / 3 + 1) / 2)
    assert (result.images, result.classes, result.chance, result.top_5) == (4, 3, 1 / 3, None)
    assert result.skipped == {"unknown_format": 1, "no_label": 1}
    numbers = json.loads(json.dumps(result.to_dict()))
    assert numbers["per_class"][1] == {"label": "up", "images": 3, "top_1": pytest.approx(2 / 3)}
    assert numbers["per_class"][2] == {"label": "left", "images": 0, "top_1": None}
    assert "  0.750      -           0.833      -        0.250   0.333         4        3" in result.table()


def test_classes_given_as_numbers_need_names_and_take_them_in_order(tmp_path):
    file = write_parquet(tmp_path / "numbers.parquet", [png(0), png(1), png(1), png(0)], label=[2, 0, 1, -1])
    model = LookupEncoder(torch.eye(3), {"zero": [0, 1.0, 0], "one": [0, 0, 1.0], "two": [1.0, 0, 0]})
    with pytest.raises(ValueError, match="label '2' has no name"):
        evaluate_zero_shot(model, model.processor, open_source(file), templates=PLAIN)
    with pytest.raises(
        ValueError, match="row 0.*'2' is beyond the 2 names of `labels`, whose indices are 0 to 1. Indices begin at 0"
    ):
        evaluate_zero_shot(model, model.processor, open_source(file), templates=PLAIN, labels=["zero", "one"])
    result = evaluate_zero_shot(
        model, model.processor, open_source(file), templates=PLAIN, labels=["zero", "one", "two"]
    )
    assert result.top_1 == pytest.approx(2 / 3)
    assert [row["top_1"] for row in result.per_class] == [1, 0, 1]
    assert result.skipped == {"no_label": 1}


def test_names_that_are_numerals_are_not_taken_for_numbers(tmp_path):
    names, images = ["1", "2", "0"], [png(0), png(1), png(1), png(2)]
    model = LookupEncoder(torch.eye(3), {"1": [1.0, 0, 0], "2": [0, 1.0, 0], "0": [0, 0, 1.0]})
    file = write_parquet(tmp_path / "numbers.parquet", images, label=[0, 1, 1, 2])
    result = evaluate_zero_shot(model, model.processor, open_source(file), templates=PLAIN, labels=names)
    assert [(row["label"], row["images"]) for row in result.per_class] == [("1", 1), ("2", 2), ("0", 1)]
    assert result.top_1 == 1
    lists = write_parquet(tmp_path / "lists.parquet", images, label=[[0], [1], [1], [2]])
    several = evaluate_zero_shot(
        model, model.processor, open_source(lists), templates=PLAIN, labels=names, multi_label=True
    )
    assert [row["images"] for row in several.per_class] == [1, 2, 1] and several.mean_average_precision == 1
    # Of texts nobody knows which was meant.
    texts = open_source(write_parquet(tmp_path / "texts.parquet", images, label=["0", "1", "1", "2"]))
    with pytest.raises(ValueError, match="row 0.*'0' is one class by its index and another by its name. Give"):
        evaluate_zero_shot(model, model.processor, texts, templates=PLAIN, labels=names)
    in_order = evaluate_zero_shot(model, model.processor, texts, templates=PLAIN, labels=["0", "1", "2"])
    assert [row["images"] for row in in_order.per_class] == [1, 2, 1]


def test_lists_leave_out_what_is_no_class(tmp_path):
    labels = [[0], [1], [-1], [2], [2, -1]]
    table = pa.table({"image": [{"bytes": png(place), "path": None} for place in range(5)], "label": labels})
    names = ["cat", "dog", "cow"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=names))}
    ).arrow_schema
    pq.write_table(table.replace_schema_metadata(features.metadata), tmp_path / "lists.parquet")
    model = LookupEncoder(torch.eye(5), {name: torch.eye(5)[place].tolist() for place, name in enumerate(names)})
    source = open_source(str(tmp_path / "lists.parquet"))
    result = evaluate_zero_shot(model, model.processor, source, templates=PLAIN, multi_label=True)
    assert [(row["label"], row["images"]) for row in result.per_class] == [("cat", 1), ("dog", 1), ("cow", 2)]
    assert result.skipped == {"no_label": 1}
    # And where names come from elsewhere.
    pq.write_table(table.take([0, 1, 2, 3]), tmp_path / "bare.parquet")
    bare = open_source(str(tmp_path / "bare.parquet"))
    result = evaluate_zero_shot(model, model.processor, bare, templates=PLAIN, multi_label=True, labels=names)
    assert result.skipped == {"no_label": 1} and [row["images"] for row in result.per_class] == [1, 1, 1]


def test_one_class_alone_is_refused(tmp_path):
    source = open_source(write_parquet(tmp_path / "one.parquet", [png(0)] * 2, label=["up", "up"]))
    model = LookupEncoder(torch.eye(2), {"up": [1.0, 0], "down": [0, 1.0]})
    for names in (None, ["up"]):
        with pytest.raises(ValueError, match="'up' is the only class, and with one class any model scores 1.000"):
            evaluate_zero_shot(model, model.processor, source, templates=PLAIN, labels=names)
    assert evaluate_zero_shot(model, model.processor, source, templates=PLAIN, labels=["up", "down"]).top_1 == 1


def test_equal_classes_are_placed_in_the_order_of_the_labels(tmp_path):
    file = write_parquet(tmp_path / "ties.parquet", [png(0)] * 8, label=list(range(8)))
    names = [f"name {index}" for index in range(8)]
    model = LookupEncoder(torch.ones(1, 2), {name: [1.0, 1.0] for name in names})
    result = evaluate_zero_shot(model, model.processor, open_source(file), templates=PLAIN, labels=names)
    assert (result.top_1, result.top_5) == (1 / 8, 5 / 8)


def test_zero_shot_of_fashion_is_what_scikit_learn_counts(tmp_path):
    table = pq.read_table(FASHION).take(list(range(0, 2000, 25)) + list(range(0, 1000, 100)))
    pq.write_table(table, tmp_path / "fashion.parquet")
    source = open_source(str(tmp_path / "fashion.parquet"))
    names, labels = list(source.label_names), table["label"].to_pylist()
    model, processor = tiny_clip(names)
    result = evaluate_zero_shot(model, processor, source, templates=("a {}", "{} in black and white"), batch_size=16)

    with torch.no_grad():
        prompts = [
            model.encode_text(**processor(text=[f"a {n}", f"{n} in black and white"], return_tensors="pt"))
            for n in names
        ]
        classes = torch.nn.functional.normalize(torch.stack([embeddings.mean(0) for embeddings in prompts]))
        images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"].to_pylist()]
        scores = model.encode_image(**processor(images=images, return_tensors="pt")) @ classes.T
    assert result.images == len(labels) == 90 and result.classes == 10
    assert result.top_1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert result.top_5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert result.mean_per_class == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert result.templates == ("a {}", "{} in black and white")


def test_a_diverged_model_is_not_scored(tmp_path):
    file = write_parquet(tmp_path / "two.parquet", [png(0)] * 2, label=["up", "down"], caption=["up", "down"])
    model = LookupEncoder([[float("nan"), 1.0]], {"up": [1.0, 0.0], "down": [0.0, 1.0]})
    for evaluate in (partial(evaluate_zero_shot, templates=PLAIN), evaluate_retrieval):
        with pytest.raises(ValueError, match="diverged"):
            evaluate(model, model.processor, open_source(file))


# Plots

HOSTILE = ["$5 and $6", "日本の旗", "👩‍🚀\ufe0f astronaut", "x" * 300, "a\nb\tc", "علم", "a_b^{c}\\frac", ""]


def ink(path: Path) -> np.ndarray:
    """The image at `path`, after a look that it is one that a README can show."""
    image = Image.open(path)
    assert image.format == "PNG" and 400 <= image.width <= 2000
    return np.asarray(image.convert("L"))


@pytest.fixture
def no_glyph_is_missing():
    """matplotlib warns of each letter that it draws as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph .* missing from")
        yield


@pytest.mark.usefixtures("no_glyph_is_missing")
def test_similarity_is_drawn_whatever_captions_hold(tmp_path):
    images = [gray(20 * index, 16) for index in range(len(HOSTILE))]
    path = plot_similarity(images, HOSTILE, torch.eye(len(HOSTILE)), tmp_path / "new" / "similarity.png")
    assert ink(path).min() < 100
    with pytest.raises(ValueError, match=r"\(8, 8\) for 8 images x 7 captions"):
        plot_similarity(images, HOSTILE[:-1], torch.eye(len(HOSTILE)), path)
    ink(plot_similarity(images[:1], ["one"], [[0.5]], path))


def test_letters_without_a_font_are_named_once_asked_for():
    from hf_clip.evaluation.plots import canvas

    with pytest.warns(UserWarning, match="install one that has"):
        assert canvas.drawable("a \U0001f9ff b") == "a □ b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert canvas.drawable("café \n au\tlait \ufe0f\u200d!") == "café au lait !"


@pytest.mark.usefixtures("no_glyph_is_missing")
def test_retrievals_are_drawn_from_the_rows_that_were_kept(tmp_path):
    pairs = fruit_pairs()
    asked = []

    class Images:
        def __getitem__(self, row):
            asked.append(row)
            return pairs[row][0]

    result = evaluate_fruit()
    result.names[0] = "$ a very long name, " * 5
    ink(plot_retrievals(result, Images(), tmp_path / "sheet.png"))
    assert sorted(asked) == [0, 1, 3, 4, 5, 6]


def test_images_that_all_have_one_name_are_refused():
    with pytest.raises(ValueError, match="all 2 images have one name, 'red apple'"):
        evaluate_fruit(fruit_pairs()[:2])


def test_training_curves_survive_a_killed_and_resumed_run(tmp_path):
    from hf_clip.evaluation.plots import training_curves

    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 5.0, "learning_rate": 1e-3},
        {"step": 2, "loss": 9.0},
        {
            "step": 2,
            "evaluation": {"seen": {"image_to_text": {"recall_at_1": 0.1}, "text_to_image": {"recall_at_1": 1}}},
        },
        {"step": 2, "loss": 4.0},
        {"step": 4, "loss": 3.0, "recall_at_1": 0.5},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert training_curves._read_curves(path) == ({1: 5.0, 2: 4.0, 4: 3.0}, {"seen": {2: 0.1}, "R@1": {4: 0.5}})
    ink(plot_training(path, tmp_path / "curve.png"))
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="at least one training step"):
        plot_training(path, tmp_path / "curve.png")


def test_a_smoothed_curve_keeps_a_straight_line_and_narrows_noise():
    from hf_clip.evaluation.plots import training_curves

    np.testing.assert_allclose(training_curves._smooth(np.full(9, 3.0), 2), 3.0)
    noise = np.array([0.0, 1.0] * 20)
    assert np.ptp([b - a for a, b in pairwise(training_curves._smooth(noise, 4)[4:-4])]) < 0.3


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_clip\[demo\]'"):
        plot_similarity([gray(0)], ["x"], [[1.0]], tmp_path / "x.png")
