"""What this kernel keeps between cells: the hub, its sessions' comms and names, the mirror, what waits to come home.

One per shell, made by `load_ipython_extension`; it costs nothing until the first `%%modal`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellburst_protocol.messages import CommMessage, MirrorSpec

    from .comms import SessionComms
    from .detached import DetachedCell
    from .environment_paths import Stamps
    from .hub import Hub
    from .notebook_uses import NotebookUses
    from .session import Item, RemoteSession
    from .widget_states import WidgetStates

MIRROR_AGE_SECONDS = 10.0  # how old the description of the environment may be; renewed after a cell, off its path

log = logging.getLogger(__name__)


class Notebook:
    """The state of one kernel's magics."""

    def __init__(self, shell: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self.shell = shell
        self.clock = clock
        self.detached: dict[str, DetachedCell] = {}  # by session name
        self.last_error_session: RemoteSession | None = None
        self.on_remote_error: Callable[[], None] = lambda: None
        self.offered: set[str] = set()
        self.beside: AbstractContextManager[None] = nullcontext()  # while a cell is followed
        self.place: tuple[str, str] | None = None  # the notebook's path and folder, where somebody said them
        self._hub: Hub | None = None
        self._uses: NotebookUses | None = None
        self._comms: dict[str, SessionComms] = {}
        self._states: WidgetStates | None = None
        self._mirrors: dict[tuple[str, ...], MirrorSpec] = {}
        self._mirror_stamps: dict[tuple[str, ...], Stamps] = {}
        self._mirror_read: dict[tuple[str, ...], float] = {}
        self._mirror_lock = threading.Lock()

    @property
    def hub(self) -> Hub:
        """The connection, made at first use."""
        if self._hub is None:
            from .environment import find_notebook
            from .hub import Hub

            path, folder = self.place or find_notebook()
            self._hub = Hub(path, folder, self._late)
        return self._hub

    @property
    def uses(self) -> NotebookUses:
        """Volumes and secrets that its metadata names."""
        if self._uses is None:
            from .environment import find_notebook
            from .notebook_uses import NotebookUses

            self._uses = NotebookUses(find_notebook()[0])
        return self._uses

    @uses.setter
    def uses(self, told: NotebookUses) -> None:
        self._uses = told

    @property
    def has_hub(self) -> bool:
        """Whether anything remote was used yet."""
        return self._hub is not None

    @property
    def states(self) -> WidgetStates:
        """States of remote widgets, for page reloads."""
        if self._states is None:
            from .widget_states import WidgetStates

            self._states = WidgetStates()
        return self._states

    def comms(self, session: RemoteSession) -> SessionComms:
        """The relay of a session's comms."""
        found = self._comms.get(session.name)
        if found is None:
            from .comms import SessionComms

            def send(message: CommMessage, buffers: Any) -> None:
                session.send(message, buffers)

            found = self._comms[session.name] = SessionComms(self.shell, send, self.states)
        return found

    def forget(self, session: RemoteSession) -> None:
        """A session ended: its widgets are closed and its name is free."""
        self.comms(session).close_all()
        session.there.clear()
        self.hub.sessions.pop(session.name, None)
        self._comms.pop(session.name, None)

    def mirror(self, mounts: tuple[str, ...]) -> MirrorSpec:
        """This kernel's environment; read now only if it never was, or something was installed, removed or edited since."""
        from .environment_paths import installed_stamp

        if mounts not in self._mirrors or self._mirror_stamps.get(mounts) != installed_stamp():
            self._read_mirror(mounts)
        return self._mirrors[mounts]

    def renew_mirrors(self) -> None:
        """After a cell: read the environment again in the background, when the last reading is old."""
        now = self.clock()
        old = [m for m, read in self._mirror_read.items() if now - read > MIRROR_AGE_SECONDS]
        for mounts in old:
            self._mirror_read[mounts] = now
            self.hub.loop.loop.call_soon_threadsafe(self.hub.loop.loop.run_in_executor, None, self._read_mirror, mounts)

    def _read_mirror(self, mounts: tuple[str, ...]) -> None:
        from .environment import collect_environment
        from .environment_paths import read_stamp

        with self._mirror_lock:
            self._mirrors[mounts] = collect_environment(notebook_folder=str(self.hub.folder), mounts=list(mounts))
            self._mirror_read[mounts], self._mirror_stamps[mounts] = self.clock(), read_stamp()

    def _late(self, session: RemoteSession, item: Item) -> None:
        """On the loop: an event of no running cell (a thread that still prints, a widget's answer, the container's end)."""
        from cellburst_protocol.messages import ContainerEnded, ContainerStarted, IOPub
        from cellburst_protocol.states import EndReason

        from .publish import read_message
        from .relay import show_raw

        try:
            if isinstance(item.message, ContainerEnded):
                if item.message.reason is not EndReason.PARKED:  # else all of it may come back
                    self.comms(session).close_all()
                    session.there.clear()
            elif isinstance(item.message, ContainerStarted) and item.message.start != "snapshot":
                self.comms(session).close_all()
                for name in list(session.there):
                    if item.message.start != "names" or any(lost.name == name for lost in item.message.lost):
                        session.there.pop(name, None)
            elif isinstance(item.message, IOPub) and item.message.msg_type not in ("status", "execute_input"):
                message, own = read_message(item.buffers)
                if item.message.msg_type.startswith("comm_"):
                    self.comms(session).relay(item.message.msg_type, message, own)
                else:
                    show_raw(self.shell, item.message.msg_type, message, own, message.parent_header)
        except Exception:
            # On the link's thread: a message that cannot be shown must not end the session's reader.
            log.exception("a late message could not be shown")
