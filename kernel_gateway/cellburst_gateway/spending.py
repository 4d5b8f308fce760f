"""What was spent in which hour, by notebook and GPU. `by_hour` is pure: leases in, rows out.

A lease is billed by its worker's own seconds; they are laid from its opening on. Where the machine slept or the worker could
not be heard, fewer seconds were billed than the clock counts, and the sum still is what was billed.

Idle is what is left of a lease when its container's start and the times in which code ran are taken out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.messages import GetSpending, ReservedPrice, SetBudget, Spending, SpendingRow
from cellburst_protocol.resources import parse_usd

from .containers import ContainerDetail
from .ledger import cost_usd
from .store_rows import Owner
from .store_spending import SpentLease

if TYPE_CHECKING:
    from .hub import Hub
    from .prices import PriceTable

HOUR_SECONDS = 3600
MAX_LEASES = 20_000  # a year of a busy notebook; a row of 100 bytes each is 2 MB at most
MAX_ROWS = 4_000  # of an answer: half of what one control message carries
MAX_CALLS = 20_000  # read in some 30 ms, in which nothing else is answered
Times = list[tuple[float, float]]


def report(hub: Hub, workspace: str, asked: GetSpending) -> Spending:
    """Spending since a moment; running containers are carried to now."""
    hub.write_now()
    now = hub.clock.monotonic()
    limit = max(1, min(asked.count, MAX_LEASES))
    found = hub.store.leases_since(workspace, asked.since_unix_seconds, limit=limit + 1)
    live = {handle.lease: handle for handle in hub.fleet.containers.values()}
    billed = [
        replace(lease, billed_seconds=max(lease.billed_seconds, live[lease.lease].uptime(now)))
        if lease.lease in live and lease.closed is None
        else lease
        for lease in found[:limit]
    ]
    code = hub.store.code_since(workspace, asked.since_unix_seconds, limit=MAX_CALLS + 1)
    rows = by_hour(billed, asked.since_unix_seconds, *_code_of(code))
    rate = sum((lease.usd_per_second for lease in billed if lease.closed is None), Decimal(0))
    notes = sorted({lease.price_note for lease in billed if lease.price_note})
    return Spending(
        since_unix_seconds=asked.since_unix_seconds, rows=rows[-MAX_ROWS:], usd_per_second=format(rate, "f"),
        price_note="; ".join(notes), truncated=len(found) > limit or len(rows) > MAX_ROWS or len(code) > MAX_CALLS,
        reserved=reserved(rows, hub.prices), budget_usd_per_month=hub.store.budget(workspace),
    )  # fmt: skip


def set_budget(hub: Hub, owner: Owner, asked: SetBudget) -> None:
    """Keep what the workspace means to spend in a month. Raises RequestError (BAD_ARGUMENT)."""
    text = asked.usd_per_month.strip()
    usd = format(Decimal(parse_usd(text, "budget")), "f") if text else ""
    hub.store.set_budget(owner, usd, now=hub.clock.wall())


def reserved(rows: Iterable[SpendingRow], prices: PriceTable) -> list[ReservedPrice]:
    """What kept machines with the rows' GPUs cost, by type, where a price is known."""
    known = [(gpu, prices.reserved.get(gpu)) for gpu in sorted({row.gpu.partition(":")[0] for row in rows})]
    return [
        ReservedPrice(
            gpu=gpu, usd_per_hour=format(price.usd_per_second * HOUR_SECONDS, ".2f"), as_of=price.as_of, source=price.source
        )
        for gpu, price in known if price is not None
    ]  # fmt: skip


def _code_of(code: list[tuple[str, float, float | None]]) -> tuple[dict[str, Times], float]:
    """When code ran, by container, in order; and the moment from which on all of it is known."""
    times: dict[str, Times] = defaultdict(list)
    for container, start, end in reversed(code[:MAX_CALLS]):
        times[container].append((start, end if end is not None else math.inf))
    return times, code[MAX_CALLS - 1][1] if len(code) > MAX_CALLS else 0.0


def by_hour(
    leases: Iterable[SpentLease], since: float, code: Mapping[str, Times] | None = None, known_from: float = 0.0
) -> list[SpendingRow]:
    """Seconds and money by (hour, notebook, GPU), oldest hour first; what lies before `since` is left out.

    `code` is when code ran in which container, by start; None: nothing is called idle, as is nothing before `known_from`.
    """
    idle: dict[tuple[int, str, str, bool], float] = defaultdict(float)
    idle_usd: dict[tuple[int, str, str, bool], Decimal] = defaultdict(Decimal)
    seconds: dict[tuple[int, str, str, bool], float] = defaultdict(float)
    usd: dict[tuple[int, str, str, bool], Decimal] = defaultdict(Decimal)
    for lease in leases:
        gpu, simulated = _hardware(lease.detail)
        end = lease.opened + lease.billed_seconds
        for hour, part in _hours(max(lease.opened, since), end):
            key = (hour, lease.notebook, gpu, simulated)
            seconds[key] += part
            usd[key] += cost_usd(part, lease.usd_per_second)
        if code is None or lease.ready is None:
            continue
        for start, until in _gaps(max(lease.ready, since, known_from), end, code.get(lease.container, [])):
            for hour, part in _hours(start, until):
                idle[hour, lease.notebook, gpu, simulated] += part
                idle_usd[hour, lease.notebook, gpu, simulated] += cost_usd(part, lease.usd_per_second)
    return [
        SpendingRow(
            hour_unix_seconds=key[0], notebook=key[1], gpu=key[2], simulated=key[3], seconds=round(seconds[key], 3),
            usd=format(usd[key], "f"), idle_seconds=round(idle[key], 3), idle_usd=format(idle_usd[key], "f"),
        )
        for key in sorted(seconds)
    ]  # fmt: skip


def _gaps(start: float, end: float, taken: Times) -> Iterator[tuple[float, float]]:
    """What is left between `start` and `end`; `taken` is in the order of its starts, and may overlap."""
    for begun, over in taken:
        if begun > start:
            yield start, min(begun, end)
        start = max(start, over)
        if start >= end:
            return
    yield start, end


def _hours(start: float, end: float) -> Iterator[tuple[int, float]]:
    while start < end:
        hour = int(start // HOUR_SECONDS) * HOUR_SECONDS
        until = min(end, float(hour + HOUR_SECONDS))
        yield hour, until - start
        start = until


def _hardware(detail: str) -> tuple[str, bool]:
    try:
        gpus = msgspec.json.decode(detail, type=ContainerDetail).info.gpus
    except msgspec.MsgspecError:
        return "", False  # a container of an older version's record
    if not gpus:
        return "", False
    count = f":{len(gpus)}" if len(gpus) > 1 else ""
    return f"{gpus[0].type}{count}", any(gpu.simulated for gpu in gpus)
