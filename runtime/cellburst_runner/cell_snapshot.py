"""The executor's side of a snapshot: gets ready, stands still, and goes on.

    runner_freeze      modules imported, names saved, hooks of before, garbage gone -> `frozen`; then the main thread stands
                       still: no cell, no comm, no asyncio timer, until
    thaw               environment, folder and path of the new start, seeds, hooks of after -> `thawed`
    runner_load_names  names of a parked session that were kept by value -> `runner_names_loaded`

The supervisor keeps cells back meanwhile. Threads of user code go on until the sandbox itself is stopped: they are saved too.
SIGINT raises KeyboardInterrupt where user code runs (names being pickled, hooks), and is ignored otherwise.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import importlib
import os
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from . import freeze_sources, hooks, restore, wire
from .cell_channel import Sender
from .cell_complete import rehearse
from .cell_imports import ImportLog
from .generators import Seeds
from .values_saved import SavedNames

TAGS = frozenset({"runner_freeze", "thaw", "runner_load_names"})


class CellSnapshot:
    """One executor's. `take` gets messages of TAGS; what came for others while it stood still goes to `handle`."""

    def __init__(
        self, session: Any, sender: Sender, work: socket.socket, decoder: wire.Decoder, saved: SavedNames,
        imports: ImportLog, flush: Callable[[], None], handle: Callable[[bytes], None], context: contextvars.Context,
    ) -> None:  # fmt: skip
        self._session = session
        self._sender = sender
        self._work = work
        self._decoder = decoder
        self._saved = saved
        self._imports = imports
        self._flush = flush
        self._handle = handle
        self._context = context
        self._loop = asyncio.get_event_loop_policy().get_event_loop()
        self._waiting: deque[tuple[dict[str, Any], list[memoryview]]] = deque()
        self._scheduled = False

    def take(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        """Have a message handled soon: not inside the reading of the socket, which goes on while this stands still."""
        self._waiting.append((message, buffers))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._handle_all, context=self._context)

    def _handle_all(self) -> None:
        held: list[bytes] = []
        try:
            while self._waiting:
                message, buffers = self._waiting.popleft()
                if message["t"] == "runner_load_names":
                    self._load(message, buffers)
                elif message["t"] == "thaw":
                    self._thaw(message)
                elif self._freeze(message):
                    self._stand_still(held)
        finally:  # the loop writes of an error and goes on: what comes next must be handled
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                self._loop.call_soon(self._handle_all, context=self._context)
        for body in held:
            self._handle(body)

    # -- before ----------------------------------------------------------------------------------------------------

    def _freeze(self, message: dict[str, Any]) -> bool:
        """Whether this process is frozen now. If not, what was done for it is undone."""
        head: dict[str, Any] = {"t": "frozen", "number": message["number"], "preloaded": [], "notes": []}
        buffers: list[Any] = []
        hooks_ran = False
        try:
            with self._interruptible():
                head["preloaded"] = self._imports.preload(message.get("preload", []))
                if not message.get("save_names"):
                    _rehearse()  # a template
                    head["sources"] = freeze_sources.sources()
                if message.get("save_names"):
                    head["groups"], head["lost"], buffers = self._saved.save(message.get("limit_bytes", 0))
                hooks_ran = True
                head["notes"] = hooks.run(hooks.BEFORE)
            gc.collect()
            _give_back_memory()
            self._flush()
        except KeyboardInterrupt:
            self._saved.forget()
            notes = self._run_hooks_of_after() if hooks_ran else []
            head = {"t": "frozen", "number": message["number"], "notes": notes}
            head["error"] = {
                "code": "user_code.interrupted",
                "message": "the snapshot was interrupted while names were saved or hooks of before_snapshot ran",
                "next": "park the session again, or leave it as it is",
            }
            buffers = []
        except Seeds as why:
            head = {"t": "frozen", "number": message["number"]}
            head["error"] = {
                "code": "request.conflict", "message": str(why), "next": "leave it to the sessions that import it",
                "detail": {"module": why.name},
            }  # fmt: skip
        except BaseException as why:  # the worker waits for an answer, and user code runs in all of this
            self._saved.forget()
            notes = self._run_hooks_of_after() if hooks_ran else []
            head = {"t": "frozen", "number": message["number"], "notes": notes}
            head["error"] = {
                "code": "platform.unavailable",
                "message": f"the container could not get ready for a snapshot: {_said(why)}",
                "next": "the session goes on as it is; end it to free its place",
            }
            buffers = []
        self._sender.send(head, buffers)
        return "error" not in head

    def _stand_still(self, held: list[bytes]) -> None:
        """Read the work socket until a thaw has been handled. The loop's timers wait as long as this took."""
        since = time.monotonic()
        decoder = self._decoder  # it may hold the beginning of a message
        while not self._waiting:
            count = self._work.recv_into(decoder.scratch)
            if not count:
                os._exit(1)  # the supervisor is gone
            for body in decoder.feed(decoder.scratch[:count]):
                head, buffers = wire.split(body)
                message = wire.decode_head(head)
                if message["t"] in TAGS:
                    self._waiting.append((message, buffers))
                else:
                    held.append(body)
        restore.delay_timers(self._loop, time.monotonic() - since)

    # -- after -----------------------------------------------------------------------------------------------------

    def _thaw(self, message: dict[str, Any]) -> None:
        notes = []
        try:
            to_set, to_unset = message.get("set", {}), message.get("unset", [])
            restore.adopt_environment(to_set, to_unset)
            restore.adopt_path(message.get("path_before", ""), message.get("path", ""))
            line = restore.adopt_folder(message.get("folder_before", ""), message.get("folder", ""))
            notes += [line] if line else []
            self._imports.folder = message.get("folder", "")
            importlib.invalidate_caches()  # a file may have come meanwhile, and a folder's time does not always say so
        except Exception as why:  # half of it is better than no start
            notes.append(f"the environment could not be taken over: {type(why).__name__}: {why}"[:500])
        if message.get("reseed"):
            notes += restore.reseed()
            self._session.session = str(uuid.uuid4())  # ids of messages are made from it
        else:
            restore.stir()
        self._saved.forget()
        notes += self._run_hooks_of_after()
        self._flush()
        self._sender.send({"t": "thawed", "number": message["number"], "notes": notes})

    def _run_hooks_of_after(self) -> list[str]:
        try:
            with self._interruptible():
                return hooks.run(hooks.AFTER)
        except KeyboardInterrupt:
            return ["a hook of on_restore was interrupted; those behind it did not run"]

    def _load(self, message: dict[str, Any], buffers: list[memoryview]) -> None:
        names: list[str] = []
        lost: list[dict[str, Any]] = []
        try:
            with self._interruptible():
                names, lost = self._saved.load(message["groups"], buffers)
        except KeyboardInterrupt:
            known = {*names, *(entry["name"] for entry in lost)}
            rest = [n for g in message["groups"] for n in g["names"] if n not in known]
            lost += [{"name": n, "type": "", "why": "unpicklable", "detail": "interrupted"} for n in rest]
        self._flush()
        self._sender.send({"t": "runner_names_loaded", "names": names, "lost": lost})

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            yield
        finally:
            ignore_interrupts()


def ignore_interrupts() -> None:
    """From here on SIGINT does nothing, also one that comes right now."""
    while True:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return
        except KeyboardInterrupt:
            continue  # the last one, a moment too late


def _said(why: BaseException) -> str:
    try:
        return f"{type(why).__name__}: {why}"[:500]
    except Exception:
        return type(why).__name__


def _rehearse() -> None:
    """Run an empty cell that leaves no trace: what Python and IPython make at their first one is then in every copy."""
    try:
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        if shell is not None:
            shell.run_cell("print(end='', flush=True)", store_history=False, silent=True)  # type: ignore[no-untyped-call]
            rehearse(shell)
    except Exception:
        pass  # the first cell of a session then does it


def _give_back_memory() -> None:
    """Have the C library return what it holds free: a snapshot has all memory that was ever touched and not returned."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
