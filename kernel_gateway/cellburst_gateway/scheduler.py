"""Which instants of a schedule are due, and what becomes of each: runs, is skipped or missed. Pure: time is passed in.

Each look at a schedule takes the instants above `seen` up to now, decides all of them, and moves `seen` up in one commit with
the rows: each instant gets exactly one record, whatever is killed. A clock that is set back changes nothing: instants
up to `seen` have their record. One that is set forward, a machine that slept and a gateway that was down all look the same here:
instants that are due late. How late decides, and the policy:

    on time (ON_TIME_SECONDS)     runs, by the overlap policy
    late, `skip`                  missed
    late, `latest`                the newest runs, if within the window and nothing newer is on time; the others are missed
    late, `all`                   each within the window runs, one after another; older ones are missed

Overlap, where an earlier run has not ended: `skip` records it as skipped, `queue` lets it wait, `replace` ends the earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cellburst_protocol.schedules import RunReason, RunState

ON_TIME_SECONDS = 10  # a gateway that is killed is back within 3 s, and a look is four times a second
MAX_WAITING = 100  # runs of one schedule that wait; more are hours of work that nobody asked to be done late
MAX_LOOK = 2000  # instants decided at once: a few ms
MISSED_ROWS = 50  # missed instants that get a row each in one look; older ones share one
JUMP_SECONDS = 5.0  # wall clock against monotonic clock: more than any correction by steps of time servers


@dataclass(frozen=True, slots=True)
class Standing:
    """A schedule as time sees it. `following(moment)` is its first instant after a moment. `active` runs have not
    ended, `waiting` of them have not begun."""

    following: Callable[[int], int | None]
    seen: int
    overlap: str
    missed: str
    window_seconds: float
    active: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """The record of an instant, or of `count` missed ones up to `until`."""

    instant: int
    state: RunState
    reason: RunReason | None = None
    until: int = 0
    count: int = 1


@dataclass(slots=True)
class Decision:
    """What a look found. `replace`: the runs that were active before it are ended. `more`: look again, more is to be decided."""

    seen: int
    planned: list[Planned] = field(default_factory=list)
    replace: bool = False
    more: bool = False


class Watch:
    """Tells why instants are late: from looks at both clocks."""

    def __init__(self) -> None:
        self.cause = RunReason.GATEWAY_DOWN  # of the first look
        self._last: tuple[float, float] | None = None

    def look(self, wall: float, monotonic: float) -> float:
        """Note both clocks; returns how far the wall's clock jumped since the last look, in seconds (negative: back)."""
        last, self._last = self._last, (wall, monotonic)
        if last is None:
            return 0.0
        jump = (wall - last[0]) - (monotonic - last[1])
        if abs(jump) < JUMP_SECONDS:
            return 0.0
        if jump > 0:
            self.cause = RunReason.CLOCK
        return jump

    def caught_up(self) -> None:
        """All that was due has its record: what is late from now on has another cause."""
        self.cause = RunReason.LATE


def decide(schedule: Standing, now: float, cause: RunReason) -> Decision:
    """Decide the instants up to now. `cause` is why late ones are late."""
    due, more = _due(schedule, now)
    if not due:
        return Decision(seen=schedule.seen)
    newest = [] if more else [moment for moment in due if now - moment <= ON_TIME_SECONDS]
    late = due[: len(due) - len(newest)]
    if schedule.missed == "all":
        wanted = [moment for moment in late if now - moment <= schedule.window_seconds]
    elif schedule.missed == "latest" and late and not newest and not more and now - late[-1] <= schedule.window_seconds:
        wanted = late[-1:]
    else:
        wanted = []
    given_up = late[: len(late) - len(wanted)]
    decision = Decision(seen=due[-1], more=more)
    decision.planned += _missed(schedule, given_up, now, cause, newer=bool(wanted or newest or more))
    _overlapping(schedule, decision, wanted, newest)
    return decision


def _due(schedule: Standing, now: float) -> tuple[list[int], bool]:
    due: list[int] = []
    moment = schedule.following(schedule.seen)
    while moment is not None and moment <= now:
        if len(due) == MAX_LOOK:
            return due, True
        due.append(moment)
        moment = schedule.following(moment)
    return due, False


def _missed(schedule: Standing, moments: Sequence[int], now: float, cause: RunReason, *, newer: bool) -> list[Planned]:
    """Rows of instants that nothing runs for. Of those a newer one runs in place of, that is the reason."""
    rows: list[Planned] = []
    shared = moments[: len(moments) - MISSED_ROWS] if len(moments) > MISSED_ROWS else []
    if shared:
        rows.append(Planned(shared[0], RunState.MISSED, cause, until=shared[-1], count=len(shared)))
    for moment in moments[len(shared) :]:
        within = newer and schedule.missed == "latest" and now - moment <= schedule.window_seconds
        rows.append(Planned(moment, RunState.MISSED, RunReason.NEWER if within else cause))
    return rows


def _overlapping(schedule: Standing, decision: Decision, caught_up: Sequence[int], newest: Sequence[int]) -> None:
    """Apply the overlap policy to what is to run. Those that are caught up with wait for each other, whatever it is."""
    active, waiting = schedule.active, schedule.waiting
    one_after_another = set(caught_up) if schedule.missed == "all" else set()
    runs = [*caught_up, *newest]
    for number, moment in enumerate(runs):
        waits = schedule.overlap == "queue" or moment in one_after_another
        state, reason = RunState.QUEUED, None
        if schedule.overlap == "replace" and not waits:
            if number + 1 < len(runs):
                state, reason = RunState.MISSED, RunReason.NEWER
            else:
                decision.replace = schedule.active > 0
        elif not waits and active:
            state, reason = RunState.SKIPPED, RunReason.OVERLAP
        elif active and waiting >= MAX_WAITING:
            state, reason = RunState.SKIPPED, RunReason.QUEUE_FULL
        if state is RunState.QUEUED:
            waiting += 1 if active else 0
            active += 1
        decision.planned.append(Planned(moment, state, reason))
