"""Search in one's own images: an index of embeddings that is kept beside them, and questions to it.

`Index` is what callers use. Rows live in a LanceDB database; this package keeps it in step with a folder, asks it, and
exports it. Names are imported on first use: LanceDB takes seconds.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .embedding_files import embed_to_file
    from .errors import SearchError
    from .index import Index
    from .queries import Hit, Hits
    from .updating import Update

_HOME = {
    "embed_to_file": "embedding_files",
    "Hit": "queries",
    "Hits": "queries",
    "Index": "index",
    "SearchError": "errors",
    "Update": "updating",
}


def _defer(package: str) -> None:
    """A package's own code runs once something of it is asked for; its modules are imported as ever."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is None or spec.loader is None:
        return
    module, loader = module_from_spec(spec), spec.loader

    def run(name: str):
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = run
    sys.modules[package] = module


# LanceDB takes its models of requests; the classes that call a server, never used here, are half of LanceDB's import.
_defer("lance_namespace_urllib3_client")

__all__ = ["Hit", "Hits", "Index", "SearchError", "Update", "embed_to_file"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_clip.search' has no attribute {name!r}; it has {', '.join(__all__)}.")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
