"""Smaller weights in an ONNX file: halves that are widened as the file is loaded, and products in int8."""

from pathlib import Path
from typing import Any

import numpy as np

from .errors import ExportError, optional
from .graphs import MAX_FILE_BYTES, files_of, save_graph

DTYPES = ("float32", "float16", "bfloat16")
# Smaller tensors (norms, biases) stay as they are: nothing would be saved.
_MIN_ELEMENTS = 4096
_MAX_FLOAT16 = 65504.0


def round_weights(source: Path, target: Path, dtype: str) -> None:
    """Writes a graph whose large weights are float16 or bfloat16; what is computed with them stays float32.

    ONNX Runtime widens them once, as it loads the file: no processor is asked for products in halves.

    Raises:
        ExportError: for weights beyond the range of float16.
    """
    ir = optional("onnx_ir")
    model = ir.load(source)
    if dtype != "float32":
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor.dtype == ir.DataType.FLOAT and tensor.size >= _MIN_ELEMENTS:
                _store_rounded(model.graph, value, dtype)
    save_graph(model, target)


def _store_rounded(graph: Any, value: Any, dtype: str) -> None:
    ir, ml_dtypes = optional("onnx_ir"), optional("ml_dtypes")
    wide = value.const_value.numpy()
    if dtype == "float16" and np.abs(wide).max() > _MAX_FLOAT16:
        raise ExportError(
            f"`dtype=float16`: {value.name} has numbers above {_MAX_FLOAT16:g}: use bfloat16 or float32."
        )
    narrow = wide.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    stored = ir.Value(
        name=f"{value.name}_{dtype}",
        type=ir.TensorType(ir.DataType[dtype.upper()]),
        shape=value.shape,
        const_value=ir.tensor(narrow, name=f"{value.name}_{dtype}"),
    )
    name = value.name
    del graph.initializers[name]
    value.const_value = None
    cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
    widened = cast.outputs[0]
    widened.name, widened.type, widened.shape = name, value.type, value.shape
    value.replace_all_uses_with(widened)
    graph.register_initializer(stored)
    graph.insert_before(graph[0], cast)


def quantize(source: Path, target: Path) -> None:
    """Writes a graph whose products with weights are int8: ONNX Runtime's dynamic quantization, a scale a column.

    Weights have seven bits. With eight, processors without VNNI saturate where they add two products in 16 bits, and
    the embeddings would differ from machine to machine.

    Raises:
        ExportError: for a graph without such products.
    """
    ir, quantization = optional("onnx_ir"), optional("onnxruntime.quantization")
    graph = ir.load(source).graph
    if not any(node.op_type == "MatMul" and node.inputs[1].name in graph.initializers for node in graph):
        raise ExportError("`int8` makes products with weights int8, and a tower here has none: drop it.")
    quantization.quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        use_external_data_format=sum(file.stat().st_size for file in files_of(source)) > MAX_FILE_BYTES,
    )
