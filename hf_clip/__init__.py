"""CLIP (Radford et al. 2021), native to the Hugging Face stack.

Importing the package registers its classes with transformers' Auto classes, so that `AutoModel`,
`AutoModelForZeroShotImageClassification`, `AutoProcessor` and the stock pipeline take its models by folder or name.
All else is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_TEXT_ENCODING_MAPPING

# Not from transformers itself, which has a stand-in for it where torchvision is not installed.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

__version__ = "0.1.0"

# For editors and type checkers; when the package runs, `__getattr__` imports a name from its home.
if TYPE_CHECKING:
    from .conversion import ConversionError, average_models, convert, load
    from .evaluation.captions import caption_metrics, evaluate_captions
    from .evaluation.clip_score import clip_score, evaluate_clip_score
    from .evaluation.few_shot import evaluate_few_shot
    from .evaluation.groups import evaluate_groups
    from .evaluation.languages import evaluate_languages
    from .evaluation.linear_probe import evaluate_linear_probe
    from .evaluation.operating_points import OperatingPoint
    from .evaluation.retrieval import evaluate_pairs, evaluate_retrieval
    from .evaluation.robustness import evaluate_corruptions, evaluate_shift
    from .evaluation.segmentation import evaluate_segmentation
    from .evaluation.zero_shot import evaluate_zero_shot
    from .export import ExportedCLIP, ExportError, export_model, load_exported
    from .hub.card_updates import push_to_card
    from .hub.push import push
    from .hub.upload import PushError
    from .joining_towers import join_towers
    from .model.captioning_hf_clip import caption_images
    from .model.configuration_coca_hf_clip import HFCLIPCoCaConfig
    from .model.configuration_hf_clip import (
        HFCLIPConfig,
        HFCLIPSiglipConfig,
        HFCLIPTextConfig,
        HFCLIPVisionConfig,
        list_architectures,
    )
    from .model.decisions_hf_clip import Decisions
    from .model.embedding_hf_clip import embed_images, embed_texts
    from .model.image_decoding_hf_clip import ImageDecodeError, decode_image
    from .model.image_processing_hf_clip import HFCLIPImageProcessor
    from .model.loss_hf_clip import contrastive_loss, sigmoid_loss
    from .model.modeling_coca_hf_clip import HFCLIPCoCaModel
    from .model.modeling_hf_clip import (
        HFCLIPForImageClassification,
        HFCLIPModel,
        HFCLIPSiglipModel,
        HFCLIPTextModelWithProjection,
        HFCLIPVisionModelWithProjection,
    )
    from .model.modeling_text_hf_clip import HFCLIPTextModel
    from .model.modeling_vision_hf_clip import HFCLIPBackbone
    from .model.modeling_vit_hf_clip import HFCLIPVisionModel
    from .model.pipeline_hf_clip import HFCLIPZeroShotPipeline
    from .model.processing_hf_clip import HFCLIPProcessor
    from .model.tokenization_hf_clip import HFCLIPTokenizer
    from .model.zero_shot_hf_clip import ZeroShotClassifier
    from .prompts import list_prompts, load_prompts
    from .search.duplicates.finding import find_duplicates
    from .search.duplicates.moving import apply_plan, undo_plan
    from .search.duplicates.plan import DuplicatePlan
    from .search.embedding_files import embed_to_file
    from .search.errors import SearchError
    from .search.index import Index
    from .sources.errors import SourceError
    from .sources.joined_captions import CaptionTable
    from .sources.opening import open_source
    from .sources.spec import DataSpec
    from .tools.langchain import langchain_embeddings
    from .tools.llama_index import llama_index_embedding
    from .training.config import TrainConfig
    from .training.loop import train
    from .training.mixing import greedy_soup, wise_ft
    from .training.recipe import list_recipes, load_recipe
    from .training.recipe_error import RecipeError

_HOME = {
    "HFCLIPCoCaConfig": "model.configuration_coca_hf_clip",
    "HFCLIPCoCaModel": "model.modeling_coca_hf_clip",
    "HFCLIPConfig": "model.configuration_hf_clip",
    "HFCLIPSiglipConfig": "model.configuration_hf_clip",
    "HFCLIPTextConfig": "model.configuration_hf_clip",
    "HFCLIPVisionConfig": "model.configuration_hf_clip",
    "list_architectures": "model.configuration_hf_clip",
    "HFCLIPBackbone": "model.modeling_vision_hf_clip",
    "HFCLIPForImageClassification": "model.modeling_hf_clip",
    "HFCLIPModel": "model.modeling_hf_clip",
    "HFCLIPSiglipModel": "model.modeling_hf_clip",
    "HFCLIPTextModelWithProjection": "model.modeling_hf_clip",
    "HFCLIPVisionModelWithProjection": "model.modeling_hf_clip",
    "HFCLIPTextModel": "model.modeling_text_hf_clip",
    "HFCLIPVisionModel": "model.modeling_vit_hf_clip",
    "HFCLIPImageProcessor": "model.image_processing_hf_clip",
    "HFCLIPTokenizer": "model.tokenization_hf_clip",
    "HFCLIPProcessor": "model.processing_hf_clip",
    "ImageDecodeError": "model.image_decoding_hf_clip",
    "decode_image": "model.image_decoding_hf_clip",
    "contrastive_loss": "model.loss_hf_clip",
    "sigmoid_loss": "model.loss_hf_clip",
    "caption_images": "model.captioning_hf_clip",
    "embed_to_file": "search.embedding_files",
    "embed_images": "model.embedding_hf_clip",
    "embed_texts": "model.embedding_hf_clip",
    "ZeroShotClassifier": "model.zero_shot_hf_clip",
    "Decisions": "model.decisions_hf_clip",
    "HFCLIPZeroShotPipeline": "model.pipeline_hf_clip",
    "list_prompts": "prompts",
    "load_prompts": "prompts",
    "join_towers": "joining_towers",
    "DuplicatePlan": "search.duplicates.plan",
    "apply_plan": "search.duplicates.moving",
    "find_duplicates": "search.duplicates.finding",
    "undo_plan": "search.duplicates.moving",
    "Index": "search.index",
    "SearchError": "search.errors",
    "SourceError": "sources.errors",
    "open_source": "sources.opening",
    "CaptionTable": "sources.joined_captions",
    "DataSpec": "sources.spec",
    "ConversionError": "conversion",
    "average_models": "conversion",
    "convert": "conversion",
    "load": "conversion",
    "clip_score": "evaluation.clip_score",
    "evaluate_clip_score": "evaluation.clip_score",
    "caption_metrics": "evaluation.captions",
    "evaluate_captions": "evaluation.captions",
    "evaluate_zero_shot": "evaluation.zero_shot",
    "evaluate_pairs": "evaluation.retrieval",
    "evaluate_retrieval": "evaluation.retrieval",
    "evaluate_languages": "evaluation.languages",
    "evaluate_linear_probe": "evaluation.linear_probe",
    "evaluate_few_shot": "evaluation.few_shot",
    "evaluate_corruptions": "evaluation.robustness",
    "evaluate_shift": "evaluation.robustness",
    "evaluate_segmentation": "evaluation.segmentation",
    "evaluate_groups": "evaluation.groups",
    "OperatingPoint": "evaluation.operating_points",
    "ExportError": "export",
    "ExportedCLIP": "export",
    "export_model": "export",
    "load_exported": "export",
    "push_to_card": "hub.card_updates",
    "push": "hub.push",
    "PushError": "hub.upload",
    "RecipeError": "training.recipe_error",
    "TrainConfig": "training.config",
    "greedy_soup": "training.mixing",
    "list_recipes": "training.recipe",
    "load_recipe": "training.recipe",
    "wise_ft": "training.mixing",
    "train": "training.loop",
    "langchain_embeddings": "tools.langchain",
    "llama_index_embedding": "tools.llama_index",
}

__all__ = [
    "ConversionError",
    "CaptionTable",
    "DataSpec",
    "Decisions",
    "DuplicatePlan",
    "ExportError",
    "ExportedCLIP",
    "HFCLIPBackbone",
    "HFCLIPCoCaConfig",
    "HFCLIPCoCaModel",
    "HFCLIPConfig",
    "HFCLIPForImageClassification",
    "HFCLIPImageProcessor",
    "HFCLIPModel",
    "HFCLIPProcessor",
    "HFCLIPSiglipConfig",
    "HFCLIPSiglipModel",
    "HFCLIPTextConfig",
    "HFCLIPTextModel",
    "HFCLIPTextModelWithProjection",
    "HFCLIPTokenizer",
    "HFCLIPVisionConfig",
    "HFCLIPVisionModel",
    "HFCLIPVisionModelWithProjection",
    "HFCLIPZeroShotPipeline",
    "ImageDecodeError",
    "Index",
    "OperatingPoint",
    "PushError",
    "RecipeError",
    "SearchError",
    "SourceError",
    "TrainConfig",
    "ZeroShotClassifier",
    "apply_plan",
    "average_models",
    "clip_score",
    "caption_images",
    "caption_metrics",
    "contrastive_loss",
    "convert",
    "decode_image",
    "embed_images",
    "embed_texts",
    "embed_to_file",
    "evaluate_clip_score",
    "evaluate_captions",
    "evaluate_corruptions",
    "evaluate_few_shot",
    "evaluate_groups",
    "evaluate_languages",
    "evaluate_linear_probe",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "evaluate_shift",
    "evaluate_zero_shot",
    "export_model",
    "find_duplicates",
    "greedy_soup",
    "join_towers",
    "langchain_embeddings",
    "list_architectures",
    "list_prompts",
    "list_recipes",
    "llama_index_embedding",
    "load",
    "load_exported",
    "load_prompts",
    "load_recipe",
    "open_source",
    "push",
    "push_to_card",
    "sigmoid_loss",
    "train",
    "undo_plan",
    "wise_ft",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hf_clip' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def _register() -> None:
    from .model import configuration_coca_hf_clip as coca_configuration
    from .model import configuration_hf_clip as configuration
    from .model import modeling_coca_hf_clip as coca
    from .model import modeling_hf_clip as modeling
    from .model import modeling_vision_hf_clip as vision
    from .model.image_processing_hf_clip import HFCLIPImageProcessor
    from .model.processing_hf_clip import HFCLIPProcessor
    from .model.tokenization_hf_clip import HFCLIPTokenizer

    for config_class in (
        configuration.HFCLIPConfig,
        configuration.HFCLIPSiglipConfig,
        coca_configuration.HFCLIPCoCaConfig,
        configuration.HFCLIPTextConfig,
        configuration.HFCLIPVisionConfig,
    ):
        AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(configuration.HFCLIPTextConfig, modeling.HFCLIPTextModel)
    AutoModel.register(configuration.HFCLIPVisionConfig, vision.HFCLIPImageTower)
    AutoModelForTextEncoding.register(configuration.HFCLIPTextConfig, modeling.HFCLIPTextModel)
    AutoBackbone.register(configuration.HFCLIPVisionConfig, vision.HFCLIPBackbone)
    for classifier in (modeling.HFCLIPForImageClassification, modeling.HFCLIPSiglipForImageClassification):
        AutoModelForImageClassification.register(classifier.config_class, classifier)
    # transformers keeps a missing backend as None, and declares classes alone.
    no_video_processors = cast("dict[str, type]", {"pil": None, "torchvision": None})
    AutoModelForImageTextToText.register(coca_configuration.HFCLIPCoCaConfig, coca.HFCLIPCoCaModel)
    for model in (modeling.HFCLIPModel, modeling.HFCLIPSiglipModel, coca.HFCLIPCoCaModel):
        config_class = model.config_class
        AutoModel.register(config_class, model)
        AutoModelForZeroShotImageClassification.register(config_class, model)
        AutoImageProcessor.register(config_class, HFCLIPImageProcessor)
        AutoTokenizer.register(config_class, HFCLIPTokenizer)
        AutoProcessor.register(config_class, HFCLIPProcessor)
        # A part of the model, found in the folder of the whole: the Auto classes' `register` wants its own config.
        for mapping, part in (
            (MODEL_FOR_TEXT_ENCODING_MAPPING, modeling.HFCLIPTextModel),
            (MODEL_FOR_BACKBONE_MAPPING, vision.HFCLIPBackbone),
        ):
            cast(Any, mapping).register(config_class, part)
        # There is none. Unregistered, `pipeline` would look for its code in the folder, and ask to run what is there.
        AutoVideoProcessor.register(config_class, video_processor_classes=no_video_processors)
    # By its dotted name, which transformers imports when the task is asked for.
    PIPELINE_REGISTRY.supported_tasks["hf-clip-zero-shot"] = {
        "impl": "hf_clip.model.pipeline_hf_clip.HFCLIPZeroShotPipeline",
        "pt": (AutoModelForZeroShotImageClassification,),
        "type": "multimodal",
    }


_register()
