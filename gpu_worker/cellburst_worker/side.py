"""Questions about a session's files, answered from its layer without its runner: also while a cell runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import FileChange, SideReply, SideRequest, ValuePart

from .exchange import Exchange
from .hiding import HIDDEN_MARK, Hiding
from .site import Layer

FILE_KINDS = frozenset({"file_list", "file_get", "file_put"})


class FilePut(msgspec.Struct):
    """Content of a `file_put`."""

    path: str
    hash: str
    size_bytes: int


class FileGet(msgspec.Struct):
    """Content of a `file_get`."""

    path: str


def shown_files(layer: Layer, hiding: Hiding | None) -> list[FileChange]:
    """The files that the session wrote, with the values of its secrets hidden in their paths. Blocks. Raises what
    `Layer.file_list` does."""
    files = layer.file_list()
    if hiding is None:
        return files
    shown = hiding.paths(file.path for file in files)
    return [msgspec.structs.replace(file, path=shown[file.path]) for file in files]


def _true_path(layer: Layer, path: str, hiding: Hiding | None) -> str:
    """The path of a file that is asked for as `shown_files` shows it."""
    if hiding is None or HIDDEN_MARK not in path:
        return path
    shown = hiding.paths(file.path for file in layer.file_list())
    return next((true for true, name in shown.items() if name == path), path)


async def answer_file_request(
    request: SideRequest, layer: Layer | None, exchange: Exchange, hiding: Hiding | None
) -> SideReply:
    """The reply to a `file_*` request. Raises CellburstError or OSError for the caller to turn into one."""
    if layer is None:
        raise error(ErrorCode.UNAVAILABLE, "the container is still starting", next="try again in a moment")
    try:
        match request.kind:
            case "file_list":
                return SideReply(id=request.id, content={"files": await asyncio.to_thread(shown_files, layer, hiding)})
            case "file_get":
                path = msgspec.convert(request.content, FileGet).path
                true = await asyncio.to_thread(_true_path, layer, path, hiding)
                return SideReply(id=request.id, content={"path": path}, blob=await _get(true, layer, exchange))
            case _:
                put = msgspec.convert(request.content, FilePut)
                await _put(put, layer, exchange)
                return SideReply(id=request.id, content={"path": put.path})
    except msgspec.ValidationError as why:
        raise error(ErrorCode.BAD_MESSAGE, f"a {request.kind} request of the wrong shape: {why}") from None


async def _get(path: str, layer: Layer, exchange: Exchange) -> ValuePart:
    blobs = exchange.folder

    def keep() -> ValuePart:
        return blobs.keep_copy(layer.file_get(path))

    part = await asyncio.to_thread(keep)
    await exchange.publish([part.hash])
    return part


async def _put(put: FilePut, layer: Layer, exchange: Exchange) -> None:
    part = ValuePart(hash=put.hash, size_bytes=put.size_bytes, at="blob")
    await exchange.bring([part])
    source: Path = exchange.folder.path(put.hash)
    if not source.exists():
        raise error(ErrorCode.NOT_FOUND, f"the blob of {put.path!r} is not there", next="send the file again")
    await asyncio.to_thread(layer.file_put, put.path, source)
