"""Sides of a benchmark, each a process, measured in turn: what the machine does meanwhile hits all alike.

Beside seconds of the clock stand those that the side's process computed, which other processes change less.
"""

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(work: Callable[[], object]) -> None:
    """Within a side's process: one round for every line that comes in, its seconds, and those of computing."""
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        started, computed = time.perf_counter(), time.process_time()
        work()
        print(json.dumps([time.perf_counter() - started, time.process_time() - computed]), flush=True)


def alternated(sides: dict[str, list[str]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every round of every side, by the clock and of computing, in turn, once all have warmed up.

    Args:
        sides: the arguments of Python for each; it calls `serve`.
    """
    processes = {}
    try:
        for side, arguments in sides.items():
            command = [sys.executable, *arguments]
            processes[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            _answer(side, processes[side])
        seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(runs):
            for side, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                seconds[side].append(tuple(_answer(side, process)))
        return seconds
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()


def _answer(side: str, process: subprocess.Popen):
    """What a side says next, apart from what its libraries say."""
    while line := process.stdout.readline():
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise SystemExit(f"{side} has ended with {process.wait()}")


def print_table(what: str, seconds: dict[str, list[tuple[float, float]]], items: dict[str, int] | None = None) -> None:
    """Medians of all sides, and of each round's ratio to the first, by the clock and of computing.

    Args:
        items: how many each side encodes, where they are not as many: numbers are then those of one item.
    """
    counts = items or dict.fromkeys(seconds, 1)
    first = next(iter(seconds))
    for side, rounds in seconds.items():
        shown = ""
        for kind, unit in ((0, "s"), (1, "s of computing")):
            ours = [each[kind] / counts[first] for each in seconds[first]]
            theirs = [each[kind] / counts[side] for each in rounds]
            ratio = statistics.median(other / mine for mine, other in zip(ours, theirs, strict=True))
            shown += f"{statistics.median(theirs):10.4f} {unit}{ratio:7.2f} x"
        print(f"{what:34}{side:24}{shown}", flush=True)


def describe_machine(*also: str) -> str:
    """The processor, how many cores and threads, how busy it is, and the versions of what is measured.

    Args:
        also: packages beside torch and transformers.
    """
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or ["a CPU"]
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    versions = []
    for package in ("torch", "transformers", *also):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{names[0]} ({capability}), {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load}; "
        + ", ".join(versions)
    )
