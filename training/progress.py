"""What a run says while it trains: a bar or plain lines, metrics.jsonl, and TensorBoard where it is installed."""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from .run_folder import METRICS, TENSORBOARD

# Seconds between plain lines, where there is no terminal for a bar.
SECONDS_BETWEEN_LINES = 10.0


class Report:
    """Progress to the terminal and numbers to the run's folder; on other ranks than the first, silence.

    `metrics.jsonl` has one JSON object a line. Lines after `step` are dropped when a run resumes there, so every step
    stands in it once.
    """

    def __init__(self, folder: Path, step: int, steps: int, is_main: bool):
        self.is_main = is_main
        self.steps = steps
        if not is_main:
            return
        self.file = folder / METRICS
        _drop_lines_after(self.file, step)
        is_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not is_terminal, dynamic_ncols=True)
        self.prints_lines = not is_terminal
        self.last_line = 0.0
        self.tensorboard = _open_tensorboard(folder / TENSORBOARD, step)

    def say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def step(self) -> None:
        if self.is_main:
            self.bar.update()

    def log(self, step: int, numbers: dict[str, float], seconds_left: float) -> None:
        """One line of training numbers."""
        if not self.is_main:
            return
        self._write(step, numbers)
        shown = (
            f"loss {numbers['loss']:.3f}  {numbers['pairs_per_second']:.0f} pairs/s  "
            f"learning rate {numbers['learning_rate']:.2e}"
        )
        self.bar.set_postfix_str(shown)
        if self.prints_lines and (time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or step == self.steps):
            self.last_line = time.monotonic()
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
            self.say(f"step {step}/{self.steps}  {shown}  {left} left")

    def log_evaluations(self, step: int, evaluations: dict[str, dict]) -> None:
        if self.is_main:
            self._write(step, {"evaluation": evaluations})

    def _write(self, step: int, numbers: dict) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **numbers}) + "\n")
        if self.tensorboard is not None:
            for name, value in _scalars(numbers):
                self.tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        if self.is_main:
            self.bar.close()
            if self.tensorboard is not None:
                self.tensorboard.close()


def _scalars(numbers: dict, prefix: str = ""):
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _drop_lines_after(file: Path, step: int) -> None:
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            # A killed run leaves half a line, a machine that lost its power anything.
            continue
    temporary = file.with_suffix(".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)


def _open_tensorboard(folder: Path, step: int):
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
