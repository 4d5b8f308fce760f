"""What ended and is told with the status: detached cells, long builds, the last ones of each workspace; and that each end is told
once to each principal, whatever windows and gateways come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from sqlalchemy import text

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.endings import CLAIM_SECONDS, KEPT, LONG_BUILD_SECONDS, MOST, TOLD_SECONDS, Endings
from cellburst_gateway.hub import Hub
from cellburst_gateway.run_rules import TELLS_JUPYTER, RunDetail
from cellburst_gateway.scheduler import Planned
from cellburst_gateway.store import Owner, Store
from cellburst_gateway.store_rows import Role, SessionRecord
from cellburst_gateway.store_schedules import Telling
from cellburst_gateway.store_tokens import hash_token
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EndedThing, Ends, GetStatus, ImageBuilt, TakeEnds
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.schedules import Notify, RunReason, RunState, When
from cellburst_protocol.states import EndReason, SessionState
from tests.fakes.fake_kernel import FakeKernel
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
    things, runs = made.take(owner, window, shown, wall=wall, monotonic=monotonic)
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


def run_ends(store: Store, *names: str) -> None:
    """Runs end one after another; of those whose name begins with r JupyterLab is to tell."""
    for at, name in enumerate(names):
        # what else stands in a detail must not look as if it said so
        notes = ['a line with "tell_jupyter":true', TELLS_JUPYTER]
        detail = RunDetail(tell_jupyter=name[0] == "r", notes=notes, spent_usd="1")
        store.move_run(name, RunState.STARTING, now=NOW)
        store.end_run(name, RunReason.START_FAILED, now=NOW + at / 1000, detail=detail.text())


def queue(store: Store, *names: str) -> None:
    store.put_schedule("s1", ANN, name="n", notebook="n", spec="{}", now=NOW, seen=100)
    planned = [(name, Planned(101 + at, RunState.QUEUED)) for at, name in enumerate(names)]
    store.note_instants("s1", seen_before=100, seen=100_000, planned=planned, now=NOW)


def told_rows(store: Store) -> int:
    with store._transaction() as c:
        return c.execute(text("SELECT count(*) FROM told")).scalar_one()  # type: ignore[no-any-return]


def test_runs_that_ended_are_told_once_where_that_is_wanted(store: Store) -> None:
    made = endings(store)
    queue(store, "r1", "x1", "r2", "on")
    run_ends(store, "r2", "x1", "r1")
    assert take(made, wall=NOW + 4) == ["r2", "r1"]
    assert take(made, "w", "on", wall=NOW + 4) == ["r2", "r1"] and told_rows(store) == 0, (
        "a run that goes on has no end"
    )
    assert take(made, "w", "r1", "r2", wall=NOW + 4) == [] == take(endings(store), "next", wall=NOW + 4)
    assert take(made, owner=BOB, wall=NOW + 4) == ["r2", "r1"]
    assert take(made, owner=FAR) == [], "another workspace's"
    assert take(made, "w", "r1", owner=FAR) == [] and told_rows(store) == 2


def test_runs_that_nobody_wants_to_hear_of_cost_a_look_nothing(store: Store) -> None:
    made = endings(store)
    silent = [f"x{number:03}" for number in range(3 * MOST)]
    queue(store, *silent, "r1")
    run_ends(store, *silent, "r1")
    assert take(made, wall=NOW + 4) == ["r1"] and told_rows(store) == 0


def test_names_with_slashes_are_told_apart(store: Store) -> None:
    made, slashed = endings(store), Owner("lab", "ann/x")
    cell(made, "a")
    cell(made, "x/a")
    assert take(made, "w", "a", owner=slashed) == ["x/a"] and take(made) == ["a", "x/a"]
    assert take(made, "w", "x/a") == ["a"] and take(endings(store), "next") == ["a"]
    assert take(endings(store), "next", owner=slashed) == ["x/a"]


def test_what_is_no_end_is_not_noted(store: Store) -> None:
    made = endings(store)
    cell(made, "a")
    cell(made, "theirs", FAR)
    assert take(made, "w", *(f"invented-{number}" for number in range(400)), "theirs", "a", "a") == []
    assert told_rows(store) == 1 and take(made, owner=FAR) == ["theirs"]
    cell(made, "invented-7", wall=NOW + 1)
    assert take(made, wall=NOW + 1) == ["invented-7"], "an end cannot be silenced before it is there"


def test_a_run_that_is_not_decided_yet_is_neither_told_nor_forgotten(store: Store) -> None:
    made = endings(store)
    store.put_schedule("s1", ANN, name="n", notebook="n", spec="{}", now=NOW, seen=100)
    missed = Planned(101, RunState.MISSED, RunReason.GATEWAY_DOWN)
    store.note_instants("s1", seen_before=100, seen=200, planned=[("m1", missed)], now=NOW)
    assert take(made) == [] and told_rows(store) == 0
    why = ErrorInfo(code=ErrorCode.UNAVAILABLE, message="its time has passed")
    telling = Telling("m1", why, RunDetail(tell_jupyter=True).text(), ())
    store.note_instants("s1", seen_before=200, seen=201, planned=[], now=NOW, telling=telling)
    assert take(made) == ["m1"]


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


async def test_a_token_that_may_only_look_silences_nothing(house: House) -> None:
    hub, client = house.gateway.hub, await Scheduling.of(house)
    owner = Owner("home", "user")
    hub.endings.cell(session(owner), "c1", EndReason.DONE, None, 1.0, hub.clock.wall())
    hub.store.add_token(hash_token("t-eye"), owner, name="v", role=Role.VIEWER, now=hub.clock.wall())
    eye = await FakeKernel(house.url, "t-eye", role="cli").dial()
    house._closing.append(eye.close)
    with pytest.raises(CellburstError) as caught:
        await eye.peer.request(TakeEnds(window="eye", shown=["c1"]), timeout_seconds=20)
    assert caught.value.code is ErrorCode.FORBIDDEN
    assert await eye.peer.request(TakeEnds(window="eye"), timeout_seconds=20) == Ends()
    assert [one.id for one in (await asked(client)).things] == ["c1"], "neither noted nor taken"


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
