"""A child process on behalf of an engine: started in a session of its own, its last output kept, its end told to many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .proc import process_stat

TAIL_BYTES = 16_384  # of what it printed: enough for a traceback of an engine or a runner that cannot start


class EngineChild(Protocol):
    """A container's first process as its engine holds it: `Child`, or `fork_server.ForkedChild`."""

    pid: int
    start_ticks: int

    @property
    def ended(self) -> bool:
        """Whether it has ended and was reaped."""

    async def wait(self) -> int:
        """Its return code, negative for a signal, when it has ended."""

    async def output(self) -> str:
        """The end of what it printed."""

    async def close(self) -> None:
        """Stop reading its output."""


class OutputTail:
    """Reads a stream to its end and keeps the last TAIL_BYTES."""

    def __init__(self, stream: asyncio.StreamReader | None, name: str) -> None:
        self._stream = stream
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._reading = asyncio.create_task(self._read(), name=name)

    async def text(self, *, ended: bool) -> str:
        """The end of what was printed. After its writer's end waits shortly for the rest; others may hold the pipe open."""
        if ended:
            await asyncio.wait({self._reading}, timeout=0.2)
        return b"".join(self._tail).decode(errors="replace").strip()

    async def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        await asyncio.wait({self._reading})

    async def _read(self) -> None:
        while self._stream is not None and (data := await self._stream.read(65_536)):
            self._tail.append(data[-TAIL_BYTES:])
            self._tail_bytes += len(self._tail[-1])
            while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
                self._tail_bytes -= len(self._tail.popleft())


class Child:
    """One started process. Its output goes to a pipe that is read to its end, so that it never blocks and fills no disk."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        stat = process_stat(process.pid)
        self.pid = process.pid
        self.start_ticks = stat.start_ticks if stat is not None else 0
        self._tail = OutputTail(process.stdout, f"output of {process.pid}")

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start it; it survives this process. Raises OSError when the program is not there."""
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        return cls(process)

    @property
    def ended(self) -> bool:
        """Whether it has ended and was reaped."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Its return code, negative for a signal, when it has ended."""
        return await self._process.wait()

    async def output(self) -> str:
        """The end of what it printed. After its end waits shortly for the rest; grandchildren may hold the pipe open."""
        return await self._tail.text(ended=self.ended)

    async def close(self) -> None:
        """Stop reading: whoever still writes gets EPIPE."""
        await self._tail.close()
        transport = getattr(self._process, "_transport", None)  # asyncio keeps the pipe open until its writers end
        if transport is not None:
            transport.close()
