"""Retrieval with several captions an image and by columns, its reciprocal rank, and its memory."""

import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score
from torch.utils._python_dispatch import TorchDispatchMode

from hf_clip.evaluation import evaluate_retrieval, retrieval, retrieval_metrics
from hf_clip.sources import SourceError, open_source
from tests.evaluation.test_evaluation import png, write_parquet
from tests.helpers.toys import LookupEncoder

TEXTS = {
    "a dog": [1.0, 0, 0],
    "a puppy": [0.8, 0.6, 0],
    "a cat": [0, 1.0, 0],
    "a kitten": [0.6, 0.8, 0],
    "a car": [0, 0, 1.0],
}


@pytest.fixture
def source(tmp_path):
    """Two dogs (one of them drawn like a cat) and a car; captions in lists and in lines, one of them twice."""
    captions = [["a dog", "a puppy"], ["A  dog"], ["a car\n\na kitten"]]
    images = [png(0), png(1), png(2)]
    return write_parquet(
        tmp_path / "a.parquet", images, caption=captions, concept=["dog", None, None], lang=["en", "en", "de"]
    )


def images_and_texts():
    model = LookupEncoder([[1.0, 0.1, 0], [0, 1.0, 0.1], [0, 0, 1.0]], TEXTS)
    return model, model.processor


def test_every_caption_is_a_candidate(source):
    result = evaluate_retrieval(*images_and_texts(), open_source(source), captions="all")
    assert result.names == ["a dog", "a puppy", "a car", "a kitten"]
    # Image 0: its dog first. Image 1 looks like a cat: kitten, puppy, dog (its own, the third; the car is nearer
    # than the dog: 0.1 against 0). Image 2: its car.
    found = result.metrics["image_to_text"]
    assert (found["queries"], found["candidates"]) == (3, 4)
    assert found["recall_at_1"] == pytest.approx(2 / 3) and found["mean_reciprocal_rank"] == pytest.approx(
        (1 + 1 / 4 + 1) / 3
    )
    # a dog: image 0. a puppy: 0.86 of image 0 against 0.6. a car: image 2. a kitten: its car comes last.
    found = result.metrics["text_to_image"]
    assert (found["queries"], found["candidates"]) == (4, 3)
    assert found["recall_at_1"] == pytest.approx(3 / 4) and found["median_rank"] == 1
    assert found["mean_reciprocal_rank"] == pytest.approx((3 + 1 / 3) / 4)


@pytest.mark.parametrize("sign", ["\x85", "\u2028", "\x0c", "\x1c", "\x0b"])
def test_captions_are_cut_at_the_ends_of_lines_alone(sign, tmp_path):
    captions = [f"a dog{sign} 1", "a cat\r\na kitten\ra puppy\na car"]
    texts = [f"a dog{sign} 1", "a cat", "a kitten", "a puppy", "a car"]
    data = write_parquet(tmp_path / "a.parquet", [png(0), png(1)], caption=captions)
    known = {name: [1.0, 0, 0] for text in texts for name in (text, " ".join(text.split()))}
    model = LookupEncoder(torch.eye(3), known)
    result = evaluate_retrieval(model, model.processor, open_source(data), captions="all")
    assert result.metrics["text_to_image"]["queries"] == 5 and result.caption_counts == (1, 4)


def test_images_of_one_concept_share_their_captions(tmp_path):
    data = write_parquet(
        tmp_path / "b.parquet",
        [png(0), png(0), png(2)],
        caption=["a dog", "a puppy", "a car"],
        concept=["d", "d", "c"],
    )
    every = evaluate_retrieval(*images_and_texts(), open_source(data))
    assert every.names == ["a dog", "a puppy", "a car"] and every.metrics["text_to_image"]["recall_at_1"] == 1
    first = evaluate_retrieval(*images_and_texts(), open_source(data), captions="first")
    assert first.names == ["a dog", "a car"] and first.targets == [0, 0, 1]


def test_by_a_column_only_its_own_texts_are_candidates(source):
    opened = open_source(source, keyword_columns=["lang"])
    result = evaluate_retrieval(*images_and_texts(), opened, captions="all", by=["lang"])
    german, english = result.groups["lang"]["de"], result.groups["lang"]["en"]
    assert (german["image_to_text"]["queries"], german["image_to_text"]["candidates"]) == (1, 2)
    assert (english["image_to_text"]["queries"], english["image_to_text"]["candidates"]) == (2, 2)
    # Without the car before it, the second image's dog is second.
    assert english["image_to_text"]["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 2) / 2)
    assert "lang" in result.table() and result.to_dict()["by"] == result.groups
    with pytest.raises(SourceError, match="without the column 'lang'"):
        evaluate_retrieval(*images_and_texts(), open_source(source), by=["lang"])
    with pytest.raises(ValueError, match="captions='some'` is unknown"):
        evaluate_retrieval(*images_and_texts(), open_source(source), captions="some")


def test_the_mean_reciprocal_rank_is_scikit_learns():
    images, texts = torch.randn(80, 12, dtype=torch.float64), torch.randn(30, 12, dtype=torch.float64)
    targets = torch.randint(30, (80,))
    cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    truth = torch.nn.functional.one_hot(targets, 30)
    ours = retrieval_metrics(images, texts, targets.tolist())["image_to_text"]["mean_reciprocal_rank"]
    assert ours == pytest.approx(label_ranking_average_precision_score(truth, cosines), abs=1e-12)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made within that are alive at once."""

    def __init__(self):
        super().__init__()
        self.bytes_of: dict[int, tuple] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        import weakref

        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage.data_ptr() not in given | self.bytes_of.keys():
                    self.bytes_of[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.bytes_of.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.bytes_of.values()))
        return result


def peak_of_ranking(image_count: int, text_count: int) -> int:
    """Bytes beyond the embeddings."""
    images = torch.nn.functional.normalize(torch.randn(image_count, 64))
    captions = torch.nn.functional.normalize(torch.randn(text_count, 64))
    with Live() as live:
        retrieval.rank_positives(images, captions, [[index] for index in range(image_count)], tile_size=256)
    return live.peak


def test_memory_is_that_of_the_embeddings_and_little_more():
    embeddings, cosines = (2000 + 6000) * 64 * 4, 2000 * 6000 * 4
    # Embeddings of unit length are not copied, and all cosines never held: at once there are a few tiles, a slice of
    # the pairs' embeddings, and a few numbers for each image, text and pair.
    assert peak_of_ranking(2000, 6000) < embeddings < cosines / 20
    # So for 100,000 x 500,000 at width 512 and 500,000 pairs: the embeddings, six tiles, three slices, and the
    # numbers.
    full = 600_000 * 512 * 4 + 6 * 2048**2 * 4 + 3 * retrieval.ROWS_AT_ONCE * 512 * 4 + 64 * 600_000
    assert full < 1.6e9


def test_captions_that_are_all_empty_are_called_so(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", [png(0), png(1)], caption=["", " "])
    with pytest.raises(ValueError, match="all 2 captions are empty: check the caption column"):
        evaluate_retrieval(*images_and_texts(), open_source(source))
