"""The image side of a simulated worker: builds are played by what a test puts into `built` and `lines`."""

from __future__ import annotations

import asyncio
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import image_key
from cellburst_protocol.messages import (
    BuildLog,
    BuildStream,
    DamagedLayer,
    ImageBuilt,
    ImageList,
    ImageLogs,
    ImageRow,
    ImagesPruned,
    ImagesVerified,
    ListImages,
    Logs,
    Message,
    PruneImages,
    VerifyImages,
)
from cellburst_protocol.peer import LinkClosed, Stream


class FakeImageDesk:
    """`rows` are what it has. A build says `lines` and then `result` (built at once without one), unless `hold` is set."""

    def __init__(self) -> None:
        self.rows: list[ImageRow] = []
        self.damaged: list[DamagedLayer] = []
        self.lines: list[BuildLog] = [BuildLog(lines=["a line"], step=1, steps=2, title="apt_install git")]
        self.result: ImageBuilt | None = None
        self.hold = False
        self.refuses: CellburstError | None = None
        self.asked: list[Message] = []
        self.builds: list[BuildStream] = []
        self.given_up = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def size_bytes(self) -> int:
        """Of all rows."""
        return sum(row.size_bytes for row in self.rows)

    def opened(self, message: Message, stream: Stream) -> None:
        """A stream that the gateway opened."""
        assert isinstance(message, BuildStream)
        self.builds.append(message)
        task = asyncio.create_task(self._build(message, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _build(self, asked: BuildStream, stream: Stream) -> None:
        for line in self.lines:
            stream.post(line)
        if self.hold:
            try:
                await stream.recv()
            except LinkClosed:
                self.given_up += 1
            return
        stream.post(self.result or ImageBuilt(id=image_key(asked.recipe), seconds=1.5, size_bytes=10**6, cached=True))
        stream.end()

    def answer(self, message: Message) -> Message | None:
        """A control request about images; None for others."""
        if not isinstance(message, ListImages | PruneImages | VerifyImages | ImageLogs):
            return None
        self.asked.append(message)
        if self.refuses is not None:
            raise self.refuses
        match message:
            case ListImages():
                return ImageList(rows=self.rows, size_bytes=self.size_bytes())
            case PruneImages():
                freed = self.size_bytes() - message.max_bytes
                return ImagesPruned(freed_bytes=max(0, freed), left_bytes=message.max_bytes)
            case VerifyImages():
                return ImagesVerified(layer_count=len(self.rows), size_bytes=self.size_bytes(), damaged=self.damaged)
            case ImageLogs():
                if not any(row.id.startswith(message.id) for row in self.rows):
                    raise error(ErrorCode.NOT_FOUND, f"there is no image {message.id!r}")
                return Logs(text=f"the log of {message.id}\n")
