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
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .engine import ContainerSpec, Mount
from .oci import all_mounts
from .snapshot_manifest import LiveFile

CLOCK_NS = 20_000_000  # file systems stamp with the kernel's coarse clock, which is a tick or two behind


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


def written_since(files: Iterable[LiveFile], since_ns: int) -> str:
    """The path of the first file that was written or put there after `since_ns` (wall clock), "" for none: what a process that
    was started then has read of it may be another text. A stamp of the future says nothing. Blocks."""
    now_ns = time.time_ns()
    for file in files:
        try:
            stamp_ns = os.stat(file.host_path).st_ctime_ns  # noqa: PTH116 - as in `changed`
        except OSError:
            continue  # its inode is 0
        if since_ns - CLOCK_NS < stamp_ns <= now_ns:
            return file.path
    return ""


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
