"""Following one call on the main thread: its events are shown, its questions answered, its end made the cell's end.

The wait is a queue with a short timeout, so that SIGINT is seen; a SIGINT is passed on as an Interrupt and the following
goes on until CallEnded, because a cell that is left behind would make the next one wait for a zombie.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.mac import sign, verify
from cellburst_protocol.messages import (
    BuildLog,
    CallEnded,
    CellAccepted,
    CellDone,
    CellRefused,
    CellStarted,
    ContainerEnded,
    ContainerReady,
    ContainerStarted,
    Interrupt,
    IOPub,
    NamesData,
    NamesNeeded,
    Notice,
    Phase,
    Queued,
    StdinReply,
    StdinRequest,
    UsageReport,
)
from cellburst_protocol.states import EndReason

from .card import SHOW_AFTER_SECONDS, Card
from .card_model import START_PHASES
from .cell_names import Names
from .errors_shown import RemoteError, ended_without_error, interrupted, shown
from .first_use import first_use_line
from .interrupts import Interrupts
from .notebook import Notebook
from .publish import kernel_of, tell
from .relay import Relay
from .session import CellRun, Doing, Failed, Item, LinkState, RemoteSession

POLL_SECONDS = 0.1
ACK_EVERY = 256  # events; also whenever nothing waits
SHOWN_NAMES = 10
RECONNECTING_SECONDS = 2.0  # a shorter gap is not worth a line
_OF_ANY_CALL = (IOPub, ContainerStarted, ContainerEnded, Notice)  # an earlier call's threads may still print
_STOPPED = frozenset({EndReason.INTERRUPTED, EndReason.CANCELLED})


class Follower:
    """Follows one call to its end. `clock` is monotonic seconds."""

    def __init__(
        self,
        notebook: Notebook,
        session: RemoteSession,
        run: CellRun,
        names: Names,
        card: Card,
        parent: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.notebook = notebook
        self.session = session
        self.run = run
        self.names = names
        self.card = card
        msg_id = str(run.header.get("msg_id", ""))
        self.relay = Relay(notebook.shell, notebook.comms(session), parent, msg_id)
        self._parent = parent
        self._clock = clock
        self._interrupts = Interrupts(self.interrupt)
        self._since_ack = 0
        self._last_sequence = 0
        self._began = clock()
        self._down_since: float | None = None
        self._told_down = False
        self._level_told = 0
        self._done: tuple[CellDone, list[Any]] | None = None
        self._failure: RemoteError | None = None
        card.on_stop = self._interrupts.interrupt

    # -- the wait --------------------------------------------------------------------------------------------------

    def follow(self, start: bool = False) -> None:
        """Show everything until the call has ended. Raises RemoteError or a CellburstError that shows itself."""
        with self._interrupts, self.notebook.beside:
            if start:
                self.session.start(self.run)
            try:
                ended = self._until_end()
            finally:
                self.relay.flush()
                self.session.ack(self._last_sequence)
                if self.run.ended:
                    self.session.finished(self.run)
        try:
            self.conclude(ended)
        finally:
            self.names.finished()

    def interrupt(self, level: int) -> None:
        """Pass an interrupt on; safe in a signal handler and on any thread."""
        self.notebook.hub.notify(Interrupt(session=self.session.id, call=self.run.call, level=level))

    def _until_end(self) -> CallEnded:
        queue = self.run.queue
        while True:
            try:
                item = queue.get_nowait()
            except Empty:
                self._idle()
                try:
                    item = queue.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
            if (ended := self.take(item)) is not None:
                return ended

    def _idle(self) -> None:
        self.relay.flush()
        if self._since_ack:
            self._since_ack = 0
            self.session.ack(self._last_sequence)
        now = self._clock()
        if not self.card.shown and not self.relay.shown_anything and now - self._began > SHOW_AFTER_SECONDS:
            self.card.show(now)
        self.card.tick(now)
        if self._down_since is not None and not self._told_down and now - self._down_since > RECONNECTING_SECONDS:
            self._told_down = True
            tell("the link to the gateway is lost, reconnecting…; the cell runs on")
        if self._down_since is not None and self._interrupts.level > self._level_told:
            raise error(
                ErrorCode.LINK_CLOSED, "stopped waiting: the gateway cannot be reached, and the cell may still run",
                next="`%modal attach` follows it again",
            )  # fmt: skip
        self._tell_level()

    def _tell_level(self) -> None:
        if self._interrupts.level > self._level_told:
            self._level_told = self._interrupts.level
            if self._level_told == 2:
                tell(
                    "interrupted again: if the code does not stop within 2 s its process is killed, and the names there are lost"
                )
            elif self._level_told >= 3:
                tell("the process there is killed now, and the names there are lost")

    # -- events ----------------------------------------------------------------------------------------------------

    def take(self, item: Item) -> CallEnded | None:
        """Show one item; the call's end is returned."""
        message = item.message
        if item.sequence:
            self._last_sequence = max(self._last_sequence, item.sequence)
            self._since_ack += 1
            if self._since_ack >= ACK_EVERY:
                self._since_ack = 0
                self.session.ack(self._last_sequence)
        if item.call and item.call != self.run.call and (self.run.adopted or not isinstance(message, _OF_ANY_CALL)):
            return None  # replayed from a call before this one
        match message:
            case IOPub():
                self.relay.iopub(message, item.buffers)
            case CellDone():
                self._done = (message, list(item.buffers[1:]))
                self._failure = self.relay.done(message, item.buffers)
            case CallEnded():
                return message
            case Failed():
                raise message.error
            case CellRefused():
                raise from_info(message.error)
            case CellAccepted():
                if self._interrupts.level:  # it overtook the call on its way
                    self.interrupt(self._interrupts.level)
            case StdinRequest():
                self._ask(message)
            case NamesNeeded():
                self.answer_names(message)
            case LinkState():
                self._link(message.up)
            case Notice():
                self.relay.flush()
                tell(message.text, warning=message.level == "warning")
            case _:
                self._progress(item)
        return None

    def _progress(self, item: Item) -> None:
        model, now = self.card.model, self._clock()
        match item.message:
            case Phase(name=name, seconds=seconds):
                model.phase(name, seconds, now)
                if name not in START_PHASES:
                    return
            case Queued(position=position, waiting_for=what):
                model.waiting = f"waiting, {_ordinal(position)} in line: {what}"
                self.card.refresh(now)
            case Doing(text=text):
                model.waiting = text
                self.card.show(now)
                self.card.refresh(now)
                return
            case BuildLog():
                if model.build(item.message):
                    self.card.show(now)
                    self.card.refresh(now)
                return
            case ContainerStarted():
                self._container_started(item.message)
            case ContainerReady(phases=phases, notes=notes):
                model.took(phases)
                model.note(notes)
            case ContainerEnded(reason=reason):
                if reason is not EndReason.PARKED:  # else its widgets may come back with it
                    self.notebook.comms(self.session).close_all()
                return
            case CellStarted():
                model.running_since = now
                self.names.cell_started()
                return
            case UsageReport():
                model.take_usage(item.message)
                return
            case _:
                return
        self.card.show(now)

    def _container_started(self, started: ContainerStarted) -> None:
        model = self.card.model
        model.container = started.container
        model.took(started.phases)
        model.note(started.container.notes)
        model.resumed = started.start in ("snapshot", "names")
        moved = self.session.image not in (None, started.container.image) and not started.mirror_identity
        if started.mirror_identity and self.session.image != started.container.image and started.container.image:
            where = started.container.machine or "another machine"
            tell(f"this environment was built on {where}; what is written there comes home with `%modal get FILE`")
        self.session.image = started.container.image
        for line in started_lines(started, sorted(self.session.there), moved=moved):
            tell(line, warning=True)
        if started.start != "snapshot":
            self.notebook.comms(self.session).close_all()
            for name in list(self.session.there) if started.names_lost else [lost.name for lost in started.lost]:
                self.session.there.pop(name, None)
        self.names.container_started(started)
        if self.notebook.place is None:  # else a run of its own, which nobody uses for the first time
            line = first_use_line(started.container, self.notebook.hub.embedded)
            if line:
                tell(line)

    def _link(self, up: bool) -> None:
        if up and self._told_down:
            tell("reconnected")
        self._down_since, self._told_down = (None if up else self._clock()), False

    def _ask(self, request: StdinRequest) -> None:
        """The code waits for a line: ask the person, here on the main thread, which owns the stdin socket."""
        self.relay.flush()
        kernel = kernel_of(self.notebook.shell)
        ask = (kernel.getpass if request.password else kernel.raw_input) if kernel is not None else input
        try:
            with self._interrupts.raised_inside():
                reply = StdinReply(call=self.run.call, value=ask(request.prompt))
        except KeyboardInterrupt:
            reply = StdinReply(call=self.run.call, eof=True)
        except EOFError:
            reply = StdinReply(call=self.run.call, value="\x04")  # as Jupyter encodes it
        self.session.send(reply)

    def answer_names(self, needed: NamesNeeded) -> None:
        """The container lacks some groups: send them, sealed with the call's key."""
        try:
            ready = self.names.payload(needed.groups)
        except CellburstError:
            self.interrupt(1)  # the call waits for values that will not come
            raise
        mac = sign(self.run.value_key, "in", ready.groups)
        self.session.send(NamesData(call=self.run.call, groups=ready.groups, mac=mac), ready.buffers)

    # -- the end ---------------------------------------------------------------------------------------------------

    def conclude(self, ended: CallEnded) -> None:
        """Bring names home, say what stayed; raise how the cell ended."""
        model = self.card.model
        model.ended = ended
        model.took(ended.phases)
        if self._failure is not None:
            self.notebook.last_error_session = self.session
            self.notebook.on_remote_error()
            raise self._failure
        if self._done is not None and self._done[0].status == "ok":
            self._home(*self._done)
        elif ended.error is not None and ended.reason not in _STOPPED:
            raise shown(from_info(ended.error))
        elif ended.reason in _STOPPED:
            raise interrupted(before_start=not self.run.started)
        elif ended.reason is not EndReason.DONE:
            raise shown(from_info(ended_without_error(ended.reason.value)))

    def _home(self, done: CellDone, inline: list[Any]) -> None:
        if done.home:
            try:
                verify(self.run.value_key, "out", done.home, done.mac)
            except CellburstError as broken:
                raise shown(broken) from None
        for line in self.names.write_back(done, inline):
            tell(line)


def started_lines(started: ContainerStarted, there: list[str], *, moved: bool = False) -> list[str]:
    """What a session lost with its last container, if it did: a line, and one for each name that did not come back. `moved`:
    it was given another image, so that nothing but names could come."""
    if started.names_lost:
        which = f": {', '.join(there[:SHOWN_NAMES])}" if there else ""
        return [f"the session's earlier container is gone, and the names that lived there{which}"]
    lines = []
    if started.start == "names" and moved:
        lines.append(
            "the session is in another image now, with its names: its threads, open files and widgets are gone"
        )
    elif started.start == "names":
        why = next((f" ({phase.detail})" for phase in started.phases if "unusable" in phase.detail), "")
        lines.append(f"the session came back with its names only{why}: its threads, open files and widgets are gone")
    for name in started.lost[:SHOWN_NAMES]:
        why = name.detail.removeprefix(f"{name.name}: ").removeprefix(f"{name.type}: ")
        lines.append(f"did not come back: {name.name} ({name.type})" + (f": {why}" if why else ""))
    if len(started.lost) > SHOWN_NAMES:
        lines.append(f"did not come back: {len(started.lost) - SHOWN_NAMES} more names")
    return lines


def _ordinal(position: int) -> str:
    if position <= 1:
        return "next"
    return f"{position}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(position % 10 if position // 10 % 10 != 1 else 0, 'th') }"
