"""The side of `warm_python` that a test starts: it starts as fast as Python. Its arguments are a program's."""

import array
import json
import os
import signal
import socket
import sys

# What libraries read when they are imported.
READ_AT_IMPORT = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_", "HOME", "OMP_", "MKL_", "DATASETS_")
PASSED = [
    each
    for each in signal.valid_signals()
    if each not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH)
]


def settings(environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def main() -> None:
    address, arguments = sys.argv[1], sys.argv[2:]
    while arguments and arguments[0] in ("-u", "-B"):
        arguments = arguments[1:]
    with open(f"{address}.environment", encoding="utf-8") as file:
        servers = json.load(file)
    is_other = servers is not None and settings(os.environ) != servers
    if is_other or (arguments[0].startswith("-") and arguments[0] not in ("-m", "-c")):
        os.execv(sys.executable, [sys.executable, *arguments])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    streams = array.array("i", [0, 1, 2])
    try:
        connection.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    except OSError:
        # A standard stream is closed.
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in PASSED:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    answer = connection.recv(64)
    code = json.loads(answer) if answer else 1
    if code < 0:
        if -code in PASSED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
