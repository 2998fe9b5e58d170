"""Teachers: their divergence by its definition, stored ones from the writer to the step, and the model's own start."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from hf_clip import DataSpec, embed_images, embed_texts, load
from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.distillation import TeacherEmbeddings, distillation_loss
from hf_clip.training.loop import build_teacher
from hf_clip.training.stream import open_training_source
from hf_clip.training.teaching import write_teachers
from hf_clip_cli import main as cli
from tests.helpers.counts import soak_count
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import NAMES, recipe, rows, write_parquet, write_recipe
from tests.helpers.steps import assert_close, configure, gradients, make_batch, make_train_step
from tests.helpers.toys import scatter_weights, tiny_clip


def embeddings(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def batch_of(rows: slice) -> tuple:
    images, texts = (embeddings(seed, 12, 5)[rows].clone().requires_grad_() for seed in (0, 1))
    teachers = [
        TeacherEmbeddings(3 * embeddings(seed, 12, 7)[rows], embeddings(seed + 1, 12, 7)[rows]) for seed in (2, 4)
    ]
    return images, texts, torch.tensor(4.0, dtype=torch.float64, requires_grad=True), teachers


def gradients_of(world_size: int) -> list[torch.Tensor]:
    rank = dist.get_rank() if world_size > 1 else 0
    images, texts, scale, teachers = batch_of(slice(rank * 12 // world_size, (rank + 1) * 12 // world_size))
    loss = distillation_loss(images, texts, scale, teachers)
    loss.backward()
    return [loss.detach(), images.grad, texts.grad, scale.grad]


def test_the_divergence_is_that_of_the_definition():
    images, texts, scale, teachers = batch_of(slice(None))
    expected = 0
    for teacher in teachers:
        for ours, theirs in (
            (scale * images @ texts.T, teacher.images @ teacher.texts.T),
            (scale * texts @ images.T, teacher.texts @ teacher.images.T),
        ):
            p = theirs.softmax(1)
            expected = expected + (p * (p.log() - ours.softmax(1).log())).sum(1).mean() / 4
    expected.backward()
    loss, *found = gradients_of(1)
    assert abs(loss - expected) < 1e-12
    for got, wanted in zip(found, (images.grad, texts.grad, scale.grad), strict=True):
        assert (got - wanted).abs().max() < 1e-12
    root = scale.detach().sqrt()
    itself = [TeacherEmbeddings(images.detach() * root, texts.detach() * root)]
    assert abs(distillation_loss(images, texts, scale, itself)) < 1e-12


@pytest.mark.slow
def test_the_divergence_is_the_same_on_two_ranks():
    alone = gradients_of(1)
    on_ranks = run_on_ranks(gradients_of, 2, 2)
    for rank, found in enumerate(on_ranks):
        rows = slice(rank * 6, rank * 6 + 6)
        assert abs(found[0] - alone[0]) < 1e-12
        # Averaged over ranks, as data parallelism does.
        for got, wanted in zip(found[1:3], alone[1:3], strict=True):
            assert (got / 2 - wanted[rows]).abs().max() < 1e-12
    assert abs(sum(found[3] for found in on_ranks) / 2 - alone[3]) < 1e-12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, and training data of which a row has no image and another no caption."""
    place = tmp_path_factory.mktemp("teachers")
    model, processor = tiny_clip(NAMES, image_size=16)
    scatter_weights(model, 0.3).save_pretrained(place / "teacher")
    processor.save_pretrained(place / "teacher")
    content = [{**row, "made": ["drawn"], "concept": row["caption"]} for row in rows(2)]
    content[3]["image"], content[5]["caption"], content[5]["made"] = None, None, []
    write_parquet(place / "train.parquet", content)
    return place


def test_a_written_teacher_is_what_the_model_says_of_each_row(place, tmp_path, capsys):
    arguments = ["teach", "--data", place / "train.parquet", "--teacher", place / "teacher", "--output"]
    arguments += [tmp_path / "taught.parquet", "--synthetic-columns", "made", "--keep", "keywords"]
    assert cli.main([str(each) for each in arguments]) == 0
    assert "has 46 rows with teacher" in capsys.readouterr().out
    written = pq.read_table(tmp_path / "taught.parquet").to_pylist()
    assert len(written) == 48 and written[0]["keywords"] == ["red"] and written[0]["concept"] == NAMES[0]
    assert written[3]["teacher_image"] is None and written[5]["teacher_captions"] is None
    model, processor = load(place / "teacher")
    root = model.logit_scale.exp().sqrt().item()
    image = np.frombuffer(written[9]["teacher_image"], np.float16)
    expected = embed_images(model, processor, [written[9]["image"]["bytes"]])[0].numpy() * root
    assert abs(image - expected).max() < 3e-3
    captions = np.frombuffer(written[9]["teacher_captions"], np.float16).reshape(2, -1)
    expected = embed_texts(model, processor, [NAMES[9], "drawn"]).numpy() * root
    assert abs(captions - expected).max() < 3e-3
    assert cli.main([str(each) for each in arguments]) == 2
    assert "exists: name another file" in capsys.readouterr().err


def test_stored_teachers_reach_the_step_and_rows_without_are_counted(place, tmp_path):
    model, processor = load(place / "teacher")
    spec = DataSpec(place / "train.parquet", extra_columns=["keywords"])
    teachers = [("one", model, processor), ("two", model, processor)]
    assert write_teachers(spec, teachers, tmp_path / "taught.parquet") == 46
    with pytest.raises(ValueError, match="a name stands twice"):
        write_teachers(spec, [teachers[0], teachers[0]], tmp_path / "again.parquet")
    content = recipe(tmp_path / "taught.parquet", steps=2, optimizer={"warmup_steps": 1})
    content["data"] |= {"teachers": ["one", "two"], "max_bad_fraction": 0.1}
    config = load_recipe(write_recipe(tmp_path / "recipe.yaml", {**content, "distillation": {"weight": 1.0}}))
    results = train(config, tmp_path / "run")
    assert results["pairs_skipped"] == {"missing": 1, "no_caption": 1}
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert 0 < line["loss"] < 20


def test_a_student_that_learns_from_its_teacher_comes_to_score_like_it(place, tmp_path):
    config = configure(tmp_path, ["augmentation.mixup=0", "distillation={from_start: true, weight: 1.0}"])
    train_step, batch = make_train_step(config), make_batch()
    train_step.teacher = scatter_weights(make_train_step(config).model, 0.2)
    losses = [train_step.update(batch, 3).loss.item() for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("micro", soak_count([8], [8, 10]))
def test_micro_batches_learn_the_same_from_the_start(tmp_path, micro):
    made = []
    for size in ("null", str(micro)):
        overrides = ["augmentation.mixup=0", "distillation={from_start: true}", f"micro_batch_size={size}"]
        train_step = make_train_step(configure(tmp_path, overrides))
        train_step.teacher = scatter_weights(make_train_step(configure(tmp_path)).model, 0.2)
        loss = train_step.backward(make_batch(), 0)
        made.append((loss, gradients(train_step)))
    assert abs(made[0][0] - made[1][0]) < 1e-10
    assert_close(made[1][1], made[0][1], 1e-9)


def test_the_start_is_the_teacher_again_on_resume(place, tmp_path):
    """At the first step student and teacher are one: nothing is to be learned from it, and later there is."""
    start = {"start_from": str(place / "teacher")}
    content = recipe(place / "train.parquet", model=start, distillation={"from_start": True, "weight": 1.0})
    config = load_recipe(write_recipe(tmp_path / "recipe.yaml", content), ["data.max_bad_fraction=0.1"])
    train_step = make_train_step(config, torch.float32)
    train_step.teacher = build_teacher(config, open_training_source(config.data), train_step.decisions)
    batch = make_batch(16)
    object.__setattr__(batch, "keywords", None)
    assert abs(train_step.update(batch, 3).loss.item()) < 1e-6
    assert train_step.update(batch, 3).loss.item() > 1e-7
    assert not any(each.requires_grad for each in train_step.teacher.parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.weight=0", "^distillation.weight=0.0 must lie in 0 to 1, above 0"),
        ("distillation.weight=0.5", "^distillation has no teacher: set data.teachers, or distillation.from_start"),
        ("data.teachers=[teacher]", "are learned from with distillation: set its weight"),
    ],
)
def test_what_has_no_teacher_or_no_weight_is_refused(place, tmp_path, override, message):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(place / "train.parquet"))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])
