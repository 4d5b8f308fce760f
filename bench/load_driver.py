"""The two sides of a gateway under load, each a process of its own: simulated workers, and the kernels of many notebooks.

    python -m bench.load_driver workers URL TOKEN_FILE COUNT GPUS_EACH      until its standard input ends
    python -m bench.load_driver kernels URL TOKEN_FILE SESSIONS STREAMING   prints a Report as JSON

Every simulated worker has a link of its own, as every simulated notebook has. Nothing runs in the "containers": a cell is
a script of `tests/fakes/fake_worker.py`, and a line's text says when it was due and when it was handed to the link. Both
times are of the machine's monotonic clock, which processes of one Linux machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import Ack, CallEnded, CellRefused, IOPub, Numbered, RunCell, SessionInfo, decode
from cellburst_protocol.peer import Stream, StreamEnded
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import EndReason
from tests.fakes.fake_kernel import IMAGE, FakeKernel
from tests.fakes.fake_worker import FakeWorker

LINES_A_SECOND = 100
STREAM_SECONDS = 10
STARTING_AT_ONCE = 20  # notebooks that run their first cell at the same moment
ACK_EVERY = 64  # events, as the notebook side does; and at a call's end
WAIT_SECONDS = 120.0
GPU = Resources(gpus=(GpuChoice("A100"),), cpu=1, memory_mib=1024)


class Report(msgspec.Struct):
    """What the kernels saw. Lateness in seconds: from when a line was due, and from when the worker handed it over."""

    sessions: int
    start_seconds: float
    expected: int
    lines: int
    in_order: bool
    late_after_due: list[float]
    late_after_sent: list[float]
    first_cell: list[float]


class LoadKernel(FakeKernel):
    """A notebook's end that keeps nothing of the past: only what has arrived of the call that runs."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, token)
        self.lines: list[tuple[int, float, float, float]] = []  # number, due, sent, arrived
        self.done = asyncio.Event()
        self.opened = asyncio.Event()
        self.failure: str = ""

    async def open(self, notebook: str) -> None:
        """Open a session of this notebook."""
        await self.session(notebook, kernel_id=notebook)

    async def cell(self, call: str, code: str) -> None:
        """Run a cell to its end."""
        assert self.stream is not None
        self.done.clear()
        await self.stream.send(RunCell(call=call, code=code, resources=GPU, image=IMAGE))
        async with asyncio.timeout(WAIT_SECONDS):
            await self.done.wait()
        if self.failure:
            raise RuntimeError(f"{call}: {self.failure}")

    async def _collect(self, stream: Stream) -> None:
        unacknowledged = 0
        try:
            while True:
                message, buffers = await stream.recv()
                if isinstance(message, Numbered):
                    ended = self._event(message, buffers)
                    unacknowledged += 1
                    if ended or unacknowledged >= ACK_EVERY:
                        unacknowledged = 0
                        stream.post(Ack(sequence=message.sequence))
                elif isinstance(message, SessionInfo):
                    async with self._changed:
                        self.info = message
                        self._changed.notify_all()
                elif isinstance(message, CellRefused):
                    self.failure = repr(message)
                    self.done.set()
        except (CellburstError, StreamEnded) as why:
            self.failure = repr(why)
            self.done.set()

    def _event(self, message: Numbered, buffers: list[memoryview]) -> bool:
        event = decode(message.event)
        if isinstance(event, IOPub):
            arrived = time.monotonic()
            words = json.loads(bytes(buffers[0]))["content"]["text"].split()
            if words[0] == "line":
                self.lines.append((int(words[1]), float(words[2]), float(words[3]), arrived))
        elif isinstance(event, CallEnded):
            if event.reason is not EndReason.DONE:
                self.failure = repr(event)
            self.done.set()
            return True
        return False


async def workers(url: str, token: str, count: int, gpus_each: int) -> None:
    """Serve until standard input ends."""
    made = [
        await FakeWorker(
            url,
            token,
            name=f"load-{number}",
            gpus=["A100-80GB"] * gpus_each,
            cpu=4.0 * gpus_each,
            memory_mib=4096 * gpus_each,
        ).start()
        for number in range(count)
    ]
    sys.stdout.write("joined\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(worker.stop() for worker in made))


async def kernels(url: str, token: str, sessions: int, streaming: int) -> Report:
    """Open all sessions, run a cell in each, then let some of them stream while the others stand idle."""
    began = time.monotonic()
    gate = asyncio.Semaphore(STARTING_AT_ONCE)
    first_cell: list[float] = []
    made = [LoadKernel(url, token) for _ in range(sessions)]

    async def start(number: int, kernel: LoadKernel) -> None:
        async with gate:
            await kernel.dial()
            await kernel.open(f"/load/{number}.ipynb")
            at = time.monotonic()
            await kernel.cell(f"first-{number}", "print hello")
            first_cell.append(time.monotonic() - at)

    await asyncio.gather(*(start(number, kernel) for number, kernel in enumerate(made)))
    started = time.monotonic() - began
    count = LINES_A_SECOND * STREAM_SECONDS
    busy = made[:: max(1, sessions // streaming)][:streaming]
    await asyncio.gather(
        *(k.cell(f"stream-{number}", f"stream {count} {LINES_A_SECOND}") for number, k in enumerate(busy))
    )
    lines = [line for kernel in busy for line in kernel.lines]
    report = Report(
        sessions=sessions, start_seconds=started, expected=count * len(busy), lines=len(lines),
        in_order=all([line[0] for line in kernel.lines] == list(range(count)) for kernel in busy),
        late_after_due=sorted(arrived - due for _, due, _, arrived in lines),
        late_after_sent=sorted(arrived - sent for _, _, sent, arrived in lines), first_cell=sorted(first_cell),
    )  # fmt: skip
    await asyncio.gather(*(kernel.close() for kernel in made))
    return report


def main() -> int:
    what, url, token_file, first, second = sys.argv[1:]
    token = Path(token_file).read_text().strip()
    if what == "workers":
        asyncio.run(workers(url, token, int(first), int(second)))
    else:
        report = asyncio.run(kernels(url, token, int(first), int(second)))
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
