"""The gateway's folder of chunks, used directly where it lies on this machine: no bytes pass through a socket."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import Welcome
from cellburst_protocol.volumes import CHUNK_BYTES, Chunk


class ChunkFolder:
    """FOLDER/<first two hex digits>/<hash>; drafts in FOLDER/tmp. Everything blocks and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, welcome: Welcome) -> ChunkFolder | None:
        """The folder of the gateway that says this, if the proof file can be read here and holds the proof."""
        if not welcome.chunk_folder or not welcome.blob_proof:
            return None
        try:
            proof = Path(welcome.blob_proof_path).read_text()
        except OSError:
            return None
        folder = Path(welcome.chunk_folder)
        return cls(folder) if proof == welcome.blob_proof and os.access(folder / "tmp", os.W_OK) else None

    def has(self, hash: str) -> bool:
        """Whether a chunk is there; it counts as used now, so that it stays until the commit."""
        path = f"{self._folder}/{hash[:2]}/{hash}"
        try:
            os.utime(path)
            return os.stat(path).st_size > 0  # noqa: PTH116  # a Path costs as much as the question
        except FileNotFoundError:
            return False

    def write(self, hash: str, data: bytes | memoryview) -> None:
        """Store a chunk whose hash was computed from these very bytes. Raises PlatformError (DISK_FULL, STORE)."""
        folder = self._folder
        draft = f"{folder}/tmp/{secrets.token_hex(16)}"  # noqa: S108  # a folder of the gateway's own
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:  # a write may be partial when the disk fills up
                    view = view[os.write(descriptor, view) :]
            finally:
                os.close(descriptor)
            try:
                os.rename(draft, f"{folder}/{hash[:2]}/{hash}")  # noqa: PTH104
            except FileNotFoundError:
                (folder / hash[:2]).mkdir(mode=0o700, exist_ok=True)
                os.rename(draft, f"{folder}/{hash[:2]}/{hash}")  # noqa: PTH104
        except BaseException as why:
            Path(draft).unlink(missing_ok=True)
            if isinstance(why, OSError):
                full = why.errno in (28, 122)  # ENOSPC, EDQUOT
                raise error(
                    ErrorCode.DISK_FULL if full else ErrorCode.STORE,
                    f"the gateway's disk for volumes {'is full' if full else f'cannot be written: {why.strerror}'}",
                    next="free some space there, then put again: what was sent is not sent again",
                ) from None  # fmt: skip
            raise

    def read(self, chunk: Chunk, room: memoryview) -> memoryview:
        """A chunk's bytes, in `room`; not checked yet. Raises RequestError (NOT_FOUND), PlatformError (STORE)."""
        hash, folder = chunk.hash, self._folder
        try:
            with open(folder / hash[:2] / hash, "rb", buffering=0) as file:
                at = 0
                while at < chunk.size_bytes and (count := file.readinto(room[at : chunk.size_bytes])):
                    at += count
                return room[: at if not file.read(1) else 0]
        except FileNotFoundError:
            raise error(
                ErrorCode.NOT_FOUND,
                f"chunk {hash[:12]}… is not there (any more)",
                next="read the volume again: it has changed",
            ) from None
        except OSError as why:
            raise error(ErrorCode.STORE, f"chunk {hash[:12]}… cannot be read: {why.strerror}") from None


def checked(chunk: Chunk, data: bytes | memoryview) -> bytes | memoryview:
    """The chunk's bytes if they are. Raises PlatformError (INTEGRITY)."""
    if len(data) != chunk.size_bytes or len(data) > CHUNK_BYTES or blake3(data).hexdigest() != chunk.hash:
        raise error(
            ErrorCode.INTEGRITY, f"chunk {chunk.hash[:12]}… of the volume is damaged: it was not used",
            next="put the file again, with --force",
        )  # fmt: skip
    return data
