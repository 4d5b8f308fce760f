"""Files of a network file system onto this machine: never outside the target folder, never over another file without `force`.

It is live: code in containers may change it all the while. What is removed meanwhile is named, and each file is fetched as it is
when it is read. One of the same size and time is taken for fetched already: a get that was cut off goes on when it is repeated.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.network_file_systems import SharedEntries, SharedEntry
from cellburst_protocol.volumes import FileEntry, shown

from .beneath import folder_of, refused
from .volume_api import VolumeApi
from .volume_files import stored_path
from .volume_get import Download, disk_told, left_to_fetch, open_part
from .volume_places import places
from .volume_put import THREADS, Progress

SAME_SECONDS = 0.001  # a time went through a float, and a file system has its own fineness
_NO_LINKS = (1, 18, 38, 95)  # EPERM, EXDEV, ENOSYS, EOPNOTSUPP: a file system without hard links


@dataclass
class SharedReport:
    """What a get did. `skipped` are links and what is no file; `gone` was removed before it could be read."""

    files: int = 0
    size_bytes: int = 0
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def get_shared(
    api: VolumeApi, name: str, remote_path: str, local_path: str, *, force: bool, progress: Progress
) -> SharedReport:
    """Fetch a file or folder. A folder goes below `local_path` under its own name (the root: without one); a file too if that is
    a folder or ends with "/", else under that name. Blocks.

    Raises RequestError (NOT_FOUND, TOO_LARGE), VolumeFileExists unless `force` (before anything is written), PlatformError.
    """
    wanted, report = stored_path(remote_path), SharedReport()
    query = urlencode({"path": wanted, "recursive": "1"})
    found = msgspec.json.decode(api.request("GET", f"{_base(name)}/entries?{query}"), type=SharedEntries).entries
    is_file = len(found) == 1 and found[0].path == wanted
    if is_file and found[0].kind != "file":
        raise error(ErrorCode.BAD_ARGUMENT, f"{shown(wanted)} is no file", next="links and pipes are not fetched")
    entries = [_entry(one) for one in found if one.kind in ("file", "folder")]
    report.skipped = [one.path for one in found if one.kind not in ("file", "folder")]
    if wanted and not is_file:
        entries.insert(0, FileEntry(path=wanted, kind="folder"))
    root, downloads = places(entries, wanted, Path(local_path), local_path.endswith("/"))
    files = [one for one in downloads if one.entry.kind == "file"]
    report.files, report.size_bytes = len(files), sum(one.entry.size_bytes for one in files)
    progress.begin(len(files), report.size_bytes)
    with disk_told(root):
        todo = left_to_fetch(
            root, files, lambda one: _state(root, one), report, progress, force=force, other="of another size or time",
            next="--force replaces it; or give another folder",
        )  # fmt: skip
        for download in downloads:
            if download.entry.kind == "folder":
                with folder_of(root, f"{download.path}/-", make=True):
                    pass
        _fetch_all(_Getter(api, _base(name), root, report, force=force, progress=progress), todo)
    return report


def _state(root: Path, download: Download) -> str:
    """What is at its place: "" nothing, "same" a file of its size and time, "other" something else."""
    try:
        with folder_of(root, download.path, make=False) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    if stat.S_ISDIR(status.st_mode):
        raise refused(root, download.path)
    entry = download.entry
    is_same = status.st_size == entry.size_bytes and abs(status.st_mtime - entry.modified_ns / 1e9) < SAME_SECONDS
    return "same" if stat.S_ISREG(status.st_mode) and is_same else "other"


def _fetch_all(getter: _Getter, todo: list[Download]) -> None:
    with ThreadPoolExecutor(THREADS, "cellburst-get") as threads:
        working = [threads.submit(getter.fetch, download) for download in todo]
        try:
            for work in working:
                work.result()
        except BaseException:
            getter.stop.set()
            raise


@dataclass
class _Getter:
    api: VolumeApi
    base: str
    root: Path
    report: SharedReport
    force: bool = field(kw_only=True)
    progress: Progress = field(kw_only=True)
    stop: threading.Event = field(default_factory=threading.Event)

    def fetch(self, download: Download) -> None:
        """One file, whole or not at all."""
        if self.stop.is_set():
            return
        pieces = self.api.stream("GET", f"{self.base}/file?{urlencode({'path': download.entry.path})}")
        try:
            first = next(pieces, b"")  # before anything is made: there may be no such file any more
        except CellburstError as why:
            if why.info.code is not ErrorCode.NOT_FOUND:
                raise
            self.report.gone.append(download.entry.path)
            self.progress.moved(1, 0)
            return
        with contextlib.closing(pieces), folder_of(self.root, download.path, make=True) as (folder, name):  # type: ignore[type-var]  # a generator
            # The same name each time: what a get that was killed left is written over.
            part = f".{blake3(f'{self.base}/{download.entry.path}'.encode()).hexdigest()[:24]}.part"
            fd = open_part(folder, part, 0o666)
            try:
                os.ftruncate(fd, 0)
                if not self._write(fd, first, pieces):
                    return
                os.utime(fd, ns=(download.entry.modified_ns, download.entry.modified_ns))
                self._name(download, folder, part, name)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=folder)
                os.close(fd)
        self.progress.moved(1, 0)

    def _write(self, fd: int, piece: bytes, following: Iterator[bytes]) -> bool:
        while piece:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            self.progress.moved(0, len(piece))
            if self.stop.is_set():
                return False
            piece = next(following, b"")
        return True

    def _name(self, download: Download, folder: int, part: str, name: str) -> None:
        if self.force:
            os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        try:
            os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)  # fails where something is
        except FileExistsError:
            raise error(
                ErrorCode.CONFLICT, f"{shown(download.path)} came to be while it was fetched: it was left as it is",
                next="--force replaces it",
            ) from None  # fmt: skip
        except OSError as why:
            if why.errno not in _NO_LINKS:
                raise
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def _entry(one: SharedEntry) -> FileEntry:
    return FileEntry(
        path=one.path, kind="folder" if one.kind == "folder" else "file", size_bytes=one.size_bytes if one.kind == "file" else 0,
        modified_ns=int(one.modified_unix_seconds * 1e9),
    )  # fmt: skip


def _base(name: str) -> str:
    return f"/nfs/{quote(name, safe='')}"
