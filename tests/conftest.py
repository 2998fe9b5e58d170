"""What every test stands on: a home of its own, no network but the loopback, one thread, fixed seeds.

The environment is set here, at import, as the libraries read it when they are first imported.
"""

import atexit
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.precision import keep_to_float32

HOME = tempfile.mkdtemp(prefix="hf-clip-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

for name in list(os.environ):
    if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "ACCELERATE_", "XDG_")) and name != "HF_CLIP_SOAK":
        del os.environ[name]
os.environ.update(
    HOME=HOME,
    HF_HOME=os.path.join(HOME, "huggingface"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
    # Bit-equality of two runs holds for one thread count only.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)


def _refuse_the_network(event: str, args: tuple) -> None:
    """An audit hook: sees every connection and look-up of this process, whatever library makes it."""
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and host not in ("localhost", "::1") and not host.startswith("127."):
        raise PermissionError(f"A test reached for {host}: tests connect to this machine's loopback only.")


sys.addaudithook(_refuse_the_network)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    # Only where a test file imported them: the tests of the tree's shape run without.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


# Those that tests send to their own process, where a run takes them.
SENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _not_taken(number: int, _frame) -> None:
    raise AssertionError(f"{signal.Signals(number).name} came where no run takes it.")


if "PYTEST_XDIST_WORKER" in os.environ:
    # Such a signal would end the worker without a word; the controller is still ended by one.
    signal.signal(signal.SIGTERM, _not_taken)
    signal.signal(signal.SIGHUP, _not_taken)


def _dispositions() -> list:
    """Who takes each of the signals: Python's handler, and whether the kernel has one, or holds the signal back."""
    found: list = [signal.getsignal(number) for number in SENT]
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith(("SigBlk", "SigIgn", "SigCgt")):
            mask = int(line.split()[1], 16)
            found.append([line[:6], *(mask >> (number - 1) & 1 for number in SENT)])
    return found


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A handler that a test leaves behind, or takes away, would let another test's signal end the process."""
    before = _dispositions()
    yield
    assert _dispositions() == before


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    # Before fixtures of a module too, and not by a fixture that a test could undo.
    keep_to_float32()


# Files that run commands, train, convert and push as a user would, the longest first. They are begun first, as the
# last file would keep one worker alone, and `make quick` skips them.
WHOLE_RUNS = (
    "test_ray.py",
    "test_kills.py",
    "test_ranks.py",
    "test_sharded.py",
    "test_deepspeed.py",
    "test_stop.py",
    "test_loop.py",
    "test_push.py",
    "test_evaluate.py",
    "test_peers.py",
    "test_plan.py",
    "test_remote_code.py",
    "test_resume.py",
    "test_convert.py",
    "test_safe_torch.py",
    "test_best.py",
    "test_stages.py",
    "test_lengths.py",
    "test_finetuning.py",
    "test_failures.py",
    "test_step.py",
    "test_main.py",
    "test_classify.py",
    "test_locate.py",
    "test_docs.py",
    "test_stream.py",
    "test_suite.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before pytest selects by markers, and sorts no more."""
    for item in items:
        if item.path.name in WHOLE_RUNS:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: WHOLE_RUNS.index(item.path.name) if item.path.name in WHOLE_RUNS else len(WHOLE_RUNS))


def pytest_collection_finish() -> None:
    """Saves are quick; and the libraries' million objects are not searched for garbage again and again."""
    # Only where a test file imported them: the tests of the tree's shape run without.
    if "transformers" in sys.modules:
        import_module("tests.helpers.saved_code")
    gc.collect()
    gc.freeze()
