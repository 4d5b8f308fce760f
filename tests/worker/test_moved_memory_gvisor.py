"""A session that moves to more or less memory of the same machine: its process comes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_protocol.resources import Resources
from tests.worker.test_parking_gvisor import cell, house
from tests.worker.test_warm_pool_gvisor import details

pytestmark = pytest.mark.gvisor

BEGIN = "import os, resource; lines = iter('abcdef'); next(lines); pid = os.getpid(); place = os.statvfs('/dev/shm').f_blocks"
HOLD = """
import os
def holding():
    much = os.urandom(400 << 20)
    yield 1
    yield len(much)
held = holding(); next(held)
small = [1]
"""
GO_ON = "print(next(lines), os.getpid() == pid, os.statvfs('/dev/shm').f_blocks == place)"


async def test_more_or_less_memory_moves_the_process_with_its_sizes(short_path: Path) -> None:
    async with house(short_path) as h:
        container, _ = await h.ready("m0", resources=Resources(memory_mib=700))
        await cell(container, "call-0", BEGIN)
        for number, memory_mib in enumerate((1500, 2100, 450, 700), start=1):
            event = await h.park(container, f"p{number}")
            assert event.parked.kind == "snapshot"
            container, ready = await h.ready(
                f"m{number}", parked=f"p{number}", resources=Resources(memory_mib=memory_mib)
            )
            assert ready.start == "snapshot", details(ready)
            usage = await h.worker.containers[container.id].usage({})
            assert usage.memory_limit_bytes == memory_mib << 20
            assert await cell(container, f"call-{number}", GO_ON) == f"{'abcdef'[number]} True True\n"


async def test_what_does_not_fit_and_other_cpus_come_by_value_and_say_why(short_path: Path) -> None:
    async with house(short_path) as h:
        container, _ = await h.ready("m0", resources=Resources(memory_mib=1500))
        await cell(container, "call-0", HOLD)
        await h.park(container, "p1")
        container, ready = await h.ready("m1", parked="p1", resources=Resources(memory_mib=410))
        (said,) = [what for name, what in details(ready) if name == "restore"]
        assert ready.start == "names" and [lost.name for lost in ready.lost] == ["held"]
        assert said.startswith("snapshot unusable: it needs ")
        assert said.endswith(" MiB of memory, and 410 MiB are asked for now"), said
        assert await cell(container, "call-1", "print(small)") == "[1]\n"
        small, _ = await h.ready("n0", session="s2", resources=Resources(memory_mib=700, cpu=1.0))
        await cell(small, "call-1", "import os; pid = os.getpid(); small = [1]")
        await h.park(small, "p2")
        small, ready = await h.ready("n1", session="s2", parked="p2", resources=Resources(memory_mib=700, cpu=2.0))
        assert (ready.start, details(ready)[1]) == (
            "names",
            (
                "restore",
                "snapshot unusable: it ran with cpu=1 and cpu=2 is asked for: libraries make their threads for that number",
            ),
        )
        assert await cell(small, "call-2", "print(small)") == "[1]\n"
