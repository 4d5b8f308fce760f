"""The cell executor's kernel: a full ipykernel whose messages go to the supervisor instead of to ZeroMQ sockets.

What is ours: the session (sends), the streams (`cell_streams`), the answer to input(), and an application without sockets.
All else is ipykernel's and IPython's: shell, display hook, display publisher, comm manager, completion, configuration.
Written for ipykernel 7; 6.29 has the same methods.
"""

# ipykernel has few annotations
# mypy: disable-error-code="no-untyped-call, assignment"
from __future__ import annotations

import sys
import threading
import types
from collections import OrderedDict
from typing import Any, Callable

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.session import Session
from tornado import ioloop

from . import wire
from .cell_channel import Sender
from .cell_shell import read_to_the_end
from .cell_streams import CellPubThread, Pump

# the local kernel says these itself
NOT_RELAYED = frozenset({"status", "execute_input", "iopub_welcome"})
MAX_PARENTS = 1000  # cells whose threads may still print
OUR_EXTENSION = "cellburst_jupyter"  # autoloaded by the wheel in notebook kernels; %%modal has no meaning here


class CellSession(Session):
    """Sends IOPub messages to the supervisor; replies on other channels are only built."""

    sender: Sender
    pub_thread: CellPubThread

    def __init__(self, sender: Sender, pump: Pump, **options: Any) -> None:
        super().__init__(**options)
        self.sender = sender
        self.pub_thread = CellPubThread(self, pump)
        self.call = ""
        self._calls: OrderedDict[str, str] = OrderedDict()  # msg_id of a parent -> call

    def begin_call(self, call: str, msg_id: str) -> None:
        """Messages with this parent belong to `call`; so do those with a parent that nobody knows."""
        self.call = self._calls[msg_id] = call
        if len(self._calls) > MAX_PARENTS:
            self._calls.popitem(last=False)

    def send(  # type: ignore[no-untyped-def]  # the signature is jupyter_client's
        self,
        stream,
        msg_or_type,
        content=None,
        parent=None,
        ident=None,
        buffers=None,
        track=False,
        header=None,
        metadata=None,
    ):
        """Build the message; if `stream` is the IOPub channel, send it."""
        if isinstance(msg_or_type, dict):
            msg = msg_or_type
            buffers = buffers or msg.get("buffers", [])
        else:
            msg = self.msg(msg_or_type, content=content, parent=parent, header=header, metadata=metadata)
        if stream is self.pub_thread.background_socket or stream is self.pub_thread:
            self.post_iopub(msg, buffers or ())
            self.sender.drain()
        return msg

    def post_iopub(self, msg: dict[str, Any], buffers: Any = (), text_bytes: int = 0) -> None:
        """Queue an IOPub message for the supervisor; one over the wire's limit is replaced by a line that says so."""
        msg_type = msg["header"]["msg_type"]
        if msg_type in NOT_RELAYED or not self.call:
            return  # before the first cell: front ends drop messages without a parent too
        parent = msg["parent_header"]
        call = self._calls.get(parent.get("msg_id", ""), self.call)
        head = {"t": "iopub", "call": call, "msg_type": msg_type}
        if text_bytes:
            head["text_bytes"] = text_bytes
        message = {
            "header": msg["header"],
            "parent_header": parent,
            "metadata": msg["metadata"],
            "content": msg["content"],
        }
        try:
            self.sender.post(head, [self.pack(message), *buffers])
        except wire.WireError as why:
            text = f"[a {msg_type} message was not sent: {why}]\n"
            line = self.msg("stream", {"name": "stderr", "text": text}, parent=parent)
            self.post_iopub(line, text_bytes=len(text))


class CellKernel(IPythonKernel):
    """IPythonKernel without channels. `ask` is set by the executor and gets what a person types."""

    ask: Callable[[str, bool], str]
    _supports_kernel_subshells = False

    def _input_request(self, prompt: str, ident: Any, parent: Any, password: bool = False) -> str:
        return self.ask(prompt, password)


class CellKernelApp(IPKernelApp):
    """IPKernelApp without sockets: configuration, profile, start-up files, extensions and backends are its own."""

    kernel_class = CellKernel
    outstream_class = "cellburst_runner.cell_streams.CellStream"

    def __init__(self, sender: Sender, pump: Pump, **options: Any) -> None:
        super().__init__(**options)
        self._sender = sender
        self._pump = pump

    def init_sockets(self) -> None:
        """A session that sends to the supervisor; no sockets."""
        self.session = CellSession(self._sender, self._pump, parent=self)
        self.iopub_thread = self.session.pub_thread
        self.iopub_socket = self.iopub_thread.background_socket
        self.configure_tornado_logger()

    def init_connection_file(self) -> None:
        """Nobody connects."""

    init_heartbeat = write_connection_file = log_connection_info = init_poller = init_connection_file

    def init_kernel(self) -> None:
        """Make the kernel. The stand-in shell thread says which thread runs cells."""
        self.kernel = CellKernel.instance(
            parent=self, session=self.session, iopub_thread=self.iopub_thread, iopub_socket=self.iopub_socket,
            log=self.log, profile_dir=self.profile_dir, user_ns=self.user_ns,
        )  # fmt: skip
        self.kernel.shell_channel_thread = types.SimpleNamespace(parent_thread=threading.main_thread())
        self.kernel.io_loop = ioloop.IOLoop.current()
        self.displayhook.get_execution_count = lambda: self.kernel.execution_count

    def init_extensions(self) -> None:
        """Load configured extensions but ours."""
        self.extensions = [e for e in self.extensions if e.partition(".")[0] != OUR_EXTENSION]
        super().init_extensions()

    def close(self) -> None:
        """There is nothing to close."""


def make_app(sender: Sender, pipes: dict[str, int]) -> CellKernelApp:
    """A ready kernel application in this process; its history is kept in memory only."""
    app = CellKernelApp.instance(sender, Pump(sender, pipes))
    app.config.HistoryManager.hist_file = ":memory:"
    app.initialize([])
    read_to_the_end()
    sys.modules.pop("debugpy", None)  # kept out until here (see __main__); user code may import it
    return app
