"""Volumes: folders that outlive containers, with Modal's names.

    volume = Volume.from_name("datasets", create_if_missing=True)
    with volume.batch_upload() as batch:
        batch.put_directory("data", "/data")
    for entry in volume.iterdir("/data"):
        print(entry.path, entry.size)

Every blocking method has a twin: `await volume.listdir.aio("/")`. Each change is one commit: all of it or nothing, and a
file that somebody else changed meanwhile is a `VolumeConflict`. In a container a volume is a folder; there `commit()` publishes
what was written and `reload()` shows what others published.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import getpass
import os
import socket
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from cellburst_protocol import volumes as protocol
from cellburst_protocol.errors import ErrorCode, ErrorInfo, error
from cellburst_protocol.images import StepVolume
from cellburst_protocol.volumes import CommitVolume, CreateVolume, check_name, shown

from .both import both, both_context, both_iter, both_static
from .endpoint import Endpoint
from .volume_api import VolumeApi, raised
from .volume_batch import Batch
from .volume_files import FileEntry, FileEntryType, below, listing, missing, stored_path
from .volume_get import GetReport, Getter
from .volume_places import places
from .volume_put import Progress, PutReport, Putter, Silent

KEEP_ALIVE_SECONDS = 60.0  # the gateway deletes an ephemeral volume for which nobody asked for ten minutes
DOOR = "CELLBURST_VOLUME_DOOR"
T = TypeVar("T")


@dataclass(frozen=True)
class VolumeInfo:
    """What a volume is. `name` is "" of an ephemeral one; `used_by` are sessions and schedules, in words."""

    name: str
    id: str
    version: int
    files: int
    size_bytes: int
    created_at: datetime.datetime
    changed_at: datetime.datetime
    used_by: tuple[str, ...] = ()


@both_static
async def _delete(name: str, *, allow_missing: bool = False, used: bool = False) -> None:
    """Delete a volume and all it holds. Raises RequestError: NOT_FOUND unless `allow_missing`; CONFLICT naming what uses it,
    unless `used`."""
    _outside()
    try:
        await asyncio.to_thread(_api().delete, check_name(name), used=used)
    except Exception as why:
        if not (allow_missing and getattr(why, "code", None) is ErrorCode.NOT_FOUND):
            raise


@both_static
async def _rename(old_name: str, new_name: str) -> None:
    """Give a volume another name. Raises RequestError (NOT_FOUND, CONFLICT)."""
    _outside()
    await asyncio.to_thread(_api().rename, check_name(old_name), check_name(new_name))


@both_static
async def _list_all() -> list[VolumeInfo]:
    """All volumes of the workspace, by name."""
    _outside()
    return [_info(row) for row in (await asyncio.to_thread(_api().list)).rows]


class Volume:
    """A volume of this workspace; make one with `from_name` or `ephemeral`. Nothing is asked of the gateway before it is used."""

    def __init__(self, name: str, *, create: bool = False, id: str = "", is_read_only: bool = False) -> None:
        self._name, self._create, self._id, self._is_read_only = name, create, id, is_read_only
        self._api = _api()

    def __repr__(self) -> str:
        return f"Volume({self._name or self._id!r}{', read_only' if self._is_read_only else ''})"

    @staticmethod
    def from_name(name: str, *, create_if_missing: bool = False) -> Volume:
        """The volume of a name. Raises RequestError (BAD_ARGUMENT) for what is no name; NOT_FOUND comes at the first use."""
        return Volume(check_name(name), create=create_if_missing)

    @staticmethod
    @both_context
    async def ephemeral() -> AsyncIterator[Volume]:
        """A volume without a name, deleted at the end of the `with` (or ten minutes after this program ended)."""
        _outside()
        api = _api()
        row = await asyncio.to_thread(api.create, CreateVolume(ephemeral=True))
        over = threading.Event()

        def keep_alive() -> None:
            while not over.wait(KEEP_ALIVE_SECONDS):
                with contextlib.suppress(Exception):  # the next one tells: ten fit into its life
                    api.row(row.id)

        thread = threading.Thread(target=keep_alive, name="cellburst-ephemeral", daemon=True)
        thread.start()
        try:
            yield Volume("", id=row.id)
        finally:
            over.set()
            await asyncio.to_thread(api.delete, row.id, used=True)

    def read_only(self) -> Volume:
        """The same volume, through which nothing can be changed."""
        return Volume(self._name, create=self._create, id=self._id, is_read_only=True)

    delete = _delete
    rename = _rename
    list_all = _list_all

    @both
    async def info(self) -> VolumeInfo:
        """Version, number of files, size. Raises RequestError (NOT_FOUND)."""
        row = await self._ask(lambda: self._api.row(self._resolved()))
        return _info(row)

    # -- reading ---------------------------------------------------------------------------------------------------

    @both
    async def listdir(self, path: str = "/", *, recursive: bool = False) -> list[FileEntry]:
        """What lies in a folder, by path; the file itself for a file. Raises VolumeFileMissing."""
        wanted = stored_path(path)
        files = await self._ask(lambda: self._api.files(self._resolved(), prefix=wanted))
        return listing(files.entries, wanted, recursive=recursive)

    @both_iter
    async def iterdir(self, path: str = "/", *, recursive: bool = True) -> AsyncGenerator[FileEntry, None]:
        """`listdir`, one after another; by default all that lies below, as Modal's does."""
        for entry in await self.listdir.aio(path, recursive=recursive):
            yield entry

    @both_iter
    async def read_file(self, path: str) -> AsyncGenerator[bytes, None]:
        """A file's bytes in pieces of at most 8 MiB, each checked. Raises VolumeFileMissing, PlatformError (INTEGRITY)."""
        wanted = stored_path(path)
        files = await self._ask(lambda: self._api.files(self._resolved(), prefix=wanted))
        entry = next((entry for entry in files.entries if entry.path == wanted), None)
        if entry is None or entry.kind != "file":
            raise missing(path)
        for chunk in entry.chunks:
            [(_, data)] = await asyncio.to_thread(lambda chunk=chunk: list(self._api.receive([chunk])))  # type: ignore[misc]
            yield bytes(data)

    @both
    async def download(
        self, remote_path: str, local_path: str | os.PathLike[str] = ".", *, force: bool = False,
        progress: Progress | None = None,
    ) -> GetReport:  # fmt: skip
        """Fetch a file or folder. A folder goes below `local_path` under its own name (the volume's root: without one); a file
        too if that is a folder or ends with "/", else under that name. Raises VolumeFileMissing, VolumeFileExists unless
        `force`, PlatformError (DISK_FULL, INTEGRITY)."""
        wanted, local = stored_path(remote_path), Path(local_path)
        stop = threading.Event()

        def work() -> GetReport:
            id = self._resolved()
            entries = below(self._api.files(id, prefix=wanted).entries, wanted)
            if not entries and wanted:
                raise missing(remote_path)
            root, downloads = places(entries, wanted, local, os.fspath(local_path).endswith("/"))
            getter = Getter(self._api, id, root, force=force, progress=progress or Silent(), stop=stop)
            return getter.run(downloads)

        return await self._ask(work, stop)

    # -- changing --------------------------------------------------------------------------------------------------

    @both_context
    async def _batch_upload(self, force: bool, progress: Progress | None) -> AsyncIterator[Batch]:
        self._may_change()
        batch = Batch()
        yield batch
        stop = threading.Event()

        def work() -> PutReport:
            putter = Putter(
                self._api, self._resolved(), _by(), force=force, progress=progress or Silent(), stop=stop
            )  # fmt: skip
            return putter.run(batch.uploads(), batch.report)

        await self._ask(work, stop)

    def batch_upload(self, force: bool = False, *, progress: Progress | None = None) -> Any:
        """`with volume.batch_upload() as batch:` (or `async with`): all that the batch was given is sent at the end of the block
        and published in one commit; nothing, if the block raised. Raises VolumeFileExists for a file that is there with other
        content, unless `force`; VolumeConflict; RequestError (CONFLICT) for a file that changed while it was read."""
        return self._batch_upload(force, progress)

    @both
    async def copy_files(self, src_paths: Sequence[str], dst_path: str, *, recursive: bool = False) -> None:
        """Copy inside the volume, as `cp` does; no bytes are moved. Raises VolumeFileMissing, VolumeConflict, RequestError."""
        self._may_change()
        sources, target = [stored_path(path) for path in src_paths], stored_path(dst_path)
        is_folder_named = dst_path.endswith("/") or len(sources) > 1

        def work() -> None:
            id = self._resolved()
            files = self._api.files(id)
            into = is_folder_named or not target or _is_folder(files.entries, target)
            changes: dict[str, protocol.FileEntry] = {}
            for source in sources:
                found = below(files.entries, source)
                if not found:
                    raise missing(source)
                if not (len(found) == 1 and found[0].path == source and found[0].kind != "folder") and not recursive:
                    raise _is_a_folder(source, "recursive=True (-r) copies it")
                base = "/".join(part for part in (target, source.rpartition("/")[2]) if part) if into else target
                if source and (base == source or base.startswith(f"{source}/")):
                    raise error(ErrorCode.BAD_ARGUMENT, f"{shown(source)} cannot be copied onto or into itself")
                for entry in found:
                    path = (base + entry.path[len(source) :]).strip("/")
                    changes[path] = replace(entry, path=path, version=0, by="")
            self._commit(id, files.version, list(changes.values()), [])

        await self._ask(work)

    @both
    async def remove_file(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file; a folder with `recursive`. Raises VolumeFileMissing, VolumeConflict, RequestError."""
        self._may_change()
        wanted = stored_path(path)

        def work() -> None:
            id = self._resolved()
            files = self._api.files(id, prefix=wanted)
            found = below(files.entries, wanted)
            if not found:
                raise missing(path)
            if not recursive and not (len(found) == 1 and found[0].path == wanted):
                raise _is_a_folder(path, "recursive=True (-r) removes it with all it holds")
            self._commit(id, files.version, [], [entry.path for entry in found])

        await self._ask(work)

    @both
    async def commit(self) -> int:
        """In a container: publish what was written to the volume; its version then. Raises VolumeConflict, RequestError."""
        return await asyncio.to_thread(self._through_door, "commit")

    @both
    async def reload(self) -> int:
        """In a container: show what others published; the version then. Raises RequestError while files of it are open."""
        return await asyncio.to_thread(self._through_door, "reload")

    async def mount(self, path: str) -> protocol.VolumeMount:
        """As a container is told of it. Raises RequestError (NOT_FOUND)."""
        row = await self._ask(lambda: self._api.row(self._resolved()))
        return protocol.VolumeMount(volume=row.id, name=row.name, path=path, read_only=self._is_read_only)

    def of_step(self, path: str) -> StepVolume:
        """As a step of an image's build is told of it. Raises RequestError (BAD_ARGUMENT) for one without a name."""
        if not self._name:
            raise error(
                ErrorCode.BAD_ARGUMENT, "a build step has no ephemeral volume: what is built with one is known by its name",
                next='Volume.from_name("NAME", create_if_missing=True)',
            )  # fmt: skip
        return StepVolume(name=self._name, path=path, read_only=self._is_read_only, create=self._create)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _through_door(self, op: str) -> int:
        if not _inside():
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{op}() is for code in a container that has the volume",
                allowed="there: `%%modal volumes=/data:NAME`",
                next="here every change is published at once, and every look shows what is published",
            )  # fmt: skip
        if op == "commit":
            self._may_change()
        from . import volume_door  # what the container needs, and nothing else

        try:
            ask = volume_door.commit if op == "commit" else volume_door.reload
            return ask(self._name or self._id)
        except volume_door.DoorError as why:
            raise raised(msgspec.convert(why.info, ErrorInfo)) from None

    def _commit(self, id: str, base: int, changes: list[protocol.FileEntry], deleted: list[str]) -> None:
        for start in range(0, max(len(changes), len(deleted)), protocol.MAX_PATHS_PER_COMMIT):
            part = slice(start, start + protocol.MAX_PATHS_PER_COMMIT)
            self._api.commit(
                id,
                CommitVolume(base=base, key=uuid.uuid4().hex, by=_by(), changes=changes[part], deleted=deleted[part]),
            )

    def _resolved(self) -> str:
        """The volume's id, which a rename does not change. Blocks."""
        if not self._id:
            if self._create:
                self._id = self._api.create(CreateVolume(name=self._name, if_missing=True)).id
            else:
                self._id = self._api.row(self._name).id
        return self._id

    async def _ask(self, work: Callable[[], T], stop: threading.Event | None = None) -> T:
        """Do what blocks in a thread. When this is cancelled, `stop` ends it soon."""
        _outside()
        try:
            return await asyncio.to_thread(work)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            raise

    def _may_change(self) -> None:
        if self._is_read_only:
            raise error(
                ErrorCode.FORBIDDEN, f"{self!r} is read-only", next="use the volume that `read_only()` was called on"
            )


def _inside() -> str:
    """In a container that has volumes: the socket by which it commits and reloads. Else ""."""
    return os.environ.get(DOOR, "")


def _outside() -> None:
    if _inside() and not os.environ.get("CELLBURST_LINK"):
        raise error(
            ErrorCode.BAD_ARGUMENT, "in a container a volume is a folder, and this method is for programs outside",
            next="use open(), os.listdir(), shutil there; commit() publishes, reload() fetches",
        )  # fmt: skip


_shared: VolumeApi | None = None
_shared_lock = threading.Lock()


def _api() -> VolumeApi:
    """This process's one; its gateway is found, or started, at the first request."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = VolumeApi(_endpoint)
        return _shared


def _endpoint() -> Endpoint:
    from . import embedded

    return embedded.ensure_gateway()


def _by() -> str:
    """Who writes, for whom it conflicts with."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:200]


def _info(row: protocol.VolumeRow) -> VolumeInfo:
    def when(seconds: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    return VolumeInfo(
        row.name, row.id, row.version, row.files, row.size_bytes, when(row.created_unix_seconds),
        when(row.changed_unix_seconds), tuple(row.used_by),
    )  # fmt: skip


def _is_folder(entries: Sequence[protocol.FileEntry], path: str) -> bool:
    return any(e.path.startswith(f"{path}/") or (e.path == path and e.kind == "folder") for e in entries)


def _is_a_folder(path: str, hint: str) -> Exception:
    return error(ErrorCode.BAD_ARGUMENT, f"{shown(path)} is a folder", next=hint)


__all__ = ["Batch", "FileEntry", "FileEntryType", "Volume", "VolumeInfo"]
