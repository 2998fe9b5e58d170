"""The dual encoder of the paper, and its towers as models of their own.

Shape suffixes: B images or texts, D dimensions of the shared space.

The state dict has transformers' own names for CLIP (the misspelt `pre_layrnorm` too), so that checkpoints of either
load in the other.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .arguments_hf_clip import refuse_unknown_arguments
from .configuration_hf_clip import HFCLIPConfig, HFCLIPSiglipConfig, HFCLIPTextConfig, HFCLIPVisionConfig
from .loss_hf_clip import contrastive_loss, sigmoid_loss
from .modeling_coca_text_hf_clip import HFCLIPClassTokenTextModel
from .modeling_convnet_hf_clip import HFCLIPConvNetModel
from .modeling_dense_hf_clip import DENSE_TOWERS, dense_features
from .modeling_inputs_hf_clip import backbone_arguments, known_arguments, shapes_of, taken_by
from .modeling_layers_hf_clip import HFCLIPPreTrainedModel, unit_embeddings, with_init_std
from .modeling_loading_hf_clip import check_image_size, set_image_size, where
from .modeling_naflex_hf_clip import HFCLIPNaFlexModel, patch_mask
from .modeling_outputs_hf_clip import HFCLIPFeatures, HFCLIPOutput, HFCLIPTextModelOutput, HFCLIPVisionModelOutput
from .modeling_resnet_hf_clip import HFCLIPResNetModel
from .modeling_text_hf_clip import HFCLIPTextModel
from .modeling_timm_hf_clip import HFCLIPTimmModel
from .modeling_transformers_towers_hf_clip import HFCLIPTransformersTextModel, HFCLIPTransformersVisionModel
from .modeling_vit_hf_clip import HFCLIPVisionModel


def _features(output: BaseModelOutputWithPooling, projection: nn.Module) -> HFCLIPFeatures:
    """A tower's output with its embeddings projected."""
    return HFCLIPFeatures(
        last_hidden_state=output.last_hidden_state,
        pooler_output=projection(output.pooler_output),
        hidden_states=output.hidden_states,
        attentions=output.attentions,
    )


def _pooled(output: BaseModelOutputWithPooling) -> torch.Tensor:
    """The embeddings of a tower's output, which every tower gives."""
    assert output.pooler_output is not None
    return output.pooler_output


def _asking(tower: Any, pooled_only: bool) -> dict[str, bool]:
    """Arguments that ask a tower for nothing but what it pools; none for towers that cannot be asked."""
    return {"pooled_only": True} if pooled_only and getattr(tower, "has_pooled_only", False) else {}


def _of_patches(
    pixel_attention_mask: torch.Tensor | None, spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None
) -> dict[str, Any]:
    """What a NaFlex tower takes beside the pixels, where a caller gave it."""
    given = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
    return {name: value for name, value in given.items() if value is not None}


def _full_precision(device: torch.device) -> AbstractContextManager:
    """No autocast within. The meta device, which only counts shapes, knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _loss(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    concept_ids: torch.Tensor | None,
) -> torch.Tensor:
    if bias is None:
        return contrastive_loss(image_BD, text_BD, scale, concept_ids)
    return sigmoid_loss(image_BD, text_BD, scale, bias, concept_ids)


def _check_sides(input_ids: torch.Tensor | None, pixel_values: torch.Tensor | None, return_loss: bool) -> None:
    """Raises ValueError where there is nothing to encode, and where a loss has no pairs."""
    if input_ids is None and pixel_values is None:
        raise ValueError("`input_ids` and `pixel_values` are both missing: pass texts, images or both.")
    if not return_loss:
        # Counted here, numbers of texts and images would be constants of an exported program.
        return
    counts = [0 if side is None else len(side) for side in (input_ids, pixel_values)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"`return_loss=True` takes pairs, and there are {counts[0]} texts in `input_ids` and {counts[1]} images "
            "in `pixel_values`: pass as many of both."
        )


def _refuse(model: PreTrainedModel, method: str, unknown: dict) -> None:
    """Raises TypeError for arguments that a method does not have, which it was given."""
    named = set(inspect.signature(getattr(type(model), method)).parameters) - {"self", "unknown"}
    refuse_unknown_arguments(f"{type(model).__name__}.{method}", unknown, named)


IMAGE_TOWERS = {
    "vit": HFCLIPVisionModel,
    "convnet": HFCLIPConvNetModel,
    "resnet": HFCLIPResNetModel,
    "naflex": HFCLIPNaFlexModel,
    "transformers": HFCLIPTransformersVisionModel,
    "timm": HFCLIPTimmModel,
}
TEXT_TOWERS = {
    "clip": HFCLIPTextModel,
    "class_token": HFCLIPClassTokenTextModel,
    "transformers": HFCLIPTransformersTextModel,
}


def _image_tower(config: HFCLIPVisionConfig) -> Any:
    return IMAGE_TOWERS[config.tower]._from_config(config)


def _text_tower(config: HFCLIPTextConfig) -> Any:
    return TEXT_TOWERS[config.tower]._from_config(config)


class HFCLIPProjectionMLP(nn.Module):
    """Two linear maps with a GELU between them, behind which training drops the fraction `dropout`."""

    def __init__(self, width: int, between: int, dimensions: int, biases: tuple[bool, bool], dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.fc1 = with_init_std(width**-0.5, nn.Linear(width, between, bias=biases[0]))
        self.fc2 = with_init_std(between**-0.5, nn.Linear(between, dimensions, bias=biases[1]))

    def forward(self, embeddings_BW: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.dropout(F.gelu(self.fc1(embeddings_BW)), self.dropout, self.training))


class HFCLIPProjection(nn.Linear):
    """A linear map, before which training drops the fraction `dropout`."""

    def __init__(self, width: int, dimensions: int, bias: bool, dropout: float):
        super().__init__(width, dimensions, bias=bias)
        self.dropout = dropout

    def forward(self, embeddings_BW: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(embeddings_BW, self.dropout, self.training))


def _projection(tower: HFCLIPTextConfig | HFCLIPVisionConfig) -> nn.Module:
    """From a tower's embeddings to the shared space. The MLPs are OpenCLIP's (`HFTextEncoder`, `TimmModel`)."""
    width, dimensions, bias = tower.pooled_size, tower.projection_dim, tower.projection_bias
    if tower.projection_type == "none":
        return nn.Identity()
    if tower.projection_type == "mlp" and tower.base_config_key == "text_config":
        return HFCLIPProjectionMLP(width, (width + dimensions) // 2, dimensions, (bias, bias))
    dropout = getattr(tower, "projection_dropout", 0.0)
    if tower.projection_type == "mlp":
        return HFCLIPProjectionMLP(width, 2 * dimensions, dimensions, (True, bias), dropout)
    if dropout:
        return with_init_std(width**-0.5, HFCLIPProjection(width, dimensions, bias, dropout))
    return with_init_std(width**-0.5, nn.Linear(width, dimensions, bias=bias))


class HFCLIPModel(HFCLIPPreTrainedModel):
    """The dual encoder (Radford et al. 2021, section 2.3): images and texts as embeddings of one space.

    Where the config is an `HFCLIPSiglipConfig`, logits have a learned bias and the loss is a sigmoid's for each pair.
    """

    # Whether the loss is of the towers' tokens too, not of what they pool alone.
    needs_tokens = False
    # Models that `hf_clip.load` returns have it: the format of the checkpoint that was read.
    source_format: str

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.text_model = _text_tower(config.text_config)
        self.vision_model = _image_tower(config.vision_config)
        # A tower is made from a copy of its config. Two copies would differ once the token embeddings are resized.
        config.text_config, config.vision_config = self.text_model.config, self.vision_model.config
        self.visual_projection = _projection(config.vision_config)
        self.text_projection = _projection(config.text_config)
        # On disk, transformers has a scalar for CLIP and an embedding of one for SigLIP.
        shape = () if config.logit_bias_init_value is None else (1,)
        self.logit_scale = nn.Parameter(torch.empty(shape))
        self.logit_bias = nn.Parameter(torch.empty(shape)) if shape else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's, so that `resize_token_embeddings` works on the dual encoder."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def set_image_size(self, image_size: int) -> None:
        """Has the image tower take images of another size, in pixels.

        Positions are resampled, bicubic and antialiased, as OpenCLIP does it (`resize_pos_embed`); all other weights
        stay. A NaFlex tower, which takes images of any size, notes how large they are. The processor has a size of
        its own: `hf_clip.load(..., image_size=...)` sets both.

        Raises:
            ValueError: for a tower that keeps its size (of transformers, and some of timm's), and a size that is no
                multiple of a patch, or of the ResNet's stride of 32.
        """
        if image_size != self.config.vision_config.image_size:
            check_image_size(self.config.vision_config, image_size)
            set_image_size(self, image_size)

    def initialize_own(self, factor: float):
        init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if self.logit_bias is not None and self.config.logit_bias_init_value is not None:
            init.constant_(self.logit_bias, self.config.logit_bias_init_value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pooled_only: bool = False,
        shared_prefix: int = 0,
        **kwargs,
    ) -> HFCLIPFeatures:
        """The text tower's output, its `pooler_output` projected to (B, D) and not normalized.

        With `pooled_only=True` the last layer computes what is pooled and no more, where that is one token and nobody
        looks at the others (hooks, hidden states): `last_hidden_state` is None then. `shared_prefix` is that of
        `encode_text`, and counts with `pooled_only` alone.
        """
        kwargs = known_arguments(self, kwargs, "get_text_features", backbone_arguments(self.text_model))
        kwargs |= _asking(self.text_model, pooled_only)
        if shared_prefix and pooled_only and self.has_shared_prefix:
            kwargs["shared_prefix"] = shared_prefix
        output = self.text_model(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        return _features(output, self.text_projection)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pooled_only: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ) -> HFCLIPFeatures:
        """The image tower's output, its `pooler_output` projected to (B, D) and not normalized.

        `pooled_only` is that of `get_text_features`.
        """
        kwargs = known_arguments(self, kwargs, "get_image_features", backbone_arguments(self.vision_model))
        kwargs |= _asking(self.vision_model, pooled_only)
        kwargs |= _of_patches(pixel_attention_mask, spatial_shapes)
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        return _features(output, self.visual_projection)

    @property
    def has_shared_prefix(self) -> bool:
        """Whether the text tower takes `shared_prefix`."""
        return getattr(self.text_model, "has_shared_prefix", False)

    def encode_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        normalize: bool = True,
        shared_prefix: int = 0,
        **unknown,
    ) -> torch.Tensor:
        """(B, D) embeddings of texts, unit length unless `normalize=False`.

        `shared_prefix` is how many first tokens all texts have in common, as prompts of one template do: where the
        tower is causal they are computed once.

        Raises TypeError for arguments that it does not have, and what `HFCLIPTextModel` raises.
        """
        _refuse(self, "encode_text", unknown)
        embeddings_BD = _pooled(
            self.get_text_features(
                input_ids, attention_mask, pooled_only=True, shared_prefix=shared_prefix, return_dict=True
            )
        )
        return unit_embeddings(embeddings_BD).to(embeddings_BD.dtype) if normalize else embeddings_BD

    def encode_image(
        self,
        pixel_values: torch.Tensor,
        normalize: bool = True,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **unknown,
    ) -> torch.Tensor:
        """(B, D) embeddings of images, unit length unless `normalize=False`.

        A NaFlex tower takes the mask and the shapes that the processor gives beside the pixels; no other tower does.

        Raises TypeError for arguments that it does not have, and what the image tower raises.
        """
        _refuse(self, "encode_image", unknown)
        of_patches = _of_patches(pixel_attention_mask, spatial_shapes)
        output = self.get_image_features(
            pixel_values, interpolate_pos_encoding, pooled_only=True, return_dict=True, **of_patches
        )
        embeddings_BD = _pooled(output)
        return unit_embeddings(embeddings_BD).to(embeddings_BD.dtype) if normalize else embeddings_BD

    @property
    def has_dense_features(self) -> bool:
        """Whether the image tower embeds positions itself; of any other tower windows are encoded."""
        return isinstance(self.vision_model, DENSE_TOWERS)

    def dense_image_features(
        self,
        pixel_values: torch.Tensor,
        attention: str = "query",
        normalize: bool = True,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **unknown,
    ) -> torch.Tensor:
        """Embeddings of an image's positions: (B, rows, columns, D), unit length unless `normalize=False`.

        A vision transformer's last layer is changed, what it gives goes through the last norm and the projection,
        and the class token is dropped. With queries Q, keys K and values V of the last layer:

        - "plain": the layer as it is.
        - "query-key": softmax(QQ^T) + softmax(KK^T) (SCLIP, Wang et al. 2023).
        - "value": each token keeps its own value, without residual and MLP (MaskCLIP, Zhou et al. 2021).
        - "query": softmax(QQ^T), without residual and MLP (ClearCLIP, Lan et al. 2024).
        - "neighbors": softmax(KK^T + exp(-d^2 / 50)), d the distance in patches, without residual and MLP (NACLIP,
          Hajimiri et al. 2024).

        Towers that pool by attention (ResNet, SigLIP, NaFlex) give the value path of that attention, whatever
        `attention` says. For any other tower each position's is the embedding of a window around it, half as long as
        the model's image.

        Args:
            pixel_values: (B, 3, H, W) of any size of a patch or more: positions are interpolated. For a NaFlex tower
                the patches of images of one shape, with the mask and the shapes that the processor gives.
            attention: one of the above.

        Raises:
            TypeError: for arguments that it does not have.
            ValueError: for an unknown `attention`, images smaller than a patch, NaFlex images of several shapes, and
                in training with `patch_dropout`.
        """
        _refuse(self, "dense_image_features", unknown)
        return dense_features(self, pixel_values, attention, normalize, pixel_attention_mask, spatial_shapes)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        concept_ids: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ) -> HFCLIPOutput:
        """Scaled cosines of all images with all texts, plus the bias of a sigmoid model.

        With texts or images alone, their embeddings alone: transformers' pipelines "feature-extraction" and
        "image-feature-extraction" call it so.

        With `return_loss=True`, images and texts are pairs and `loss` is the batch's `contrastive_loss`, or
        `sigmoid_loss` (over all ranks); `concept_ids` (B,) then names the pairs that are positives of each other.
        A loss asks for what is pooled alone: the towers' outputs then have a `last_hidden_state` only together with
        `output_hidden_states=True`.

        Raises:
            TypeError: for arguments that it does not have, apart from those that transformers passes to any model.
            ValueError: without texts and images; with `return_loss=True`, unless there are as many images as texts;
                what the towers raise.
        """
        vision_model, text_model = self.vision_model, self.text_model
        kwargs = known_arguments(self, kwargs, also=backbone_arguments(vision_model) | backbone_arguments(text_model))
        _check_sides(input_ids, pixel_values, bool(return_loss))
        asked: dict[str, Any] = {"return_dict": True, "pooled_only": bool(return_loss) and not self.needs_tokens}
        vision_output = text_output = None
        if pixel_values is not None:
            of_images = taken_by(vision_model, kwargs) | _of_patches(pixel_attention_mask, spatial_shapes)
            vision_output = self.get_image_features(pixel_values, interpolate_pos_encoding, **asked, **of_images)
        if input_ids is not None:
            of_texts = taken_by(text_model, kwargs)
            text_output = self.get_text_features(input_ids, attention_mask, position_ids, **asked, **of_texts)
        return self._compared(vision_output, text_output, bool(return_loss), concept_ids)

    def _compared(
        self,
        vision_output: HFCLIPFeatures | None,
        text_output: HFCLIPFeatures | None,
        return_loss: bool,
        concept_ids: torch.Tensor | None,
    ) -> HFCLIPOutput:
        """The output for both towers' outputs, or for one alone."""
        # In half precision a cosine is off by 1e-2 and its logit, at scale 100, by 1: cosines are float32's.
        image_BD, text_BD = (
            None if output is None else unit_embeddings(_pooled(output)) for output in (vision_output, text_output)
        )
        logits_per_text = loss = None
        if image_BD is not None and text_BD is not None:
            # The towers may lie on different devices (device_map).
            image_BD, scale = image_BD.to(text_BD.device), self.logit_scale.exp().to(text_BD)
            with _full_precision(text_BD.device):
                logits_per_text = scale * text_BD @ image_BD.T
            bias = None if self.logit_bias is None else self.logit_bias.to(text_BD)
            if bias is not None:
                logits_per_text = logits_per_text + bias
            loss = _loss(image_BD, text_BD, scale, bias, concept_ids) if return_loss else None
        of_any = vision_output if text_output is None else text_output
        assert of_any is not None
        dtype = _pooled(of_any).dtype
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            # A traced program's dictionary holds tensors alone.
            vision_output = text_output = None
        return HFCLIPOutput(
            loss=loss,
            logits_per_image=None if logits_per_text is None else logits_per_text.T.to(dtype),
            logits_per_text=None if logits_per_text is None else logits_per_text.to(dtype),
            text_embeds=None if text_BD is None else text_BD.to(dtype),
            image_embeds=None if image_BD is None else image_BD.to(dtype),
            text_model_output=text_output,
            vision_model_output=vision_output,
        )


class HFCLIPSiglipModel(HFCLIPModel):
    """A dual encoder trained with a sigmoid (Zhai et al. 2023), known to the Auto classes by its type."""

    config: HFCLIPSiglipConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs) -> Any:
        """As `HFCLIPModel` has it. Of a softmax model's folder, the bias begins at 0, where logits stay as they were.

        A `config` decides all but `logit_bias_init_value`, which is 0 then.
        """
        source = pretrained_model_name_or_path
        if source is None or HFCLIPConfig.from_pretrained(source, **where(kwargs)).logit_bias_init_value is not None:
            return super().from_pretrained(source, *model_args, config=config, **kwargs)
        if config is not None and not isinstance(config, PreTrainedConfig):
            config = HFCLIPSiglipConfig.from_pretrained(config, **where(kwargs))
        if config is not None and config.logit_bias_init_value is not None:
            config = HFCLIPConfig(**_fields_for_other_loss(cast(HFCLIPConfig, config), None))
        loaded = HFCLIPModel.from_pretrained(source, *model_args, config=config, **kwargs)
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        model = _with_other_loss(model, 0.0, cls).to(model.device)
        return (model, *info) if info else model


def _fields_for_other_loss(config: HFCLIPConfig, logit_bias: float | None) -> dict[str, Any]:
    fields: dict[str, Any] = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "custom_pipelines"):
        fields.pop(name, None)
    return fields | {"logit_bias_init_value": logit_bias}


def with_other_loss(model: HFCLIPModel, logit_bias: float | None) -> HFCLIPModel:
    """The model for the other loss, with the same towers, projections and logit scale; the tensors are shared.

    Args:
        model: of either loss.
        logit_bias: the sigmoid's bias at the start: 0 leaves the logits as they are, and -10 is the paper's (Zhai et
            al. 2023). None is for the softmax, to which a bias makes no difference.
    """
    return _with_other_loss(model, logit_bias, HFCLIPModel if logit_bias is None else HFCLIPSiglipModel)


def _with_other_loss(model: HFCLIPModel, logit_bias: float | None, kind: type[HFCLIPModel]) -> HFCLIPModel:
    state = dict(model.state_dict())
    state.pop("logit_bias", None)
    state["logit_scale"] = state["logit_scale"].reshape(() if logit_bias is None else (1,))
    if logit_bias is not None:
        state["logit_bias"] = torch.full_like(state["logit_scale"], logit_bias)
    fields = _fields_for_other_loss(model.config, logit_bias)
    config = HFCLIPConfig(**fields) if logit_bias is None else HFCLIPSiglipConfig(**fields)
    return kind.from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)


class HFCLIPTextModelWithProjection(HFCLIPPreTrainedModel):
    """The text tower and its projection, alone: `text_embeds` (B, D). Loads from a dual encoder's folder too."""

    config: HFCLIPTextConfig
    base_model_prefix = "text_model"
    input_modalities = ["text"]
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^logit_"]

    def __init__(self, config: HFCLIPTextConfig):
        super().__init__(config)
        self.text_model = _text_tower(config)
        self.text_projection = _projection(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> HFCLIPTextModelOutput:
        kwargs = known_arguments(self, kwargs, also=backbone_arguments(self.text_model))
        output = self.text_model(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        return HFCLIPTextModelOutput(
            text_embeds=self.text_projection(output.pooler_output),
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class HFCLIPVisionModelWithProjection(HFCLIPPreTrainedModel):
    """The image tower and its projection, alone: `image_embeds` (B, D). Loads from a dual encoder's folder too."""

    config: HFCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_"]

    def __init__(self, config: HFCLIPVisionConfig):
        super().__init__(config)
        self.vision_model = _image_tower(config)
        self.visual_projection = _projection(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ) -> HFCLIPVisionModelOutput:
        kwargs = known_arguments(self, kwargs, also=backbone_arguments(self.vision_model))
        kwargs |= _of_patches(pixel_attention_mask, spatial_shapes)
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        return HFCLIPVisionModelOutput(
            image_embeds=self.visual_projection(output.pooler_output),
            last_hidden_state=output.last_hidden_state,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class HFCLIPForImageClassification(HFCLIPPreTrainedModel):
    """A linear classifier on the mean of the image tower's tokens (the class token apart), as transformers' CLIP has.

    `labels` (B,) give a `loss` by transformers' rules (`config.problem_type`, `config.num_labels`).
    """

    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^text_projection\.",
        r"^visual_projection\.",
        r"^logit_",
    ]

    def __init__(self, config: HFCLIPConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.vision_model = _image_tower(config.vision_config)
        width = config.vision_config.hidden_size
        self.classifier = with_init_std(width**-0.5, nn.Linear(width, self.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        kwargs = known_arguments(self, kwargs, also=backbone_arguments(self.vision_model))
        kwargs |= _of_patches(pixel_attention_mask, spatial_shapes)
        output = self.vision_model(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        first = 1 if self.vision_model.has_class_token else 0
        tokens_BTW = output.last_hidden_state[:, first:]
        mask_BT = None
        if spatial_shapes is not None:
            mask_BT = patch_mask(shapes_of(spatial_shapes), pixel_attention_mask, tokens_BTW.device)
        if mask_BT is None:
            mean_BW = tokens_BTW.mean(dim=1)
        else:
            mean_BW = (tokens_BTW * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)
        logits = self.classifier(mean_BW)
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class HFCLIPSiglipForImageClassification(HFCLIPForImageClassification):
    """A classifier on the image tower of a model trained with a sigmoid, known to the Auto classes by its type."""

    config: HFCLIPSiglipConfig
