"""Sides of a benchmark, each a process, measured in turn: what the machine does meanwhile hits all alike."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def serve(work: Callable[[], object]) -> None:
    """Within a side's process: one round for every line that comes in, and its seconds."""
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        work()
        print(json.dumps(time.perf_counter() - started), flush=True)


def alternated(sides: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    """Seconds of every round of every side, in turn, once all have warmed up.

    Args:
        sides: the arguments of Python for each; it calls `serve`.
    """
    processes = {}
    try:
        for side, arguments in sides.items():
            command = [sys.executable, *arguments]
            processes[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            _answer(side, processes[side])
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs):
            for side, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                seconds[side].append(_answer(side, process))
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


def print_table(what: str, seconds: dict[str, list[float]]) -> None:
    """Medians of all sides, and of each round's ratio to the first."""
    first = next(iter(seconds))
    for side, times in seconds.items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(seconds[first], times, strict=True))
        print(f"{what:44}{side:32}{statistics.median(times):9.3f} s{ratio:8.2f} x")
