"""Answers for people: status, logs, cost."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import CostLine, CostReport, GetCost, GetLogs, Logs, Status

from .containers import ContainerDetail
from .session import Session
from .store_rows import SessionCost

if TYPE_CHECKING:
    from .hub import Hub

MAX_LOG_BYTES = 512 * 1024  # half a control message; JSON may double it


def status(hub: Hub, workspace: str) -> Status:
    """The whole picture."""
    rows, prices = hub.fleet.rows(), hub.prices.gpus
    types = sorted({gpu.type for row in rows for gpu in row.inventory.gpus} & prices.keys())
    return Status(
        gateway_pid=os.getpid(), gateway_url=hub.url, version=hub.version,
        uptime_seconds=round(hub.clock.monotonic() - hub.started_monotonic, 1), data_folder=str(hub.config.data_folder),
        workers=rows, sessions=hub.sessions.rows(workspace),
        queue=[*hub.build_leases.words(workspace), *hub.placer.words(workspace)],
        gpu_usd_per_second={name: format(prices[name].usd_per_second, "f") for name in types},
        ended=hub.endings.of(workspace),
    )  # fmt: skip


def logs(hub: Hub, workspace: str, asked: GetLogs) -> Logs:
    """What a session printed. Raises RequestError (NOT_FOUND)."""
    session_id = asked.session
    if not session_id:
        found = hub.sessions.find(workspace, asked.notebook, asked.name)
        if not found:
            raise _no_session(f"notebook {asked.notebook[:200]!r} has no live session {asked.name[:80]!r}")
        session_id = found[0].id
    try:
        record = hub.store.get_session(session_id)  # also one that has ended
    except CellburstError:
        record = None
    if record is None or record.owner.workspace != workspace:
        raise _no_session(f"there is no session {session_id[:80]!r}")
    text, truncated = hub.logs.text(record.id, max(1, min(asked.max_bytes, MAX_LOG_BYTES)))
    return Logs(text=text, truncated=truncated)


def _no_session(text: str) -> CellburstError:
    return error(ErrorCode.NOT_FOUND, text, next="`%modal status` lists the sessions there are")


def cost(hub: Hub, workspace: str, asked: GetCost) -> CostReport:
    """What was spent. The uptime of running containers is carried to now; the record has it to within seconds."""
    hub.write_now()
    now = hub.clock.monotonic()
    lines, total, notes = [], Decimal(0), set()
    for spent in hub.store.cost_by_session(workspace, asked.notebook or None, asked.session or None):
        extra, seconds = _since_recorded(hub, spent.session, now)
        usd = spent.usd + extra
        total += usd
        notes.add(spent.price_note)
        session = hub.sessions.get(spent.session)
        lines.append(
            CostLine(
                session=spent.session, notebook=spent.notebook, name=spent.name, seconds=round(spent.seconds + seconds, 3),
                usd=format(usd, "f"), running=spent.running, usd_per_second=format(spent.usd_per_second, "f"),
                what=_hardware(session, spent), parked=_is_parked(session),
            )
        )  # fmt: skip
    return CostReport(total_usd=format(total, "f"), lines=lines, price_note="; ".join(sorted(n for n in notes if n)))


def _since_recorded(hub: Hub, session_id: str, now: float) -> tuple[Decimal, float]:
    extra, seconds = Decimal(0), 0.0
    for handle in hub.fleet.containers.values():
        if handle.session == session_id:
            more = max(0.0, handle.uptime(now) - handle.touched_seconds)
            seconds += more
            extra += handle.usd_per_second * Decimal(str(round(more, 3)))
    return extra, seconds


def _is_parked(session: Session | None) -> bool:
    return session is not None and session.container is None and session.shown_parked is not None


def _hardware(session: Session | None, spent: SessionCost) -> str:
    """What the session runs on, or what its last container ran on."""
    if session is not None and session.container is not None:
        info = session.container.detail.info
    else:
        try:
            info = msgspec.json.decode(spent.detail, type=ContainerDetail).info
        except msgspec.MsgspecError:
            return ""  # a container of an older version's record
    gpus = ", ".join(f"{gpu.type}{' (simulated)' if gpu.simulated else ''}" for gpu in info.gpus)
    return f"{gpus or 'no GPU'}, {info.cpu:g} cores, {info.memory_mib} MiB"
