"""What a training run is made of: dataclasses, read from a YAML recipe and `--set key=value`, checked when made."""

import difflib
import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hf_clip.configuration_hf_clip import (
    HFCLIPConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
    list_architectures,
)

RECIPES = files("hf_clip.training") / "recipes"

# What the recipe keeps as free tables, but the model reads field by field.
_SHAPES = {
    "model.config.": HFCLIPConfig,
    "model.config.text_config.": HFCLIPTextConfig,
    "model.config.vision_config.": HFCLIPVisionConfig,
}


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, the value and the mend."""

    exit_code = 2


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)


@dataclass
class ModelConfig:
    """The model at its start, from random weights.

    `architecture` is a published name (see `list_architectures`) or null; `config` holds fields of `HFCLIPConfig`,
    which replace the architecture's. `vocabulary_size` trains a byte-pair vocabulary of that size on the captions of
    the training data; null takes OpenAI's 49,408 tokens. Pictures are normalised by `image_mean` and `image_std`.
    """

    architecture: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    vocabulary_size: int | None = None
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])

    def __post_init__(self):
        if self.architecture is not None:
            HFCLIPConfig.from_architecture(self.architecture)
        elif not self.config:
            raise RecipeError(
                "model.architecture and model.config are both empty: set model.architecture to one of "
                f"{', '.join(list_architectures())}, or give the shape in model.config."
            )
        smallest = 2 * 256 + 2
        _require(
            self.vocabulary_size is None or self.vocabulary_size >= smallest,
            f"model.vocabulary_size={self.vocabulary_size} is below {smallest}: all bytes, alone and at a word's end, "
            "and the two special tokens need that many.",
        )


@dataclass
class DataConfig:
    """Where pairs come from.

    `train` lists files, folders or Hub ids (see `hf_clip.sources.open_source`); `where` keeps the rows whose columns
    have the given values. Columns are found by name where they are null. Each step draws one of a row's captions.
    With `keyword_columns` and a `keyword_weight` above 0, a second contrast of that weight pairs the picture with 1 to
    `max_keywords` of its keywords, in random order. `shuffle_block` pairs are held decoded in memory (12 kB each at
    64 pixels, 150 kB at 224) and shuffled together; a data set that fits one block is decoded once for the whole run.
    Over `max_bad_fraction` of unreadable pairs the run stops.
    """

    train: list[str] = field(default_factory=list)
    split: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    caption_columns: list[str] | None = None
    concept_column: str | None = None
    keyword_columns: list[str] = field(default_factory=list)
    keyword_weight: float = 0.0
    max_keywords: int = 6
    shuffle_block: int = 8192
    max_bad_fraction: float = 0.05

    def __post_init__(self):
        _require(bool(self.train), "data.train is empty: give it at least one file, folder or Hub id.")
        _require(self.keyword_weight >= 0, f"data.keyword_weight={self.keyword_weight} must be 0 or more.")
        _require(
            bool(self.keyword_columns) == (self.keyword_weight > 0),
            f"data.keyword_columns={self.keyword_columns} and data.keyword_weight={self.keyword_weight} go together: "
            "set both, or neither.",
        )
        _require(
            0 <= self.max_bad_fraction <= 1,
            f"data.max_bad_fraction={self.max_bad_fraction} is not a fraction: use 0 to 1.",
        )
        for name in ("max_keywords", "shuffle_block"):
            _require(getattr(self, name) > 0, f"data.{name}={getattr(self, name)} must be 1 or more.")


@dataclass
class AugmentationConfig:
    """Strengths of the random changes to a training picture, 0 for none. See `hf_clip.training.augmentation`.

    `rotation` is in degrees; `shift` and `cutout_size` are fractions of the side; `scale`, `aspect`, `brightness`,
    `channels` and `saturation` are the largest change of a factor's logarithm; `hue` is a fraction of the colour
    wheel; `flip`, `gray` and `cutout` are probabilities. A picture is not flipped where a caption holds one of
    `no_flip_words`, which a mirror would make false.
    """

    rotation: float = 0.0
    scale: float = 0.0
    aspect: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    channels: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    cutout: float = 0.0
    cutout_size: float = 0.35
    no_flip_words: list[str] = field(default_factory=lambda: ["left", "right", "clockwise"])

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in ("flip", "gray", "cutout", "cutout_size", "blur"):
                _require(0 <= value <= 1, f"augmentation.{name}={value} must lie in 0 to 1.")
            elif name != "no_flip_words":
                _require(0 <= value < math.inf, f"augmentation.{name}={value} must be 0 or more, and finite.")


@dataclass
class OptimizerConfig:
    """AdamW with a cosine schedule. Defaults are those of the paper's ViTs (table 18), for smaller batches.

    `learning_rate` is reached after `warmup_steps` and falls to `final_learning_rate_fraction` of it. Gains, biases
    and the logit scale are not decayed. Gradients are clipped to `max_gradient_norm`. The factor on the cosines is
    kept in 1 to `max_logit_scale`.
    """

    learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.2
    warmup_steps: int = 100
    final_learning_rate_fraction: float = 0.0
    max_gradient_norm: float = 1.0
    max_logit_scale: float = 100.0

    def __post_init__(self):
        for name in ("learning_rate", "epsilon", "max_gradient_norm"):
            value = getattr(self, name)
            _require(value > 0 and math.isfinite(value), f"optimizer.{name}={value} must be above 0 and finite.")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be 0 or more.")
        _require(self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must be 0 or more.")
        _require(self.max_logit_scale >= 1, f"optimizer.max_logit_scale={self.max_logit_scale} must be 1 or more.")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} must lie in 0 to 1.")


@dataclass
class EvaluationConfig:
    """One judgement of the model: `protocol` "retrieval" (pictures among names) or "zero-shot" (among classes).

    With `during_training` it is also made every `eval_every` steps. Columns are found by name where they are null.
    """

    protocol: str = "retrieval"
    data: list[str] = field(default_factory=list)
    split: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    caption_columns: list[str] | None = None
    label_column: str | None = None
    concept_column: str | None = None
    templates: list[str] = field(default_factory=lambda: ["{}"])
    during_training: bool = False

    def __post_init__(self):
        _require(
            self.protocol in ("retrieval", "zero-shot"),
            f"protocol={self.protocol!r} of an evaluation is not known: use 'retrieval' or 'zero-shot'.",
        )
        _require(bool(self.data), "data of an evaluation is empty: give it at least one file, folder or Hub id.")
        for template in self.templates:
            _require("{}" in template, f"templates: {template!r} has no {{}} where the class name goes.")


@dataclass
class CardConfig:
    """What the model card cannot know by itself.

    `model_name` is its title (the folder's name by default); `sources` are YAML files that say of each data file its
    name, licence and attribution; `languages` are ISO 639 codes of the captions.
    """

    model_name: str | None = None
    sources: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=lambda: ["en"])

    def __post_init__(self):
        for file in self.sources:
            _require(Path(file).is_file(), f"card.sources: there is no file {file}.")


@dataclass
class TrainConfig:
    """A whole run. `batch_size` counts pairs over all processes; `steps` counts updates.

    `mixed_precision` is "no", "bf16", or "auto": bf16 where the device is fast at it. `log_every`, `eval_every` and
    `save_every` count steps; the newest `keep_checkpoints` are kept.
    """

    model: ModelConfig
    data: DataConfig
    steps: int
    batch_size: int = 256
    seed: int = 0
    mixed_precision: str = "auto"
    log_every: int = 10
    eval_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 2
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluations: dict[str, EvaluationConfig] = field(default_factory=dict)
    card: CardConfig = field(default_factory=CardConfig)

    def __post_init__(self):
        for name in ("steps", "log_every", "eval_every", "save_every", "keep_checkpoints"):
            _require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be 1 or more.")
        _require(self.batch_size > 1, f"batch_size={self.batch_size}: a contrast needs 2 pairs or more.")
        _require(0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0 to 2**63 - 1.")
        _require(
            self.mixed_precision in ("auto", "no", "bf16"),
            f"mixed_precision={self.mixed_precision!r} is not known: use 'auto', 'no' or 'bf16'.",
        )
        _require(
            self.optimizer.warmup_steps < self.steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of steps={self.steps}: "
            "lower it, or train longer.",
        )


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml"))


def load_recipe(recipe: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """A checked config from a recipe and overrides such as `optimizer.learning_rate=1e-3`.

    Args:
        recipe: the name of one that comes with the package, or the path of a YAML file.
        overrides: `key=value`, dots between levels, values in YAML (`data.train=[a.parquet,b.parquet]`). A table or a
            list replaces the recipe's; null takes a key's default, and switches an evaluation off.

    Raises:
        RecipeError: an unknown recipe or key (the nearest is named), a value of the wrong kind or out of range.
    """
    try:
        given = OmegaConf.create(_read(recipe))
        for override in overrides or []:
            key, equals, _ = override.partition("=")
            _require(bool(equals and key), f"--set {override!r} is not key=value.")
            value = OmegaConf.select(OmegaConf.from_dotlist([override]), key)
            OmegaConf.update(given, key, value, merge=False)
        container = _without_nulls(OmegaConf.to_container(given, resolve=True))
        if isinstance(container.get("evaluations"), dict):
            container["evaluations"] = _without_nulls(container["evaluations"])
        _check_keys(container, TrainConfig, "")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), container))
    except RecipeError:
        raise
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        # OmegaConf's further lines are its own keys and types; YAML's say where in the text the mistake is.
        reason = str(error) if isinstance(error, yaml.YAMLError) else str(error).strip().splitlines()[0]
        key = getattr(error, "full_key", None)
        raise RecipeError(f"Recipe {recipe}: {f'{key}: ' if key else ''}{' '.join(reason.split())}") from error


def recipe_text(config: TrainConfig) -> str:
    """The whole config as YAML, from which `load_recipe` makes an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read(recipe: str | Path) -> dict[str, Any]:
    file = RECIPES / f"{recipe}.yaml"
    if not file.is_file():
        file = Path(recipe)
    if not file.is_file():
        raise RecipeError(
            f"There is no recipe {str(recipe)!r}: name one that comes with the package ({', '.join(list_recipes())}), "
            "or give the path of a YAML file."
        )
    # OmegaConf's own reader takes 1e-4 as the number it is; plain YAML 1.1 takes it as a word.
    content = OmegaConf.create(file.read_text(encoding="utf-8"))
    if not OmegaConf.is_dict(content):
        raise RecipeError(f"Recipe {recipe} is not a table of keys and values.")
    return content


def _without_nulls(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _check_keys(given: Any, schema: Any, prefix: str) -> None:
    """Raises for the first key that no field has, naming the nearest that one has; and for a list that is none."""
    schema = _SHAPES.get(prefix, schema)
    if not isinstance(given, dict) or not is_dataclass(schema):
        return
    known = {field.name: field for field in fields(schema)}
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"Did you mean {prefix}{near[0]}?" if near else f"Known here: {', '.join(known)}."
            raise RecipeError(f"{prefix}{key} is not a key of a recipe. {advice}")
        if get_origin(known[key].type) is list and not isinstance(value, list):
            raise RecipeError(f"{prefix}{key}={value} is not a list: write [{value}].")
        if key == "evaluations" and isinstance(value, dict):
            for name, evaluation in value.items():
                _check_keys(evaluation, EvaluationConfig, f"evaluations.{name}.")
        else:
            _check_keys(value, known[key].type, f"{prefix}{key}.")
    for name, entry in known.items():
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and name not in given:
            raise RecipeError(f"{prefix}{name} is missing: every recipe must set it.")
