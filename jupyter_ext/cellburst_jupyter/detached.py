"""A detached cell: its text arrives in one display under the cell that started it, `%modal attach` shows it in full.

A front end drops messages for a cell that is over, except updates of a display; so the text goes there, its end if it is
long. What the cell showed is kept here until it is attached to or brought home.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import (
    BuildLog,
    CallEnded,
    CellRefused,
    CellStarted,
    IOPub,
    NamesNeeded,
    Phase,
    Queued,
    UsageReport,
)

from .publish import read_message, send_raw, tell
from .session import Doing, Failed, Item

if TYPE_CHECKING:
    from .follow import Follower
    from .notebook import Notebook

UPDATE_SECONDS = 0.3
TAIL_CHARACTERS = 20_000  # what one display shows of a long text
KEPT_BYTES = 32 * 1024 * 1024  # what is kept for attaching; older text is dropped first
_NOT_KEPT = (UsageReport, Phase, BuildLog, Doing)


class DetachedCell:
    """One detached call of a session. `deliver` runs on the loop, the rest on the main thread."""

    def __init__(self, notebook: Notebook, follower: Follower) -> None:
        self.follower = follower
        self._notebook = notebook
        self._display_id = f"cellburst-detached-{uuid.uuid4().hex[:12]}"
        self._lock = threading.Lock()
        self._items: list[tuple[Item, int]] = []
        self._bytes = 0
        self._text = ""
        self._status = "detached, starting"
        self._scheduled = False
        self._queue: SimpleQueue[Item] | None = None
        self.ended: CallEnded | None = None
        self._ended_sequence = 0  # acknowledged when it was brought home: a kernel that attaches later shows it if not

    # -- main thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Show the display and send the call."""
        session, run = self.follower.session, self.follower.run
        data = {"text/plain": self._shown()}
        self._notebook.shell.display_pub.publish(data=data, metadata={}, transient={"display_id": self._display_id})
        run.deliver = self.deliver
        session.start(run)
        self._notebook.detached[session.name] = self

    def attach(self) -> None:
        """Show all of it in the running cell, and follow it to its end. Raises as the cell itself would have."""
        run = self.follower.run
        with self._lock:
            run.queue = SimpleQueue()
            for item, _ in self._items:
                run.queue.put(item)
            self._queue = run.queue
        self._notebook.detached.pop(self.follower.session.name, None)
        self.follower.follow()

    def bring_home(self) -> None:
        """If it has ended by itself: say so once and write its names back. Its output stays in its own display."""
        if self.ended is None:
            return
        session = self.follower.session
        self._notebook.detached.pop(session.name, None)
        session.finished(self.follower.run)
        for item, _ in self._items:
            if not isinstance(item.message, IOPub | NamesNeeded | CallEnded | CellRefused | Failed):
                self.follower.take(item)
        session.ack(self._ended_sequence)
        try:
            self.follower.conclude(self.ended)
        except CellburstError as problem:
            tell(f"the detached cell of session {session.name!r} ended: {problem}", warning=True)
        except Exception as problem:
            # The remote exception itself: it was shown in the display, and must not stop the cell that runs now.
            tell(
                f"the detached cell of session {session.name!r} raised {type(problem).__name__}: {problem}",
                warning=True,
            )
        self.follower.names.finished()

    # -- loop ------------------------------------------------------------------------------------------------------

    def deliver(self, item: Item) -> None:
        """Keep an item, pass it on to who is attached, or bring the display up to date soon."""
        with self._lock:
            if self._queue is not None:
                self._queue.put(item)
                return
            self._keep(item)
        message = item.message
        if isinstance(message, Queued):
            self._status = f"detached, waiting: {message.waiting_for}"
        elif isinstance(message, Doing):
            self._status = f"detached, {message.text}"
        elif isinstance(message, BuildLog):
            self._status = f"detached, building its image, step {message.step} of {message.steps}: {message.title}"
        elif isinstance(message, CellStarted):
            self._status = "detached, running"
        if isinstance(message, NamesNeeded):
            asyncio.get_running_loop().run_in_executor(None, self.follower.answer_names, message)
        elif isinstance(message, CallEnded):
            self.ended, self._ended_sequence = message, item.sequence
            self._status = f"ended: {message.reason.value}, ran {message.run_seconds:.1f} s"
        elif isinstance(message, Failed | CellRefused):
            problem = message.error.info if isinstance(message, Failed) else message.error
            self._status = problem.text()
            self._notebook.detached.pop(self.follower.session.name, None)
            self.follower.session.finished(self.follower.run)
        if item.sequence and not isinstance(message, CallEnded):
            self.follower.session.ack(item.sequence)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(UPDATE_SECONDS, self._update)

    def _keep(self, item: Item) -> None:
        if isinstance(item.message, _NOT_KEPT):
            return
        size = sum(len(memoryview(buffer)) for buffer in item.buffers)
        self._items.append((item, size))
        self._bytes += size
        while self._bytes > KEPT_BYTES and len(self._items) > 1:
            index = next((i for i, (kept, _) in enumerate(self._items) if isinstance(kept.message, IOPub)), None)
            if index is None:
                return
            self._bytes -= self._items.pop(index)[1]
        if isinstance(item.message, IOPub):
            self._text = (self._text + _text_of(item))[-TAIL_CHARACTERS:]

    def _update(self) -> None:
        self._scheduled = False
        content: dict[str, Any] = {
            "data": {"text/plain": self._shown()},
            "metadata": {},
            "transient": {"display_id": self._display_id},
        }
        header = self.follower.run.header
        send_raw(self._notebook.shell, "update_display_data", content, parent={"header": header})

    def _shown(self) -> str:
        return f"{self._text}\n[{self._status}]".lstrip("\n")


def _text_of(item: Item) -> str:
    """What a message says in plain text."""
    assert isinstance(item.message, IOPub)
    if item.message.msg_type not in ("stream", "display_data", "execute_result", "error"):
        return ""
    content = read_message(item.buffers)[0].content
    if item.message.msg_type == "stream":
        return str(content.get("text", ""))
    if item.message.msg_type == "error":
        return "\n".join(content.get("traceback", [])) + "\n"
    text = content.get("data", {}).get("text/plain", "")
    return f"{text}\n" if text else ""
