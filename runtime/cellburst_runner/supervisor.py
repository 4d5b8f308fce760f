"""The runner's supervisor: relays between the worker and an executor, and outlives whatever user code does.

It never runs user code, so pings, interrupts and the end of an executor are seen whatever that code does. One thread,
one selector. It may be pid 1 of its container and reaps every orphan.

    worker  <── WorkerLink (ctl/s) ──>  Supervisor  <── ExecutorProcess (work, side, pipes) ──>  executor

Environment: CELLBURST_VAR (folder with `ctl/s`), CELLBURST_CONTAINER (the container's id).

Over 400 lines: one selector's handlers, which share its state.
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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

from . import wire
from .executor_process import ExecutorProcess
from .supervisor_output import Output
from .supervisor_snapshot import Freezer, Pause
from .supervisor_start import change_links, make_links, make_subreaper
from .supervisor_watch import forget, watch
from .worker_link import WorkerLink

if TYPE_CHECKING:
    from .zygote_child import Forker

SILENT_SECONDS = 2.0  # an executor gives a sign every 0.5 s unless its GIL is held
CLOSED_SECONDS = 1.0  # an executor whose sockets are closed is ending; if it does not, user code closed them
KILL_AFTER_SECONDS = 2.0  # between a second interrupt and SIGKILL
TICK_SECONDS = 0.1  # how often timers are looked at while a cell runs
IDLE_TICK_SECONDS = 5.0
MAX_SIDE_BYTES = 8 * 1024 * 1024  # comm messages waiting for an executor whose GIL is held; more are dropped
MAX_FAILED_STARTS = 2


class Supervisor:
    """See the module. `run` returns the exit code when no executor can be started; BecomeExecutor is raised in a fork."""

    def __init__(self, var_folder: str, container: str, forker: Optional[Forker] = None) -> None:
        self._var_folder = var_folder
        self._container = container
        self._forker = forker
        self._link = WorkerLink(os.path.join(var_folder, "ctl", "s"))
        self._freezer = Freezer(self._link)
        self._output = Output(self._link)
        self._pause = Pause(time.monotonic(), 2 * IDLE_TICK_SECONDS)
        self._selector = selectors.DefaultSelector()
        self._start: Optional[dict[str, Any]] = None
        self._secrets = b""  # the last release: for executors that are started later, never in their first environment
        self._executor: Optional[ExecutorProcess] = None
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
            "runner_freeze": self._on_freeze, "runner_detach": self._on_detach, "runner_load_names": self._on_load_names,
            "release_secrets": self._on_secrets, "value_coming": self._on_value_coming,
        }  # fmt: skip

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until no executor can be started, or SIGTERM."""
        self._catch_signals()
        while self._ended is None:
            now = time.monotonic()
            if self._link.socket is None and now >= self._link.redial_at:
                self._link.dial(now, self._hello())
            self._link.write()
            self._watch()
            happened = self._selector.select(self._timeout(now))
            self._move_deadlines(self._pause.gap(time.monotonic()))
            for key, events in happened:
                key.data(events)
            self._tick(time.monotonic())
        if self._executor is not None:
            self._executor.kill()
            self._executor.wait()
        self._link.write()
        return self._ended

    def _hello(self) -> bytes:
        return wire.encode({
            "t": "runner_hello", "container": self._container, "protocol": wire.PROTOCOL_VERSION,
            "python_version": platform.python_version(), "pid": os.getpid(),
        })  # fmt: skip

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
        busy = self._running or closing or self._freezer.runs_user_code
        timeout = TICK_SECONDS if busy else IDLE_TICK_SECONDS
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
        watch(self._selector, wanted)

    def _tick(self, now: float) -> None:
        executor = self._executor
        if executor is None:
            return
        if executor.closed_at is not None and now - executor.closed_at > CLOSED_SECONDS:
            executor.kill()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._running or self._freezer.runs_user_code:
                executor.kill()
        if self._running and now - executor.alive_at > SILENT_SECONDS and self._link.takes_events:
            self._output.drain_pipes(executor, self._running, self._running_header)

    def _move_deadlines(self, seconds: float) -> None:
        """The clock went on and we did not: whatever was to happen in three seconds still is."""
        if not seconds:
            return
        self._link.redial_at = 0.0
        if self._kill_at is not None:
            self._kill_at += seconds
        if self._executor is not None:
            self._executor.started_at += seconds
            self._executor.alive_at += seconds
            if self._executor.closed_at is not None:
                self._executor.closed_at += seconds

    # -- from the worker -------------------------------------------------------------------------------------------

    def _on_link(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._link.write()
        if events & selectors.EVENT_READ:
            descriptor = self._link.socket
            for body in self._link.read():  # ends when a message detaches us
                head, _ = wire.split(body)
                message = wire.decode_head(head)
                handler = self._handlers.get(message["t"])
                if handler is not None:  # a newer worker may say more
                    handler(message, body)
            if self._link.socket is None and descriptor is not None:
                forget(self._selector, descriptor)

    def _on_start(self, message: dict[str, Any], body: bytes) -> None:
        before = self._start
        if before is None:
            self._start = message
            self._output.set_limits(message)
            make_links(message.get("links", {}))
            self._start_executor()
        elif message.get("restored"):
            self._start = message
            self._output.set_limits(message)
            self._container = message.get("environment", {}).get("CELLBURST_CONTAINER", self._container)
            change_links(before.get("links", {}), message.get("links", {}))
            if self._executor is not None and self._executor.ready:
                self._executor.started_at = time.monotonic()  # what RunnerReady counts from
            self._freezer.thaw(self._executor, before, message)
        elif self._freezer.is_taking_a_snapshot:  # for a worker that is gone
            self._freezer.thaw(self._executor, before, {**before, "reseed": False})
        elif not self._freezer.is_thawing:
            self._say_ready()

    def _on_freeze(self, message: dict[str, Any], body: bytes) -> None:
        self._freezer.freeze(message, self._executor, bool(self._running or self._waiting))

    def _on_detach(self, message: dict[str, Any], body: bytes) -> None:
        self._link.detach()

    def _on_load_names(self, message: dict[str, Any], body: bytes) -> None:
        self._freezer.load(self._executor, message, _framed(body), bool(self._running))

    def _on_secrets(self, message: dict[str, Any], body: bytes) -> None:
        self._secrets = _framed(body)
        if self._executor is not None and self._executor.ready:
            self._executor.work.send(self._secrets)

    def _on_value_coming(self, message: dict[str, Any], body: bytes) -> None:
        idle = not (self._running or self._waiting or self._freezer.holds)
        if self._executor is not None and self._executor.ready and idle:
            self._executor.work.send(_framed(body))

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
            text = "the container's Python is not answering"
            why = {"code": "platform.unavailable", "message": text, "next": "try again"}
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
        runs = self._running or self._freezer.runs_user_code
        if self._executor is None or not runs or call not in ("", self._running):
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
            now, folder = time.monotonic(), self._start.get("folder", "")
            forker = None if self._failed_starts else self._forker  # a fork that could not come up is not tried twice
            self._executor = ExecutorProcess(command, environment, folder, now, forker)
        except OSError as why:
            self._link.control(wire.encode({"t": "executor_ended", "text": f"{command[0]}: {why}"}))
            self._ended = 1

    def _next_cell(self) -> None:
        if self._running or self._freezer.holds or not self._waiting:
            return
        if self._executor is None or not self._executor.ready:
            return
        self._running, body = self._waiting.popleft()
        self._running_header = wire.decode_head(wire.split(body)[0]).get("header", {})
        self._executor.work.send(_framed(body))

    def _say_ready(self, notes: Sequence[str] = ()) -> None:
        executor = self._executor
        if executor is not None and executor.ready:
            seconds = round(executor.alive_at - executor.started_at, 3) if not self._running else 0.0
            head = {"t": "runner_ready", "executor_pid": executor.pid, "seconds": seconds, "notes": list(notes)}
            self._link.control(wire.encode(head))

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
            if self._secrets:
                executor.work.send(self._secrets)
            if self._freezer.executor_ready(executor):
                self._say_ready()
            self._next_cell()
        elif tag == "iopub":
            self._output.iopub(message, _framed(body), buffers)
        elif tag in ("frozen", "thawed", "runner_names_loaded"):
            self._kill_at = None
            if self._freezer.answered(message, _framed(body)):
                self._say_ready(message.get("notes", []))
            self._next_cell()
        elif tag == "value_coming":
            self._link.control(_framed(body))
        elif tag == "cell_done":
            self._output.send_tails()
            self._link.event(_framed(body))
            self._running = ""
            self._kill_at = None
            self._next_cell()
        else:
            self._link.event(_framed(body))

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
            self._output.drain_pipes(executor, self._running, self._running_header)
        else:
            text += executor.read_pipe("stderr").decode("utf-8", "replace")[-8192:]
            self._failed_starts += 1
        self._output.send_tails()
        self._link.after_events(wire.encode({
            "t": "executor_ended", "call": self._running, "exit_code": exit_code, "signal": number,
            "killed_by_runner": executor.killed_by_runner, "text": text,
        }))  # fmt: skip
        self._freezer.executor_ended()
        self._running, self._kill_at, self._executor = "", None, None
        forget(self._selector, executor.work.socket)
        forget(self._selector, executor.side.socket)
        executor.close()
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._ended = 1
        else:
            self._start_executor()

    def _on_sigterm(self, *_: object) -> None:
        self._ended = 0


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def main() -> int:
    """Entry of the supervisor; the process's exit code."""
    make_subreaper()
    return Supervisor(os.environ["CELLBURST_VAR"], os.environ.get("CELLBURST_CONTAINER", "")).run()
