"""Files that are encrypted on disk and opened into memory only: what is kept of a session that was ever given a secret.

    magic "CBSEALD1" | salt, 16 bytes | records, each: kind u8 | length u32 big endian | AES-256-GCM ciphertext with its tag

Kinds: 0 data (at most CHUNK_BYTES of plaintext), 1 a run of zero bytes (their number, u64: disk images are mostly holes), 2 the
end (the file's size, u64). Key of a file: HMAC-SHA256(key, salt | name). Nonce: the record's number. Associated data: kind and
number. So a record that was changed, moved, left out or taken from another file does not open, nor does a file without its end.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import struct
from pathlib import Path
from typing import BinaryIO

from cellburst_protocol.errors import ErrorCode, error

from .mounts import mount, mounts_below, unmount_below
from .snapshot_manifest import SnapshotUnusable

MAGIC = b"CBSEALD1"
SALT_BYTES = 16
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
MEMORY_FOLDER = "open"  # of a container's folder: removed with it, whoever removes it
SPARE_BYTES = 64 << 20  # beside the processes' memory: the engine's own state
_DATA, _ZEROS, _END = 0, 1, 2
_HEAD = struct.Struct(">BI")
_NUMBER = struct.Struct(">Q")
_ZERO_CHUNK = bytes(CHUNK_BYTES)


def seal_file(source: Path, target: Path, key: bytes, name: str) -> None:
    """Encrypt a file to a new one, made durable. Blocks. Raises OSError; then `target` is not there."""
    try:
        with open(source, "rb", buffering=0) as plain, open(target, "xb") as sealed:
            os.fchmod(sealed.fileno(), 0o600)
            _seal(plain, sealed, key, name)
            sealed.flush()
            os.fsync(sealed.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def open_file(source: Path, target: Path, key: bytes, name: str) -> None:
    """Decrypt a file to a new one, with holes for zeros. Blocks. Raises SnapshotUnusable when it does not open, OSError; then
    `target` is not there."""
    try:
        with open(source, "rb") as sealed, open(target, "xb") as plain:
            os.fchmod(plain.fileno(), 0o600)
            _open(sealed, plain, key, name)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def seal_folder(source: Path, target: Path, key: bytes) -> None:
    """Encrypt the files of a flat folder into another one. Blocks. Raises OSError."""
    for path in sorted(source.iterdir()):
        seal_file(path, target / path.name, key, path.name)


def open_folder(source: Path, target: Path, key: bytes) -> None:
    """Decrypt the files of a flat folder into another one. Blocks. Raises SnapshotUnusable, OSError."""
    for path in sorted(source.iterdir()):
        open_file(path, target / path.name, key, path.name)


async def memory_folder(container: Path, size_bytes: int) -> Path:
    """An empty folder in memory, at most so large, below a container's own folder. Raises PlatformError (START_FAILED), OSError.

    Memory that is short goes to swap where the machine has some, as that of any process.
    """
    folder = container / MEMORY_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if mounts_below(folder):
        await unmount_below(folder)
    await mount("none", folder, kind="tmpfs", options=f"size={size_bytes + SPARE_BYTES},mode=0700")
    return folder


async def forget_memory_folder(container: Path) -> None:
    """Let go of it, if there is one."""
    folder = container / MEMORY_FOLDER
    if folder.exists():
        await unmount_below(folder)
        folder.rmdir()


def key_of(text: str) -> bytes:
    """The key that the gateway gave, in hex. Raises RequestError (BAD_ARGUMENT)."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise error(ErrorCode.BAD_ARGUMENT, "the key for a parked session is none", allowed="64 hexadecimal digits")
    return key


def _cipher(key: bytes, salt: bytes, name: str) -> object:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # only where a session has secrets

    return AESGCM(hmac.new(key, salt + name.encode(), hashlib.sha256).digest())


def _seal(plain: BinaryIO, sealed: BinaryIO, key: bytes, name: str) -> None:
    salt = os.urandom(SALT_BYTES)
    cipher, number, size, zeros = _cipher(key, salt, name), 0, 0, 0

    def record(kind: int, data: bytes) -> None:
        nonlocal number
        made = cipher.encrypt(_nonce(number), data, bytes([kind]) + _NUMBER.pack(number))  # type: ignore[attr-defined]
        sealed.write(_HEAD.pack(kind, len(made)))
        sealed.write(made)
        number += 1

    sealed.write(MAGIC + salt)
    while True:
        hole = _hole(plain, size)  # a disk image has tens of gigabytes of them, which take long to read
        zeros += hole
        size += hole
        chunk = _read(plain, CHUNK_BYTES)
        if not chunk:
            break
        size += len(chunk)
        if chunk == _ZERO_CHUNK[: len(chunk)]:
            zeros += len(chunk)
            continue
        if zeros:
            record(_ZEROS, _NUMBER.pack(zeros))
            zeros = 0
        record(_DATA, chunk)
    if zeros:
        record(_ZEROS, _NUMBER.pack(zeros))
    record(_END, _NUMBER.pack(size))


def _open(sealed: BinaryIO, plain: BinaryIO, key: bytes, name: str) -> None:
    head = sealed.read(len(MAGIC) + SALT_BYTES)
    if len(head) != len(MAGIC) + SALT_BYTES or not head.startswith(MAGIC):
        raise _unusable(name)
    cipher, number, size = _cipher(key, head[len(MAGIC) :], name), 0, 0
    while True:
        kind, data = _record(sealed, cipher, number, name)
        number += 1
        if kind == _DATA:
            plain.write(data)
            size += len(data)
        elif kind == _ZEROS:
            size += _NUMBER.unpack(data)[0]
            plain.seek(size)
        elif kind == _END:
            if _NUMBER.unpack(data)[0] != size or sealed.read(1):
                raise _unusable(name)
            plain.truncate(size)
            return
        else:
            raise _unusable(name)


def _record(sealed: BinaryIO, cipher: object, number: int, name: str) -> tuple[int, bytes]:
    from cryptography.exceptions import InvalidTag

    head = sealed.read(_HEAD.size)
    if len(head) != _HEAD.size:
        raise _unusable(name)
    kind, length = _HEAD.unpack(head)
    if not TAG_BYTES <= length <= CHUNK_BYTES + TAG_BYTES:
        raise _unusable(name)
    try:
        data: bytes = cipher.decrypt(  # type: ignore[attr-defined]
            _nonce(number), sealed.read(length), bytes([kind]) + _NUMBER.pack(number)
        )
    except InvalidTag:
        raise _unusable(name) from None
    if kind != _DATA and len(data) != _NUMBER.size:
        raise _unusable(name)
    return kind, data


def _nonce(number: int) -> bytes:
    return b"\0\0\0\0" + _NUMBER.pack(number)


def _hole(file: BinaryIO, position: int) -> int:
    """How many bytes of zeros that take no room follow; the file is then read behind them."""
    try:
        data = os.lseek(file.fileno(), position, os.SEEK_DATA)
    except OSError as why:
        if why.errno != errno.ENXIO:
            raise
        data = os.lseek(file.fileno(), 0, os.SEEK_END)  # no data up to the end
    return data - position


def _read(file: BinaryIO, size_bytes: int) -> bytes:
    """So many bytes, fewer at the end only."""
    pieces = []
    while size_bytes > 0 and (piece := file.read(size_bytes)):
        pieces.append(piece)
        size_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unusable(name: str) -> SnapshotUnusable:
    return SnapshotUnusable(f"its encrypted file {name} does not open")
