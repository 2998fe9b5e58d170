"""What all plots stand on: a page of one width, colors, fonts, letters. matplotlib is imported when one is drawn."""

import os
import sys
import unicodedata
import warnings
from bisect import bisect_left
from functools import cache
from pathlib import Path
from typing import Any

# 8.5 inches at 200 dots are shown at half their size in a README, where 9 points then are 12 pixels.
WIDTH_INCHES, DOTS_PER_INCH = 8.5, 200
INK, FAINT, GREEN, RED, BLUE = "#1f2328", "#59636e", "#1a7f37", "#cf222e", "#0969da"
VARIATIONS = {chr(code) for code in range(0xFE00, 0xFE10)}

# DejaVu comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew. The others are used where installed.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


def import_matplotlib():
    """The package, whatever backend `MPLBACKEND` names: no plot here uses one. Raises ImportError where there is none.

    A backend that is not installed, as the one that Jupyter hands to the programs it starts, fails the import.
    """
    try:
        try:
            import matplotlib
        except ValueError:
            # What was imported until then refers to a package that is gone.
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                del sys.modules[name]
            backend = os.environ.pop("MPLBACKEND", None)
            try:
                import matplotlib
            finally:
                if backend is not None:
                    os.environ["MPLBACKEND"] = backend
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'hf_clip[demo]'.") from error
    return matplotlib


def style():
    """The settings that all plots share, for the time that one is drawn."""
    matplotlib = import_matplotlib()
    settings: dict[Any, Any] = {
        "font.family": list(_fonts()),
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": "#d1d9e0",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#eaeef2",
        "xtick.color": FAINT,
        "ytick.color": INK,
        # Captions hold dollar signs, and mean them.
        "text.parse_math": False,
    }
    return matplotlib.rc_context(settings)


def new_figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it holds on to figures, and picks a window system.
    figure = Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure, output: str | Path) -> Path:
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # By its text a push knows the images that were drawn here.
    figure.savefig(output, bbox_inches="tight", pad_inches=0.1, metadata={"Software": "hf_clip"})
    return output


def drawable(text: str) -> str:
    """One line of letters that the fonts at hand have; others become an empty box."""
    # Emoji are joined and colored by invisible letters, which fonts without emoji draw as boxes.
    one_line = " ".join(text.split())
    visible = (c for c in one_line if unicodedata.category(c) not in ("Cc", "Cf") and c not in VARIATIONS)
    composed = unicodedata.normalize("NFC", "".join(visible))
    missing = {letter for letter in composed if ord(letter) not in _glyphs()}
    if missing:
        listed = "".join(sorted(missing))
        warnings.warn(
            f"no font at hand has {listed!r}, drawn as boxes: install one that has, such as Noto Sans CJK.",
            stacklevel=3,
        )
    return "".join("□" if letter in missing else letter for letter in composed)


def shorten(text, max_inches: float) -> None:
    """Cut what a text artist says until it is at most `max_inches` wide."""
    renderer = text.figure.canvas.get_renderer()
    whole = text.get_text()

    def is_too_wide(kept: int) -> bool:
        text.set_text(whole if kept == len(whole) else whole[:kept].rstrip() + "…")
        return text.get_window_extent(renderer).width > max_inches * DOTS_PER_INCH

    if is_too_wide(len(whole)):
        is_too_wide(bisect_left(range(len(whole)), True, key=is_too_wide) - 1)


@cache
def _fonts() -> dict[str, str]:
    """File of each of `FONTS` that is installed, by family."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    found = [family for family in FONTS if family in installed]
    return {family: font_manager.findfont(font_manager.FontProperties(family=[family])) for family in found}


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(code for file in _fonts().values() for code in font_manager.get_font(file).get_charmap())
