"""Ends of runs without what takes them longest: cards whose snippets run, and plots.

Both are tested by themselves (tests/hub, tests/evaluation) and at the end of runs of tests/training/test_loop.py.
"""

from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_clip.evaluation.plots import image_sheets, result_charts, training_curves
from hf_clip.hub import snippets


def end_quickly(patch: pytest.MonkeyPatch) -> None:
    """Snippets print nothing, and a plot is one pixel, until the patch is undone."""
    patch.setattr(snippets, "_printed", lambda code: "")
    for module in (image_sheets, result_charts, training_curves):
        patch.setattr(module, "save", _save_a_pixel)


def _save_a_pixel(figure, output: str | Path) -> Path:
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    information = PngInfo()
    information.add_text("Software", "hf_clip")
    Image.new("RGB", (1, 1)).save(output, pnginfo=information)
    return output
