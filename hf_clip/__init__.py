"""CLIP (Radford et al. 2021), native to the Hugging Face stack.

Importing the package registers its classes with transformers' Auto classes, so that `AutoModel`,
`AutoModelForZeroShotImageClassification`, `AutoProcessor` and the stock pipeline take its models by folder or name.
All else is imported on first use.
"""

from importlib import import_module

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY

__version__ = "0.1.0"

_HOME = {
    "HFCLIPConfig": "model.configuration_hf_clip",
    "HFCLIPSiglipConfig": "model.configuration_hf_clip",
    "HFCLIPTextConfig": "model.configuration_hf_clip",
    "HFCLIPVisionConfig": "model.configuration_hf_clip",
    "list_architectures": "model.configuration_hf_clip",
    "HFCLIPModel": "model.modeling_hf_clip",
    "HFCLIPSiglipModel": "model.modeling_hf_clip",
    "HFCLIPTextModel": "model.modeling_text_hf_clip",
    "HFCLIPVisionModel": "model.modeling_vit_hf_clip",
    "HFCLIPTextModelWithProjection": "model.modeling_hf_clip",
    "HFCLIPVisionModelWithProjection": "model.modeling_hf_clip",
    "HFCLIPForImageClassification": "model.modeling_hf_clip",
    "HFCLIPImageProcessor": "model.image_processing_hf_clip",
    "HFCLIPTokenizer": "model.tokenization_hf_clip",
    "HFCLIPProcessor": "model.processing_hf_clip",
    "HFCLIPZeroShotPipeline": "model.pipeline_hf_clip",
    "embed_images": "model.embedding_hf_clip",
    "embed_texts": "model.embedding_hf_clip",
    "ZeroShotClassifier": "model.zero_shot_hf_clip",
    "join_towers": "joining_towers",
    "contrastive_loss": "model.loss_hf_clip",
    "sigmoid_loss": "model.loss_hf_clip",
    "decode_image": "model.image_decoding_hf_clip",
    "ImageDecodeError": "model.image_decoding_hf_clip",
    "load": "conversion",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_clip' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def _register() -> None:
    from .model import configuration_hf_clip as configuration
    from .model import modeling_hf_clip as modeling
    from .model.image_processing_hf_clip import HFCLIPImageProcessor
    from .model.processing_hf_clip import HFCLIPProcessor
    from .model.tokenization_hf_clip import HFCLIPTokenizer

    for config_class in (
        configuration.HFCLIPConfig,
        configuration.HFCLIPSiglipConfig,
        configuration.HFCLIPTextConfig,
        configuration.HFCLIPVisionConfig,
    ):
        AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(configuration.HFCLIPTextConfig, modeling.HFCLIPTextModel)
    AutoModelForImageClassification.register(configuration.HFCLIPConfig, modeling.HFCLIPForImageClassification)
    for model in (modeling.HFCLIPModel, modeling.HFCLIPSiglipModel):
        config_class = model.config_class
        AutoModel.register(config_class, model)
        AutoModelForZeroShotImageClassification.register(config_class, model)
        AutoImageProcessor.register(config_class, HFCLIPImageProcessor)
        AutoTokenizer.register(config_class, HFCLIPTokenizer)
        AutoProcessor.register(config_class, HFCLIPProcessor)
    # By its dotted name, which transformers imports when the task is asked for.
    PIPELINE_REGISTRY.supported_tasks["hf-clip-zero-shot"] = {
        "impl": "hf_clip.model.pipeline_hf_clip.HFCLIPZeroShotPipeline",
        "pt": (AutoModelForZeroShotImageClassification,),
        "type": "multimodal",
    }


_register()
