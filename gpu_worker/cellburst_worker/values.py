"""Values on their way through a worker: seals checked on the way in, true hashes and seals made on the way out.

In: `check` before anything reaches the container, then `place`. Out: `receive` turns what the runner says about a group
(names, sizes, "file:NAME") into what is true of the bytes, and signs it. Hashing and files happen here: call in a thread
unless `is_small`. The runner and what it wrote are not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from cellburst_protocol import mac
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import NameGroup, ValuePart

from .blobs import BlobFolder, Copied

FILE_PREFIX = "file:"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
SMALL_BYTES = 256 * 1024  # hashed in 0.1 ms: cheaper than a thread's hand-over


def is_small(groups: Iterable[NameGroup], buffers: Sequence[Buffer]) -> bool:
    """Whether the groups can be handled on the event loop: nothing in files, little inline."""
    parts = [part for group in groups for part in group.parts]
    return all(part.at != "blob" for part in parts) and sum(memoryview(b).nbytes for b in buffers) <= SMALL_BYTES


def sent(groups: Iterable[NameGroup]) -> list[NameGroup]:
    """The groups that come with bytes, inline or as blobs."""
    return [group for group in groups if any(part.at != "there" for part in group.parts)]


def check(groups: Sequence[NameGroup], buffers: Sequence[Buffer], key: str, seal: str) -> None:
    """Refuse groups whose seal or inline bytes are wrong. Raises PlatformError (INTEGRITY)."""
    carried = sent(groups)
    if carried:
        if not key:
            raise error(ErrorCode.INTEGRITY, "values came for a call that this worker has no key for")
        mac.verify(key, "in", carried, seal)
    _check_shapes(groups)
    inline = [part for group in groups for part in group.parts if part.at == "inline"]
    if len(inline) != len(buffers):
        raise error(ErrorCode.INTEGRITY, f"{len(buffers)} buffers came for {len(inline)} inline parts")
    for part, buffer in zip(inline, buffers, strict=True):
        if memoryview(buffer).nbytes != part.size_bytes or blake3(buffer).hexdigest() != part.hash:
            raise error(ErrorCode.INTEGRITY, "an inline value has other bytes than its hash says")


def _check_shapes(groups: Iterable[NameGroup]) -> None:
    for group in groups:
        try:
            identity = mac.group_hash(group.parts)
        except ValueError:
            identity = ""
        if identity != group.hash:
            raise error(
                ErrorCode.INTEGRITY, f"the group of {', '.join(group.names[:3])} has another hash than its parts"
            )


def blob_parts(groups: Iterable[NameGroup]) -> list[ValuePart]:
    """The parts that are blobs, each once."""
    return list({part.hash: part for group in groups for part in group.parts if part.at == "blob"}.values())


def place(parts: Iterable[ValuePart], blobs: BlobFolder, into: Path) -> None:
    """Show blobs to the container as INTO/<hash>. Raises PlatformError (INTEGRITY)."""
    for part in parts:
        blobs.link_into(part.hash, part.size_bytes, into)


@dataclass
class Taken:
    """What is true of values that a runner gave: the good groups with their buffers, the others with what is wrong."""

    groups: list[NameGroup] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    refused: list[tuple[NameGroup, ErrorInfo]] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)  # hashes of what lies in the blob folder now


def take(
    groups: Iterable[NameGroup],
    buffers: Sequence[Buffer],
    blobs: BlobFolder,
    out: Path,
    copied: Copied = lambda name, size, path: "",
) -> Taken:
    """Hash every part, move files of OUT to the blob folder, and give the groups their true hashes. `copied`: see `take_file`.

    Raises PlatformError (INTEGRITY) when the buffers do not fit the inline parts; a group with one bad part is refused.
    """
    taken, left = Taken(), list(buffers)
    for group in groups:
        own = [left.pop(0) if left else None for part in group.parts if part.at == "inline"]
        if None in own:
            raise error(ErrorCode.INTEGRITY, "the runner sent fewer buffers than inline parts")
        kept = [b for b in own if b is not None]
        try:
            parts = list(_true_parts(group.parts, kept, lambda name, size: blobs.take_file(out, name, size, copied)))
        except CellburstError as why:
            taken.refused.append((group, why.info))
            continue
        taken.groups.append(NameGroup(names=group.names, hash=mac.group_hash(parts), parts=parts))
        taken.buffers += kept
        taken.blobs += [part.hash for part in parts if part.at == "blob"]
    if left:
        raise error(ErrorCode.INTEGRITY, "the runner sent more buffers than inline parts")
    return taken


def take_blob(part: ValuePart, blobs: BlobFolder, out: Path) -> ValuePart:
    """The same for a single value in a file."""
    (true,) = _true_parts([part], [], lambda name, size: blobs.take_file(out, name, size))
    return true


def _true_parts(
    parts: Iterable[ValuePart], inline: Sequence[Buffer], take_file: Callable[[str, int], str]
) -> Iterable[ValuePart]:
    waiting = iter(inline)
    for part in parts:
        if part.at == "inline":
            buffer = next(waiting)
            yield ValuePart(hash=blake3(buffer).hexdigest(), size_bytes=memoryview(buffer).nbytes, at="inline")
            continue
        name = part.hash.removeprefix(FILE_PREFIX)
        if part.at != "blob" or not part.hash.startswith(FILE_PREFIX) or not FILE_NAME.fullmatch(name):
            raise error(
                ErrorCode.INTEGRITY,
                f"the runner gave a value as {part.at} {part.hash[:80]!r}",
                allowed=f"{FILE_PREFIX}NAME",
            )
        yield ValuePart(hash=take_file(name, part.size_bytes), size_bytes=part.size_bytes, at="blob")
