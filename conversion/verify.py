"""Runs a checkpoint and what it was converted to on the same images and texts, and compares the embeddings.

Each side runs in the code that its format comes from, where that can be imported, with that code's own transform and
tokenizer; otherwise in this package, by its loader for the format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from hf_clip.model.embedding_hf_clip import IMAGE_INPUTS

from .errors import ConversionError
from .hub_files import HubOptions
from .loading import load
from .locating import locate
from .safe_torch.weights import read_weights

# Of unit embeddings, in float32 arithmetic.
MAX_DIFFERENCE = 1e-4
# Where weights were rounded to float16 on the way: 2**-11 of each weight.
MAX_DIFFERENCE_ROUNDED = 5e-3

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")

TEXTS = [
    "a photo of a cat",
    "two dogs, running on the beach at sunset",
    "7 red apples",
    "the quick brown fox jumps over the lazy dog " * 12,
]


@dataclass(frozen=True)
class Embeddings:
    """What a model makes of the images and texts: unit embeddings (B, D) and logits (images, texts), float32.

    `scale` is the factor from cosines to logits.
    """

    code: str
    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    logits: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Verification:
    """The largest differences between the elements of two models' unit embeddings and of their logits.

    `limit` is that of embeddings, `logits_limit` that of logits: as much, times the source's logit scale.
    """

    source_code: str
    result_code: str
    images: float
    texts: float
    logits: float
    limit: float
    logits_limit: float

    @property
    def is_passed(self) -> bool:
        # Not `>`: what is not a number is a difference.
        return self.images <= self.limit and self.texts <= self.limit and self.logits <= self.logits_limit

    def __str__(self) -> str:
        return (
            f"largest difference: {self.images:.1e} of image embeddings, {self.texts:.1e} of text embeddings (at most "
            f"{self.limit:.0e}), {self.logits:.1e} of logits (at most {self.logits_limit:.0e}); the source ran in "
            f"{self.source_code}, the result in {self.result_code}"
        )


def sample_images() -> list[Image.Image]:
    """Images with slopes, edges and noise, always the same.

    The longer side is as long as the shorter, or three times as long: a crop then removes an even number of pixels at
    every model's size. With an odd number transformers' processors are off by a pixel, which would hide a difference.
    """
    generator = np.random.default_rng(0)
    images = []
    for width, height in [(224, 224), (450, 150), (120, 360), (301, 301)]:
        coarse = generator.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        grown = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        pixels = grown + generator.integers(-20, 21, grown.shape)
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


def embed_with_hf_clip(model, processor) -> Embeddings:
    """A loaded model. Its weights are made float32."""
    model = model.float().eval()
    inputs = processor(images=sample_images(), text=TEXTS, return_tensors="pt").to(model.device)
    with torch.no_grad():
        output = model(**inputs)
    embeddings = output.image_embeds.cpu(), output.text_embeds.cpu()
    return Embeddings("hf_clip", *embeddings, output.logits_per_image.cpu(), model.logit_scale.exp().item())


def embed_with_transformers(folder: Path) -> Embeddings:
    """A folder of `CLIPModel` or a class that is like it."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    # Siglip2Processor has numbers of its own for these, and overrules those in its file.
    settings = {name: getattr(processor.image_processor, name, None) for name in ("patch_size", "max_num_patches")}
    patches = {name: value for name, value in settings.items() if value is not None}
    inputs = processor(
        images=sample_images(),
        text=TEXTS,
        padding="max_length",
        max_length=model.config.text_config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
        **patches,
    )
    # SigLIP sees its padding, CLIP cannot, and Chinese-CLIP must not.
    names = ["input_ids", *(["attention_mask"] if model.config.model_type == "chinese_clip" else [])]
    names += [name for name in IMAGE_INPUTS if name in inputs]
    with torch.no_grad():
        output = model(**{name: inputs[name] for name in names})
    embeddings = output.image_embeds, output.text_embeds
    return Embeddings("transformers", *embeddings, output.logits_per_image, model.logit_scale.exp().item())


def embed_with_diffusers(folder: Path, scale: float) -> Embeddings:
    """The parts of a pipeline of diffusers, by transformers' own classes. They have no logit scale."""
    text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()
    image = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pixels = CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor")(sample_images(), return_tensors="pt")
    ids = tokenizer(
        TEXTS, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        image_BD = F.normalize(image(pixels["pixel_values"]).image_embeds, dim=-1)
        text_BD = F.normalize(text(ids).text_embeds, dim=-1)
    return Embeddings("transformers", image_BD, text_BD, scale * image_BD @ text_BD.T, scale)


def embed_with_open_clip(folder: Path) -> Embeddings:
    """A folder for OpenCLIP's `local-dir:`."""
    # By name: neither peer is a dependency.
    open_clip = import_module("open_clip")
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    pixel_values = torch.stack([preprocess(image) for image in sample_images()])
    with torch.no_grad():
        image_BD = model.eval().encode_image(pixel_values, normalize=True)
        text_BD = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        logits = model.logit_scale.exp() * image_BD @ text_BD.T
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
    return Embeddings("open_clip", image_BD, text_BD, logits, model.logit_scale.exp().item())


def embed_with_openai(file: Path) -> Embeddings:
    """An archive or a state dict of OpenAI's."""
    clip = import_module("clip")
    model = clip.model.build_model(read_weights(file).tensors).float()
    preprocess = clip.clip._transform(model.visual.input_resolution)
    pixel_values = torch.stack([preprocess(image) for image in sample_images()])
    with torch.no_grad():
        image_BD = F.normalize(model.encode_image(pixel_values), dim=-1)
        text_BD = F.normalize(model.encode_text(clip.tokenize(TEXTS, truncate=True)), dim=-1)
    scale = model.logit_scale.exp().item()
    return Embeddings("OpenAI's code", image_BD, text_BD, scale * image_BD @ text_BD.T, scale)


def embed_with_original_code(format_name: str, path: Path) -> Embeddings | None:
    """The embeddings by the code that a format comes from; None where that cannot be imported."""
    if format_name == "transformers":
        return embed_with_transformers(path)
    runners = {"open_clip": embed_with_open_clip, "openai": embed_with_openai}
    # Both peers need torchvision for their transforms, and say so only from deep within.
    if format_name not in runners or not is_torchvision_available():
        return None
    try:
        return runners[format_name](path)
    except ImportError:
        return None


def compare(source: Embeddings, result: Embeddings, limit: float = MAX_DIFFERENCE) -> Verification:
    """The largest differences between elements."""
    pairs = [(getattr(source, name), getattr(result, name)) for name in ("image_embeds", "text_embeds", "logits")]
    images, texts, logits = [(one - other).abs().max().item() for one, other in pairs]
    return Verification(source.code, result.code, images, texts, logits, limit, limit * source.scale)


def verify_conversion(
    source, loaded: tuple, result: Path, result_format: str, options: Mapping[str, Any], is_rounded: bool
) -> Verification:
    """Runs a source and the folder that it was converted to.

    Args:
        loaded: the source's model and processor, by `load(source, **options)`. The model's weights are made float32.
        is_rounded: whether float32 weights became float16.

    Raises:
        ConversionError: if the embeddings differ by more than `MAX_DIFFERENCE`, or `MAX_DIFFERENCE_ROUNDED`; if the
            logits do by more than that times their scale.
    """
    theirs = None
    # The arguments of `load` about the source are unknown to the source's own code.
    if not {name for name, value in options.items() if value is not None} - {*HUB_OPTIONS, "dtype", "device"}:
        located = locate(source, HubOptions(**{name: options[name] for name in HUB_OPTIONS if name in options}))
        source_format = located.kind if located.kind != "file" else loaded[0].source_format
        # What a training script left is loaded by nobody else.
        if not located.may_be_wrapped or source_format == "openai":
            theirs = embed_with_original_code(source_format, located.path)
    one = theirs or embed_with_hf_clip(*loaded)
    if result_format == "diffusers":
        other = embed_with_diffusers(result, one.scale)
    else:
        written = result / "model.pt" if result_format == "openai" else result
        other = embed_with_original_code(result_format, written) or embed_with_hf_clip(*load(written))
    verification = compare(one, other, MAX_DIFFERENCE_ROUNDED if is_rounded else MAX_DIFFERENCE)
    if not verification.is_passed:
        raise ConversionError(f"the result's embeddings or logits are not the source's: {verification}.")
    return verification
