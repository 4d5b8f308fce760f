"""The month's budget: what the month cost, runs that it skips, who is told of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.month_budget import month_of
from cellburst_gateway.run_told import tell_budget
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.messages import SetBudget
from cellburst_protocol.resources import Resources, parse_gpus
from cellburst_protocol.schedules import Notify, RunReason, RunRow, RunState, ScheduleSpec, When
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, SetClock, notebook


def moment(*when: int) -> float:
    return datetime(*when).timestamp()  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("wall", "first", "until"),
    [(moment(2026, 2, 28, 23, 59), (2026, 2), (2026, 3)), (moment(2026, 12, 1), (2026, 12), (2027, 1)),
     (moment(2028, 1, 31, 12), (2028, 1), (2028, 2))],
)  # fmt: skip
def test_a_month_is_the_calendar_s(wall: float, first: tuple[int, int], until: tuple[int, int]) -> None:
    found = month_of(wall)
    assert [(one.year, one.month, one.day, one.hour) for one in found] == [(*first, 1, 0), (*until, 1, 0)]


@pytest.fixture
def clock() -> SetClock:
    """In the middle of a month: what a test lets pass ends in the same one."""
    made = SetClock()
    month, until = month_of(made.wall())
    made.pass_time((month.timestamp() + until.timestamp()) / 2 - made.wall())
    return made


@pytest.fixture
async def place(config: GatewayConfig, clock: SetClock) -> AsyncIterator[House]:
    gateway = Gateway(config, clock)
    await gateway.start()
    house = House(gateway)
    yield house
    await house.close()


async def next_due(client: Scheduling, clock: SetClock) -> RunRow:
    """The run of the schedule's next instant, when it is over."""
    due = (await client.get()).row.next_unix_seconds
    assert due is not None
    clock.pass_time(due - clock.wall() + 0.1)
    async with asyncio.timeout(20):
        while not (found := [row for row in await client.runs() if row.instant_unix_seconds == due]):
            await asyncio.sleep(0.02)
    return await client.until(found[0].id)


async def test_a_budget_that_is_spent_skips_runs_until_it_is_raised(place: House, clock: SetClock) -> None:
    await place.worker()
    client = await Scheduling.of(place)
    hourly = When(kind="every", every_seconds=3600)
    gpu = Resources(gpus=parse_gpus("A100"))
    await client.put(notebook("print x"), hourly, resources=gpu, notify=[Notify(channel="jupyter")], overlap="replace")
    assert (await next_due(client, clock)).state is RunState.SUCCEEDED, "without a budget everything runs"
    hub = place.gateway.hub
    workspace = hub.store.list_schedules()[0].owner.workspace
    await place.until(lambda: hub.store.spent_since(workspace, 0, {}) > Decimal("0.0000002"))
    await client.ask(SetBudget(usd_per_month="0.0000001"))
    row = await next_due(client, clock)
    assert (row.state, row.reason, row.has_notebook) == (RunState.SKIPPED, RunReason.MONTH_BUDGET, False), row
    assert row.error is not None and row.error.code is ErrorCode.BUDGET and "is spent" in row.error.message
    assert "`cellburst schedule run nightly`" in row.error.next and row.tell_jupyter
    row = await next_due(client, clock)
    assert (row.reason, row.tell_jupyter) == (RunReason.MONTH_BUDGET, False), "it is told once"
    assert (await client.until((await client.run()).id)).state is RunState.SUCCEEDED, "a person may run it all the same"
    await client.ask(SetBudget(usd_per_month="50"))
    assert (await next_due(client, clock)).state is RunState.SUCCEEDED
    await client.ask(SetBudget(usd_per_month="0.0000002"))
    assert (await next_due(client, clock)).tell_jupyter, "another budget is told again"


async def test_a_run_that_waited_is_skipped_and_the_one_before_it_goes_on(place: House, clock: SetClock) -> None:
    worker = await place.worker()
    client = await Scheduling.of(place)
    hourly = When(kind="every", every_seconds=3600)
    await client.put(notebook("wait"), hourly, resources=Resources(gpus=parse_gpus("A100")), overlap="queue")
    first = (await client.run()).id
    await client.until(first, lambda row: row.state is RunState.RUNNING)
    due = (await client.get()).row.next_unix_seconds
    assert due is not None
    clock.pass_time(due - clock.wall() + 0.1)
    async with asyncio.timeout(20):
        while len(rows := await client.runs()) < 2:
            await asyncio.sleep(0.02)
    waiting = next(row.id for row in rows if row.id != first)
    place.gateway.hub.store.set_budget(
        next(iter(place.gateway.hub.sessions)).record.owner, "0.0000001", now=clock.wall()
    )
    assert (await client.runs(run=first))[0].state is RunState.RUNNING and worker.containers
    await client.cancel(first)
    assert (await client.until(waiting)).reason is RunReason.MONTH_BUDGET


async def test_a_run_that_is_skipped_takes_the_place_of_none(place: House, clock: SetClock) -> None:
    await place.worker()
    client = await Scheduling.of(place)
    hourly = When(kind="every", every_seconds=3600)
    await client.put(notebook("wait"), hourly, resources=Resources(gpus=parse_gpus("A100")), overlap="replace")
    first = (await client.run()).id
    await client.until(first, lambda row: row.state is RunState.RUNNING)
    await client.ask(SetBudget(usd_per_month="0.0000001"))
    hub = place.gateway.hub
    workspace = hub.store.list_schedules()[0].owner.workspace
    await place.until(lambda: hub.schedules._budget.over(workspace) is not None, seconds=60)
    assert (await next_due(client, clock)).reason is RunReason.MONTH_BUDGET
    assert (await client.runs(run=first))[0].state is RunState.RUNNING
    await client.cancel(first)
    assert (await client.until(first)).reason is RunReason.CANCELLED


def test_who_was_told_already_hears_no_more_of_it() -> None:
    ann, web = Notify(channel="email", target="ann@example.org"), Notify(channel="webhook", target="https://x/y")
    only = Notify(channel="webhook", target="https://x/ok", on_failure=False)
    spec = ScheduleSpec(name="n", notebook="/n", when=When(kind="cron", cron="* * * * *"), notify=[ann, web, only])
    why = ErrorInfo(code=ErrorCode.BUDGET, message="spent")
    run: Any = type("Run", (), {"id": "r", "attempt": 1, "instant": 60})
    jupyter, tell, told = tell_budget(run, spec, why, {"email:ann@example.org"}, lambda kind: kind, 61.0)
    assert not jupyter and [one[2] for one in tell] == ["https://x/y"] and "budget_spent" in tell[0][3]
    assert told == {"email:ann@example.org", "webhook:https://x/y"}
    assert tell_budget(run, spec, why, told, lambda kind: kind, 62.0) == (False, [], told)
