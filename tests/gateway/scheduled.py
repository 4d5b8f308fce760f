"""Schedules in a gateway of this process: a clock that a test sets, notebooks for the fake worker, requests as a client makes them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from blake3 import blake3

from cellburst_protocol.messages import (
    CancelRun,
    GetSchedule,
    ListRuns,
    PutSchedule,
    RunInfo,
    RunList,
    RunSchedule,
    ScheduleInfo,
)
from cellburst_protocol.schedules import FrozenFile, RunRow, RunState, ScheduleSpec, When
from tests.fakes.fake_kernel import IMAGE, FakeKernel
from tests.gateway.house import House

OVER = frozenset(set(RunState) - {RunState.QUEUED, RunState.STARTING, RunState.RUNNING})


class SetClock:
    """The true clocks, the wall's ahead by what a test says. (Workers and kernels live by the other one.)"""

    def __init__(self) -> None:
        self.wall_ahead = 0.0

    def wall(self) -> float:
        return time.time() + self.wall_ahead

    def monotonic(self) -> float:
        return time.monotonic()

    def pass_time(self, seconds: float) -> None:
        self.wall_ahead += seconds


def notebook(*cells: str | tuple[str, list[str]], kind: str = "code") -> bytes:
    """A notebook of code cells; (text, tags) is one with tags."""
    made: list[dict[str, Any]] = []
    for number, cell in enumerate(cells):
        text, tags = (cell, []) if isinstance(cell, str) else cell
        made.append({"cell_type": kind, "id": f"c{number}", "metadata": {"tags": tags} if tags else {}, "source": text}
                    | ({"outputs": [], "execution_count": None} if kind == "code" else {}))  # fmt: skip
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


class Scheduling:
    """A client of schedules."""

    def __init__(self, house: House, cli: FakeKernel) -> None:
        self.house, self.cli = house, cli

    @classmethod
    async def of(cls, house: House) -> Scheduling:
        return cls(house, await house.cli())

    async def ask(self, message: Any) -> Any:
        return await self.cli.peer.request(message, timeout_seconds=20)

    def blob(self, data: bytes) -> str:
        """Send a blob."""
        hash = blake3(data).hexdigest()
        writer = self.house.gateway.hub.blobs.writer(hash, 10**9)
        writer.write(data)
        writer.finish()
        return hash

    async def put(
        self, data: bytes, when: When | None = None, *, files: Sequence[tuple[str, bytes]] = (), **changes: Any
    ) -> ScheduleInfo:
        """Make a schedule. Without times: a line that comes once a year, so that only what a test asks for runs."""
        spec = ScheduleSpec(
            **{
                "name": "nightly", "notebook": "/home/ann/report.ipynb", "when": when or When(kind="cron", cron="0 0 1 1 *"),
                "notebook_hash": self.blob(data), "notebook_size_bytes": len(data), "image": IMAGE,
                "files": [FrozenFile(path=path, hash=self.blob(text), size_bytes=len(text)) for path, text in files],
            } | changes
        )  # fmt: skip
        answer = await self.ask(PutSchedule(spec=spec))
        assert isinstance(answer, ScheduleInfo)
        return answer

    async def run(self, schedule: str = "nightly") -> RunRow:
        answer = await self.ask(RunSchedule(schedule=schedule))
        assert isinstance(answer, RunInfo)
        return answer.row

    async def cancel(self, run: str) -> None:
        await self.ask(CancelRun(run=run))

    async def get(self, schedule: str = "nightly") -> ScheduleInfo:
        answer = await self.ask(GetSchedule(schedule=schedule))
        assert isinstance(answer, ScheduleInfo)
        return answer

    async def runs(self, **what: Any) -> list[RunRow]:
        answer = await self.ask(ListRuns(**what))
        assert isinstance(answer, RunList)
        return answer.rows

    async def until(self, run: str, condition: Callable[[RunRow], bool] = lambda row: row.state in OVER) -> RunRow:
        """Wait for a state of a run."""
        async with asyncio.timeout(60):
            while True:
                row = (await self.runs(run=run))[0]
                if condition(row):
                    return row
                await asyncio.sleep(0.02)

    def executed(self, run: str) -> dict[str, Any]:
        """The executed notebook as it is on disk."""
        found: dict[str, Any] = json.loads(self.house.gateway.hub.schedules.files.notebook_path(run).read_bytes())
        return found

    def outputs(self, run: str) -> list[Any]:
        """Of each code cell: its stream text, or the name of its error."""
        return [
            "".join(o.get("text", "") or o.get("ename", "") for o in cell["outputs"])
            for cell in self.executed(run)["cells"] if cell["cell_type"] == "code"
        ]  # fmt: skip
