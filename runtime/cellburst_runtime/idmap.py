"""Showing a folder with owners swapped: what `root` owns on the host belongs to the container's user, and back.

A notebook of the user `root` lies in files of uid 0, but code in a container runs as an ordinary uid. An id-mapped
mount (Linux 5.12, for overlayfs' lower folders 5.19) shows them as its own without changing them.
Source: mount_setattr(2), open_tree(2), move_mount(2); the calls have no wrappers in the C library of Debian 12.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from functools import cache
from pathlib import Path

from .tools import find_program

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture (since 5.1)
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_IDMAP = 0x1, 0x2, 0x4, 0x100000
_READY_SECONDS = 5


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64), ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64), ("userns_fd", ctypes.c_uint64),
    )  # fmt: skip


def mount_swapped(source: Path, destination: Path, uid: int, other_uid: int) -> None:
    """Mount `source` read-only at `destination` with the two uids (and gids) swapped. Raises OSError where the kernel or
    the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    tree = _call(libc, _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    try:
        flags = _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        attributes = _MountAttributes(flags, 0, 0, _user_namespace(uid, other_uid))
        _call(libc, _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))
        _call(libc, _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(destination), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def swap_map(uid: int, other_uid: int) -> str:
    """The id map that swaps two ids and leaves all others: lines of `inside outside count`."""
    low, high = sorted((uid, other_uid))
    rows = [
        (0, 0, low),
        (low, high, 1),
        (low + 1, low + 1, high - low - 1),
        (high, low, 1),
        (high + 1, high + 1, 2**32 - 2 - high),
    ]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count > 0)


@cache
def _user_namespace(uid: int, other_uid: int) -> int:
    """A file descriptor of a user namespace with the map. It is kept: it says nothing but the map, every container of a user
    has the same, and making one takes two processes."""
    helper = subprocess.Popen(
        [find_program("unshare") or "unshare", "--user", "sh", "-c", "echo ready; read _"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if helper.stdout is None or helper.stdout.readline() != b"ready\n":
            raise OSError("this system makes no user namespaces")
        for name in ("uid_map", "gid_map"):
            (Path("/proc") / str(helper.pid) / name).write_text(swap_map(uid, other_uid))
        return os.open(f"/proc/{helper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        helper.communicate(timeout=_READY_SECONDS)


def _call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
