"""The model of an index: loaded when something is to be encoded, and known from another by what it gives."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from hf_clip.model.typing_hf_clip import DualEncoder, Processor

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt", ".model")


class LazyModel:
    """A model and its processor, loaded at first use.

    Args:
        source: what `hf_clip.load` takes, or a dual encoder.
        processor: of a dual encoder that is given.
        options: more arguments of `load`.
        device: where it encodes; None is the CPU, or where a model that is given is.
    """

    def __init__(
        self,
        source: Any,
        processor: "Processor | None" = None,
        options: Mapping[str, Any] | None = None,
        device: "torch.device | str | None" = None,
    ):
        self.options = {name: value for name, value in (options or {}).items() if value is not None}
        self.device = device
        self._lock = threading.Lock()
        self._loaded: tuple[DualEncoder, Processor] | None = None
        if isinstance(source, str | Path):
            self.source = _absolute(str(source))
        else:
            if processor is None:
                raise TypeError("`processor` is missing: pass the model's processor with a model that is loaded.")
            self.source = str(getattr(getattr(source, "config", None), "name_or_path", "") or type(source).__name__)
            self._loaded = source, processor
            if device is not None:
                source.to(device)

    @property
    def is_given(self) -> bool:
        return self._loaded is not None

    def load(self) -> "tuple[DualEncoder, Processor]":
        # Threads that read images ask for the processor.
        with self._lock:
            if self._loaded is None:
                from hf_clip.conversion import load

                self._loaded = load(self.source, device=self.device, **self.options)
            return self._loaded

    def key(self) -> str:
        """A hash of all that the embeddings of both towers depend on; every weight is read."""
        from hf_clip.model.state_key_hf_clip import state_key

        return state_key(*self.load(), "image", "text")[:16]

    def fingerprint(self) -> str:
        """What changes when the source's files do, without reading them; empty where nobody can tell."""
        path = Path(self.source)
        if path.exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            states = [(one.name, one.stat()) for one in files if path.is_file() or one.suffix in _WEIGHTS]
            return " ".join(f"{name}:{state.st_size}:{state.st_mtime_ns}" for name, state in states)
        if "/" in self.source:
            from huggingface_hub import try_to_load_from_cache

            name = self.source.removeprefix("hf-hub:")
            try:
                found = try_to_load_from_cache(name, "config.json", revision=self.options.get("revision"))
            except ValueError:
                return ""
            # The folder of a snapshot is named by its commit.
            return Path(found).parent.name if isinstance(found, str) else ""
        return ""

    def embed_pixels(self, pixels: "list[dict[str, torch.Tensor]]") -> np.ndarray:
        """(B, D) float32 unit embeddings of what `prepare` made."""
        from hf_clip.model.embedding_hf_clip import check_finite, evaluation_mode, stack_inputs, unit_image_embeds

        model, _ = self.load()
        with evaluation_mode(model):
            return check_finite(unit_image_embeds(model, stack_inputs(pixels)), "images").cpu().numpy()

    def prepare(self, image) -> "dict[str, torch.Tensor]":
        """The model's inputs for one image."""
        from hf_clip.model.embedding_hf_clip import image_inputs

        return image_inputs(self.load()[1], [image])

    def embed_images(self, images: list) -> np.ndarray:
        from hf_clip.model.embedding_hf_clip import embed_images

        return embed_images(*self.load(), images, dtype=None, show_progress=False).numpy()

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        from hf_clip.model.embedding_hf_clip import embed_texts

        return embed_texts(*self.load(), texts, dtype=None, show_progress=False).numpy()


def _absolute(source: str) -> str:
    """A path that is found from any folder; a Hub id as it is."""
    path = Path(source.removeprefix("local-dir:")).expanduser()
    return str(path.resolve()) if path.exists() else source
