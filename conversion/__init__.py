"""Checkpoints of OpenAI, OpenCLIP and transformers, in and out."""

from .averaging import average_models
from .converting import convert
from .errors import ConversionError
from .loading import load

__all__ = ["ConversionError", "average_models", "convert", "load"]
