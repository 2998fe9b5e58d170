"""The sections of a recipe about its pairs: where they come from, and how images are changed at random.

The text below each field is its entry in the recipe reference.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from hf_clip.sources import CaptionTable

from .recipe_error import require


def teacher_columns(name: str) -> tuple[str, str]:
    """The columns of a stored teacher: of images, and of their captions."""
    return f"{name}_image", f"{name}_captions"


@dataclass
class JoinConfig:
    """Captions of another table, which belong to the images with the same value in a column."""

    data: list[str] = field(default_factory=list)
    """CSV, TSV, JSON lines or parquet files, or a folder of such. The table is held in memory."""
    key_column: str = ""
    """The column that the table and the images' data have, such as an id. Several rows with one value are several
    captions; images whose value the table lacks keep their own."""
    caption_column: str | None = None
    """The table's column of captions. Null finds it by its name."""
    language_column: str | None = None
    """The table's column that says in which language a caption is: for evaluations with `task: languages`."""
    where: dict[str, Any] = field(default_factory=dict)
    """Keeps the table's rows whose columns have the given values, or one of a list of values, such as languages."""

    def __post_init__(self):
        require(bool(self.data), "`data` is empty: give it the table's file.")
        require(bool(self.key_column), "`key_column` is missing: name one that the table and the images' data have.")

    def table(self) -> CaptionTable:
        """The table, not yet read."""
        return CaptionTable(self.data, self.key_column, self.caption_column, self.language_column, self.where)


@dataclass
class DataConfig:
    """Where the training pairs come from, and in what order they are read."""

    train: list[str] = field(default_factory=list)
    """Files, folders, addresses or Hub ids (see `hf_clip.open_source`)."""
    weights: list[float] | None = None
    """One number for each entry of `train`: how often an epoch passes through it (2 is twice, 0.5 every other epoch).
    Null reads all files of a kind as one source."""
    split: str | None = None
    """The split to use, if the data has several."""
    where: dict[str, Any] = field(default_factory=dict)
    """Keeps the rows whose columns have the given values, or one of a list of values."""
    validation_split: str | None = None
    """The split of the same data for the evaluation `validation`, every `eval_every` steps: of retrieval, or
    zero-shot with `label_templates`."""
    validation_fraction: float | None = None
    """The fraction of images that are kept out of training for that evaluation, instead of a split. Which they are
    depends on their content (of files, on their names) alone, so that every run keeps the same, and no image is on
    both sides."""
    image_column: str | None = None
    """The column of images. Null finds it by its name."""
    caption_columns: list[str] | None = None
    """The columns of captions, of which each step draws one. Null finds them by their names."""
    join: JoinConfig | None = None
    """Captions of another table, from which a step draws too. They follow those of `caption_columns`, null of which is
    then none. Null has no other table."""
    label_column: str | None = None
    """The column of class names, for `label_templates`. Null finds it by its name."""
    label_templates: list[str] | None = None
    """Makes captions of class names, in place of `{}`, such as "a photo of a {}.": for folders of classes, and other
    data of labels. Images of one class are positives of each other. Null reads captions."""
    captions_per_image: int = 1
    """Captions of an image that each step draws, and that are all its positives. An image with fewer repeats some."""
    synthetic_columns: list[str] = field(default_factory=list)
    """Columns of captions that were made by a model, of which a step draws one with `synthetic_probability`."""
    synthetic_probability: float = 0.5
    """How often a caption is one of `synthetic_columns`, where a row has both kinds."""
    negative_columns: list[str] = field(default_factory=list)
    """Columns of captions that are wrong for their image, such as "a cat left of a dog" (hard negatives). Needs
    `negative_weight`."""
    negative_weight: float = 0.0
    """The weight of the loss that tells a caption from a hard negative of its image; that of captions is 1."""
    teachers: list[str] = field(default_factory=list)
    """Names of stored teachers, which `hf-clip teach` wrote into the columns NAME_image and NAME_captions. Needs
    `distillation`; of several, their divergences are averaged."""
    concept_column: str | None = None
    """The column whose equal values mark images of one thing: pairs that are positives of each other. Null finds it by
    its name."""
    keyword_columns: list[str] = field(default_factory=list)
    """Columns of words for what an image shows, for a second contrastive loss. Needs `keyword_weight`."""
    keyword_weight: float = 0.0
    """The weight of the contrastive loss of images and keywords; that of captions is 1."""
    max_keywords: int = 6
    """A keyword text is 1 to this many of a row's keywords, in random order."""
    lanes: int | None = None
    """Logical shards, fixed for a run, that processes share; the order of the pairs depends on their number, which
    divides `batch_size` and is divided by the number of processes. Null chooses one of up to 32 that most do, or of up
    to 4 a process where there are more than 8; a resumed run keeps it."""
    workers: int | None = None
    """Threads of each process that decode. Null takes one a core, 0 decodes between the steps."""
    shuffle_block: int | None = None
    """Pairs, over all lanes, that wait as undecoded bytes to be shuffled together; as many are read ahead. Null takes
    8192, and at least 256 of each lane."""
    decoded_cache_gb: float = 1.0
    """Data whose images, at the model's size, fit into this many gigabytes of each process is decoded once."""
    shard_cache_gb: float = 16.0
    """Row groups and tars at addresses that each process keeps on its disk (in TMPDIR), those fetched ahead among
    them."""
    max_bad_fraction: float = 0.05
    """The run stops where a larger fraction of the pairs cannot be read."""

    def __post_init__(self):
        require(bool(self.train), "data.train is empty: give it at least one file, folder or Hub id.")
        require(
            self.weights is None or len(self.weights) == len(self.train),
            f"data.weights={self.weights} must have {len(self.train)} numbers, one for each entry of data.train.",
        )
        for weight in self.weights or []:
            require(
                0.001 <= weight <= 1000,
                f"data.weights: {weight} must lie in 0.001 to 1000: it counts passes an epoch. Remove the entry of "
                "data.train to give it none.",
            )
        for name in ("workers", "decoded_cache_gb", "shard_cache_gb"):
            value = getattr(self, name)
            require(value is None or 0 <= value < math.inf, f"data.{name}={value} must be 0 or more, and finite.")
        require(self.keyword_weight >= 0, f"data.keyword_weight={self.keyword_weight} must be 0 or more.")
        self._require_what_goes_together()
        require(
            bool(self.keyword_columns) == (self.keyword_weight > 0),
            f"data.keyword_columns={self.keyword_columns} and data.keyword_weight={self.keyword_weight} go together: "
            "set both, or neither.",
        )
        require(
            self.validation_fraction is None or 0 < self.validation_fraction < 1,
            f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1.",
        )
        require(
            self.validation_fraction is None or self.validation_split is None,
            f"data.validation_split={self.validation_split} and data.validation_fraction={self.validation_fraction} "
            "are two ways to validate: remove one.",
        )
        require(
            0 <= self.max_bad_fraction <= 1,
            f"data.max_bad_fraction={self.max_bad_fraction} is not a fraction: use 0 to 1.",
        )
        for name in ("lanes", "max_keywords", "shuffle_block", "captions_per_image"):
            value = getattr(self, name)
            require(value is None or value > 0, f"data.{name}={value} must be 1 or more.")

    def _require_what_goes_together(self) -> None:
        require(
            bool(self.negative_columns) == (self.negative_weight > 0),
            f"data.negative_columns={self.negative_columns} and data.negative_weight={self.negative_weight} go "
            "together: set both, or neither.",
        )
        require(
            0 <= self.negative_weight < math.inf,
            f"data.negative_weight={self.negative_weight} must be 0 or more, and finite.",
        )
        require(
            0 <= self.synthetic_probability <= 1,
            f"data.synthetic_probability={self.synthetic_probability} must lie in 0 to 1.",
        )
        require(
            self.label_templates is None or bool(self.label_templates),
            "data.label_templates is empty: null reads captions.",
        )
        for template in self.label_templates or []:
            require("{}" in template, f"data.label_templates: {template!r} has no {{}} where the class name goes.")
        require(
            self.label_templates is None or self.caption_columns is None,
            f"data.caption_columns={self.caption_columns} and data.label_templates are two kinds of captions: remove "
            "one.",
        )
        require(
            self.label_templates is None or self.join is None,
            "data.join and data.label_templates are two kinds of captions: remove one.",
        )
        require(
            self.label_column is None or self.label_templates is not None,
            f"data.label_column={self.label_column} is for captions made of class names: set data.label_templates.",
        )

    @property
    def files(self) -> list[str]:
        """What a run reads: `train`, and the table that is joined."""
        return self.train if self.join is None else [*self.train, *self.join.data]

    @property
    def extra_columns(self) -> list[str]:
        """Columns that are read besides images, captions and what names them."""
        stored = [column for name in self.teachers for column in teacher_columns(name)]
        return list(dict.fromkeys([*self.synthetic_columns, *self.negative_columns, *stored]))

    @property
    def texts_per_image(self) -> int:
        """Texts that are encoded for each image: captions, keywords, a hard negative."""
        return self.captions_per_image + bool(self.keyword_weight) + bool(self.negative_weight)

    @property
    def has_validation(self) -> bool:
        """Whether a part of the data is kept for the evaluation `validation`."""
        return self.validation_split is not None or self.validation_fraction is not None


@dataclass
class AugmentationConfig:
    """Strengths of the random changes to a training image, 0 for none. See `hf_clip.training.augmentation`."""

    rotation: float = 0.0
    """The largest rotation, in degrees."""
    scale: float = 0.0
    """The largest logarithm of the factor on an image's size."""
    aspect: float = 0.0
    """The largest logarithm of the factor on an image's aspect ratio."""
    shear: float = 0.0
    """The largest shear."""
    shift: float = 0.0
    """The largest shift, as a fraction of the side."""
    flip: float = 0.0
    """The probability of a mirror image."""
    brightness: float = 0.0
    """The largest logarithm of the factor on all colors."""
    channels: float = 0.0
    """The largest logarithm of the factor on each single color."""
    saturation: float = 0.0
    """The largest logarithm of the factor on saturation."""
    hue: float = 0.0
    """The largest turn of the hues, as a fraction of the color wheel."""
    gray: float = 0.0
    """The probability of an image without colors."""
    blur: float = 0.0
    """The strength of blurring and sharpening, 0 to 1."""
    cutout: float = 0.0
    """The probability of a covered rectangle."""
    cutout_size: float = 0.35
    """The largest side of that rectangle, as a fraction of the image's."""
    crop: float = 0.0
    """For images with `crop_words`, the probability that a band of the disc for which the image is taken is stretched
    to a lying rectangle: for flags, which are the same in any outline."""
    mixup: float = 0.0
    """The parameter of the Beta distribution from which the fractions of two images in one are drawn (Zhang et al.
    2018), two by two within a batch."""
    no_flip_words: list[str] = field(default_factory=lambda: ["left", "right", "clockwise"])
    """Images whose caption holds one of these words are not flipped: a mirror would make the caption false."""
    crop_words: list[str] = field(default_factory=list)
    """Words in captions of images to which `crop` applies."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in ("flip", "gray", "crop", "cutout", "cutout_size", "blur"):
                require(0 <= value <= 1, f"augmentation.{name}={value} must lie in 0 to 1.")
            elif name not in ("no_flip_words", "crop_words"):
                require(0 <= value < math.inf, f"augmentation.{name}={value} must be 0 or more, and finite.")
