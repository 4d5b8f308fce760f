"""Spending by hour: the sums are those of the leases, whatever hours they cross; the record's verb on both databases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellburst_gateway.containers import ContainerDetail
from cellburst_gateway.prices import PriceTable
from cellburst_gateway.spending import HOUR_SECONDS, by_hour, reserved
from cellburst_gateway.store import Store
from cellburst_gateway.store_rows import Owner
from cellburst_gateway.store_spending import SpentLease
from cellburst_protocol.messages import ContainerInfo, GpuShown
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import CallState, EndReason
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures

ANN, BOB = Owner("lab", "ann"), Owner("other", "bob")
RATE = Decimal("0.000583")


def detail(*types: str, simulated: bool = False) -> str:
    gpus = [GpuShown(index=i, uuid=f"u{i}", type=t, name=t, simulated=simulated) for i, t in enumerate(types)]
    info = ContainerInfo(id="c", gpus=gpus)
    return msgspec.json.encode(ContainerDetail(resources=Resources(), info=info)).decode()


def lease(opened: float, seconds: float, *types: str, notebook: str = "a.ipynb", rate: Decimal = RATE) -> SpentLease:
    return SpentLease("l", "s", notebook, detail(*types), rate, "", opened, None, seconds)


def test_a_lease_over_three_hours_is_three_rows() -> None:
    rows = by_hour([lease(3000, 5000, "A100-40GB")], 0)
    assert [(row.hour_unix_seconds, row.seconds) for row in rows] == [(0, 600.0), (3600, 3600.0), (7200, 800.0)]
    assert sum(Decimal(row.usd) for row in rows) == 5000 * RATE
    assert {row.gpu for row in rows} == {"A100-40GB"}


def test_rows_are_apart_by_notebook_hardware_and_what_is_simulated() -> None:
    simulated = SpentLease("l", "s", "a.ipynb", detail("T4", simulated=True), RATE, "", 0, 50, 10)
    rows = by_hour(
        [lease(0, 10, "T4"), simulated, lease(0, 10), lease(0, 10, "H100", "H100"), lease(0, 10, notebook="b")], 0
    )
    assert {(row.notebook, row.gpu, row.simulated) for row in rows} == {
        ("a.ipynb", "T4", False), ("a.ipynb", "T4", True), ("a.ipynb", "", False), ("a.ipynb", "H100:2", False), ("b", "", False),
    }  # fmt: skip


def test_what_was_before_the_question_is_left_out() -> None:
    assert [row.seconds for row in by_hour([lease(100, 50), lease(0, 200)], 120)] == [110.0]
    assert by_hour([lease(0, 100)], 100) == []


def test_a_record_that_cannot_be_read_is_no_gpu() -> None:
    broken = SpentLease("l", "s", "n", "{", RATE, "", 0, None, 10)
    assert [row.gpu for row in by_hour([broken], 0)] == [""]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 400_000)), max_size=8))
def test_no_second_and_no_cent_is_lost_or_counted_twice(parts: list[tuple[int, int]]) -> None:
    leases = [lease(start, milliseconds / 1000, "A100-40GB") for start, milliseconds in parts]
    rows = by_hour(leases, 0)
    billed = sum((Decimal(one.billed_seconds) for one in leases), Decimal(0))
    assert abs(sum((Decimal(row.usd) for row in rows), Decimal(0)) - billed * RATE) < Decimal("0.00001") * (
        1 + len(leases)
    )
    assert all(row.hour_unix_seconds % HOUR_SECONDS == 0 and row.seconds <= HOUR_SECONDS * len(leases) for row in rows)


@pytest.fixture
def store(record_url: str) -> Iterator[Store]:  # noqa: F811
    opened = Store.open(record_url, now=1.0)
    yield opened
    opened.close()


def test_leases_of_a_span_come_newest_first_and_only_the_workspaces_own(store: Store) -> None:
    for owner in (ANN, BOB):
        store.ensure_workspace(owner, now=1)
        store.create_session(f"s-{owner.principal}", owner, notebook="n.ipynb", name="default", kernel_id="k", now=1)
    for number, (owner, opened) in enumerate([(ANN, 10), (ANN, 20), (BOB, 30), (ANN, 40)]):
        store.place_container(
            f"c{number}", owner, session=f"s-{owner.principal}", worker="w", lease=f"l{number}", epoch=1, gpus=[], cpu=1,
            memory_mib=1, usd_per_second=RATE, now=opened, detail=detail("T4"),
        )  # fmt: skip
    store.end_container("c0", EndReason.STOPPED, now=15, seconds=5.0)
    store.end_container("c1", EndReason.STOPPED, now=25, seconds=4.0)
    assert [one.lease for one in store.leases_since("lab", 15, limit=10)] == ["l3", "l1"]
    assert [one.lease for one in store.leases_since("lab", 0, limit=2)] == ["l3", "l1"]
    ended = store.leases_since("lab", 0, limit=10)[1]
    assert (ended.billed_seconds, ended.closed, ended.notebook, ended.usd_per_second) == (4.0, 25, "n.ipynb", RATE)
    assert [one.lease for one in store.leases_since("other", 0, limit=10)] == ["l2"]
    # 3 s of the first lie after 12, 4 s of the second; the last is open, and its worker says 7 s
    assert store.spent_since("lab", 12, {"l3": 7.0, "l1": 99.0}) == 14 * RATE
    assert (store.spent_since("lab", 26, {}), store.spent_since("nobody", 0, {})) == (0, 0)


# -- idle ------------------------------------------------------------------------------------------------------------


def idle_of(lease: SpentLease, code: list[tuple[float, float]], **more: float) -> list[tuple[int, float]]:
    rows = by_hour([lease], 0, {"c": code}, **more)
    return [(row.hour_unix_seconds, row.idle_seconds) for row in rows]


def held(opened: float, ready: float, seconds: float) -> SpentLease:
    return SpentLease("l", "s", "a.ipynb", detail("T4"), RATE, "", opened, None, seconds, "c", ready)


def test_idle_is_what_neither_the_start_nor_code_took() -> None:
    lease = held(3000, 3100, 5000)
    assert idle_of(lease, []) == [(0, 500.0), (3600, 3600.0), (7200, 800.0)]
    code = [(3200.0, 3300.0), (3250.0, 3500.0), (7000.0, math.inf)]
    assert idle_of(lease, code) == [(0, 200.0), (3600, 3400.0), (7200, 0.0)]
    assert idle_of(lease, [(0.0, 10.0), (9000.0, 9999.0)]) == idle_of(lease, [])


def test_a_container_that_was_never_ready_is_not_idle_nor_is_what_nobody_knows() -> None:
    assert [row.idle_usd for row in by_hour([lease(0, 100, "T4")], 0, {})] == ["0"]
    assert idle_of(held(0, 10, 100), [], known_from=70) == [(0, 30.0)]


@given(
    st.integers(0, 10_000), st.integers(0, 500), st.integers(1, 20_000),
    st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 5_000)), max_size=6),
)  # fmt: skip
def test_idle_is_never_more_than_all_and_agrees_with_counting(
    opened: int, start: int, seconds: int, parts: list[tuple[int, int]]
) -> None:
    one = held(opened, opened + start, seconds)
    code = [(float(a), float(a + b)) for a, b in sorted(parts)]
    rows = by_hour([one], 0, {"c": code})
    counted = sum(1 for t in range(opened + start, opened + seconds) if not any(a <= t < b for a, b in code))
    assert sum(row.idle_seconds for row in rows) == pytest.approx(counted)
    assert sum(Decimal(row.idle_usd) for row in rows) == counted * RATE
    assert all(row.idle_seconds <= row.seconds for row in rows)


def test_code_of_a_span_is_the_workspaces_own_newest_first(store: Store) -> None:
    for owner in (ANN, BOB):
        store.ensure_workspace(owner, now=1)
        store.create_session(f"s-{owner.principal}", owner, notebook="n", name="default", kernel_id="k", now=1)
    for name, owner, started, ended in [("a", ANN, 10, 20), ("b", ANN, 30, 0), ("o", BOB, 31, 32), ("w", ANN, 0, 0)]:
        store.record_call(
            name, owner, session=f"s-{owner.principal}", now=5, state=CallState.SENT, container=f"c{name}"
        )
        if started:
            store.move_call(name, CallState.RUNNING, now=started)
        if ended:
            store.end_call(name, EndReason.DONE, now=ended)
    assert store.code_since("lab", 0, limit=9) == [("cb", 30, None), ("ca", 10, 20)]
    assert store.code_since("lab", 25, limit=9) == [("cb", 30, None)]
    assert store.code_since("lab", 0, limit=1) == [("cb", 30, None)]


# -- budget and kept machines ----------------------------------------------------------------------------------------


def test_a_budget_is_the_workspaces_own_and_goes_when_it_is_taken_away(store: Store) -> None:
    for owner in (ANN, BOB):
        store.ensure_workspace(owner, now=1)
    assert store.budget("lab") == ""
    store.set_budget(ANN, "50", now=2)
    store.set_budget(ANN, "75.5", now=3)
    assert (store.budget("lab"), store.budget("other")) == ("75.5", "")
    store.set_budget(ANN, "", now=4)
    assert store.budget("lab") == ""


def test_kept_machines_are_named_only_where_a_price_is_known() -> None:
    rows = by_hour([lease(0, 10, "H100", "H100"), lease(0, 10, "T4"), lease(0, 10)], 0)
    found = reserved(rows, PriceTable.load())
    assert [(one.gpu, one.usd_per_hour, one.as_of, one.source) for one in found] == [
        ("H100", "3.49", "2026-10-07", "runpod.io pods")
    ]
