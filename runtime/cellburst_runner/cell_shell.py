"""`!command` in cells: IPython's own way, and what a command wrote last is not lost.

IPython gives the command a terminal and reads it with pexpect, which waits 50 ms for output, asks then whether the command
lives, and takes a no for the end of its output. What was written between the two is never read: a short command on a busy
machine shows nothing. So after such an end it is read once more, until there is nothing.
"""

from __future__ import annotations

import importlib
from typing import Any


def read_to_the_end() -> None:
    """Have `!command` do so in this process. IPython makes a `pexpect.spawnb` of a command where there is one, and a
    `pexpect.spawn` else, which is the user's too and stays as it is."""
    zmqshell: Any = importlib.import_module("ipykernel.zmqshell")  # theirs: without types, as pexpect
    plain = zmqshell.system

    def system(command: str) -> Any:
        pexpect: Any = importlib.import_module("pexpect")  # on first use, as IPython does
        if not hasattr(pexpect, "spawnb"):
            pexpect.spawnb = _command_class(pexpect)
        return plain(command)

    zmqshell.system = system


def _command_class(pexpect: Any) -> Any:
    class Command(pexpect.spawn):
        def read_nonblocking(self, size: int = 1, timeout: Any = -1) -> Any:
            """As pexpect's, whose end is believed when there is nothing to read behind it."""
            try:
                return super().read_nonblocking(size, timeout)
            except pexpect.EOF:
                return super().read_nonblocking(size, 0)

    return Command
