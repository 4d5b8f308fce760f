"""Accepted cells whose code has not started: kept in small files, so that a killed gateway can still hand them over.

One file a message, DATA/inbox/<hash of the call>.<kind>: a message of `framing.pack`. Not synced: after a power cut the
call ends as not handed over, which is true. A damaged file is the same as none.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from blake3 import blake3

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.framing import FramingError, pack, unpack
from cellburst_protocol.messages import Message, decode, encode

from .blobs import translated_disk_errors

Kind = Literal["cell", "names"]
log = logging.getLogger(__name__)


class Inbox:
    """The folder of such files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def put(self, call: str, kind: Kind, message: Message, buffers: list[memoryview]) -> None:
        """Keep a message until `drop`. Raises PlatformError (DISK_FULL, STORE)."""
        path = self._path(call, kind)
        temporary = path.with_suffix(".part")
        with translated_disk_errors():
            with temporary.open("wb") as file:
                for part in pack(encode(message), buffers):
                    file.write(part)
            temporary.replace(path)

    def get(self, call: str, kind: Kind) -> tuple[Message, list[memoryview]] | None:
        """The message as it was put, or None."""
        try:
            head, buffers = unpack(self._path(call, kind).read_bytes())
            return decode(head), buffers
        except FileNotFoundError:
            return None
        except (OSError, FramingError, CellburstError) as why:
            log.warning("a kept cell cannot be read: %s", why, extra={"call": call})
            return None

    def drop(self, call: str) -> None:
        """The call has started or ended: its messages are needed no more."""
        self._path(call, "cell").unlink(missing_ok=True)
        self._path(call, "names").unlink(missing_ok=True)

    def drop_all_but(self, calls: set[str]) -> None:
        """At start: remove what belongs to no call that still runs."""
        kept = {self._path(call, kind) for call in calls for kind in ("cell", "names")}
        for path in self._folder.iterdir():
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, call: str, kind: Kind) -> Path:
        # The call's id is the caller's own text: never part of a path.
        return self._folder / f"{blake3(call.encode()).hexdigest()[:40]}.{kind}"
