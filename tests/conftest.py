"""What every test stands on: a home of its own, no network but the loopback, one thread, fixed seeds.

The environment is set here, at import, as the libraries read it when they are first imported.
"""

import atexit
import gc
import os
import random
import shutil
import sys
import tempfile

import pytest

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


@pytest.fixture(autouse=True)
def one_precision(monkeypatch) -> None:
    """What is fast is float32 in the tests' own process: their numbers are the same on every processor."""
    if "torch" in sys.modules:
        for instructions in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.setattr(sys.modules["torch"].cpu, instructions, lambda: False)


# Files that run commands, train, convert and push as a user would, the longest first. They are begun first, as the
# last file would keep one worker alone, and `make quick` skips them.
WHOLE_RUNS = (
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
    """The libraries' million objects are not searched for garbage again and again."""
    gc.collect()
    gc.freeze()
