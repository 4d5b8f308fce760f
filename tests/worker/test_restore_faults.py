"""Restores that hang and parks of a container that is nearly full, with real sandboxes: what is left of the session."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import EndReason
from cellburst_runtime.snapshot_failures import FORGET_SECONDS, MOST_FAILURES
from cellburst_runtime.tools import find_runsc
from cellburst_worker.site import Limits
from cellburst_worker.starting import TOO_OFTEN
from tests.fakes.fake_gateway import FakeContainer
from tests.worker.test_parking_gvisor import House, cell, house, until

pytestmark = pytest.mark.gvisor

# A runsc that never comes back from a restore while the file `hang` is there, and cannot do it while `refuse` is; it counts
# what it was asked.
HANGING = """#!/bin/sh
for argument in "$@"; do
    if [ "$argument" = restore ] && [ -e {folder}/hang ]; then
        echo asked >> {folder}/asked
        exec sleep 3600
    fi
    if [ "$argument" = restore ] && [ -e {folder}/refuse ]; then
        echo asked >> {folder}/asked
        echo "panic: deep inside" >&2
        exit 128
    fi
done
exec {runsc} "$@"
"""
MEMORY_MIB = 600


def details(ready: m.ContainerReady, name: str) -> list[str]:
    return [phase.detail for phase in ready.phases if phase.name == name]


@pytest.fixture
def hanging(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder: what is restored hangs while the file `hang` is in it, fails while `refuse` is, and adds a line to `asked`."""
    folder = short_path / "wrapped"
    folder.mkdir()
    program = folder / "runsc"
    program.write_text(HANGING.format(folder=folder, runsc=find_runsc(short_path)))
    program.chmod(0o755)
    monkeypatch.setenv("CELLBURST_RUNSC", str(program))
    return folder


async def test_a_restore_that_hangs_falls_back_with_the_names_and_is_not_tried_for_ever(
    short_path: Path, hanging: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(short_path, limits=Limits(restore_seconds=0.5)) as h:
        container, _ = await h.ready("c0")
        await cell(container, "call-0", "x = [0]; open('w', 'w').write('kept')")
        (hanging / "hang").touch()
        for n in range(1, MOST_FAILURES + 1):
            event = await h.park(container, f"p{n}")
            assert event.parked.kind == "snapshot"
            if n == 2:
                (hanging / "hang").rename(hanging / "refuse")
            container, ready = await h.ready(f"c{n}", parked=f"p{n}")
            assert ready.start == "names" and ready.lost == []
            (said,) = details(ready, "restore")
            if n == 2:  # refused, in words that are for the log alone
                told = f"gVisor refused to restore container c{n}: what it said is in the worker's log"
                assert said == f"snapshot unusable: {told}"
                assert "panic: deep inside" in [getattr(record, "said", "") for record in caplog.records]
                (hanging / "refuse").rename(hanging / "hang")
            else:
                assert said.startswith("snapshot unusable: it was not up within"), said
            assert [phase.name for phase in ready.phases] == ["image", "restore", "boot", "enter", "values"]
            # What was written and the names are there, and what is run next is run.
            assert (
                await cell(container, f"call-{n}", "print(x, open('w').read()); x.append(1)")
                == f"{[0] + [1] * (n - 1)} kept\n"
            )
            assert (hanging / "asked").read_text().count("asked") == n
        await h.park(container, "last")
        container, ready = await h.ready("c-last", parked="last")
        assert ready.start == "names" and details(ready, "restore") == [f"snapshot unusable: {TOO_OFTEN}"]
        assert (hanging / "asked").read_text().count("asked") == MOST_FAILURES  # not asked once more
        assert await cell(container, "call-last", "print(len(x))") == f"{MOST_FAILURES + 1}\n"
        # Nothing is left of those that hung.
        assert [path.name for path in (h.folder / "run" / "containers").iterdir()] == ["c-last"]
        # Other sessions of the same image are none the worse, nor is this one after a day.
        (hanging / "hang").unlink()
        other, _ = await h.ready("c-other", session="another")
        await cell(other, "call-other", "y = iter([1, 2]); next(y)")
        await h.park(other, "other")
        other, ready = await h.ready("c-other-2", session="another", parked="other")
        assert ready.start == "snapshot" and await cell(other, "call-other-2", "print(next(y))") == "2\n"
        await h.park(container, "later")
        h.runtime.snapshots.failures.wall = lambda: time.time() + FORGET_SECONDS
        container, ready = await h.ready("c-later", parked="later")
        assert ready.start == "snapshot"


async def test_a_template_whose_restore_hangs_is_a_boot(
    short_path: Path, hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellburst_worker.template_policy.QUIET_SECONDS", 0.1)
    async with house(short_path, templates=True, warm=False, limits=Limits(restore_seconds=0.5)) as h:
        first, _ = await h.ready("c1")
        await cell(first, "call-1", "pass")
        await until(lambda: h.runtime.snapshots.templates(), 60)
        (hanging / "hang").touch()
        second, ready = await h.ready("c2")
        assert ready.start == "boot"
        assert details(ready, "restore")[0].startswith("template unusable: it was not up within")
        assert await cell(second, "call-2", "print(6 * 7)") == "42\n"


async def fill(h: House, container: FakeContainer, share: float) -> None:
    """Have a session hold random bytes until its container has so much of its memory: in steps, for the sandbox's own
    memory grows with it."""
    await cell(container, "call-fill", "import os\nheld = []")
    for n in range(1000):
        usage = await h.worker.containers[container.id].usage({})
        assert usage.memory_limit_bytes == MEMORY_MIB << 20 and usage.memory_bytes
        left = int(usage.memory_limit_bytes * share) - usage.memory_bytes
        if left <= 0:
            return
        size = max(4 << 20, left // 2)
        await cell(container, f"call-fill-{n}", f"held.append(bytearray(os.urandom(1 << 20) * {size >> 20}))")
    raise AssertionError("the container's memory never grew")


async def test_a_session_that_fills_its_memory_is_put_away_whole(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(short_path) as h:
        container, _ = await h.ready("c1", resources=Resources(memory_mib=MEMORY_MIB))
        await cell(container, "call-1", "x = iter([1, 2]); next(x); import os; pid = os.getpid()")
        await fill(h, container, 0.95)
        # Without memory to spare it is not begun, and lives on.
        with monkeypatch.context() as patch:
            patch.setattr("cellburst_worker.templates.free_bytes", lambda: 0)
            await h.gateway.request(m.ParkContainer(container="c1", parked="p0"))
            _, failed = await container.until(m.ParkFailed)
        assert failed.error.code is ErrorCode.UNAVAILABLE and f"of its {MEMORY_MIB} MiB" in failed.error.message
        assert await cell(container, "call-alive", "print(os.getpid() == pid)") == "True\n"
        # With it, it is put away whole.
        await h.gateway.request(m.ParkContainer(container="c1", parked="p1"))
        _, ended = await container.until(m.ContainerEnded, seconds=60)

        assert ended.reason is EndReason.PARKED, ended
        resumed, ready = await h.ready("c2", parked="p1", resources=Resources(memory_mib=MEMORY_MIB))

        assert ready.start == "snapshot"
        assert (
            await cell(resumed, "call-2", "print(next(x), os.getpid() == pid, sum(map(len, held)) > 300 << 20)")
            == "2 True True\n"
        )
