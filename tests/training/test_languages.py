"""Training on captions of another table, in several languages: what is drawn, resumed and evaluated."""

import json
from collections import Counter

import pytest
from transformers import XLMRobertaModel

from hf_clip import load
from hf_clip.training import RecipeError, load_recipe, train
from hf_clip.training.build import build_start
from hf_clip.training.config import AugmentationConfig
from hf_clip.training.data_fingerprint import DataChangedError
from hf_clip.training.loop import Trainer, TrainingStopped
from hf_clip.training.stream import PairStream, open_training_source
from tests.helpers.data_files import write
from tests.helpers.squares import NAMES, recipe, square, write_parquet, write_recipe
from tests.helpers.steps import make_batch, make_train_step
from tests.model.test_transformers_towers import write_towers
from tests.training.test_resume import stop_at
from tests.training.test_stream import PROCESSOR, assert_same, take

LANGUAGES = ("en", "de", "ja")


@pytest.fixture
def file(tmp_path):
    """A recipe whose images have no captions; their names lie in a table."""
    images = [{"image": {"bytes": square(name, 0), "path": None}, "concept": str(i)} for i, name in enumerate(NAMES)]
    data = str(write_parquet(tmp_path / "train.parquet", images))
    lines = [f"{i},{one},{one} {name}" for i, name in enumerate(NAMES) for one in LANGUAGES]
    table = write(tmp_path / "names.csv", "\n".join(["concept,lang,caption", *lines]) + "\n")
    join = {"data": [str(table)], "key_column": "concept", "language_column": "lang"}
    content = recipe(data, steps=3, batch_size=24, evaluations={"names": {"task": "languages", "data": [data]}})
    content["data"]["join"] = content["evaluations"]["names"]["join"] = join
    content["data"]["captions_per_image"] = 2
    return write_recipe(tmp_path / "recipe.yaml", content)


def test_each_step_draws_among_the_joined_captions_and_goes_on_where_it_was(file):
    config = load_recipe(file, ["data.workers=0"])
    data = open_training_source(config.data)
    assert Counter(data.captions()) == Counter(f"{one} {name}" for name in NAMES for one in LANGUAGES)
    stream = PairStream(data, config.data, PROCESSOR, 8, 0, AugmentationConfig())
    batches, drawn = take(stream, 60), Counter()
    for batch in batches:
        first, second = batch.captions[:8], batch.captions[8:]
        for one, other in zip(first, second, strict=True):
            # Two languages of one image.
            assert one[:2] != other[:2] and one[2:] == other[2:]
            drawn.update((one[:2], other[:2]))
    assert min(drawn.values()) > 0.28 * drawn.total()
    again = PairStream(data, config.data, PROCESSOR, 8, 0, AugmentationConfig())
    for one, other in zip(take(again, 3, batches[9].position), batches[10:], strict=False):
        assert_same(one, other)


@pytest.mark.slow
def test_a_run_tells_each_language_in_results_card_and_plot(file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stop_at(2))
        with pytest.raises(TrainingStopped):
            train(load_recipe(file), tmp_path / "run")
    names = tmp_path / "names.csv"
    content = names.read_text()
    names.write_text(content.replace("de a red", "de red"))
    with pytest.raises(DataChangedError, match="names.csv: .* before, .* now"):
        train(load_recipe(file), tmp_path / "run", resume=True)
    names.write_text(content)
    train(load_recipe(file), tmp_path / "run", resume=True)
    found = json.loads((tmp_path / "run/results.json").read_text())["evaluations"]["names"]
    assert set(found["languages"]) == {*LANGUAGES}
    assert all(each["image_to_text"]["candidates"] == 24 for each in found["languages"].values())
    assert set(found["image_to_text"]) == {"median", "reference", "ratio"}
    card = (tmp_path / "run/README.md").read_text()
    assert "| names | median without en |" in card and "(plots/names.png)" in card
    assert (tmp_path / "run/plots/names.png").is_file()
    model, processor = load(tmp_path / "run")
    assert model.num_parameters() and processor.tokenizer.decode(processor.tokenizer("größe 日本")["input_ids"][1:-1])


def test_an_xlm_r_tower_trains_on_captions_of_several_languages(file, tmp_path):
    for name in ("vision", "text"):
        (tmp_path / name).mkdir()
    write_towers(tmp_path / "vision", tmp_path / "text")
    towers = {"vision_tower": str(tmp_path / "vision"), "text_tower": str(tmp_path / "text")}
    content = recipe("none.parquet", model={**towers, "config": {"projection_dim": 12}})
    config = load_recipe(write_recipe(tmp_path / "xlm.yaml", content))
    model, processor = build_start(config.model, NAMES, seed=0)
    theirs = XLMRobertaModel.from_pretrained(tmp_path / "text", add_pooling_layer=False)
    before = theirs.embeddings.word_embeddings.weight.detach()
    assert (model.text_model.backbone.embeddings.word_embeddings.weight == before).all()
    assert "attention_mask" in processor(text=["de rot"], return_tensors="pt")
    train_step = make_train_step(config)
    outcomes = [train_step.update(make_batch(), step) for step in range(3)]
    assert all(outcome.is_update for outcome in outcomes) and outcomes[2].loss < outcomes[0].loss


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.join.data=[]", "^data.join.data is empty: give it the table's file"),
        ("data.join.key_column=''", "^data.join.key_column is missing: name one that the table"),
        ("data.label_templates=['{}']", "^data.join and data.label_templates are two kinds of captions: remove one"),
        (
            "evaluations.names.join.language_column=null",
            "^evaluations.names.task=languages is about captions of several",
        ),
        ("evaluations.names.join=null", "set evaluations.names.join, with its language_column"),
    ],
)
def test_what_does_not_go_together_is_refused(file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])
