"""Files that a run wrote, brought out of its container at its end and kept with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.framing import Buffer
from cellburst_protocol.mac import value_key
from cellburst_protocol.messages import FileChange, SideReply, SideRequest
from cellburst_protocol.schedules import MAX_RUN_FILES, MAX_RUN_FILES_BYTES

from .run_rules import RunDetail
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub
    from .run_files import RunFiles

FILE_SECONDS = 300.0


class KeptFiles:
    """One attempt's. `attempt` is its name, of which the questions to its container are made."""

    def __init__(self, hub: Hub, files: RunFiles, run: str, attempt: str) -> None:
        self._hub, self._files, self._run, self._attempt = hub, files, run, attempt
        self._replies: dict[str, asyncio.Future[tuple[SideReply, list[bytes]]]] = {}

    def answered(self, message: SideReply, buffers: Sequence[Buffer]) -> None:
        """The container's answer to a question."""
        waiting = self._replies.pop(message.id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result((message, [bytes(buffer) for buffer in buffers]))

    async def keep(self, session: Session, changed: Iterable[FileChange], detail: RunDetail) -> None:
        """Keep what the limits allow; `detail` has the list, and a note of each that could not be kept."""
        total = 0
        for file in sorted(changed, key=lambda one: one.path):
            if file.deleted:
                continue
            if len(detail.files) >= MAX_RUN_FILES or total + file.size_bytes > MAX_RUN_FILES_BYTES:
                most = f"{MAX_RUN_FILES}, {MAX_RUN_FILES_BYTES // 1024**2} MiB together"
                detail.note(f"not all files that it wrote are kept: at most {most}; write results into a volume")
                return
            try:
                size = await self._keep_one(session, file.path, len(detail.files))
            except (CellburstError, TimeoutError) as why:
                text = why.info.message if isinstance(why, CellburstError) else "its worker did not answer"
                detail.note(f"{file.path} could not be kept: {text}")
                continue
            total += size
            detail.files.append(FileChange(path=file.path, size_bytes=size))

    async def _keep_one(self, session: Session, path: str, number: int) -> int:
        container = session.container
        if container is None:
            raise CellburstError(ErrorInfo(code=ErrorCode.CONTAINER_LOST, message="the container is gone"))
        question = f"{self._attempt}.file.{number}"
        key = value_key(self._hub.secrets.master_key, f"side:{session.id}:{question}")
        session.sides[question] = key
        waiting = self._replies[question] = asyncio.get_running_loop().create_future()
        try:
            await container.send(SideRequest(id=question, kind="file_get", content={"path": path}, value_key=key))
            async with asyncio.timeout(FILE_SECONDS):
                reply, buffers = await waiting
        finally:
            self._replies.pop(question, None)
            session.sides.pop(question, None)
        if reply.error is not None:
            raise CellburstError(reply.error)
        if reply.blob is None:
            raise CellburstError(ErrorInfo(code=ErrorCode.NOT_FOUND, message="it is not there any more"))
        source: Path | bytes = buffers[0] if reply.blob.at == "inline" else self._hub.blobs.path(reply.blob.hash)
        size: int = reply.blob.size_bytes
        await asyncio.to_thread(self._files.keep_file, self._run, number, source)
        return size
