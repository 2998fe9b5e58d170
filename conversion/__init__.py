"""Checkpoints of OpenAI, OpenCLIP and transformers, in and out."""

from .converting import convert
from .errors import ConversionError
from .loading import load

__all__ = ["ConversionError", "convert", "load"]
