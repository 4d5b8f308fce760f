"""A process in a container that does what it is told over the worker's socket, in place of the runner: for checkpoints.

It dials FOLDER/var/ctl/s until somebody answers, as the runner does, so it is found again after a restore.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

from cellburst_protocol.messages import EngineInfo
from cellburst_runtime.engine import Container, ContainerSpec, Engine

ANSWER_SECONDS = 30.0  # a bound for a slow machine, not a wait

SCRIPT = r"""
import json, os, socket, sys, threading, time
names = {"json": json, "os": os, "socket": socket, "sys": sys, "threading": threading, "time": time}
while True:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect("/cellburst/var/ctl/s")
    except OSError:
        s.close(); time.sleep(0.002); continue
    f = s.makefile("rw")
    for line in f:
        code = json.loads(line)
        names["_"] = None
        try:
            exec(code, names); answer = names["_"]
        except BaseException as e:
            answer = f"{type(e).__name__}: {e}"
        f.write(json.dumps(answer) + "\n"); f.flush()
    f.close(); s.close()
"""


class Talking:
    """The worker's end: `listen` before the container starts, `ask` it, `detach` before a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._now: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def listen(self) -> None:
        """Make the socket."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(lambda r, w: self._streams.put_nowait((r, w)), str(self.path))
        self.path.chmod(0o666)

    async def ask(self, code: str) -> object:
        """Run code in it: what it set `_` to (JSON), or its exception as text."""
        if self._now is None:
            self._now = await asyncio.wait_for(self._streams.get(), ANSWER_SECONDS)
        reader, writer = self._now
        writer.write(json.dumps(code).encode() + b"\n")
        answer = await asyncio.wait_for(reader.readline(), ANSWER_SECONDS)
        assert answer, "the container ended"
        return json.loads(answer)

    async def detach(self) -> None:
        """Close both ends: no socket to the host is open in it afterwards."""
        await self._close_server()
        if self._now is not None:
            reader, writer = self._now
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), ANSWER_SECONDS) == b""
            writer.close()
            self._now = None

    async def close(self) -> None:
        """Let go of everything, whatever the container does."""
        await self._close_server()
        while not self._streams.empty():
            self._streams.get_nowait()[1].close()
        if self._now is not None:
            self._now[1].close()
            self._now = None

    async def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)


class TalkingEngine:
    """An engine whose containers run `SCRIPT` by the same interpreter in place of the runner."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.info: EngineInfo = engine.info

    async def start(self, spec: ContainerSpec, checkpoint: Path | None = None) -> Container:
        """See `engine.Engine.start`."""
        return await self._engine.start(
            replace(spec, arguments=(spec.arguments[0], "-I", "-S", "-c", SCRIPT)), checkpoint
        )

    def snapshot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """See `engine.Engine.snapshot_parts`."""
        return self._engine.snapshot_parts(spec)

    def boot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """See `engine.Engine.boot_parts`."""
        return self._engine.boot_parts(spec)

    async def collect_garbage(self, folder: Path) -> None:
        """See `engine.Engine.collect_garbage`."""
        await self._engine.collect_garbage(folder)
