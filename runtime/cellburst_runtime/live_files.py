"""Live files under a checkpoint: what a process had mapped or open that lies on this machine and may change meanwhile; and under
a template, what its modules were read from.

runsc restores a mapped library by its path, onto whatever bytes are there by then; a module's code is in the memory, however
its source was edited. So every such file is noted at the checkpoint and compared before a restore. Not noted: memory file
systems, which are in the checkpoint; what the session wrote itself, which is in its store; the small files of the root, which
are in the key.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .engine import ContainerSpec, Mount
from .oci import all_mounts
from .snapshot_manifest import LiveFile

CLOCK_NS = 20_000_000  # file systems stamp with the kernel's coarse clock, which is a tick or two behind


_Look = tuple[int, int, int, int]  # device, inode, size, time of writing


def live_files(
    paths: Iterable[str], spec: ContainerSpec, *, upper: Path | None = None, source: Path | None = None
) -> list[LiveFile]:
    """The live files among paths of a container, as they are now.

    `upper` is the session's own part of the notebook's folder and `source` that folder on this machine, where the session
    has a layer. A file that is not found has inode 0, also one that was deleted while open (`/proc` says so in its path).
    Blocks.
    """
    mounts = all_mounts(spec)[::-1]  # the narrowest place first
    found: dict[str, LiveFile] = {}
    for path in paths:
        mount = _mount_of(path, mounts)
        if mount is None or mount.kind != "bind":
            continue
        relative = os.path.relpath(path, mount.destination) if path != mount.destination else ""
        host = Path(mount.source)
        if host.is_relative_to(spec.folder):
            if upper is None or source is None or host != spec.folder / "merged":
                continue  # of this container alone: var, bin, copies
            if _is_file(upper / relative):
                continue
            host = source
        found[path] = _seen(path, host / relative if relative else host)
    return list(found.values())


def changed(file: LiveFile) -> str:
    """Why a checkpoint that stands on this file cannot be restored, "" if it can: the same inode, size and time."""
    if not file.inode:
        return f"{file.path} was open and had no name on this machine"
    try:
        status = os.stat(file.host_path)  # noqa: PTH116 - a thousand of them at each start
    except OSError:
        return f"{file.path} was deleted"
    if status.st_ino != file.inode:
        return f"{file.path} was replaced"
    if (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
        return f"{file.path} was changed"
    return ""


class Sights:
    """What live files were like at earlier looks, of at most `most_files` of them. For any thread."""

    def __init__(self, most_files: int = 20_000) -> None:
        self._most_files = most_files
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, _Look]] = {}  # path on this machine -> time (ns) and look

    def written_since(self, files: Iterable[LiveFile], since_ns: int) -> str:
        """The path of the first file that was written or put there after `since_ns` (wall clock), "" for none: what a process
        that was started then has read of it may be another text. A stamp of the future says nothing. All files are noted. Blocks.

        The time of the change of the inode tells of files with an old time of writing that were put there. But it also moves
        when the file gets one more hard link, as from uv's cache at each install elsewhere: a file that is as at a look from
        before `since_ns` was not put there, and its time of writing counts.
        """
        first = ""
        with self._lock:
            for file in files:
                try:
                    status = os.stat(file.host_path)  # noqa: PTH116 - as in `changed`
                except OSError:
                    continue  # its inode is 0
                now_ns = time.time_ns()  # after the look
                look = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                seen_ns, seen = self._seen.pop(file.host_path, (now_ns, look))
                alike = seen == look
                known = alike and seen_ns <= since_ns
                # Of equal looks the first one's time is kept. Put at the end: what was not looked at for long is forgotten.
                self._seen[file.host_path] = (min(seen_ns, now_ns), look) if alike else (now_ns, look)
                stamp_ns = status.st_mtime_ns if known else status.st_ctime_ns
                if since_ns - CLOCK_NS < stamp_ns <= now_ns:
                    first = first or file.path
            while len(self._seen) > self._most_files:
                del self._seen[next(iter(self._seen))]
        return first


def _seen(path: str, host: Path) -> LiveFile:
    try:
        status = host.stat()
    except OSError:
        return LiveFile(path=path, host_path=str(host))
    return LiveFile(
        path=path, host_path=str(host), device=status.st_dev, inode=status.st_ino, size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )  # fmt: skip


def _mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    if not path.startswith("/"):
        return None
    for mount in mounts:
        place = os.path.normpath(mount.destination)
        if path == place or path.startswith(place.rstrip("/") + "/"):
            return mount
    return None


def _is_file(path: Path) -> bool:
    """Whether the session has a file of its own there; a whiteout is none."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
