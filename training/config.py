"""What a training run is made of: dataclasses, checked when they are made. `recipe.py` reads them from YAML.

The text below each field is its entry in the recipe reference.
"""

import math
import re
from dataclasses import MISSING, dataclass, field, replace
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_clip.model.configuration_hf_clip import HFCLIPConfig, list_architectures
from hf_clip.sources import DataSpec

from .card_sources import read_card_sources
from .data_config import AugmentationConfig, DataConfig, JoinConfig
from .distillation import DistillationConfig
from .lora_config import LoraConfig
from .recipe_error import RecipeError, require, require_finite
from .stage_config import StageConfig

# What a model with weights can still be given: nothing that a weight's shape depends on.
_WITH_START = {
    "vision_config": ("image_size", "patch_dropout", "attention_dropout"),
    "text_config": ("attention_dropout",),
}
# What alone says how a checkpoint is to be read.
_READING = ("architecture", "hidden_act", "revision")

WARMUP_STEPS = 100

WRITES_CAPTIONS = "contrastive + caption"
OBJECTIVES = ("contrastive", WRITES_CAPTIONS)

# The evaluation of what `data` keeps for validation.
VALIDATION = "validation"
_WAYS = ("image_to_text", "text_to_image")
_OF_RETRIEVAL = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_reciprocal_rank")
# What can name the best checkpoint, by an evaluation's task; and those of them of which less is better.
NUMBERS_OF_TASKS = {
    "retrieval": [f"{way}.{name}" for way in _WAYS for name in _OF_RETRIEVAL],
    "captions": ["exact", "bleu_4", "rouge_l", "cider_d"],
    "languages": [f"{way}.{name}" for way in _WAYS for name in ("median", "reference", "ratio")],
    "zero-shot": ["top_1", "top_5", "mean_per_class", "calibration_error", "mean_average_precision"],
}
LESS_IS_BETTER = ("median_rank", "calibration_error")


@dataclass
class ModelConfig:
    """The model at its start: random weights, a checkpoint's, or those of two towers that were trained apart."""

    architecture: str | None = None
    """A published architecture, such as ViT-B/32 (`hf-clip doctor --architectures` lists them). With `start_from`, the
    architecture of a file of weights that does not say it."""
    start_from: str | None = None
    """A checkpoint of any format to start from: Hub id, folder or file. It brings its tokenizer and normalization."""
    hidden_act: str | None = None
    """With `start_from`, the activation of a file of weights that does not say it: quick_gelu, gelu or
    gelu_pytorch_tanh."""
    revision: str | None = None
    """With `start_from`, the branch, tag or commit of a Hub id."""
    vision_tower: str | None = None
    """A trained vision tower (Hub id or folder) to join with `text_tower` by new projections. It brings its
    normalization."""
    text_tower: str | None = None
    """A trained text tower (Hub id or folder) to join with `vision_tower`. It brings its tokenizer."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of `HFCLIPConfig`, which replace the architecture's. With `start_from`, `vision_config.image_size`
    (positions are resampled), `vision_config.patch_dropout`, `attention_dropout` of both towers, and
    `logit_bias_init_value` (a number trains with the sigmoid loss, null with the softmax) alone; with two towers, what
    `join_towers` takes."""
    vocabulary_size: int | None = None
    """Trains a byte-pair vocabulary of that size on the captions of the training data. Null takes OpenAI's 49,408
    tokens."""
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    """Red, green and blue, in 0 to 1, that are subtracted from every image."""
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    """Red, green and blue by which images are then divided."""

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
        require(
            self.vocabulary_size is None or self.vocabulary_size >= smallest,
            f"model.vocabulary_size={self.vocabulary_size} is below {smallest}: all bytes, alone and at a word's end, "
            "and the two special tokens need that many.",
        )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            require(len(values) == 3, f"model.{name}={values} must be three numbers: of red, green and blue.")
        require(min(self.image_std) > 0, f"model.image_std={self.image_std}: images are divided by it, so above 0.")
        require_finite("model", self)

    @property
    def has_own_processor(self) -> bool:
        """Whether tokenizer and normalization come with the weights that the model starts from."""
        return self.start_from is not None or self.vision_tower is not None

    def _require_one_start(self) -> None:
        require(
            (self.vision_tower is None) == (self.text_tower is None),
            f"model.vision_tower={self.vision_tower} and model.text_tower={self.text_tower} go together: set both, or "
            "neither.",
        )
        starts = [name for name in ("start_from", "vision_tower", "architecture") if getattr(self, name) is not None]
        require(
            len(starts) < 2 or starts == ["start_from", "architecture"],
            f"{' and '.join(f'model.{name}' for name in starts)} are two models to start from: remove one.",
        )
        if self.has_own_processor:
            for name in ("vocabulary_size", "image_mean", "image_std"):
                default = ModelConfig.__dataclass_fields__[name]
                value = default.default if default.default_factory is MISSING else default.default_factory()
                require(
                    getattr(self, name) == value,
                    f"model.{name}={getattr(self, name)}: the weights of model.{starts[0]} were trained with their "
                    f"own: remove model.{name}.",
                )
        if self.start_from is not None:
            self._require_what_fits_a_start()
            return
        for name in ("hidden_act", "revision"):
            require(
                getattr(self, name) is None,
                f"model.{name}={getattr(self, name)} says how model.start_from is read, which is not set.",
            )

    def _require_what_fits_a_start(self) -> None:
        bias = self.config.get("logit_bias_init_value")
        require(
            bias is None or (isinstance(bias, int | float) and not isinstance(bias, bool) and math.isfinite(bias)),
            f"model.config.logit_bias_init_value={bias} is not a number: give a sigmoid's bias, or null.",
        )
        for tower, given in self.config.items():
            if tower == "logit_bias_init_value":
                continue
            allowed = _WITH_START.get(tower, ())
            wrong = [key for key in given if key not in allowed] if isinstance(given, dict) and allowed else [""]
            require(
                not wrong,
                f"model.config.{'.'.join([tower, *wrong[:1]]).rstrip('.')} cannot be set with model.start_from: "
                "the checkpoint has its shape. Only "
                + ", ".join(f"{name}.{key}" for name, keys in _WITH_START.items() for key in keys)
                + " and logit_bias_init_value can.",
            )

    def reading(self) -> dict[str, Any]:
        """What `hf_clip.load` is given of it besides `start_from`."""
        return {name: value for name in _READING if (value := getattr(self, name)) is not None}


@dataclass
class TowerConfig:
    """How one tower is trained."""

    trainable_groups: int | None = None
    """Groups of layers, from the top, that are trained: 1 the projection alone, 2 the last layer with the norms behind
    it too, and so on down to the embeddings; 0 freezes the tower (Zhai et al. 2022, "LiT"); null trains all. Frozen
    batch norms keep their statistics."""
    learning_rate_factor: float = 1.0
    """Multiplies every learning rate of the tower."""
    layer_decay: float = 1.0
    """Multiplies the rates once more for each group that lies further down (Bao et al. 2022, "BEiT")."""

    def __post_init__(self):
        require(
            self.trainable_groups is None or self.trainable_groups >= 0,
            f"`trainable_groups={self.trainable_groups}` must be 0 or more, or null for all.",
        )
        require(
            0 < self.learning_rate_factor < math.inf,
            f"`learning_rate_factor={self.learning_rate_factor}` must be above 0 and finite: trainable_groups=0 "
            "freezes a tower.",
        )
        require(0 < self.layer_decay <= 1, f"`layer_decay={self.layer_decay}` must lie in 0 to 1, above 0.")


@dataclass
class OptimizerConfig:
    """The optimizer and its schedule. Defaults are those of the paper's ViTs (table 18), for smaller batches."""

    algorithm: str = "adamw"
    """"adamw", or "muon": weights within the towers (all matrices and kernels but embeddings, first layers and
    projections) are then updated by Muon, all others by AdamW. Short runs learn faster so."""
    learning_rate: float = 5e-4
    """The peak learning rate of AdamW."""
    matrix_learning_rate: float = 0.02
    """The peak learning rate of Muon."""
    matrix_momentum: float = 0.95
    """Muon's momentum."""
    matrix_weight_decay: float = 0.0
    """Muon's weight decay."""
    beta1: float = 0.9
    """AdamW's decay of the gradients' mean."""
    beta2: float = 0.98
    """AdamW's decay of the gradients' mean square."""
    epsilon: float = 1e-6
    """AdamW's lower bound of a gradient's root mean square."""
    weight_decay: float = 0.2
    """AdamW's weight decay. Gains, biases and the logit scale have none."""
    schedule: str = "cosine"
    """How rates fall after the warmup: by half a "cosine" (the paper's), or "linear"; "constant" keeps them at their
    peaks, so that a finished run can be extended as if it had never ended."""
    warmup_steps: int | None = None
    """Steps in which the rates rise to their peaks. Null takes 100, but at most a tenth of `steps`."""
    warmup_fraction: float | None = None
    """The fraction of all steps in which the rates rise to their peaks, instead of `warmup_steps`."""
    final_learning_rate_fraction: float = 0.0
    """The fraction of their peaks that the rates have at the end; "constant" has none."""
    max_gradient_norm: float = 1.0
    """Gradients are clipped to this norm."""
    max_logit_scale: float = 100.0
    """The logit scale is kept in 1 to this, but for sigmoid models (section 2.5)."""
    vision_tower: TowerConfig = field(default_factory=TowerConfig)
    """What of the vision tower is trained, and how fast."""
    text_tower: TowerConfig = field(default_factory=TowerConfig)
    """What of the text tower is trained, and how fast."""

    def __post_init__(self):
        require(
            self.algorithm in ("adamw", "muon"),
            f"optimizer.algorithm={self.algorithm!r} is not known: use 'adamw' or 'muon'.",
        )
        require(
            self.schedule in ("cosine", "linear", "constant"),
            f"optimizer.schedule={self.schedule!r} is not known: use 'cosine', 'linear' or 'constant'.",
        )
        for name in ("learning_rate", "matrix_learning_rate", "epsilon", "max_gradient_norm"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"optimizer.{name}={value} must be above 0 and finite.")
        for name in ("weight_decay", "matrix_weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name}={value} must be 0 or more, and finite.")
        fraction = self.final_learning_rate_fraction
        require(
            0 <= fraction <= 1,
            f"optimizer.final_learning_rate_fraction={fraction} is not a fraction: use 0 to 1.",
        )
        require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"optimizer.warmup_steps={self.warmup_steps} must be 0 or more.",
        )
        require(
            self.warmup_fraction is None or 0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction={self.warmup_fraction} must be 0 or more, and below 1.",
        )
        require(
            self.warmup_steps is None or self.warmup_fraction is None,
            f"optimizer.warmup_steps={self.warmup_steps} and optimizer.warmup_fraction={self.warmup_fraction} say "
            "the same: remove one.",
        )
        require(
            self.schedule != "constant" or self.final_learning_rate_fraction == 0,
            f"optimizer.final_learning_rate_fraction={self.final_learning_rate_fraction}: rates do not fall with "
            "optimizer.schedule=constant: remove it.",
        )
        require(
            1 <= self.max_logit_scale < math.inf,
            f"optimizer.max_logit_scale={self.max_logit_scale} must be 1 or more, and finite (the paper's is 100).",
        )
        for name in ("beta1", "beta2", "matrix_momentum"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} must lie in 0 to 1.")


@dataclass
class EvaluationConfig:
    """One evaluation of the model, at the end of the run, or on the way too."""

    task: str = "retrieval"
    """"retrieval" (images among captions, captions among images), "languages" (the same in each language of `join`),
    "zero-shot" (images among classes) or "captions" (what the model writes of images, beside the data's captions)."""
    data: list[str] = field(default_factory=list)
    """Files, a folder, or a Hub id."""
    split: str | None = None
    """The split to use, if the data has several."""
    where: dict[str, Any] = field(default_factory=dict)
    """Keeps the rows whose columns have the given values, or one of a list of values."""
    image_column: str | None = None
    """The column of images. Null finds it by its name."""
    caption_columns: list[str] | None = None
    """For retrieval and captions, the columns of captions. Null finds them by their names."""
    join: JoinConfig | None = None
    """Captions of another table, as in `data`; for languages with its `language_column`."""
    reference_language: str = "en"
    """For languages, the one with which the others are compared."""
    label_column: str | None = None
    """For zero-shot classification, the column of classes. Null finds it by its name."""
    concept_column: str | None = None
    """The column whose equal values mark images of one thing. Null finds it by its name."""
    templates: list[str] | None = None
    """Texts around the class names, `{}` in their place. Null takes the model's own: those of the recipe's key
    `templates`, else one ("a photo of a {}.")."""
    during_training: bool = False
    """Whether it is also made every `eval_every` steps."""

    def __post_init__(self):
        require(
            self.task in NUMBERS_OF_TASKS,
            f"`task={self.task!r}` is not known: use {', '.join(map(repr, NUMBERS_OF_TASKS))}.",
        )
        require(bool(self.data), "`data` is empty: give it at least one file, folder or Hub id.")
        _require_templates(self.templates)
        require(
            self.task != "languages" or (self.join is not None and self.join.language_column is not None),
            "`task=languages` is about captions of several languages: set `join`, with its language_column.",
        )

    def spec(self) -> DataSpec:
        """Its data."""
        return DataSpec(
            self.data[0] if len(self.data) == 1 else self.data,
            split=self.split,
            where=self.where,
            image_column=self.image_column,
            caption_columns=self.caption_columns,
            label_column=self.label_column,
            concept_column=self.concept_column,
            join=None if self.join is None else self.join.table(),
        )


def _require_templates(templates: list[str] | None) -> None:
    require(templates is None or bool(templates), "`templates` is empty: null takes the default.")
    for template in templates or []:
        require("{}" in template, f"`templates`: {template!r} has no {{}} where the class name goes.")


@dataclass
class CardConfig:
    """What the model card cannot know by itself."""

    model_name: str | None = None
    """The card's title. Null takes the folder's name."""
    sources: list[str] = field(default_factory=list)
    """YAML files that say of each data file its name, license and attribution."""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """ISO 639 codes of the captions' languages."""

    def __post_init__(self):
        read_card_sources(self.sources)
        for language in self.languages:
            require(
                re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code", language) is not None,
                f"card.languages: {language!r} is no ISO 639 code: write 'en' for English, for instance.",
            )


@dataclass
class CheckpointConfig:
    """When checkpoints are saved (at a signal and at the end too), which are kept, where they are copied to."""

    save_every: int = 1000
    """Steps from one checkpoint to the next."""
    save_minutes: float | None = None
    """Saves one this many minutes after the last one too."""
    keep_last: int = 2
    """How many of the newest stay."""
    keep_every: int | None = None
    """Keeps those of every so many steps for good."""
    best: str | None = None
    """The number by which the best model is kept and exported, instead of the last: the name of an evaluation and
    its number, such as `validation.image_to_text.recall_at_1` or `products.top_1`. It is looked at every `eval_every`
    steps and at the end, and at the start with `eval_at_start`."""
    patience: int | None = None
    """With `best`: the run ends after so many evaluations in a row without a better number (early stopping)."""
    push_to: str | None = None
    """A model repository on the Hub (made private if it is new) to which each is copied, in the background."""

    def __post_init__(self):
        for name in ("save_every", "keep_last", "keep_every", "patience"):
            value = getattr(self, name)
            require(value is None or value > 0, f"checkpoints.{name}={value} must be 1 or more.")
        require(
            self.save_minutes is None or 0 < self.save_minutes < math.inf,
            f"checkpoints.save_minutes={self.save_minutes} must be above 0 and finite.",
        )
        require(
            self.patience is None or self.best is not None,
            f"checkpoints.patience={self.patience} waits for a better number: set checkpoints.best to its name.",
        )
        try:
            validate_repo_id(self.push_to or "owner/name")
        except HFValidationError as error:
            raise RecipeError(f"checkpoints.push_to={self.push_to!r} is no name of a repository: {error}") from error


@dataclass
class TrainConfig:
    """A whole run."""

    model: ModelConfig
    """The model at its start."""
    data: DataConfig
    """The training pairs."""
    steps: int | None = None
    """Updates of the weights. Either it or `epochs` must be set."""
    epochs: float | None = None
    """Passes through the training data (with `data.weights`, through so many times of each), instead of `steps`."""
    stages: list[StageConfig] = field(default_factory=list)
    """Stages with steps of their own, instead of `steps`: small images, short texts and dropped patches first."""
    batch_size: int = 256
    """Pairs of an update, over all processes."""
    micro_batch_size: int | None = None
    """Pairs whose activations a process holds at once; the loss is still the whole batch's. Null holds all of a
    process's part."""
    seed: int = 0
    """Fixes the weights at the start, the order of the pairs, augmentation and dropout."""
    mixed_precision: str = "auto"
    """"no" (float32), "bf16", "fp16" (on a GPU), or "auto": bf16 where the device is fast at it."""
    gradient_checkpointing: bool = False
    """Trades a third more time for the activations of one layer at a time."""
    torch_compile: bool = False
    """Compiles the towers."""
    objective: str = "contrastive"
    """What is minimized: "contrastive", or "contrastive + caption" for a model that writes captions (CoCa); the weight
    of the latter beside 1 is `model.config.caption_loss_weight`."""
    label_smoothing: float = 0.0
    """The fraction of a softmax's targets that is spread over the whole batch."""
    loss_products: str = "float32"
    """What the loss multiplies in: "float32", or "bfloat16", for devices that multiply it into float32 sums, such as
    GPUs (one of AMD's CPUs, which does not, took 1.2 times as long); gradients differ by 0.3%."""
    max_bad_steps: int = 10
    """A step whose loss or gradient is not finite changes no weight; after so many in a row the run stops."""
    ema_decay: float | None = None
    """Keeps an exponential moving average of the weights, which is what is evaluated and exported."""
    timeout_minutes: float = 60.0
    """How long a process waits for another one before the run ends. NCCL's own ten minutes are less than a file
    system may take to write a checkpoint."""
    device_teraflops: float | None = None
    """The peak of a device, in 10^12 operations a second: the log's `mfu` is the fraction of it that the model's own
    arithmetic takes. Null takes the maker's for bf16 on GPUs that are known, and logs none on others."""
    log_every: int = 10
    """Steps from one line of numbers to the next."""
    log_with: list[str] | None = None
    """Trackers that show the numbers, besides `metrics.jsonl`: "tensorboard", "wandb", "trackio", "mlflow", or another
    that Accelerate knows. Null takes TensorBoard where it is installed."""
    eval_every: int = 1000
    """Steps from one evaluation with `during_training` to the next."""
    eval_at_start: bool = False
    """Whether all evaluations are also made before the first step. The results and the card then show both."""
    templates: list[str] | None = None
    """Texts around class names, `{}` in their place, with which the model is evaluated. They are saved in its
    `config.json` (`zero_shot_templates`), and every later evaluation and `classify` use them by default. Null leaves
    those of the model it starts from, else "a photo of a {}."."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are saved, and which are kept."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes to training images."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its schedule."""
    lora: LoraConfig | None = None
    """Trains low-rank adapters instead of the model's own weights. Null trains those."""
    distillation: DistillationConfig | None = None
    """Learning from teachers too: from `data.teachers`, or the model's own start. Null has none."""
    evaluations: dict[str, EvaluationConfig] = field(default_factory=dict)
    """Evaluations by name; the names become file names."""
    card: CardConfig = field(default_factory=CardConfig)
    """What the model card cannot know by itself."""

    def __post_init__(self):
        for name in ("steps", "log_every", "eval_every", "max_bad_steps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be 1 or more.")
        self._require_one_length()
        require(self.batch_size > 1, f"batch_size={self.batch_size}: a contrastive loss needs 2 pairs or more.")
        require(0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0 to 2**63 - 1.")
        require(
            self.device_teraflops is None or 0 < self.device_teraflops < math.inf,
            f"device_teraflops={self.device_teraflops} must be above 0 and finite, or null.",
        )
        require(
            0 < self.timeout_minutes < math.inf,
            f"timeout_minutes={self.timeout_minutes} must be above 0 and finite.",
        )
        require(
            self.mixed_precision in ("auto", "no", "bf16", "fp16"),
            f"mixed_precision={self.mixed_precision!r} is not known: use 'auto', 'no', 'bf16' or 'fp16'.",
        )
        require(
            self.micro_batch_size is None or self.micro_batch_size > 0,
            f"micro_batch_size={self.micro_batch_size} must be 1 or more, or null for all of a process's part.",
        )
        self._require_an_objective()
        require(
            0 <= self.label_smoothing < 1, f"label_smoothing={self.label_smoothing} must be 0 or more, and below 1."
        )
        require(
            self.loss_products in ("float32", "bfloat16"),
            f"loss_products={self.loss_products!r} is not known: use 'float32' or 'bfloat16'.",
        )
        require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay={self.ema_decay} must lie between 0 and 1, or be null for no average.",
        )
        if self.steps is not None or self.stages:
            self._resolve_warmup(self.total_steps)
        self._require_what_goes_with_adapters()
        self._require_teachers()
        self._add_validation()
        self._require_a_known_best()
        _require_templates(self.templates)
        _require_distinct_names(list(self.evaluations))

    @property
    def total_steps(self) -> int:
        """Of a recipe whose `epochs` were counted (`hf_clip.training.lengths`)."""
        if self.stages:
            return sum(stage.steps for stage in self.stages)
        assert self.steps is not None
        return self.steps

    def _require_one_length(self) -> None:
        require(
            self.epochs is None or 0 < self.epochs < math.inf, f"epochs={self.epochs} must be above 0, and finite."
        )
        require(
            self.steps is not None or self.epochs is not None or bool(self.stages),
            "steps and epochs are both missing: every recipe must set one of them.",
        )
        require(
            self.steps is None or self.epochs is None,
            f"steps={self.steps} and epochs={self.epochs} are two lengths of one run: remove one.",
        )
        other = "steps" if self.steps is not None else "epochs"
        require(
            not self.stages or (self.steps is None and self.epochs is None),
            f"{other}={getattr(self, other)} and stages are two lengths of one run, whose steps are those of the "
            f"stages: remove {other}.",
        )

    def _require_an_objective(self) -> None:
        require(
            self.objective in OBJECTIVES,
            f"objective={self.objective!r} is not known: use {' or '.join(map(repr, OBJECTIVES))}.",
        )
        mixup = self.augmentation.mixup
        require(
            mixup == 0 or self.objective != WRITES_CAPTIONS,
            f"augmentation.mixup={mixup} makes images that no caption describes: set it to 0 with "
            f"objective={self.objective}.",
        )

        for name, evaluation in self.evaluations.items():
            require(
                evaluation.task != "captions" or self.objective == WRITES_CAPTIONS,
                f"evaluations.{name}.task=captions is for a model that writes captions: set objective to "
                f"{WRITES_CAPTIONS}, or another task.",
            )

    def _require_what_goes_with_adapters(self) -> None:
        if self.lora is None:
            return
        optimizer = self.optimizer
        require(
            optimizer.algorithm == "adamw",
            f"optimizer.algorithm={optimizer.algorithm} is for whole matrices, and lora trains their factors: use "
            "adamw.",
        )
        for tower in ("vision_tower", "text_tower"):
            groups = getattr(optimizer, tower).trainable_groups
            require(
                groups is None,
                f"optimizer.{tower}.trainable_groups={groups} does not go with lora, which says by lora.towers and "
                "lora.targets what is trained: remove one.",
            )

    def _require_teachers(self) -> None:
        teachers, distillation = self.data.teachers, self.distillation
        if distillation is None:
            require(not teachers, f"data.teachers={teachers} are learned from with distillation: set its weight.")
            return
        require(
            bool(teachers) or distillation.from_start,
            "distillation has no teacher: set data.teachers, or distillation.from_start to true.",
        )
        require(
            self.augmentation.mixup == 0,
            f"augmentation.mixup={self.augmentation.mixup} makes images of which no teacher knows the caption: set it "
            "to 0 with distillation.",
        )

    def _resolve_warmup(self, steps: int) -> None:
        optimizer = self.optimizer
        if optimizer.warmup_fraction is not None:
            warmup = min(round(optimizer.warmup_fraction * steps), steps - 1)
            self.optimizer = replace(optimizer, warmup_steps=warmup, warmup_fraction=None)
        elif optimizer.warmup_steps is None:
            self.optimizer = replace(optimizer, warmup_steps=min(WARMUP_STEPS, steps // 10))
        require(
            (self.optimizer.warmup_steps or 0) < steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of steps={steps}: lower it, or "
            "train longer.",
        )

    def _add_validation(self) -> None:
        """The evaluation of what `data` keeps for validation."""
        data = self.data
        if not data.has_validation:
            return
        of_labels = data.label_templates is not None
        own = EvaluationConfig(
            task="zero-shot" if of_labels else "retrieval",
            label_column=data.label_column,
            templates=data.label_templates,
            data=data.train,
            split=data.validation_split or data.split,
            where=data.where,
            image_column=data.image_column,
            caption_columns=data.caption_columns,
            join=data.join,
            concept_column=data.concept_column,
            during_training=True,
        )
        given = self.evaluations.get(VALIDATION, own)
        require(
            given == own,
            f"evaluations.{VALIDATION} is the name of the evaluation of what data keeps for validation: rename yours.",
        )
        self.evaluations = {VALIDATION: own, **self.evaluations}

    def _require_a_known_best(self) -> None:
        best = self.checkpoints.best
        if best is None:
            return
        name, _, number = best.partition(".")
        require(
            name in self.evaluations,
            f"checkpoints.best={best} begins with no evaluation's name: there are "
            f"{', '.join(self.evaluations) or 'none'}.",
        )
        evaluation = self.evaluations[name]
        known = NUMBERS_OF_TASKS[evaluation.task]
        require(
            number in known,
            f"checkpoints.best={best} names no number of a {evaluation.task} evaluation: write {name}. and one of "
            f"{', '.join(known)}.",
        )
        require(
            evaluation.during_training,
            f"checkpoints.best={best} is looked at every eval_every steps: set evaluations.{name}.during_training to "
            "true.",
        )


def _require_distinct_names(names: list[str]) -> None:
    """Names of evaluations are file names, and titles that the Hub must tell apart by letters and digits alone."""
    slugs: dict[str, str] = {}
    for name in names:
        require(
            re.fullmatch(r"[\w-]{1,64}", name) is not None,
            f"evaluations: {name!r} cannot be a file's name: use letters, digits, '_' and '-', 64 at most.",
        )
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        require(bool(slug), f"evaluations: {name!r} has none of the letters a to z and no digit: the Hub needs one.")
        require(
            slug not in slugs,
            f"evaluations: {name!r} and {slugs.get(slug)!r} are one name on the Hub, where only the letters a to z "
            "and digits tell them apart: rename one.",
        )
        slugs[slug] = name
