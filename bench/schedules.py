"""How late schedules start: one alone, and a hundred that are due in the same second, on simulated workers.

The gateway is the real program in a process of its own, its workers are simulated (`load_driver.py`), so that no container's start is
in the figures. All times are the gateway's own: of a run's record, and of the first code that its session started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from cellburst_protocol.messages import ListRuns, PutSchedule, RunList
from cellburst_protocol.resources import Resources
from cellburst_protocol.schedules import ACTIVE, RunRow, ScheduleSpec, When
from tests.fakes.fake_kernel import IMAGE, FakeKernel
from tests.gateway.scheduled import notebook

from .gateway_load import ROOT, _driver, _end, _wait_for
from .harness import House
from .report import Figure

AT_ONCE = 100
WORKERS, GPUS_EACH = 5, 20
LEAD_SECONDS = 3.0  # from the last schedule's record to its instant
WAIT_SECONDS = 120.0


def schedules_at_once(house: House) -> Iterator[Figure]:
    """One schedule, then a hundred in one second."""
    data, run = Path(house.environment["CELLBURST_DATA"]), Path(house.environment["CELLBURST_RUN"])
    environment = {**os.environ, **house.environment}
    gateway = subprocess.Popen(
        [sys.executable, "-m", "cellburst_gateway", "--data-dir", str(data), "--run-dir", str(run), "--no-local-worker"],
        env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.ExitStack() as closing:
        closing.callback(_end, gateway)
        url = str(_wait_for(run / "gateway.json", gateway)["url"])
        workers = subprocess.Popen(
            _driver("workers", url, data / "worker-token", WORKERS, GPUS_EACH), cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        closing.callback(_end, workers)
        assert workers.stdout is not None
        if workers.stdout.readline().strip() != "joined":
            raise RuntimeError("the simulated workers could not join")
        token = (data / "token").read_text().strip()
        one = asyncio.run(_runs_of(url, token, data, 1))
        many = asyncio.run(_runs_of(url, token, data, AT_ONCE))
    yield Figure(
        "a schedule's start after its time", max(_late(one)), "s", 1.0, "max",
        f"until its run is in the record and begun; its first code ran {_code(one):.2f} s after its time on a simulated worker",
    )  # fmt: skip
    late = _late(many) if len(many) == AT_ONCE else [float("inf")]
    yield Figure(
        f"{AT_ONCE} schedules due in one second, all queued", max(late), "s", 3.0, "max",
        f"until the last of their runs is in the record and begun; the first code of the last ran {_code(many):.2f} s after its time; "
        f"load of the whole machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
    )  # fmt: skip


async def _runs_of(url: str, token: str, data: Path, count: int) -> list[RunRow]:
    """Make so many schedules for one instant; their runs, when all have ended."""
    cli = await FakeKernel(url, token, role="cli").dial()
    try:
        book = notebook("print x")
        hash = blake3(book).hexdigest()
        blob = data / "blobs" / hash[:2] / hash
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(book)
        due = int(time.time() + LEAD_SECONDS + 0.05 * count)
        for number in range(count):
            spec = ScheduleSpec(
                name=f"{count}-{number}", notebook="/bench.ipynb", when=When(kind="once", at_unix_seconds=due), notebook_hash=hash,
                notebook_size_bytes=len(book), image=IMAGE, resources=Resources(memory_mib=512),
            )  # fmt: skip
            await cli.peer.request(PutSchedule(spec=spec), timeout_seconds=30)
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                answer = await cli.peer.request(ListRuns(count=1000), timeout_seconds=30)
                assert isinstance(answer, RunList)
                rows = [row for row in answer.rows if row.instant_unix_seconds == due]
                if len(rows) >= count and not any(row.state in ACTIVE for row in rows):
                    return rows
                await asyncio.sleep(0.2)
    finally:
        await cli.close()


def _late(rows: list[RunRow]) -> list[float]:
    return [row.created_unix_seconds - row.instant_unix_seconds for row in rows]


def _code(rows: list[RunRow]) -> float:
    return max((row.started_unix_seconds or float("inf")) - row.instant_unix_seconds for row in rows)
