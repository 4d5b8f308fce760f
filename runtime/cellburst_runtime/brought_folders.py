"""Notebooks' folders from other machines: each pack unpacked once, below the worker's data folder, by the hash of what is in it.

A session's layer lies over it as over a folder of this machine, so nothing is ever written here. Its place is the same when the
session is parked and comes back: a folder stays for long after it was last used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import FilePack

from .image_files import check_pack, unpack

# After the last start that used it; parked sessions are kept 7 days unless the operator says more.
KEPT_SECONDS = 30 * 86400.0
MOST_BYTES = 4 << 30  # of all of them; more than that only for those that are shown now or were used in the last days
FRESH_SECONDS = 8 * 86400.0
EMPTY = "empty"  # what is shown where no folder was sent
_DRAFT = ".part-"
_HASH = re.compile(r"[0-9a-f]{64}")


class BroughtFolders:
    """The folders below `place`, one for each hash."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def path(self, pack: FilePack | None) -> Path:
        """Where a pack's files are shown from; an empty folder without one. Raises PlatformError (INTEGRITY)."""
        if pack is not None and not _HASH.fullmatch(pack.hash):
            raise error(
                ErrorCode.INTEGRITY, f"{pack.hash[:80]!r} is not a pack's hash", allowed="64 hexadecimal digits"
            )
        return self._place / (pack.hash if pack is not None else EMPTY)

    async def bring(self, pack: FilePack, file: Callable[[str], Path | Awaitable[Path]]) -> None:
        """Have the pack's files at `path`; `file` fetches a pack by its hash. Raises the error tree."""
        target = self.path(pack)
        if not target.is_dir():
            found = file(pack.hash)
            tar = found if isinstance(found, Path) else await found
            try:
                await asyncio.to_thread(self._make_room)
                await asyncio.to_thread(self._unpack, tar, pack, target)
            except OSError as why:
                code = ErrorCode.DISK_FULL if why.errno in (28, 122) else ErrorCode.START_FAILED
                raise error(code, f"the notebook's files could not be put down here: {why}") from None
        with contextlib.suppress(OSError):
            os.utime(target)

    def show_empty(self) -> None:
        """Have the empty folder."""
        self.path(None).mkdir(mode=0o755, parents=True, exist_ok=True)

    def _unpack(self, tar: Path, pack: FilePack, target: Path) -> None:
        check_pack(tar, pack)
        draft = self._place / f"{_DRAFT}{secrets.token_hex(8)}"
        draft.mkdir(mode=0o755, parents=True)
        try:
            unpack(tar, draft)
            os.sync()  # its name must not be there after a loss of power without what is in it
            with contextlib.suppress(FileExistsError):  # another start was faster
                try:
                    draft.rename(target)
                except OSError:
                    if not target.is_dir():
                        raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _make_room(self) -> None:
        """Remove the least recently used beyond MOST_BYTES, but for those that may be needed."""
        found = [(folder.stat().st_mtime, folder) for folder in self._place.glob("*") if _HASH.fullmatch(folder.name)]
        left = sum(_bytes(folder) for _, folder in found)
        shown = Path("/proc/self/mountinfo").read_text() if found else ""
        for used, folder in sorted(found):
            if left <= MOST_BYTES or time.time() - used < FRESH_SECONDS:
                return
            if str(folder) not in shown:
                left -= _bytes(folder)
                shutil.rmtree(folder, ignore_errors=True)

    def collect_garbage(self) -> None:
        """At a worker's start, when nothing is shown: remove what was long not used, and drafts of one that was killed."""
        if not self._place.is_dir():
            return
        for folder in self._place.iterdir():
            with contextlib.suppress(OSError):
                old = time.time() - folder.stat().st_mtime > KEPT_SECONDS and folder.name != EMPTY
                if old or folder.name.startswith(_DRAFT):
                    shutil.rmtree(folder)


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
