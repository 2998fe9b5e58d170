"""A Python that starts in a fraction of a second: forked from one that has imported the package and its libraries.

    subprocess.run([*warm_python(), "-m", "hf_clip", "train", ...], cwd=..., env=...)

To import torch and transformers takes ten seconds of a core, most of a test that starts a program. What stands before
a program's arguments is a client (`warm_client.py`), which hands its standard streams, folder and environment to a
server and waits. Signals go on to the forked program, its exit code or deadly signal comes back, and when the client
is killed the program is too. Where the environment differs in what libraries read when they are imported, the client
becomes a plain Python.
"""

import array
import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

from tests.helpers import warm_client

ROOT = Path(__file__).parents[2]
PRELOADED = {
    "package": (
        "torch.distributed.nn.functional",
        "hf_clip.training.loop",
        "hf_clip.hub.push",
        "hf_clip_cli.tasks",
        "tests.helpers.saved_code",
    ),
    # Nothing of Hugging Face's, whose libraries read variables of the environment when they are imported.
    "libraries": (
        "torch.distributed.nn.functional",
        "torch.distributed.tensor",
        "torch._dynamo",
        "torch.fx.experimental.symbolic_shapes",
        "sympy",
        "scipy.optimize",
        "pandas",
        "pyarrow.parquet",
        "httpx2",
        "PIL.Image",
        "yaml",
    ),
}


@cache
def warm_python(preloaded: str = "package") -> list[str]:
    """What stands in place of `sys.executable`.

    Args:
        preloaded: "package" for programs of the package in the environment of the tests; "libraries" for those that
            must do without the package, or in another environment.
    """
    if not hasattr(os, "pidfd_open"):
        return [sys.executable]
    # In the home of the tests, whatever a test has for a folder of temporary files.
    address = str(Path(tempfile.mkdtemp(prefix="warm-", dir=Path.home())) / "socket")
    settings = warm_client.settings(os.environ) if preloaded == "package" else None
    Path(f"{address}.environment").write_text(json.dumps(settings), encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, "-c", "from tests.helpers.warm_python import serve; serve()", address, preloaded],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    atexit.register(server.kill)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    # Without site-packages: the client needs the standard library alone.
    return [sys.executable, "-S", warm_client.__file__, address]


def printed_words(program: str, *arguments: str, **environment: str) -> list[str]:
    """Words that a program printed, which has these of Hugging Face's variables alone."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    command = [*warm_python("libraries"), "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def serve() -> None:
    """Forks a process for each connection, which forks the program and is its parent."""
    for name in PRELOADED[sys.argv[2]]:
        __import__(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.path.remove("")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(sys.argv[1])
    listening.listen(16)
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(connection)
            os._exit(0)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Starts the program of a connection, passes signals on to it, and tells its end."""
    request, packed, _, _ = connection.recvmsg(2**20, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i", packed[0][2]).tolist()
    program = os.fork()
    if program == 0:
        connection.close()
        _become(streams, **json.loads(request))
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(program)
    while ended not in (readable := select.select([connection, ended], [], [])[0]):
        number = connection.recv(1) if connection in readable else b""
        # A client that is gone was killed.
        os.kill(program, number[0] if number else signal.SIGKILL)
        if not number:
            break
    status = os.waitpid(program, 0)[1]
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode())


def _become(streams: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Runs a program in this process as Python would, and ends it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.stdin = open(0, encoding="utf-8")
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1 if os.isatty(1) else -1)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace")
    code = _exit_code(arguments)
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _exit_code(arguments: list[str]) -> int:
    """The program's exit code; a negative number for the signal that ends it."""
    try:
        _run(arguments)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run(arguments: list[str]) -> None:
    what, *rest = arguments
    if what == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(what)))
        sys.argv = arguments
        runpy.run_path(what, run_name="__main__")
