"""Schedules in a real gateway with a simulated worker: requests, runs, policies, retention, and what a kill leaves.

Over 400 lines: the rules of one scheduler, each against the same gateway and worker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import (
    DeleteSchedule,
    ListSchedules,
    PauseSchedule,
    PreviewSchedule,
    PutSchedule,
    ScheduleList,
    SchedulePreview,
    StopSession,
)
from cellburst_protocol.resources import Resources, parse_gpus
from cellburst_protocol.schedules import Notify, RunReason, RunState, When
from cellburst_protocol.states import EndReason
from tests.gateway.house import House
from tests.gateway.scheduled import OVER, Scheduling, SetClock, notebook


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
async def place(config: GatewayConfig, clock: SetClock) -> AsyncIterator[House]:
    gateway = Gateway(config, clock)
    await gateway.start()
    house = House(gateway)
    yield house
    await house.close()


@pytest.fixture
async def client(place: House) -> Scheduling:
    return await Scheduling.of(place)


@pytest.fixture
async def again(
    config: GatewayConfig, clock: SetClock
) -> AsyncIterator[Callable[[House], Awaitable[tuple[House, Scheduling]]]]:
    """The next gateway on the same folders, after the first was killed: closed without ending anything."""
    made: list[House] = []

    async def start(old: House) -> tuple[House, Scheduling]:
        await old.close()
        gateway = Gateway(config, clock)
        await gateway.start()
        made.append(House(gateway))
        return made[-1], await Scheduling.of(made[-1])

    yield start
    for house in made:
        await house.close()


async def refused(client: Scheduling, message: Any) -> CellburstError:
    with pytest.raises(CellburstError) as caught:
        await client.ask(message)
    return caught.value


# -- requests -----------------------------------------------------------------------------------------------------------


async def test_a_schedule_is_kept_shown_edited_paused_and_deleted(client: Scheduling) -> None:
    made = await client.put(notebook("print one"), When(kind="cron", cron="0 7 * * 1-5", timezone="Europe/Berlin"))
    assert made.row.words == "at 07:00 on Monday to Friday, Europe/Berlin time" and made.row.revision == 1
    assert len(made.next_unix_seconds) == 5 and made.row.next_unix_seconds == made.next_unix_seconds[0]
    edited = msgspec.structs.replace(made.spec, name="weekdays", notebook_hash="0" * 64)
    answer = await client.ask(PutSchedule(spec=edited, schedule=made.row.id, revision=1, keep_frozen=True))
    assert answer.row.name == "weekdays" and answer.spec.notebook_hash == made.spec.notebook_hash
    problem = await refused(client, PutSchedule(spec=edited, schedule=made.row.id, revision=1, keep_frozen=True))
    assert problem.code is ErrorCode.CONFLICT and "changed meanwhile" in str(problem)
    paused = await client.ask(PauseSchedule(schedule="weekdays"))
    assert paused.row.state == "paused" and paused.row.next_unix_seconds is None
    resumed = await client.ask(PauseSchedule(schedule="weekdays", paused=False))
    assert resumed.row.state == "active" and resumed.row.next_unix_seconds is not None
    listed = await client.ask(ListSchedules())
    assert isinstance(listed, ScheduleList) and [row.name for row in listed.rows] == ["weekdays"]
    await client.ask(DeleteSchedule(schedule=made.row.id[:10]))
    assert (await client.ask(ListSchedules())).rows == []


async def test_a_name_is_taken_once_and_unknown_ones_are_told(client: Scheduling) -> None:
    made = await client.put(notebook("print one"))
    problem = await refused(client, PutSchedule(spec=made.spec))
    assert problem.code is ErrorCode.CONFLICT
    problem = await refused(client, PauseSchedule(schedule="nihgtly"))
    assert problem.code is ErrorCode.NOT_FOUND and "nightly" in problem.info.allowed


WRONG: list[tuple[dict[str, Any], str]] = [
        ({"when": When(kind="cron", cron="61 * * * *")}, "minute 61"),
        ({"when": When(kind="cron", cron="0 0 31 2 *")}, "never comes"),
        ({"when": When(kind="cron", cron="* * * * * *")}, "6 fields"),
        ({"when": When(kind="cron", cron="0 0 * * *", timezone="Europe/Berln")}, "Europe/Berlin"),
        ({"when": When(kind="every", every_seconds=1)}, "10 seconds"),
        ({"when": When(kind="once", at_unix_seconds=1_000_000)}, "has passed"),
        ({"name": "two\nlines"}, "no name"), ({"name": ""}, "no name"), ({"retries": -1}, "retries=-1"),
        ({"budget_usd": "much"}, "budget"), ({"timeout_seconds": 0.0}, "timeout"), ({"image": None}, "environment"),
        ({"missed_window_seconds": 1e9}, "window"), ({"notify": [Notify(channel="webhook", target="ftp://x")]}, "no webhook"),
        ({"notify": [Notify(channel="email", target="ann")]}, "no e-mail"), ({"notebook_hash": ""}, "hash is missing"),
        ({"parameters": {"x": 1}}, "no cell of the notebook has the tag"),
    ]  # fmt: skip
NO_NOTEBOOKS: list[tuple[bytes, str]] = [(b"{", "no JSON"), (b"[]", "something else"), (notebook("x", kind="markdown"), "no code cell"),
     (b'{"nbformat": 3, "worksheets": []}', "format 3"), (b'{"nbformat": 4, "cells": [1]}', "malformed"), (b"\xff\xfe", "no JSON")]  # fmt: skip


async def test_what_is_wrong_is_said_before_anything_is_saved(client: Scheduling) -> None:
    for changes, said in WRONG:
        with pytest.raises(CellburstError, match=said):
            await client.put(notebook("print one"), **changes)
    for data, said in NO_NOTEBOOKS:
        with pytest.raises(CellburstError, match=said):
            await client.put(data)
    assert (await client.ask(ListSchedules())).rows == []


async def test_files_that_were_not_sent_are_named(client: Scheduling) -> None:
    made = await client.put(notebook("print one"))
    spec = msgspec.structs.replace(made.spec, name="other", notebook_hash="ab" * 32)
    problem = await refused(client, PutSchedule(spec=spec))
    assert problem.code is ErrorCode.NOT_FOUND and problem.info.detail["missing"] == "ab" * 32


async def test_a_preview_reads_the_line_or_says_what_is_wrong(client: Scheduling) -> None:
    shown = await client.ask(PreviewSchedule(when=When(kind="cron", cron="0 7 * * *", timezone="Asia/Tokyo")))
    assert isinstance(shown, SchedulePreview) and shown.words == "at 07:00 every day, Asia/Tokyo time" and shown.machine
    assert len(shown.next_unix_seconds) == 5 and shown.next_local[0].endswith("07:00 JST")
    wrong = await client.ask(PreviewSchedule(when=When(kind="cron", cron="0 25 * * *")))
    assert wrong.problem is not None and "hour 25" in wrong.problem.message


# -- runs ---------------------------------------------------------------------------------------------------------------


async def test_a_run_executes_all_cells_in_order_and_keeps_the_notebook(place: House, client: Scheduling) -> None:
    worker = await place.worker()
    await client.put(
        notebook("print one", "print two\nprint three", "   "), resources=Resources(gpus=parse_gpus("A100"))
    )
    row = await client.until((await client.run()).id)
    assert (row.state, row.reason, row.cells_done_count, row.cells_count) == (RunState.SUCCEEDED, RunReason.DONE, 2, 2)
    assert client.outputs(row.id) == ["one\n", "two\nthree\n", ""]
    executed = client.executed(row.id)
    assert [cell["execution_count"] for cell in executed["cells"]] == [1, 2, None]
    assert executed["metadata"]["cellburst"]["run"] == row.id and row.trigger == "person" and row.ended_unix_seconds
    assert not worker.containers or all(c.state.value == "ended" for c in worker.containers.values())
    folder = place.gateway.config.data_folder
    assert not folder.with_name(folder.name + "-runs").exists(), "the folder of the attempt is gone"
    info = await client.get()
    assert info.row.last is not None and info.row.last.id == row.id and info.row.mean_cost_usd


async def test_a_run_stops_at_the_first_error_unless_the_cell_may_raise(place: House, client: Scheduling) -> None:
    await place.worker()
    await client.put(notebook(("raise ValueError", ["raises-exception"]), "print on", "raise KeyError", "print never"))
    row = await client.until((await client.run()).id)
    assert (row.state, row.reason, row.cell, row.cells_done_count) == (RunState.FAILED, RunReason.RAISED, 3, 2)
    assert row.error is not None and row.error.message == "cell 3: KeyError: asked to"
    assert client.outputs(row.id)[1] == "on\n" and client.outputs(row.id)[3] == ""


async def test_a_running_run_can_be_read_and_cancelled(place: House, client: Scheduling) -> None:
    await place.worker()
    await client.put(notebook("print one", "print begun\nwait", "print never"))
    run = (await client.run()).id
    row = await client.until(run, lambda r: r.cells_done_count == 1 and r.state is RunState.RUNNING)
    await place.until(lambda: "begun" in client.outputs(run)[1])  # its file follows its row
    assert client.outputs(run)[0] == "one\n"
    await client.cancel(run)
    row = await client.until(run)
    assert (row.state, row.reason) == (RunState.CANCELLED, RunReason.CANCELLED)
    assert "begun" in client.outputs(run)[1] and client.outputs(run)[2] == ""
    await client.cancel(run)
    assert (await client.runs(run=run))[0].reason is RunReason.CANCELLED


async def test_a_session_that_is_stopped_under_a_run_ends_it(place: House, client: Scheduling) -> None:
    await place.worker()
    await client.put(notebook("wait"))
    run = (await client.run()).id
    row = await client.until(run, lambda r: r.state is RunState.RUNNING)
    await client.ask(StopSession(session=row.session))
    assert (await client.until(run)).reason is RunReason.STOPPED


async def test_parameters_are_typed_and_set_after_their_cell(place: House, client: Scheduling) -> None:
    worker = await place.worker()
    given = {"rate": 2, "names": ["a"], "on": True}
    cells = [("rate = 1.5\nnames: list = []\non = False\nmode = 'x'", ["parameters"]), "print x"]
    info = await client.put(notebook(*cells), parameters=given)
    row = await client.until((await client.run()).id)
    codes = [m.code for c in worker.containers.values() for m in c.received if hasattr(m, "code")]
    made = client.executed(row.id)["cells"]
    assert [cell["metadata"].get("tags") for cell in made] == [["parameters"], ["injected-parameters"], None], codes
    assert made[1]["source"] == "# Parameters\nrate = 2\nnames = ['a']\non = True"
    for wrong, said in (({"rat": 1}, "did you mean rate"), ({"on": 1}, "of type int"), ({"names": {}}, "of type dict")):
        spec = msgspec.structs.replace(info.spec, parameters=wrong)
        with pytest.raises(CellburstError, match=said):
            await client.ask(PutSchedule(spec=spec, schedule=info.row.id, revision=info.row.revision))


async def test_a_run_is_retried_as_often_as_it_says(place: House, client: Scheduling, clock: SetClock) -> None:
    await place.worker()
    await client.put(notebook("raise ValueError"), retries=2)
    run = (await client.run()).id
    for attempt in (2, 3):
        await client.until(run, lambda r, n=attempt: r.attempt == n)  # type: ignore[misc]
        clock.pass_time(600)
    row = await client.until(run)
    assert (row.reason, row.attempt) == (RunReason.RAISED, 3)
    assert [note[:16] for note in row.notes if "raised" in note] == ["attempt 1 raised", "attempt 2 raised"]


async def test_what_cannot_start_says_so(place: House, client: Scheduling) -> None:
    await place.worker()
    place.gateway.hub.started_monotonic -= 3600  # all workers have joined that will
    await client.put(notebook("print x"), resources=Resources(gpus=parse_gpus("H100")))
    row = await client.until((await client.run()).id)
    assert row.reason is RunReason.START_FAILED and row.error is not None and "H100" in row.error.message
    assert "H100" in json.dumps(client.executed(row.id))


async def test_a_budget_of_a_run_bounds_all_its_cells(place: House, client: Scheduling) -> None:
    await place.worker()
    await client.put(notebook("print x"), resources=Resources(gpus=parse_gpus("A100")), budget_usd="0.0000001")
    row = await client.until((await client.run()).id)
    assert row.reason is RunReason.BUDGET and row.error is not None and "budget" in row.error.message


async def test_the_frozen_folder_is_what_the_container_gets(
    place: House, client: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await place.worker()
    await client.put(notebook("wait"), files=[("helper.py", b"x = 1"), ("data/a.csv", b"1,2")])
    run = (await client.run()).id
    await client.until(run, lambda r: r.state is RunState.RUNNING)
    folder = next(iter(worker.containers.values())).start.image.notebook_folder
    data = place.gateway.config.data_folder
    assert folder == str(data.with_name("data-runs") / f"{run}.1")
    assert Path(folder, "data/a.csv").read_bytes() == b"1,2" and Path(folder, "helper.py").is_file()
    await client.cancel(run)
    await client.until(run)
    await place.until(lambda: not Path(folder).exists())


# -- time ---------------------------------------------------------------------------------------------------------------


async def test_what_is_due_starts_by_itself_within_a_second(place: House, client: Scheduling, clock: SetClock) -> None:
    await place.worker()
    await client.put(notebook("print x"), When(kind="every", every_seconds=3600))
    due = (await client.get()).row.next_unix_seconds
    assert due is not None
    clock.pass_time(due - clock.wall())
    async with asyncio.timeout(10):
        while not (rows := await client.runs(schedule="nightly")):
            await asyncio.sleep(0.02)
    row = await client.until(rows[0].id)
    assert row.instant_unix_seconds == due and row.trigger == "time" and row.state is RunState.SUCCEEDED
    assert row.created_unix_seconds - due < 1.0


async def test_a_schedule_of_one_instant_is_done_after_it(place: House, client: Scheduling, clock: SetClock) -> None:
    await place.worker()
    await client.put(notebook("print x"), When(kind="once", at_unix_seconds=int(clock.wall()) + 100))
    clock.pass_time(101)
    async with asyncio.timeout(10):
        while (await client.get()).row.state != "done":
            await asyncio.sleep(0.02)
    rows = await client.runs()
    assert len(rows) == 1 and (await client.until(rows[0].id)).state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("overlap", "ends"),
    [("skip", ["skipped", "running"]), ("queue", ["queued", "running"]), ("replace", ["running", "cancelled"])],
)
async def test_overlap_by_policy(
    place: House, client: Scheduling, clock: SetClock, overlap: Any, ends: list[str]
) -> None:
    await place.worker()
    await client.put(notebook("wait"), When(kind="every", every_seconds=3600), overlap=overlap)
    for _ in range(2):
        due = (await client.get()).row.next_unix_seconds
        assert due is not None
        clock.pass_time(due - clock.wall() + 0.1)
        async with asyncio.timeout(10):
            while not any(
                r.instant_unix_seconds == due and r.state is not RunState.STARTING for r in await client.runs()
            ):
                await asyncio.sleep(0.02)
            if overlap != "queue":
                while not any(r.state is RunState.RUNNING for r in await client.runs()):
                    await asyncio.sleep(0.02)
    async with asyncio.timeout(10):
        while [row.state.value for row in await client.runs()] != ends:
            await asyncio.sleep(0.02)
    rows = await client.runs()
    assert {row.reason for row in rows} <= {None, RunReason.OVERLAP, RunReason.REPLACED}


async def test_instants_while_no_gateway_ran_are_missed_or_caught_up(
    place: House, client: Scheduling, clock: SetClock, again: Any
) -> None:
    await client.put(notebook("print x"), When(kind="every", every_seconds=60))
    clock.pass_time(600)
    house, client = await again(place)
    await house.worker()
    async with asyncio.timeout(10):
        while not any(row.state is RunState.SUCCEEDED for row in await client.runs()):
            await asyncio.sleep(0.02)
    rows = await client.runs()
    assert len(rows) >= 9 and len({row.instant_unix_seconds for row in rows}) == len(rows)
    assert {row.reason for row in rows} == {RunReason.DONE, RunReason.NEWER}
    assert rows[0].reason is RunReason.DONE


async def test_a_clock_set_forward_and_back_repeats_nothing(place: House, client: Scheduling, clock: SetClock) -> None:
    await place.worker()
    await client.put(notebook("print x"), When(kind="every", every_seconds=3600), missed="skip")
    watch = place.gateway.hub.schedules._watch
    await place.until(lambda: watch.cause is RunReason.LATE)
    clock.wall_ahead += 86400 + 1800
    await place.until(
        lambda: (f := next(iter(place.gateway.hub.schedules._live.values())).following) is not None and f > clock.wall()
    )
    rows = await client.runs()
    assert sum(row.instants_count for row in rows) == 24 and {row.reason for row in rows} == {RunReason.CLOCK}
    clock.wall_ahead -= 86400 + 1800
    due = (await client.get()).row.next_unix_seconds
    assert due is not None and due > clock.wall() + 86400 - 1800
    assert await client.runs() == rows


async def test_a_paused_schedule_has_no_instants(place: House, client: Scheduling, clock: SetClock) -> None:
    await place.worker()
    await client.put(notebook("print x"), When(kind="every", every_seconds=60))
    await client.ask(PauseSchedule(schedule="nightly"))
    clock.pass_time(600)
    resumed = await client.ask(PauseSchedule(schedule="nightly", paused=False))
    assert resumed.row.next_unix_seconds > clock.wall() - 1 and await client.runs() == []


async def test_runs_are_forgotten_by_number_with_their_files(place: House, client: Scheduling) -> None:
    await place.worker()
    await client.put(notebook("print x"), keep_runs=2)
    runs = [(await client.until((await client.run()).id)).id for _ in range(4)]
    async with asyncio.timeout(10):
        while [row.id for row in await client.runs()] != runs[:1:-1]:
            await asyncio.sleep(0.02)
    files = place.gateway.hub.schedules.files
    await place.until(lambda: not files.notebook_path(runs[0]).exists())
    assert files.notebook_path(runs[3]).exists()


# -- kills --------------------------------------------------------------------------------------------------------------


async def test_a_gateway_killed_during_a_run_goes_on_with_it(place: House, client: Scheduling, again: Any) -> None:
    worker = await place.worker()
    await client.put(notebook("print one", "print two\nwait\nprint three", "print four"))
    run = (await client.run()).id
    await client.until(run, lambda r: r.cells_done_count == 1 and r.cell == 2)
    await place.until(lambda: any(c.running for c in worker.containers.values()))
    place._closing = [c for c in place._closing if c != worker.stop]
    house, client = await again(place)
    worker.url = house.url.replace("http", "ws", 1) + "/link"
    house._closing.append(worker.stop)
    await client.until(run, lambda r: r.state is RunState.RUNNING)
    await house.until(lambda: worker.joined.is_set())
    worker.release()
    row = await client.until(run)
    assert (row.state, row.attempt, row.cells_done_count) == (RunState.SUCCEEDED, 1, 3), row
    assert client.outputs(run) == ["one\n", "two\nthree\n", "four\n"]
    assert sum(type(m).__name__ == "RunCell" for c in worker.containers.values() for m in c.received) <= 4


async def test_a_gateway_killed_before_a_run_s_start_starts_it_once(
    place: House, client: Scheduling, again: Any
) -> None:
    await client.put(notebook("print one"))
    run = (await client.run()).id  # no worker yet: it waits for one
    await client.until(run, lambda r: bool(r.session))
    house, client = await again(place)
    worker = await house.worker()
    row = await client.until(run)
    assert row.state is RunState.SUCCEEDED and row.attempt == 1
    codes = [m for c in worker.containers.values() for m in c.received if type(m).__name__ == "RunCell"]
    assert len({c.call for c in codes}) <= 1 and len(await client.runs()) == 1


async def test_a_run_whose_session_is_gone_is_lost_and_not_run_again(
    place: House, client: Scheduling, again: Any
) -> None:
    worker = await place.worker()
    await client.put(notebook("print one", "wait"))
    run = (await client.run()).id
    await client.until(run, lambda r: r.cell == 2 and r.state is RunState.RUNNING)
    hub = place.gateway.hub
    await place.until(lambda: any(c.running for c in worker.containers.values()))
    hub.stopping = True  # as at a shutdown, so that the driver's last word is not recorded
    driver = next(iter(hub.schedules._live.values())).driver
    assert driver is not None and driver._calls is not None
    tasks = [task for task in hub._tasks if "_drive" in repr(task.get_coro())]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    hub.sessions.end(driver._calls.session, EndReason.SHUTDOWN)
    house, client = await again(place)
    await house.worker(name="other")
    row = await client.until(run)
    assert (row.state, row.reason) == (RunState.LOST, RunReason.GATEWAY_STOPPED) and "cell 2" in str(row.error), row
    assert client.outputs(run)[0] == "one\n" and row.state in OVER


async def test_a_lost_container_loses_the_run_unless_it_asks_for_retries(
    place: House, client: Scheduling, clock: SetClock
) -> None:
    await place.worker()
    await client.put(notebook("print one", "oom"))
    row = await client.until((await client.run()).id)
    assert row.state is RunState.FAILED and row.error is not None and "memory" in row.error.message
    await client.put(notebook("print one", "crash"), name="crashes")
    row = await client.until((await client.run("crashes")).id)
    assert row.state is RunState.FAILED and row.attempt == 1
