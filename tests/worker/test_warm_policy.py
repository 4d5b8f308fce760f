"""How many warm containers there are, of which keys, and when there are none."""

from __future__ import annotations

import dataclasses

import pytest

from cellburst_worker.warm_policy import (
    AGAIN_SECONDS,
    BUDGET_SHARE,
    KEEP_SECONDS,
    LEAST_BYTES,
    OFTEN_SECONDS,
    OFTEN_STARTS,
    PATIENCE_SECONDS,
    SETTLE_SECONDS,
    SHORT_BYTES,
    SPARE_FACTOR,
    Held,
    Machine,
    Plan,
    WarmPolicy,
)

GIB = 1 << 30
ROOMY = Machine(memory_bytes=64 * GIB, leased_bytes=8 * GIB, free_bytes=32 * GIB)
ALL = {"k1", "k2", "k3"}


def used(**seconds: float) -> WarmPolicy:
    """A policy that has seen a start of each key at these times."""
    policy = WarmPolicy()
    for key, when in sorted(seconds.items(), key=lambda item: item[1]):
        policy.started(key, when)
    return policy


def room_for(count: int) -> Machine:
    """A machine whose budget holds so many of the least size."""
    return dataclasses.replace(ROOMY, memory_bytes=int(count * LEAST_BYTES / BUDGET_SHARE), leased_bytes=0)


@pytest.mark.parametrize(
    ("starts", "now", "wanted"),
    [
        ([], 0.0, 0),
        ([0.0], 0.0, 1),
        ([0.0], KEEP_SECONDS - 0.1, 1),
        ([0.0], KEEP_SECONDS, 0),
        ([0.0, 1.0], 2.0, 1),
        ([0.0, 1.0, 2.0], 2.0, 2),
        ([0.0, 1.0, 2.0], OFTEN_SECONDS - 0.1, 2),
        ([0.0, 1.0, 2.0], OFTEN_SECONDS, 1),
        ([float(n) for n in range(OFTEN_STARTS * 3)], 10.0, 2),
    ],
)
def test_demand_is_one_two_when_started_often_and_none_after_ten_minutes(
    starts: list[float], now: float, wanted: int
) -> None:
    policy = WarmPolicy()
    for when in starts:
        policy.started("k1", when)
    assert policy.wanted("k1", now) == wanted


@pytest.mark.parametrize(
    ("now", "templates", "machine", "fill"),
    [
        (SETTLE_SECONDS, ALL, ROOMY, "k1"),
        (SETTLE_SECONDS - 0.1, ALL, ROOMY, ""),
        (SETTLE_SECONDS, set(), ROOMY, ""),
        (SETTLE_SECONDS, ALL, dataclasses.replace(ROOMY, busy=True), ""),
        (SETTLE_SECONDS, ALL, dataclasses.replace(ROOMY, free_bytes=SHORT_BYTES + SPARE_FACTOR * LEAST_BYTES), "k1"),
        (SETTLE_SECONDS, ALL, dataclasses.replace(ROOMY, free_bytes=SHORT_BYTES + SPARE_FACTOR * LEAST_BYTES - 1), ""),
        (SETTLE_SECONDS, ALL, room_for(1), "k1"),
        (SETTLE_SECONDS, ALL, dataclasses.replace(room_for(1), leased_bytes=1024), ""),
        (SETTLE_SECONDS, ALL, dataclasses.replace(ROOMY, leased_bytes=ROOMY.memory_bytes * 2), ""),
        (SETTLE_SECONDS, ALL, dataclasses.replace(ROOMY, wanted_bytes=56 * GIB - LEAST_BYTES), "k1"),
        (SETTLE_SECONDS, ALL, dataclasses.replace(ROOMY, wanted_bytes=56 * GIB - LEAST_BYTES + 1), ""),
    ],
)
def test_one_is_made_when_the_machine_has_room_and_rest(
    now: float, templates: set[str], machine: Machine, fill: str
) -> None:
    assert used(k1=0.0).plan(now, [], templates, machine) == Plan(fill=fill)


def test_one_of_each_key_before_a_second_of_any_and_the_last_used_key_first() -> None:
    policy = used(k1=0.0, k2=1.0)
    for _ in range(OFTEN_STARTS):
        policy.started("k1", 2.0)
    held: list[Held] = []
    made = []
    while (key := policy.plan(5.0, held, ALL, ROOMY).fill) and len(made) < 9:
        made.append(key)
        held.append(Held(f"w{len(made)}", key, LEAST_BYTES))
    assert sorted(made) == ["k1", "k1", "k2"]
    held.clear()
    assert policy.plan(5.0, [], ALL, room_for(1)).fill == "k1"
    two = [Held("w1", "k1", LEAST_BYTES), Held("w2", "k2", LEAST_BYTES)]
    assert policy.plan(5.0, two, ALL, room_for(2)) == Plan()  # no second of k1 in place of k2's only one


def test_the_least_recently_used_gives_way_to_the_budget() -> None:
    policy = used(k1=0.0, k2=1.0, k3=2.0)
    held = [Held("w1", "k1", LEAST_BYTES), Held("w2", "k2", None)]
    assert policy.plan(5.0, held, ALL, room_for(2)) == Plan(drop=("w1",), fill="k3")
    policy.started("k1", 6.0)
    assert policy.plan(9.0, held, ALL, room_for(2)) == Plan(drop=("w2",), fill="k3")


def test_what_requests_wait_for_is_given_back_longest_unused_first() -> None:
    policy = used(k1=0.0, k2=1.0, k3=2.0)
    held = [Held(f"w{n}", f"k{n}", LEAST_BYTES) for n in (1, 2, 3)]
    no_lease_bytes = ROOMY.memory_bytes - ROOMY.leased_bytes
    for beside, drop in ((3, ()), (2, ("w1",)), (1, ("w1", "w2")), (0, ("w1", "w2", "w3")), (-9, ("w1", "w2", "w3"))):
        machine = dataclasses.replace(ROOMY, busy=True, wanted_bytes=no_lease_bytes - beside * LEAST_BYTES)
        assert policy.plan(5.0, held, ALL, machine) == Plan(drop=drop), beside


def test_what_one_really_uses_counts_also_after_it_has_gone() -> None:
    policy = used(k1=0.0)
    machine = room_for(2)
    assert policy.plan(5.0, [Held("w1", "k1", 2 * LEAST_BYTES)], ALL, machine) == Plan()
    assert policy.plan(5.0, [Held("w1", "k1", 3 * LEAST_BYTES)], ALL, machine) == Plan(drop=("w1",))
    assert policy.plan(5.0, [], ALL, machine) == Plan()  # else it was made and removed for ever


def test_none_are_kept_without_memory_demand_or_template() -> None:
    held = [Held("w1", "k1", LEAST_BYTES)]
    assert used(k1=0.0).plan(5.0, held, ALL, ROOMY) == Plan()
    assert used(k1=0.0).plan(KEEP_SECONDS, held, ALL, ROOMY) == Plan(drop=("w1",))
    assert used(k2=0.0).plan(0.0, held, ALL, ROOMY) == Plan(drop=("w1",))
    assert used(k1=0.0).plan(5.0, held, set(), ROOMY) == Plan(drop=("w1",))
    short = dataclasses.replace(ROOMY, free_bytes=SHORT_BYTES - 1)
    assert used(k1=0.0).plan(5.0, held, ALL, short) == Plan(drop=("w1",))
    two = [*held, Held("w2", "k1", LEAST_BYTES)]
    assert used(k1=0.0).plan(5.0, two, ALL, ROOMY) == Plan(drop=("w2",))  # the older one is kept


def test_what_failed_is_tried_again_later() -> None:
    policy = used(k1=0.0)
    policy.failed("k1", 5.0)
    assert policy.plan(5.0 + AGAIN_SECONDS - 0.1, [], ALL, ROOMY) == Plan()
    assert policy.plan(5.0 + AGAIN_SECONDS, [], ALL, ROOMY) == Plan(fill="k1")


@pytest.mark.parametrize(
    ("now", "quiet", "fill"),
    [
        (SETTLE_SECONDS, True, "k1"),
        (SETTLE_SECONDS, False, ""),
        (PATIENCE_SECONDS - 0.1, False, ""),
        (PATIENCE_SECONDS, False, "k1"),
    ],
)
def test_one_that_must_be_booted_waits_until_no_cell_runs_but_not_for_ever(now: float, quiet: bool, fill: str) -> None:
    machine = dataclasses.replace(ROOMY, quiet=quiet)
    assert used(k1=0.0).plan(now, [], ALL, machine, {"k1"}) == Plan(fill=fill)
    assert used(k1=0.0).plan(now, [], ALL, machine) == Plan(fill="k1")  # a restore is next to no work


def test_one_that_can_be_restored_does_not_wait_for_one_that_must_be_booted() -> None:
    machine = dataclasses.replace(ROOMY, quiet=False)
    assert used(k1=1.0, k2=0.0).plan(5.0, [], ALL, machine, {"k1"}) == Plan(fill="k2")
