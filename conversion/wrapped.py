"""The CLIP within a file of weights that holds more: under a wrapper's prefix, with heads and losses beside it."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import ConversionError
from .open_clip import layout_of_names
from .rules import describe_skipped
from .safe_torch.weights import WeightsFile

logger = logging.getLogger(__name__)

# Of wrappers without a meaning of their own: DistributedDataParallel, torch.compile.
_TRANSPARENT = ("module.", "_orig_mod.")
# What the names of a CLIP begin with, in any format. Within these nothing is skipped: a CLIP is loaded whole.
_PARTS = {
    "visual", "text", "transformer", "token_embedding", "positional_embedding", "positional_embedding_res", "ln_final",
    "text_projection", "text_decoder", "logit_scale", "logit_bias", "attn_mask", "vision_model", "text_model",
    "visual_projection", "input_resolution", "context_length", "vocab_size",
}  # fmt: skip
_IMAGE_TOWERS = ("visual", "vision_model")
_TEXT_MARKERS = ("transformer.", "text.", "text_model.", "token_embedding.")
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Within:
    """Where in a file the CLIP is.

    Attributes:
        path: of the file.
        prefix: of the names of its tensors.
        is_alone: whether everything under the prefix is its own.
    """

    path: Path
    prefix: str = ""
    is_alone: bool = True

    def take(self, weights: WeightsFile) -> WeightsFile:
        """The same file with the CLIP's tensors alone, under their own names. Changes `weights`."""
        tensors = weights.tensors
        for name in list(tensors):
            own = name.removeprefix(self.prefix)
            tensor = tensors.pop(name)
            if name.startswith(self.prefix) and (self.is_alone or own.partition(".")[0] in _PARTS):
                tensors[own] = tensor
        return weights

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Has errors say under which prefix tensors were looked at."""
        try:
            yield
        except (ConversionError, ValueError) as error:
            message = str(error)
            if not self.prefix.removeprefix("module.") or "prefix" in message:
                raise
            if str(self.path) not in message and str(self.path.parent) in message:
                # Another file of the folder is at fault.
                raise
            where = f"{self.path} (its tensors under the prefix {self.prefix!r})"
            named = message.replace(str(self.path), where, 1) if str(self.path) in message else f"{where}: {message}"
            # Other kinds of ValueError are made of more than a message.
            raise (type(error) if isinstance(error, ConversionError) else ConversionError)(named) from None


def find_clip(outline: WeightsFile, *, may_be_wrapped: bool) -> Within:
    """Where the CLIP is among the tensors of a file.

    Args:
        outline: the file's names.
        may_be_wrapped: False for the weights of a folder, which says what they are.

    Raises:
        ConversionError: if there are several.
    """
    names, prefix = list(outline.tensors), ""
    while names and (found := next((one for one in _TRANSPARENT if all(map(_begins(one), names))), None)):
        names, prefix = [name.removeprefix(found) for name in names], prefix + found
    is_adapter = any(".lora_" in name for name in names)
    if not may_be_wrapped or is_adapter:
        return Within(outline.path, prefix)
    if not _is_clip(names):
        inner = sorted({before for name in names for before in _before_markers(name)})
        inner = [one for one in inner if _is_clip([name.removeprefix(one) for name in names if name.startswith(one)])]
        if not inner:
            return Within(outline.path, prefix)
        if len(inner) > 1:
            shown = " and ".join(repr(one[:80]) for one in inner[:_NAMES_SHOWN])
            raise ConversionError(
                f"{outline.path} holds {len(inner)} models of CLIP, under the prefixes {shown}: save the state dict "
                "of one, without its prefix, and load that."
            )
        prefix += inner[0]
    beside = [name for name in outline.tensors if not _is_part(name, prefix)]
    if beside:
        logger.warning("%s: %s", outline.path, describe_skipped(beside))
    return Within(outline.path, prefix, is_alone=False)


def _begins(prefix: str):
    return lambda name: name.startswith(prefix)


def _is_part(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0] in _PARTS


def _before_markers(name: str) -> Iterator[str]:
    """What stands before each piece of a name that an image tower's begins with; the CLIP may be called so too."""
    pieces = name.split(".")
    for index, piece in enumerate(pieces[:-1]):
        if index and piece in _IMAGE_TOWERS:
            yield ".".join(pieces[:index]) + "."


def _is_clip(names: Iterable[str]) -> bool:
    """Whether names are those of both towers."""
    names = list(names)
    has_images = layout_of_names(names) is not None or any(name.startswith("vision_model.") for name in names)
    return has_images and any(name.startswith(_TEXT_MARKERS) for name in names)
