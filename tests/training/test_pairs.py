"""What a pair's texts are: class names, several captions, a model's captions, hard negatives; and their losses."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_clip.sources import SourceError
from hf_clip.sources.sample import Source
from hf_clip.training import RecipeError, load_recipe
from hf_clip.training.config import AugmentationConfig, DataConfig
from hf_clip.training.distillation import negatives_loss
from hf_clip.training.loop import open_training_data
from hf_clip.training.objective import ContrastiveObjective
from hf_clip.training.stream import PairStream, TrainingData, open_training_source
from tests.helpers.counts import soak_count
from tests.helpers.squares import NAMES, encode, recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import assert_close, configure, gradients, make_batch, make_train_step
from tests.training.test_stream import PROCESSOR, row, take


def stream_of(rows, extra=(), label_column=None, batch_size=4, **config) -> PairStream:
    captions = () if label_column else ("caption",)
    source = Source(rows, "toys", "image", captions, extra_columns=tuple(extra), label_column=label_column)
    config = DataConfig(train=["toys"], workers=0, **config)
    data = TrainingData((source,), (1.0,), tuple(config.label_templates or ()))
    return PairStream(data, config, PROCESSOR, batch_size, 0, AugmentationConfig())


def test_folders_of_classes_are_captions_by_templates(tmp_path):
    for label in ("red fox", "grey owl"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(3):
            image = encode(np.full((4, 4, 3), index, np.uint8))
            (tmp_path / "data" / label / f"{index}.png").write_bytes(image)
    folder = [str(tmp_path / "data")]
    with pytest.raises(SourceError, match="has class labels in column 'label' and no captions: set `label_templates`"):
        open_training_source(DataConfig(train=folder))
    config = DataConfig(train=folder, label_templates=["a photo of a {}.", "{}"], workers=0)
    data = open_training_source(config)
    assert set(data.captions()) == {"a photo of a red fox.", "red fox", "a photo of a grey owl.", "grey owl"}
    stream = PairStream(data, config, PROCESSOR, 6, 0, AugmentationConfig())
    drawn, classes = Counter(), {}
    for batch in take(stream, 8):
        drawn.update(batch.captions)
        for caption, concept in zip(batch.captions, batch.concept_ids.tolist(), strict=True):
            classes.setdefault(concept, set()).add(caption.removeprefix("a photo of a ").removesuffix("."))
    assert len(drawn) == 4 and min(drawn.values()) >= 5
    # All images of a class are positives of each other.
    assert sorted(map(sorted, classes.values())) == [["grey owl"], ["red fox"]]


def test_sources_of_unlike_columns_are_told_to_have_weights(tmp_path):
    content = rows(1)
    one = write_parquet(tmp_path / "one.parquet", content)
    other = write_parquet(tmp_path / "other.parquet", [{**each, "more": "x"} for each in content])
    file = write_recipe(tmp_path / "recipe.yaml", recipe(one))
    config = load_recipe(file, [f"data.train=[{one}, {other}]"])
    with pytest.raises(SourceError, match=r"differ in their columns: .*or set data.weights, such as \[1, 1\]: "):
        open_training_data(config.data)
    weighted = load_recipe(file, [f"data.train=[{one}, {other}]", "data.weights=[1, 1]"])
    assert len(open_training_data(weighted.data).sources) == 2


def test_several_captions_of_an_image_are_drawn_without_repetition():
    pairs = [row(index, caption=[f"{index} {word}" for word in "abc"][: 1 + index % 3]) for index in range(8)]
    [batch] = take(stream_of(pairs, captions_per_image=2, batch_size=8), 1)
    first, second = batch.captions[:8], batch.captions[8:]
    for sample, one, other in zip(batch.sample_ids, first, second, strict=True):
        assert one.split()[0] == other.split()[0] == str(sample)
        assert (one == other) == (sample % 3 == 0)
    # The first of them is the one that is drawn alone.
    assert take(stream_of(pairs, batch_size=8), 1)[0].captions == first


def test_a_models_captions_come_as_often_as_the_recipe_says():
    pairs = [row(index, made=[f"made {index}"] if index % 2 else None) for index in range(8)]
    pairs[4]["caption"], pairs[4]["made"] = [], "made 4"
    settings = {"synthetic_columns": ["made"], "synthetic_probability": 0.25, "batch_size": 8}
    drawn = {index: Counter() for index in range(8)}
    for batch in take(stream_of(pairs, extra=["made"], **settings), 60):
        for sample, caption in zip(batch.sample_ids, batch.captions, strict=True):
            drawn[int(sample)][caption.split()[0]] += 1
    assert set(drawn[0]) == {"pair"} and set(drawn[4]) == {"made"}
    of_both = sum((drawn[index] for index in (1, 3, 5, 7)), Counter())
    assert 0.17 < of_both["made"] / of_both.total() < 0.33


def test_hard_negatives_are_drawn_from_their_columns():
    pairs = [row(index, wrong=[f"not {index}", f"never {index}"] if index % 2 else None) for index in range(4)]
    batches = take(stream_of(pairs, extra=["wrong"], negative_columns=["wrong"], negative_weight=1.0), 12)
    seen = set()
    for batch in batches:
        for sample, caption, negative, has in zip(
            batch.sample_ids, batch.captions, batch.negatives, batch.has_negative.tolist(), strict=True
        ):
            assert has == (sample % 2 == 1)
            assert negative == caption if not has else negative.endswith(f" {sample}")
            seen.add(negative)
    assert {"not 1", "never 1", "not 3", "never 3"} <= seen


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


def test_all_captions_of_an_image_are_its_positives():
    """By the definition: rows spread over positives, columns of each text over the images, each image once."""
    torch.manual_seed(0)
    images, texts, ids = unit(5, 4), unit(10, 4), torch.tensor([7, 8, 9, 8, 6])
    scale = torch.tensor(3.0, dtype=torch.float64)
    objective = ContrastiveObjective(torch.nn.Module(), 0.0, captions_per_image=2)
    ours = objective.loss(images, texts, [scale], ids)
    ours.backward()
    got = [each.grad.clone() for each in (images, texts)]
    images.grad = texts.grad = None
    scores = scale * images @ texts.T
    positive = (ids[:, None] == ids.repeat(2)[None]).double()
    by_image = -(positive / positive.sum(1, keepdim=True) * scores.log_softmax(1)).sum(1).mean()
    by_text = -(positive / positive.sum(0, keepdim=True) * scores.log_softmax(0)).sum(0).mean()
    theirs = (by_image + by_text) / 2
    theirs.backward()
    assert abs(ours - theirs) < 1e-12
    for mine, expected in zip(got, (images.grad, texts.grad), strict=True):
        assert (mine - expected).abs().max() < 1e-12


def test_a_caption_is_told_from_its_negative():
    torch.manual_seed(0)
    images, texts, negatives = unit(3, 4), unit(3, 4), unit(3, 4)
    scale, has = torch.tensor(5.0, dtype=torch.float64), torch.tensor([True, False, True])
    pairs = torch.stack([(images * texts).sum(1), (images * negatives).sum(1)], 1) * scale
    expected = -(pairs.log_softmax(1)[:, 0] * has).sum() / 3
    assert abs(negatives_loss(images, texts, negatives, scale, has) - expected) < 1e-12


@pytest.mark.parametrize("micro", soak_count([8], [8, 10]))
def test_micro_batches_have_the_gradients_of_the_whole_batch(tmp_path, micro):
    """With two captions an image, keywords and hard negatives."""
    data = ["data.captions_per_image=2", "data.negative_columns=[wrong]", "data.negative_weight=0.7"]
    made = []
    for size in ("null", str(micro)):
        config = configure(tmp_path, [*data, f"micro_batch_size={size}"])
        train_step, batch = make_train_step(config), make_batch()
        batch.captions.extend(NAMES[(3 * index) % 24] for index in range(24))
        object.__setattr__(batch, "negatives", [NAMES[(5 * index + 1) % 24] for index in range(24)])
        object.__setattr__(batch, "has_negative", torch.arange(24) % 3 > 0)
        loss = train_step.backward(batch, 0)
        made.append((loss, gradients(train_step)))
    assert abs(made[0][0] - made[1][0]) < 1e-10
    assert_close(made[1][1], made[0][1], 1e-9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.negative_weight=1", r"data.negative_columns=\[\] and data.negative_weight=1.0 go together"),
        ("data.label_templates=[a cat]", "data.label_templates: 'a cat' has no {} where the class name goes"),
        ("data.label_column=class", "data.label_column=class is for captions made of class names: set"),
        ("data.captions_per_image=0", "data.captions_per_image=0 must be 1 or more"),
        ("data.synthetic_probability=2", "data.synthetic_probability=2.0 must lie in 0 to 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, override, message):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(write_parquet(tmp_path / "a.parquet", rows(1))))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])
    assert math.isfinite(load_recipe(file).total_steps)
