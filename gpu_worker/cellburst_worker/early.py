"""Large values while they are being written: read before they are whole, so that a cell waits for the slower of both.

In: the kernel writes a blob, the container reads it meanwhile. Out: the container writes a value, and where its folder is on the
blobs' own disk the kernel reads it meanwhile, else the worker copies it to there. Showing only saves time: a reader makes sure
that it read the very file which the cell names later. A file is shown by a second name, which is taken away before the first is
moved. (Hashing it here as well, as it grows, made it slower: writer and reader already have two cores to themselves.)
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import ValueComing

from . import direct_copy
from .blobs import CHUNK_BYTES, SEALED_MODE, TEMPORARY_NAME, Copier, changed
from .direct_copy import DirectCopier
from .exchange import Exchange

MAX_COPIED = 8
# Given back at a time while the writer writes: a hole waits until the writer lets go of the file, after each of its 16 MiB. With
# one for each piece of 2 MiB the copy was a tenth of the way when the writer was done.
FREE_BYTES = 64 * 1024 * 1024
POLL_SECONDS = 0.002
MAX_SHOWN = 64  # of one container at a time; more are read when they are whole

log = logging.getLogger(__name__)


class Early:
    """The files of one container that are shown before they are whole."""

    def __init__(self) -> None:
        self._shown: list[Path] = []

    def show(self, source: Path, target: Path, *, mode: int = 0) -> None:
        """Show a file under a second name, with these permissions added. Raises PlatformError (INTEGRITY, BUSY), OSError."""
        self._forget_given_up()
        if len(self._shown) >= MAX_SHOWN:
            raise error(ErrorCode.BUSY, f"{MAX_SHOWN} values of this container are on their way already")
        os.link(source, target, follow_symlinks=False)
        self._shown.append(target)
        status = target.lstat()
        if not stat.S_ISREG(status.st_mode):
            self.hide()
            raise error(ErrorCode.INTEGRITY, f"{source.name} is not a regular file")
        if mode:
            target.chmod(stat.S_IMODE(status.st_mode) | mode)

    def _forget_given_up(self) -> None:
        """A writer that was interrupted, or found no disk for it, took its own name away: ours would keep that disk."""
        for path in [path for path in self._shown if _links(path) == 1]:
            path.unlink(missing_ok=True)
            self._shown.remove(path)

    def hide(self) -> None:
        """Take the second names away. Who reads one has it open."""
        shown, self._shown = self._shown, []
        for path in shown:
            path.unlink(missing_ok=True)


def _links(path: Path) -> int:
    try:
        return path.lstat().st_nlink
    except FileNotFoundError:
        return 1


class Copies:
    """Values that one container writes, each copied behind its writer. `direct`: see `direct_copy`. `begin` and `drop` on the
    loop, `finish` in a thread."""

    def __init__(self, *, direct: bool = False) -> None:
        self._direct = direct
        self._under_way: dict[str, CopyBehind] = {}
        self._announced_bytes = 0

    def begin(self, source: Path, staged: Path, size_bytes: int) -> None:
        """Copy SOURCE to STAGED as it grows, unless many are copied already.

        Raises PlatformError (TOO_LARGE, INTEGRITY, BUSY), OSError."""
        if len(self._under_way) >= MAX_COPIED or source.name in self._under_way:
            return
        self._announced_bytes += size_bytes
        if self._announced_bytes > _size_bytes(
            source.parent
        ):  # a copy frees what it copied: that must not make room without end
            raise error(
                ErrorCode.TOO_LARGE, f"{self._announced_bytes} bytes are announced, more than the container's disk"
            )
        self._under_way[source.name] = CopyBehind(source, staged, size_bytes, direct=self._direct)

    def finish(self, name: str, size_bytes: int, staged: Path) -> str:
        """The copy of OUT/<name> is put at `staged`; its hash, or "" where there is none. Raises OSError, PlatformError."""
        copy = self._under_way.pop(name, None)
        return copy.finish(size_bytes, staged) if copy is not None else ""

    def drop(self) -> None:
        """Give up what nobody took."""
        self._announced_bytes = 0
        copies, self._under_way = self._under_way, {}
        for copy in copies.values():
            copy.drop()


class Leaving:
    """The values that one container's cell is writing. `finish` in a thread, the rest on the loop."""

    def __init__(self, container: str) -> None:
        self._container = container
        self._shown = Early()
        self._copies = Copies()

    def begin(self, coming: ValueComing, out: Path, exchange: Exchange) -> ValueComing | None:
        """OUT/<file> begins to be written: what to tell the kernel, if it can read it; else it is copied behind its writer, where
        that must be done anyway. Nothing happens, but a line in the log, for what cannot be."""
        if not exchange.shared or not TEMPORARY_NAME.fullmatch(coming.file):
            return None
        source, temporary = out / coming.file, exchange.folder.temporary()
        try:
            try:
                self._shown.show(source, temporary)
                return ValueComing(file=temporary.name, size_bytes=coming.size_bytes)
            except OSError as why:
                if why.errno != errno.EXDEV:
                    raise
            self._copies.begin(source, temporary, coming.size_bytes)
        except (OSError, CellburstError) as why:
            log.info("a value is taken only when it is whole", extra={"container": self._container, "why": str(why)})
        return None

    def whole(self) -> None:
        """The cell is done: what it wrote is about to be moved, and a file with a second name would be copied."""
        self._shown.hide()

    def finish(self, name: str, size_bytes: int, staged: Path) -> str:
        """See `Copies.finish`."""
        return self._copies.finish(name, size_bytes, staged)

    def drop(self) -> None:
        """Give up what did not come home."""
        self._shown.hide()
        self._copies.drop()


def _size_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize


class CopyBehind:
    """One file being copied and hashed; the source gives its memory back as it goes, which the rest of it then takes. So the
    source is of no use afterwards: a copy that was interrupted goes on where it was."""

    def __init__(self, source: Path, staged: Path, size_bytes: int, *, direct: bool = False) -> None:
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._source = os.open(source, os.O_RDWR | flags)
        try:
            if not stat.S_ISREG(os.fstat(self._source).st_mode):
                raise error(ErrorCode.INTEGRITY, f"{source.name} is not a regular file")
            made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags
            self._out = direct_copy.create(staged) if direct else os.open(staged, made, SEALED_MODE)
        except BaseException:
            os.close(self._source)
            raise
        self._staged, self._size = staged, size_bytes
        self._copier: Copier | DirectCopier = (
            DirectCopier(self._source, self._out, free_bytes=FREE_BYTES)
            if direct
            else Copier(self._source, self._out, CHUNK_BYTES, free_bytes=FREE_BYTES)
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="values out", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as why:  # no more threads: it is copied when it is whole
            self._close()
            raise error(ErrorCode.BUSY, str(why)) from None

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._copier.done <= self._size:  # whatever the container writes on
                if not self._copier.step():
                    self._stop.wait(POLL_SECONDS)
        except OSError:
            pass  # `finish` meets it again, and says it

    def finish(self, size_bytes: int, staged: Path) -> str:
        """The writer is done: copy the rest, put it at `staged`; the hash. Raises OSError, PlatformError (INTEGRITY)."""
        try:
            self._end()
            self._copier.free_bytes = CHUNK_BYTES
            while self._copier.done <= size_bytes and self._copier.step():
                pass
            if self._copier.done != size_bytes:
                raise changed(self._copier.done, size_bytes)
            self._copier.end()
            self._staged.replace(staged)
            return self._copier.hash()
        finally:
            self._close()

    def drop(self) -> None:
        """Nobody wants it."""
        self._end()
        self._close()

    def _end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _close(self) -> None:
        os.close(self._source)
        os.close(self._out)
        self._staged.unlink(missing_ok=True)
