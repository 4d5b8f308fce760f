"""What may go wrong at a run's end: its cells ran as they ran, and nothing of it goes on and costs."""

from __future__ import annotations

from typing import Any

import pytest

from cellburst_gateway.run_driver import RunDriver
from cellburst_gateway.run_files import RunFiles
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.schedules import RunReason, RunState
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook


async def test_an_end_that_cannot_be_put_away_does_not_run_the_cells_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: RunDriver, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDriver, "_finish", broken)
    worker = await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook("print one"), retries=2)
    row = await client.until((await client.run()).id)
    assert (row.state, row.reason) == (RunState.SUCCEEDED, RunReason.DONE), row
    assert any("could not be put away" in note for note in row.notes), row.notes
    await house.until(lambda: not worker.containers)
    assert not list(house.gateway.hub.sessions)


async def test_a_defect_leaves_no_container_that_costs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cells = RunDriver._run_cells

    async def run_and_fail(self: RunDriver) -> None:
        await run_cells(self)
        raise KeyError("a defect")

    monkeypatch.setattr(RunDriver, "_run_cells", run_and_fail)
    worker = await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook("print one"))
    row = await client.until((await client.run()).id)
    assert (row.state, row.reason) == (RunState.FAILED, RunReason.START_FAILED)
    await house.until(lambda: not worker.containers)
    assert not list(house.gateway.hub.sessions)


async def test_a_frozen_file_of_another_workspace_is_not_there(house: House) -> None:
    client = await Scheduling.of(house)
    await client.put(notebook("print one"))
    (live,) = house.gateway.hub.schedules._live.values()
    files: RunFiles = house.gateway.hub.schedules.files
    hash = live.spec.notebook_hash
    blobs = house.gateway.hub.blobs
    assert files.missing(blobs, "somebody", [hash], set()) == [hash]
    assert files.missing(blobs, live.record.owner.workspace, [hash], {hash}) == []
    with pytest.raises(CellburstError) as refused:
        house.gateway.hub.schedules._freeze("somebody", live.spec)
    assert refused.value.code is ErrorCode.NOT_FOUND
