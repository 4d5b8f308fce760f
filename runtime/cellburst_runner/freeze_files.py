"""Which files of the container's processes are mapped or open: what must be the same when a snapshot is restored.

Everything is read from /proc while other processes run, so that what vanishes on the way is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

# The sandbox saves what lies in these itself, or they are no files.
_MEMORY = frozenset({
    "tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "nsfs", "hugetlbfs",
})  # fmt: skip
_NOT_FILES = ("/dev/", "/proc/", "/sys/", "/memfd:", "/SYSV", "/[", "/anon_")
_OCTAL = re.compile(r"\\([0-7]{3})")


def open_files(proc: str = "/proc") -> list[str]:
    """Paths, sorted. A file that was deleted while open keeps the kernel's " (deleted)" behind its path."""
    found: set[str] = set()
    for pid in _processes(proc):
        found |= _mapped(f"{proc}/{pid}/maps")
        found |= _descriptors(f"{proc}/{pid}/fd")
    mounts = _mounts(f"{proc}/self/mounts")
    return sorted(p for p in found if not p.startswith(_NOT_FILES) and _kind(p, mounts) not in _MEMORY)


def _processes(proc: str) -> list[int]:
    """All of the container when we are its first process; else we and those below us (orphans become ours)."""
    parents: dict[int, int] = {}
    for entry in os.listdir(proc):
        if entry.isdigit():
            try:
                with open(f"{proc}/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue  # it ended
    me = os.getpid()
    if me == 1:
        return sorted(parents)
    ours = {me}
    while True:
        below = {pid for pid, parent in parents.items() if parent in ours} - ours
        if not below:
            return sorted(ours)
        ours |= below


def _mapped(path: str) -> set[str]:
    found: set[str] = set()
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 5)
                if len(fields) == 6 and fields[5].startswith("/"):
                    found.add(fields[5].replace("\\012", "\n"))
    except OSError:
        pass  # the process ended
    return found


def _descriptors(folder: str) -> set[str]:
    found: set[str] = set()
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return found  # the process ended
    for descriptor in descriptors:
        path = f"{folder}/{descriptor}"
        try:
            target = os.readlink(path)
            if target.startswith("/") and not os.path.isdir(path):
                found.add(target)
        except OSError:
            continue  # closed meanwhile
    return found


def _mounts(path: str) -> list[tuple[str, str]]:
    """(place, file system type), the deepest place first, of one place the latest mount first."""
    found = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if len(fields) >= 3:
                found.append((_OCTAL.sub(lambda m: chr(int(m[1], 8)), fields[1]), fields[2]))
    found.reverse()
    return sorted(found, key=lambda mount: -len(mount[0]))


def _kind(path: str, mounts: Iterable[tuple[str, str]]) -> str:
    return next(_kinds(path, mounts), "")


def _kinds(path: str, mounts: Iterable[tuple[str, str]]) -> Iterator[str]:
    for place, kind in mounts:
        if place == "/" or path == place or path.startswith(place + "/"):
            yield kind
