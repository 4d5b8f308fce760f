"""Completion and inspection of `%%modal` cells while another one runs: answered beside the main thread, which is relaying.

A front end sends these requests without a subshell, and ipykernel hands such ones to the main thread, where they would wait
for the cell's end. From ipykernel 7 on they come in on a thread of their own; there those of `%%modal` cells are taken out
while a cell is followed, and one thread answers them. Before ipykernel 7 the main thread reads the socket, and they wait.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any

Answer = Callable[[dict[str, Any]], Any]
log = logging.getLogger(__name__)


class Beside:
    """Takes a kernel's requests inside a `with` of the thread that follows a cell.

    `answers` are by request type, from a request's content to the reply's; `wanted` says of a request's code whether it is one.
    """

    def __init__(self, kernel: Any, answers: dict[str, Answer], wanted: Callable[[str], object]) -> None:
        self._kernel = kernel
        self._answers = answers
        self._wanted = wanted
        self._theirs = kernel.shell_channel_thread_main
        self._lock = threading.Lock()
        self._following = 0
        self._requests: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @staticmethod
    def possible(kernel: Any) -> bool:
        """Whether this kernel reads its shell socket on a thread of its own and completes without a loop."""
        parts = ("shell_stream", "shell_channel_thread", "shell_channel_thread_main", "iopub_socket", "session")
        return all(getattr(kernel, part, None) is not None for part in parts) and not any(
            inspect.iscoroutinefunction(method) for method in (kernel.do_complete, kernel.do_inspect)
        )

    def install(self) -> None:
        """Look at requests before ipykernel does, whether its kernel is started already or reads none yet."""
        self._kernel.shell_channel_thread_main = self._take  # what the start lets be called
        if self._kernel.get_parent("shell"):  # a cell loads the extension
            self._receive(self._take)

    def uninstall(self) -> None:
        """Give ipykernel its requests back and end the thread."""
        self._kernel.shell_channel_thread_main = self._theirs
        self._receive(self._theirs)
        self._requests.put(None)

    def __enter__(self) -> None:
        with self._lock:
            self._following += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._following -= 1

    # -- the shell channel's thread --------------------------------------------------------------------------------

    def _on_channel(self, function: Callable[..., object], *args: object, **more: object) -> None:
        """Call a function on the thread to which the shell socket belongs."""
        self._kernel.shell_channel_thread.io_loop.add_callback(function, *args, **more)

    def _receive(self, handler: Callable[[list[Any]], Any]) -> None:
        self._on_channel(self._kernel.shell_stream.on_recv, handler, copy=False)

    def _take(self, frames: list[Any]) -> Any:
        """One request: kept for the thread here, or passed to ipykernel (whose coroutine is returned)."""
        if self._following:
            try:
                mine = self._is_mine(frames)
            except Exception:  # what cannot be read is ipykernel's to refuse
                mine = False
            if mine:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="cellburst-completion", daemon=True)
                    self._thread.start()
                self._requests.put(frames)
                return None
        return self._theirs(frames)

    def _is_mine(self, frames: list[Any]) -> bool:
        session = self._kernel.session
        _, parts = session.feed_identities(frames, copy=False)
        header = session.unpack(parts[1].bytes)  # its signature is checked before it is answered
        if header["msg_type"] not in self._answers or header.get("subshell_id"):
            return False
        return bool(self._wanted(session.unpack(parts[4].bytes)["code"]))

    # -- the thread that answers -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while (frames := self._requests.get()) is not None:
            try:
                self._answer(frames)
            except Exception:
                log.exception("a request beside a running cell could not be answered")

    def _answer(self, frames: list[Any]) -> None:
        session = self._kernel.session
        identities, parts = session.feed_identities(frames, copy=False)
        request = session.deserialize(parts, content=True, copy=False)
        kind = request["header"]["msg_type"]
        self._status("busy", request)
        try:
            content = self._answers[kind](request["content"])
        except Exception as why:  # objects of the user are asked, which may raise anything
            content = {"status": "error", "ename": type(why).__name__, "evalue": str(why), "traceback": []}
        reply = kind.replace("_request", "_reply")
        self._on_channel(session.send, self._kernel.shell_stream, reply, content, request, ident=identities)
        self._status("idle", request)
        with self._lock:
            if self._following:  # a front end takes the last word for the kernel's, which is busy with the cell still
                self._status("busy", request)

    def _status(self, state: str, request: dict[str, Any]) -> None:
        self._kernel.session.send(
            self._kernel.iopub_socket, "status", {"execution_state": state}, parent=request,
            ident=self._kernel._topic("status"),
        )  # fmt: skip
