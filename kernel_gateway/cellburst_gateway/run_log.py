"""What the log of a run's session says: outputs into the notebook, ends of calls, what became of the container.

Read from its beginning by each gateway that takes the run up, so that what is known of a run is in its row and in this log only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import (
    CallEnded,
    CellDone,
    CellStarted,
    ContainerStarted,
    FileChange,
    IOPub,
    Message,
    Notice,
    decode,
)
from cellburst_protocol.states import EndReason

from .logstore import LogStore
from .notebook_out import NotebookOut

READ_BYTES = 4 * 1024**2  # of the log at a time


class RunLog:
    """One attempt's log. `cells` are the notebook's cells by their calls; other calls are the gateway's own. Calls that
    `may_raise` end well all the same. `on_started`: the code of a cell has started; `note`: what is to be told of the container.

    `ended` has the ends of calls, `changed` the files that cells wrote.
    """

    def __init__(
        self, logs: LogStore, out: NotebookOut, *, cells: Mapping[str, int], may_raise: Collection[str],
        on_started: Callable[[], None], note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._logs, self._out, self._cells, self._may_raise = logs, out, cells, may_raise
        self._on_started, self._note = on_started, note
        self.last = 0  # the last event that was read
        self.ended: dict[str, CallEnded] = {}
        self.changed: dict[str, FileChange] = {}
        self.untouched = True  # no container was ever started for it
        self.names_lost = False  # a container came after another one
        self.dirty = False  # the notebook has something new
        self._container = ""

    def went_well(self, call: str) -> bool:
        """Whether a call has ended so that the next one may run."""
        ended = self.ended.get(call)
        if ended is None:
            return False
        return ended.reason is EndReason.DONE or (call in self._may_raise and ended.reason is EndReason.RAISED)

    def read(self, session: str) -> None:
        """Take what is new."""
        while True:
            last = self.last
            for event in self._logs.read(session, self.last, READ_BYTES):
                self.last = event.sequence
                try:
                    message = decode(event.head)
                except CellburstError:
                    continue  # of a newer gateway
                self._take(message, event.call, event.buffers)
            if self.last == last:
                return

    def _take(self, message: Message, call: str, buffers: list[bytes]) -> None:
        index = self._cells.get(call)
        match message:
            case ContainerStarted():
                self.untouched = False
                if self._container and message.start != "snapshot":
                    self.names_lost = True
                self._container = message.container.id
                for note in message.container.notes:
                    self._note(note)
            case CellStarted() if index is not None:
                self.untouched = False
                self._on_started()
            case CellDone() if index is not None:
                self.changed |= {file.path: file for file in message.files}
            case CallEnded():
                self.ended[call] = message
                self.dirty = True
            case Notice() if index is not None:
                self._out.say(index, message.text)
                self.dirty = True
            case IOPub() if index is not None and buffers:
                try:
                    plain: Any = json.loads(buffers[0])
                except (ValueError, RecursionError):
                    return
                if isinstance(plain, dict) and self._out.message(index, message.msg_type, plain):
                    self.dirty = True
