"""Recipes: what is written is what runs, and what cannot run is said at once, with the nearest key and the mend."""

from pathlib import Path

import pytest

from hf_clip.training import RecipeError, list_recipes, load_recipe
from hf_clip.training.build import model_config
from hf_clip.training.config import recipe_text
from tests.squares import recipe, write_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path):
    """A recipe with something in every section."""
    evaluation = {"data": ["b.parquet"], "where": {"split": "test"}}
    content = recipe(
        "a.parquet",
        augmentation={"flip": 0.5, "no_flip_words": ["left"]},
        evaluations={"seen": evaluation, "classes": {**evaluation, "protocol": "zero-shot", "templates": ["a {}"]}},
        card={"model_name": "squares: ${small} 'ones'", "languages": ["en", "de"]},
    )
    content["card"]["model_name"] = "squares: 'small' ones"
    content["optimizer"]["learning_rate"] = "1e-4"
    text = write_recipe(tmp_path / "recipe.yaml", content).read_text()
    # As people write it; a plain YAML 1.1 reader makes a word of it.
    (tmp_path / "recipe.yaml").write_text(text.replace("'1e-4'", "1e-4"))
    return tmp_path / "recipe.yaml"


def test_a_recipe_written_and_read_again_is_the_same(file, tmp_path):
    config = load_recipe(file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe_text(config))
    assert load_recipe(copy) == config
    assert config.optimizer.learning_rate == 1e-4
    assert config.evaluations["classes"].protocol == "zero-shot"
    assert config.model.config["vision_config"]["stage_widths"] == [32]
    copy.write_text(recipe_text(load_recipe(file, ["seed=1"])))
    assert load_recipe(copy) != config


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_of_the_package_can_be_built(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_recipe(name)
    assert model_config(config.model).vision_config.image_size > 0
    for data in [*config.data.train, *(item for one in config.evaluations.values() for item in one.data)]:
        assert Path(data).exists()


def test_overrides_are_yaml_and_replace_what_the_recipe_has(file):
    overrides = [
        "optimizer.learning_rate=3e-5",
        "data.train=[x.parquet, y.parquet]",
        "data.where={language: en}",
        "data.where.split=train",
        "evaluations.seen.during_training=true",
        "model.config.vision_config.pool_grid=1",
        "augmentation.no_flip_words=[]",
        "data.caption_columns=[text=en]",
        "card.model_name=null",
    ]
    config = load_recipe(file, overrides)
    assert config.optimizer.learning_rate == 3e-5
    assert config.data.train == ["x.parquet", "y.parquet"]
    assert config.data.where == {"language": "en", "split": "train"}
    assert config.evaluations["seen"].during_training and not config.evaluations["classes"].during_training
    assert config.model.config["vision_config"]["pool_grid"] == 1
    assert config.model.config["vision_config"]["stem_width"] == 8
    assert config.augmentation.no_flip_words == [] and config.augmentation.flip == 0.5
    assert config.data.caption_columns == ["text=en"]
    assert config.card.model_name is None
    # A later override wins.
    assert load_recipe(file, ["steps=7", "steps=8"]).steps == 8


def test_evaluations_can_be_switched_off(file):
    assert load_recipe(file, ["evaluations={}"]).evaluations == {}
    assert load_recipe(file, ["evaluations=null"]).evaluations == {}
    assert list(load_recipe(file, ["evaluations.seen=null"]).evaluations) == ["classes"]
    assert load_recipe(file, ["augmentation=null"]).augmentation.flip == 0
    assert load_recipe(file, ["data.where={}"]).data.where == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("step=5", "step is not a key .* Did you mean steps?"),
        ("optimizer.learning_rat=1", r"optimizer\.learning_rat is .* Did you mean optimizer\.learning_rate\?"),
        ("data.wher.split=a", r"data\.wher is not .* Did you mean data\.where\?"),
        ("augmentation.flips=1", r"Did you mean augmentation\.flip\?"),
        ("card.language=[en]", r"Did you mean card\.languages\?"),
        ("evaluations.seen.dat=[a]", r"evaluations\.seen\.dat is .* Did you mean evaluations\.seen\.data\?"),
        ("model.vocabulary=600", r"Did you mean model\.vocabulary_size\?"),
        ("model.config.projection_dims=3", r"Did you mean model\.config\.projection_dim\?"),
        ("model.config.vision_config.image_sise=3", r"Did you mean model\.config\.vision_config\.image_size\?"),
        ("model.config.text_config.num_layers=3", r"num_layers is .*model\.config\.text_config\.num_hidden_layers"),
        ("zzz=1", "zzz is not a key of a recipe. Known here: model, data, steps"),
    ],
)
def test_an_unknown_key_names_the_nearest(file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Of the wrong kind.
        ("steps=many", r"steps: Value 'many' of type 'str' could not be converted to Integer$"),
        ("steps=2.5", "steps: Value '2.5'"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate: Value 'fast'"),
        ("data.train=a.parquet", r"data.train=a.parquet is not a list: write \[a.parquet\]"),
        ("evaluations.seen.during_training=perhaps", "during_training: Value 'perhaps'"),
        ("data=3", "data: "),
        ("evaluations=[1]", "Recipe "),
        ("steps", "--set 'steps' is not key=value"),
        ("=3", "--set '=3' is not key=value"),
        ("data.train=[a", "Recipe .*while parsing a flow sequence"),
        # Out of range.
        ("steps=0", "steps=0 must be 1 or more"),
        ("batch_size=1", "batch_size=1: a contrast needs 2 pairs or more"),
        ("seed=-1", "seed=-1 must lie in 0 to"),
        ("seed=99999999999999999999", "seed=99999999999999999999 must lie in 0 to"),
        ("mixed_precision=fp8", "mixed_precision='fp8' is not known: use 'auto', 'no' or 'bf16'"),
        ("keep_checkpoints=0", "keep_checkpoints=0 must be 1 or more"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate=0.0 must be above 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate=inf must be above 0 and finite"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay=nan must be 0 or more"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0 must lie in 0 to 1"),
        ("optimizer.max_logit_scale=0.5", "optimizer.max_logit_scale=0.5 must be 1 or more"),
        ("optimizer.warmup_steps=6", "optimizer.warmup_steps=6 leaves nothing of steps=6"),
        ("augmentation.flip=1.5", "augmentation.flip=1.5 must lie in 0 to 1"),
        ("augmentation.rotation=-3", "augmentation.rotation=-3.0 must be 0 or more"),
        ("augmentation.hue=.nan", "augmentation.hue=nan must be 0 or more"),
        ("data.train=[]", "data.train is empty"),
        ("data.max_bad_fraction=5", "data.max_bad_fraction=5.0 is not a fraction"),
        ("data.shuffle_block=0", "data.shuffle_block=0 must be 1 or more"),
        ("data.keyword_weight=1", "data.keyword_columns.*data.keyword_weight=1.0 go together"),
        ("evaluations.seen.protocol=guess", "protocol='guess' .* use 'retrieval' or 'zero-shot'"),
        ("evaluations.new.protocol=zero-shot", "data of an evaluation is empty"),
        ("evaluations.classes.templates=[a cat]", "templates: 'a cat' has no {}"),
        ("card.sources=[no/such.yaml]", "card.sources: there is no file no/such.yaml"),
        ("model.vocabulary_size=100", "model.vocabulary_size=100 is below 514"),
        ("model.architecture=ViT-B/33", "'ViT-B/33' is not a known architecture. Nearest: ViT-B/32"),
        # Missing.
        ("steps=null", "steps is missing: every recipe must set it"),
        ("data=null", "data is missing: every recipe must set it"),
    ],
)
def test_a_value_that_cannot_run_is_refused(file, override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(file, [override])
    assert "full_key" not in str(caught.value)


def test_a_model_that_cannot_be_built_is_refused(file):
    config = load_recipe(file, ["model.config.vision_config.image_size=18"])
    with pytest.raises(RecipeError, match="^model.config: image_size=18 .* set image_size=16"):
        model_config(config.model)
    with pytest.raises(RecipeError, match="model.architecture and model.config are both empty"):
        load_recipe(file, ["model.config={}"])


def test_a_recipe_that_is_not_there_or_none(tmp_path):
    with pytest.raises(RecipeError, match="no recipe 'emojis': name one that comes with the package .*emoji"):
        load_recipe("emojis")
    for text, message in (("- a\n- b\n", "not a table"), ("steps: [", "while parsing"), ("", "model is missing")):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_bytes(b"steps: \xff\xfe")
    with pytest.raises(RecipeError, match="recipe.yaml"):
        load_recipe(tmp_path / "recipe.yaml")
