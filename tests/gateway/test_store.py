"""The record's contract, on SQLite and on a real PostgreSQL: every verb, its repeats and its refusals.

Over 400 lines: one contract, run whole on each kind of database.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from cellburst_gateway.store import Owner, Role, Store, hash_token
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.states import (
    CALL_END_STATE,
    CALL_TRANSITIONS,
    CallState,
    ContainerState,
    EndReason,
    SessionState,
    TransitionError,
    WorkerState,
    is_terminal,
)
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures

ANN = Owner("lab", "ann")
BOB = Owner("lab", "bob")
RATE = Decimal("0.000583")


@pytest.fixture
def store(record_url: str) -> Iterator[Store]:  # noqa: F811
    opened = Store.open(record_url, now=1.0)
    yield opened
    opened.close()


def refused(code: ErrorCode, verb: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(CellburstError) as caught:
        verb(*args, **kwargs)  # type: ignore[operator]
    assert caught.value.code is code
    return caught.value.info.text()


def session(store: Store, id: str = "s1", **kwargs: object) -> object:
    given = {"notebook": "train.ipynb", "name": "default", "kernel_id": "k1", "now": 10.0} | kwargs
    return store.create_session(id, ANN, **given)  # type: ignore[arg-type]


def place(store: Store, n: int = 1, gpus: tuple[str, ...] = ("GPU-0",), **more: float | str) -> object:
    return store.place_container(
        f"c{n}", ANN, session="s1", worker="w1", lease=f"l{n}", epoch=3, gpus=gpus, cpu=1.5, memory_mib=2048, usd_per_second=RATE,
        price_note="reference prices", **{"now": 20.0, **more},  # type: ignore[arg-type]
    )  # fmt: skip


# -- tokens -------------------------------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_hash_with_role_and_owner(store: Store) -> None:
    added = store.add_token(hash_token("secret"), ANN, name="laptop", role=Role.USER, now=5.0)
    assert store.authenticate(hash_token("secret"), now=6.0) == added
    assert (added.role, added.owner, added.revoked) == (Role.USER, ANN, None)
    assert store.add_token(hash_token("secret"), ANN, name="laptop", role=Role.USER, now=7.0) == added
    assert [t.id for t in store.list_tokens("lab")] == [added.id]
    assert store.list_tokens("other") == []


def test_a_token_is_refused_when_unknown_expired_or_revoked_and_says_which(store: Store) -> None:
    assert "not known" in refused(ErrorCode.UNAUTHENTICATED, store.authenticate, hash_token("x"), now=1.0)
    store.add_token(hash_token("short"), ANN, name="ci", role=Role.USER, now=5.0, expires=10.0)
    assert store.authenticate(hash_token("short"), now=9.99).name == "ci"
    assert "expired 5 s ago" in refused(ErrorCode.UNAUTHENTICATED, store.authenticate, hash_token("short"), now=15.0)
    kept = store.add_token(hash_token("long"), ANN, name="laptop", role=Role.ADMIN, now=5.0)
    assert store.revoke_token(kept.id, now=8.0).revoked == 8.0
    assert store.revoke_token(kept.id, now=9.0).revoked == 8.0
    assert "revoked" in refused(ErrorCode.UNAUTHENTICATED, store.authenticate, hash_token("long"), now=9.0)
    refused(ErrorCode.NOT_FOUND, store.revoke_token, "nope", now=9.0)


def test_a_token_is_never_two_peoples(store: Store) -> None:
    store.add_token(hash_token("t"), ANN, name="a", role=Role.USER, now=5.0)
    refused(ErrorCode.CONFLICT, store.add_token, hash_token("t"), BOB, name="a", role=Role.USER, now=5.0)
    refused(ErrorCode.CONFLICT, store.add_token, hash_token("t"), ANN, name="a", role=Role.ADMIN, now=5.0)


# -- sessions -----------------------------------------------------------------------------------------------------------


def test_one_live_session_holds_a_name_and_a_newer_one_supersedes_it(store: Store) -> None:
    first, created, loser = session(store)  # type: ignore[misc]
    assert (created, loser, first.generation, first.live, first.state) == (True, None, 1, True, SessionState.STARTING)
    assert session(store) == (first, False, None)
    assert "s1" in refused(ErrorCode.CONFLICT, session, store, "s2")
    second, created, loser = session(store, "s2", supersede=True, kernel_id="k2", now=11.0)  # type: ignore[misc]
    assert (created, second.generation, second.live) == (True, 2, True)
    assert (loser.id, loser.state, loser.live) == ("s1", SessionState.SUPERSEDED, False)
    assert [s.id for s in store.find_live_sessions("lab", "train.ipynb", "default")] == ["s2", "s1"]
    assert store.find_live_sessions("lab", "train.ipynb", "other") == []
    assert store.find_live_sessions("elsewhere", "train.ipynb", "default") == []


def test_an_id_of_another_name_is_refused(store: Store) -> None:
    session(store)
    refused(ErrorCode.CONFLICT, session, store, "s1", name="other")
    refused(ErrorCode.NOT_FOUND, store.get_session, "nope")


def test_the_earlier_session_gets_its_name_back(store: Store) -> None:
    session(store)
    session(store, "s2", supersede=True)
    back, loser = store.take_name("s1", kernel_id="k9", now=30.0)
    assert (back.live, back.state, back.kernel_id) == (True, SessionState.IDLE, "k9")
    assert loser is not None and (loser.id, loser.live) == ("s2", False)
    assert store.take_name("s1", kernel_id="k9", now=31.0)[1] is None
    store.update_session("s1", now=32.0, state=SessionState.ENDED, reason=EndReason.STOPPED)
    refused(ErrorCode.CONFLICT, store.take_name, "s1", kernel_id="k9", now=33.0)


def test_an_ended_session_frees_its_name_and_stays_in_the_list_of_all(store: Store) -> None:
    session(store)
    ended = store.update_session("s1", now=40.0, state=SessionState.ENDED, reason=EndReason.STOPPED)
    assert (ended.ended, ended.reason, ended.live) == (40.0, EndReason.STOPPED, False)
    assert store.update_session("s1", now=41.0, state=SessionState.ENDED, reason=EndReason.IDLE) == ended
    with pytest.raises(TransitionError, match="s1 is ended and cannot become idle"):
        store.update_session("s1", now=42.0, state=SessionState.IDLE)
    assert session(store, "s2")[0].generation == 2  # type: ignore[index]
    assert [s.id for s in store.list_sessions("lab")] == ["s2"]
    assert [s.id for s in store.list_sessions(ended=True)] == ["s1", "s2"]


def test_a_refused_move_changes_nothing_else_in_the_same_verb(store: Store) -> None:
    session(store)
    store.update_session("s1", now=11.0, state=SessionState.BUSY, container="c1", detail="{}")
    with pytest.raises(TransitionError):
        store.update_session("s1", now=12.0, state=SessionState.STARTING, container="c2")
    found = store.get_session("s1")
    assert (found.container, found.detail, found.state, found.last_used) == ("c1", "{}", SessionState.BUSY, 11.0)


def test_what_is_kept_of_a_session_is_recorded_and_says_what_it_is_without_a_container(store: Store) -> None:
    session(store)
    place(store)
    store.update_session("s1", now=11.0, state=SessionState.IDLE)
    parking = store.update_session("s1", now=12.0, state=SessionState.PARKING, parking='{"id":"p-1"}')
    assert (parking.parking, parking.parked, parking.live) == ('{"id":"p-1"}', "", True)
    kept = store.update_session("s1", now=13.0, parked='{"size":1}')
    assert kept.state is SessionState.PARKING
    store.end_container("c1", EndReason.PARKED, now=14.0, seconds=3.0)
    found = store.get_session("s1")
    assert (found.state, found.container, found.parking, found.parked) == (SessionState.PARKED, "", "", '{"size":1}')
    assert store.update_session("s1", now=15.0, state=SessionState.STARTING).parked == '{"size":1}'
    assert store.update_session("s1", now=16.0, state=SessionState.BUSY, parked="").parked == ""


@pytest.mark.parametrize("waits", [SessionState.STARTING, SessionState.PARKING])
@pytest.mark.parametrize("kept", ["", "{}"])
def test_a_container_that_ends_leaves_its_session_parked_or_idle(store: Store, waits: SessionState, kept: str) -> None:
    session(store)
    place(store)
    if waits is SessionState.PARKING:
        store.update_session("s1", now=11.0, state=SessionState.IDLE)
        store.update_session("s1", now=12.0, state=SessionState.PARKING, parking="{}")
    store.update_session("s1", now=13.0, parked=kept)
    store.end_container("c1", EndReason.START_FAILED, now=14.0)
    found = store.get_session("s1")
    assert (found.state, found.parking) == (SessionState.PARKED if kept else SessionState.IDLE, "")


def test_a_parked_session_that_lost_its_name_gets_it_back_parked(store: Store) -> None:
    session(store)
    store.update_session("s1", now=11.0, state=SessionState.IDLE)
    store.update_session("s1", now=12.0, state=SessionState.PARKING)
    store.update_session("s1", now=13.0, state=SessionState.PARKED, parked="{}")
    _, _, loser = session(store, "s2", supersede=True, kernel_id="k2")  # type: ignore[misc]
    assert (loser.id, loser.state, loser.parked) == ("s1", SessionState.SUPERSEDED, "{}")
    back, _ = store.take_name("s1", kernel_id="k9", now=30.0)
    assert (back.state, back.live) == (SessionState.PARKED, True)


# -- calls --------------------------------------------------------------------------------------------------------------


def test_a_warm_cell_is_two_commits(store: Store) -> None:
    session(store)
    call, created = store.record_call(
        "a", ANN, session="s1", now=50.0, state=CallState.SENT, container="c1", session_state=SessionState.BUSY
    )
    assert created and (call.state, call.attempt, call.container) == (CallState.SENT, 1, "c1")
    assert store.get_call("a") == call
    assert store.get_session("s1").state is SessionState.BUSY
    ended = store.end_call(
        "a", EndReason.DONE, now=52.0, run_seconds=1.25, cost_usd=Decimal("0.00072875"), session_state=SessionState.IDLE
    )
    assert (ended.state, ended.reason, ended.ended, ended.started) == (CallState.SUCCEEDED, EndReason.DONE, 52.0, 50.75)
    assert (ended.run_seconds, ended.cost_usd) == (1.25, Decimal("0.00072875"))
    assert store.get_session("s1").state is SessionState.IDLE


def test_the_same_call_again_is_the_same_call(store: Store) -> None:
    session(store)
    first, _ = store.record_call("a", ANN, session="s1", now=50.0)
    assert store.record_call("a", ANN, session="s1", now=60.0, state=CallState.SENT) == (first, False)
    refused(ErrorCode.CONFLICT, store.record_call, "a", BOB, session="s1", now=60.0)
    refused(ErrorCode.NOT_FOUND, store.record_call, "b", ANN, session="nope", now=60.0)
    assert store.get_call("b") is None
    with pytest.raises(TransitionError):
        store.record_call("c", ANN, session="s1", now=60.0, state=CallState.RUNNING)
    assert store.get_call("c") is None


@pytest.mark.parametrize("reason", list(EndReason))
def test_an_end_is_final_whatever_the_reason(store: Store, reason: EndReason) -> None:
    session(store)
    store.record_call("a", ANN, session="s1", now=50.0, state=CallState.SENT)
    why = ErrorInfo(code=ErrorCode.WORKER_LOST, message="gone", detail={"worker": "w1"})
    ended = store.end_call("a", reason, now=51.0, error=why)
    assert (ended.state, ended.error) == (CALL_END_STATE[reason], why)
    assert store.end_call("a", reason, now=99.0) == ended
    other = EndReason.SHUTDOWN if reason is not EndReason.SHUTDOWN else EndReason.DONE
    with pytest.raises(TransitionError, match="has ended as"):
        store.end_call("a", other, now=99.0)
    with pytest.raises(TransitionError):
        store.move_call("a", CallState.RUNNING, now=99.0)
    assert store.get_call("a") == ended


def test_every_move_of_the_table_is_taken_and_every_other_refused(store: Store) -> None:
    session(store)
    paths = {CallState.CREATED: [], CallState.QUEUED: [CallState.QUEUED], CallState.STARTING: [CallState.STARTING]}
    sent = [CallState.SENT]
    paths |= {CallState.SENT: sent, CallState.RUNNING: [*sent, CallState.RUNNING]}
    paths[CallState.UNREACHABLE] = [*sent, CallState.UNREACHABLE]
    for state, path in paths.items():
        for to in CallState:
            if is_terminal(CALL_TRANSITIONS, to) or to is state:
                continue
            call = f"{state}-{to}"
            store.record_call(call, ANN, session="s1", now=1.0)
            for step in path:
                store.move_call(call, step, now=2.0)
            if to in CALL_TRANSITIONS[state]:
                assert store.move_call(call, to, now=3.0).state is to
            else:
                with pytest.raises(TransitionError):
                    store.move_call(call, to, now=3.0)
                found = store.get_call(call)
                assert found is not None and found.state is state


def test_a_call_sent_again_counts_a_new_attempt_and_starts_once(store: Store) -> None:
    session(store)
    store.record_call("a", ANN, session="s1", now=1.0, state=CallState.SENT)
    assert store.move_call("a", CallState.QUEUED, now=2.0).attempt == 2
    store.move_call("a", CallState.SENT, now=3.0, container="c2")
    assert store.move_call("a", CallState.RUNNING, now=4.0).started == 4.0
    store.move_call("a", CallState.UNREACHABLE, now=5.0)
    back = store.move_call("a", CallState.RUNNING, now=6.0)
    assert (back.started, back.attempt, back.container) == (4.0, 2, "c2")
    with pytest.raises(TransitionError, match="end_call"):
        store.move_call("a", CallState.SUCCEEDED, now=7.0)
    refused(ErrorCode.NOT_FOUND, store.move_call, "nope", CallState.SENT, now=1.0)


def test_running_calls_are_those_without_an_end(store: Store) -> None:
    session(store)
    session(store, "s2", name="other")
    for n, owner_session in enumerate(["s1", "s1", "s2"]):
        store.record_call(f"a{n}", ANN, session=owner_session, now=float(n), state=CallState.SENT)
    store.end_call("a0", EndReason.DONE, now=9.0)
    assert [c.id for c in store.running_calls()] == ["a1", "a2"]
    assert [c.id for c in store.running_calls("s2")] == ["a2"]
    assert [c.id for c in store.calls_of_session("s1")] == ["a1", "a0"]
    assert [c.id for c in store.calls_of_session("s1", limit=1)] == ["a1"]


def test_a_superseded_session_is_not_made_idle_by_its_last_call(store: Store) -> None:
    session(store)
    store.record_call("a", ANN, session="s1", now=1.0, state=CallState.SENT, session_state=SessionState.BUSY)
    session(store, "s2", supersede=True)
    store.end_call("a", EndReason.DONE, now=2.0, session_state=SessionState.IDLE)
    assert store.get_session("s1").state is SessionState.SUPERSEDED


# -- containers, leases, workers ----------------------------------------------------------------------------------------


def test_a_container_is_placed_and_ended_with_its_lease_and_session(store: Store) -> None:
    session(store)
    placed, lease, created = place(store)  # type: ignore[misc]
    assert created and (placed.state, placed.lease, placed.epoch) == (ContainerState.PLACED, "l1", 3)
    assert (lease.gpus, lease.cpu, lease.memory_mib, lease.usd_per_second) == (("GPU-0",), 1.5, 2048, RATE)
    assert lease.open and store.get_session("s1").container == "c1"
    assert place(store) == (placed, lease, False)
    store.move_container("c1", ContainerState.STARTING, now=21.0)
    assert store.move_container("c1", ContainerState.READY, now=22.0, detail="{}").ready == 22.0
    assert [c.id for c in store.live_containers("w1")] == ["c1"]
    ended, closed = store.end_container("c1", EndReason.EXITED, now=30.0, seconds=9.5)
    assert (ended.state, ended.reason, ended.ended) == (ContainerState.ENDED, EndReason.EXITED, 30.0)
    assert (closed.closed, closed.billed_seconds, closed.reason) == (30.0, 9.5, EndReason.EXITED)
    assert (store.get_session("s1").container, store.get_session("s1").state) == ("", SessionState.IDLE)
    assert store.end_container("c1", EndReason.WORKER_LOST, now=31.0, seconds=99.0) == (ended, closed)
    assert (store.live_containers(), store.leases_open()) == ([], [])
    with pytest.raises(TransitionError):
        store.move_container("c1", ContainerState.READY, now=40.0)
    refused(ErrorCode.NOT_FOUND, store.end_container, "nope", EndReason.DONE, now=1.0)


def test_a_container_that_ends_late_does_not_take_its_successor_from_the_session(store: Store) -> None:
    session(store)
    place(store)
    place(store, 2, ("GPU-1",))
    store.end_container("c1", EndReason.EXITED, now=30.0)
    assert store.get_session("s1").container == "c2"


def test_a_gpu_is_leased_once_and_nothing_is_left_of_a_refused_placement(store: Store) -> None:
    session(store)
    place(store)
    assert "GPU-0" in refused(ErrorCode.CONFLICT, place, store, 2, ("GPU-1", "GPU-0"))
    assert (store.get_container("c2"), store.get_lease("l2")) == (None, None)
    store.end_container("c1", EndReason.IDLE, now=30.0)
    assert place(store, 2)[2]  # type: ignore[index]


def test_a_lease_counts_up_only_and_its_first_close_is_final(store: Store) -> None:
    session(store)
    place(store)
    assert store.touch_lease("l1", seconds=4.0004).billed_seconds == 4.0
    assert store.touch_lease("l1", seconds=3.0).billed_seconds == 4.0
    assert store.touch_leases({"l1": 5.5})[0].billed_seconds == 5.5
    closed = store.close_lease("l1", seconds=None, reason=EndReason.WORKER_LOST, now=30.0)
    assert (closed.billed_seconds, closed.closed) == (5.5, 30.0)
    assert store.close_lease("l1", seconds=80.0, reason=EndReason.IDLE, now=40.0) == closed
    assert store.touch_lease("l1", seconds=90.0) == closed
    refused(ErrorCode.NOT_FOUND, store.touch_lease, "nope", seconds=1.0)


def test_containers_and_leases_have_their_own_verbs(store: Store) -> None:
    session(store)
    given = {"session": "s1", "worker": "w1", "lease": "l1", "epoch": 1, "now": 5.0}
    made = store.create_container("c1", ANN, **given)  # type: ignore[arg-type]
    assert made[1] and store.create_container("c1", ANN, **given) == (made[0], False)  # type: ignore[arg-type]
    refused(ErrorCode.CONFLICT, store.create_container, "c1", BOB, **given)
    opened = store.open_lease(
        "l1",
        ANN,
        session="s1",
        container="c1",
        worker="w1",
        epoch=1,
        gpus=[],
        cpu=1,
        memory_mib=64,
        usd_per_second=RATE,
        now=5.0,
    )
    assert opened[1] and [lease.id for lease in store.leases_open("w1")] == ["l1"]
    assert store.leases_open("w2") == []


def test_cost_is_the_sum_of_leases_to_the_last_digit(store: Store) -> None:
    session(store)
    session(store, "s2", notebook="other.ipynb")
    place(store)
    store.end_container("c1", EndReason.IDLE, now=30.0, seconds=10.0)
    place(store, 2)
    store.touch_lease("l2", seconds=0.001)
    [cost] = store.cost_by_session("lab")
    assert cost.usd == Decimal("0.005830583") == store.cost_total("lab")
    assert (cost.running, cost.usd_per_second, cost.price_note, cost.owner) == (True, RATE, "reference prices", ANN)
    assert cost.seconds == pytest.approx(10.001)
    assert store.cost_by_session("lab", "other.ipynb") == []
    assert store.cost_by_session("lab", session="s1") == [cost]
    assert store.cost_total("elsewhere") == 0


def test_cost_has_the_newest_container_of_each_session_as_it_was(store: Store) -> None:
    session(store)
    place(store, detail="the first", now=20.0)
    store.end_container("c1", EndReason.IDLE, now=30.0, seconds=10.0)
    assert [cost.detail for cost in store.cost_by_session("lab")] == ["the first"]
    place(store, 2, detail="the second", now=40.0)
    assert [cost.detail for cost in store.cost_by_session("lab")] == ["the second"]
    store.end_container("c2", EndReason.IDLE, now=50.0, seconds=10.0)
    [cost] = store.cost_by_session("lab", session="s1")
    assert (cost.detail, cost.seconds, cost.running) == ("the second", pytest.approx(20.0), False)


def test_a_worker_joins_is_lost_and_joins_again(store: Store) -> None:
    given = {"instance": "i1", "hostname": "box", "pid": 7, "inventory": "{}", "now": 5.0}
    joined = store.upsert_worker("w1", ANN, **given)  # type: ignore[arg-type]
    assert (joined.state, joined.pid, joined.last_seen) == (WorkerState.JOINED, 7, 5.0)
    assert store.mark_worker("w1", WorkerState.JOINED, now=6.0).last_seen == 6.0
    store.mark_worker("w1", WorkerState.UNREACHABLE, now=7.0)
    lost = store.mark_worker("w1", WorkerState.LOST, now=8.0)
    assert (lost.state, lost.last_seen) == (WorkerState.LOST, 6.0)
    with pytest.raises(TransitionError):
        store.mark_worker("w1", WorkerState.JOINED, now=9.0)
    assert store.list_workers() == []
    assert [w.id for w in store.list_workers(lost=True)] == ["w1"]
    again = store.upsert_worker("w1", ANN, **(given | {"instance": "i2", "now": 10.0}))  # type: ignore[arg-type]
    assert (again.state, again.instance) == (WorkerState.JOINED, "i2")
    refused(ErrorCode.CONFLICT, store.upsert_worker, "w1", Owner("elsewhere", "eve"), **given)
    refused(ErrorCode.NOT_FOUND, store.mark_worker, "nope", WorkerState.LOST, now=1.0)


# -- several verbs in one commit ----------------------------------------------------------------------------------------


def test_verbs_together_are_all_done_or_none(store: Store) -> None:
    session(store)
    with pytest.raises(CellburstError), store.together():
        place(store)
        store.record_call("k1", ANN, session="s1", now=21.0)
        store.move_container("nothing", ContainerState.READY, now=22.0)
    assert store.get_container("c1") is None and store.get_call("k1") is None and store.leases_open() == []
    assert store.get_session("s1").container == ""
    with store.together():
        place(store)
        assert store.get_session("s1").container == "c1"
        store.move_container("c1", ContainerState.STARTING, now=22.0)
    found = store.get_container("c1")
    assert found is not None and found.state is ContainerState.STARTING
    store.update_session("s1", now=23.0, state=SessionState.IDLE)
    assert store.get_session("s1").state is SessionState.IDLE


def test_leases_touched_together_name_the_one_that_is_not_there(store: Store) -> None:
    session(store)
    place(store, 1, ("GPU-0",))
    place(store, 2, ("GPU-1",))
    touched = store.touch_leases({"l2": 4.0, "l1": 3.0})
    assert [(lease.id, lease.billed_seconds) for lease in touched] == [("l1", 3.0), ("l2", 4.0)]
    assert "l9" in refused(ErrorCode.NOT_FOUND, store.touch_leases, {"l1": 9.0, "l9": 1.0})
    assert [lease.billed_seconds for lease in store.leases_open()] == [3.0, 4.0]
