"""A look at a launcher's processes before a long run: do they reach each other, how fast, and with what clocks?"""

import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from statistics import median
from typing import Any, cast

import torch
import torch.distributed as dist
import transformers
from accelerate import PartialState
from torch.cuda import nccl

from hf_clip.hub import made_with

from .device import fastest_device
from .stream.coordination import Coordinator

# torchrun takes a machine whose clock is this much behind for a dead one: its own limit is 15 seconds.
MOST_SKEW_SECONDS = 5.0
# A device that multiplies this much slower than the median holds all others up.
SLOWEST = 0.8
TRIES = 5
# A process that cannot be reached is to be said soon.
TIMEOUT = timedelta(minutes=3)


@dataclass
class ProcessesCheck:
    """What `check_processes` found.

    Attributes:
        processes: of each its index, host, device, versions, and the TFLOP/s of its products of matrices.
        backend: of the sums of a step, such as "nccl".
        latency_seconds: of the sum of one number.
        gigabytes_per_second: by collective, what each process sends and receives meanwhile ("bus bandwidth").
        clock_skew_seconds: by host, how far its clock is before that of the first process.
        problems: one line each; empty where all is well.
    """

    processes: list[dict[str, Any]]
    backend: str
    latency_seconds: float = 0.0
    gigabytes_per_second: dict[str, float] = field(default_factory=dict)
    clock_skew_seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def report(self) -> str:
        """Lines for a terminal."""
        hosts = Counter(each["host"] for each in self.processes)
        lines = [
            f"{len(self.processes)} processes on {len(hosts)} host{'s' if len(hosts) > 1 else ''}, {self.backend}"
        ]
        for host, count in hosts.items():
            own = [each for each in self.processes if each["host"] == host]
            speeds = [each["teraflops"] for each in own]
            lines.append(
                f"  {host}: {count} x {own[0]['device_name']}, {min(speeds):.3g} to {max(speeds):.3g} TFLOP/s in "
                f"products, clock {self.clock_skew_seconds.get(host, 0.0):+.3f} s"
            )
        lines.append(f"latency           {self.latency_seconds * 1e3:.3f} ms for the sum of one number")
        lines += [f"{name:18}{speed:.3g} GB/s a process" for name, speed in self.gigabytes_per_second.items()]
        return "\n".join([*lines, *(f"problem: {each}" for each in self.problems)])


def check_processes(size: int | None = None) -> ProcessesCheck:
    """Runs collectives on the device of each process, and compares clocks, versions and devices. Collective.

    Args:
        size: bytes of the tensors with which bandwidth is measured. None takes 256 MB on a GPU and 16 MB on a CPU.
    """
    device = fastest_device()
    state = PartialState(cpu=device.type == "cpu", timeout=TIMEOUT)
    device = cast(torch.device, state.device)
    coordinator = Coordinator(state.num_processes, TIMEOUT)
    size = size or (2**28 if device.type == "cuda" else 2**24)
    found = ProcessesCheck(coordinator.gather(_own_facts(state, device)), str(dist.get_backend()))
    found.problems += _wrong_sums(device, coordinator)
    found.latency_seconds = max(coordinator.gather(_fastest(lambda: dist.all_reduce(_zeros(4, device)), device)))
    for name, moved, call in _collectives(size, device):
        seconds = max(coordinator.gather(_fastest(call, device)))
        found.gigabytes_per_second[name] = moved / seconds / 1e9
    found.clock_skew_seconds = _clock_skew(found.processes, coordinator)
    found.problems += _unlike(found)
    return found


def _own_facts(state: PartialState, device: torch.device) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "process": state.process_index,
        "host": socket.gethostname(),
        "device": str(device) if is_cuda else device.type,
        "device_name": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "teraflops": _teraflops(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "hf_clip": " ".join(made_with().values()),
        "nccl": ".".join(map(str, nccl.version())) if is_cuda else None,
        "threads": torch.get_num_threads(),
        "process_id": os.getpid(),
    }


def _teraflops(device: torch.device) -> float:
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _fastest(lambda: matrix @ matrix, device) / 1e12


def _zeros(size: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(size // 4, device=device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some tries, behind one that makes connections."""
    times = []
    for _ in range(1 + TRIES):
        _finish(device)
        started = time.perf_counter()
        call()
        _finish(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _collectives(size: int, device: torch.device) -> list[tuple[str, float, Callable[[], object]]]:
    """Name, bytes that each process sends in a ring, and the call of what a step does."""
    processes = dist.get_world_size()
    size -= size % (4 * processes)
    whole, part = _zeros(size, device), _zeros(size // processes, device)
    moved = size * (processes - 1) / processes
    return [
        ("all-reduce", 2 * moved, lambda: dist.all_reduce(whole)),
        ("all-gather", moved, lambda: dist.all_gather(list(whole.chunk(processes)), part)),
        ("reduce-scatter", moved, lambda: dist.reduce_scatter_tensor(part, whole)),
    ]


def _wrong_sums(device: torch.device, coordinator: Coordinator) -> list[str]:
    """What of the collectives gives wrong numbers, on any process."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    expected = torch.arange(processes, device=device, dtype=torch.float32)
    total = torch.full((1000,), float(rank), device=device)
    dist.all_reduce(total)
    everyone = torch.empty(processes, device=device)
    dist.all_gather(list(everyone.chunk(processes)), everyone.new_full((1,), float(rank)))
    scattered = everyone.new_empty(1)
    dist.reduce_scatter_tensor(scattered, expected.clone())
    first = everyone.new_full((1,), float(rank))
    dist.broadcast(first, 0)
    right = {
        "all-reduce": bool((total == expected.sum()).all()),
        "all-gather": torch.equal(everyone, expected),
        "reduce-scatter": bool(scattered == rank * processes),
        "broadcast": bool(first == 0),
    }
    answers = coordinator.gather(right)
    return [
        f"{name} gives wrong numbers on process {wrong[0]} ({len(wrong)} in all)."
        for name in right
        if (wrong := [index for index, each in enumerate(answers) if not each[name]])
    ]


def _clock_skew(processes: list[dict[str, Any]], coordinator: Coordinator) -> dict[str, float]:
    """By host, how far the clock of its first process is before that of the first one (Cristian 1989)."""
    firsts: dict[str, int] = {}
    for each in processes:
        firsts.setdefault(each["host"], each["process"])
    rank, skews = dist.get_rank(), {}
    for host, other in firsts.items():
        if other == 0:
            skews[host] = 0.0
        elif rank in (0, other):
            skews[host] = _ask_clock(other, coordinator)
    return coordinator.gather(skews)[0]


def _ask_clock(other: int, coordinator: Coordinator) -> float:
    """The first process asks, `other` answers: the quickest answer is the most precise."""
    clock, best = torch.zeros(1, dtype=torch.float64), (float("inf"), 0.0)
    for _ in range(TRIES):
        if dist.get_rank() == other:
            dist.recv(clock, 0, group=coordinator.group)
            clock[0] = time.time()
            dist.send(clock, 0, group=coordinator.group)
            continue
        asked = time.time()
        dist.send(clock, other, group=coordinator.group)
        dist.recv(clock, other, group=coordinator.group)
        answered = time.time()
        best = min(best, (answered - asked, float(clock) - (asked + answered) / 2))
    return best[1]


def _unlike(found: ProcessesCheck) -> list[str]:
    """Clocks, versions, devices and speeds that will end a run or slow it down."""
    problems = [
        f"The clock of {host} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} that of process 0: torchrun "
        "takes machines for dead by their clocks. Set them by NTP."
        for host, skew in found.clock_skew_seconds.items()
        if abs(skew) > MOST_SKEW_SECONDS
    ]
    for name in ("python", "torch", "transformers", "hf_clip", "nccl", "device_name"):
        counts = Counter(each[name] for each in found.processes)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = next(each for each in found.processes if each[name] != usual)
            problems.append(
                f"{name} is {odd[name]} on process {odd['process']} ({odd['host']}) and {usual} on most: make them "
                "one."
            )
    shared = Counter((each["host"], each["device"]) for each in found.processes if each["device"] != "cpu")
    for (host, device), count in shared.items():
        if count > 1:
            problems.append(f"{count} processes share {device} of {host}: start one process a GPU.")
    middle = median(each["teraflops"] for each in found.processes)
    for each in found.processes:
        if each["device"] != "cpu" and each["teraflops"] < SLOWEST * middle:
            problems.append(
                f"{each['device']} of {each['host']} (process {each['process']}) multiplies at "
                f"{each['teraflops']:.3g} TFLOP/s, the median at {middle:.3g}: all will wait for it."
            )
    return problems
