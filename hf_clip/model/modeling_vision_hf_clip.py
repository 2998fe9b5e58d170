"""What transformers' Auto classes make of an image tower's config, whichever tower it names.

Shape suffixes: B images, T tokens, W width of the tower, H and V rows and columns of patches.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_hf_clip import HFCLIPVisionConfig
from .modeling_hf_clip import IMAGE_TOWERS
from .modeling_inputs_hf_clip import known_arguments
from .modeling_layers_hf_clip import HFCLIPPreTrainedModel
from .modeling_loading_hf_clip import where
from .modeling_vit_hf_clip import HFCLIPVisionModel


def _vision_config(source: Any, config: Any, arguments: dict[str, Any]) -> HFCLIPVisionConfig:
    """The image tower's config, of the tower's own folder or a dual encoder's."""
    if not isinstance(config, PreTrainedConfig):
        config = HFCLIPVisionConfig.from_pretrained(source if config is None else config, **where(arguments))
    vision: Any = getattr(config, "vision_config", config)
    return vision


class HFCLIPImageTower(HFCLIPPreTrainedModel):
    """The image tower that a config names, as a model of its own class: what AutoModel makes of that config.

    So LLaVA, `VisionEncoderDecoderModel` and others that hold "some image encoder" hold any of the towers.
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    @classmethod
    def _from_config(cls, config: HFCLIPVisionConfig, **kwargs) -> Any:
        return IMAGE_TOWERS[config.tower]._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs) -> Any:
        """The tower of a folder, which may be a dual encoder's."""
        config = _vision_config(pretrained_model_name_or_path, config, kwargs)
        kind = IMAGE_TOWERS[config.tower]
        return kind.from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)


class HFCLIPBackbone(BackboneMixin, HFCLIPPreTrainedModel):
    """A ViT as transformers' AutoBackbone gives it, for detection and segmentation: maps of its layers.

    `feature_maps` are (B, W, H, V), one for each of `config.out_features`, by default the last layer's; the class
    token is in none. Images may be of any size that patches fill. Loads from a dual encoder's folder too.

    Raises ValueError for towers other than "vit".
    """

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^visual_projection\.", r"^logit_"]

    def __init__(self, config: HFCLIPVisionConfig):
        if config.tower != "vit":
            raise ValueError(f"`tower={config.tower!r}`: a backbone is made of a ViT alone (`tower='vit'`).")
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.vision_model = HFCLIPVisionModel._from_config(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs) -> Any:
        """As transformers has it. `out_features` or `out_indices` choose the maps."""
        config = _vision_config(pretrained_model_name_or_path, config, kwargs)
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if features is not None or indices is not None:
            config.set_output_features_output_indices(features, indices)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        kwargs = known_arguments(self, kwargs)
        returns_states = kwargs.pop("output_hidden_states", None)
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=True, output_hidden_states=True, return_dict=True, **kwargs
        )
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        first = int(self.config.has_class_token)
        maps = tuple(
            tokens_BTW[:, first:].transpose(1, 2).unflatten(2, (rows, columns))
            for name, tokens_BTW in zip(self.stage_names, output.hidden_states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=maps,
            hidden_states=output.hidden_states if returns_states else None,
            attentions=output.attentions,
        )
