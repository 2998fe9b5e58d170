"""`open_clip` on this package's models: `from hf_clip.compat import open_clip`.

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained="laion2b_s34b_b79k")
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    image_features = model.encode_image(preprocess(Image.open("cat.png")).unsqueeze(0))
    text_features = model.encode_text(tokenizer(["a cat", "a dog"]))

After open_clip_torch 3.3 (https://github.com/mlfoundations/open_clip): arguments, results and errors are those of its
README. `hf-hub:` and `local-dir:` take a repository or folder of any format that `hf_clip.load` reads.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hf_clip.conversion.converting import has_openai_vocabulary
from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.hub_files import HubOptions
from hf_clip.conversion.loading import load_processor
from hf_clip.conversion.open_clip import open_clip_rules
from hf_clip.conversion.preprocessing import build_image_processor, build_processor, open_clip_tokenizer
from hf_clip.model.arguments_hf_clip import refuse_unknown_arguments
from hf_clip.model.configuration_hf_clip import HFCLIPConfig, find_architecture
from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.tokenization_hf_clip import CONTEXT_LENGTH

from .creating import CreateOptions, known_models, parsed_name, read_model
from .models import DropIn
from .pretrained import read_pretrained
from .tokens import ProcessorTokenizer, SimpleTokenizer
from .transforms import Preprocess, RandomCrop, train_transform
from .zero_shot import build_zero_shot_classifier, imagenet_classnames, imagenet_templates

__all__ = [
    "IMAGENET_CLASSNAMES",
    "OPENAI_DATASET_MEAN",
    "OPENAI_DATASET_STD",
    "OPENAI_IMAGENET_TEMPLATES",
    "SIMPLE_IMAGENET_TEMPLATES",
    "build_zero_shot_classifier",
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "get_tokenizer",
    "list_models",
    "list_pretrained",
    "tokenize",
]

OPENAI_DATASET_MEAN, OPENAI_DATASET_STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
IMAGENET_CLASSNAMES: tuple[str, ...]
OPENAI_IMAGENET_TEMPLATES: tuple[Callable[[str], str], ...]
SIMPLE_IMAGENET_TEMPLATES: tuple[Callable[[str], str], ...]
# Read when they are first asked for.
_LATE: dict[str, Callable[[], Any]] = {
    "IMAGENET_CLASSNAMES": imagenet_classnames,
    "OPENAI_IMAGENET_TEMPLATES": imagenet_templates,
    "SIMPLE_IMAGENET_TEMPLATES": functools.partial(imagenet_templates, best=True),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(
            f"hf_clip.compat.open_clip has no {name!r}; it has {', '.join(__all__)}. What else open_clip has, "
            "hf_clip has under names of its own: docs/coming_from.md."
        )
    globals()[name] = value = _LATE[name]()
    return value


class CLIP(DropIn):
    """What `create_model` returns: the methods and attributes of `open_clip.CLIP` and `CustomTextCLIP`.

    Attributes:
        visual: the image tower, with `image_size` and `preprocess_cfg`.
        logit_scale: the logarithm of what cosines are multiplied with.
        logit_bias: what is added, for a model trained with a sigmoid; else None.
        context_length, vocab_size: tokens of a text, and known ones.
        output_dict: whether a call returns a dictionary.
    """

    def __init__(self, model: HFCLIPModel, image_processor: HFCLIPImageProcessor, output_dict: bool = False):
        rules = open_clip_rules(model.config)
        super().__init__(model, image_processor, rules=rules, batch_first=True, tokenize="tokenizer")
        self.output_dict = output_dict

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Embeddings (B, D) of pixels (B, 3, rows, columns), of unit length if `normalize`."""
        features = self.image_features(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Embeddings (B, D) of token ids (B, T), of unit length if `normalize`."""
        features = self.text_features(text)
        return F.normalize(features, dim=-1) if normalize else features

    def get_logits(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled cosines, plus the bias where there is one: (images, texts), and transposed."""
        image_features, text_features = (
            self.encode_image(image, normalize=True),
            self.encode_text(text, normalize=True),
        )
        logits = self.logit_scale.exp() * image_features @ text_features.T
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits, logits.T

    def forward(self, image: torch.Tensor | None = None, text: torch.Tensor | None = None) -> Any:
        """Unit embeddings of both and the logit scale, then the logit bias where there is one.

        A side that is None gives None. A tuple, or a dictionary of `image_features`, `text_features`, `logit_scale`
        and `logit_bias`.
        """
        result: dict[str, torch.Tensor | None] = {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp().reshape(()),
        }
        if self.logit_bias is not None:
            result["logit_bias"] = self.logit_bias.reshape(())
        return result if self.output_dict else tuple(result.values())


def create_model(model_name: str, pretrained: str | None = None, **options: Any) -> CLIP:
    """A model, as `create_model_and_transforms` has it, alone.

    `force_preprocess_cfg` replaces settings of its transform, and `require_pretrained=True` refuses random weights.
    """
    refuse_unknown_arguments("create_model", options, CreateOptions.__dataclass_fields__)
    asked = CreateOptions(**options)
    model, image_processor = read_model(model_name, pretrained, asked)
    made = CLIP(model, image_processor, bool(asked.output_dict)).to(asked.device, asked.dtype)
    # In the mode that torch's modules begin in, as there: programs call `model.eval()`.
    return made.train()


def create_model_and_transforms(
    model_name: str,
    pretrained: str | None = None,
    load_weights: bool = True,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    aug_cfg: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[CLIP, RandomCrop, Preprocess]:
    """A model in training mode, and its transforms for training and for all else.

    Args:
        model_name: one of `list_models()`; `hf-hub:owner/name` or `local-dir:folder`, which say by themselves what
            they are.
        pretrained: a tag of `list_pretrained()`, or a file of weights; None for random weights. Weights of a tag are
            looked for in `cache_dir` and ~/.cache/clip, then in the Hub's cache and on the Hub.
        load_weights: False for random weights of the same shape.
        precision: "fp32", "fp16" or "bf16", or "pure_" before the latter, which is the same here; "amp" is fp32.
        device: where the model goes.
        image_mean, image_std, image_interpolation, image_resize_mode: in place of the model's.
        aug_cfg: for training; `scale` alone.
        options: `force_quick_gelu`, `force_image_size`, `force_context_length`, `force_patch_dropout`, `cache_dir`,
            `output_dict`, as OpenCLIP has them; `jit`, `force_custom_text`, `weights_only` have no effect.

    Raises:
        RuntimeError: for a name or tag that is not known, and weights that cannot be had or read; in one line.
        FileNotFoundError: for a `local-dir:` that is none.
        TypeError, ValueError: for options that are not there.
    """
    force = {
        "mean": image_mean,
        "std": image_std,
        "interpolation": image_interpolation,
        "resize_mode": image_resize_mode,
    }
    options |= {"load_weights": load_weights, "precision": precision, "device": device, "force_preprocess_cfg": force}
    model = create_model(model_name, pretrained, **options)
    image_processor = model.visual.image_processor
    return model, train_transform(image_processor, aug_cfg), Preprocess(image_processor)


def create_model_from_pretrained(
    model_name: str,
    pretrained: str | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    *,
    return_transform: bool = True,
    **options: Any,
) -> Any:
    """A model with its transform, or alone with `return_transform=False`; random weights are refused.

    The arguments are those of `create_model_and_transforms`, which says what is raised.
    """
    options |= {"precision": precision, "device": device, "require_pretrained": True}
    model, _, preprocess = create_model_and_transforms(model_name, pretrained, **options)
    return (model, preprocess) if return_transform else model


def get_tokenizer(
    model_name: str = "", context_length: int | None = None, cache_dir: str | Path | None = None
) -> SimpleTokenizer | ProcessorTokenizer:
    """A model's tokenizer: a call with texts gives int64 ids (texts, `context_length`).

    Args:
        model_name: as `create_model_and_transforms` takes it. For a name that is not known OpenAI's is returned.
        context_length: ids of a text; None for the model's.
        cache_dir: the Hub's cache.

    Raises:
        RuntimeError: for a tokenizer that cannot be had or read; in one line.
        FileNotFoundError: for a `local-dir:` that is none.
    """
    kind, name = parsed_name(model_name)
    try:
        if kind is not None:
            processor = load_processor(name, cache_dir=cache_dir)
            length = context_length or processor.tokenizer.model_max_length
            if has_openai_vocabulary(processor.tokenizer) and processor.text_cleaning is None:
                return SimpleTokenizer(length)
            return ProcessorTokenizer(processor, length)
        if name not in list_models():
            warnings.warn(f"{name!r} is not in list_models(): OpenAI's tokenizer is returned.", stacklevel=2)
            return SimpleTokenizer(context_length or CONTEXT_LENGTH)
        return _tokenizer_of_name(name, context_length, cache_dir)
    except ConversionError as error:
        raise RuntimeError(f"The tokenizer of {model_name} cannot be had: {error}") from error


def _tokenizer_of_name(
    name: str, context_length: int | None, cache_dir: str | Path | None
) -> SimpleTokenizer | ProcessorTokenizer:
    config = HFCLIPConfig.from_architecture(f"open_clip/{name}")
    settings = dict(find_architecture(f"open_clip/{name}")["tokenizer"])
    vocabulary = settings.pop("name")
    if vocabulary == "clip":
        return SimpleTokenizer(context_length or config.text_config.max_position_embeddings)
    found, cleaning = open_clip_tokenizer(vocabulary, settings, config.text_config, HubOptions(cache_dir=cache_dir))
    image_processor = build_image_processor({}, config.vision_config.image_size)
    return ProcessorTokenizer(build_processor(config, image_processor, found, cleaning), context_length)


def list_models() -> list[str]:
    """Names of the architectures; without CoCa's, and those whose text tower has a config on the Hub alone."""
    return list(known_models())


def list_pretrained(as_str: bool = False) -> list[Any]:
    """Architecture and tag of all published weights, as pairs, or as "architecture:tag"."""
    known = set(known_models())
    pairs = [(name, tag) for name, tags in read_pretrained().items() if name in known for tag in tags]
    return [f"{name}:{tag}" for name, tag in pairs] if as_str else pairs


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
    """Ids of OpenAI's vocabulary, int64 (texts, `context_length`)."""
    return _simple_tokenizer()(texts, context_length)


@functools.cache
def _simple_tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()
