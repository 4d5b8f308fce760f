"""`%modal attach`: follow a detached cell, or what an earlier kernel of this notebook left running.

A cell that ended is shown only if no kernel has shown its end yet, then whole.
"""

from __future__ import annotations

from queue import Empty

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import CallEnded, FindSession, RunCell, SessionFound
from cellburst_protocol.states import SessionState

from .card import Card
from .card_model import CardModel
from .cell_names import Names
from .errors_shown import shown
from .follow import Follower
from .hub import KERNEL_ID
from .notebook import Notebook
from .publish import shell_parent, tell
from .session import CellRun, Item, RemoteSession

REPLAY_SECONDS = 3.0  # without anything new: what is replayed is on its way already


def attach(notebook: Notebook, name: str) -> None:
    """Show the output of the session's running cell here until it ends; without one, take the earlier session over."""
    waiting = notebook.detached.get(name)
    if waiting is not None:
        waiting.attach()
        return
    current = notebook.hub.sessions.get(name)
    if current is not None and current.current is not None and not current.current.ended:
        _follow(notebook, current)  # this kernel stopped waiting for it while the gateway was away
        return
    found = notebook.hub.request(FindSession(notebook=notebook.hub.notebook, name=name))
    assert isinstance(found, SessionFound)
    rows = [r for r in found.sessions if r.state is not SessionState.ENDED and r.kernel_id != KERNEL_ID]
    if not rows:
        raise error(
            ErrorCode.NOT_FOUND, f"nothing to attach to: session {name!r} runs no cell and no earlier one is kept",
            next="`%modal status` shows what runs",
        )  # fmt: skip
    if current is not None:
        current.close()
        notebook.forget(current)
    session = notebook.hub.session(name, attach=rows[0].id)
    parked = "; it is parked, and the next cell brings it back" if rows[0].parked is not None else ""
    tell(f"attached to session {name!r}" + (f" with {', '.join(rows[0].names[:10])}" if rows[0].names else "") + parked)
    run = session.current
    if run is None:
        return
    if run.call or _choose_last(session, run):
        _follow(notebook, session)
    else:
        session.release()


def _choose_last(session: RemoteSession, run: CellRun) -> bool:
    """No cell runs: follow the session's last one, if nobody has seen its end. False if there is none to show."""
    last = session.info.last_sequence if session.info is not None else 0
    items: list[Item] = []
    while last and (not items or items[-1].sequence < last):
        try:
            item = run.queue.get(timeout=REPLAY_SECONDS)
        except Empty:
            break
        items += [item] if item.sequence else []
    calls = [item.call for item in items if item.call]
    if not calls or not _is_new_end(items, calls[-1], session.shown_before):
        return False
    run.request = RunCell(call=calls[-1], code="")
    session.send(run.request)  # a known call is answered with its value key, and not run again
    while not run.accepted:
        try:
            run.queue.get(timeout=REPLAY_SECONDS)
        except Empty:
            return False
    for item in items:
        run.queue.put(item)
    return True


def _is_new_end(items: list[Item], call: str, shown_before: int) -> bool:
    """Whether the call's end is there and was not shown by any kernel."""
    ends = [item.sequence for item in items if isinstance(item.message, CallEnded) and item.call == call]
    return bool(ends) and ends[-1] > shown_before


def _follow(notebook: Notebook, session: RemoteSession) -> None:
    run = session.current
    assert run is not None
    model = CardModel(asked="", began=notebook.clock())
    if session.info is not None:
        model.container = session.info.container
    card = Card(notebook.shell, model, visible=False, widget=False, states=notebook.states)
    parent = shell_parent(notebook.shell)
    try:
        Follower(notebook, session, run, Names(notebook, session), card, parent).follow()
    except CellburstError as problem:
        raise shown(problem) from None
    finally:
        session.release()
