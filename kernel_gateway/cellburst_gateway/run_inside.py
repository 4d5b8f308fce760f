"""`%%modal` cells of a run: sessions inside the run's own, which its code opens over the link that its container has.

Here is what the run has to know of them: how they are made possible, and what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from cellburst_protocol.modal_lines import notebook_uses
from cellburst_protocol.notebooks import CodeCell
from cellburst_protocol.schedules import ScheduleSpec
from cellburst_protocol.states import CallState

from .container_link import inner_notebook, outer_of
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub

NO_MACHINES = "%%modal cells ran in the run's own session, not on machines of their own"


def wants_machines(spec: ScheduleSpec, cells: Sequence[CodeCell]) -> bool:
    """Whether a cell is to have a machine of its own."""
    return spec.modal_cells == "own" and any(cell.asked is not None for cell in cells)


def begin_code(spec: ScheduleSpec, notebook: Mapping[str, Any]) -> str:
    """What runs before the notebook's first cell; it raises where `%%modal` cannot work. It binds no name."""
    told = f"{spec.notebook!r}, {notebook_uses(notebook)!r}"
    return f'__import__("cellburst_jupyter.scheduled_run", fromlist=["begin"]).begin(get_ipython(), {told})'


def sessions_inside(hub: Hub, outer: str) -> Iterator[Session]:
    """Those that live."""
    return (session for session in hub.sessions if outer_of(session.record.notebook) == outer)


def waits_inside(hub: Hub, outer: str) -> bool:
    """Whether a session inside one waits for a place, on a fleet that is there."""
    waits = any(
        inner.call is not None and inner.call.state is CallState.QUEUED and inner.container is None
        for inner in sessions_inside(hub, outer)
    )
    return waits and any(worker.reachable for worker in hub.fleet.workers.values())


def cost_inside(hub: Hub, session: Session) -> Decimal:
    """What all sessions inside one cost so far, to now."""
    now = hub.clock.monotonic()
    total = hub.store.cost_inside(session.record.owner.workspace, inner_notebook(session.id, ""))
    for inner in sessions_inside(hub, session.id):
        handle = inner.container
        if handle is not None:
            more = max(0.0, handle.uptime(now) - handle.touched_seconds)  # the record has it to within seconds
            total += handle.usd_per_second * Decimal(str(round(more, 3)))
    return total


def rate_of(hub: Hub, session: Session) -> Decimal:
    """What a second of a session and of all inside it costs now, in US dollars."""
    handles = [one.container for one in (session, *sessions_inside(hub, session.id)) if one.container is not None]
    return sum((handle.usd_per_second for handle in handles), Decimal(0))
