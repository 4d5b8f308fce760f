"""From a container's spool to its stream: in order, no faster than the stream's credit, from any sequence again."""

from __future__ import annotations

import asyncio

from cellburst_protocol.peer import Stream

from .spool import Spool


class Feed:
    """Sends what the spool has. One `run` at a time; a new link starts a new one."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._more = asyncio.Event()

    def wake(self) -> None:
        """The spool has more."""
        self._more.set()

    async def run(self, stream: Stream, from_sequence: int) -> None:
        """Send events after `from_sequence` for ever. Raises LinkClosed or the stream's error when it is gone."""
        sent = from_sequence
        while True:
            self._more.clear()
            sent = max(sent, self._spool.acked_sequence)
            while sent < self._spool.last_sequence:
                message, buffers = self._spool.read(sent + 1)
                await stream.send(message, buffers)
                sent = max(sent + 1, self._spool.acked_sequence)
            await self._more.wait()
