"""Recipes: what is written is what runs, and what cannot run is said at once, with the nearest key and the fix."""

import re
from pathlib import Path

import pytest

from hf_clip.training import RecipeError, list_recipes, load_recipe
from hf_clip.training.build import model_config
from hf_clip.training.config import TrainConfig
from hf_clip.training.recipe import MAY_CHANGE, _all_keys, may_change, recipe_changes, recipe_text
from hf_clip.training.recipe_keys import SYNONYMS
from hf_clip.training.recipe_reference import explain_key, recipe_reference
from tests.helpers.squares import recipe, write_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
    """A recipe with something in every section."""
    evaluation = {"data": ["b.parquet"], "where": {"split": "test"}}
    content = recipe(
        "a.parquet",
        augmentation={"flip": 0.5, "no_flip_words": ["left"]},
        evaluations={"seen": evaluation, "classes": {**evaluation, "task": "zero-shot", "templates": ["a {}"]}},
        card={"model_name": "squares: ${small} 'ones'", "languages": ["en", "de"]},
    )
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
    assert config.evaluations["classes"].task == "zero-shot"
    assert config.model.config["vision_config"]["stage_widths"] == [32]
    copy.write_text(recipe_text(load_recipe(file, ["seed=1"])))
    assert load_recipe(copy) != config


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_of_the_package_can_be_built(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_recipe(name)
    assert {"emoji", "finetune", "scratch"} <= {*list_recipes()}
    if config.model.start_from is None:
        assert model_config(config.model).vision_config.image_size > 0
    if not name.startswith("emoji"):
        # Their data is the user's.
        return
    for data in [*config.data.files, *(item for one in config.evaluations.values() for item in one.data)]:
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
        ("steps=many", r"^steps='many' is not a whole number\.$"),
        ("steps=2.5", "steps=2.5 is not a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast' is not a number"),
        ("data.train=a.parquet", r"data.train=a.parquet is not a list: write \[a.parquet\]"),
        ("data.caption_columns=caption", r"data.caption_columns=caption is not a list: write \[caption\]"),
        (
            "evaluations.seen.during_training=perhaps",
            "evaluations.seen.during_training='perhaps' is not true or false",
        ),
        ("data=3", "data=3 is not a table"),
        ("evaluations=[1]", r"evaluations=\[1\] is not a table"),
        ("evaluations.seen.data.first=1", "evaluations.seen.data.first cannot be set, as data is no table"),
        ("steps=true", "steps=True is not a number"),
        ("steps", "`overrides`: 'steps' is not key=value"),
        ("=3", "`overrides`: '=3' is not key=value"),
        ("data.train=[a", "Recipe .*while parsing a flow sequence"),
        # Out of range.
        ("steps=0", "steps=0 must be 1 or more"),
        ("batch_size=1", "batch_size=1: a contrastive loss needs 2 pairs or more"),
        ("seed=-1", "seed=-1 must lie in 0 to"),
        ("seed=99999999999999999999", "seed=99999999999999999999 must lie in 0 to"),
        ("mixed_precision=fp8", "mixed_precision='fp8' is not known: use 'auto', 'no', "),
        ("checkpoints.keep_last=0", "checkpoints.keep_last=0 must be 1 or more"),
        ("checkpoints.save_every=0", "checkpoints.save_every=0 must be 1 or more"),
        ("checkpoints.keep_every=-1", "checkpoints.keep_every=-1 must be 1 or more"),
        ("checkpoints.save_minutes=.nan", "checkpoints.save_minutes=nan must be above 0 and finite"),
        ("checkpoints.push_to=a/b/c", "checkpoints.push_to='a/b/c' is no name of a repository: .*'a/b/c'"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate=0.0 must be above 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate=inf must be above 0 and finite"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay=nan must be 0 or more"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0 must lie in 0 to 1"),
        ("optimizer.max_logit_scale=0.5", "optimizer.max_logit_scale=0.5 must be 1 or more"),
        ("optimizer.max_logit_scale=.inf", "optimizer.max_logit_scale=inf must be 1 or more, and finite"),
        ("optimizer.weight_decay=.inf", "optimizer.weight_decay=inf must be 0 or more, and finite"),
        ("optimizer.schedule=step", "optimizer.schedule='step' is not known: use 'cosine', 'linear' or 'constant'"),
        ("optimizer.final_learning_rate_fraction=-5", "fraction=-5.0 is not a fraction: use 0 to 1"),
        ("optimizer.final_learning_rate_fraction=1e6", "fraction=1000000.0 is not a fraction: use 0 to 1"),
        ("optimizer.final_learning_rate_fraction=.nan", "fraction=nan is not a fraction: use 0 to 1"),
        ("model.image_std=[0.5, 0, 0.5]", r"model.image_std=\[0.5, 0.0, 0.5\]: images are divided .* above 0"),
        ("model.image_std=[0.5, -1, 0.5]", r"model.image_std=\[0.5, -1.0, 0.5\]: images are divided .* above 0"),
        ("model.image_std=[0.5, 0.5]", r"model.image_std=\[0.5, 0.5\] must be three numbers"),
        ("model.image_std=[0.5, .inf, 0.5]", "model.image_std=inf is no finite number"),
        ("model.image_mean=[0.5, .nan, 0.5]", "model.image_mean=nan is no finite number"),
        ("model.config.logit_scale_init_value=.nan", "model.config.logit_scale_init_value=nan is no finite number"),
        ("epochs=2", "steps=6 and epochs=2.0 are two lengths of one run: remove one"),
        ("epochs=0", "epochs=0.0 must be above 0"),
        ("optimizer.warmup_fraction=1", "optimizer.warmup_fraction=1.0 must be 0 or more, and below 1"),
        ("optimizer.warmup_fraction=0.1", "warmup_steps=2 and optimizer.warmup_fraction=0.1 say the same: remove one"),
        ("data.validation_fraction=1", "data.validation_fraction=1.0 must lie between 0 and 1"),
        ("optimizer.warmup_steps=6", "optimizer.warmup_steps=6 leaves nothing of steps=6"),
        ("label_smoothing=1", "label_smoothing=1.0 must be 0 or more, and below 1"),
        ("augmentation.flip=1.5", "augmentation.flip=1.5 must lie in 0 to 1"),
        ("augmentation.rotation=-3", "augmentation.rotation=-3.0 must be 0 or more"),
        ("augmentation.hue=.nan", "augmentation.hue=nan must be 0 or more"),
        ("data.train=[]", "data.train is empty"),
        ("data.max_bad_fraction=5", "data.max_bad_fraction=5.0 is not a fraction"),
        ("data.shuffle_block=0", "data.shuffle_block=0 must be 1 or more"),
        ("data.keyword_weight=1", "data.keyword_columns.*data.keyword_weight=1.0 go together"),
        (
            "evaluations.seen.task=guess",
            "^evaluations.seen.task='guess' is not known: use 'retrieval', 'captions', 'languages', 'zero-shot'",
        ),
        ("evaluations.new.task=zero-shot", "^evaluations.new.data is empty"),
        ("evaluations.classes.templates=[a cat]", "^evaluations.classes.templates: 'a cat' has no {}"),
        ("templates=[a cat]", "^templates: 'a cat' has no {}"),
        ("templates=[]", "^templates is empty: null takes the default"),
        ("model.hidden_act=gelu", "model.hidden_act=gelu says how model.start_from is read, which is not set"),
        ("evaluations={../../evil: {data: [a]}}", "evaluations: '../../evil' cannot be a file's name: use letters"),
        (f"evaluations.{300 * 'a'}={{data: [a]}}", "evaluations: 'a+' cannot be a file's name: .* 64 at most"),
        ("evaluations.Seen={data: [a]}", "evaluations: 'Seen' and 'seen' are one name on the Hub, .*: rename one"),
        ("evaluations.___={data: [a]}", "evaluations: '___' has none of the letters a to z and no digit"),
        ("card.sources=[no/such.yaml]", "card.sources: there is no file no/such.yaml"),
        ("card.languages=[klingon]", "card.languages: 'klingon' is no ISO 639 code: write 'en'"),
        ("model.vocabulary_size=100", "model.vocabulary_size=100 is below 514"),
        ("model.architecture=ViT-B/33", "'ViT-B/33' is not a known architecture. Nearest: ViT-B/32"),
        # Missing.
        ("steps=null", "steps and epochs are both missing: every recipe must set one of them"),
        ("data=null", "data is missing: every recipe must set it"),
    ],
)
def test_a_value_that_cannot_run_is_refused(file, override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(file, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "checkpoints.push_to=no",
            "checkpoints.push_to=false is a truth value in YAML, and the key takes text: put it",
        ),
        ("card.model_name=2024", "card.model_name=2024 is a number in YAML"),
        ("card.model_name=1e3", "card.model_name=1000.0 is a number in YAML"),
        ("card.languages=[no]", "card.languages=false is a truth value in YAML"),
        ("data.train=[on]", "data.train=true is a truth value"),
        ("data.image_column=[a]", r"data.image_column=\['a'\] is no text in YAML"),
        ("evaluations.seen.split=off", "evaluations.seen.split=false is a truth value"),
        ("data.where={no: a}", "data.where: false is no text, as a key must be: write 'false'"),
    ],
)
def test_text_is_never_a_converted_value(file, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])


def test_quoted_text_times_and_dates_are_text(file):
    overrides = ["checkpoints.push_to='no'", "card.model_name=2026-11-27", "data.split=12:30", "card.languages=['no']"]
    config = load_recipe(file, overrides)
    assert config.checkpoints.push_to == "no" and config.card.languages == ["no"]
    assert config.card.model_name == "2026-11-27" and config.data.split == "12:30"
    file.write_text(recipe_text(config))
    assert load_recipe(file) == config


def test_numbers_may_be_written_as_people_write_them(file):
    overrides = ["steps=1e3", "batch_size=2_56", "optimizer.learning_rate=3E-4", "optimizer.weight_decay=.2"]
    config = load_recipe(file, [*overrides, "model.config.projection_dim=2e2", "data.where={year: 1e3}"])
    assert (config.steps, config.batch_size) == (1000, 256)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (3e-4, 0.2)
    assert config.model.config["projection_dim"] == 200 and isinstance(config.model.config["projection_dim"], int)


def test_nothing_of_the_environment_is_put_in(file, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    text = "${oc.env:SECRET} ${steps} ${"
    config = load_recipe(file, [f"card.model_name='{text}'"])
    assert config.card.model_name == text
    file.write_text(recipe_text(config))
    assert load_recipe(file).card.model_name == text


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("num_epochs", "Use epochs, or steps, which counts updates"),
        ("lr", r"Use optimizer\.learning_rate"),
        ("optimizer.lr", r"Use optimizer\.learning_rate"),
        ("freeze", "Use optimizer.vision_tower.trainable_groups and"),
        ("lock_image", r"Use optimizer\.vision_tower\.trainable_groups"),
        ("val", "Use evaluations"),
        ("accum_freq", "Use micro_batch_size"),
        ("gradient_accumulation_steps", "Use micro_batch_size"),
        ("fp16", "Use mixed_precision"),
        ("bf16", "Use mixed_precision"),
        ("resume", "It is not here, because a run is resumed as a whole"),
        ("output_dir", "It is not here, because one recipe serves many runs"),
        ("keep_best", "Use checkpoints.best: an evaluation's name and its number"),
        ("learning_rate", r"Did you mean optimizer\.learning_rate\?"),
        ("evaluations.seen.protocol", "Use task: retrieval, zero-shot or captions"),
        ("warmup_ratio", r"Use optimizer\.warmup_steps"),
    ],
)
def test_other_trainers_words_are_answered(file, key, advice):
    with pytest.raises(RecipeError, match=f"^{key} is not a key of a recipe. {advice}"):
        load_recipe(file, [f"{key}=1"])


def test_every_answer_names_a_key_that_there_is():
    """No synonym is a key itself where it would be asked for, and what is advised can be written."""
    keys = set(_all_keys(TrainConfig, "")) | {"task", "data", "during_training", "templates"}
    keys |= {f"model.config.{name}" for name in ("projection_dim", "logit_scale_init_value", "logit_bias_init_value")}
    keys |= {"model.config.vision_config.image_size", "model.config.text_config.max_position_embeddings"}
    keys.add("model.config.vision_config.patch_dropout")
    for word, answer in SYNONYMS.items():
        assert answer.startswith(("Use ", "It is not here")) and answer.endswith("."), word
        if answer.startswith("Use "):
            assert re.match(r"Use ([a-z_0-9.]*[a-z_0-9])", answer)[1] in keys, word
    assert not set(SYNONYMS) & set(TrainConfig.__dataclass_fields__)


def test_the_warmup_is_at_most_a_tenth_of_the_steps(file):
    table = ["optimizer={learning_rate: 1e-3}"]
    assert load_recipe(file, [*table, "steps=50"]).optimizer.warmup_steps == 5
    assert load_recipe(file, [*table, "steps=5"]).optimizer.warmup_steps == 0
    assert load_recipe(file, [*table, "steps=5000"]).optimizer.warmup_steps == 100
    assert load_recipe(file, [*table, "steps=50", "optimizer.warmup_steps=20"]).optimizer.warmup_steps == 20


def test_the_reference_describes_every_key():
    reference = recipe_reference()
    for section in ("Top level", "`model`", "`optimizer.text_tower`", "`evaluations.NAME`"):
        assert f"## {section}\n" in reference
    for key in _all_keys(TrainConfig, ""):
        assert f"| `{key.rpartition('.')[2]}` |" in reference, key
    assert "| `warmup_steps` | integer or null | `null` | Steps in which the rates rise" in reference
    cells = [row.split(" | ") for row in reference.splitlines() if row.startswith("| `")]
    assert all(len(row) == 4 and len(row[3]) > 10 and row[3].endswith((". |", ".) |", '" |')) for row in cells)


def test_a_key_stands_once(file):
    file.write_text(file.read_text() + "steps: 9\n")
    with pytest.raises(RecipeError, match="steps stands twice"):
        load_recipe(file)


@pytest.mark.parametrize("value", ["no", "No", "'no'", "off"])
def test_precision_can_be_switched_off_in_yaml(file, value):
    """Where a bare `no` is a truth value; our own advice says `mixed_precision=no`."""
    assert load_recipe(file, ["mixed_precision=auto", f"mixed_precision={value}"]).mixed_precision == "no"
    file.write_text(file.read_text().replace("mixed_precision: 'no'", f"mixed_precision: {value}"))
    assert load_recipe(file).mixed_precision == "no"


def test_lists_and_sections_take_null_for_their_default(file):
    assert load_recipe(file, ["data.caption_columns=null"]).data.caption_columns is None
    with pytest.raises(RecipeError, match=r"data.keyword_columns=None is not a list"):
        load_recipe(file, ["data.keyword_columns=null"])


def test_a_key_of_a_section_is_named_with_its_section(file):
    with pytest.raises(RecipeError, match=r"save_every is not a key .* Did you mean checkpoints\.save_every\?"):
        load_recipe(file, ["save_every=5"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1", "must be a list, one entry a data file"),
        (b"", "must be a list"),
        (b"- name: noto", "entry 1 of .*sources.yaml has no file: add it"),
        (b"- {file: a.parquet, name: a}\n- {file: b.parquet}", "entry 2 of .*sources.yaml has no name: add it"),
        (b"- {file: a.parquet, name: ' '}", "has no name"),
        (b"- {file: a.parquet, name: 5}", "has no name"),
        (b"- a.parquet", "entry 1 of .* is 'a.parquet': it must have the keys file and name"),
        (b"- {file: a.parquet, name: a, dataset: a b}", "dataset='a b' is no name that the Hub can have"),
        (b"- [", "cannot be read: while parsing"),
        (b"- {file: \xff\xfe}", "cannot be read: .*utf-8"),
    ],
)
def test_what_the_card_cannot_print_is_said_at_once(file, tmp_path, content, message):
    (tmp_path / "sources.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [f"card.sources=[{tmp_path / 'sources.yaml'}]"])


def test_recipes_differ_in_named_keys(file):
    overrides = ["log_every=3", "evaluations.seen.where={a: b}", "data.train=[x]", "model.config.projection_dim=3"]
    changes = recipe_changes(load_recipe(file), load_recipe(file, overrides))
    assert list(changes) == [
        "model.config.projection_dim",
        "data.train",
        "log_every",
        "evaluations.seen.where.split",
        "evaluations.seen.where.a",
    ]
    assert changes["log_every"] == (1, 3) and changes["data.train"] == (["a.parquet"], ["x"])
    assert recipe_changes(load_recipe(file), load_recipe(file)) == {}


def test_only_what_changes_no_weight_may_change_on_the_way(file):
    config = load_recipe(file)
    for key in MAY_CHANGE:
        section = config
        for name in key.split("."):
            section = getattr(section, name)
    free = ["log_every", "eval_every", "checkpoints.keep_last", "evaluations.seen.data", "card.model_name"]
    fixed = ["steps", "seed", "batch_size", "mixed_precision", "data.train", "data.shuffle_block", "model.config.a"]
    fixed += ["optimizer.learning_rate", "augmentation.flip", "model.vocabulary_size", "log_everything"]
    assert all(may_change(key) for key in free) and not any(may_change(key) for key in fixed)


def test_a_model_that_cannot_be_built_is_refused(file):
    config = load_recipe(file, ["model.config.vision_config.image_size=18"])
    with pytest.raises(RecipeError, match="^model.config: `image_size=18` .* set `image_size=16`"):
        model_config(config.model)
    with pytest.raises(RecipeError, match="model.architecture and model.config are both empty"):
        load_recipe(file, ["model.config={}"])


@pytest.mark.slow
def test_a_recipe_that_is_not_there_or_none(tmp_path):
    with pytest.raises(RecipeError, match="no recipe 'emojis': name one that comes with the package .*emoji"):
        load_recipe("emojis")
    for text, message in (
        ("- a\n- b\n", "not a table"),
        ("steps: [", "while parsing"),
        ("", "model is missing"),
        ("steps: " + "[" * 3000 + "]" * 3000, "^Recipe .*recipe.yaml is nested too deeply: remove brackets"),
        ("? [a]\n: 1\n", "^Recipe .*recipe.yaml: while constructing a mapping .* found unhashable key"),
    ):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_bytes(b"steps: \xff\xfe")
    with pytest.raises(RecipeError, match="recipe.yaml"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.slow
def test_every_key_is_explained():
    """By its kind, default and meaning; tables with their keys; an unknown key with the nearest."""
    assert explain_key("optimizer.learning_rate").startswith("optimizer.learning_rate: number (default 0.0005)\n")
    assert "steps: integer or null (default null)" in explain_key("")
    assert "optimizer.text_tower.layer_decay: number" in explain_key("optimizer.text_tower")
    assert "evaluations.NAME.task: text" in explain_key("evaluations")
    assert explain_key("evaluations.mine.task").startswith("evaluations.mine.task: text (default retrieval)")
    for key in _all_keys(TrainConfig, ""):
        head, meaning = explain_key(key).splitlines()[:2]
        assert head.startswith(f"{key}: ") and len(meaning.split()) > 1, key
    with pytest.raises(RecipeError, match="Did you mean optimizer.learning_rate"):
        explain_key("optimizer.learning_rat")
