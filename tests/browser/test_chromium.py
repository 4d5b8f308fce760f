"""The browser of the tests is told of no network interface that comes or goes."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from .chromium import ARCHITECTURES, script

TRY = """
import socket
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    print("netlink")
except OSError as why:
    print(why.errno)
socket.create_server(("127.0.0.1", 0)).close()
print("loopback")
"""


@pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="the filter is written for x86_64 and aarch64")
def test_a_program_is_refused_netlink_and_nothing_else(tmp_path: Path) -> None:
    ran = subprocess.run(
        [script(tmp_path, sys.executable), "-c", TRY], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == ["97", "loopback"]
