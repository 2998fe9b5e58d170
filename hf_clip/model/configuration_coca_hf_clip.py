"""The shape of CoCa: a dual encoder with a decoder that writes captions."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_hf_clip import HFCLIPConfig, HFCLIPTextConfig, HFCLIPVisionConfig

# Image towers whose tokens a decoder can read.
TOWERS_WITH_TOKENS = ("vit", "convnet")


@strict
class HFCLIPCoCaConfig(HFCLIPConfig):
    """A dual encoder whose texts are read on by a decoder that sees the image and writes captions (Yu et al. 2022).

    The text tower is of the kind "class_token". Behind it stand the decoder's layers, of its width, that see the
    tokens of the text so far and those of the image: of a vision transformer with `pooling="queries"` all queries but
    the first, of others all tokens, brought to the text's width by a linear map where theirs is another. Raises
    ValueError for towers that have no tokens, or none that a decoder could read on.
    """

    model_type = "hf_clip_coca"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": HFCLIPTextConfig,
        "vision_config": HFCLIPVisionConfig,
    }
    auto_models = {
        "AutoModel": "modeling_coca_hf_clip.HFCLIPCoCaModel",
        "AutoModelForZeroShotImageClassification": "modeling_coca_hf_clip.HFCLIPCoCaModel",
        "AutoModelForImageTextToText": "modeling_coca_hf_clip.HFCLIPCoCaModel",
    }

    num_decoder_layers: int = 12
    """Layers of the decoder."""
    num_decoder_heads: int = 8
    """Attention heads of each of them; they divide the text tower's width."""
    decoder_intermediate_size: int = 2048
    """Width within the MLP of each of them."""
    caption_loss_weight: int | float = 2.0
    """Weight of the caption loss beside a contrastive loss of weight 1; the paper's is 2."""

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            # As OpenCLIP's coca_ViT-B-32 has it.
            text: dict[str, Any] = {"tower": "class_token", "pooling": "class", "hidden_act": "gelu"}
            self.text_config = text | {"max_position_embeddings": 76, "pad_token_id": 0}
        super().__post_init__(**kwargs)

    @property
    def image_token_size(self) -> int:
        """Width of the image's tokens that the decoder reads."""
        vision = self.vision_config
        return vision.pooled_size if vision.pooling == "queries" else vision.hidden_size

    @property
    def decoder_config(self) -> HFCLIPTextConfig:
        """The config of the decoder's layers."""
        fields = {**self.text_config.to_dict(), "num_hidden_layers": self.num_decoder_layers}
        fields |= {"num_attention_heads": self.num_decoder_heads}
        fields |= {"intermediate_size": self.decoder_intermediate_size}
        config = HFCLIPTextConfig.from_dict(fields)
        config._attn_implementation = self.text_config._attn_implementation
        return config

    def validate_architecture(self):
        super().validate_architecture()
        text, vision = self.text_config, self.vision_config
        if text.tower != "class_token":
            raise ValueError(f"`text_config.tower={text.tower!r}`: CoCa's text tower is 'class_token'.")
        if vision.tower not in TOWERS_WITH_TOKENS:
            raise ValueError(
                f"`vision_config.tower={vision.tower!r}`: CoCa reads the tokens of one of "
                f"{', '.join(TOWERS_WITH_TOKENS)}."
            )
        if self.num_decoder_layers < 1 or self.num_decoder_heads < 1 or text.hidden_size % self.num_decoder_heads:
            raise ValueError(
                f"`num_decoder_layers={self.num_decoder_layers}` and `num_decoder_heads={self.num_decoder_heads}` "
                f"must be 1 or more, and the heads divide the text tower's `hidden_size={text.hidden_size}`."
            )
        if vision.tower == "vit" and vision.pooling == "queries" and vision.num_queries < 2:
            raise ValueError(
                f"`vision_config.num_queries={vision.num_queries}`: the first is the embedding, and the decoder reads "
                "the others: set 2 or more."
            )
