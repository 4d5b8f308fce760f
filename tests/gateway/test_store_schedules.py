"""The record's contract for schedules, runs and deliveries, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from cellburst_gateway.scheduler import Planned
from cellburst_gateway.store import Owner, Store
from cellburst_gateway.store_schedules import ScheduleRecord, Telling
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.schedules import RUN_END_STATE, RUN_TRANSITIONS, RunReason, RunState
from cellburst_protocol.states import TransitionError, is_terminal
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures

ANN, BOB = Owner("lab", "ann"), Owner("other", "bob")


@pytest.fixture
def store(record_url: str) -> Iterator[Store]:  # noqa: F811
    opened = Store.open(record_url, now=1.0)
    yield opened
    opened.close()


def put(store: Store, id: str = "s1", owner: Owner = ANN, **changes: object) -> ScheduleRecord:
    given: dict[str, object] = {"name": "nightly", "notebook": "n.ipynb", "spec": "{}", "now": 10.0, "seen": 100}
    return store.put_schedule(id, owner, **(given | changes))  # type: ignore[arg-type]


def refused(code: ErrorCode, verb: object, *args: object, **kwargs: object) -> None:
    with pytest.raises(CellburstError) as caught:
        verb(*args, **kwargs)  # type: ignore[operator]
    assert caught.value.code is code


def queued(instant: int) -> Planned:
    return Planned(instant, RunState.QUEUED)


def note(store: Store, *planned: tuple[str, Planned], before: int = 100, seen: int = 200) -> list[str] | None:
    made = store.note_instants("s1", seen_before=before, seen=seen, planned=planned, now=20.0)
    return None if made is None else [run.id for run in made]


def test_a_schedule_is_made_once_and_edited_by_revision(store: Store) -> None:
    made = put(store)
    assert (made.revision, made.seen, made.state) == (1, 100, "active")
    edited = put(store, revision=1, name="daily", seen=None, spec="{2}")
    assert (edited.revision, edited.name, edited.seen, edited.spec) == (2, "daily", 100, "{2}")
    refused(ErrorCode.CONFLICT, put, store, revision=1, name="late")
    refused(ErrorCode.CONFLICT, put, store, "s2", name="daily")
    refused(ErrorCode.NOT_FOUND, put, store, "s9", revision=4, name="x")
    refused(ErrorCode.NOT_FOUND, put, store, owner=BOB, revision=2)
    assert put(store, "s3", BOB, name="daily").revision == 1, "names are a workspace's own"
    assert [one.id for one in store.list_schedules("lab")] == ["s1"] and len(store.list_schedules()) == 2
    assert store.set_schedule_state("s1", "paused", now=11.0).state == "paused"
    assert store.get_schedule("s1").revision == 3 and store.get_schedule("nope") is None  # type: ignore[union-attr]


def test_an_instant_has_one_record_whoever_comes_second(store: Store) -> None:
    put(store)
    assert note(store, ("r1", queued(150)), ("r2", Planned(200, RunState.SKIPPED, RunReason.OVERLAP))) == ["r1", "r2"]
    assert note(store, ("r3", queued(150))) is None, "it was read before the other's commit"
    assert note(store, ("r3", queued(150)), ("r4", queued(250)), before=200, seen=250) == ["r4"]
    store.set_schedule_state("s1", "paused", now=11.0)
    assert note(store, ("r5", queued(300)), before=250, seen=300) is None
    found = {run.id: run for run in store.list_runs("lab")}
    assert set(found) == {"r1", "r2", "r4"}
    assert found["r2"].ended == 20.0 and found["r2"].reason is RunReason.OVERLAP and found["r1"].ended is None
    missed = Planned(300, RunState.MISSED, RunReason.GATEWAY_DOWN, until=900, count=7)
    store.set_schedule_state("s1", "active", now=12.0)
    assert note(store, ("r6", missed), before=250, seen=900) == ["r6"]
    row = store.get_run("r6")
    assert row is not None and (row.until, row.instants) == (900, 7)


def test_many_schedules_are_one_commit_or_none(store: Store) -> None:
    put(store)
    with pytest.raises(ZeroDivisionError), store.together():
        assert note(store, ("r1", queued(150))) == ["r1"]
        _ = 1 / 0
    assert store.list_runs("lab") == [] and store.get_schedule("s1").seen == 100  # type: ignore[union-attr]


def test_a_run_moves_by_its_table_and_ends_once(store: Store) -> None:
    put(store)
    run = store.add_run("r1", "s1", now=30.5)
    assert run.by_hand and run.instant == 30 and store.add_run("r1", "s1", now=31.0) == run
    with pytest.raises(TransitionError):
        store.move_run("r1", RunState.RUNNING, now=31.0)
    store.move_run("r1", RunState.STARTING, now=31.0, spec="{}", session="s-1")
    started = store.move_run("r1", RunState.RUNNING, now=32.0, detail="{}")
    assert (started.started, started.session) == (32.0, "s-1")
    again = store.move_run("r1", RunState.QUEUED, now=33.0, attempt=2, session="")
    assert (again.attempt, again.session, again.started) == (2, "", 32.0)
    with pytest.raises(TransitionError):
        store.move_run("r1", RunState.FAILED, now=33.0)
    store.move_run("r1", RunState.STARTING, now=34.0)
    why = ErrorInfo(code=ErrorCode.RAISED, message="it raised")
    ended, first = store.end_run("r1", RunReason.RAISED, now=35.0, error=why, cost_usd=Decimal("0.25"), detail="{3}")
    assert first and (ended.state, ended.error, ended.cost_usd, ended.ended, ended.spec) == (
        RunState.FAILED,
        why,
        Decimal("0.25"),
        35.0,
        "",
    )
    assert store.end_run("r1", RunReason.DONE, now=36.0) == (ended, False)
    assert store.active_runs() == []
    refused(ErrorCode.NOT_FOUND, store.move_run, "r9", RunState.STARTING, now=1.0)


def test_lists_find_runs_by_schedule_time_and_the_start_of_an_id(store: Store) -> None:
    put(store)
    note(store, ("r-aa1", queued(150)), ("r-ab2", queued(160)))
    store.end_run("r-aa1", RunReason.CANCELLED, now=50.0)
    assert [run.id for run in store.list_runs("lab", ended_after=49.0)] == ["r-ab2", "r-aa1"]
    assert [run.id for run in store.list_runs("lab", ended_after=51.0, schedule="s1")] == ["r-ab2"]
    assert [run.id for run in store.find_runs("lab", "r-ab")] == ["r-ab2"] and len(store.find_runs("lab", "r-a")) == 2
    assert store.find_runs("lab", "%") == [] and store.find_runs("other", "r-ab") == []
    assert [run.id for run in store.active_runs()] == ["r-ab2"] and store.list_runs("lab", limit=1)[0].id == "r-ab2"


def test_old_runs_are_forgotten_by_number_and_age(store: Store) -> None:
    put(store)
    for number in range(6):
        store.add_run(f"r{number}", "s1", now=100.0 + number)
        if number < 5:
            store.end_run(f"r{number}", RunReason.CANCELLED, now=200.0 + number)
    assert store.runs_to_forget("s1", keep=2, ended_before=None) == ["r2", "r1", "r0"]
    assert store.runs_to_forget("s1", keep=0, ended_before=202.0) == ["r1", "r0"]
    assert store.runs_to_forget("s1", keep=0, ended_before=None) == []
    store.delete_runs(["r0", "r1"])
    assert len(store.list_runs("lab")) == 4


def test_missed_and_skipped_instants_do_not_push_real_runs_out(store: Store) -> None:
    """A laptop that is mostly off: its few runs stay, however many instants nothing ran at; of these as many again are kept."""
    put(store)
    seen = 100
    for day in range(4):
        base = 1000 * (day + 1)
        missed = [(f"m{day}-{n}", Planned(base + n, RunState.MISSED, RunReason.CLOCK)) for n in range(10)]
        skipped = (f"s{day}", Planned(base + 50, RunState.SKIPPED, RunReason.OVERLAP))
        ran = (f"r{day}", queued(base + 60))
        made = store.note_instants(
            "s1", seen_before=seen, seen=base + 60, planned=[*missed, skipped, ran], now=base + 60.0
        )
        assert made is not None and len(made) == 12
        seen = base + 60
        store.move_run(f"r{day}", RunState.STARTING, now=base + 61.0)
        store.end_run(f"r{day}", RunReason.DONE, now=base + 62.0, cost_usd=Decimal("0.25"))
    gone = store.runs_to_forget("s1", keep=3, ended_before=None)
    kept = {run.id for run in store.list_runs("lab", limit=100)} - set(gone)
    assert kept == {"r1", "r2", "r3", "s3", "m3-9", "m3-8"}
    assert set(store.runs_to_forget("s1", keep=0, ended_before=2000.0)) == {"r0", "s0", *(f"m0-{n}" for n in range(10))}


def test_the_cost_of_a_schedule_is_of_all_its_runs_that_are_kept(store: Store) -> None:
    put(store)
    assert store.run_costs("s1", succeeded=5) == (Decimal(0), [])
    for number, reason in enumerate([RunReason.DONE, RunReason.RAISED, RunReason.DONE, RunReason.DONE]):
        store.add_run(f"r{number}", "s1", now=100.0 + number)
        store.move_run(f"r{number}", RunState.STARTING, now=100.0 + number)
        store.end_run(f"r{number}", reason, now=200.0 + number, cost_usd=Decimal(number + 1))
    missed = [(f"m{n}", Planned(1000 + n, RunState.MISSED, RunReason.CLOCK)) for n in range(250)]
    assert store.note_instants("s1", seen_before=100, seen=2000, planned=missed, now=2000.0) is not None
    assert store.run_costs("s1", succeeded=2) == (Decimal(10), [Decimal(4), Decimal(3)])
    store.delete_runs(["r1"])
    assert store.run_costs("s1", succeeded=9) == (Decimal(8), [Decimal(4), Decimal(3), Decimal(1)])


def test_deliveries_are_recorded_with_the_end_and_tried_until_they_are_over(store: Store) -> None:
    put(store)
    store.add_run("r1", "s1", now=10.0)
    tell = [("d1", "webhook", "https://x", "{}"), ("d2", "email", "a@b", "{}")]
    store.end_run("r1", RunReason.CANCELLED, now=20.0, tell=tell)
    store.end_run("r1", RunReason.CANCELLED, now=21.0, tell=[("d3", "email", "c@d", "{}")])
    assert [one.id for one in store.due_deliveries(20.0)] == ["d1", "d2"] and store.due_deliveries(19.0) == []
    store.note_delivery("d1", now=21.0, sent=True)
    store.note_delivery("d2", now=21.0, sent=False, error="no route", again_at=30.0)
    assert store.due_deliveries(25.0) == [] and [one.attempts for one in store.due_deliveries(30.0)] == [1]
    store.note_delivery("d2", now=31.0, sent=False, error="no route")
    store.note_delivery("d1", now=32.0, sent=False, error="late")
    assert [(one.id, one.state) for one in store.deliveries_of("r1")] == [("d1", "sent"), ("d2", "failed")]


def test_a_deleted_schedule_takes_its_runs_and_deliveries_along(store: Store) -> None:
    put(store)
    store.add_run("r1", "s1", now=10.0)
    store.end_run("r1", RunReason.CANCELLED, now=20.0, tell=[("d1", "email", "a@b", "{}")])
    assert store.delete_schedule("s1") == ["r1"] and store.delete_schedule("s1") == []
    assert store.list_runs("lab") == [] and store.due_deliveries(99.0) == [] and store.get_schedule("s1") is None


def test_every_end_is_a_final_state() -> None:
    assert set(RUN_END_STATE) == set(RunReason) and set(RUN_TRANSITIONS) == set(RunState)
    assert all(is_terminal(RUN_TRANSITIONS, state) for state in RUN_END_STATE.values())


def test_missed_instants_without_a_notice_are_those_since_the_last_one(store: Store) -> None:
    put(store)
    put(store, "s2", name="other")
    missed = [(f"m{at}", Planned(at, RunState.MISSED, RunReason.GATEWAY_DOWN)) for at in (101, 102, 103)]
    note(store, *missed[:2], ("q1", queued(150)), before=100, seen=150)
    assert [run.id for run in store.missed_untold("s1")] == ["m101", "m102"] and store.missed_untold("s2") == []
    why = ErrorInfo(code=ErrorCode.UNAVAILABLE, message="missed")
    store.note_instants(
        "s1", seen_before=150, seen=160, planned=missed[2:], now=20.0, telling=Telling("m103", why, "{}", ())
    )
    assert store.missed_untold("s1") == [], "one notice says it for all before it"
    later = ("m170", Planned(170, RunState.MISSED, RunReason.CLOCK))
    note(store, later, before=160, seen=170)
    assert [run.id for run in store.missed_untold("s1")] == ["m170"]
