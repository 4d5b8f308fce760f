"""The pure core of schedules: policies by example, and a simulated year of clock steps, sleeps, kills and slow runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst_gateway import scheduler
from cellburst_gateway.scheduler import Decision, Planned, Standing, Watch, decide
from cellburst_protocol.schedules import RunReason, RunState

DOWN = RunReason.GATEWAY_DOWN
MINUTE, HOUR = 60, 3600


def every(step: int, last: int | None = None) -> Callable[[int], int | None]:
    def following(moment: int) -> int | None:
        found = (moment // step + 1) * step
        return None if last is not None and found > last else found

    return following


def look(now: float, **changes: object) -> Decision:
    given: dict[str, object] = {
        "following": every(MINUTE),
        "seen": 0,
        "overlap": "skip",
        "missed": "latest",
        "window_seconds": 600.0,
    }
    return decide(Standing(**(given | changes)), now, DOWN)  # type: ignore[arg-type]


def told(decision: Decision) -> list[tuple[int, str, str]]:
    return [(p.instant, p.state.value, p.reason.value if p.reason else "") for p in decision.planned]


def test_nothing_is_due_before_its_time_and_one_is_at_it() -> None:
    assert look(59.9) == Decision(seen=0)
    assert look(60.0) == Decision(seen=60, planned=[Planned(60, RunState.QUEUED)])


def test_missed_by_policy() -> None:
    late = 5 * MINUTE + 30
    assert told(look(late, missed="skip")) == [(60 * n, "missed", "gateway_down") for n in range(1, 6)]
    assert told(look(late)) == [(60 * n, "missed", "newer") for n in range(1, 5)] + [(300, "queued", "")]
    assert told(look(late, missed="all")) == [(60 * n, "queued", "") for n in range(1, 6)]
    assert told(look(late, missed="all", window_seconds=100.0)) == [
        (60, "missed", "gateway_down"), (120, "missed", "gateway_down"), (180, "missed", "gateway_down"), (240, "queued", ""),
        (300, "queued", ""),
    ]  # fmt: skip
    assert told(look(11 * HOUR, following=every(12 * HOUR, 0), seen=-1)) == [(0, "missed", "gateway_down")], (
        "out of the window"
    )


def test_of_late_and_on_time_ones_the_on_time_one_runs() -> None:
    assert told(look(120)) == [(60, "missed", "newer"), (120, "queued", "")]
    assert told(look(129.9, missed="skip")) == [(60, "missed", "gateway_down"), (120, "queued", "")]


def test_overlap_by_policy() -> None:
    assert told(look(60, active=1)) == [(60, "skipped", "overlap")]
    assert told(look(60, active=1, overlap="queue")) == [(60, "queued", "")]
    replaced = look(60, active=1, overlap="replace")
    assert replaced.replace and told(replaced) == [(60, "queued", "")]
    assert not look(60, overlap="replace").replace
    two = look(68, following=every(4, 68), seen=60, overlap="replace", active=1)
    assert two.replace and told(two) == [(64, "missed", "newer"), (68, "queued", "")]
    assert told(look(68, following=every(4, 68), seen=60)) == [(64, "queued", ""), (68, "skipped", "overlap")]


def test_a_full_queue_is_a_reason() -> None:
    waiting = scheduler.MAX_WAITING
    assert told(look(60, active=waiting + 1, waiting=waiting, overlap="queue")) == [(60, "skipped", "queue_full")]
    decision = look(200 * MINUTE, missed="all", window_seconds=1e9)
    states = [p.state for p in decision.planned]
    assert states.count(RunState.QUEUED) == waiting + 1 and states.count(RunState.SKIPPED) == 200 - waiting - 1


def test_a_year_of_minutes_is_decided_in_steps_and_few_rows() -> None:
    now, seen, covered, rows = 365 * 24 * HOUR + 30.0, 0, 0, 0
    while True:
        decision = look(now, seen=seen)
        covered += sum(p.count for p in decision.planned)
        rows += len(decision.planned)
        assert decision.seen > seen
        seen = decision.seen
        if not decision.more:
            break
    assert covered == 365 * 24 * 60 and rows < 365 * 24 * 60 / 30
    assert (
        decision.planned[-1].state is RunState.QUEUED
        and [p.reason for p in decision.planned[-10:-1]].count(RunReason.NEWER) == 9
    )


@pytest.mark.parametrize(
    ("jump", "cause"), [(HOUR, RunReason.CLOCK), (24 * HOUR, RunReason.CLOCK), (-HOUR, RunReason.LATE)]
)
def test_the_watch_tells_a_step_of_the_clock_from_a_gateway_that_was_down(jump: float, cause: RunReason) -> None:
    watch = Watch()
    assert watch.look(1000.0, 5.0) == 0 and watch.cause is DOWN
    watch.caught_up()
    assert watch.look(1100.0, 105.0) == 0 and watch.cause is RunReason.LATE, "a slow look is none"
    assert watch.look(1101.0 + jump, 106.0) == jump and watch.cause is cause


class World:
    """A schedule with its record, two clocks, a gateway that comes and goes, and runs that take their time."""

    def __init__(self, step: int, overlap: str, missed: str, window: float) -> None:
        self.following, self.overlap, self.missed, self.window = every(step), overlap, missed, window
        self.wall, self.monotonic, self.seen, self.highest = 1000.0, 0.0, 1000, 1000.0
        self.watch = Watch()
        self.rows: list[Planned] = []
        self.queue: list[int] = []
        self.running: int | None = None
        self.looked: dict[int, float] = {}
        self.at_once = 0

    def look(self, *, dies: bool = False) -> None:
        self.highest = max(self.highest, self.wall)
        self.watch.look(self.wall, self.monotonic)
        while True:
            active = len(self.queue) + (self.running is not None)
            standing = Standing(
                self.following, self.seen, self.overlap, self.missed, self.window, active, len(self.queue)
            )
            decision = decide(standing, self.wall, self.watch.cause)
            if dies:  # before the commit
                self.watch = Watch()
                return
            if decision.replace:
                self.queue.clear()
                self.running = None
            self.seen = decision.seen
            self.rows += decision.planned
            for one in decision.planned:
                self.looked[one.instant] = self.wall
                if one.state is RunState.QUEUED:
                    self.queue.append(one.instant)
            if not decision.more:
                break
        self.watch.caught_up()
        if self.running is None and self.queue:
            self.running = self.queue.pop(0)

    def step(self, what: str, seconds: float) -> None:
        match what:
            case "wait":
                self.wall += seconds
                self.monotonic += seconds
            case "forward" | "sleep":
                self.wall += seconds
            case "back":
                self.wall = max(1000.0, self.wall - seconds)
            case "ends":
                self.running = self.queue.pop(0) if self.queue else None
            case "killed":
                self.watch = Watch()
            case "dies":
                self.look(dies=True)
        if what in ("wait", "forward", "back", "sleep"):
            self.look()

    def check(self) -> None:
        covered: list[int] = []
        for row in self.rows:
            moment: int | None = row.instant
            for _ in range(row.count):
                assert moment is not None
                covered.append(moment)
                moment = self.following(moment)
            assert row.count == 1 or covered[-1] == row.until
        expected, moment = [], self.following(1000)
        while moment is not None and moment <= self.highest:
            expected.append(moment)
            moment = self.following(moment)
        assert covered == expected, "each instant has exactly one record, in order"
        for row in self.rows:
            lateness = self.looked[row.instant] - row.instant
            if row.state is RunState.QUEUED:
                assert row.reason is None
                assert lateness <= scheduler.ON_TIME_SECONDS or (self.missed != "skip" and lateness <= self.window)
            else:
                assert row.reason is not None


@given(
    step=st.sampled_from([10, 60, 900, 3600, 86400]), overlap=st.sampled_from(["skip", "queue", "replace"]),
    missed=st.sampled_from(["skip", "latest", "all"]), window=st.sampled_from([0.0, 600.0, 7200.0]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["wait", "wait", "wait", "ends", "killed", "dies", "sleep", "forward", "back"]),
            st.sampled_from([0.25, 1.0, 9.0, 59.0, 61.0, 600.0, 3600.0, 86400.0]),
        ),
        max_size=30,
    ),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_whatever_happens_each_instant_has_exactly_one_record(
    step: int, overlap: str, missed: str, window: float, steps: list[tuple[str, float]]
) -> None:
    if step == 10:
        steps = [(what, min(seconds, 3600.0)) for what, seconds in steps]
    world = World(step, overlap, missed, window)
    for what, seconds in steps:
        world.step(what, seconds)
    world.look()
    world.check()


def test_the_check_of_the_simulation_finds_what_it_looks_for() -> None:
    world = World(60, "skip", "latest", 600.0)
    world.step("wait", 600.0)
    world.check()
    del world.rows[2]
    with pytest.raises(AssertionError, match="exactly one"):
        world.check()
