"""Runs whose `%%modal` cells have sessions of their own: what the gateway does for them, with a simulated worker."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from cellburst_gateway.container_link import outer_of
from cellburst_protocol.messages import RunCell
from cellburst_protocol.resources import Resources, parse_gpus
from cellburst_protocol.schedules import RunReason, RunState
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeContainer, FakeWorker
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook

MIXED = notebook("print one", "%%modal gpu=A100\nprint two")


def codes(worker: FakeWorker) -> list[RunCell]:
    return [m for c in worker.containers.values() for m in c.received if isinstance(m, RunCell)]


async def run_of(house: House, data: bytes, **changes: Any) -> tuple[FakeWorker, Any]:
    worker = await house.worker()
    kept: dict[str, FakeContainer] = {}
    worker.end = _keeping(worker, kept)  # type: ignore[method-assign]  # what a container was told, after it is gone
    client = await Scheduling.of(house)
    await client.put(data, **changes)
    row = await client.until((await client.run()).id)
    if row.reason is not RunReason.START_FAILED:
        await house.until(lambda: bool(kept))  # it is stopped a moment after the run's end
    worker.containers = kept
    return worker, row


def _keeping(worker: FakeWorker, kept: dict[str, FakeContainer]) -> Callable[..., None]:
    end = worker.end

    def ended(name: str, reason: Any) -> None:
        kept[name] = worker.containers[name]
        end(name, reason)

    return ended


async def test_such_a_cell_goes_as_it_is_and_its_container_has_a_link(house: House) -> None:
    worker, row = await run_of(house, MIXED)
    assert row.state is RunState.SUCCEEDED and row.cells_count == row.cells_done_count == 2, row
    begin, first, second = codes(worker)
    assert "cellburst_jupyter.scheduled_run" in begin.code and "/home/ann/report.ipynb" in begin.code
    assert (first.code, second.code) == ("print one", "%%modal gpu=A100\nprint two")
    assert (first.execution_count, second.execution_count) == (1, 2)
    (container,) = worker.containers.values()
    assert container.start.link_token and not container.start.resources.gpus


@pytest.mark.parametrize(
    ("data", "changes"), [(notebook("print one"), {}), (MIXED, {"modal_cells": "same"})], ids=["none", "same"]
)
async def test_without_such_cells_there_is_no_link(house: House, data: bytes, changes: dict[str, Any]) -> None:
    worker, row = await run_of(house, data, **changes)
    assert row.state is RunState.SUCCEEDED
    (container,) = worker.containers.values()
    assert not container.start.link_token and codes(worker)[0].code == "print one"
    assert all(not cell.code.startswith("%%") for cell in codes(worker))


async def test_where_it_cannot_be_they_run_with_the_others_and_it_is_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellburst_gateway.run_driver.begin_code", lambda spec, notebook: "raise RuntimeError")
    worker, row = await run_of(house, MIXED)
    assert row.state is RunState.SUCCEEDED and row.cells_done_count == 2, row
    assert codes(worker)[-1].code == "# %%modal gpu=A100\nprint two"
    assert any("ran in the run's own session" in note and "RuntimeError" in note for note in row.notes), row.notes


async def test_a_run_whose_begin_cannot_start_has_not_begun(house: House) -> None:
    house.gateway.hub.started_monotonic -= 3600  # nobody waits for workers that may still join
    _, row = await run_of(house, MIXED, resources=Resources(gpus=parse_gpus("H200")))
    assert (row.state, row.reason, row.cells_done_count) == (RunState.FAILED, RunReason.START_FAILED, 0)
    assert row.started_unix_seconds is None and "before its first cell" in str(row.error)


async def test_what_a_cell_s_own_session_costs_counts_in_the_budget(house: House) -> None:
    worker = await house.worker(gpus=["A100-80GB"] * 8)
    client = await Scheduling.of(house)
    prices, usual = house.gateway.hub.prices, Resources()

    def rate(*types: str) -> Decimal:
        return prices.rate(list(types), usual.cpu, usual.memory_mib, simulated=True).usd_per_second

    alone, both = rate(), rate() + rate(*["A100-80GB"] * 8)
    budget = 2 * both  # two seconds are kept back: with both there is nothing left, alone it lasts
    assert budget > 100 * alone
    await client.put(notebook("print one", "%%modal gpu=A100\nwait"), budget_usd=format(budget, "f"))
    run = (await client.run()).id
    await client.until(run, lambda r: r.cell == 2 and r.state is RunState.RUNNING)
    await house.until(lambda: any(c.running for c in worker.containers.values()))
    (container,) = worker.containers.values()
    inside = await FakeKernel(house.url, container.start.link_token).dial()
    house._closing.append(inside.close)
    await inside.session(notebook="inner")
    await inside.run("wait", call="deep", resources=Resources(gpus=parse_gpus("A100:8")))
    row = await client.until(run)
    assert (row.state, row.reason, row.cell) == (RunState.FAILED, RunReason.BUDGET, 2), row
    await house.until(lambda: not [s for s in house.gateway.hub.sessions if outer_of(s.record.notebook)])
    await house.until(lambda: not worker.containers)


async def test_a_cell_that_waits_for_what_its_run_holds_ends_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellburst_gateway.run_calls.STUCK_SECONDS", 0.0)
    worker = await house.worker()  # with one A100
    client = await Scheduling.of(house)
    one = Resources(gpus=parse_gpus("A100"))
    await client.put(notebook("%%modal gpu=A100\nwait"), resources=one)
    run = (await client.run()).id
    await client.until(run, lambda r: r.cell == 1 and r.state is RunState.RUNNING)
    (container,) = worker.containers.values()
    inside = await FakeKernel(house.url, container.start.link_token).dial()
    house._closing.append(inside.close)
    await inside.session(notebook="inner")
    await inside.run("print deep", call="deep", resources=one)
    row = await client.until(run)
    assert (row.state, row.reason, row.cell) == (RunState.FAILED, RunReason.START_FAILED, 1), row
    assert "held by the run's own session" in str(row.error)
    await house.until(lambda: not worker.containers)


async def test_secrets_are_those_that_the_schedule_names(house: House) -> None:
    worker = await house.worker()
    client = await Scheduling.of(house)
    made = await client.put(notebook("%%modal secrets=hf volumes=/d:sets\nwait"))
    assert "secret 'hf' is not there" in made.missing[0] and "volume 'sets' is not there" in made.missing[1]
    run = (await client.run()).id
    await client.until(run, lambda r: r.state is RunState.RUNNING)
    session = next(s for s in house.gateway.hub.sessions if s.id)
    assert session.inner_secrets == {"hf"}
    info = await client.get()
    assert info.row.secrets == ["hf"]
    assert house.gateway.hub.schedules.users_of(session.record.owner.workspace, secret="hf") == ["nightly"]
    worker.release()
    assert (await client.until(run)).state is RunState.SUCCEEDED
