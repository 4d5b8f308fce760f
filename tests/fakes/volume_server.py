"""The gateway's volume routes in memory, over HTTP in a thread: for tests of whoever commits and fetches.

The rules are the protocol's own (`conflicts`); `refusals` answers so many requests with 503, `lost` does so many commits and
drops their answers, `before_commit` is called when a commit has come.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
    Chunk,
    ChunkHashes,
    CommitVolume,
    FileEntry,
    VolumeCommitted,
    VolumeFiles,
    conflict_error,
    conflicts,
    pack_chunks,
    same_content,
    unpack_chunks,
)


class Volume:
    """One volume: `files` has deletions too."""

    def __init__(self) -> None:
        self.version = 0
        self.files: dict[str, FileEntry] = {}
        self.keys: dict[str, VolumeCommitted] = {}


class VolumeServer:
    """Volumes by name. Everything is under one lock, so a reader sees one version or the next."""

    def __init__(self, token: str) -> None:
        self.volumes: dict[str, Volume] = {}
        self.chunks: dict[str, bytes] = {}
        self.refusals = 0
        self.lost = 0
        self.asked: list[str] = []  # method and path of each request
        self.before_commit: Callable[[], object] = lambda: None
        self._token = token
        self._lock = threading.RLock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            wbufsize = 64 * 1024  # head and body of an answer in one packet

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = owner._answer(self.command, self.path, body, self.headers.get("Authorization") or "")
                if not status:
                    return  # lost: the connection just ends
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST = _do

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # -- what tests do ---------------------------------------------------------------------------------------------

    def write(self, volume: str, files: dict[str, bytes], *, deleted: tuple[str, ...] = (), by: str = "a test") -> int:
        """Commit as somebody else, with the newest version as its base."""
        changes = []
        for path, data in files.items():
            pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
            chunks = [Chunk(blake3(piece).hexdigest(), len(piece)) for piece in pieces]
            self.chunks |= {chunk.hash: piece for chunk, piece in zip(chunks, pieces, strict=True)}
            changes.append(FileEntry(path=path, size_bytes=len(data), modified_ns=10**18, chunks=chunks))
        with self._lock:
            there = self.volumes.setdefault(volume, Volume())
            commit = CommitVolume(base=there.version, key="", by=by, changes=changes, deleted=list(deleted))
            return self._commit(volume, commit).version

    def read(self, volume: str) -> dict[str, bytes]:
        """The bytes of all its files, now."""
        with self._lock:
            files = self.volumes[volume].files.values()
            return {e.path: b"".join(self.chunks[c.hash] for c in e.chunks) for e in files if not e.deleted}

    # -- requests --------------------------------------------------------------------------------------------------

    def _answer(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, bytes]:
        url = urlsplit(path)
        parts = url.path.strip("/").split("/")
        if method == "POST" and parts[-1] == "commit":
            self.before_commit()
        with self._lock:
            self.asked.append(f"{method} {url.path}")
            if authorization != f"Bearer {self._token}":
                return 401, b"{}"
            if self.refusals:
                self.refusals -= 1
                return 503, b""
            try:
                answer = self._do(method, parts, {k: v[0] for k, v in parse_qs(url.query).items()}, body)
            except CellburstError as why:
                return 409, msgspec.json.encode(why.info)
            if parts[-1] == "commit" and self.lost:
                self.lost -= 1
                return 0, b""
            return 200, answer

    def _do(self, method: str, parts: list[str], query: dict[str, str], body: bytes) -> bytes:
        match [method, *parts]:
            case ["GET", "volumes", name, "files"]:
                volume, since = self._volume(name), int(query.get("since", "0"))
                entries = [e for e in volume.files.values() if e.version > since and (since or not e.deleted)]
                return msgspec.json.encode(VolumeFiles(version=volume.version, entries=entries))
            case ["POST", "volumes", name, "commit"]:
                return msgspec.json.encode(self._commit(name, msgspec.json.decode(body, type=CommitVolume)))
            case ["POST", "chunks", "missing"]:
                asked = msgspec.json.decode(body, type=ChunkHashes).hashes
                return msgspec.json.encode(ChunkHashes(hashes=[hash for hash in asked if hash not in self.chunks]))
            case ["PUT", "chunks"]:
                for hash, data in unpack_chunks(body):
                    assert blake3(data).hexdigest() == hash
                    self.chunks[hash] = bytes(data)
                return b"{}"
            case ["POST", "chunks"]:
                hashes = msgspec.json.decode(body, type=ChunkHashes).hashes
                return b"".join(bytes(piece) for piece in pack_chunks((hash, self.chunks[hash]) for hash in hashes))
        raise CellburstError(ErrorInfo(code=ErrorCode.BAD_ARGUMENT, message=f"no route {method} {parts}"))

    def _volume(self, name: str) -> Volume:
        if name not in self.volumes:
            raise error(ErrorCode.NOT_FOUND, f"there is no volume {name!r}")
        return self.volumes[name]

    def _commit(self, name: str, commit: CommitVolume) -> VolumeCommitted:
        volume = self._volume(name)
        if commit.key and commit.key in volume.keys:
            return volume.keys[commit.key]
        if against := conflicts(commit, volume.files):
            raise conflict_error(name, against)
        assert all(chunk.hash in self.chunks for entry in commit.changes for chunk in entry.chunks)
        changed = [e for e in commit.changes if not _is_same(volume.files.get(e.path), e)]
        gone = [path for path in commit.deleted if path in volume.files and not volume.files[path].deleted]
        if changed or gone:
            volume.version += 1
        for entry in changed:
            volume.files[entry.path] = msgspec.structs.replace(entry, version=volume.version, by=commit.by)
        for path in gone:
            volume.files[path] = FileEntry(path=path, deleted=True, version=volume.version, by=commit.by)
        volume.keys[commit.key] = VolumeCommitted(version=volume.version, changed=len(changed) + len(gone))
        return volume.keys[commit.key]


def _is_same(there: FileEntry | None, entry: FileEntry) -> bool:
    return there is not None and same_content(there, entry) and (there.mode, there.modified_ns) == (
        entry.mode, entry.modified_ns,
    )  # fmt: skip
