"""Small models for tests: one whose embeddings are chosen by the test, and one that is real but tiny."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from hf_clip import (
    HFCLIPCoCaConfig,
    HFCLIPCoCaModel,
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPTokenizer,
)
from hf_clip.model.image_decoding_hf_clip import decode_image


class LookupEncoder(torch.nn.Module):
    """A dual encoder that looks its embeddings up: an image's by its gray value, a text's by its wording.

    `calls` records (what was encoded, how many at once, whether in training mode).
    """

    def __init__(self, image_embeds, text_embeds: dict[str, list[float]], scale: float = 10.0):
        super().__init__()
        self.image_embeds = torch.nn.Parameter(torch.as_tensor(image_embeds, dtype=torch.float32))
        self.text_embeds = torch.nn.Parameter(torch.tensor(list(text_embeds.values()), dtype=torch.float32))
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(scale)))
        self.frozen = torch.nn.Dropout()
        self.texts = list(text_embeds)
        self.calls = []

    device = property(lambda self: self.logit_scale.device)
    dtype = property(lambda self: self.logit_scale.dtype)

    def encode_image(self, pixel_values, normalize=True):
        return self._encode("image", self.image_embeds, pixel_values[:, 0, 0, 0].long(), normalize)

    def encode_text(self, input_ids, attention_mask=None, normalize=True):
        return self._encode("text", self.text_embeds, input_ids[:, 0], normalize)

    def _encode(self, kind, embeddings, ids, normalize):
        self.calls.append((kind, len(ids), self.training))
        return F.normalize(embeddings[ids], dim=-1) if normalize else embeddings[ids]

    def processor(self, images=None, text=None, **kwargs):
        """What `LookupEncoder` takes as a processor: gray values and places in the list of texts."""
        if text is not None:
            return {"input_ids": torch.tensor([[self.texts.index(item)] for item in text])}
        pixels = np.stack([np.asarray(decode_image(image)) for image in images])
        return {"pixel_values": torch.tensor(pixels).permute(0, 3, 1, 2).float()}


def gray(value: int, size: int = 8) -> np.ndarray:
    """An image (size, size, 3) of one gray value, the one by which a `LookupEncoder` knows it."""
    return np.full((size, size, 3), value, dtype=np.uint8)


def tiny_clip(
    captions: list[str], image_size: int = 32, num_hidden_layers: int = 2
) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """A ViT of random weights that takes images of `image_size`, and its processor, trained on `captions`."""
    tokenizer = HFCLIPTokenizer.train(captions, vocab_size=560)
    image_processor = HFCLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    tower["num_hidden_layers"] = num_hidden_layers
    config = HFCLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": image_size, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    return HFCLIPModel(config).eval(), HFCLIPProcessor(image_processor, tokenizer)


def tiny_coca(captions: list[str]) -> tuple[HFCLIPCoCaModel, HFCLIPProcessor]:
    """A captioner of random weights, with a convnet, and its processor."""
    model, processor = tiny_clip(captions)
    processor.tokenizer.pad_token = "!"
    vision = model.config.vision_config.to_dict() | {"tower": "convnet", "stem_width": 8, "norm_group_size": 8}
    text = model.config.text_config.to_dict() | {"tower": "class_token", "pooling": "class"}
    decoder = {"num_decoder_layers": 1, "num_decoder_heads": 2, "decoder_intermediate_size": 64}
    config = HFCLIPCoCaConfig(
        text_config=text | {"pad_token_id": processor.tokenizer.pad_token_id},
        vision_config=vision | {"stage_widths": [16, 32], "stage_depths": [1, 1]},
        projection_dim=16,
        **decoder,
    )
    torch.manual_seed(1)
    return HFCLIPCoCaModel(config).eval(), processor


def scatter_weights(model: torch.nn.Module, by: float = 0.1) -> torch.nn.Module:
    """The model, to evaluate, with every parameter and running statistic off its initial value: none goes untested."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif isinstance(tensor, torch.nn.Parameter) or name.endswith("running_mean"):
                tensor.add_(torch.randn_like(tensor) * by)
    return model.eval()
