"""The executor: runs cells in a full ipykernel, one after the other, on the main thread's event loop.

One cell: groups that are lacking are asked for -> names are set -> `cell_started` -> the cell runs as ipykernel would run
it -> its output is out -> names that go home are packed -> `cell_done` with the execute_reply's content.

SIGINT raises KeyboardInterrupt from the first of these steps to the last but one, and is ignored otherwise.
"""

# ipykernel has few annotations
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import asyncio
import atexit
import contextvars
import faulthandler
import itertools
import os
import signal
import socket
import sys
import time
from typing import Any, Optional

from ipykernel.jsonutil import json_clean
from tornado import ioloop

from . import hooks, wire
from .cell_channel import Sender
from .cell_complete import rehearse
from .cell_imports import ImportLog
from .cell_kernel import CellKernelApp, make_app
from .cell_side import Side
from .cell_snapshot import TAGS, CellSnapshot, ignore_interrupts
from .secret_environment import SecretEnvironment
from .values import ValueStore
from .values_saved import SavedNames

OOM_SCORE = "700"  # when memory runs out user code goes first, not the supervisor that has to say so


class CellExecutor:
    """Connects a kernel application with the supervisor's two sockets."""

    def __init__(
        self, app: CellKernelApp, sender: Sender, work: socket.socket, side: socket.socket, folder: str
    ) -> None:
        self._kernel: Any = app.kernel
        self._session = app.session
        self._shell: Any = app.kernel.shell
        self._pump = app.iopub_thread.pump
        self._sender = sender
        self._work = work
        self._decoder = wire.Decoder()
        names = (self._shell.user_ns, os.path.join(folder, "in"), os.path.join(folder, "out"))
        self._values = ValueStore(*names)
        saved = SavedNames(*names)
        self._values.on_file = saved.on_file = lambda name, size: sender.send(
            {"t": "value_coming", "file": name, "size_bytes": size}
        )
        self._imports = ImportLog(os.getcwd())
        self._secrets = SecretEnvironment()
        self._loop = asyncio.get_event_loop_policy().get_event_loop()
        self._side = Side(
            side, app.kernel, self._values, lambda: self._loop.call_soon_threadsafe(lambda: None), self._is_busy
        )
        self._context = contextvars.copy_context()  # one for all cells: what a cell sets the next one sees
        self._names_data: Optional[asyncio.Future[tuple[dict[str, Any], list[memoryview]]]] = None
        self._cell: Optional[asyncio.Task[None]] = None
        self._call = ""
        self._started = 0.0  # monotonic; 0 before the cell's own code
        self._run_seconds = 0.0
        app.kernel.ask = self._ask
        self._snapshot = CellSnapshot(
            self._session, sender, work, self._decoder, saved, self._imports, self._flush, self._take, self._context,
        )  # fmt: skip

    def start(self) -> None:
        """Watch the sockets and say that we are ready, also for questions beside a first cell that holds the interpreter."""
        try:
            rehearse(self._shell)
        except Exception:
            pass  # the first question then does it
        self._loop.add_reader(self._work, self._on_work)
        self._side.start()
        self._sender.send({"t": "executor_ready", "pid": os.getpid()})

    # -- messages --------------------------------------------------------------------------------------------------

    def _on_work(self) -> None:
        try:
            count = self._work.recv_into(self._decoder.scratch, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not count:
            os._exit(1)  # the supervisor is gone
        for body in self._decoder.feed(self._decoder.scratch[:count]):
            self._take(body)

    def _take(self, body: bytes) -> None:
        head, buffers = wire.split(body)
        message = wire.decode_head(head)
        if message["t"] == "run_cell":
            self._begin(message, buffers)
        elif message["t"] == "comm":
            self._side.comm(message, buffers)
        elif message["t"] == "names_data" and self._names_data is not None and not self._names_data.done():
            self._names_data.set_result((message, buffers))
        elif message["t"] == "release_secrets":
            self._secrets.take(message.get("environment", {}))
        elif message["t"] == "value_coming":
            self._values.coming.begin(message["file"], message["size_bytes"])
        elif message["t"] in TAGS:
            self._values.coming.drop()
            self._snapshot.take(message, buffers)

    def _begin(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        coroutine = self._run(message, buffers)
        if sys.version_info >= (3, 11):
            self._cell = self._loop.create_task(coroutine, context=self._context)
        else:
            self._cell = self._loop.create_task(coroutine)

    def _is_busy(self) -> bool:
        return self._cell is not None and not self._cell.done()

    def _ask(self, prompt: str, password: bool) -> str:
        sys.stdout.flush()
        sys.stderr.flush()
        while not self._side.stdin.empty():
            self._side.stdin.get_nowait()  # of an earlier prompt of this cell
        self._sender.send({"t": "stdin_request", "call": self._call, "prompt": prompt, "password": password})
        try:
            reply = self._side.stdin.get()
            while reply.get("call") != self._call:
                reply = self._side.stdin.get()  # that was the answer to a prompt which was interrupted
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Interrupted by user") from None
        if reply.get("eof"):
            raise KeyboardInterrupt("Interrupted by user")
        value: str = reply.get("value", "")
        if value == "\x04":
            raise EOFError
        return value

    # -- one cell --------------------------------------------------------------------------------------------------

    async def _run(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        self._call = message["call"]
        self._started = self._run_seconds = 0.0
        try:
            reply, fields, parts = await self._steps(message, buffers)
        except (KeyboardInterrupt, asyncio.CancelledError):
            reply = self._failed(KeyboardInterrupt(), "interrupted before or after the cell's own code")
            fields, parts = self._gather_after_failure(message)
        except Exception as why:
            reply = self._failed(why, str(why))
            fields, parts = self._gather_after_failure(message)
        self._values.coming.drop()
        head = {"t": "cell_done", "call": self._call, "status": reply["status"], **fields}
        head["run_seconds"] = round(self._run_seconds, 6)
        imported = self._imports.news()
        if imported:
            head["imported"] = imported
        try:
            self._sender.send(head, [self._session.pack(json_clean(reply)), *parts])
        except wire.WireError as why:
            head = {"t": "cell_done", "call": self._call, "status": "error", "run_seconds": head["run_seconds"]}
            self._sender.send(head, [self._session.pack(json_clean(self._failed(why, str(why))))])

    async def _steps(
        self, message: dict[str, Any], buffers: list[memoryview]
    ) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        """All that may be interrupted. Returns the execute_reply's content, and what goes home."""
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._set_parent(message)
            await self._apply(message, buffers)
            self._values.before_cell(message.get("used", []), message.get("python_version", ""))
            self._sender.send({"t": "cell_started", "call": self._call})
            self._started = time.monotonic()
            reply = await self._execute(message)
            self._run_seconds = time.monotonic() - self._started
            self._flush()
            fields, parts = self._gather(message, reply["status"] == "ok")
            self._flush()
            return reply, fields, parts
        finally:
            ignore_interrupts()

    def _set_parent(self, message: dict[str, Any]) -> None:
        # scalars only: parents are keys in ipykernel's streams
        header = {
            k: v for k, v in message.get("header", {}).items() if isinstance(v, (str, int, float, bool, type(None)))
        }
        header.setdefault("msg_id", message["call"])
        header.setdefault("msg_type", "execute_request")
        content = {"code": message["code"], "silent": False, "allow_stdin": message.get("allow_stdin", True)}
        parent = {
            "header": header, "msg_id": header["msg_id"], "msg_type": header["msg_type"], "parent_header": {},
            "metadata": message.get("metadata", {}), "content": content, "buffers": [],
        }  # fmt: skip
        self._session.begin_call(self._call, header["msg_id"])
        self._kernel.set_parent([], parent)
        self._set_count(message.get("execution_count", 1))

    def _set_count(self, count: int) -> None:
        """The local cell's number, also for `In[n]`: cells that ran elsewhere are empty there."""
        self._shell.execution_count = count
        history = self._shell.history_manager
        for inputs in (history.input_hist_parsed, history.input_hist_raw):
            del inputs[count:]
            inputs.extend([""] * (count - len(inputs)))

    async def _apply(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        """Set the names that came with the cell, after asking for those that did not but are lacking."""
        names, modules = message.get("names", []), message.get("modules", [])
        if not names and not modules:
            return
        parts = _inline_parts([*names, *modules], buffers)
        missing = self._values.missing([*modules, *names])
        if missing:
            self._names_data = self._loop.create_future()
            self._sender.send({"t": "names_needed", "call": self._call, "groups": missing})
            answer, more = await self._wait_for_names()
            sent = {g["hash"]: g for g in answer["groups"]}
            parts.update(_inline_parts(answer["groups"], more))
            names, modules = [sent.get(g["hash"], g) for g in names], [sent.get(g["hash"], g) for g in modules]
        # modules first: what is unpickled may need them
        self._values.apply_modules(modules, [b for g in modules for b in parts.get(g["hash"], ())])
        self._values.apply(names, [b for g in names for b in parts.get(g["hash"], ())])

    async def _wait_for_names(self) -> tuple[dict[str, Any], list[memoryview]]:
        """The loop runs meanwhile, so that an interrupt must come as a cancel and not as an exception in the loop."""
        assert self._names_data is not None
        waiting = self._names_data
        loop = self._loop
        signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(waiting.cancel))
        try:
            return await waiting
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            self._names_data = None
            signal.signal(signal.SIGINT, signal.default_int_handler)

    async def _execute(self, message: dict[str, Any]) -> dict[str, Any]:
        metadata = message.get("metadata", {})
        options: dict[str, Any] = {"store_history": True, "user_expressions": {}}
        if self._kernel._do_exec_accepted_params["cell_meta"]:
            options["cell_meta"] = metadata
        if self._kernel._do_exec_accepted_params["cell_id"]:
            options["cell_id"] = metadata.get("cellId")
        options["allow_stdin"] = message.get("allow_stdin", True)
        reply: dict[str, Any] = await self._kernel.do_execute(message["code"], False, **options)
        return reply

    def _flush(self) -> None:
        """All output of the cell, also what programs wrote to descriptors 1 and 2, is sent before `cell_done`."""
        self._pump.wait_quiet()
        sys.stdout.flush()
        sys.stderr.flush()

    def _gather(self, message: dict[str, Any], ok: bool) -> tuple[dict[str, Any], list[Any]]:
        return self._values.after_cell(
            bound=message.get("bound", []), used=message.get("used", []), deleted=message.get("deleted", []),
            out=message.get("out", []), home_limit_bytes=message.get("home_limit_bytes", 10_000_000), ok=ok,
        )  # fmt: skip

    def _gather_after_failure(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        if not self._started:
            return {}, []
        self._run_seconds = self._run_seconds or time.monotonic() - self._started
        return self._gather(message, False)

    def _failed(self, why: BaseException, text: str) -> dict[str, Any]:
        """The reply for a failure that is not the cell's own code's; it is shown as an error under the cell."""
        name = type(why).__name__
        error = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
        self._session.send(self._kernel.iopub_socket, "error", error, parent=self._kernel.get_parent("shell"))
        return {"status": "error", **error, "execution_count": self._shell.execution_count, "payload": []}


def _inline_parts(groups: list[dict[str, Any]], buffers: list[memoryview]) -> dict[str, list[memoryview]]:
    """The inline buffers of each group, by its hash. Raises ValueError when their number is wrong."""
    remaining = iter(buffers)
    parts: dict[str, list[memoryview]] = {}
    for group in groups:
        count = sum(part.get("at", "there") == "inline" for part in group["parts"])
        parts[group["hash"]] = list(itertools.islice(remaining, count))
        if len(parts[group["hash"]]) < count:
            raise ValueError("a message with names lacks some of their bytes")
    return parts


def main(descriptors: list[int]) -> None:
    """Entry of the executor's own process. `descriptors`: see `run`."""
    look_like_a_kernel()
    run(descriptors)


def look_like_a_kernel() -> None:
    """As in a kernel started by ipykernel_launcher: neither our arguments nor our folder are the user's."""
    sys.argv = ["ipykernel_launcher.py"]
    sys.path.pop(0)


def run(descriptors: list[int]) -> None:
    """Run cells until the end. `descriptors`: work and side sockets, read ends of 1 and 2, and faulthandler's pipe."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    work_fd, side_fd, out, err, fault = descriptors
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGURG, lambda *_: None)  # see Side.nudge
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass  # not in every sandbox
    faulthandler.enable(os.fdopen(fault, "w"))
    work, side = socket.socket(fileno=work_fd), socket.socket(fileno=side_fd)
    sender = Sender(work)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = make_app(sender, {"stdout": out, "stderr": err})
    hooks.install_stand_in()
    CellExecutor(app, sender, work, side, os.environ["CELLBURST_VAR"]).start()
    while True:
        try:
            ioloop.IOLoop.current().start()
            break
        except KeyboardInterrupt:
            continue  # raised in the loop itself while an async cell was ending
    # the user said exit(); threads that are left running do not hold up the end, as in a kernel that is shut down
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
