"""Network file systems: folders that containers share live, with Modal's names.

    shared = NetworkFileSystem.from_name("scratch", create_if_missing=True)
    shared.add_local_dir("data", "/data")

What one container writes the others see at once: there is no commit, no version and no conflict, the last write stands. It is a
folder of the gateway's machine: only containers there can have it. `Volume` is for everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import StepVolume
from cellburst_protocol.network_file_systems import (
    CreateShared,
    SharedEntries,
    SharedEntry,
    SharedList,
    SharedRow,
    SharedSize,
)
from cellburst_protocol.volume_mounts import shared_mount
from cellburst_protocol.volumes import VolumeMount, check_name, check_path, shown

from .both import both, both_iter, both_static
from .volume import _api
from .volume_files import FileEntry, FileEntryType, stored_path

_TYPES = {"folder": FileEntryType.DIRECTORY, "link": FileEntryType.SYMLINK}
T = TypeVar("T")


@both_static
async def _delete(name: str, *, allow_missing: bool = False, used: bool = False) -> None:
    """Delete one and all it holds. Raises RequestError: NOT_FOUND unless `allow_missing`; CONFLICT naming what uses it, unless
    `used`."""
    path = f"/nfs/{quote(check_name(name), safe='')}{'?used=1' if used else ''}"
    try:
        await asyncio.to_thread(_api().request, "DELETE", path)
    except Exception as why:
        if not (allow_missing and getattr(why, "code", None) is ErrorCode.NOT_FOUND):
            raise


@both_static
async def _list_all() -> list[SharedRow]:
    """All of the workspace, by name."""
    answer = await asyncio.to_thread(_api().request, "GET", "/nfs")
    return msgspec.json.decode(answer, type=SharedList).rows


@both_static
async def _create(name: str, *, if_missing: bool = False) -> None:
    """Make one. Raises RequestError (BAD_ARGUMENT; CONFLICT, unless `if_missing`)."""
    body = msgspec.json.encode(CreateShared(name=check_name(name), if_missing=if_missing))
    await asyncio.to_thread(_api().request, "POST", "/nfs", body)


class NetworkFileSystem:
    """One, by name. Nothing is asked of the gateway before it is used."""

    def __init__(self, name: str, *, create: bool = False, is_read_only: bool = False) -> None:
        self._name, self._create, self._is_read_only = name, create, is_read_only

    def __repr__(self) -> str:
        return f"NetworkFileSystem({self._name!r}{', read_only' if self._is_read_only else ''})"

    @staticmethod
    def from_name(name: str, *, create_if_missing: bool = False) -> NetworkFileSystem:
        """The one of a name. Raises RequestError (BAD_ARGUMENT) for what is no name; NOT_FOUND comes at the first use."""
        return NetworkFileSystem(check_name(name), create=create_if_missing)

    create = _create
    delete = _delete
    list_all = _list_all

    def read_only(self) -> NetworkFileSystem:
        """The same, which containers cannot write."""
        return NetworkFileSystem(self._name, create=self._create, is_read_only=True)

    async def mount(self, path: str) -> VolumeMount:
        """As a container is told of it. Raises RequestError."""
        await self._ensure()
        return shared_mount(self._name, path, read_only=self._is_read_only)

    def of_step(self, path: str) -> StepVolume:
        """As a step of an image's build is told of it."""
        return StepVolume(
            name=self._name, path=path, read_only=self._is_read_only, kind="shared", create=self._create
        )  # fmt: skip

    @both
    async def size(self) -> SharedSize:
        """What its files hold together: the gateway looks at each. Raises RequestError (NOT_FOUND)."""
        await self._ensure()
        answer = await asyncio.to_thread(_api().request, "GET", f"/nfs/{quote(self._name, safe='')}/size")
        return msgspec.json.decode(answer, type=SharedSize)

    # -- reading ---------------------------------------------------------------------------------------------------

    @both
    async def listdir(self, path: str = "/", *, recursive: bool = False) -> list[FileEntry]:
        """What lies in a folder, by path; the file itself for a file. Raises RequestError (NOT_FOUND, TOO_LARGE)."""
        await self._ensure()
        query = {"path": stored_path(path), "recursive": "1" if recursive else "0"}
        answer = await asyncio.to_thread(_api().request, "GET", self._at("entries", query))
        return [_shown(entry) for entry in msgspec.json.decode(answer, type=SharedEntries).entries]

    @both_iter
    async def iterdir(self, path: str = "/") -> AsyncGenerator[FileEntry, None]:
        """`listdir`, one after another."""
        for entry in await self.listdir.aio(path):
            yield entry

    @both_iter
    async def read_file(self, path: str) -> AsyncGenerator[bytes, None]:
        """A file's bytes in pieces of at most 1 MiB. Raises RequestError (NOT_FOUND, BAD_ARGUMENT: no file)."""
        await self._ensure()
        pieces = _api().stream("GET", self._at("file", {"path": check_path(path)}))
        with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece

    # -- changing --------------------------------------------------------------------------------------------------

    @both
    async def write_file(
        self, remote_path: str, fp: BinaryIO, progress: Callable[[int], object] = lambda size_bytes: None
    ) -> int:
        """Put what an open file holds at a path, in place of what is there; its length in bytes. Readers see the old file or the
        new one, whole. Raises RequestError, PlatformError (DISK_FULL)."""
        await self._ensure()
        sent = 0

        def moved(size_bytes: int) -> None:
            nonlocal sent
            sent += size_bytes
            progress(size_bytes)

        path = self._at("file", {"path": check_path(remote_path)})
        await asyncio.to_thread(lambda: list(_api().stream("PUT", path, fp, moved)))
        return sent

    @both
    async def add_local_file(
        self, local_path: str | os.PathLike[str], remote_path: str | None = None,
        progress: Callable[[int], object] = lambda size_bytes: None,
    ) -> None:  # fmt: skip
        """Put a file; without `remote_path` under its own name. Raises RequestError (NOT_FOUND), PlatformError (DISK_FULL)."""
        local = Path(local_path)
        try:
            file = await asyncio.to_thread(open, local, "rb")
        except OSError as why:
            raise error(ErrorCode.NOT_FOUND, f"{shown(str(local))} cannot be read: {why.strerror}") from None
        with file:
            await self.write_file.aio(remote_path or f"/{local.name}", file, progress)

    @both
    async def add_local_dir(
        self, local_path: str | os.PathLike[str], remote_path: str | None = None,
        progress: Callable[[int], object] = lambda size_bytes: None,
    ) -> None:  # fmt: skip
        """Put all files that a folder holds, under `remote_path` or its own name. Links and what is no file are left out."""
        local = Path(local_path)
        if not local.is_dir():
            raise error(
                ErrorCode.NOT_FOUND, f"there is no folder {shown(str(local))}", next="add_local_file() is for files"
            )
        base = stored_path(remote_path if remote_path is not None else local.resolve().name)
        for folder, _, names in await asyncio.to_thread(lambda: list(os.walk(local))):
            for name in sorted(names):
                file = Path(folder) / name
                if file.is_symlink() or not file.is_file():
                    continue
                target = "/".join(part for part in (base, file.relative_to(local).as_posix()) if part)
                await self.add_local_file.aio(file, target, progress)

    @both
    async def remove_file(self, path: str, recursive: bool = False) -> None:
        """Remove a file; a folder with `recursive`. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        await self._ensure()
        query = {"path": check_path(path), "recursive": "1" if recursive else "0"}
        await asyncio.to_thread(_api().request, "DELETE", self._at("file", query))

    async def _ensure(self) -> None:
        if self._create:
            await _create.aio(self._name, if_missing=True)
            self._create = False

    def _at(self, what: str, query: dict[str, str]) -> str:
        return f"/nfs/{quote(self._name, safe='')}/{what}?{urlencode(query)}"


def _shown(entry: SharedEntry) -> FileEntry:
    kind = _TYPES.get(entry.kind, FileEntryType.FILE)
    size = 0 if entry.kind == "folder" else entry.size_bytes
    return FileEntry(entry.path, kind, int(entry.modified_unix_seconds), size)
