"""How long a run is: epochs, a finished run that goes on, and what is kept out of it for validation."""

import json
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from hf_clip.sources import Shards, iterate_samples
from hf_clip.sources.shards import Part
from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.checkpoint import load_state
from hf_clip.training.evaluate import open_evaluations
from hf_clip.training.lengths import pairs_in_epoch, resolve_epochs
from hf_clip.training.run_folder import FolderError
from hf_clip.training.stream import TrainingData, open_training_source
from hf_clip.training.stream.validation import is_held_out
from tests.helpers.squares import recipe, rows, write_parquet, write_recipe
from tests.training.test_stream import as_data, ids, make_stream, row, take


@pytest.fixture
def file(tmp_path):
    """A recipe over 48 pairs in batches of 16."""
    content = recipe(write_parquet(tmp_path / "train.parquet", rows(2)), steps=2)
    content["optimizer"] = {"learning_rate": 3e-3, "warmup_steps": 1, "schedule": "constant"}
    return write_recipe(tmp_path / "recipe.yaml", content)


def resolved_steps(file, *overrides) -> int:
    config = load_recipe(file, ["steps=null", *overrides])
    return resolve_epochs(config, open_training_source(config.data)).total_steps


def test_epochs_count_the_pairs_of_all_sources_by_their_weights(file, tmp_path):
    assert resolved_steps(file, "epochs=2") == 6
    assert resolved_steps(file, "epochs=0.5") == 2
    assert resolved_steps(file, "epochs=1", "batch_size=32") == 2
    path = tmp_path / "train.parquet"
    assert resolved_steps(file, "epochs=2", f"data.train=[{path}, {path}]", "data.weights=[1, 0.5]") == 9
    # Rows of which a column has the value: the file has two of this one.
    kept = "data.where={caption: a red square at the top left}"
    assert resolved_steps(file, "epochs=16", kept, "batch_size=2") == 16
    assert resolved_steps(file, "epochs=2", "data.validation_fraction=0.25") == 5
    warmup = load_recipe(file, ["steps=null", "epochs=20", "optimizer={warmup_fraction: 0.1}"])
    assert resolve_epochs(warmup, open_training_source(warmup.data)).optimizer.warmup_steps == 6


def test_data_of_unknown_length_has_no_epochs(file):
    class Unknown(TrainingData):
        shards = property(lambda self: [Shards(self.sources[0], [Part("toys", None, iter)])])  # type: ignore

    data = Unknown(as_data([row(0)]).sources, (1.0,))
    assert pairs_in_epoch(data) is None
    with pytest.raises(RecipeError, match="^epochs=2.0: toys does not tell how many rows .* Set steps instead"):
        resolve_epochs(load_recipe(file, ["steps=null", "epochs=2"]), data)


def test_a_finished_run_goes_on_as_if_it_had_never_ended(file, tmp_path):
    """With a constant rate, bit for bit; the folder then holds the longer run's results."""
    train(load_recipe(file), tmp_path / "run")
    with pytest.raises(FolderError, match="is finished: go on with more steps"):
        train(load_recipe(file), tmp_path / "run", resume=True)
    with pytest.raises(FolderError, match="is finished"):
        train(load_recipe(file, ["steps=1", "optimizer.warmup_steps=0"]), tmp_path / "run", resume=True)
    with pytest.raises(FolderError, match="batch_size was 16 and is 8"):
        train(load_recipe(file, ["steps=4", "batch_size=8"]), tmp_path / "run", resume=True)
    train(load_recipe(tmp_path / "run/recipe.yaml", ["steps=4"]), tmp_path / "run", resume=True)
    train(load_recipe(file, ["steps=4"]), tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = [load_state(tmp_path / name / "checkpoints/checkpoint-4") for name in ("run", "whole")]
    assert states[0]["position"] == states[1]["position"]
    assert json.loads((tmp_path / "run/results.json").read_text())["step"] == 4
    assert load_recipe(tmp_path / "run/recipe.yaml").steps == 4


def test_a_run_whose_rates_fall_says_what_they_are_when_it_goes_on(file, tmp_path, capfd):
    overrides = ["optimizer.schedule=cosine"]
    train(load_recipe(file, overrides), tmp_path / "run")
    train(load_recipe(file, [*overrides, "steps=3"]), tmp_path / "run", resume=True)
    said = capfd.readouterr().err
    assert "steps was 2 and is 3 now." in said
    assert "From here on the learning rates are those of the longer run at this step" in said


def test_what_is_held_out_is_never_trained_on_and_is_all_that_is_validated(file, tmp_path):
    config = load_recipe(file, ["data.validation_fraction=0.3", "steps=1", "optimizer.warmup_steps=0"])
    [source] = open_training_source(config.data).sources
    held_out = {sample.index for sample in iterate_samples(source) if is_held_out(sample.image, 0.3)}
    assert 6 <= len(held_out) <= 24
    evaluation = open_evaluations(config)["validation"]
    assert evaluation.config.during_training and evaluation.config.task == "retrieval"
    captions = [sample.captions for sample in iterate_samples(evaluation.source)]
    assert captions == [sample.captions for sample in iterate_samples(source) if sample.index in held_out]
    train(config, tmp_path / "run")
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["evaluations"]["validation"]["image_to_text"]["queries"] == len(held_out)


def test_sources_of_unlike_columns_are_validated_together(file, tmp_path):
    """And folders of classes as classes."""
    path = tmp_path / "train.parquet"
    other = write_parquet(tmp_path / "other.parquet", [{**each, "more": "x"} for each in rows(1, 9)])
    overrides = [f"data.train=[{path}, {other}]", "data.weights=[1, 1]", "data.validation_fraction=0.3"]
    config = load_recipe(file, overrides)
    evaluation = open_evaluations(config)["validation"]
    found = [sample.captions[0] for sample in iterate_samples(evaluation.source)]
    sources = open_training_source(config.data).sources
    samples = [sample for source in sources for sample in iterate_samples(source)]
    assert found == [sample.captions[0] for sample in samples if is_held_out(sample.image, 0.3)] and len(found) > 9
    content = [{"image": each["image"], "label": each["caption"].split(" ")[1]} for each in rows(1)]
    labels = write_parquet(tmp_path / "labels.parquet", content)
    overrides = [f"data.train=[{labels}]", "data.label_templates=['a {}']", "data.validation_fraction=0.3"]
    evaluation = open_evaluations(load_recipe(file, overrides))["validation"]
    assert (evaluation.config.task, evaluation.config.templates) == ("zero-shot", ["a {}"])


@pytest.mark.parametrize("cache", [0, 1.0])
def test_held_out_rows_are_passed_over_from_any_position_on(cache):
    pairs = [row(index) for index in range(24)]
    held_out = {index for index in range(24) if is_held_out(pairs[index]["image"], 0.4)}
    assert 5 <= len(held_out) <= 14
    settings = {"lanes": 2, "shuffle_block": 6, "validation_fraction": 0.4, "decoded_cache_gb": cache}
    stream = make_stream(pairs, 4, **settings)
    batches = take(stream, 12)
    seen = ids(batches)
    assert set(seen) == set(range(24)) - held_out
    resumed = make_stream(pairs, 4, **settings)
    for at in (2, 5):
        rest = ids(islice(resumed.batches(batches[at].position), 12 - at - 1))
        assert rest == ids(batches[at + 1 :])


def test_images_are_held_out_by_content_or_by_the_end_of_their_path():
    path = {"bytes": None, "path": "/here/photos/1.jpg"}
    moved = {"bytes": None, "path": "/elsewhere/photos/1.jpg"}
    assert [is_held_out(path, fraction) for fraction in (0.1, 0.5, 0.9)] == [
        is_held_out(moved, fraction) for fraction in (0.1, 0.5, 0.9)
    ]
    some = [{"bytes": bytes([index]), "path": "image.png"} for index in range(250)]
    assert 40 < sum(is_held_out(each, 0.25) for each in some) < 85
    # A larger fraction holds out more, and the same.
    assert all(is_held_out(each, 0.5) for each in some if is_held_out(each, 0.25))
    assert not is_held_out({"bytes": None, "path": None}, 0.99)
