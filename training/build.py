"""The processor and the model that a recipe describes, from random weights."""

from collections.abc import Iterator
from itertools import islice

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_clip.configuration_hf_clip import HFCLIPConfig
from hf_clip.image_processing_hf_clip import HFCLIPImageProcessor
from hf_clip.modeling_hf_clip import HFCLIPModel
from hf_clip.processing_hf_clip import HFCLIPProcessor
from hf_clip.sources import Source, clean_captions
from hf_clip.tokenization_hf_clip import HFCLIPTokenizer

from .config import ModelConfig, RecipeError

# More captions than these teach a byte-pair vocabulary nothing, and take hours.
MAX_CAPTIONS_FOR_VOCABULARY = 2_000_000


def model_config(config: ModelConfig) -> HFCLIPConfig:
    """The shape in the recipe, before the vocabulary is known. Raises RecipeError for one that cannot be built."""
    try:
        if config.architecture is not None:
            return HFCLIPConfig.from_architecture(config.architecture, **config.config)
        return HFCLIPConfig(**config.config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        # The strict config wraps the reason, in an error that is no ValueError.
        raise RecipeError(f"model.config: {error.__cause__ or error}") from error


def build_processor(config: ModelConfig, source: Source) -> HFCLIPProcessor:
    """The processor that fits the model, its vocabulary trained on the source's captions where the recipe says so."""
    shape = model_config(config)
    context = shape.text_config.max_position_embeddings
    if config.vocabulary_size is None:
        tokenizer = HFCLIPTokenizer(model_max_length=context)
    else:
        captions = islice(_captions(source), MAX_CAPTIONS_FOR_VOCABULARY)
        tokenizer = HFCLIPTokenizer.train(captions, config.vocabulary_size, model_max_length=context)
    size = shape.vision_config.image_size
    image_processor = HFCLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )
    return HFCLIPProcessor(image_processor, tokenizer)


def _captions(source: Source) -> Iterator[str]:
    """All captions and keywords of a source, without reading its pictures."""
    columns = [*source.require_captions().caption_columns, *source.keyword_columns]
    for row in source.dataset.select_columns(columns):
        for column in columns:
            yield from clean_captions(row[column])


def build_model(config: ModelConfig, processor: HFCLIPProcessor, seed: int) -> HFCLIPModel:
    """The model with weights drawn from the seed, its text tower fitted to the processor's vocabulary."""
    shape = model_config(config)
    tokenizer = processor.tokenizer
    shape.text_config.vocab_size = len(tokenizer)
    shape.text_config.bos_token_id = tokenizer.bos_token_id
    shape.text_config.eos_token_id = tokenizer.eos_token_id
    shape.text_config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    return HFCLIPModel(shape)
