"""The fake worker itself: what it gives its tests is what the runner sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from tests.fakes.runner_harness import FakeWorker, started


async def test_it_starts_runs_collects_and_stops(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        assert [type(i.message) for i in worker.received] == [m.RunnerHello, m.RunnerReady]
        cell = await worker.run("print('a'); 2")
        assert cell.text() == "a\n" and cell.reply["status"] == "ok" and cell.done.status == "ok"
        assert [kind for kind, _ in cell.jupyter()] == ["stream", "execute_result"]
        assert worker.cell("no such call").events == []
    assert worker.process.returncode is not None


async def test_a_wait_for_something_that_does_not_come_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.runner_harness.WAIT_SECONDS", 0.05)
    worker = FakeWorker(tmp_path)
    with pytest.raises(TimeoutError):
        await worker.wait_for(m.Notice)


async def test_held_credit_is_counted_and_paid(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        worker.give_credit = False
        await worker.run("print('x' * 1000)")
        assert worker.owed_bytes > 1000
        worker.pay()
        assert worker.owed_bytes == 0
