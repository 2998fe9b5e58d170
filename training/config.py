"""What a training run is made of: dataclasses, read from a YAML recipe and `--set key=value`, checked when made."""

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hf_clip.model.configuration_hf_clip import HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig, list_architectures

RECIPES = files("hf_clip.training") / "recipes"

# What the recipe keeps as free tables, but the model reads field by field.
_SHAPES = {
    "model.config.": HFCLIPConfig,
    "model.config.text_config.": HFCLIPTextConfig,
    "model.config.vision_config.": HFCLIPVisionConfig,
}

# What a model with weights can still be told: nothing that a weight's shape hangs on.
_DROPOUTS = {"vision_config": ("patch_dropout", "attention_dropout"), "text_config": ("attention_dropout",)}


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, the value and the mend."""

    exit_code = 2


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)


def _require_finite(name: str, value: Any) -> None:
    """Raises for a NaN or an infinity, however deep it lies."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for key, item in value.items():
            _require_finite(f"{name}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            _require_finite(name, item)
    else:
        _require(not isinstance(value, float) or math.isfinite(value), f"{name}={value} is no finite number.")


@dataclass
class ModelConfig:
    """The model at its start: random weights, a checkpoint's, or those of two towers that were trained apart.

    `architecture` is a published name (see `list_architectures`) or null; `config` holds fields of `HFCLIPConfig`,
    which replace the architecture's. `vocabulary_size` trains a byte-pair vocabulary of that size on the captions of
    the training data; null takes OpenAI's 49,408 tokens. Images are normalized by `image_mean` and `image_std`.

    `start_from` is a checkpoint that `hf_clip.load` takes, `vision_tower` and `text_tower` are what
    `hf_clip.joining_towers.join_towers` takes. Both bring their tokenizer and normalization; `config` then holds
    dropouts (`vision_config.patch_dropout`, `attention_dropout` of both) and, for towers, what `join_towers` takes of
    it.
    """

    architecture: str | None = None
    start_from: str | None = None
    vision_tower: str | None = None
    text_tower: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    vocabulary_size: int | None = None
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])

    def __post_init__(self):
        self._require_one_start()
        if self.architecture is not None:
            HFCLIPConfig.from_architecture(self.architecture)
        elif not self.config and not self.has_own_processor:
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
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            _require(len(values) == 3, f"model.{name}={values} must be three numbers: of red, green and blue.")
        _require(min(self.image_std) > 0, f"model.image_std={self.image_std}: images are divided by it, so above 0.")
        _require_finite("model", self)

    @property
    def has_own_processor(self) -> bool:
        """Whether tokenizer and normalization come with the weights that the model starts from."""
        return self.start_from is not None or self.vision_tower is not None

    def _require_one_start(self) -> None:
        _require(
            (self.vision_tower is None) == (self.text_tower is None),
            f"model.vision_tower={self.vision_tower} and model.text_tower={self.text_tower} go together: set both, or "
            "neither.",
        )
        starts = [name for name in ("architecture", "start_from", "vision_tower") if getattr(self, name) is not None]
        _require(
            len(starts) < 2,
            f"{' and '.join(f'model.{name}' for name in starts)} are two models to start from: leave one out.",
        )
        if self.has_own_processor:
            for name in ("vocabulary_size", "image_mean", "image_std"):
                default = ModelConfig.__dataclass_fields__[name]
                value = default.default if default.default_factory is MISSING else default.default_factory()
                _require(
                    getattr(self, name) == value,
                    f"model.{name}={getattr(self, name)}: the weights of model.{starts[0]} were trained with their "
                    f"own: leave model.{name} out.",
                )
        if self.start_from is not None:
            for tower, given in self.config.items():
                allowed = _DROPOUTS.get(tower, ())
                wrong = [key for key in given if key not in allowed] if isinstance(given, dict) and allowed else [""]
                _require(
                    not wrong,
                    f"model.config.{'.'.join([tower, *wrong[:1]]).rstrip('.')} cannot be set with model.start_from: "
                    "the checkpoint has its shape. Only "
                    + " and ".join(f"{name}.{key}" for name, keys in _DROPOUTS.items() for key in keys)
                    + " can.",
                )


@dataclass
class DataConfig:
    """Where pairs come from.

    `train` lists files, folders or Hub ids (see `hf_clip.sources.open_source`); `where` keeps the rows whose columns
    have the given values. Columns are found by name where they are null. With `weights`, one for each entry of
    `train`, an epoch passes so often through that entry: 2 is twice, 0.5 every other epoch. Each step draws one of a
    row's captions. With `keyword_columns` and a `keyword_weight` above 0, a second contrast of that weight pairs the
    image with 1 to `max_keywords` of its keywords, in random order.

    The order depends on the seed and on `lanes`, of which each process reads some: a number that divides `batch_size`
    and that the number of processes divides; null chooses one of up to 32 that most do. `shuffle_block` pairs wait as
    undecoded bytes, over all lanes, to be shuffled together, and as many are read ahead. `workers` threads of each
    process decode; null takes a thread a core, 0 decodes between the steps. Data whose images, at the model's size,
    fit into `decoded_cache_gb` of each process is decoded once for the whole run. Over `max_bad_fraction` of
    unreadable pairs the run stops.
    """

    train: list[str] = field(default_factory=list)
    weights: list[float] | None = None
    split: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    image_column: str | None = None
    caption_columns: list[str] | None = None
    concept_column: str | None = None
    keyword_columns: list[str] = field(default_factory=list)
    keyword_weight: float = 0.0
    max_keywords: int = 6
    lanes: int | None = None
    workers: int | None = None
    shuffle_block: int = 8192
    decoded_cache_gb: float = 1.0
    max_bad_fraction: float = 0.05

    def __post_init__(self):
        _require(bool(self.train), "data.train is empty: give it at least one file, folder or Hub id.")
        _require(
            self.weights is None or len(self.weights) == len(self.train),
            f"data.weights={self.weights} must have {len(self.train)} numbers, one for each entry of data.train.",
        )
        for weight in self.weights or []:
            _require(
                0.001 <= weight <= 1000,
                f"data.weights: {weight} must lie in 0.001 to 1000: it counts passes an epoch. Leave an entry of "
                "data.train out to give it none.",
            )
        for name in ("workers", "decoded_cache_gb"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < math.inf, f"data.{name}={value} must be 0 or more, and finite.")
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
        for name in ("lanes", "max_keywords", "shuffle_block"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"data.{name}={value} must be 1 or more.")


@dataclass
class AugmentationConfig:
    """Strengths of the random changes to a training image, 0 for none. See `hf_clip.training.augmentation`.

    `rotation` is in degrees; `shift` and `cutout_size` are fractions of the side; `scale`, `aspect`, `brightness`,
    `channels` and `saturation` are the largest change of a factor's logarithm; `hue` is a fraction of the color
    wheel; `flip`, `gray`, `crop` and `cutout` are probabilities. An image is not flipped where a caption holds one of
    `no_flip_words`, which a mirror would make false. Of one that holds one of `crop_words` a band is, with probability
    `crop`, cut out of the disc that it is taken for, and its rows stretched to a lying rectangle: for flags, which are
    the same in any outline. `mixup` is the parameter of the Beta distribution from which the shares of two images in
    one are drawn (Zhang et al. 2018), two by two within a batch.
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
    crop: float = 0.0
    mixup: float = 0.0
    no_flip_words: list[str] = field(default_factory=lambda: ["left", "right", "clockwise"])
    crop_words: list[str] = field(default_factory=list)

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in ("flip", "gray", "crop", "cutout", "cutout_size", "blur"):
                _require(0 <= value <= 1, f"augmentation.{name}={value} must lie in 0 to 1.")
            elif name not in ("no_flip_words", "crop_words"):
                _require(0 <= value < math.inf, f"augmentation.{name}={value} must be 0 or more, and finite.")


@dataclass
class TowerConfig:
    """How one tower is trained.

    `unlocked_groups` counts, from the top, the parts that are trained: 1 the projection alone, 2 the last layer with
    the norms behind it too, and so on down to the embeddings; 0 none (Zhai et al. 2022, "LiT"); null all. The parts
    below are in evaluation mode, so that batch norms keep their statistics. `learning_rate_factor` is on every rate of
    the tower; `layer_decay` a further factor for each part that lies further down (Bao et al. 2022, "BEiT").
    """

    unlocked_groups: int | None = None
    learning_rate_factor: float = 1.0
    layer_decay: float = 1.0

    def __post_init__(self):
        _require(
            self.unlocked_groups is None or self.unlocked_groups >= 0,
            f"unlocked_groups={self.unlocked_groups} of a tower must be 0 or more, or null for all.",
        )
        _require(
            0 < self.learning_rate_factor < math.inf,
            f"learning_rate_factor={self.learning_rate_factor} of a tower must be above 0 and finite: "
            "unlocked_groups=0 locks it.",
        )
        _require(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay} of a tower must lie in 0 to 1, above 0.")


@dataclass
class OptimizerConfig:
    """The optimizer and its schedule. Defaults are those of the paper's ViTs (table 18), for smaller batches.

    `algorithm` is "adamw", or "muon": then the weights within the towers (all matrices and kernels but embeddings,
    first layers and projections) are updated by Muon at `matrix_learning_rate`, with `matrix_momentum` and
    `matrix_weight_decay`, and all others by AdamW. Short runs learn faster so.

    `learning_rate` is reached after `warmup_steps` and falls to `final_learning_rate_fraction` of it, by `schedule`:
    half a "cosine" (the paper's), or "linear". Gains, biases and the logit scale are not decayed. Gradients are
    clipped to `max_gradient_norm`. The factor on the cosines is kept in 1 to `max_logit_scale`, but for sigmoid
    models. Each tower can have its own rates, or be locked.
    """

    algorithm: str = "adamw"
    learning_rate: float = 5e-4
    matrix_learning_rate: float = 0.02
    matrix_momentum: float = 0.95
    matrix_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.2
    schedule: str = "cosine"
    warmup_steps: int = 100
    final_learning_rate_fraction: float = 0.0
    max_gradient_norm: float = 1.0
    max_logit_scale: float = 100.0
    vision_tower: TowerConfig = field(default_factory=TowerConfig)
    text_tower: TowerConfig = field(default_factory=TowerConfig)

    def __post_init__(self):
        _require(
            self.algorithm in ("adamw", "muon"),
            f"optimizer.algorithm={self.algorithm!r} is not known: use 'adamw' or 'muon'.",
        )
        _require(
            self.schedule in ("cosine", "linear"),
            f"optimizer.schedule={self.schedule!r} is not known: use 'cosine' or 'linear'.",
        )
        for name in ("learning_rate", "matrix_learning_rate", "epsilon", "max_gradient_norm"):
            value = getattr(self, name)
            _require(value > 0 and math.isfinite(value), f"optimizer.{name}={value} must be above 0 and finite.")
        for name in ("weight_decay", "matrix_weight_decay"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"optimizer.{name}={value} must be 0 or more, and finite.")
        fraction = self.final_learning_rate_fraction
        _require(
            0 <= fraction <= 1,
            f"optimizer.final_learning_rate_fraction={fraction} is not a fraction: use 0 to 1.",
        )
        _require(self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must be 0 or more.")
        _require(
            1 <= self.max_logit_scale < math.inf,
            f"optimizer.max_logit_scale={self.max_logit_scale} must be 1 or more, and finite (the paper's is 100).",
        )
        for name in ("beta1", "beta2", "matrix_momentum"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} must lie in 0 to 1.")


@dataclass
class EvaluationConfig:
    """One judgement of the model: `protocol` "retrieval" (images among names) or "zero-shot" (among classes).

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
    name, license and attribution; `languages` are ISO 639 codes of the captions.
    """

    model_name: str | None = None
    sources: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=lambda: ["en"])

    def __post_init__(self):
        read_card_sources(self.sources)
        for language in self.languages:
            _require(
                re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", language) is not None,
                f"card.languages: {language!r} is no ISO 639 code: write 'en' for English, for instance.",
            )


def read_card_sources(sources: list[str]) -> dict[str, dict[str, Any]]:
    """What the YAML files of `card.sources` say of each data file, by the file's name.

    Raises:
        RecipeError: a file is missing, is no UTF-8 or no YAML, or is not a list of entries with `file` and `name`.
    """
    known = {}
    for source in sources:
        _require(Path(source).is_file(), f"card.sources: there is no file {source}.")
        try:
            entries = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"card.sources: {source} cannot be read: {' '.join(str(error).split())}") from error
        _require(isinstance(entries, list), f"card.sources: {source} must be a list, one entry a data file.")
        for number, entry in enumerate(entries, start=1):
            place = f"card.sources: entry {number} of {source}"
            _require(isinstance(entry, dict), f"{place} is {entry!r}: it must have the keys file and name.")
            for key in ("file", "name"):
                value = entry.get(key)
                _require(isinstance(value, str) and bool(value.strip()), f"{place} has no {key}: add it.")
            name = entry.get("dataset", "owner/name")
            _require(
                re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name), re.ASCII) is not None,
                f"{place}: dataset={name!r} is no name that the Hub can have: write owner/name.",
            )
            known[Path(entry["file"]).name] = entry
    return known


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, which are kept, and where they are copied to.

    One is saved every `save_every` steps, `save_minutes` after the last one where that is set, at SIGTERM and SIGINT,
    and at the end. The newest `keep_last` stay, and for good those of every `keep_every` steps where that is set.
    `push_to` is a model repository on the Hub (made private if it is new) that receives each, in the background.
    """

    save_every: int = 1000
    save_minutes: float | None = None
    keep_last: int = 2
    keep_every: int | None = None
    push_to: str | None = None

    def __post_init__(self):
        for name in ("save_every", "keep_last", "keep_every"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"checkpoints.{name}={value} must be 1 or more.")
        _require(
            self.save_minutes is None or 0 < self.save_minutes < math.inf,
            f"checkpoints.save_minutes={self.save_minutes} must be above 0 and finite.",
        )
        try:
            validate_repo_id(self.push_to or "owner/name")
        except HFValidationError as error:
            raise RecipeError(f"checkpoints.push_to={self.push_to!r} is no name of a repository: {error}") from error


@dataclass
class TrainConfig:
    """A whole run. `batch_size` counts pairs over all processes; `steps` counts updates.

    `micro_batch_size` bounds the pairs whose activations a process holds at once; the loss is still the whole batch's
    (see `hf_clip.training.step`). Null holds its whole share. `mixed_precision` is "no", "bf16", "fp16" (on a GPU), or
    "auto": bf16 where the device is fast at it. `gradient_checkpointing` trades a third more time for activations of
    one layer at a time; `torch_compile` compiles the towers. `label_smoothing` is the share of a softmax's targets
    that is spread over the whole batch. A step whose loss or gradient is not finite changes no weight; after
    `max_bad_steps` of them in a row the run stops. `ema_decay` keeps an exponential moving average of the weights,
    which is what is then judged and saved as the model. `log_every` and `eval_every` count steps. Names of
    evaluations become file names.
    """

    model: ModelConfig
    data: DataConfig
    steps: int
    batch_size: int = 256
    micro_batch_size: int | None = None
    seed: int = 0
    mixed_precision: str = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    label_smoothing: float = 0.0
    max_bad_steps: int = 10
    ema_decay: float | None = None
    log_every: int = 10
    eval_every: int = 1000
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluations: dict[str, EvaluationConfig] = field(default_factory=dict)
    card: CardConfig = field(default_factory=CardConfig)

    def __post_init__(self):
        for name in ("steps", "log_every", "eval_every", "max_bad_steps"):
            _require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be 1 or more.")
        _require(self.batch_size > 1, f"batch_size={self.batch_size}: a contrast needs 2 pairs or more.")
        _require(0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0 to 2**63 - 1.")
        _require(
            self.mixed_precision in ("auto", "no", "bf16", "fp16"),
            f"mixed_precision={self.mixed_precision!r} is not known: use 'auto', 'no', 'bf16' or 'fp16'.",
        )
        _require(
            self.micro_batch_size is None or self.micro_batch_size > 0,
            f"micro_batch_size={self.micro_batch_size} must be 1 or more, or null for the whole share of a process.",
        )
        _require(
            0 <= self.label_smoothing < 1, f"label_smoothing={self.label_smoothing} must be 0 or more, and below 1."
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay={self.ema_decay} must lie between 0 and 1, or be null for no average.",
        )
        _require(
            self.optimizer.warmup_steps < self.steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of steps={self.steps}: "
            "lower it, or train longer.",
        )
        _require_distinct_names(list(self.evaluations))


# What a resumed run may have otherwise than it began: none of it changes a weight.
MAY_CHANGE = (
    "log_every",
    "eval_every",
    "checkpoints",
    "evaluations",
    "card",
    "data.max_bad_fraction",
    "gradient_checkpointing",
    "max_bad_steps",
    "data.workers",
    "data.decoded_cache_gb",
)


def recipe_changes(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two recipes differ, with both values; of keys within lists and free tables, the whole one."""
    return dict(_changes("", before, now))


def _changes(name: str, before: Any, now: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if is_dataclass(before) and is_dataclass(now):
        before, now = vars(before), vars(now)
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            yield name, (before, now)
        return
    for key in {**before, **now}:
        yield from _changes(f"{name}.{key}" if name else key, before.get(key), now.get(key))


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of a key of the recipe."""
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def _require_distinct_names(names: list[str]) -> None:
    """Names of evaluations are file names, and titles that the Hub must tell apart by letters and digits alone."""
    slugs: dict[str, str] = {}
    for name in names:
        _require(
            re.fullmatch(r"[\w-]{1,64}", name) is not None,
            f"evaluations: {name!r} cannot be a file's name: use letters, digits, '_' and '-', 64 at most.",
        )
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        _require(bool(slug), f"evaluations: {name!r} has none of the letters a to z and no digit: the Hub needs one.")
        _require(
            slug not in slugs,
            f"evaluations: {name!r} and {slugs.get(slug)!r} are one name on the Hub, where only the letters a to z "
            "and digits tell them apart: rename one.",
        )
        slugs[slug] = name


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
        if container.get("mixed_precision") is False:
            # YAML 1.1 takes a bare `no` for a truth value.
            container["mixed_precision"] = "no"
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
            within = [name for name, entry in known.items() if key in getattr(entry.type, "__dataclass_fields__", ())]
            near = [f"{name}.{key}" for name in within] or difflib.get_close_matches(str(key), known, n=1)
            advice = f"Did you mean {prefix}{near[0]}?" if near else f"Known here: {', '.join(known)}."
            raise RecipeError(f"{prefix}{key} is not a key of a recipe. {advice}")
        kinds = (known[key].type, *get_args(known[key].type))
        is_given = value is not None or type(None) not in kinds
        if is_given and any(get_origin(kind) is list for kind in kinds) and not isinstance(value, list):
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
