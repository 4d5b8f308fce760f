"""What may not wait for a running cell: stdin replies, comms, questions. One thread reads the side socket all the time.

Comm messages that come while a cell runs are handled on this thread, as on an ipykernel subshell: a slider moves while its
cell loops. Others come by the work socket, in order with cells, and are handled on the main thread. One at a time.
"""

from __future__ import annotations

import contextvars
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from . import wire
from .cell_channel import Sender
from .cell_complete import Completer

ALIVE_SECONDS = 0.5  # the supervisor takes 2 s without a sign for a held GIL
NUDGE_SECONDS = (0.01, 0.1)  # after an interrupt; twice, as the first may come just as early
# How long a cell that computes keeps the GIL when completion or inspection wants it, which is at each file it looks at. Python's
# own 5 ms make 1 s of 25 modules that are imported for the first inspection.
SWITCH_SECONDS = 0.0002
_ALIVE = {"t": "executor_alive"}


class Side:
    """The side socket. `values` answers names and fetch; `wake_loop` makes the main thread's event loop look again; `is_busy`
    says whether a cell runs."""

    def __init__(
        self, connection: socket.socket, kernel: Any, values: Any, wake_loop: Callable[[], object],
        is_busy: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._sender = Sender(connection)
        self._kernel = kernel
        self._completer = Completer(kernel, is_busy)
        self._main = threading.get_ident()
        self._values = values
        self._wake_loop = wake_loop
        self._comms: deque[tuple[str, list[memoryview]]] = deque()
        self._comm_lock = threading.Lock()
        self.stdin: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], list[Any]]]] = {
            "complete": self._complete, "inspect": self._inspect, "names": self._names, "fetch": self._fetch,
            "widgets": self._widgets,
        }  # fmt: skip

    def start(self) -> None:
        """Start the reading thread and the one that gives signs of life."""
        for target, name in ((self._read, "cellburst-side"), (self._give_signs, "cellburst-alive")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
            thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
            thread.start()

    def comm(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        """Handle a comm message after those that wait; if another thread is at those, it takes this one too."""
        self._comms.append((message["msg_type"], buffers))
        while self._comms and self._comm_lock.acquire(blocking=False):
            try:
                while self._comms:
                    contextvars.copy_context().run(self._comm, *self._comms.popleft())
            finally:
                self._comm_lock.release()

    def nudge(self) -> None:
        """Wake the main thread out of a blocking call, so that a SIGINT that came right before that call is seen.

        Python only notes a signal and handles it between two instructions: one that comes after the last such place and
        before the system call would wait as long as the call. A second signal, which does nothing, ends the call. And
        what ipykernel's handler for async cells puts into the loop does not wake the loop.
        """
        signal.pthread_kill(self._main, signal.SIGURG)
        self._wake_loop()

    # -- the threads -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        decoder = wire.Decoder()
        while True:
            count = self._connection.recv_into(decoder.scratch)
            if not count:
                os._exit(1)  # the supervisor is gone, nobody will hear of this process again
            for body in decoder.feed(decoder.scratch[:count]):
                head, buffers = wire.split(body)
                try:
                    self._handle(wire.decode_head(head), buffers)
                except Exception:  # one message that fails must not end the thread
                    traceback.print_exc(file=sys.__stderr__)

    def _give_signs(self) -> None:
        while True:
            self._sender.send(_ALIVE)
            time.sleep(ALIVE_SECONDS)

    def _handle(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        tag = message["t"]
        if tag == "stdin_reply":
            self.stdin.put(message)
        elif tag == "interrupted":
            for delay in NUDGE_SECONDS:
                timer = threading.Timer(delay, self.nudge)
                timer.daemon = True
                timer.start()
        elif tag == "comm":
            self.comm(message, buffers)
        elif tag == "side_request" and message["kind"] == "fetch":
            # pickling can take long and completion should not wait for it
            threading.Thread(target=self._answer, args=(message,), name="cellburst-fetch", daemon=True).start()
        elif tag == "side_request":
            self._answer(message)

    # -- comms -----------------------------------------------------------------------------------------------------

    def _comm(self, msg_type: str, buffers: list[memoryview]) -> None:
        parts = json.loads(bytes(buffers[0]))
        header = {**parts.get("header", {}), "msg_type": msg_type}
        message = {
            "header": header, "msg_id": header.get("msg_id", ""), "msg_type": msg_type, "parent_header": {},
            "metadata": parts.get("metadata", {}), "content": parts["content"], "buffers": [bytes(b) for b in buffers[1:]],
        }  # fmt: skip
        kernel = self._kernel
        shell_parent = getattr(kernel, "_shell_parent", None)
        if isinstance(shell_parent, contextvars.ContextVar):
            shell_parent.set(message)  # of this context only: the running cell keeps its own
        if hasattr(kernel.shell, "set_thread_parent"):
            kernel.shell.set_thread_parent(message)
            self._dispatch(msg_type, message)
        else:  # before ipykernel 7.4 a parent is set for all threads: put the cell's back
            before = kernel.shell.get_parent()
            kernel.shell.set_parent(message)
            self._dispatch(msg_type, message)
            kernel.shell.set_parent(before)

    def _dispatch(self, msg_type: str, message: dict[str, Any]) -> None:
        try:
            self._kernel.shell_handlers[msg_type](None, [], message)
        except Exception:
            self._kernel.log.exception("Exception in %s", msg_type)
        sys.stdout.flush()
        sys.stderr.flush()

    # -- questions -------------------------------------------------------------------------------------------------

    def _answer(self, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"t": "side_reply", "id": message["id"]}
        buffers: list[Any] = []
        try:
            answer = self._answers.get(message["kind"])
            if answer is None:
                raise ValueError(f"the executor does not answer {message['kind']!r}")
            fields, buffers = answer(message.get("content", {}))
            reply.update(fields)
            self._sender.send(json.loads(self._kernel.session.pack(reply)), buffers)
        except Exception as why:  # the user's objects are asked, and may raise anything
            code = "request.unknown_name" if isinstance(why, KeyError) else "user_code.raised"
            text = f"no name {why} in the session" if isinstance(why, KeyError) else f"{type(why).__name__}: {why}"
            reply = {"t": "side_reply", "id": message["id"], "error": {"code": code, "message": text[:2000]}}
            self._sender.send(reply)

    def _complete(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        code = content.get("code", "")
        with _soon():
            return {"content": self._completer.complete(code, content.get("cursor_pos", len(code)))}, []

    def _inspect(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        code = content.get("code", "")
        position = content.get("cursor_pos", len(code))
        with _soon():
            return {"content": self._kernel.do_inspect(code, position, content.get("detail_level", 0))}, []

    def _names(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        return {"content": {"names": self._values.names()}}, []

    def _fetch(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        group, buffers = self._values.fetch(content["name"])
        return {"groups": [group]}, buffers

    def _widgets(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """States of all widgets as ipywidgets answers `request_states` on its control comm."""
        if "ipywidgets" not in sys.modules:
            return {"content": {"states": {}, "buffer_paths": []}}, []
        from ipywidgets.widgets import widget

        instances = getattr(widget, "_instances", None)
        instances = widget.Widget.widgets if instances is None else instances
        states = {
            key: {
                "model_name": w._model_name, "model_module": w._model_module,
                "model_module_version": w._model_module_version, "state": w.get_state(),
            }
            for key, w in list(instances.items())
        }  # fmt: skip
        states, paths, buffers = widget._remove_buffers(states)
        return {"content": {"states": states, "buffer_paths": paths}}, buffers


@contextmanager
def _soon() -> Iterator[None]:
    """Have the GIL soon after it is wanted; what user code sets meanwhile stays."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    ours = sys.getswitchinterval()
    try:
        yield
    finally:
        if sys.getswitchinterval() == ours:
            sys.setswitchinterval(before)
