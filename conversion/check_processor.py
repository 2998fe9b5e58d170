"""Whether a processor makes inputs for a model: what its files say is compared with the config, and fixed or refused.

Padding, cleaning and "mask or none" stand in the processor's file, apart from the model whose embeddings depend on
them. Where the config tells which is right, the processor is set right, with a line in the log; where files
contradict each other, and nothing tells which is right, ConversionError says so.
"""

import logging
import math
from typing import cast

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from hf_clip.model.configuration_hf_clip import (
    POOL_AT_HIGHEST_ID,
    HFCLIPConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .errors import ConversionError, short_reason

logger = logging.getLogger(__name__)

_SAMPLE_TEXT = "a photo of 2 cats"
# An edge to which images are resized before they are cropped, over that of the model's images.
_MAX_RESIZE = 16
# Image towers that take images of one size.
_FIXED_SIZE = ("vit", "resnet", "convnet")
# Normalized pixels are numbers around 0. Larger ones than these end in NaN within the model.
_MAX_PIXEL = 1e4


def sees_padding(text: HFCLIPTextConfig) -> bool:
    """Whether what is behind a text's end reaches its embedding. Towers of transformers models mask it."""
    if text.tower != "clip":
        return False
    return not text.is_causal or text.pooling == "last"


def fit_processor(processor: HFCLIPProcessor, config: HFCLIPConfig, *, is_own: bool) -> None:
    """Makes a processor and a config agree, in place.

    Args:
        is_own: both are of this package, which writes the ids of the tokenizer into the config.

    Raises:
        ConversionError: where they do not belong together.
    """
    text = config.text_config
    _fit_vocabulary(processor.tokenizer, text)
    if is_own or text.tower == "class_token":
        _require_same_ids(processor.tokenizer, text)
    text.pad_token_id, text.bos_token_id = processor.tokenizer.pad_token_id, processor.tokenizer.bos_token_id
    _fit_end(processor.tokenizer, text)
    _fit_texts(processor, text)
    _check_sizes(processor.image_processor, config.vision_config)
    _check_pixels(processor.image_processor, config.vision_config)
    _try(processor, config.vision_config)


def _try(processor: HFCLIPProcessor, vision: HFCLIPVisionConfig) -> None:
    """Raises ConversionError unless texts of two lengths and an image that is no square become a batch."""
    try:
        texts = [_SAMPLE_TEXT, f"{_SAMPLE_TEXT} {_SAMPLE_TEXT}"]
        inputs = processor(images=[Image.new("RGB", (5, 4))], text=texts, return_tensors="pt")
    except Exception as error:
        raise ConversionError(
            f"its processor makes no batch of two texts and an image ({short_reason(error)}): the files of tokenizer "
            "and processor lack a part, are of another model, or ask for another transformers than "
            f"{transformers_version}."
        ) from error
    if vision.tower == "naflex":
        # Shapes that `_check_sizes` has compared.
        return
    found, image_size = tuple(inputs["pixel_values"].shape[-2:]), vision.image_size
    if found != (image_size, image_size):
        raise ConversionError(
            f"its processor makes images of {found[1]} x {found[0]} pixels, and the model takes {image_size}: one of "
            "the two files is of another model."
        )


def _fit_vocabulary(tokenizer: PreTrainedTokenizerBase, text: HFCLIPTextConfig) -> None:
    """Ids within the model's, and no longer texts than its positions."""
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    if tokens > text.vocab_size:
        raise ConversionError(
            f"the tokenizer has {tokens} tokens, the model knows {text.vocab_size}: they do not belong together."
        )
    if tokenizer.model_max_length > text.max_position_embeddings:
        logger.info("The tokenizer's model_max_length is set to the model's %d.", text.max_position_embeddings)
        tokenizer.model_max_length = text.max_position_embeddings
    if tokenizer.model_max_length < 2:
        raise ConversionError(f"the tokenizer's model_max_length={tokenizer.model_max_length} leaves no text.")


def _require_same_ids(tokenizer: PreTrainedTokenizerBase, text: HFCLIPTextConfig) -> None:
    """Raises ConversionError for special tokens that are others in the config, where an embedding depends on them."""
    for field in ("bos_token_id", *(("pad_token_id",) if sees_padding(text) or text.tower == "class_token" else ())):
        ours, theirs = getattr(text, field), getattr(tokenizer, field)
        # A default that the vocabulary does not reach says nothing.
        if ours is not None and ours < text.vocab_size and ours != theirs:
            raise ConversionError(
                f"{field}={ours} in the config, and {theirs} in the tokenizer: one of the two files is of another "
                "model."
            )


def _fit_end(tokenizer: PreTrainedTokenizerBase, text: HFCLIPTextConfig) -> None:
    """The end token's id in the config: where texts are pooled there, it must be in every text."""
    end = cast("int | None", tokenizer.eos_token_id)
    if text.pooling not in ("eos", "first_eos") and not (text.pooling == "mean" and text.tower == "clip"):
        text.eos_token_id = text.eos_token_id if end is None else end
        return
    if text.tower == "clip" and text.pooling != "first_eos" and text.eos_token_id == POOL_AT_HIGHEST_ID:
        # Where the end token has the highest id, as in OpenAI's vocabulary, both mean the same, until tokens are added
        # behind it, which must not be taken for ends.
        if end is not None and end == max(tokenizer.get_vocab().values()):
            text.eos_token_id = end
        return
    ids = tokenizer(_SAMPLE_TEXT, truncation=True)["input_ids"]
    if text.eos_token_id not in ids:
        raise ConversionError(
            f"eos_token_id={text.eos_token_id}, at which the model pools texts, is not in the texts of the tokenizer, "
            f"which end with {ids[-1:]}: one of the two files is of another model."
        )


def _fit_texts(processor: HFCLIPProcessor, text: HFCLIPTextConfig) -> None:
    """Padding and mask as the text tower needs them."""
    if sees_padding(text):
        is_masked = processor.returns_text_mask and text.pooling != "last"
        if processor.text_padding != "max_length" and not is_masked:
            logger.warning("Texts are padded to %d tokens, which this model sees.", text.max_position_embeddings)
            processor.text_padding = "max_length"
        if processor.text_padding == "max_length" and processor.returns_text_mask:
            logger.warning("No attention mask is returned: this model sees the padding of its texts.")
            processor.returns_text_mask = False
    elif text.tower == "transformers" and text.pad_token_id in (None, text.eos_token_id):
        # Padding is not told from the end by its id.
        processor.returns_text_mask = True


def _check_sizes(images: HFCLIPImageProcessor, vision: HFCLIPVisionConfig) -> None:
    """Arithmetic alone: an image of the wrong size may be larger than memory."""
    edge = vision.image_size
    limit = _MAX_RESIZE * max(edge, 224)
    _check_patches(images, vision, limit)
    sizes = {}
    for name, switch in (("size", "do_resize"), ("crop_size", "do_center_crop"), ("pad_size", "do_pad")):
        size = getattr(images, name, None)
        if size is None or not getattr(images, switch, False):
            continue
        sizes[name] = {key: value for key, value in dict(size).items() if value is not None}
        for key, value in sizes[name].items():
            if isinstance(value, bool) or not 1 <= value <= limit:
                raise ConversionError(
                    f"the image processor's {name} has {key}={value}, where the model takes {edge} pixels a side (at "
                    f"most {limit} are resized to): its file is of another model, or was changed."
                )
    name = next((name for name in ("pad_size", "crop_size", "size") if name in sizes), "size")
    last = sizes.get(name, {})
    is_fixed = vision.tower in _FIXED_SIZE and {"height", "width"} <= last.keys()
    if is_fixed and (last["height"], last["width"]) != (edge, edge):
        raise ConversionError(
            f"the image processor's {name}={last} gives {last['height']} x {last['width']} pixels, the model takes "
            f"{edge} x {edge}: its file is of another model."
        )


def _check_patches(images: HFCLIPImageProcessor, vision: HFCLIPVisionConfig, limit: int) -> None:
    """What a NaFlex tower sees of images, and no other tower; the size in its config is that of the processor."""
    if vision.tower != "naflex" and images.max_num_patches is None:
        return
    patch = vision.patch_size
    most = (limit // patch) ** 2
    if vision.tower != "naflex" or (images.max_num_patches is None) or images.patch_size != patch:
        raise ConversionError(
            f"the image processor has max_num_patches={images.max_num_patches} and patch_size={images.patch_size}, "
            f"where the image tower is of the kind {vision.tower} with patch_size={patch}: its file is of another "
            "model."
        )
    if not 1 <= images.max_num_patches <= most:
        raise ConversionError(
            f"the image processor has max_num_patches={images.max_num_patches} (at most {most} are made): its file is "
            "damaged, or of another model."
        )
    vision.image_size = math.isqrt(images.max_num_patches) * patch


def _check_pixels(images: HFCLIPImageProcessor, vision: HFCLIPVisionConfig) -> None:
    """Runs the processor on a small image, black and white."""
    sample = Image.new("RGB", (8, 8))
    sample.paste((255, 255, 255), (0, 0, 4, 8))
    with np.errstate(all="ignore"):
        pixels = np.asarray(images(sample, return_tensors="np")["pixel_values"][0])
    if vision.tower != "naflex" and (pixels.ndim != 3 or pixels.shape[0] != vision.num_channels):
        raise ConversionError(f"the image processor gives {pixels.shape}, not {vision.num_channels} channels.")
    if not np.isfinite(pixels).all() or np.abs(pixels).max() > _MAX_PIXEL:
        raise ConversionError(
            f"the image processor's image_mean={images.image_mean}, image_std={images.image_std} and rescale_factor="
            f"{images.rescale_factor} make pixel values that are not finite, or beyond {_MAX_PIXEL:g}: its file is "
            "damaged."
        )
