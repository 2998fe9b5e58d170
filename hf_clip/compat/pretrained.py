"""OpenCLIP's published weights, by the name of an architecture and of a tag: where they are, and their transform."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clip.conversion.errors import ConversionError
from hf_clip.conversion.hub_files import HubOptions, open_repository
from hf_clip.conversion.locating import locate

_TABLE = Path(__file__).parents[1] / "assets" / "open_clip_pretrained.json"
# Where OpenAI's package and OpenCLIP keep what they downloaded from elsewhere than the Hub.
_CACHE = "~/.cache/clip"


@dataclass(frozen=True)
class Pretrained:
    """Weights of a tag.

    Attributes:
        url: of a file, which may lie in a cache under its last part.
        hf_hub: repository on the Hub, with a file's name behind a further slash where it is none of the usual ones.
        quick_gelu: whether they were trained with it.
        preprocessing: the settings of their transform.
    """

    url: str
    hf_hub: str
    quick_gelu: bool
    preprocessing: dict[str, Any]

    def find(self, cache_dir: str | Path | None) -> Path:
        """The file of weights: from a cache, else fetched from the Hub.

        Raises:
            ConversionError: if neither has it, in one line.
        """
        for folder in (cache_dir, _CACHE):
            if self.url and folder is not None:
                file = Path(folder).expanduser() / self.url.rpartition("/")[2]
                if file.is_file():
                    return file
        if not self.hf_hub:
            raise ConversionError(f"there is no {self.url.rpartition('/')[2]} in {_CACHE}: fetch {self.url} there.")
        owner, name, file = (*self.hf_hub.split("/"), "")[:3]
        hub = HubOptions(cache_dir=cache_dir)
        if file:
            return open_repository(f"{owner}/{name}", hub).fetch([file]) / file
        return locate(f"{owner}/{name}", hub).weights


@functools.cache
def read_pretrained() -> dict[str, dict[str, Pretrained]]:
    """All weights by architecture and tag, in OpenCLIP's order."""
    table: dict[str, dict[str, Any]] = json.loads(_TABLE.read_text(encoding="utf-8"))
    found = {
        name: {
            tag: Pretrained(
                one.get("url", ""), one.get("hf_hub", ""), one.get("quick_gelu", False), one.get("preprocessing", {})
            )
            for tag, one in tags.items()
        }
        for name, tags in table.items()
    }
    # Weights that were trained with QuickGELU are under a second name, of the architecture that has it.
    for name, tags in list(found.items()):
        if quick := {tag: one for tag, one in tags.items() if one.quick_gelu}:
            found[f"{name}-quickgelu"] = quick
    return found


def find_pretrained(name: str, tag: str) -> Pretrained | None:
    """The weights of a tag, in any case and with dashes or underscores; None where there are none."""
    return read_pretrained().get(name, {}).get(tag.lower().replace("-", "_"))
