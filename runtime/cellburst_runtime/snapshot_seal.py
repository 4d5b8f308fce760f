"""The seal of a snapshot folder: what every file was when it was put away, under a key that only this installation has.

    seal.json   {"files": {"checkpoint/pages.img": [size in bytes, BLAKE3 in hex], ...}, "mac": keyed BLAKE3 of "files"}

runsc checks nothing of what it restores, so a flipped bit would be a wrong number in somebody's array. A disk image is
mostly holes: its hash is over the blocks that are not zero, so that it does not matter which zeros are written on disk.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import blake3
import msgspec

from .snapshot_manifest import STORE, SnapshotUnusable

SEAL = "seal.json"
KEY_BYTES = 32  # of BLAKE3 in keyed mode
PIECE_BYTES = 8 << 20  # read at once: large enough that several cores hash it, small beside a container
BLOCK_BYTES = 1 << 16  # of a disk image: what is compared with zeros
_ZEROS = bytes(BLOCK_BYTES)


class Seal(msgspec.Struct):
    """`seal.json`: relative path -> size in bytes and hash in hex, and the MAC over all of that in hex."""

    files: dict[str, tuple[int, str]]
    mac: str


class ImageHash:
    """The hash of a disk image, fed with its blocks as `image_blocks` gives them."""

    def __init__(self) -> None:
        self._hash = blake3.blake3()

    def add(self, position: int, block: bytes) -> None:
        """The next block that is not zero."""
        self._hash.update(position.to_bytes(8, "little"))
        self._hash.update(block)

    def result(self, size_bytes: int) -> str:
        """The hash in hex of an image of that size."""
        self._hash.update(size_bytes.to_bytes(8, "little"))
        return self._hash.hexdigest()


def load_key(path: Path) -> bytes:
    """The installation's key, made at first use (0600). Raises OSError, ValueError for a file of another size."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # the first of two processes wins
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} has {len(key)} bytes, not {KEY_BYTES}: delete it, and snapshots are made anew")
    return key


def seal(folder: Path, key: bytes, known: Mapping[str, str]) -> None:
    """Write the folder's seal and make everything in it durable. Raises OSError. Blocks: it reads every file but those whose
    hash is `known`, by path."""
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    files = {name: _seen(folder / name, flush=True, content_hash=known.get(name, "")) for name in names}
    with open(folder / SEAL, "wb") as file:
        file.write(msgspec.json.encode(Seal(files, _mac(files, key))))
        file.flush()
        os.fsync(file.fileno())
    for place in {folder, *((folder / name).parent for name in files)}:
        flush_folder(place)


def load_seal(folder: Path, key: bytes) -> dict[str, tuple[int, str]]:
    """The sealed files. Raises SnapshotUnusable when there is no seal of this installation."""
    try:
        found = msgspec.json.decode((folder / SEAL).read_bytes(), type=Seal)
    except (OSError, msgspec.MsgspecError):
        raise SnapshotUnusable("its seal cannot be read") from None
    if not hmac.compare_digest(_mac(found.files, key), found.mac):
        raise SnapshotUnusable("its seal is broken")
    return found.files


def check_sizes(folder: Path, files: dict[str, tuple[int, str]]) -> None:
    """Raises SnapshotUnusable for a sealed file that is gone or has another size. Quick."""
    for name, (size_bytes, _) in files.items():
        try:
            there = (folder / name).stat().st_size
        except OSError:
            raise SnapshotUnusable(f"its file {name} is gone") from None
        if there != size_bytes:
            raise SnapshotUnusable(f"its file {name} has {there} bytes instead of {size_bytes}")


def check_contents(folder: Path, files: dict[str, tuple[int, str]]) -> None:
    """Raises SnapshotUnusable for a sealed file with another content. Blocks: it reads them."""
    for name, sealed in files.items():
        try:
            same = _seen(folder / name) == tuple(sealed)
        except OSError as problem:
            raise SnapshotUnusable(f"its file {name} cannot be read: {problem.strerror}") from None
        if not same:
            raise SnapshotUnusable(f"its file {name} is damaged")


def image_blocks(fd: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of a disk image that are not zero, each with its position; holes are not read."""
    end, position = os.fstat(fd).st_size, 0
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        stop, position = os.lseek(fd, data, os.SEEK_HOLE), data // BLOCK_BYTES * BLOCK_BYTES
        while position < stop:
            block = os.pread(fd, BLOCK_BYTES, position)
            if not block:
                return
            if block != _ZEROS[: len(block)]:
                yield position, block
            position += BLOCK_BYTES


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _seen(path: Path, *, flush: bool = False, content_hash: str = "") -> tuple[int, str]:
    """Size and hash of a file as it is now; a hash that is given is not looked for."""
    with open(path, "rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if content_hash:
            pass
        elif path.name == STORE:
            image = ImageHash()
            for position, block in image_blocks(file.fileno()):
                image.add(position, block)
            content_hash = image.result(size_bytes)
        else:
            whole, buffer = blake3.blake3(max_threads=blake3.blake3.AUTO), bytearray(min(PIECE_BYTES, size_bytes or 1))
            view = memoryview(buffer)
            while count := file.readinto(buffer):
                whole.update(view[:count])
            content_hash = whole.hexdigest()
        if flush:
            os.fsync(file.fileno())
    return size_bytes, content_hash


def _mac(files: dict[str, tuple[int, str]], key: bytes) -> str:
    return blake3.blake3(msgspec.json.encode(files, order="deterministic"), key=key).hexdigest()
