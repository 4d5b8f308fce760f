"""Whether files of a device lie on this machine's own file systems, where only its own processes can change them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

LOCAL_KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs", "overlay"})
MOUNTS = Path("/proc/self/mountinfo")


@functools.lru_cache(maxsize=64)
def lies_on_this_machine(device: int) -> bool:
    """Whether `device` (`st_dev` of a file) is that of a mount of a local kind; False when that cannot be told."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return False  # not Linux
    return any(_kind(line) in LOCAL_KINDS for line in lines if line.split(" ", 3)[2] == number)


def _kind(line: str) -> str:
    """The file system's kind: the first word behind the separator of proc(5)'s mountinfo."""
    return line.rpartition(" - ")[2].split(" ", 1)[0]
