"""How fast steps are: the fraction of a device's speed, the time that data takes, and whom all processes wait for."""

import copy
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_clip.model.modeling_hf_clip import HFCLIPModel

from .stages import Stage
from .stream import PairStream

if TYPE_CHECKING:
    from .step import TrainStep

# 10^12 operations a second in bf16 (fp16 where there is none), dense, of the makers' data sheets. The first name that
# is a word of the device's is its: an L40 is no L4.
PEAK_TERAFLOPS = {
    "B200": 2250.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "V100": 125.0,
    "T4": 65.0,
}
# A process is slow where its own part of a step is so much longer than the median's, and so much of a whole step.
SLOWER, OF_A_STEP = 1.2, 0.1


def peak_teraflops(name: str, precision: str) -> float | None:
    """Of a device by its name, in half precision; None where it is not known."""
    if precision == "no":
        return None
    return next((peak for known, peak in PEAK_TERAFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


@dataclass(frozen=True)
class PairFlops:
    """Operations that a pair needs, as `count` has them, without what is computed again to save memory.

    A text's are `text` for as many tokens as the model takes, and taken to be less by as much as it has fewer.
    """

    image: int
    text: int
    context: int
    image_learns: bool
    text_learns: bool
    dimensions: int

    def count(self, pairs: int, batch_size: int, text_tokens: int, losses: int) -> float:
        """Of `pairs` pairs with so many tokens in all: forward, twice that for backward, and the loss of the batch."""
        images = pairs * self.image * (1 + 2 * self.image_learns)
        texts = text_tokens / self.context * self.text * (1 + 2 * self.text_learns)
        return images + texts + 8 * losses * pairs * batch_size * self.dimensions


def count_pair_flops(model: HFCLIPModel, stage: Stage | None = None) -> PairFlops | None:
    """Counted on a copy without memory; None for towers that look at what tensors hold."""
    # Slow to import, and of no use where the device's speed is not known.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.initialization import no_init_weights

    from .plan import count_tower_flops

    shape = copy.deepcopy(model.config)
    if stage is not None and stage.image_size is not None:
        shape.vision_config.image_size = stage.image_size
    try:
        # Drawing weights may look at what tensors hold.
        with no_init_weights(), FakeTensorMode():
            image, text, dimensions = count_tower_flops(type(model), shape)
    except Exception:
        return None

    def learns(*parts: nn.Module) -> bool:
        return any(each.requires_grad for part in parts for each in part.parameters())

    return PairFlops(
        image=image,
        text=text,
        context=shape.text_config.max_position_embeddings,
        image_learns=learns(model.vision_model, model.visual_projection),
        text_learns=learns(model.text_model, model.text_projection),
        dimensions=dimensions,
    )


class Stopwatch:
    """Seconds of a device's work between `start` and the first `stop` behind it, added up."""

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._first: Any = None
        self._last: Any = None
        self.seconds = 0.0

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self._first, self._last = self._now(), None

    def stop(self) -> None:
        if self._last is None:
            self._last = self._now()

    def add(self) -> None:
        """Takes in what was measured, once the device is known to be behind it."""
        if self._first is not None and self._last is not None:
            took = self._first.elapsed_time(self._last) / 1e3 if self._is_cuda else self._last - self._first
            self.seconds += took
        self._first = self._last = None


@dataclass(frozen=True)
class OwnTime:
    """What one process did by itself in some steps, in seconds: no other could hold it up there."""

    reading: float
    computing: float
    host: str

    @property
    def seconds(self) -> float:
        return self.reading + self.computing


def describe_stragglers(times: list[OwnTime], steps: int, seconds: float) -> dict[int, str]:
    """A line for each process that the others wait for, by its index.

    Args:
        times: of each process, over the last `steps` steps, which took `seconds` together.
    """
    middle = median(each.seconds for each in times)
    slow = {}
    for index, each in enumerate(times):
        if each.seconds > SLOWER * middle and each.seconds - middle > OF_A_STEP * seconds:
            slow[index] = (
                f"All wait for process {index} on {each.host}: it takes {each.seconds / steps:.3g} s a step by itself "
                f"({each.reading / steps:.3g} s of it reading), the median {middle / steps:.3g} s."
            )
    return slow


class SpeedMeter:
    """Measures the steps of a stage from one line of numbers to the next; each process has one."""

    def __init__(self, train_step: "TrainStep", stream: PairStream, stage: Stage):
        self.train_step, self.stream, self.stage = train_step, stream, stage
        config, decisions = train_step.config, train_step.decisions
        name = str(decisions.circumstances()["device"])
        self.teraflops = config.device_teraflops or peak_teraflops(name, decisions.precision)
        self.flops = None
        if self.teraflops is not None and decisions.is_main:
            self.flops = count_pair_flops(train_step.model, stage)
        self.waited, self._host = 0.0, socket.gethostname()
        self._slow, self._said = set(), set()
        self._begin()

    def _begin(self) -> None:
        self.waited = 0.0
        self._before = self.stream.seconds, self.train_step.alone.seconds, self.train_step.text_tokens

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What waits for the next batch, by whichever process it is held up."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - started

    def numbers(self, steps: int, seconds: float, say: Callable[[str], None]) -> dict[str, float]:
        """Of the steps since the last call, which took `seconds`; `say` takes a line about each new straggler.

        Collective.
        """
        reading, computing, tokens = self._before
        own = OwnTime(self.stream.seconds - reading, self.train_step.alone.seconds - computing, self._host)
        times = self.train_step.decisions.coordinator.gather(own)
        numbers = {"waiting_for_data": self.waited / seconds}
        if len(times) > 1:
            all_own = [each.seconds for each in times]
            numbers["waiting_for_slowest"] = min(1.0, (max(all_own) - median(all_own)) / seconds)
            slow = describe_stragglers(times, steps, seconds)
            # Once may be chance, and what was said is not said again.
            for index in slow.keys() & self._slow - self._said:
                say(slow[index])
            self._said = slow.keys() & (self._slow | self._said)
            self._slow = set(slow)
        if self.flops is not None:
            assert self.teraflops is not None
            config, processes = self.train_step.config, len(times)
            losses = config.data.texts_per_image * (2 if config.augmentation.mixup else 1)
            pairs = steps * self.stage.batch_size // processes
            done = self.flops.count(pairs, self.stage.batch_size, self.train_step.text_tokens - tokens, losses)
            numbers["mfu"] = done / seconds / (self.teraflops * 1e12)
        self._begin()
        return numbers
