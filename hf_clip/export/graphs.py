"""The towers of a dual encoder as ONNX graphs, by torch's exporter.

Shape suffixes: B images or texts, T tokens, D dimensions of the shared space.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_clip.conversion.errors import short_reason
from hf_clip.model.configuration_hf_clip import HFCLIPConfig
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.modeling_layers_hf_clip import HFCLIPQuickGELU
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .errors import ExportError, optional

# Names of files, inputs and outputs are those of optimum and of transformers.js.
FILES = {"text": "text_model", "image": "vision_model"}
OUTPUTS = {"text": "text_embeds", "image": "image_embeds"}
# A file holds its weights up to this size; protobuf ends at 2 GiB, and to write one takes the weights once more.
MAX_FILE_BYTES = 2**30
# By this entry ONNX Runtime's quantizer knows that the shapes within are known, and does not advise to infer them.
_IS_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}
# Towers that take images of one size.
_FIXED_SIZE = ("vit", "resnet", "convnet")


class _ImageTower(nn.Module):
    def __init__(self, model: HFCLIPModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(pixel_values, normalize=False)


class _TextTower(nn.Module):
    def __init__(self, model: HFCLIPModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(input_ids, normalize=False)


class _MaskedTextTower(_TextTower):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return self.model.encode_text(input_ids, attention_mask, normalize=False)


class _QuickGELU(nn.Module):
    """As OpenAI writes it: the one form that ONNX Runtime computes in one step."""

    def forward(self, map_BTW: torch.Tensor) -> torch.Tensor:
        return map_BTW * torch.sigmoid(1.702 * map_BTW)


def takes_mask(config: HFCLIPConfig, processor: HFCLIPProcessor) -> bool:
    """Whether the embeddings of texts depend on their attention mask.

    The causal tower's don't: padding comes after all that the end token sees.
    """
    return config.text_config.tower == "transformers" or processor.returns_text_mask


def prepare(model: HFCLIPModel) -> None:
    """Makes a float32 model one whose graph has no more steps than it needs, in place; its numbers stay the same."""
    # Written out, attention has no branches for masks and NaN.
    model.set_attn_implementation("eager")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, HFCLIPQuickGELU):
                setattr(module, name, _QuickGELU())


def write_graph(model: HFCLIPModel, processor: HFCLIPProcessor, tower: str, file: Path) -> None:
    """Writes a tower, with free batch and text length, to an ONNX file; the weights of large ones beside it.

    Args:
        model: of float32, as `prepare` leaves it.
        tower: "image" or "text".

    Raises:
        ExportError: for a tower that torch's exporter does not take.
    """
    # torch.onnx is built on both.
    optional("onnx")
    optional("onnxscript")
    wrapped, inputs, shapes = _tower_and_inputs(model, processor, tower)
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                wrapped.eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=[OUTPUTS[tower]],
                dynamic_shapes=shapes,
                verbose=False,
            )
    # Exporters fail in any way of their own.
    except Exception as error:
        config = model.config.text_config if tower == "text" else model.config.vision_config
        raise ExportError(
            f"the {tower} tower ({_kind(config)}) cannot be exported: torch.onnx says {_first_reason(error)}."
        ) from error
    save_graph(program.model, file)


def _kind(config: Any) -> str:
    backbone = getattr(config, "backbone", None) or getattr(config.tower_config, "model_type", None)
    return config.tower if backbone is None else f"{config.tower}: {backbone}"


def _first_reason(error: BaseException) -> str:
    """What the exporter stumbled over, which is below its own error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return short_reason(error)[:200]


def _tower_and_inputs(
    model: HFCLIPModel, processor: HFCLIPProcessor, tower: str
) -> tuple[nn.Module, dict[str, torch.Tensor], tuple[dict[int, Any], ...]]:
    """The module to trace, example inputs by name, and which of their dimensions are free."""
    if tower == "image":
        vision, free = model.config.vision_config, torch.export.Dim.AUTO
        size = vision.image_size
        pixel_values = torch.from_numpy(
            np.random.default_rng(0).standard_normal((2, vision.num_channels, size, size), dtype=np.float32)
        )
        sides = {} if vision.tower in _FIXED_SIZE else {2: free, 3: free}
        return _ImageTower(model), {"pixel_values": pixel_values}, ({0: "batch_size", **sides},)
    text = model.config.text_config
    with_mask = takes_mask(model.config, processor)
    encoding: Any = processor(
        text=["a photo of a cat", "two dogs"], return_tensors="pt", return_attention_mask=with_mask
    )
    inputs = {name: encoding[name] for name in ("input_ids", "attention_mask") if name in encoding}
    # A tower that pools at its last position takes texts of one length.
    is_free = not (text.tower == "clip" and text.pooling == "last")
    free = {0: "batch_size", **({1: "sequence_length"} if is_free else {})}
    return (_MaskedTextTower if with_mask else _TextTower)(model), inputs, (free,) * len(inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on what is not installed, and its calls of what torch has deprecated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def save_graph(graph: Any, file: Path) -> None:
    """Writes a model of onnx_ir, its weights in the file, or beside it where they are large."""
    ir = optional("onnx_ir")
    for node in graph.graph.all_nodes():
        # Names of source files on this machine, and ten times the size of the graph.
        node.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.metadata_props.update(_IS_PREPARED)
    total = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    beside = None if total <= MAX_FILE_BYTES else f"{file.name}_data"
    ir.save(graph, file, external_data=beside)


def files_of(file: Path) -> list[Path]:
    """A graph's file, and that of its weights where there is one."""
    return [one for one in (file, file.with_name(f"{file.name}_data")) if one.is_file()]


def read_inputs(file: Path) -> dict[str, tuple[int | None, ...]]:
    """The shape of each input of a graph; None is any size."""
    graph = optional("onnx_ir").load(file).graph
    return {
        value.name: tuple(size if isinstance(size, int) else None for size in value.shape) for value in graph.inputs
    }
