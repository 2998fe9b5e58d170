"""What a run says while it trains: a bar or plain lines, metrics.jsonl, and the recipe's trackers.

Nothing here ends a run. What fails (a terminal that is closed, a disk that is full, a tracker) is closed after its
first failure, which is a line wherever lines can still be written.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .run_folder import METRICS
from .trackers import open_tracker

# Of the time of steps: less is not worth a word in the terminal.
NOTABLE_WAIT = 0.05

logger = logging.getLogger("hf_clip.training")


class ProgressLog:
    """Progress to the terminal and numbers to the run's folder; on other ranks than the first, silence.

    `metrics.jsonl` has one JSON object a line. When a run resumes, lines after its step are dropped: every step stands
    in it once.

    Attributes:
        failures: what a run must report at its end, though it went on: failed evaluations and pushes.
    """

    def __init__(self, folder: Path, steps: int, is_main: bool, trackers: Sequence[str] = ()):
        self.is_main = is_main
        self.folder = folder
        self.steps = steps
        self.failures: list[str] = []
        self._closed: set[str] = set()
        self._bar: tqdm | None = None
        self._trackers: dict[str, Any] = dict.fromkeys(trackers)
        self._handler = _TerminalHandler()
        self._level = logger.level
        if is_main and not _shows_on_terminal(logging.getLogger()):
            logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)

    def begin(self, step: int, evaluates_again: bool = False) -> None:
        """Opens what shows numbers, before the step behind `step`, whose evaluation may come again."""
        if self.is_main:
            self.attempt(METRICS, lambda: _drop_lines_after(self.folder / METRICS, step, evaluates_again))
            self.attempt("The progress bar", lambda: self._open_bar(step))
            for name in self._trackers:
                self.attempt(_shown(name), partial(self._open_tracker, name, step))

    def say(self, text: str) -> None:
        """One line for the user."""
        if self.is_main:
            self.attempt("The log", lambda: logger.info(text))

    def fail(self, text: str) -> None:
        """A line about something that the run must report at its end too."""
        self.failures.append(text)
        self.say(text)

    def step(self) -> None:
        if self._bar is not None:
            self.attempt("The progress bar", self._bar.update)

    def log(self, step: int, numbers: dict[str, float], seconds_left: float) -> None:
        """One line of training numbers."""
        if not self.is_main:
            return
        self._write(step, numbers)
        shown = (
            f"loss {numbers['loss']:.3f}  {numbers['pairs_per_second']:.0f} pairs/s  "
            f"learning rate {numbers['learning_rate']:.2e}"
        )
        if "mfu" in numbers:
            shown += f"  MFU {numbers['mfu']:.0%}"
        if numbers.get("waiting_for_data", 0.0) >= NOTABLE_WAIT:
            shown += f"  {numbers['waiting_for_data']:.0%} waiting for data"
        if self._bar is not None:
            bar = self._bar
            self.attempt("The progress bar", lambda: bar.set_postfix_str(shown))
        else:
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
            self.say(f"step {step}/{self.steps}  {shown}  {left} left")

    def log_evaluations(self, step: int, evaluations: dict[str, dict]) -> None:
        if self.is_main:
            self._write(step, {"evaluation": evaluations})

    @property
    def shows_images(self) -> bool:
        """Whether something takes images, and they can be drawn."""
        has_tracker = any(hasattr(tracker, "log_images") for tracker in self._trackers.values())
        return has_tracker and find_spec("matplotlib") is not None

    def log_image(self, step: int, name: str, file: Path) -> None:
        """A PNG to the trackers that show images."""
        with Image.open(file) as image:
            pixels_HWC = np.asarray(image.convert("RGB"))
        for kind, tracker in self._trackers.items():
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if kind == "tensorboard" else {}
                tracker.log_images({name: pixels_HWC[None]}, step, **options)

    def close(self) -> None:
        if self._bar is not None:
            self.attempt("The progress bar", self._bar.close)
        for name, tracker in self._trackers.items():
            if tracker is not None:
                self.attempt(_shown(name), tracker.finish)
        logger.removeHandler(self._handler)
        logger.setLevel(self._level)

    def attempt(self, name: str, action: Callable[[], Any]) -> None:
        """Does what is not training itself, unless what has that name has failed before; a failure is one line."""
        if name in self._closed:
            return
        try:
            action()
        except Exception as error:
            self._closed.add(name)
            self.say(f"{name} failed ({one_line(error)}): the run goes on without it.")

    def _write(self, step: int, numbers: dict) -> None:
        self.attempt(METRICS, lambda: self._write_line({"step": step, **numbers}))
        for name, tracker in self._trackers.items():
            if tracker is not None:
                self.attempt(_shown(name), partial(self._write_scalars, tracker, step, numbers))

    def _write_line(self, numbers: dict) -> None:
        line = json.dumps(numbers) + "\n"
        with (self.folder / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(line)

    def _write_scalars(self, tracker: Any, step: int, numbers: dict) -> None:
        tracker.log(dict(_scalars(numbers)), step=step)

    def _open_bar(self, step: int) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=self.steps, initial=step, unit="step", dynamic_ncols=True)

    def _open_tracker(self, name: str, step: int) -> None:
        self._trackers[name] = open_tracker(name, self.folder, step)


def _shown(tracker: str) -> str:
    return {"tensorboard": "TensorBoard", "wandb": "W&B", "mlflow": "MLflow"}.get(tracker, tracker)


def one_line(error: BaseException) -> str:
    """An error's text on one line, 300 characters at most; its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class _TerminalHandler(logging.Handler):
    """Lines to standard error, above a progress bar; none after the first that cannot be written."""

    def __init__(self):
        super().__init__()
        self._is_open = True

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_open and sys.stderr is not None:
            try:
                tqdm.write(self.format(record), file=sys.stderr)
                sys.stderr.flush()
            except Exception:
                self._is_open = False


def _shows_on_terminal(handled: logging.Logger) -> bool:
    """Whether the caller's own handlers bring log lines to the terminal: twice would be once too often."""
    return any(getattr(handler, "stream", None) in (sys.stdout, sys.stderr) for handler in handled.handlers)


def _scalars(numbers: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def evaluation_at(folder: Path, step: int) -> dict[str, Any] | None:
    """The evaluations at a step, as `metrics.jsonl` has them; None where it has none."""
    try:
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    found = [line["evaluation"] for line in lines if line.get("step") == step and "evaluation" in line]
    return found[-1] if found else None


def _drop_lines_after(file: Path, step: int, drops_evaluation: bool) -> None:
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            is_again = drops_evaluation and entry["step"] == step and "evaluation" in entry
            if entry["step"] <= step and not is_again:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            # A killed run leaves half a line, a machine that lost its power anything.
            continue
    temporary = file.with_suffix(".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)
