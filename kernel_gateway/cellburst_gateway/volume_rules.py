"""What a commit may be, checked before the record or the disk is asked. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_PATH_BYTES,
    MAX_PATHS_PER_COMMIT,
    Chunk,
    CommitVolume,
    FileEntry,
    check_hash,
    check_path,
    shown,
)

MAX_KEY_CHARACTERS = 128
MAX_BY_CHARACTERS = 200
MAX_PARTS = 256  # of a path: no tree is deeper, and a commit's work is bounded by it
_KINDS = ("file", "link", "folder")
_MAX_TIME_NS = 2**63 - 1


def checked_commit(commit: CommitVolume) -> CommitVolume:
    """The commit as it is recorded: paths in their stored form, nothing in an entry that is not its writer's to say.
    Raises RequestError (BAD_ARGUMENT, TOO_LARGE)."""
    count = len(commit.changes) + len(commit.deleted)
    if count > MAX_PATHS_PER_COMMIT:
        raise error(
            ErrorCode.TOO_LARGE,
            f"a commit of {count:,} paths",
            allowed=f"{MAX_PATHS_PER_COMMIT:,}",
            next="make several of it",
        )
    if not commit.key or len(commit.key) > MAX_KEY_CHARACTERS:
        raise _wrong("key", commit.key, f"1 to {MAX_KEY_CHARACTERS} characters")
    if len(commit.by) > MAX_BY_CHARACTERS:
        raise _wrong("by", commit.by, f"at most {MAX_BY_CHARACTERS} characters")
    if commit.base < 0:
        raise _wrong("base", commit.base, "a version that was read")
    changes = [_checked(entry) for entry in commit.changes]
    deleted = [_path(path) for path in commit.deleted]
    seen: set[str] = set()
    for path in [*(entry.path for entry in changes), *deleted]:
        if path in seen:
            raise error(ErrorCode.BAD_ARGUMENT, f"{shown(path)} is in the commit twice", next="name each path once")
        seen.add(path)
    return replace(commit, changes=changes, deleted=deleted)


def chunks_of(entries: Iterable[FileEntry]) -> dict[str, int]:
    """Every chunk that they consist of: its length by hash. Raises RequestError when one hash has two lengths."""
    found: dict[str, int] = {}
    for entry in entries:
        for chunk in entry.chunks:
            if found.setdefault(chunk.hash, chunk.size_bytes) != chunk.size_bytes:
                raise error(ErrorCode.BAD_ARGUMENT, f"chunk {chunk.hash[:12]}… is said to have two lengths")
    return found


def _checked(entry: FileEntry) -> FileEntry:
    path = _path(entry.path)
    if entry.kind not in _KINDS:
        raise _wrong(f"kind of {shown(path)}", entry.kind, ", ".join(_KINDS))
    if not 0 <= entry.modified_ns <= _MAX_TIME_NS:
        raise _wrong(f"modified_ns of {shown(path)}", entry.modified_ns, "nanoseconds since 1970")
    if entry.kind == "file":
        _check_chunks(path, entry.size_bytes, entry.chunks)
    elif entry.chunks or entry.size_bytes:
        raise _wrong(f"chunks of {shown(path)}", f"{entry.size_bytes} bytes", f"none for a {entry.kind}")
    if (entry.kind == "link") != bool(entry.target):
        raise _wrong(f"target of {shown(path)}", entry.target, "a text for a link, none for others")
    if entry.target:
        try:
            size = len(entry.target.encode())
        except UnicodeEncodeError:
            raise _wrong(f"target of {shown(path)}", entry.target, "valid Unicode") from None
        if size > MAX_PATH_BYTES or "\0" in entry.target:
            raise _wrong(f"target of {shown(path)}", entry.target, f"at most {MAX_PATH_BYTES} bytes, no NUL")
    return replace(entry, path=path, mode=entry.mode & 0o777, deleted=False, version=0, by="")


def _path(path: str) -> str:
    text = check_path(path)
    if text.count("/") >= MAX_PARTS:
        raise error(ErrorCode.BAD_ARGUMENT, f"{shown(text)} is too deep", allowed=f"{MAX_PARTS} parts")
    return text


def _check_chunks(path: str, size_bytes: int, chunks: list[Chunk]) -> None:
    if not 0 <= size_bytes <= MAX_FILE_BYTES:
        raise error(
            ErrorCode.TOO_LARGE, f"{shown(path)} has {size_bytes:,} bytes", allowed=f"{MAX_FILE_BYTES:,} in one file",
            next="cut it into several files",
        )  # fmt: skip
    whole, rest = divmod(size_bytes, CHUNK_BYTES)
    sizes = [CHUNK_BYTES] * whole + ([rest] if rest else [])
    if [chunk.size_bytes for chunk in chunks] != sizes:
        raise _wrong(
            f"chunks of {shown(path)}",
            f"{len(chunks)} for {size_bytes} bytes",
            f"{CHUNK_BYTES} bytes each, the last one shorter",
        )
    for chunk in chunks:
        check_hash(chunk.hash)


def _wrong(what: str, value: object, allowed: str) -> Exception:
    return error(ErrorCode.BAD_ARGUMENT, f"a commit's {what} cannot be {shown(str(value))}", allowed=allowed)
