"""OpenVINO's files of an ONNX graph, and smaller weights in them."""

from pathlib import Path
from typing import Any

import numpy as np

from .errors import ExportError, optional

_MIN_ELEMENTS = 4096
_MAX_FLOAT16 = 65504.0


def write_openvino(source: Path, target: Path, dtype: str, *, int8: bool) -> None:
    """Writes an ONNX file of float32 as OpenVINO's `.xml` and `.bin`.

    Args:
        dtype: of the weights in the file.
        int8: weights of products in int8, a scale a column; whether products are computed in int8 too is for the
            processor to say (with VNNI or AMX they are).

    Raises:
        ExportError: for a graph without products with weights, where they should be int8.
    """
    openvino = optional("openvino")
    model = openvino.convert_model(source)
    if int8 and not _quantize(model):
        raise ExportError("`int8` makes products with weights int8, and a tower here has none: drop it.")
    if dtype != "float32":
        _round(model, dtype)
    openvino.save_model(model, target, compress_to_fp16=False)


def _constants(model: Any, least: int) -> list[Any]:
    """Weights of float32 with so many elements, or more."""
    openvino = optional("openvino")
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type() == openvino.Type.f32
        and np.prod(node.get_output_shape(0)) >= least
    ]


def _quantize(model: Any) -> int:
    """How many weights of products are int8 now."""
    opset, openvino = optional("openvino.opset13"), optional("openvino")
    count = 0
    for constant in _constants(model, 2):
        users = [(user.get_node(), user.get_index()) for user in constant.output(0).get_target_inputs()]
        if len(constant.get_output_shape(0)) < 2 or any(
            node.get_type_name() != "MatMul" or index != 1 for node, index in users
        ):
            continue
        weight = constant.get_data()
        is_transposed = users[0][0].get_attributes()["transpose_b"]
        # Over what is summed.
        axis = weight.ndim - (1 if is_transposed else 2)
        scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True), 1e-12) / 127
        small = opset.constant(np.round(weight / scale).astype(np.int8), dtype=openvino.Type.i8)
        widened = opset.multiply(opset.convert(small, "f32"), opset.constant(scale.astype(np.float32)))
        for node, index in users:
            node.input(index).replace_source_output(widened.output(0))
        count += 1
    return count


def _round(model: Any, dtype: str) -> None:
    opset, openvino = optional("openvino.opset13"), optional("openvino")
    kind = openvino.Type.f16 if dtype == "float16" else openvino.Type.bf16
    for constant in _constants(model, _MIN_ELEMENTS):
        wide = constant.get_data()
        if dtype == "float16" and np.abs(wide).max() > _MAX_FLOAT16:
            raise ExportError(
                f"`dtype=float16`: weights have numbers above {_MAX_FLOAT16:g}: use bfloat16 or float32."
            )
        narrow = opset.constant(wide, dtype=kind)
        widened = opset.convert(narrow, "f32")
        for user in constant.output(0).get_target_inputs():
            user.replace_source_output(widened.output(0))
