"""Who is told of a run's end, and of instants at which none ran: the words, the webhook's body, the deliveries. Pure.

Instants that were missed are told together: of each look at a schedule one notice, however many there are (`MissedSoFar`). It
hangs on the newest one's row, which says in words how many there were and when.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.schedules import RUN_END_STATE, Notify, RunReason, RunState, ScheduleSpec

from . import cron, cron_words
from .ledger import shown
from .run_rules import RunDetail
from .scheduler import Planned
from .store_schedules import RunRecord, Telling, Told

_WHY = {
    RunReason.GATEWAY_DOWN: "while no gateway ran",
    RunReason.CLOCK: "while the machine slept, or because its clock was set forward",
    RunReason.LATE: "and the gateway was too late to see it",
}
_NEXT = {
    RunReason.GATEWAY_DOWN: "`cellburst service install` keeps the gateway up",
    RunReason.CLOCK: "the machine must be on and awake at these times",
}


@dataclass(frozen=True, slots=True)
class MissedSoFar:
    """Missed instants of looks that came to no end yet. `row` is the newest one's."""

    count: int
    first: int
    last: int
    row: str
    reason: RunReason


def missed_now(planned: Sequence[tuple[str, Planned]], before: MissedSoFar | None) -> MissedSoFar | None:
    """What a look found, added to those before it. An instant in place of which a newer one runs is not among them."""
    found = before
    for id, one in planned:
        if one.state is not RunState.MISSED or one.reason in (None, RunReason.NEWER):
            continue
        assert one.reason is not None
        first, count = (found.first, found.count) if found is not None else (one.instant, 0)
        found = MissedSoFar(count + one.count, first, one.until or one.instant, id, one.reason)
    return found


def missed_before(rows: Sequence[RunRecord], following: int | None) -> MissedSoFar | None:
    """What an earlier gateway's looks found that was not told: `rows` are those since its last notice, `following` is the
    schedule's next instant. None where the last look came to an end: then nothing more was due when its rows were made."""
    if not rows or following is None or following > max(row.created for row in rows):
        return None
    return missed_now(
        [(row.id, Planned(row.instant, row.state, row.reason, row.until, row.instants)) for row in rows], None
    )


def tell_missed(missed: MissedSoFar, spec: ScheduleSpec, new_id: Callable[[str], str], now: float) -> Telling:
    """The notice of them: a failure, to whoever wants to hear of those."""
    why = missed_words(missed, spec)
    body = _body(spec, missed.row, 1, missed.reason, why, missed.last, Decimal(0), now)
    body |= {"event": "runs_missed", "count": missed.count, "first_due": _time(missed.first)}
    detail = RunDetail(tell_jupyter=_tells_jupyter(spec, False))
    return Telling(missed.row, why, detail.text(), _deliveries(spec, False, body, new_id))


def missed_words(missed: MissedSoFar, spec: ScheduleSpec) -> ErrorInfo:
    """How many, when and why."""
    zone = cron.zone(spec.when.timezone)
    first, last = (cron_words.local(moment, zone) for moment in (missed.first, missed.last))
    when = f"{missed.count} times from {first} to {last} have" if missed.count > 1 else f"its time {last} has"
    return ErrorInfo(
        code=ErrorCode.UNAVAILABLE, message=f"{when} passed {_WHY[missed.reason]}", next=_NEXT.get(missed.reason, "")
    )


def tell_end(
    run: RunRecord, spec: ScheduleSpec, reason: RunReason, why: ErrorInfo | None, cost: Decimal, new_id: Callable[[str], str],
    now: float,
) -> tuple[bool, list[Told]]:  # fmt: skip
    """Whether JupyterLab is to say how a run ended, and who else is told."""
    succeeded = reason is RunReason.DONE
    body = _body(spec, run.id, run.attempt, reason, why, run.instant, cost, now)
    return _tells_jupyter(spec, succeeded), _deliveries(spec, succeeded, body, new_id)


def tell_budget(
    run: RunRecord, spec: ScheduleSpec, why: ErrorInfo, told: Set[str], new_id: Callable[[str], str], now: float
) -> tuple[bool, list[Told], frozenset[str]]:
    """That the month's budget is spent: whether JupyterLab is to say it, who else is told, and all that were told then. Who was
    told already (`told`) hears no more of it."""
    wanted = {f"{one.channel}:{one.target}" for one in spec.notify if _wants(one, False)}
    fresh = [one for one in spec.notify if f"{one.channel}:{one.target}" not in told]
    body = _body(spec, run.id, run.attempt, RunReason.MONTH_BUDGET, why, run.instant, Decimal(0), now)
    body |= {"event": "budget_spent"}
    only = msgspec.structs.replace(spec, notify=fresh)
    return _tells_jupyter(only, False), _deliveries(only, False, body, new_id), frozenset({*told, *wanted})


def _wants(one: Notify, succeeded: bool) -> bool:
    return one.on_success if succeeded else one.on_failure


def _tells_jupyter(spec: ScheduleSpec, succeeded: bool) -> bool:
    return any(one.channel == "jupyter" and _wants(one, succeeded) for one in spec.notify)


def _deliveries(
    spec: ScheduleSpec, succeeded: bool, body: dict[str, object], new_id: Callable[[str], str]
) -> list[Told]:
    text = json.dumps(body)
    return [
        (new_id("d"), one.channel, one.target, text)
        for one in spec.notify
        if one.channel != "jupyter" and _wants(one, succeeded)
    ]


def _body(
    spec: ScheduleSpec, run: str, attempt: int, reason: RunReason, why: ErrorInfo | None, due: int, cost: Decimal,
    now: float,
) -> dict[str, object]:  # fmt: skip
    """What a webhook is sent, and a mail is made of."""
    return {
        "event": "run_ended", "schedule": spec.name, "notebook": spec.notebook, "run": run, "attempt": attempt,
        "state": RUN_END_STATE[reason].value, "reason": reason.value, "error": why.message if why is not None else "",
        "due": _time(due), "ended": _time(now), "cost_usd": shown(cost).removeprefix("$"),
    }  # fmt: skip


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
