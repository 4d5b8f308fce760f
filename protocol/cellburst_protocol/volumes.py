"""Volumes: what a commit is made of, the rules for names and paths, and the bodies of the gateway's volume routes. No I/O.

A volume is a line of commits, numbered from 1; version 0 is empty. A commit changes whole files: each path has the version
that changed it last, so that what is new since version N is a short list. A file's bytes are chunks of `CHUNK_BYTES` (the
last one shorter), stored once by content hash (BLAKE3) in the workspace's chunk store; an unchanged chunk is never sent again.

Who writes says which version it began from (`base`). A path that somebody else changed after that to something else is a
conflict: the whole commit is refused (VOLUME_CONFLICT, with path and writer) and nothing is published, unless
`last_write_wins`. Both sides having written the same bytes is no conflict.

Routes, all JSON but for chunks (tokens of users and workers; a viewer's may only GET):

    GET    /volumes                                -> VolumeList
    POST   /volumes                CreateVolume    -> VolumeRow        CONFLICT, unless if_missing
    GET    /volumes/NAME                           -> VolumeRow        NAME is a volume's name or id
    PATCH  /volumes/NAME           RenameVolume    -> VolumeRow
    DELETE /volumes/NAME?used=1                    -> {}               CONFLICT names what uses it, unless `used`
    GET    /volumes/NAME/files?since=N&prefix=P    -> VolumeFiles      what changed after version N, deletions included if N > 0;
                                                                       or all there is (`whole`), when N is more than a day old
    POST   /volumes/NAME/commit    CommitVolume    -> VolumeCommitted
    POST   /chunks/missing         ChunkHashes     -> ChunkHashes      those of them that the workspace lacks
    PUT    /chunks                 packed chunks   -> {}               many small chunks at once, see `pack_chunks`
    POST   /chunks                 ChunkHashes     -> packed chunks    in the order asked for, at most MAX_PACK_BYTES together
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from .buckets import BucketSource
from .errors import ErrorCode, error

CHUNK_BYTES = 8 * 1024**2  # a 1 TiB file has 131,072; a changed byte costs one of them
MAX_FILE_BYTES = 1024**4
MAX_FILES = 500_000  # of one volume
MAX_PATH_BYTES = 4096  # PATH_MAX of Linux
MAX_PART_BYTES = 255  # NAME_MAX of Linux
MAX_PATHS_PER_COMMIT = 50_000  # a body of about 10 MB; more are several commits
MAX_PACK_BYTES = 32 * 1024**2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CUT = "chunks that are cut off or too large: send them again"


class Chunk(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a file: BLAKE3 in hex, and its length."""

    hash: str
    size_bytes: int


class FileEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A path of a volume, relative, parts separated by `/`. `kind` "link" is a symbolic link whose text is `target`; "folder" is
    kept for empty folders only (others follow from their files). `version` and `by` (who) are the gateway's: those of the commit
    that changed it last. `deleted` entries stand in lists of what changed."""

    path: str
    kind: str = "file"
    size_bytes: int = 0
    mode: int = 0o644  # permission bits
    modified_ns: int = 0
    chunks: list[Chunk] = []
    target: str = ""
    deleted: bool = False
    version: int = 0
    by: str = ""


class VolumeRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A volume in a list. `used_by` are running or parked sessions and schedules, as words for people."""

    id: str
    name: str  # "" of an ephemeral one
    version: int = 0
    files: int = 0
    size_bytes: int = 0
    created_unix_seconds: float = 0.0
    changed_unix_seconds: float = 0.0
    ephemeral: bool = False
    used_by: list[str] = []


class VolumeList(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All volumes of the workspace, by name."""

    rows: list[VolumeRow] = []


class CreateVolume(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Make a volume. With `if_missing` an existing one is the answer. An ephemeral one has no name and is deleted when nobody
    asked for it for ten minutes (the SDK asks every minute)."""

    name: str = ""
    if_missing: bool = False
    ephemeral: bool = False


class RenameVolume(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Give a volume another name. CONFLICT when there is one of that name."""

    name: str


class VolumeFiles(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Entries by path, the version that they show and the volume's `id`: a name may be another volume's now, whose versions count
    from 0 again. `whole`: it is so long since the version that was asked for that what was deleted since is not known any more;
    these are all files that there are."""

    version: int
    id: str = ""
    entries: list[FileEntry] = []
    whole: bool = False


class CommitVolume(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Publish changed files (their chunks are there already) and deletions, all or none. `base` is the version that the writer
    saw; `key` makes a repeated commit the same one; `by` is shown to whom it conflicts with (a session, a host)."""

    base: int
    key: str
    by: str
    changes: list[FileEntry] = []
    deleted: list[str] = []
    last_write_wins: bool = False


class VolumeCommitted(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The volume's version after a commit; unchanged when there was nothing to publish."""

    version: int
    changed: int = 0


class ChunkHashes(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Chunks by hash."""

    hashes: list[str]


class VolumeMount(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A volume in a container, or what is shown as one: a `bucket`, or a network file system (`kind` "shared"). `path` is
    absolute."""

    volume: str  # its id
    name: str
    path: str
    read_only: bool = False
    last_write_wins: bool = False
    kind: Literal["volume", "bucket", "shared"] = "volume"
    bucket: BucketSource | None = None

    @property
    def folder_name(self) -> str:
        """Its folder's name below the container's /cellburst/volumes."""
        return (self.name or self.volume) if self.kind == "volume" else f"_{self.volume}"  # no volume is named so


def check_name(name: str) -> str:
    """A volume's name. Raises RequestError (BAD_ARGUMENT)."""
    if not _NAME.fullmatch(name):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(name)} is no name for a volume",
            allowed="1 to 64 letters, digits, '.', '_' and '-', a letter or digit first",
            next="for example datasets",
        )  # fmt: skip
    return name


def check_path(path: str) -> str:
    """A path inside a volume, as it is stored: relative, in Unicode's composed form, no '.', '..' or empty part. A leading '/' is
    the volume's own root. Raises RequestError (BAD_ARGUMENT)."""
    text = unicodedata.normalize("NFC", path).strip("/")
    parts = text.split("/")
    why = ""
    try:
        size = len(text.encode())
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        why, size, longest = "it is not valid Unicode", 0, 0
    if not text:
        why = "it is empty"
    elif "\0" in text:
        why = "it contains a NUL"
    elif any(part in ("", ".", "..") for part in parts):
        why = "it has an empty part, '.' or '..'"
    elif size > MAX_PATH_BYTES:
        why = f"it has {size} bytes"
    elif longest > MAX_PART_BYTES:
        why = f"one of its parts has {longest} bytes"
    if why:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(path)} is no path in a volume: {why}",
            allowed=f"parts of at most {MAX_PART_BYTES} bytes separated by '/', {MAX_PATH_BYTES} bytes together",
        )  # fmt: skip
    return text


def check_hash(hash: str) -> str:
    """A chunk's hash. Raises RequestError (BAD_ARGUMENT)."""
    if not _HASH.fullmatch(hash):
        raise error(ErrorCode.BAD_ARGUMENT, f"{shown(hash)} is no chunk's hash", allowed="64 hexadecimal digits")
    return hash


def shown(text: str) -> str:
    """Somebody's text in a message: quoted, at most 80 characters."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def pack_chunks(chunks: Iterable[tuple[str, bytes | memoryview]]) -> Iterator[bytes | memoryview]:
    """Chunks for one body: for each its hash (32 bytes), its length (4 bytes, big-endian) and its bytes."""
    for hash, data in chunks:
        yield bytes.fromhex(hash) + len(data).to_bytes(4, "big")
        yield data


def unpack_chunks(body: bytes | memoryview) -> Iterator[tuple[str, memoryview]]:
    """What `pack_chunks` made. Raises RequestError (BAD_MESSAGE) when it is cut off."""
    view, at = memoryview(body), 0
    while at < len(view):
        if len(view) - at < 36:
            raise error(ErrorCode.BAD_MESSAGE, _CUT)
        hash, size = bytes(view[at : at + 32]).hex(), int.from_bytes(view[at + 32 : at + 36], "big")
        at += 36
        if size > CHUNK_BYTES or len(view) - at < size:
            raise error(ErrorCode.BAD_MESSAGE, _CUT)
        yield hash, view[at : at + size]
        at += size


def same_content(one: FileEntry, other: FileEntry) -> bool:
    """Whether two entries have the same kind and bytes; mode and time may differ."""
    return (one.kind, one.deleted, one.target, one.chunks) == (other.kind, other.deleted, other.target, other.chunks)


def conflicts(commit: CommitVolume, current: dict[str, FileEntry]) -> list[FileEntry]:
    """The entries of `current` (what the volume has now at the commit's paths, deletions included) that stand against it."""
    if commit.last_write_wins:
        return []
    against = []
    for entry in [*commit.changes, *(FileEntry(path=path, deleted=True) for path in commit.deleted)]:
        there = current.get(entry.path)
        if there is not None and there.version > commit.base and not same_content(entry, there):
            against.append(there)
    return against


def conflict_error(name: str, against: Sequence[FileEntry]) -> Exception:
    """VolumeConflict: which paths, and whose."""
    first = against[0]
    more = f" and {len(against) - 1} more" if len(against) > 1 else ""
    did = "deleted" if first.deleted else "changed"
    return error(
        ErrorCode.VOLUME_CONFLICT,
        f"volume {name}: {shown(first.path)}{more} was {did} by {first.by or 'somebody'} (version {first.version}) after it was"
        " read here",
        next="`reload()` to see theirs; save yours under another name, or write again; last_write_wins=True takes yours",
        paths="\n".join(entry.path for entry in against[:100]), by=first.by,
    )  # fmt: skip
