"""The ground that tests stand on: a home of their own, and no way out."""

import os
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants


def test_a_test_reaches_the_loopback_and_nothing_else():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    for host in ("192.0.2.1", "example.invalid"):
        with pytest.raises(PermissionError, match="loopback"):
            socket.create_connection((host, 80))
    with socket.socket() as plain, pytest.raises(PermissionError, match="loopback"):
        plain.connect(("192.0.2.1", 80))


def test_home_and_caches_are_temporary():
    home = Path(os.environ["HOME"])
    assert home.name.startswith("hf-clip-tests-")
    assert Path(constants.HF_HOME).is_relative_to(home)
    assert constants.HF_HUB_OFFLINE
