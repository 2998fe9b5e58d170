"""Training with the caption loss: whole, in micro-batches and on ranks it is one loss, and its model writes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from hf_clip import caption_images, load
from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.config import TrainConfig
from hf_clip.training.loop import Trainer, TrainingStopped
from hf_clip.training.optimizer import hidden_matrices
from hf_clip.training.plan import describe_plan, footprint
from hf_clip.training.stream import Batch
from tests.helpers.coca_recipes import coca_recipe
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import NAMES, rows, square, write_parquet, write_recipe
from tests.helpers.steps import assert_close, gradients, make_batch, make_train_step
from tests.training.test_resume import stop_at

# Two captions of an image, some of its keywords, and a caption that is wrong of it.
ALL_TEXTS = ["data.captions_per_image=2", "data.negative_columns=[wrong]", "data.negative_weight=0.5"]


def configure(folder: Path, overrides=()) -> TrainConfig:
    """Of batches with keywords and augmentation."""
    content = coca_recipe("none.parquet", batch_size=24, augmentation={"rotation": 10, "flip": 0.5})
    content["data"] |= {"keyword_columns": ["keywords"], "keyword_weight": 0.5}
    return load_recipe(write_recipe(folder / "recipe.yaml", content), list(overrides))


def with_all_texts(batch: Batch) -> Batch:
    """The batch with what `ALL_TEXTS` asks for; captions are of many lengths."""
    second = [caption.split(" at ")[0] + index % 3 * " square" for index, caption in enumerate(batch.captions)]
    has = torch.arange(len(second)) % 2 == 0
    wrong = [caption[::-1] if told else caption for caption, told in zip(batch.captions, has.tolist(), strict=True)]
    return replace(batch, captions=[*batch.captions, *second], negatives=wrong, has_negative=has)


def first_gradients(folder: Path, micro: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a step on the ranks that there are."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    (folder / str(rank)).mkdir(exist_ok=True)
    overrides = [*ALL_TEXTS, *([] if micro is None else [f"micro_batch_size={micro}"])]
    train_step = make_train_step(configure(folder / str(rank), overrides))
    train_step.objective.train()
    loss = train_step.backward(with_all_texts(make_batch(24, rank, world)), step=0)
    return loss, gradients(train_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return first_gradients(tmp_path_factory.mktemp("whole"), None)


def test_the_loss_is_the_contrastive_one_and_twice_the_captions(tmp_path):
    """As the model's own forward has it."""
    train_step = make_train_step(configure(tmp_path, ["data.keyword_columns=[]", "data.keyword_weight=0"]))
    batch = make_batch()
    train_step.objective.train()
    loss = train_step.backward(batch, step=0)
    ours = gradients(train_step)
    train_step.optimizer.zero_grad()
    ids = train_step.processor(text=batch.captions, return_tensors="pt")["input_ids"]
    images = train_step._images(batch, slice(0, 24), 0.0)
    output = train_step.model(ids, images, return_loss=True, concept_ids=batch.concept_ids)
    assert train_step.model.config.caption_loss_weight == 2 and output.caption_loss > 1
    assert (loss - output.loss).abs() < 1e-10
    output.loss.backward()
    assert_close(ours, gradients(train_step))


def test_micro_batches_give_the_same_loss_and_gradients(tmp_path, whole):
    loss, found = first_gradients(tmp_path, 10)
    assert (loss - whole[0]).abs() < 1e-10
    assert_close(found, whole[1])


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(tmp_path, whole):
    for loss, found in run_on_ranks(first_gradients, 2, tmp_path, 5):
        assert (loss - whole[0]).abs() < 1e-10
        assert_close(found, whole[1])


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_and_its_model_writes(tmp_path, monkeypatch):
    data = write_parquet(tmp_path / "train.parquet", rows(4))
    content = coca_recipe(data, steps=100, batch_size=48, micro_batch_size=30, checkpoints={"save_every": 60})
    content["optimizer"] = {"learning_rate": 1e-2, "warmup_steps": 5}
    file = write_recipe(tmp_path / "recipe.yaml", content)
    train(load_recipe(file), tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(50))
        with pytest.raises(TrainingStopped):
            train(load_recipe(file), tmp_path / "other")
    train(load_recipe(file), tmp_path / "other", resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    names = NAMES[::3]
    files = [tmp_path / f"{index}.png" for index in range(len(names))]
    for path, name in zip(files, names, strict=True):
        path.write_bytes(square(name, 77))
    model, processor = load(tmp_path / "one")
    written = caption_images(model, processor, [Image.open(path) for path in files])
    assert sum(one == two for one, two in zip(written, names, strict=True)) >= len(names) // 2


@pytest.mark.slow
def test_teachers_stages_and_adapters_go_with_it(tmp_path):
    data = write_parquet(tmp_path / "train.parquet", rows(2))
    evaluation = {"task": "captions", "data": [str(data)]}
    content = coca_recipe(data, distillation={"weight": 0.3, "from_start": True}, evaluations={"names": evaluation})
    content["stages"] = [{"steps": 2, "batch_size": 32, "image_size": 8}, {"steps": 2, "micro_batch_size": 6}]
    del content["steps"]
    results = train(load_recipe(write_recipe(tmp_path / "staged.yaml", content)), tmp_path / "staged")
    assert results["evaluations"]["names"]["images"] == 48 and results["bad_steps"] == 0
    card = (tmp_path / "staged/README.md").read_text(encoding="utf-8")
    assert "BLEU-4" in card and "It writes captions" in card
    content = coca_recipe(data, steps=3, lora={"rank": 2}, model={"start_from": str(tmp_path / "staged")})
    assert train(load_recipe(write_recipe(tmp_path / "lora.yaml", content)), tmp_path / "lora")["bad_steps"] == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("staged", "lora"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "text_model" in changed and not changed & {"text_decoder", "lm_head"}


def test_a_plan_counts_the_decoder(tmp_path):
    config = configure(tmp_path)
    planned = footprint(config, "cpu")
    model = make_train_step(config).model
    decoder = [*model.text_decoder.parameters(), *model.lm_head.parameters()]
    # The vocabulary is of fewer tokens than the recipe allows.
    smaller = (config.model.vocabulary_size - model.config.text_config.vocab_size) * 32
    assert planned.decoder_parameters == sum(each.numel() for each in decoder) + smaller
    assert planned.parameters == sum(each.numel() for each in model.parameters()) + 2 * smaller
    # At least the logits: 15 tokens that have a next one.
    assert planned.decoder_flops > 2 * 15 * 32 * config.model.vocabulary_size
    assert "of the decoder" in describe_plan(config, device="cpu")


def test_muon_leaves_the_words_to_adamw(tmp_path):
    model = make_train_step(configure(tmp_path, ["optimizer.algorithm=muon"])).model
    hidden = hidden_matrices(model)
    assert model.lm_head.weight not in hidden and model.text_decoder.layers[0].mlp.fc1.weight in hidden


def test_objectives_that_a_model_does_not_have_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="objective=contrastive: the model writes captions .* set objective=contr"):
        make_train_step(configure(tmp_path, ["objective=contrastive"]))
    content = coca_recipe("none.parquet")
    content["model"]["config"]["text_config"] |= {"tower": "clip", "pooling": "eos"}
    file = write_recipe(tmp_path / "other.yaml", content)
    with pytest.raises(RecipeError, match="model.config.num_decoder_layers is of models that write captions: set"):
        make_train_step(load_recipe(file))
    for name in [name for name in content["model"]["config"] if "decoder" in name]:
        del content["model"]["config"][name]
    file = write_recipe(tmp_path / "other.yaml", content)
    with pytest.raises(RecipeError, match="is for a model that writes captions, and this one has no decoder"):
        make_train_step(load_recipe(file))
    with pytest.raises(RecipeError, match="mixup=0.3 makes images that no caption describes: set it to 0"):
        configure(tmp_path, ["augmentation.mixup=0.3"])
    with pytest.raises(RecipeError, match="objective='words' is not known: use 'contrastive' or"):
        configure(tmp_path, ["objective=words"])
