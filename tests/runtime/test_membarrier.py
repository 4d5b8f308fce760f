"""What keeps runsc's starts from waiting: a system call that does not exist for a worker and what it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux does it")

ASK = "import ctypes, os, platform; n = {'x86_64': 324, 'aarch64': 283}[platform.machine()]\n" + (
    "libc = ctypes.CDLL(None, use_errno=True); print(libc.syscall(n, 0, 0, 0), ctypes.get_errno())"
)


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_it_is_gone_for_the_caller_and_its_children() -> None:
    assert not said(ASK).startswith("-1"), "this kernel has it, or nothing is shown here"
    hidden = f"import subprocess, sys\nfrom cellburst_runtime.membarrier import hide_membarrier\nassert hide_membarrier()\n{ASK}\n"
    again = f"sys.stdout.flush(); subprocess.run([sys.executable, '-c', {ASK!r}], check=True)"
    assert said(hidden + again) == "-1 38\n-1 38\n"


def test_an_ordinary_user_keeps_it() -> None:
    code = "import os\nos.setuid(65534)\nfrom cellburst_runtime.membarrier import hide_membarrier\nprint(hide_membarrier())\n"
    first, second = said("from cellburst_runtime import membarrier\n" + code + ASK).splitlines()
    assert first == "False" and not second.startswith("-1")
