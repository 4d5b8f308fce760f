"""What builds downloaded and keep for the next ones: uv's cache, and Pythons that uv fetched. Bounded, and mended.

    DATA/uv-cache         uv's own; layers have its files as hard links
    DATA/uv-cache.lock    held shared by a build while uv works with the cache, exclusive by whoever takes out of it
    IMAGES/pythons        one folder for each Python

Packages are taken out by uv itself (`uv cache clean NAME`): where only an unpacked archive is missing, uv fails instead of
fetching it again. uv's own locks do not reach out of a sandbox, so there is one of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from .file_lock import lock, try_lock
from .tools import run_command

_CLEAN_SECONDS = 600.0


class Downloads:
    """`cache` is uv's cache, `pythons` the folder of fetched Pythons, `uv` uv's program."""

    def __init__(self, cache: Path, pythons: Path, uv: str) -> None:
        self.cache, self.pythons, self._uv = cache, pythons, uv
        self._lock = cache.with_name(f"{cache.name}.lock")

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """While this is open, nothing is taken out."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with await lock(self._lock, shared=True):
            yield

    def size_bytes(self) -> int:
        """What is on the disk for downloads only: what layers have too would stay. Blocks, about 10 µs a file."""
        return sum(_own_bytes(place) for place in (self.cache, self.pythons))

    async def bound(self, max_bytes: int) -> int:
        """Take out the oldest until at most `max_bytes` are left; nothing while a build uses them. Returns what is left."""
        left = await asyncio.to_thread(self.size_bytes)
        held = try_lock(self._lock) if left > max_bytes or max_bytes == 0 else None
        if held is None:
            return left
        with held:
            if max_bytes == 0:
                await asyncio.to_thread(self._empty)
            for folder in await asyncio.to_thread(self._oldest_first) if max_bytes else []:
                if left <= max_bytes:
                    break
                left -= await asyncio.to_thread(_own_bytes, folder)
                if folder.parent == self.pythons:
                    await asyncio.to_thread(shutil.rmtree, folder, True)
                else:
                    await self._take_out(_packages(folder))
        return await asyncio.to_thread(self.size_bytes)

    async def forget(self, files: Collection[tuple[int, int]]) -> list[str]:
        """Take out what holds these files (device, inode), because they are damaged. Waits for builds that use the cache. Returns
        the names of the packages that went."""
        if not files or not self.cache.is_dir():
            return []
        with await lock(self._lock):
            folders = await asyncio.to_thread(self._holding, frozenset(files))
            names = sorted({name for folder in folders for name in _packages(folder)})
            await self._take_out(names)
            return names

    async def _take_out(self, packages: Collection[str]) -> None:
        if packages:
            await run_command(
                [self._uv, "cache", "clean", "--quiet", "--cache-dir", str(self.cache), *packages],
                seconds=_CLEAN_SECONDS,
            )

    def _empty(self) -> None:
        for folder in (self.cache, self.pythons):
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)

    def _archives(self) -> Iterator[Path]:
        return self.cache.glob("archive-v*/*")

    def _oldest_first(self) -> list[Path]:
        folders = [*self._archives(), *(self.pythons.iterdir() if self.pythons.is_dir() else ())]
        return [folder for _, folder in sorted((folder.lstat().st_mtime, folder) for folder in folders)]

    def _holding(self, files: frozenset[tuple[int, int]]) -> list[Path]:
        return [
            folder for folder in self._archives()
            if any((status.st_dev, status.st_ino) in files for status in _files(folder))
        ]  # fmt: skip


def _packages(archive: Path) -> list[str]:
    """The packages of an unpacked wheel, by its metadata's folder (`six-1.17.0.dist-info`)."""
    return [re.split(r"-[^-]+\.dist-info$", path.name)[0].replace("_", "-") for path in archive.glob("*.dist-info")]


def _own_bytes(folder: Path) -> int:
    return sum(status.st_blocks * 512 for status in _files(folder) if status.st_nlink == 1)


def _files(folder: Path) -> Iterator[os.stat_result]:
    """Every file below; what goes meanwhile is passed over."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(place, name))  # noqa: PTH118  a tenth of the time
