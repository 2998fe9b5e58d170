"""What makes pixels and ids for a model, as the source of the model has it: image processor, tokenizer, padding."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tokenizers import Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.image_utils import SizeDict
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_clip.model.configuration_hf_clip import (
    HFCLIPConfig,
    HFCLIPSiglipConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.processing_hf_clip import CLEANINGS, HFCLIPProcessor
from hf_clip.model.tokenization_hf_clip import HFCLIPTokenizer, lowers_texts, set_text_options, text_options

from .check_processor import sees_padding
from .confirm import refuse_absurd_counts
from .errors import ConversionError, one_line_errors, short_reason
from .hub_files import SETTINGS, HubOptions, fetch_settings
from .locating import MAX_CONFIG_BYTES, read_json

# OpenAI's transform, and OpenCLIP's for every weights file that does not come with settings of its own.
OPENAI_TRANSFORM = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
# What OpenCLIP's settings hold besides: the size, which it takes from the model, and the only mode that it has.
_FURTHER_SETTINGS = {"size", "mode"}
_INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    # In training a random one of the two; OpenCLIP's other transforms take bicubic.
    "random": Image.Resampling.BICUBIC,
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# Of a vocabulary with its merges: Gemma's, the largest of a published CLIP, has 130 a token.
_MAX_BYTES_PER_TOKEN = 1000
_SPARE_VOCABULARY_BYTES = 1024 * 1024
_VOCABULARY_FILES = (*_TOKENIZER_FILES, "merges.txt")
# Of transformers, those that this package's does the work of, by the name before "ImageProcessor".
_IMAGE_PROCESSORS: dict[str, Callable[..., Any]] = {
    "CLIP": CLIPImageProcessorPil,
    "ChineseCLIP": ChineseCLIPImageProcessorPil,
    "Siglip": SiglipImageProcessorPil,
    "Siglip2": Siglip2ImageProcessorPil,
    "OwlViT": OwlViTImageProcessorPil,
    "Bit": BitImageProcessorPil,
    "ViT": ViTImageProcessorPil,
}
_IMAGE_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "pad_size", "max_num_patches", "patch_size",
)  # fmt: skip
_OTHER_IMAGE_PROCESSORS = {
    "Owlv2": "which fills images to a square on the right and below, and blurs them before it resizes them",
}
_SIGLIP2_TOKENIZERS = ("GemmaTokenizer", "GemmaTokenizerFast", "Siglip2Tokenizer")
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "HFCLIPTokenizer")


def build_image_processor(settings: Mapping[str, Any], size: int) -> HFCLIPImageProcessor:
    """The image processor for OpenCLIP's `preprocess_cfg` and images of `size` pixels a side.

    `resize_mode` is "shortest" (the shorter side becomes `size`, and the middle is kept), "squash" (both sides do) or
    "longest" (the longer side does, and the rest is filled with `fill_color`). What is missing is OpenAI's.

    Raises:
        ConversionError: for an unknown setting, and for one of an unknown value.
    """
    wrong = set(settings) - set(OPENAI_TRANSFORM) - _FURTHER_SETTINGS
    settings = OPENAI_TRANSFORM | {key: value for key, value in settings.items() if value is not None}
    mode = settings["resize_mode"]
    sizes = {
        "shortest": {"shortest_edge": size},
        "longest": {"longest_edge": size},
        "squash": {"height": size, "width": size},
    }
    if wrong or str(mode) not in sizes or str(settings["interpolation"]) not in _INTERPOLATIONS:
        raise ConversionError(
            f"preprocessing {dict(settings)} cannot be read: it has {', '.join(OPENAI_TRANSFORM)} alone, with "
            f"resize_mode {' or '.join(sizes)} and interpolation {' or '.join(_INTERPOLATIONS)}."
        )
    mean, std = (
        list(value) if isinstance(value, list | tuple) else [value] * 3
        for value in (settings["mean"], settings["std"])
    )
    return HFCLIPImageProcessor(
        size=sizes[mode],
        crop_size={"height": size, "width": size},
        do_center_crop=mode != "squash",
        resample=int(_INTERPOLATIONS[settings["interpolation"]]),
        image_mean=mean,
        image_std=std,
        fill_color=settings["fill_color"],
    )


def in_patches(image_processor: HFCLIPImageProcessor, vision: HFCLIPVisionConfig) -> HFCLIPImageProcessor:
    """One with the same colors for a NaFlex tower, which takes images at their own aspect."""
    names = ("resample", "image_mean", "image_std", "rescale_factor")
    side = vision.image_size // vision.patch_size
    return HFCLIPImageProcessor(
        patch_size=vision.patch_size,
        max_num_patches=side**2,
        **{name: getattr(image_processor, name) for name in names},
    )


def check_settings_files(folder: Path, vocab_size: int | None = None) -> None:
    """Raises ConversionError for files beside the weights that are longer than any model's, before they are read.

    Args:
        vocab_size: of the model, confirmed by its weights, which bounds its tokenizer's files; None leaves these out.
    """
    if (folder / "config.json").is_file():
        refuse_absurd_counts(read_json(folder / "config.json"), folder / "config.json")
    for file in sorted(folder.iterdir()):
        is_vocabulary = file.name in _VOCABULARY_FILES
        if not SETTINGS.fullmatch(file.name) or (is_vocabulary and vocab_size is None):
            continue
        if not is_vocabulary and file.name.endswith(".index.json"):
            continue
        limit = MAX_CONFIG_BYTES
        if is_vocabulary and vocab_size is not None:
            limit = _SPARE_VOCABULARY_BYTES + _MAX_BYTES_PER_TOKEN * vocab_size
        if (size := file.stat().st_size) > limit:
            of = f"a model of {vocab_size} tokens" if is_vocabulary else "settings"
            raise ConversionError(f"{file} has {size} bytes, more than the {limit} that {of} can need.")


def load_image_processor(folder: Path) -> HFCLIPImageProcessor:
    """The image processor for the settings in a folder of transformers'.

    What a file does not say, and what a number in it means, is as in transformers' own class of the name in it: files
    of 2021 have a `feature_extractor_type`, one number for a size, and half of the switches.

    Raises:
        ConversionError: if there are none, and if they are those of a processor that does something else.
    """
    try:
        settings, _ = HFCLIPImageProcessor.get_image_processor_dict(folder)
    except OSError as error:
        raise ConversionError(
            f"{folder} has no preprocessor_config.json, which says how images become pixels: put it there, or pass "
            "`preprocessing` ({'mean': ..., 'std': ..., 'interpolation': ..., 'resize_mode': ...})."
        ) from error
    kinds = [settings.pop(name, None) for name in ("image_processor_type", "feature_extractor_type")]
    kind = str(kinds[0] or kinds[1] or "CLIPImageProcessor")
    family = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    given = {key: value for key, value in settings.items() if value is not None}
    if family == "HFCLIP":
        return cast(HFCLIPImageProcessor, HFCLIPImageProcessor.from_dict(given))
    if family not in _IMAGE_PROCESSORS:
        why = _OTHER_IMAGE_PROCESSORS.get(family, "which has no counterpart here")
        article = "an" if kind[0] in "AEIOU" else "a"
        raise ConversionError(
            f"{folder} has {article} {kind:.80}, {why}: pass `preprocessing` ({{'mean': ..., 'std': ..., "
            "'interpolation': ..., 'resize_mode': ...}). Image processors of transformers that can be read: "
            f"{', '.join(_IMAGE_PROCESSORS)}."
        )
    theirs = _IMAGE_PROCESSORS[family](**given)
    values = {name: getattr(theirs, name, None) for name in _IMAGE_SETTINGS}
    # Where their class crops nothing unless told to, it has no size for it either.
    values["do_center_crop"] = bool(values["do_center_crop"])
    return HFCLIPImageProcessor(**{name: value for name, value in values.items() if value is not None})


def openai_tokenizer(text: HFCLIPTextConfig) -> HFCLIPTokenizer:
    """OpenAI's vocabulary with a model's context length.

    Raises:
        ConversionError: if the model has another number of tokens.
    """
    # OpenAI pads with zeros, which are a "!" of the vocabulary, and only some models see it.
    options: dict[str, Any] = {"pad_token": "!"} if sees_padding(text) or text.tower == "class_token" else {}
    tokenizer = HFCLIPTokenizer(model_max_length=text.max_position_embeddings, **options)
    if len(tokenizer) != text.vocab_size:
        raise ConversionError(
            f"the model knows {text.vocab_size} tokens, OpenAI's vocabulary has {len(tokenizer)}: pass `tokenizer` "
            "(the folder or Hub id of the model's own)."
        )
    return tokenizer


def load_tokenizer(
    name: str | Path | PreTrainedTokenizerBase, text: HFCLIPTextConfig, hub: HubOptions | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id, for texts of a model's length; OpenAI's kind as `HFCLIPTokenizer`.

    One that is given stays as it is.

    Raises:
        ConversionError: if there are no files of one, they are longer than the model's vocabulary makes them, or a
            library that it needs is missing.
    """
    if isinstance(name, PreTrainedTokenizerBase):
        return name
    folder = Path(name)
    if not folder.is_dir():
        folder = fetch_settings(str(name), hub or HubOptions())
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ConversionError(
            f"{name} has no tokenizer ({', '.join(_TOKENIZER_FILES)}): put its files there, or pass `tokenizer` (a "
            "folder or Hub id that has them)."
        )
    check_settings_files(folder, text.vocab_size)
    length = text.max_position_embeddings
    try:
        if _is_clip_tokenizer(folder):
            return HFCLIPTokenizer.from_pretrained(folder, model_max_length=length)
        with one_line_errors(f"the tokenizer of {name}"):
            tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=length, trust_remote_code=False)
    except (ImportError, OSError, ValueError) as error:
        raise ConversionError(f"the tokenizer of {name} cannot be made ({short_reason(error)[:300]}).") from error
    if isinstance(tokenizer, HFCLIPTokenizer) or type(tokenizer).__name__ not in _CLIP_TOKENIZERS:
        return tokenizer
    return HFCLIPTokenizer.from_pretrained(folder, model_max_length=length)


def _is_clip_tokenizer(folder: Path) -> bool:
    """Whether a folder says that its tokenizer is CLIP's, or holds the two files that CLIP's had in 2021 alone."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        return read_json(settings).get("tokenizer_class") in _CLIP_TOKENIZERS
    return (folder / "merges.txt").is_file()


def cleaning_of_transformers(config: HFCLIPConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What is done to texts before a tokenizer of a transformers folder. One that this package saved says it itself.

    SigLIP 2 was trained on texts in lower case. Its repositories name Gemma's tokenizer, which keeps the case;
    transformers' `Siglip2Tokenizer`, which does not, came later.
    """
    is_siglip2 = isinstance(config, HFCLIPSiglipConfig) and type(tokenizer).__name__ in _SIGLIP2_TOKENIZERS
    return "lower" if is_siglip2 and "text_cleaning" not in tokenizer.init_kwargs else None


def lower_case(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that lowers texts itself, as transformers' `Siglip2Tokenizer` does, from one that keeps their case.

    transformers' pipelines ask the tokenizer alone. Gemma's class would build its normalizer again when it is loaded,
    the general one takes what its file says. One without a fast backend stays.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or lowers_texts(tokenizer):
        return tokenizer
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own = normalizers.Sequence([backend.normalizer] if backend.normalizer is not None else [])
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), own])
    special = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    lowered = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **special,
    )
    set_text_options(lowered, **text_options(tokenizer))
    return lowered


def strip_separator(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """OpenCLIP's `strip_sep_token`: what ends a text is the padding, id 0, in the separator's place."""
    cls_token, pad_token = tokenizer.cls_token, tokenizer.pad_token
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.pad_token_id != 0 or cls_token is None:
        raise ConversionError(f"strip_sep_token with a {type(tokenizer).__name__}: it is for BERT's vocabularies.")
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{cls_token} $A {pad_token}",
        special_tokens=[(cls_token, tokenizer.cls_token_id), (pad_token, 0)],
    )
    special = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.model_max_length, **special)


def open_clip_tokenizer(
    name: str | Path | PreTrainedTokenizerBase, options: Mapping[str, Any], text: HFCLIPTextConfig, hub: HubOptions
) -> tuple[PreTrainedTokenizerBase, str | None]:
    """OpenCLIP's tokenizer and what it does to a text before.

    Args:
        name: a folder, a Hub id, or "clip" for OpenAI's vocabulary; or a tokenizer, whose own cleaning goes first.
        options: OpenCLIP's `tokenizer_kwargs`.

    Raises:
        ConversionError: if the tokenizer cannot be had, or an option has no counterpart here.
    """
    options = dict(options)
    cleaning, strips = options.pop("clean", None), options.pop("strip_sep_token", False)
    if wrong := [key for key, value in options.items() if value not in (None, "", False)]:
        raise ConversionError(f"tokenizer_kwargs have {', '.join(wrong)}: clean and strip_sep_token can be read.")
    if name == "clip":
        if cleaning not in (None, "lower"):
            raise ConversionError(f"clean={cleaning!r} with OpenAI's vocabulary: 'lower' alone can be read.")
        return openai_tokenizer(text), None
    tokenizer = load_tokenizer(name, text, hub)
    if strips:
        tokenizer = strip_separator(tokenizer)
    own = text_options(tokenizer)["text_cleaning"] if isinstance(name, PreTrainedTokenizerBase) else None
    cleaning = own or cleaning or "whitespace"
    if cleaning not in CLEANINGS:
        raise ConversionError(f"clean={cleaning!r} is unknown: OpenCLIP has {', '.join(CLEANINGS)}.")
    # CLIP's tokenizer cleans whitespace and lowers by itself.
    if isinstance(tokenizer, HFCLIPTokenizer) and cleaning in ("whitespace", "lower"):
        return tokenizer, None
    if cleaning == "lower" and lowers_texts(lowered := lower_case(tokenizer)):
        # There it repairs texts and their spaces too, which a tokenizer does not.
        return lowered, "whitespace"
    return tokenizer, cleaning


def scale_image_processor(processor: HFCLIPProcessor, factor: float) -> None:
    """Resize and crop of a processor for images `factor` times as large, in place; of NaFlex, the patches."""
    image_processor = processor.image_processor
    if image_processor.max_num_patches is not None:
        # Whole patches of the side; what rounding takes from a whole number is given back.
        image_processor.max_num_patches = int(math.isqrt(image_processor.max_num_patches) * factor + 1e-6) ** 2
        return
    for name in ("size", "crop_size"):
        edges = dict(getattr(image_processor, name) or {})
        scaled = {edge: round(value * factor) for edge, value in edges.items() if value}
        setattr(image_processor, name, SizeDict(**scaled) if scaled else None)


def build_processor(
    config: HFCLIPConfig,
    image_processor: HFCLIPImageProcessor,
    tokenizer: PreTrainedTokenizerBase,
    text_cleaning: str | None = None,
) -> HFCLIPProcessor:
    """The two as one, with the padding that the model's text tower needs, and a cleaning, "none" among them."""
    padding = "max_length" if sees_padding(config.text_config) else "longest"
    processor = HFCLIPProcessor(image_processor, tokenizer, text_padding=padding)
    if text_cleaning is not None:
        set_cleaning(processor, text_cleaning)
    return processor


def set_cleaning(processor: HFCLIPProcessor, text_cleaning: str) -> None:
    """Sets what is done to texts, in place: a cleaning of `CLEANINGS`, or "none". What a tokenizer does itself stays.

    Raises:
        ValueError: for another one.
    """
    if text_cleaning == "lower" and not isinstance(processor.tokenizer, HFCLIPTokenizer):
        processor.tokenizer = lower_case(processor.tokenizer)
    processor.text_cleaning = None if text_cleaning == "none" else text_cleaning
