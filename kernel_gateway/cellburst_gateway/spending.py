"""What was spent in which hour, by notebook and GPU. `by_hour` is pure: leases in, rows out.

A lease is billed by its worker's own seconds; they are laid from its opening on. Where the machine slept or the worker could
not be heard, fewer seconds were billed than the clock counts, and the sum still is what was billed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.messages import GetSpending, Spending, SpendingRow

from .containers import ContainerDetail
from .ledger import cost_usd
from .store_spending import SpentLease

if TYPE_CHECKING:
    from .hub import Hub

HOUR_SECONDS = 3600
MAX_LEASES = 20_000  # a year of a busy notebook; a row of 100 bytes each is 2 MB at most
MAX_ROWS = 4_000  # of an answer: half of what one control message carries


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
    rows = by_hour(billed, asked.since_unix_seconds)
    rate = sum((lease.usd_per_second for lease in billed if lease.closed is None), Decimal(0))
    notes = sorted({lease.price_note for lease in billed if lease.price_note})
    return Spending(
        since_unix_seconds=asked.since_unix_seconds, rows=rows[-MAX_ROWS:], usd_per_second=format(rate, "f"),
        price_note="; ".join(notes), truncated=len(found) > limit or len(rows) > MAX_ROWS,
    )  # fmt: skip


def by_hour(leases: Iterable[SpentLease], since: float) -> list[SpendingRow]:
    """Seconds and money by (hour, notebook, GPU), oldest hour first; what lies before `since` is left out."""
    seconds: dict[tuple[int, str, str, bool], float] = defaultdict(float)
    usd: dict[tuple[int, str, str, bool], Decimal] = defaultdict(Decimal)
    for lease in leases:
        gpu, simulated = _hardware(lease.detail)
        for hour, part in _hours(max(lease.opened, since), lease.opened + lease.billed_seconds):
            key = (hour, lease.notebook, gpu, simulated)
            seconds[key] += part
            usd[key] += cost_usd(part, lease.usd_per_second)
    return [
        SpendingRow(
            hour_unix_seconds=key[0], notebook=key[1], gpu=key[2], simulated=key[3], seconds=round(seconds[key], 3),
            usd=format(usd[key], "f"),
        )
        for key in sorted(seconds)
    ]  # fmt: skip


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
