"""The runner's supervisor: relays between the worker and an executor, and outlives whatever user code does.

It never runs user code, so pings, interrupts and the end of an executor are seen whatever that code does. One thread,
one selector. It may be pid 1 of its container and reaps every orphan.

    worker  <── WorkerLink (ctl/s) ──>  Supervisor  <── ExecutorProcess (work, side, pipes) ──>  executor

Environment: CELLBURST_VAR (folder with `ctl/s`), CELLBURST_CONTAINER (the container's id).
"""

from __future__ import annotations

import os
import platform
import selectors
import signal
import socket
import sys
import time
from collections import deque
from typing import Any, Optional

from . import wire
from .executor_process import ExecutorProcess
from .output_limit import OutputLimit
from .supervisor_start import make_links, make_subreaper, stream_message
from .worker_link import WorkerLink

SILENT_SECONDS = 2.0  # an executor gives a sign every 0.5 s unless its GIL is held
CLOSED_SECONDS = 1.0  # an executor whose sockets are closed is ending; if it does not, user code closed them
KILL_AFTER_SECONDS = 2.0  # between a second interrupt and SIGKILL
TICK_SECONDS = 0.1  # how often timers are looked at while a cell runs
IDLE_TICK_SECONDS = 5.0
MAX_SIDE_BYTES = 8 * 1024 * 1024  # comm messages waiting for an executor whose GIL is held; more are dropped
MAX_FAILED_STARTS = 2


class Supervisor:
    """See the module. `run` returns the exit code, which is only when no executor can be started."""

    def __init__(self, var_folder: str, container: str) -> None:
        self._var_folder = var_folder
        self._hello = wire.encode({
            "t": "runner_hello", "container": container, "protocol": wire.PROTOCOL_VERSION,
            "python_version": platform.python_version(), "pid": os.getpid(),
        })  # fmt: skip
        self._link = WorkerLink(os.path.join(var_folder, "ctl", "s"))
        self._selector = selectors.DefaultSelector()
        self._start: Optional[dict[str, Any]] = None
        self._executor: Optional[ExecutorProcess] = None
        self._limit = OutputLimit(0, 0)
        self._waiting: deque[tuple[str, bytes]] = deque()  # (call, message) until the executor is idle
        self._running = ""
        self._running_header: dict[str, Any] = {}
        self._kill_at: Optional[float] = None
        self._failed_starts = 0
        self._ended: Optional[int] = None
        self._handlers = {
            "runner_start": self._on_start, "run_cell": self._on_run_cell, "names_data": self._on_names_data,
            "stdin_reply": self._on_side, "comm": self._on_side, "side_request": self._on_side,
            "interrupt": self._on_interrupt, "runner_ping": self._on_ping, "runner_credit": self._on_credit,
        }  # fmt: skip

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until no executor can be started, or SIGTERM."""
        self._catch_signals()
        while self._ended is None:
            now = time.monotonic()
            if self._link.socket is None and now >= self._link.redial_at:
                self._link.dial(now, self._hello)
            self._link.write()
            self._watch()
            for key, events in self._selector.select(self._timeout(now)):
                key.data(events)
            self._tick(time.monotonic())
        if self._executor is not None:
            self._executor.kill()
            self._executor.wait()
        self._link.write()
        return self._ended

    def _catch_signals(self) -> None:
        receive, send = socket.socketpair()
        receive.setblocking(False)
        send.setblocking(False)
        self._wakeup = (receive, send)
        signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: executors would inherit that
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._selector.register(receive, selectors.EVENT_READ, self._on_wakeup)

    def _timeout(self, now: float) -> float:
        closing = self._executor is not None and self._executor.closed_at is not None
        timeout = TICK_SECONDS if self._running or closing else IDLE_TICK_SECONDS
        if self._link.socket is None:
            timeout = min(timeout, max(0.0, self._link.redial_at - now))
        return timeout

    def _watch(self) -> None:
        """Bring the selector in line with what may be read and written now."""
        wanted: dict[socket.socket, tuple[int, Any]] = {self._wakeup[0]: (selectors.EVENT_READ, self._on_wakeup)}
        if self._link.socket is not None:
            write = selectors.EVENT_WRITE if self._link.wants_write else 0
            wanted[self._link.socket] = (selectors.EVENT_READ | write, self._on_link)
        if self._executor is not None:
            work, side = self._executor.work, self._executor.side
            write = selectors.EVENT_WRITE if work.waiting_bytes else 0
            read = selectors.EVENT_READ if self._link.takes_events or not self._executor.ready else 0
            if read | write and self._executor.closed_at is None:
                wanted[work.socket] = (read | write, self._on_work)
            write = selectors.EVENT_WRITE if side.waiting_bytes else 0
            if self._executor.closed_at is None:
                wanted[side.socket] = (selectors.EVENT_READ | write, self._on_side_socket)
        for key in list(self._selector.get_map().values()):
            if key.fileobj not in wanted:
                self._selector.unregister(key.fileobj)
        for connection, (mask, handler) in wanted.items():
            current = self._selector.get_map().get(connection)
            if current is None:
                self._selector.register(connection, mask, handler)
            elif current.events != mask:
                self._selector.modify(connection, mask, handler)

    def _tick(self, now: float) -> None:
        executor = self._executor
        if executor is None:
            return
        if executor.closed_at is not None and now - executor.closed_at > CLOSED_SECONDS:
            executor.kill()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._running:
                executor.kill()
        if self._running and now - executor.alive_at > SILENT_SECONDS and self._link.takes_events:
            self._drain_pipes(executor)

    # -- from the worker -------------------------------------------------------------------------------------------

    def _on_link(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._link.write()
        if events & selectors.EVENT_READ:
            descriptor = self._link.socket
            for body in self._link.read():
                head, _ = wire.split(body)
                message = wire.decode_head(head)
                handler = self._handlers.get(message["t"])
                if handler is not None:  # a newer worker may say more
                    handler(message, body)
            if self._link.socket is None and descriptor is not None:
                self._forget(descriptor)

    def _on_start(self, message: dict[str, Any], body: bytes) -> None:
        if self._start is not None:
            self._say_ready()
            return
        self._start = message
        self._limit = OutputLimit(
            message.get("output_limit_bytes", 33_554_432), message.get("output_tail_bytes", 1_048_576)
        )
        make_links(message.get("links", {}))
        self._start_executor()

    def _on_run_cell(self, message: dict[str, Any], body: bytes) -> None:
        self._waiting.append((message["call"], body))
        self._next_cell()

    def _on_names_data(self, message: dict[str, Any], body: bytes) -> None:
        if self._executor is not None and message.get("call") == self._running:
            self._executor.work.send(_framed(body))

    def _on_side(self, message: dict[str, Any], body: bytes) -> None:
        executor = self._executor
        if executor is not None and executor.ready and executor.side.waiting_bytes + len(body) <= MAX_SIDE_BYTES:
            # between cells a comm message keeps its place in the order of cells: a slider moved before a cell is read by it
            channel = executor.work if message["t"] == "comm" and not self._running else executor.side
            channel.send(_framed(body))
        elif message["t"] == "side_request":
            why = {
                "code": "platform.unavailable",
                "message": "the container's Python is not answering",
                "next": "try again",
            }
            self._link.control(wire.encode({"t": "side_reply", "id": message["id"], "error": why}))

    def _on_ping(self, message: dict[str, Any], body: bytes) -> None:
        alive = time.monotonic() - self._executor.alive_at if self._executor is not None else 0.0
        pong = {"t": "runner_pong", "number": message["number"], "executor_alive_seconds": round(alive, 3)}
        self._link.control(wire.encode(pong))

    def _on_credit(self, message: dict[str, Any], body: bytes) -> None:
        self._link.credit_bytes += message["size_bytes"]

    def _on_interrupt(self, message: dict[str, Any], body: bytes) -> None:
        call, level = message.get("call", ""), message.get("level", 1)
        for waiting in [entry for entry in self._waiting if entry[0] == call]:
            self._waiting.remove(waiting)
            self._link.event(
                wire.encode({"t": "cell_done", "call": call, "status": "aborted"}, [b'{"status":"aborted"}'])
            )
        if self._executor is None or not self._running or call not in ("", self._running):
            return
        if level >= 3:
            self._executor.kill()
            return
        self._executor.signal_group(signal.SIGINT)
        self._executor.side.send(wire.encode({"t": "interrupted"}))  # see cell_side.Side.nudge
        if level == 2 and self._kill_at is None:
            self._kill_at = time.monotonic() + KILL_AFTER_SECONDS

    # -- the executor ----------------------------------------------------------------------------------------------

    def _start_executor(self) -> None:
        assert self._start is not None
        environment = {**os.environ, **self._start.get("environment", {})}
        if self._start.get("matplotlib_backend"):
            environment["MPLBACKEND"] = self._start["matplotlib_backend"]
        environment["CELLBURST_VAR"] = self._var_folder
        # debugpy, which ipykernel imports, would write its warning about frozen modules under the user's first cell
        environment.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        main_file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
        command = [*(self._start.get("python") or [sys.executable]), main_file, "executor"]
        try:
            self._executor = ExecutorProcess(command, environment, self._start.get("folder", ""), time.monotonic())
        except OSError as why:
            self._link.control(wire.encode({"t": "executor_ended", "text": f"{command[0]}: {why}"}))
            self._ended = 1

    def _next_cell(self) -> None:
        if self._running or not self._waiting or self._executor is None or not self._executor.ready:
            return
        self._running, body = self._waiting.popleft()
        self._running_header = wire.decode_head(wire.split(body)[0]).get("header", {})
        self._executor.work.send(_framed(body))

    def _say_ready(self) -> None:
        executor = self._executor
        if executor is not None and executor.ready:
            seconds = round(executor.alive_at - executor.started_at, 3) if not self._running else 0.0
            self._link.control(wire.encode({"t": "runner_ready", "executor_pid": executor.pid, "seconds": seconds}))

    def _on_work(self, events: int) -> None:
        executor = self._executor
        assert executor is not None
        if events & selectors.EVENT_WRITE:
            executor.work.write()
        if events & selectors.EVENT_READ:
            executor.alive_at = time.monotonic()
            try:
                for body in executor.work.read():
                    self._from_executor(executor, body)
            except EOFError:
                executor.closed_at = time.monotonic()
            except wire.WireError:
                executor.kill()
        self._link.write()

    def _on_side_socket(self, events: int) -> None:
        executor = self._executor
        assert executor is not None
        if events & selectors.EVENT_WRITE:
            executor.side.write()
        if events & selectors.EVENT_READ:
            executor.alive_at = time.monotonic()
            try:
                for body in executor.side.read():
                    if wire.decode_head(wire.split(body)[0])["t"] == "side_reply":
                        self._link.control(_framed(body))
            except EOFError:
                executor.closed_at = time.monotonic()
            except wire.WireError:
                executor.kill()

    def _from_executor(self, executor: ExecutorProcess, body: bytes) -> None:
        head, buffers = wire.split(body)
        message = wire.decode_head(head)
        tag = message["t"]
        if tag == "executor_ready":
            executor.ready = True
            self._failed_starts = 0
            self._say_ready()
            self._next_cell()
        elif tag == "iopub":
            self._iopub(message, body, buffers)
        elif tag == "cell_done":
            self._send_tails()
            self._link.event(_framed(body))
            self._running = ""
            self._kill_at = None
            self._next_cell()
        else:
            self._link.event(_framed(body))

    def _iopub(self, message: dict[str, Any], body: bytes, buffers: list[memoryview]) -> None:
        call = message.get("call", "")
        if message["msg_type"] == "stream":
            if not self._limit.admit(call, bytes(buffers[0]), message.get("text_bytes", 0)):
                return
        elif message["msg_type"] == "error":
            self._send_tail(call, self._limit.tail_before_error(call))
        self._link.event(_framed(body))

    def _send_tails(self) -> None:
        for call in self._limit.calls():
            self._send_tail(call, self._limit.tail(call))

    def _send_tail(self, call: str, tail: Optional[dict[str, Any]]) -> None:
        if tail is not None:
            size = len(tail["content"]["text"].encode("utf-8", "replace"))
            head = {"t": "iopub", "call": call, "msg_type": "stream", "text_bytes": size}
            self._link.event(wire.encode(head, [wire.encode_head(tail)]))

    def _drain_pipes(self, executor: ExecutorProcess) -> None:
        for name in executor.pipes:
            data = executor.read_pipe(name)
            if data:
                text = data.decode("utf-8", "replace")
                message, size = stream_message(name, text, self._running_header)
                if self._limit.admit(self._running, message, size):
                    head = {"t": "iopub", "call": self._running, "msg_type": "stream", "text_bytes": size}
                    self._link.event(wire.encode(head, [message]))

    # -- ends ------------------------------------------------------------------------------------------------------

    def _on_wakeup(self, events: int) -> None:
        try:
            while self._wakeup[0].recv(4096):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._executor is not None and pid == self._executor.pid:
                self._executor_ended(self._executor, status)

    def _executor_ended(self, executor: ExecutorProcess, status: int) -> None:
        exit_code, number = executor.ended(status)
        was_ready = executor.ready or bool(self._running)
        for body in executor.work.read_rest():
            self._from_executor(executor, body)
        text = executor.read_fault()
        if was_ready:
            self._drain_pipes(executor)
        else:
            text += executor.read_pipe("stderr").decode("utf-8", "replace")[-8192:]
            self._failed_starts += 1
        self._send_tails()
        self._link.after_events(wire.encode({
            "t": "executor_ended", "call": self._running, "exit_code": exit_code, "signal": number,
            "killed_by_runner": executor.killed_by_runner, "text": text,
        }))  # fmt: skip
        self._running, self._kill_at, self._executor = "", None, None
        self._forget(executor.work.socket)
        self._forget(executor.side.socket)
        executor.close()
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._ended = 1
        else:
            self._start_executor()

    def _on_sigterm(self, *_: object) -> None:
        self._ended = 0

    def _forget(self, connection: socket.socket) -> None:
        for key in list(self._selector.get_map().values()):
            if key.fileobj is connection:
                self._selector.unregister(connection)


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def main() -> int:
    """Entry of the supervisor; the process's exit code."""
    make_subreaper()
    return Supervisor(os.environ["CELLBURST_VAR"], os.environ.get("CELLBURST_CONTAINER", "")).run()
