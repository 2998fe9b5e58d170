"""`clip`, OpenAI's package, on this package's models: `from hf_clip.compat import clip`.

    model, preprocess = clip.load("ViT-B/32", device="cpu")
    image = preprocess(Image.open("cat.png")).unsqueeze(0)
    text = clip.tokenize(["a photo of a cat", "a photo of a dog"])
    logits_per_image, logits_per_text = model(image, text)

After https://github.com/openai/CLIP: arguments, results and errors are those of its README.
"""

import functools
import warnings
from pathlib import Path

import torch

from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.loading import load as load_checkpoint
from hf_clip.conversion.locating import OPENAI_FILES
from hf_clip.conversion.open_clip import open_clip_rules
from hf_clip.conversion.openai import openai_rules
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.tokenization_hf_clip import CONTEXT_LENGTH

from .models import DropIn
from .tokens import BytePairs, listed_texts, zero_padded
from .transforms import Preprocess

__all__ = ["available_models", "load", "tokenize"]
# Where OpenAI's package keeps what it downloaded.
_CACHE = "~/.cache/clip"


class CLIP(DropIn):
    """What `load` returns: `clip.model.CLIP`'s methods and attributes.

    Attributes:
        visual: the image tower, with its `input_resolution`.
        logit_scale: the logarithm of what cosines are multiplied with.
        context_length, vocab_size: tokens of a text, and known ones.
        dtype: of the weights.
        token_embedding, positional_embedding, transformer, ln_final, text_projection: the text tower in its parts, for
            programs that learn prompts.
    """

    def __init__(self, model: HFCLIPModel, processor: HFCLIPProcessor):
        is_openais = model.config.text_config.tower == "clip" and model.config.vision_config.tower in ("vit", "resnet")
        rules = (openai_rules if is_openais else open_clip_rules)(model.config)
        super().__init__(model, processor.image_processor, rules=rules, batch_first=False, tokenize="clip.tokenize")

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of pixels (B, 3, rows, columns), not normalized."""
        return self.image_features(image)

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of token ids (B, T), not normalized."""
        return self.text_features(text)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled cosines: (images, texts), and transposed."""
        image_features, text_features = self.encode_image(image), self.encode_text(text)
        image_features = image_features / image_features.norm(dim=1, keepdim=True)
        text_features = text_features / text_features.norm(dim=1, keepdim=True)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.T
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias
        return logits_per_image, logits_per_image.T


def available_models() -> list[str]:
    """The names of OpenAI's models."""
    return list(OPENAI_FILES)


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[CLIP, Preprocess]:
    """A model in evaluation mode, and the transform that makes its pixels of a PIL image.

    Args:
        name: one of `available_models()`; or a file of OpenAI's, or whatever else `hf_clip.load` takes.
        device: None for a GPU where there is one. The weights are float32 on the CPU, and float16 elsewhere.
        jit: has no effect but a warning: there is one implementation.
        download_root: the folder that may hold OpenAI's files; None for ~/.cache/clip. For a name whose file is not
            there, the Hub's repository of the same weights is read, from its cache or from the network.

    Raises:
        RuntimeError: for a name or a file that is not there; for a checkpoint that cannot be read.
    """
    if jit:
        warnings.warn("`jit=True` has no effect: the model is not a JIT archive.", stacklevel=2)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, processor = _read(str(name), download_root)
    except ConversionError as error:
        raise RuntimeError(str(error)) from error
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    return CLIP(model, processor).to(device, dtype).eval(), Preprocess(processor.image_processor)


def _read(name: str, download_root: str | Path | None) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    if name in OPENAI_FILES:
        file, repository = OPENAI_FILES[name]
        folder = Path(download_root or _CACHE).expanduser()
        if (folder / file).is_file():
            return load_checkpoint(folder / file)
        try:
            return load_checkpoint(repository)
        except ConversionError as error:
            raise RuntimeError(
                f"Model {name} is not on this machine: there is no {file} in {folder}, and {error}"
            ) from None
    path = Path(name).expanduser()
    if not path.exists():
        try:
            return load_checkpoint(name)
        except ConversionError as error:
            raise RuntimeError(
                f"Model {name} not found; available models = {available_models()}; and {error}"
            ) from None
    if path.is_file():
        try:
            # As OpenAI's package takes every file for its own.
            return load_checkpoint(path, source_format="openai")
        except ConversionError:
            pass
    return load_checkpoint(name)


@functools.cache
def _byte_pairs() -> BytePairs:
    return BytePairs()


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> torch.Tensor:
    """Token ids of texts.

    Args:
        texts: one, or several.
        context_length: how many ids each text has, with zeros behind its own.
        truncate: cut texts that are too long, with the end token kept.

    Returns:
        (texts, `context_length`), int32.

    Raises:
        RuntimeError: for a text that is too long, unless `truncate`.
        TypeError: for what is neither a string nor a list of strings.
    """
    listed = listed_texts(texts)
    rows = _byte_pairs().rows(listed)
    for index, row in enumerate(rows):
        if len(row) > context_length and not truncate:
            raise RuntimeError(f"Input {listed[index]} is too long for context length {context_length}")
        rows[index] = row if len(row) <= context_length else [*row[: context_length - 1], row[-1]]
    return zero_padded(rows, context_length, torch.int32)
