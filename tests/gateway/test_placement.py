"""Placement: what goes where, what waits for whom, what is refused, and rules that hold for any fleet.

Over 400 lines: one table of cases beside another, on the same makers of requests and machines.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst_gateway.placement import Holding, Machine, Outcome, Placed, Refused, Request, Waits, place, place_all
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.messages import GpuShown, Inventory
from cellburst_protocol.resources import Resources, parse_gpus
from cellburst_protocol.states import WorkerState

MEMORY = {"T4": 15360, "A100-40GB": 40960, "A100-80GB": 81920, "H100": 81559}


def machine(
    name: str, gpus: str = "", *, sim: str = "", held: dict[str, list[int]] | None = None, cpu: float = 16, memory: int = 65536,
    evictable: tuple[str, ...] = (), in_use: tuple[int, ...] = (), state: WorkerState = WorkerState.JOINED,
) -> Machine:  # fmt: skip
    """`gpus` such as "T4 T4 H100"; `held` is {who: [GPU indices]}."""
    types = [(t, False) for t in gpus.split()] + [(t, True) for t in sim.split()]
    shown = [
        GpuShown(
            index=i, uuid=f"{name}-{i}", type=t, name=t, memory_mib=MEMORY.get(t, 0), simulated=s,
            in_use="pid 9 of another program" if i in in_use else "",
        )
        for i, (t, s) in enumerate(types)
    ]  # fmt: skip
    holdings = tuple(
        Holding(f"lease-{who}", who, frozenset(f"{name}-{i}" for i in indices), 1.0, 1024, 1000.0 + n, who in evictable)
        for n, (who, indices) in enumerate((held or {}).items())
    )
    inventory = Inventory(hostname=f"{name}-host", cpu_cores=cpu, memory_mib=memory, gpus=shown)
    return Machine(name, inventory, holdings, state)


def want(gpu: str = "", id: str = "r", *, cpu: float = 1, memory: int = 1024, prefer: str = "") -> Request:
    return Request(id, Resources(gpus=parse_gpus(gpu) if gpu else (), cpu=cpu, memory_mib=memory), (prefer,))


def placed(outcome: Outcome) -> tuple[str, tuple[str, ...], int]:
    assert isinstance(outcome, Placed), outcome
    return outcome.worker, outcome.uuids, outcome.alternative


def refused(outcome: Outcome, code: ErrorCode = ErrorCode.NO_SUCH_HARDWARE) -> str:
    assert isinstance(outcome, Refused), outcome
    assert outcome.error.code is code
    return outcome.error.text()


def waits(outcome: Outcome) -> Waits:
    assert isinstance(outcome, Waits), outcome
    return outcome


# -- what goes where ----------------------------------------------------------------------------------------------------


def test_a_free_gpu_of_the_type_is_taken() -> None:
    fleet = [machine("a", "T4"), machine("b", "A100-40GB A100-40GB", held={"x": [0]})]
    assert placed(place(want("A100"), fleet)) == ("b", ("b-1",), 0)


def test_alternatives_are_taken_in_their_order_first_that_is_free() -> None:
    fleet = [machine("a", "H100 T4", held={"x": [0]}), machine("b", "A100-80GB")]
    assert placed(place(want("H100,A100,T4"), fleet)) == ("b", ("b-0",), 1)
    assert placed(place(want("T4,A100"), fleet)) == ("a", ("a-1",), 0)


def test_a_real_gpu_comes_before_a_simulated_one_whatever_the_alternatives_order() -> None:
    fleet = [machine("a", sim="H100"), machine("b", "T4")]
    assert placed(place(want("H100,T4"), fleet)) == ("b", ("b-0",), 1)
    assert placed(place(want("H100"), fleet)) == ("a", ("a-0",), 0)


def test_a_simulated_gpu_is_not_taken_while_a_real_one_is_busy() -> None:
    fleet = [machine("a", "A100-40GB", sim="A100-40GB", held={"x": [0]})]
    assert waits(place(want("A100"), fleet)).worker == "a"
    assert waits(place(want("any"), fleet)).worker == "a"


def test_one_lease_never_mixes_types_or_real_and_simulated() -> None:
    refused(place(want("A100:2"), [machine("a", "A100-40GB A100-80GB")]))
    refused(place(want("any:2"), [machine("a", "T4", sim="T4")]))
    assert placed(place(want("any:2"), [machine("a", "T4 H100 H100")])) == ("a", ("a-1", "a-2"), 0)


def test_any_and_a_family_take_the_smallest_card() -> None:
    fleet = [machine("a", "H100 T4 A100-80GB A100-40GB")]
    assert placed(place(want("any"), fleet))[1] == ("a-1",)
    assert placed(place(want("A100"), fleet))[1] == ("a-3",)


def test_best_fit_leaves_large_machines_whole() -> None:
    fleet = [machine("big", "T4 T4 T4 T4"), machine("small", "T4 T4", held={"x": [0]})]
    assert placed(place(want("T4"), fleet))[0] == "small"
    assert placed(place(want(), [machine("gpu", "T4", cpu=4), machine("plain", cpu=64)]))[0] == "plain"


def test_the_preferred_worker_is_taken_where_it_fits() -> None:
    fleet = [machine("a", "T4"), machine("b", "T4 T4")]
    assert placed(place(want("T4", prefer="b"), fleet))[0] == "b"
    assert placed(place(want("T4", prefer="gone"), fleet))[0] == "a"


def test_two_requests_of_one_pass_do_not_get_the_same_gpu() -> None:
    outcomes = place_all([want("T4", "1"), want("T4", "2"), want("T4", "3")], [machine("a", "T4 T4")])
    assert {placed(outcomes["1"])[1], placed(outcomes["2"])[1]} == {("a-0",), ("a-1",)}
    assert waits(outcomes["3"]).position == 1


def test_a_marked_gpu_is_not_leased_and_the_wait_says_why() -> None:
    assert placed(place(want("T4"), [machine("a", "T4 T4", in_use=(0,))]))[1] == ("a-1",)
    assert (
        "GPU 0 is in use (pid 9 of another program)"
        in waits(place(want("T4"), [machine("a", "T4", in_use=(0,))])).waiting_for
    )


def test_cpu_shares_that_add_up_exactly_fit() -> None:
    used = machine("a", cpu=0.3, held={})
    holdings = tuple(Holding(f"l{n}", "x", frozenset(), 0.1, 1) for n in range(2))
    assert placed(place(want(cpu=0.1), [Machine("a", used.inventory, holdings)]))[0] == "a"


# -- what waits ---------------------------------------------------------------------------------------------------------


def test_a_wait_says_what_for_who_has_it_and_the_position() -> None:
    fleet = [machine("box", "A100-40GB A100-40GB", held={"train.ipynb (default)": [0, 1]})]
    first = waits(place(want("A100"), fleet, now=1000.0 + 12 * 60))
    assert first.position == 1
    assert first.waiting_for == (
        "gpu=A100 cpu=1 memory=1GiB on box-host: GPU 0, 1 is held by train.ipynb (default) for 12 min"
    )
    second = waits(place(want("A100", "late"), fleet, ahead=[want("A100")], now=1000.0))
    assert second.position == 2
    assert second.waiting_for.endswith("is held by train.ipynb (default); 1 ahead in the queue")


def test_a_wait_for_memory_says_how_much_is_free() -> None:
    said = waits(place(want(memory=2048), [machine("a", cpu=8, memory=2560, held={"x.ipynb": []})])).waiting_for
    assert said == ("cpu=1 memory=2GiB (7 of 8 cores and 1536MiB of 2560MiB are free) on a-host: x.ipynb holds 1 cores")


def test_it_waits_on_a_machine_that_cannot_be_reached_rather_than_being_refused() -> None:
    fleet = [machine("a", "T4", state=WorkerState.UNREACHABLE), machine("b")]
    assert "cannot be reached" in waits(place(want("T4"), fleet)).waiting_for
    assert placed(place(want(), fleet))[0] == "b"


def test_a_big_request_is_not_starved_and_small_ones_pass_it_elsewhere() -> None:
    fleet = [machine("a", "T4 T4", held={"x": [0]}), machine("b", "T4")]
    outcomes = place_all([want("T4:2", "big"), want("T4", "s1"), want("T4", "s2")], fleet)
    assert waits(outcomes["big"]).worker == "a"
    assert placed(outcomes["s1"]) == ("b", ("b-0",), 0)
    assert waits(outcomes["s2"]).position == 2


def test_who_waits_for_a_gpu_does_not_keep_a_core_idle_that_its_holder_gives_back() -> None:
    fleet = [machine("a", "T4", held={"x": [0]}, cpu=2)]
    outcomes = place_all([want("T4", "1"), want("", "2"), want("", "3")], fleet)
    assert waits(outcomes["1"]).position == 1
    assert placed(outcomes["2"])[0] == "a"
    assert waits(outcomes["3"]).position == 2
    assert waits(place_all([want("T4", "1", cpu=2), want("", "2")], fleet)["2"]).position == 2


def test_idle_sessions_that_would_make_room_are_named_fewest_and_oldest_first() -> None:
    fleet = [machine("a", "T4 T4 H100", held={"old": [0], "new": [1], "other": [2]}, evictable=("old", "new", "other"))]
    assert waits(place(want("T4"), fleet)).evict == ("lease-old",)
    assert waits(place(want("T4:2"), fleet)).evict == ("lease-old", "lease-new")
    assert waits(place(want("H100"), fleet)).evict == ("lease-other",)


def test_a_busy_session_is_never_named_and_none_is_where_it_is_no_help() -> None:
    fleet = [machine("a", "T4 T4", held={"busy": [0], "idle": [1]}, evictable=("idle",))]
    assert waits(place(want("T4:2"), fleet)).evict == ()
    assert waits(place(want("T4"), fleet)).evict == ("lease-idle",)
    outcomes = place_all([want("T4", "1"), want("T4", "2")], fleet)
    assert (waits(outcomes["1"]).evict, waits(outcomes["2"]).evict) == (("lease-idle",), ())


def test_what_an_eviction_would_free_is_nobodys_until_it_has_happened() -> None:
    fleet = [machine("a", cpu=8, memory=2048, held={"idle": [], "busy": []}, evictable=("idle",))]
    outcomes = place_all([want("", "1", memory=512), want("", "2", memory=512)], fleet)
    assert waits(outcomes["1"]).evict == ("lease-idle",)
    assert waits(outcomes["2"]).evict == ()


def idle(fleet: list[Machine], **seconds: float) -> list[Machine]:
    """The same fleet with sessions that have been idle so long, and those that are leaving (-1)."""
    return [
        replace(
            m,
            holdings=tuple(
                replace(h, evictable=seconds[h.who] >= 0, idle_seconds=max(0.0, seconds[h.who]), leaving=seconds[h.who] < 0)
                if h.who in seconds
                else h
                for h in m.holdings
            ),
        )
        for m in fleet
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "seconds", "parks"),
    [
        ("T4", {"one": 40, "two": 50}, ("lease-two",)),  # longest idle first
        ("T4", {"one": 50, "two": 40}, ("lease-one",)),
        ("T4:2", {"one": 40, "two": 50}, ("lease-two", "lease-one")),
        ("T4:2", {"one": 40}, ()),  # no set that helps: nobody
        ("H100", {"one": 50, "big": 40}, ("lease-big",)),  # only what fits counts
        ("H100", {"one": 50}, ()),
        ("T4", {"one": float("inf"), "two": 10_000}, ("lease-one",)),
        ("T4", {"one": 50, "two": -1}, ()),  # one is on its way out: enough
        ("T4:2", {"one": 50, "two": -1}, ("lease-one",)),
    ],
)
def test_who_is_parked_for_a_request_that_waits(wanted: str, seconds: dict[str, float], parks: tuple[str, ...]) -> None:
    fleet = [machine("a", "T4 T4 H100", held={"one": [0], "two": [1], "big": [2]})]
    assert waits(place(want(wanted), idle(fleet, **seconds))).evict == parks


def test_an_idle_session_with_only_cpu_and_memory_is_parked_for_those() -> None:
    fleet = [machine("a", cpu=2, memory=4096, held={"one": [], "two": []})]
    assert waits(place(want("", cpu=1), idle(fleet, one=40, two=60))).evict == ("lease-two",)
    assert waits(place(want("", cpu=2), idle(fleet, one=40, two=60))).evict == ("lease-two", "lease-one")
    assert waits(place(want("", cpu=1), idle(fleet, one=40, two=-1))).evict == ()


def test_two_requests_that_want_one_idle_session_park_it_once() -> None:
    fleet = [machine("a", "T4", held={"one": [0]}), machine("b", "T4", held={"two": [0]})]
    first = idle(fleet, one=50)
    outcomes = place_all([want("T4", "1"), want("T4", "2")], first)
    assert (waits(outcomes["1"]).evict, waits(outcomes["2"]).evict) == (("lease-one",), ())
    later = place_all([want("T4", "1"), want("T4", "2")], idle(fleet, one=-1, two=31))  # it is being parked now
    assert (waits(later["1"]).evict, waits(later["1"]).worker) == ((), "a")
    assert (waits(later["2"]).evict, waits(later["2"]).worker) == (("lease-two",), "b")


def test_nobody_goes_on_one_machine_for_what_leaves_on_another() -> None:
    fleet = [machine("a", "T4", held={"one": [0]}), machine("b", "T4 T4", held={"two": [0], "three": [1]})]
    outcome = waits(place(want("T4"), idle(fleet, one=100, two=-1)))
    assert (outcome.evict, outcome.worker) == ((), "b")


def test_a_parked_session_is_placed_where_it_is_kept_and_nowhere_else() -> None:
    fleet = [machine("a", "T4"), machine("b", "T4 T4", held={"x": [0]}), machine("c", "H100")]
    assert placed(place(replace(want("T4"), only=("b",)), fleet))[0] == "b"
    full = [machine("a", "T4"), machine("b", "T4", held={"x": [0]})]
    assert waits(place(replace(want("T4"), only=("b",)), full)).worker == "b"
    refused(place(replace(want("T4"), only=("c",)), fleet))
    refused(place(replace(want("T4"), only=("gone",)), fleet), ErrorCode.NO_WORKER)


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_no_worker_at_all_is_its_own_refusal() -> None:
    assert "cellburst up" in refused(place(want("T4"), []), ErrorCode.NO_WORKER)
    refused(place(want(), [machine("a", state=WorkerState.LOST)]), ErrorCode.NO_WORKER)


def test_a_card_nobody_has_is_refused_with_what_there_is_and_how_to_simulate_one() -> None:
    said = refused(place(want("H100"), [machine("a", "T4 T4 A100-80GB"), machine("b", sim="T4")]))
    assert "gpu=H100: no machine of the fleet has such a GPU" in said
    assert "a-host has 1 x A100-80GB, 2 x T4; b-host has 1 x simulated T4" in said
    assert "gpu=A100-80GB would run" in said
    assert "cellburst up --simulate-gpus H100:1" in said
    assert "no machine of the fleet has a GPU" in refused(place(want("A100:2"), [machine("a")]))


def test_more_than_any_machine_has_is_refused_at_once_also_when_all_are_busy() -> None:
    said = refused(
        place(want("A100:3"), [machine("a", "A100-40GB A100-40GB", held={"x": [0, 1]}), machine("b", "A100-40GB")])
    )
    assert "gpu=A100:3" in said and "the most on one is 2 x A100" in said
    assert "gpu=A100:2 would run" in said
    assert "--simulate-gpus A100-40GB:3" in said


def test_memory_and_cpu_over_every_machine_are_refused_with_the_most_there_is() -> None:
    fleet = [machine("a", memory=8192, cpu=4), machine("b", "T4", memory=4096, cpu=2)]
    assert "at most 8GiB" in refused(place(want(memory=100_000), fleet))
    assert "a machine that has gpu=T4 has" in refused(place(want("T4", memory=8192), fleet))
    assert "Allowed: at most 4\n" in refused(place(want(cpu=5), fleet))
    split = [machine("a", cpu=4, memory=4096), machine("b", cpu=2, memory=8192)]
    assert "no one machine has all of it" in refused(place(want(cpu=4, memory=8192), split))


# -- for any fleet ------------------------------------------------------------------------------------------------------

types = st.sampled_from(["T4", "A100-40GB", "A100-80GB", "H100"])
asked = st.sampled_from(["", "T4", "A100", "A100:2", "H100,T4", "any", "any:2", "T4:3", "A100-80GB,any"])


@st.composite
def machines(draw: st.DrawFn, number: int) -> Machine:
    real, simulated = draw(st.lists(types, max_size=4)), draw(st.lists(types, max_size=2))
    count = len(real) + len(simulated)
    held = {f"h{number}-{n}": [n] for n in range(count) if draw(st.booleans())}
    evictable = tuple(who for who in held if draw(st.booleans()))
    return machine(
        f"m{number}", " ".join(real), sim=" ".join(simulated), held=held, evictable=evictable,
        cpu=draw(st.integers(1, 8)), memory=draw(st.integers(512, 8192)),
        state=draw(st.sampled_from([WorkerState.JOINED, WorkerState.JOINED, WorkerState.UNREACHABLE, WorkerState.LOST])),
    )  # fmt: skip


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Request], list[Machine]]:
    fleet = [draw(machines(n)) for n in range(draw(st.integers(0, 3)))]
    queue = [
        want(draw(asked), f"r{n}", cpu=draw(st.integers(1, 4)), memory=draw(st.integers(64, 4096)))
        for n in range(draw(st.integers(1, 5)))
    ]
    return queue, fleet


@settings(max_examples=300)
@given(scenes())
def test_what_is_placed_is_free_accepted_and_within_the_machine(scene: tuple[list[Request], list[Machine]]) -> None:
    queue, fleet = scene
    by_name = {m.worker: m for m in fleet}
    given_out: dict[str, list[Request]] = {}
    leased: set[str] = {uuid for m in fleet for h in m.holdings for uuid in h.gpus}
    for request in queue:
        outcome = place_all(queue, fleet)[request.id]
        if not isinstance(outcome, Placed):
            continue
        target = by_name[outcome.worker]
        assert target.state is WorkerState.JOINED
        assert not leased & set(outcome.uuids) and not any(gpu.in_use for gpu in outcome.gpus)
        leased |= set(outcome.uuids)
        given_out.setdefault(target.worker, []).append(request)
        if request.resources.gpus:
            choice = request.resources.gpus[outcome.alternative]
            assert len(outcome.gpus) == choice.count and all(choice.accepts(gpu.type) for gpu in outcome.gpus)
            assert len({(gpu.type, gpu.simulated) for gpu in outcome.gpus}) == 1
            if outcome.gpus[0].simulated:
                real = [Machine(m.worker, _without_simulated(m.inventory), m.holdings, m.state) for m in fleet]
                assert isinstance(place(request, real), Refused)
        else:
            assert outcome.gpus == ()
    for worker, requests in given_out.items():
        m = by_name[worker]
        assert sum(r.resources.cpu for r in requests) + sum(h.cpu for h in m.holdings) <= m.inventory.cpu_cores
        assert (
            sum(r.resources.memory_mib for r in requests) + sum(h.memory_mib for h in m.holdings)
            <= m.inventory.memory_mib
        )


def _without_simulated(inventory: Inventory) -> Inventory:
    gpus = [gpu for gpu in inventory.gpus if not gpu.simulated]
    return Inventory(
        hostname=inventory.hostname, cpu_cores=inventory.cpu_cores, memory_mib=inventory.memory_mib, gpus=gpus
    )


@settings(max_examples=200)
@given(scenes())
def test_positions_count_the_waiting_and_evictions_are_true(scene: tuple[list[Request], list[Machine]]) -> None:
    queue, fleet = scene
    outcomes = place_all(queue, fleet)
    waiting = [o for o in (outcomes[r.id] for r in queue) if isinstance(o, Waits)]
    assert [o.position for o in waiting] == list(range(1, len(waiting) + 1))
    named = [lease for o in waiting for lease in o.evict]
    assert len(named) == len(set(named))
    if waiting and waiting[0].evict:
        first = next(r for r in queue if outcomes[r.id] is waiting[0])
        # those before it have been placed by then, and hold what they were given
        before = [(r, outcomes[r.id]) for r in queue[: queue.index(first)]]
        kept = [
            Machine(
                m.worker, m.inventory,
                (
                    *(h for h in m.holdings if h.lease not in waiting[0].evict),
                    *(_held(r, o) for r, o in before if isinstance(o, Placed) and o.worker == m.worker),
                ),
                m.state,
            )
            for m in fleet
        ]  # fmt: skip
        assert all(h.evictable for m in fleet for h in m.holdings if h.lease in waiting[0].evict)
        assert isinstance(place_all([first], kept)[first.id], Placed)


def _held(request: Request, placed: Placed) -> Holding:
    return Holding(
        lease=f"lease-{request.id}", who=request.id, gpus=frozenset(placed.uuids), cpu=request.resources.cpu,
        memory_mib=request.resources.memory_mib, opened_unix_seconds=2000.0, evictable=False,
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(2, 4), st.data())
def test_everything_that_is_not_refused_is_placed_in_the_end(sizes: list[int], gpus: int, data: st.DataObject) -> None:
    """Small requests keep coming; each holder ends when drawn; the big one of the first moment is still placed."""
    queue = [want(f"T4:{min(size, gpus)}", f"r{n}") for n, size in enumerate([gpus, *sizes])]
    running: dict[str, Holding] = {"start": Holding("start", "start", frozenset({"a-0"}), 1.0, 64)}
    base = machine("a", " ".join(["T4"] * gpus), cpu=64)
    done: list[str] = []
    for _ in range(4 * len(queue)):
        outcomes = place_all(queue, [Machine("a", base.inventory, tuple(running.values()))])
        for request in list(queue):
            outcome = outcomes[request.id]
            if isinstance(outcome, Placed):
                running[request.id] = Holding(request.id, request.id, frozenset(outcome.uuids), 1.0, 64)
                queue.remove(request)
                done.append(request.id)
        if running:
            del running[data.draw(st.sampled_from(sorted(running)))]
    assert queue == []
    assert done[0] == "r0"  # it asked for the whole machine first, so nothing smaller got in before it


@pytest.mark.parametrize("count", [50])
def test_a_long_queue_on_a_large_fleet_is_placed_in_order(count: int) -> None:
    fleet = [machine(f"m{n}", "T4 T4", cpu=64) for n in range(10)]
    outcomes = place_all([want("T4", f"r{n}") for n in range(count)], fleet)
    assert all(isinstance(outcomes[f"r{n}"], Placed) for n in range(20))
    assert [waits(outcomes[f"r{n}"]).position for n in range(20, count)] == list(range(1, count - 19))
