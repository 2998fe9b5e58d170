"""Training a NaFlex model, which takes each image at its own aspect."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hf_clip import embed_images, load
from hf_clip.evaluation import evaluate_retrieval
from hf_clip.sources import open_source
from hf_clip.training import load_recipe, plan, train
from hf_clip.training.config import RecipeError
from hf_clip.training.plan import footprint
from tests.helpers.naflex import SHAPES, images_of, write_naflex_folder
from tests.helpers.ranks import run_on_ranks
from tests.helpers.squares import NAMES, recipe, write_parquet, write_recipe
from tests.helpers.steps import assert_close, gradients, make_batch, make_train_step
from tests.helpers.toys import scatter_weights

pytestmark = pytest.mark.slow

COUNT = 16
WITHOUT_MIXUP = {"rotation": 10, "flip": 0.5, "hue": 0.1, "cutout": 0.5, "blur": 0.2}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    write_naflex_folder(folder)
    return folder


def configure(folder: Path, pretrained: Path, data="none.parquet", overrides=(), **changes):
    content = recipe(data, model={"start_from": str(pretrained)}, **changes)
    return load_recipe(write_recipe(folder / "recipe.yaml", content), list(overrides))


def batch_of(train_step):
    """A batch with images of many shapes, as the stream brings them to the model's size."""
    processor = train_step.processor.image_processor
    images = [processor.resize_and_crop(image) for image in images_of(SHAPES[:10] + SHAPES[:6])]
    assert len({image.shape for image in images}) > 5
    return replace(make_batch(COUNT), images=[torch.from_numpy(image) for image in images], keywords=None)


def test_a_step_sees_what_the_processor_gives(pretrained, tmp_path):
    train_step = make_train_step(configure(tmp_path, pretrained), torch.float32)
    batch = batch_of(train_step)
    images = [image.numpy() for image in batch.images]
    expected = train_step.processor(images=images, return_tensors="pt")
    found = train_step._images(batch, slice(0, COUNT), 0.0)
    assert found["spatial_shapes"] == list(map(tuple, expected["spatial_shapes"].tolist()))
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=1e-6, atol=1e-6)
    texts = train_step.processor(text=batch.captions, return_tensors="pt")
    loss = train_step.model(**expected, **texts, return_loss=True, concept_ids=batch.concept_ids).loss
    torch.testing.assert_close(train_step.backward(batch, 0), loss.detach(), rtol=1e-5, atol=1e-6)


def test_cached_gradients_are_those_of_the_whole_batch(pretrained, tmp_path):
    """Micro-batches are padded to their own longest image, and augmented as the batch is."""
    found = []
    for micro in (COUNT, 5):
        config = configure(tmp_path, pretrained, augmentation=WITHOUT_MIXUP, micro_batch_size=micro)
        train_step = make_train_step(config)
        # The positions' resampling is float32's, whatever the weights are.
        scatter_weights(train_step.model)
        loss = train_step.backward(batch_of(train_step), 3)
        found.append((loss, gradients(train_step)))
    (whole, expected), (cached, ours) = found
    torch.testing.assert_close(cached, whole, rtol=1e-7, atol=0)
    assert_close(ours, expected, 1e-6)


def first_gradients(folder: Path, pretrained: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and the gradients of a batch on the ranks that there are, each with its own part of the images."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    (folder / f"{rank}").mkdir(exist_ok=True)
    changes = {"augmentation": WITHOUT_MIXUP, "micro_batch_size": 4, "batch_size": COUNT}
    train_step = make_train_step(configure(folder / f"{rank}", pretrained, **changes))
    scatter_weights(train_step.model)
    batch = batch_of(train_step)
    own = slice(rank * COUNT // world_size, (rank + 1) * COUNT // world_size)
    per_image = ("images", "captions", "concept_ids", "may_flip", "may_crop", "sample_ids", "epochs")
    part = replace(batch, **{name: getattr(batch, name)[own] for name in per_image})
    return train_step.backward(part, 0), gradients(train_step)


@pytest.mark.slow
def test_two_processes_train_as_one(pretrained, tmp_path):
    """Whose micro-batches are padded to other lengths."""
    loss, expected = first_gradients(tmp_path, pretrained)
    for other, ours in run_on_ranks(first_gradients, 2, tmp_path, pretrained):
        torch.testing.assert_close(other, loss, rtol=1e-7, atol=0)
        assert_close(ours, expected, 1e-6)


def wide_rows(copies: int) -> list[dict]:
    """Images of every name in every shape."""
    content = []
    for index, image in enumerate(images_of(SHAPES[:8] * copies)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        content.append({"image": {"bytes": buffer.getvalue(), "path": None}, "caption": NAMES[index % len(NAMES)]})
    return content


def test_a_recipe_trains_and_what_it_saves_is_naflex(pretrained, tmp_path):
    data = write_parquet(tmp_path / "train.parquet", wide_rows(3))
    changes = {"steps": 3, "batch_size": 8, "micro_batch_size": 4, "augmentation": WITHOUT_MIXUP}
    size = ["model.config.vision_config={image_size: 24}"]
    config = configure(tmp_path, pretrained, data, size, **changes)
    results = train(config, tmp_path / "run")
    assert results["started_from"] == str(pretrained)
    model, processor = load(tmp_path / "run")
    assert model.config.vision_config.tower == "naflex" and processor.image_processor.max_num_patches == 36
    assert model.config.vision_config.image_size == 24 and model.config.vision_config.num_patches == 16
    before, _ = load(pretrained)
    positions, old = (each.vision_model.embeddings.position_embedding.weight for each in (model, before))
    assert not torch.equal(positions, old)
    assert embed_images(model, processor, images_of(SHAPES[:3])).shape == (3, 32)
    found = evaluate_retrieval(model, processor, open_source(str(data)))
    assert len(found.image_embeds) == 24
    card = (tmp_path / "run/README.md").read_text()
    assert "about 36 patches an image, at its own aspect" in card


def test_what_a_naflex_model_cannot_is_said(pretrained, tmp_path):
    with pytest.raises(RecipeError, match="augmentation.mixup=0.4 mixes images of one size.*set augmentation.mixup=0"):
        make_train_step(configure(tmp_path, pretrained, augmentation={"mixup": 0.4}))
    dropped = ["model.config.vision_config={patch_dropout: 0.5}"]
    with pytest.raises(RecipeError, match="model.config.vision_config: `patch_dropout=0.5`: a NaFlex tower drops no"):
        make_train_step(configure(tmp_path, pretrained, overrides=dropped))


def test_a_plan_counts_without_real_tensors(tmp_path, monkeypatch):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    content = recipe("none.parquet")
    content["model"]["config"]["vision_config"] = tower | {
        "tower": "naflex",
        "num_patches": 16,
        "image_size": 32,
        "patch_size": 4,
    }
    config = load_recipe(write_recipe(tmp_path / "recipe.yaml", content))
    # What would have it take real ones instead.
    monkeypatch.setattr(plan, "DataDependentOutputException", KeyError)
    counted = footprint(config, "cpu")
    # Nearly all of an image's operations are two for each weight and patch.
    assert counted.pair_bytes > 0 and counted.image_flops > 64 * counted.image_parameters
    train_step = make_train_step(config, torch.float32)
    assert train_step.processor.image_processor.max_num_patches == 64
    loss = train_step.backward(batch_of(train_step), 0)
    assert loss.isfinite()
