"""A server of a model, and of an index of images: an API in OpenAI's form and a page to search in.

`serve` is what the command runs; `create_app` gives the application, which tests call in their own process. Names are
imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .application import create_app
    from .running import serve
    from .service import Service, open_index, open_model

_HOME = {
    "Service": "service",
    "create_app": "application",
    "open_index": "service",
    "open_model": "service",
    "serve": "running",
}
__all__ = ["Service", "create_app", "open_index", "open_model", "serve"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_clip.serving' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
