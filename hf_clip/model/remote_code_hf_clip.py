"""The code is saved with every model, processor and tokenizer, so that a machine without this package can load it.

transformers copies a class's file into the folder that it saves, and every file that it finds named in a line of the
form below, there or in a file so found; it does the same when it loads with `trust_remote_code=True`. It reads these
lines as text, so that they need not run. They bring all files, whatever is saved or loaded first: what was loaded by
its code alone can be saved again, for its processor and its pipeline too.

    from .arguments_hf_clip import refuse_unknown_arguments
    from .caption_loss_hf_clip import caption_loss
    from .captioning_hf_clip import caption_images
    from .configuration_coca_hf_clip import HFCLIPCoCaConfig
    from .configuration_hf_clip import HFCLIPConfig
    from .configuration_limits_hf_clip import require_plausible
    from .configuration_reading_hf_clip import as_ours
    from .decisions_hf_clip import Decisions
    from .device_check_hf_clip import warn_of_device
    from .device_hf_clip import is_fast_at_bf16
    from .embedding_hf_clip import embed_images
    from .image_processing_hf_clip import HFCLIPImageProcessor
    from .image_decoding_hf_clip import decode_image
    from .image_patches_hf_clip import shape_in_patches
    from .image_plugins_hf_clip import register_heif
    from .label_cache_hf_clip import LabelEmbeddings
    from .localization_hf_clip import score_maps
    from .loss_hf_clip import contrastive_loss
    from .modeling_coca_hf_clip import HFCLIPCoCaModel
    from .modeling_coca_layers_hf_clip import HFCLIPCaptionDecoder
    from .modeling_coca_text_hf_clip import HFCLIPClassTokenTextModel
    from .modeling_convnet_hf_clip import HFCLIPConvNetModel
    from .modeling_dense_hf_clip import dense_features
    from .modeling_hf_clip import HFCLIPModel
    from .modeling_inputs_hf_clip import known_arguments
    from .modeling_layers_hf_clip import HFCLIPPreTrainedModel
    from .modeling_loading_hf_clip import resolution_of_weights
    from .modeling_naflex_hf_clip import HFCLIPNaFlexModel
    from .modeling_outputs_hf_clip import HFCLIPOutput
    from .modeling_products_hf_clip import product
    from .modeling_resnet_hf_clip import HFCLIPResNetModel
    from .modeling_text_hf_clip import HFCLIPTextModel
    from .modeling_timm_hf_clip import HFCLIPTimmModel
    from .modeling_transformers_towers_hf_clip import HFCLIPTransformersVisionModel
    from .modeling_vision_hf_clip import HFCLIPImageTower
    from .modeling_vit_hf_clip import HFCLIPVisionModel
    from .pipeline_hf_clip import HFCLIPZeroShotPipeline
    from .processing_hf_clip import HFCLIPProcessor
    from .state_key_hf_clip import state_key
    from .text_batches_hf_clip import TextBatch
    from .tokenization_hf_clip import HFCLIPTokenizer
    from .typing_hf_clip import DualEncoder
    from .image_files_hf_clip import images_in_folder
    from .zero_shot_hf_clip import ZeroShotClassifier
"""

# Within transformers' cache of code that came with models.
IS_REMOTE = __name__.startswith("transformers_modules.")


class SavedWithCode:
    """Mixin of classes whose `_auto_class` has transformers save their code, and name it in `auto_map`.

    A user's subclass is skipped: its file may import what the Hub does not have. `register_for_auto_class` adds it.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not cls.__module__.endswith("_hf_clip"):
            cls._auto_class = None
