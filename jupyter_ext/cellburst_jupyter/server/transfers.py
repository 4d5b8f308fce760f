"""Volumes over the gateway's routes: lists that are kept and brought up to date, and a file's chunks, a few at a time."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
    MAX_PATHS_PER_COMMIT,
    Chunk,
    ChunkHashes,
    CommitVolume,
    FileEntry,
    VolumeCommitted,
    VolumeFiles,
    check_path,
    pack_chunks,
    shown,
    unpack_chunks,
)

from .gateway import Gateway, decoded

KEPT_LISTS = 4  # of as many volumes; one of 500,000 files has about 100 MB
SHOWN_ENTRIES = 5_000  # of one folder; more are counted
LIST_SECONDS = 120.0
CHUNKS_AT_ONCE = 2  # asked for while the ones before go to the browser: 16 MiB


class FolderEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A file, link or folder in a folder. `size_bytes` and `files` of a folder are of all below it."""

    name: str
    kind: str = "file"
    size_bytes: int = 0
    modified_unix_seconds: float = 0.0
    files: int = 0


class FolderList(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One folder, folders first, by name. `entries_count` is of all, also those beyond what is shown."""

    version: int
    path: str = ""
    entries: list[FolderEntry] = []
    entries_count: int = 0


class NewFile(msgspec.Struct, kw_only=True):
    """A file whose chunks were uploaded."""

    path: str
    size_bytes: int
    chunks: list[Chunk] = []
    modified_unix_seconds: float = 0.0


class Rename(msgspec.Struct, kw_only=True):
    """A file or a whole folder gets another path."""

    path: str
    to: str


class VolumeChange(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a window asks to change, all or none. Without `overwrite` nothing that is there is replaced."""

    files: list[NewFile] = []
    deleted: list[str] = []
    renamed: list[Rename] = []
    overwrite: bool = False


@dataclass
class _Kept:
    id: str = ""
    version: int = 0
    entries: dict[str, FileEntry] = field(default_factory=dict)  # without their chunks


class Volumes:
    """The user's volumes, as windows see them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def folder(self, volume: str, path: str) -> FolderList:
        """What a folder holds now; "" is the volume's own. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        inside = check_path(path) if path.strip("/") else ""
        kept = await self._current(volume)
        return await asyncio.to_thread(_folder, kept, inside)

    async def file(self, volume: str, path: str) -> FileEntry:
        """A file with its chunks. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        wanted = check_path(path)
        found = next((e for e in await self._below(volume, wanted) if e.path == wanted), None)
        if found is None or found.kind != "file":
            raise error(ErrorCode.NOT_FOUND, f"there is no file {shown(wanted)} in volume {shown(volume)}")
        return found

    async def read(self, entry: FileEntry, limit_bytes: int | None = None) -> AsyncIterator[memoryview]:
        """A file's bytes from its start. The next chunks are fetched while those before are sent."""
        left = entry.size_bytes if limit_bytes is None else min(limit_bytes, entry.size_bytes)
        todo = list(entry.chunks)
        coming: asyncio.Task[bytes] | None = None
        try:
            while left > 0 and (todo or coming is not None):
                body = await coming if coming is not None else await self._chunks(todo[:1])
                if coming is None:
                    todo = todo[1:]
                coming = asyncio.create_task(self._chunks(todo[:CHUNKS_AT_ONCE])) if todo else None
                todo = todo[CHUNKS_AT_ONCE:] if coming is not None else todo
                for hash, data in unpack_chunks(body):
                    if blake3(data).hexdigest() != hash:
                        raise error(ErrorCode.STORE, f"a chunk of {shown(entry.path)} came damaged", next="try again")
                    piece = data[:left]
                    left -= len(piece)
                    yield piece
            if left > 0:
                raise error(ErrorCode.STORE, f"{left} bytes of {shown(entry.path)} are missing")
        finally:
            if coming is not None:
                coming.cancel()

    async def put_chunk(self, data: bytes) -> Chunk:
        """Hand a piece of a file to the gateway, unless it has it. Raises RequestError (TOO_LARGE)."""
        if len(data) > CHUNK_BYTES:
            raise error(ErrorCode.TOO_LARGE, f"a chunk of {len(data):,} bytes", allowed=f"at most {CHUNK_BYTES:,}")
        hash = (await asyncio.to_thread(blake3, data)).hexdigest()
        folder = await self._gateway.chunks()
        if folder is not None:
            if not await asyncio.to_thread(folder.has, hash):
                await asyncio.to_thread(folder.write, hash, data)
            return Chunk(hash, len(data))
        asked = msgspec.json.encode(ChunkHashes(hashes=[hash]))
        missing = decoded(await self._gateway.fetch("POST", "/chunks/missing", asked), ChunkHashes)
        if missing.hashes:
            await self._gateway.fetch("PUT", "/chunks", b"".join(pack_chunks([(hash, data)])), 120.0)
        return Chunk(hash, len(data))

    async def change(self, volume: str, asked: VolumeChange, by: str) -> VolumeCommitted:
        """Publish new files, deletions and renames in one commit. Raises RequestError (CONFLICT with the paths that are there,
        NOT_FOUND, BAD_ARGUMENT)."""
        kept = await self._current(volume)
        changes = {check_path(f.path): entry_of(f) for f in asked.files}
        deleted: set[str] = set()
        for path in map(check_path, asked.deleted):
            below = _below(kept, path)
            if not below:
                raise error(ErrorCode.NOT_FOUND, f"there is no {shown(path)} in volume {shown(volume)}")
            deleted.update(below)
        for one in asked.renamed:
            await self._rename(kept.id, check_path(one.path), check_path(one.to), changes, deleted)
        _check_free(kept, changes, deleted, overwrite=asked.overwrite)
        if len(changes) + len(deleted) > MAX_PATHS_PER_COMMIT:
            raise error(
                ErrorCode.TOO_LARGE, f"{len(changes) + len(deleted):,} paths at once", allowed=f"{MAX_PATHS_PER_COMMIT:,}",
                next="`cellburst volume` does it in parts",
            )  # fmt: skip
        commit = CommitVolume(
            base=kept.version, key=secrets.token_hex(16), by=by, changes=list(changes.values()),
            deleted=sorted(deleted - set(changes)),
        )  # fmt: skip
        body = await self._gateway.fetch(
            "POST", f"/volumes/{quote(kept.id, safe='')}/commit", msgspec.json.encode(commit), 120.0
        )
        done: VolumeCommitted = decoded(body, VolumeCommitted)
        return done

    async def _rename(self, volume: str, old: str, new: str, changes: dict[str, FileEntry], deleted: set[str]) -> None:
        if new == old or new.startswith(old + "/"):
            raise error(ErrorCode.BAD_ARGUMENT, f"{shown(old)} cannot become {shown(new)}: that is in itself")
        entries = [e for e in await self._below(volume, old) if not e.deleted]
        if not entries:
            raise error(ErrorCode.NOT_FOUND, f"there is no {shown(old)} in the volume")
        for entry in entries:
            path = check_path(new + entry.path[len(old) :])
            changes[path] = msgspec.structs.replace(entry, path=path, version=0, by="")
            deleted.add(entry.path)

    async def _below(self, volume: str, path: str) -> list[FileEntry]:
        query = f"/volumes/{quote(volume, safe='')}/files?prefix={quote(path, safe='')}"
        body = await self._gateway.fetch("GET", query, timeout_seconds=LIST_SECONDS)
        files: VolumeFiles = decoded(body, VolumeFiles)
        return [e for e in files.entries if e.path == path or e.path.startswith(path + "/")]

    async def _chunks(self, chunks: list[Chunk]) -> bytes:
        asked = msgspec.json.encode(ChunkHashes(hashes=[chunk.hash for chunk in chunks]))
        return await self._gateway.fetch("POST", "/chunks", asked, 120.0)

    async def _current(self, volume: str) -> _Kept:
        """The list of a volume as it is now: what changed since it was last asked for is added to what is kept."""
        kept = self._kept.pop(volume, None) or _Kept()
        query = f"/volumes/{quote(volume, safe='')}/files?since={kept.version}"
        body = await self._gateway.fetch("GET", query, timeout_seconds=LIST_SECONDS)
        files: VolumeFiles = await asyncio.to_thread(decoded, body, VolumeFiles)
        id = files.id or volume  # a gateway that was started before an update does not say it
        if kept.id and id != kept.id:  # another volume has that name now
            return await self._current(volume)
        kept.id = id
        if files.whole:
            kept.entries.clear()
        for entry in files.entries:
            if entry.deleted:
                kept.entries.pop(entry.path, None)
            else:
                kept.entries[entry.path] = msgspec.structs.replace(entry, chunks=[])
        kept.version = files.version
        self._kept[volume] = kept
        while len(self._kept) > KEPT_LISTS:
            self._kept.popitem(last=False)
        return kept

    def forget(self, volume: str) -> None:
        """A volume was deleted or renamed."""
        self._kept.pop(volume, None)


def entry_of(file: NewFile) -> FileEntry:
    """A file whose chunks were uploaded, as a volume has it. Raises RequestError (BAD_ARGUMENT)."""
    if sum(chunk.size_bytes for chunk in file.chunks) != file.size_bytes:
        raise error(ErrorCode.BAD_ARGUMENT, f"the chunks of {shown(file.path)} are not its {file.size_bytes} bytes")
    return FileEntry(
        path=check_path(file.path), size_bytes=file.size_bytes, chunks=file.chunks,
        modified_ns=int(file.modified_unix_seconds * 1e9),
    )  # fmt: skip


def _below(kept: _Kept, path: str) -> list[str]:
    if path in kept.entries and kept.entries[path].kind != "folder":
        return [path]
    return [p for p in kept.entries if p == path or p.startswith(path + "/")]


def _check_free(kept: _Kept, changes: dict[str, FileEntry], deleted: set[str], *, overwrite: bool) -> None:
    """Raises RequestError (CONFLICT) naming in `detail.paths` what is in the way."""
    taken = [path for path in changes if path in kept.entries and path not in deleted] if not overwrite else []
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise error(
            ErrorCode.CONFLICT, f"{shown(taken[0])}{more} is there already", next="replace it, or use another name",
            paths="\n".join(taken[:100]),
        )  # fmt: skip


def _folder(kept: _Kept, inside: str) -> FolderList:
    start = inside + "/" if inside else ""
    found: dict[str, FolderEntry] = {}
    there = not inside
    for path, entry in kept.entries.items():
        if path == inside:
            if entry.kind != "folder":
                raise error(ErrorCode.BAD_ARGUMENT, f"{shown(inside)} is a file", next="open the folder that it is in")
            there = True
            continue
        if not path.startswith(start):
            continue
        there = True
        name, slash, _ = path[len(start) :].partition("/")
        if slash or entry.kind == "folder":
            one = found.setdefault(name, FolderEntry(name=name, kind="folder"))
            if entry.kind != "folder":
                one.files += 1
                one.size_bytes += entry.size_bytes
        else:
            found[name] = FolderEntry(
                name=name, kind=entry.kind, size_bytes=entry.size_bytes, modified_unix_seconds=entry.modified_ns / 1e9
            )
    if not there:
        raise error(ErrorCode.NOT_FOUND, f"there is no folder {shown(inside)}")
    entries = sorted(found.values(), key=lambda e: (e.kind != "folder", e.name.lower(), e.name))
    return FolderList(version=kept.version, path=inside, entries=entries[:SHOWN_ENTRIES], entries_count=len(entries))
