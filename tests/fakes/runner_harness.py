"""A fake worker for one real runner process: listens on its socket, gives credit, runs cells, collects what comes back.

async with started(tmp_path) as worker:
    cell = await worker.run("print(1)")
    cell.text("stdout"), cell.reply["status"], cell.messages("display_data")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellburst_protocol import messages as m
from cellburst_protocol.runner_wire import Incoming, RunnerDecoder, to_runner

RUNNER = Path(__file__).parents[2] / "runtime" / "cellburst_runner" / "__main__.py"
WAIT_SECONDS = 60.0
PAY_BYTES = 1024 * 1024  # credit is given back in such portions, not for each message


@dataclass
class Cell:
    """What a runner sent for one call, in order."""

    call: str
    events: list[Incoming] = field(default_factory=list)

    def jupyter(self) -> list[tuple[str, dict[str, Any]]]:
        """(msg_type, content) of all IOPub messages."""
        found = [e for e in self.events if isinstance(e.message, m.IOPub)]
        return [(e.message.msg_type, json.loads(bytes(e.buffers[0]))["content"]) for e in found]

    def messages(self, msg_type: str) -> list[dict[str, Any]]:
        """Contents of one type."""
        return [content for kind, content in self.jupyter() if kind == msg_type]

    def text(self, name: str = "stdout") -> str:
        """The whole text of a stream."""
        return "".join(c["text"] for c in self.messages("stream") if c["name"] == name)

    @property
    def done(self) -> m.CellDone:
        """Its CellDone."""
        return next(e.message for e in self.events if isinstance(e.message, m.CellDone))

    @property
    def reply(self) -> dict[str, Any]:
        """Content of its execute_reply."""
        event = next(e for e in self.events if isinstance(e.message, m.CellDone))
        return dict(json.loads(bytes(event.buffers[0])))


class FakeWorker:
    """See the module. `give_credit` False holds credit back; `received` is everything, in order."""

    def __init__(self, var: Path) -> None:
        self.folder = var
        self.process: asyncio.subprocess.Process
        self.received: list[Incoming] = []
        self.keep = True
        self.give_credit = True
        self.owed_bytes = 0
        self.connections = 0
        self.disconnections = 0
        self.start_fields: dict[str, Any] = {}
        self._changed = asyncio.Condition()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._calls = itertools.count(1)

    # -- the runner's process --------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Listen on FOLDER/ctl/s."""
        path = self.folder / "ctl" / "s"
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(path), limit=1 << 20)
        path.chmod(0o777)  # a container's user dials it

    async def start(self, **options: Any) -> None:
        """Start the supervisor as a plain process and say RunnerStart with these fields."""
        for name in ("ctl", "in", "out", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        await self.listen()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MPL"))}
        environment |= {
            "CELLBURST_VAR": str(self.folder),
            "CELLBURST_CONTAINER": "c1",
            "HOME": str(self.folder / "home"),
        }
        environment |= {"IPYTHONDIR": str(self.folder / "home" / ".ipython")}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(RUNNER), env=environment, start_new_session=True
        )
        await self.wait_for(m.RunnerHello)
        options.setdefault("folder", str(self.folder / "home"))
        self.start_fields = {"python": [sys.executable], **options}
        self.send(m.RunnerStart(**self.start_fields))

    async def stop(self) -> None:
        """End the runner; its executor ends with it."""
        self.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_SECONDS):
            await self.process.wait()

    def close(self) -> None:
        """Stop listening. Alone for a runner that something else ends."""
        self.drop()
        if self._server is not None:
            self._server.close()

    def drop(self) -> None:
        """Close the connection as a worker that went away."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.connections += 1
        decoder = RunnerDecoder()
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while chunk := await reader.read(1 << 18):
                incoming = decoder.feed(chunk)
                async with self._changed:
                    if self.keep:
                        self.received += incoming
                    self._changed.notify_all()
                self.owed_bytes += sum(i.credit_bytes for i in incoming)
                if self.give_credit and self.owed_bytes >= PAY_BYTES and self._writer is writer:
                    self.pay()
        async with self._changed:
            self.disconnections += 1
            self._changed.notify_all()

    def pay(self) -> None:
        """Give back the credit of all that was received."""
        self.send(m.RunnerCredit(size_bytes=self.owed_bytes))
        self.owed_bytes = 0

    # -- messages --------------------------------------------------------------------------------------------------

    def send(self, message: m.Message, buffers: list[bytes] | None = None) -> None:
        """Send to the runner."""
        assert self._writer is not None
        for part in to_runner(message, buffers or []):
            self._writer.write(part)

    async def wait(self, matches: Callable[[Incoming], bool], start: int = 0) -> Incoming:
        """The first received message from index `start` that matches; waits for it. Raises TimeoutError."""
        seen = start
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            while True:
                for incoming in self.received[seen:]:
                    if matches(incoming):
                        return incoming
                seen = max(seen, len(self.received))
                await self._changed.wait()

    async def wait_for(self, kind: type, start: int = 0, call: str | None = None) -> Incoming:
        """The first message of a type (and call) from index `start`."""
        return await self.wait(lambda i: isinstance(i.message, kind) and call in (None, i.call), start)

    async def wait_text(self, text: str, call: str) -> None:
        """Until stream text of the call contains `text`."""
        await self.wait(lambda i: text in self.cell(call).text() + self.cell(call).text("stderr"))

    def cell(self, call: str) -> Cell:
        """What came for a call so far."""
        return Cell(call, [i for i in self.received if i.call == call])

    def begin(self, code: str, buffers: list[bytes] | None = None, **fields: Any) -> str:
        """Send RunCell and return its call."""
        number = next(self._calls)
        call = fields.pop("call", f"call-{number}")
        header = {
            "msg_id": f"msg-{call}",
            "username": "u",
            "session": "s",
            "date": "2026-01-01T00:00:00Z",
            "version": "5.3",
        }
        fields.setdefault("header", header | {"msg_type": "execute_request"})
        self.send(m.RunCell(call=call, code=code, **{"execution_count": number, **fields}), buffers)
        return call

    async def finish(self, call: str) -> Cell:
        """Wait for the call's CellDone."""
        await self.wait_for(m.CellDone, call=call)
        return self.cell(call)

    async def run(self, code: str, buffers: list[bytes] | None = None, **fields: Any) -> Cell:
        """Run a cell to its end."""
        return await self.finish(self.begin(code, buffers, **fields))

    # -- snapshots -------------------------------------------------------------------------------------------------

    async def freeze(self, **fields: Any) -> Incoming:
        """RunnerFreeze and its RunnerFrozen."""
        start = len(self.received)
        self.send(m.RunnerFreeze(**fields))
        return await self.wait_for(m.RunnerFrozen, start)

    async def detach(self) -> None:
        """Stop listening, then RunnerDetach; returns when the runner has closed its socket."""
        assert self._server is not None
        self._server.close()
        (self.folder / "ctl" / "s").unlink(missing_ok=True)
        before = self.disconnections
        self.send(m.RunnerDetach())
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.disconnections > before)
        self._writer = None

    async def listen_again(self) -> Incoming:
        """Listen where it did before; returns the runner's RunnerHello."""
        start = len(self.received)
        await self.listen()
        return await self.wait_for(m.RunnerHello, start)

    async def thaw(self, **fields: Any) -> m.RunnerReady:
        """RunnerStart {restored} with these fields over those of the first start, and its RunnerReady."""
        start = len(self.received)
        self.start_fields = {**self.start_fields, **fields}
        self.send(m.RunnerStart(restored=True, **self.start_fields))
        ready = (await self.wait_for(m.RunnerReady, start)).message
        assert isinstance(ready, m.RunnerReady)
        return ready

    async def ask(self, kind: Any, **content: Any) -> Incoming:
        """A SideRequest and its SideReply."""
        id = f"side-{next(self._calls)}"
        self.send(m.SideRequest(id=id, kind=kind, content=content))
        return await self.wait(lambda i: isinstance(i.message, m.SideReply) and i.message.id == id)


@contextlib.asynccontextmanager
async def started(var: Path, **options: Any) -> AsyncIterator[FakeWorker]:
    """A runner with its executor ready. `options` are fields of RunnerStart."""
    worker = FakeWorker(var)
    await worker.start(**options)
    try:
        await worker.wait_for(m.RunnerReady)
        yield worker
    finally:
        await worker.stop()
