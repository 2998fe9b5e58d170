"""Models for other runtimes: ONNX Runtime and OpenVINO, in float32, in halves and in int8."""

from .errors import ExportError
from .exporting import export_model
from .parity import ParityReport
from .runtime import ExportedCLIP, load_exported

__all__ = ["ExportError", "ExportedCLIP", "ParityReport", "export_model", "load_exported"]
