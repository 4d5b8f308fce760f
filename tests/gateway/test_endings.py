"""What ended and is told with the status: detached cells, long builds, the last ones of each workspace; and that each end is told
once to each principal, whatever windows and gateways come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.endings import CLAIM_SECONDS, KEPT, LONG_BUILD_SECONDS, MOST, TOLD_SECONDS, Endings
from cellburst_gateway.hub import Hub
from cellburst_gateway.scheduler import Planned
from cellburst_gateway.store import Owner, Store
from cellburst_gateway.store_rows import SessionRecord
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EndedThing, Ends, GetStatus, ImageBuilt, TakeEnds
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.schedules import Notify, RunReason, RunState, When
from cellburst_protocol.states import EndReason, SessionState
from tests.gateway.house import House
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures
from tests.gateway.scheduled import Scheduling, SetClock, notebook

ANN, BOB, FAR = Owner("lab", "ann"), Owner("lab", "bob"), Owner("far", "ann")
NOW = 1_000_000.0


@pytest.fixture
def store(record_url: str) -> Iterator[Store]:  # noqa: F811
    opened = Store.open(record_url, now=1.0)
    yield opened
    opened.close()


def endings(store: Store) -> Endings:
    return Endings(store, lambda write: write())


def session(owner: Owner = ANN) -> SessionRecord:
    return SessionRecord(
        id="s", owner=owner, notebook="/n.ipynb", name="train", generation=1, kernel_id="k",
        state=SessionState.IDLE, live=True, container="", reason=None, created=0.0, last_used=0.0, ended=None, detail="",
    )  # fmt: skip


def cell(made: Endings, call: str, owner: Owner = ANN, wall: float = NOW) -> None:
    made.cell(session(owner), call, EndReason.DONE, None, 1.0, wall)


def take(
    made: Endings, window: str = "w", *shown: str, owner: Owner = ANN, wall: float = NOW, monotonic: float = 0.0
) -> list[str]:
    things, runs = made.take(owner, window, shown, wall=wall, monotonic=monotonic, wanted=lambda run: run.id[0] == "r")
    return [one.id for one in things] + [one.id for one in runs]


@pytest.mark.parametrize(
    ("reason", "why", "problem"),
    [
        (EndReason.DONE, None, ""),
        (EndReason.RAISED, ErrorInfo(code=ErrorCode.RAISED, message="ValueError: x"), "ValueError: x"),
        (EndReason.OUT_OF_MEMORY, None, "out of memory"),
    ],
)
def test_a_detached_cell_says_how_it_ended(
    store: Store, reason: EndReason, why: ErrorInfo | None, problem: str
) -> None:
    made = endings(store)
    made.cell(session(), "call-1", reason, why, 12.34, NOW)
    (thing,) = made.of("lab")
    assert (thing.id, thing.kind, thing.title, thing.session) == ("call-1", "cell", "/n.ipynb", "train")
    assert (thing.problem, thing.seconds, thing.ended_unix_seconds) == (problem, 12.3, NOW)
    assert endings(store).of("lab") == [thing], "another gateway on the same record knows it"


def test_only_a_long_build_is_told(store: Store) -> None:
    made = endings(store)
    failed = ImageBuilt(error=ErrorInfo(code=ErrorCode.IMAGE_BUILD, message="step 2 failed"))
    made.build(ANN, ImageRecipe(steps=[]), ImageBuilt(id="i"), LONG_BUILD_SECONDS - 0.1, NOW + 1)
    assert made.of("lab") == []
    made.build(ANN, ImageRecipe(steps=[]), ImageBuilt(id="i"), LONG_BUILD_SECONDS, NOW + 2)
    made.build(ANN, ImageRecipe(steps=[]), failed, 90.0, NOW + 3)
    assert [(one.kind, one.problem) for one in made.of("lab")] == [("build", ""), ("build", "step 2 failed")]
    assert len({one.id for one in made.of("lab")}) == 2


def test_the_last_ones_of_each_workspace(store: Store) -> None:
    made = endings(store)
    for number in range(KEPT + 5):
        cell(made, f"call-{number}", wall=NOW + number)
    cell(made, "theirs", FAR)
    cell(made, "theirs", FAR)  # found in the log once more
    for again in (made, endings(store)):
        assert [one.id for one in again.of("lab")] == [f"call-{number}" for number in range(5, KEPT + 5)]
        assert [one.id for one in again.of("far")] == ["theirs"]
        assert again.of("nobody") == []


def test_each_end_is_told_once_to_each_principal(store: Store) -> None:
    made = endings(store)
    cell(made, "b", wall=NOW - 1)
    cell(made, "a", wall=NOW - 2)
    cell(made, "far", FAR)
    assert take(made) == ["a", "b"], "the oldest first"
    assert take(made, "w", "a", "b") == [] == take(made, "w") == take(made, "other", monotonic=2 * CLAIM_SECONDS)
    assert take(made, owner=BOB) == ["a", "b"], "another principal of the workspace is told too"
    assert take(made, owner=FAR) == ["far"]
    cell(made, "b", wall=NOW)  # found in the log once more
    cell(made, "c", wall=NOW - 5)  # ended before those that were told, and was known after
    assert take(endings(store), "next page", wall=NOW + 1) == ["c"], "also when the gateway was started again"


def test_an_end_that_a_window_took_and_did_not_show_is_told_by_another(store: Store) -> None:
    made = endings(store)
    cell(made, "a")
    assert take(made, "one") == ["a"] == take(made, "one", monotonic=1.0)
    assert take(made, "two", monotonic=1.0) == [], "two windows do not tell the same"
    assert take(made, "two", monotonic=CLAIM_SECONDS) == ["a"], "the first was closed"
    assert take(made, "one", "a", monotonic=CLAIM_SECONDS) == [] == take(made, "two", monotonic=9 * CLAIM_SECONDS)


def test_more_than_fit_come_with_the_next_question(store: Store) -> None:
    made = endings(store)
    for number in range(MOST + 3):
        cell(made, f"{number:03}", wall=NOW + number / 1000)
    first = take(made, wall=NOW + 1)
    assert len(first) == MOST and first[0] == "000"
    # what another window has taken does not stand in the way of the rest
    assert take(made, "two", wall=NOW + 1) == [f"{number:03}" for number in range(MOST, MOST + 3)]
    assert take(made, "w", *first, wall=NOW + 1) == []


def test_what_is_old_is_not_told_and_not_kept(store: Store) -> None:
    made = endings(store)
    cell(made, "old", wall=NOW)
    assert take(made, wall=NOW + TOLD_SECONDS) == []
    assert take(made, "w", "old", wall=NOW) == []
    cell(made, "new", wall=NOW + TOLD_SECONDS + 1)
    assert [one.id for one in store.last_ends("lab", limit=9)] == ["new"]
    assert take(made, "w", "new", wall=NOW + TOLD_SECONDS + 2) == []
    take(made, "w", "more", wall=NOW + 4 * TOLD_SECONDS)
    assert store.untold_ends(ANN, after=NOW, limit=9) == [
        EndedThing(id="new", kind="cell", title="/n.ipynb", session="train", seconds=1.0, ended_unix_seconds=NOW + TOLD_SECONDS + 1)
    ], "who was told of what is forgotten with it"  # fmt: skip


def test_runs_that_ended_are_told_once_and_the_others_are_looked_at_once(store: Store) -> None:
    made = endings(store)
    store.put_schedule("s1", ANN, name="n", notebook="n", spec="{}", now=NOW, seen=100)
    planned = [(name, Planned(101 + at, RunState.QUEUED)) for at, name in enumerate(("r1", "x1", "r2", "on"))]
    store.note_instants("s1", seen_before=100, seen=200, planned=planned, now=NOW)
    for name, ended in (("r2", NOW + 1), ("x1", NOW + 2), ("r1", NOW + 3)):
        store.move_run(name, RunState.STARTING, now=NOW)
        store.end_run(name, RunReason.START_FAILED, now=ended)
    assert take(made, wall=NOW + 4) == ["r2", "r1"]
    assert [run.id for run in store.untold_runs(ANN, after=0.0, limit=9)] == ["r2", "r1"]
    assert take(made, "w", "r1", "r2", wall=NOW + 4) == [] == take(endings(store), "next", wall=NOW + 4)
    assert take(made, owner=BOB, wall=NOW + 4) == ["r2", "r1"]
    things, told = made.take(FAR, "w", [], wall=NOW, monotonic=0.0, wanted=lambda run: True)
    assert things == told == [], "another workspace's"


def test_a_run_that_is_not_decided_yet_is_neither_told_nor_forgotten(store: Store) -> None:
    made = endings(store)
    store.put_schedule("s1", ANN, name="n", notebook="n", spec="{}", now=NOW, seen=100)
    missed = Planned(101, RunState.MISSED, RunReason.GATEWAY_DOWN)
    store.note_instants("s1", seen_before=100, seen=200, planned=[("m1", missed)], now=NOW)
    asked: dict[str, Any] = {"wall": NOW, "monotonic": 0.0}
    assert made.take(ANN, "w", [], wanted=lambda run: False, waits={"m1"}, **asked) == ([], [])
    _, told = made.take(ANN, "w", [], wanted=lambda run: True, **asked)
    assert [run.id for run in told] == ["m1"]


# -- a gateway ---------------------------------------------------------------------------------------------------------

MakeHouse = Callable[..., Awaitable[House]]


async def asked(client: Scheduling, window: str = "w", *shown: str) -> Ends:
    answer = await client.ask(TakeEnds(window=window, shown=list(shown)))
    assert isinstance(answer, Ends)
    return answer


async def test_a_detached_cell_is_told_over_a_restart_of_the_gateway(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make_house()
    await first.worker()
    kernel = await first.kernel()
    await kernel.run("print x", call="c0")
    await kernel.ended("c0")
    await kernel.run("print x", call="c1", resources=Resources(gpus=(GpuChoice("A100"),)), detach=True)
    await kernel.ended("c1")
    first.gateway.hub.write_now()
    monkeypatch.setattr(Hub, "later", lambda self, write: None)  # the next end is in the log only
    await kernel.run("print x", call="c2", detach=True)
    await kernel.ended("c2")
    first.gateway.hub._later.clear()
    await first.close()
    monkeypatch.undo()
    second = await make_house()
    client = await Scheduling.of(second)
    ends = await asked(client)
    assert sorted(one.id for one in ends.things) == ["c1", "c2"] and ends.things[0].problem == ""
    assert (await asked(client, "w", "c1", "c2")).things == []
    (status,) = [await client.ask(GetStatus())]
    assert sorted(one.id for one in status.ended) == ["c1", "c2"]


async def test_runs_are_told_as_their_schedule_asks(house: House) -> None:
    await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook("print one"), name="told", notify=[Notify(channel="jupyter")])
    await client.put(notebook("print one"), name="failures", notify=[Notify(channel="jupyter", on_success=False)])
    told, quiet = (await client.run("told")).id, (await client.run("failures")).id
    for run in (told, quiet):
        assert (await client.until(run)).state is RunState.SUCCEEDED
    ends = await asked(client)
    assert [(one.id, one.name) for one in ends.runs] == [(told, "told")]
    assert (await asked(client, "w", told)).runs == []


async def test_a_missed_run_is_told_too(config: GatewayConfig) -> None:
    clock = SetClock()
    gateway = Gateway(config, clock)
    await gateway.start()
    house = House(gateway)
    try:
        client = await Scheduling.of(house)
        for name, notify in (("told", [Notify(channel="jupyter")]), ("quiet", [])):
            hourly = When(kind="every", every_seconds=3600)
            await client.put(notebook("print one"), hourly, name=name, missed="skip", notify=notify)
        clock.pass_time(3 * 3600 + 60)
        async with asyncio.timeout(30):
            while {row.name for row in await client.runs() if row.state is RunState.MISSED} != {"told", "quiet"}:
                await asyncio.sleep(0.02)
        ends = await asked(client)
        assert [(one.name, one.state) for one in ends.runs] == [("told", RunState.MISSED)], "three at once: one word"
        assert ends.runs[0].error is not None and ends.runs[0].error.message.startswith("3 times from ")
    finally:
        await house.close()


@pytest.mark.parametrize(
    "wrong", [TakeEnds(window=""), TakeEnds(window="w" * 300), TakeEnds(window="w", shown=["x"] * 600)]
)
async def test_a_window_without_a_name_or_with_too_much_to_say_is_refused(house: House, wrong: TakeEnds) -> None:
    client = await Scheduling.of(house)
    with pytest.raises(CellburstError) as caught:
        await client.ask(wrong)
    assert caught.value.code is ErrorCode.BAD_ARGUMENT and "200 characters" in caught.value.info.allowed
