"""One call's events, shown under its cell as a local kernel would have shown them.

| remote message | here |
| --- | --- |
| stream | `sys.stdout`/`sys.stderr`, so that %%capture sees it |
| display_data, update_display_data | `display_pub.publish`, so that hooks and history see it |
| clear_output | `display_pub.clear_output` |
| execute_result | `sys.displayhook(RemoteResult)`: the local count, `Out[n]` and `_` |
| error | kept: the last one is raised at the end, earlier ones (shown by code that went on) are published raw |
| execute_reply.payload | `payload_manager` |
| comm_* | raw, and the local comm registry (`comms.py`) |
| status, execute_input | dropped: the local kernel sends its own |

Messages with another parent than this cell's (a widget callback's) are published raw with that parent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from msgspec import json as fast_json

from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import CellDone, IOPub

from .comms import SessionComms
from .errors_shown import RemoteError, remote_error
from .publish import JupyterMessage, RemoteResult, read_message, send_raw

_DROPPED = frozenset({"status", "execute_input", "iopub_welcome"})


class Relay:
    """Shows the messages of one cell under the local cell `parent` (its whole execute_request).

    `msg_id` is the id that the cell was sent with: another one than the parent's when an earlier cell is attached to.
    """

    def __init__(self, shell: Any, comms: SessionComms, parent: dict[str, Any], msg_id: str) -> None:
        self._shell = shell
        self._comms = comms
        self._parent = parent
        self._msg_id = msg_id
        self._error: JupyterMessage | None = None
        self._published: dict[str, Any] = {}  # content of the last error that was published raw
        self._unflushed = ""  # the stream that was written to last, until it is flushed
        self.shown_anything = False

    def iopub(self, event: IOPub, buffers: Sequence[Buffer]) -> None:
        """Show one message of the executor."""
        if event.msg_type in _DROPPED:
            return
        message, own = read_message(buffers)
        if event.msg_type.startswith("comm_"):
            self._comms.relay(event.msg_type, message, own)
            return
        self.shown_anything = True
        parent_id = message.parent_header.get("msg_id", "")
        if self._msg_id and parent_id and parent_id != self._msg_id:
            self.flush()
            show_raw(self._shell, event.msg_type, message, own, message.parent_header)
            return
        if event.msg_type != "stream":
            self.flush()
        if self._error is not None:
            self._publish_error()
        self._show(event.msg_type, message, own)

    def _show(self, msg_type: str, message: JupyterMessage, buffers: list[bytes]) -> None:
        content = message.content
        match msg_type:
            case "stream":
                name = content.get("name", "stdout")
                if name != self._unflushed:  # each buffers for itself: keep their order
                    self.flush()
                (sys.stderr if name == "stderr" else sys.stdout).write(content.get("text", ""))
                self._unflushed = name
            case "display_data" | "update_display_data":
                self._shell.display_pub.publish(
                    data=content.get("data", {}), metadata=content.get("metadata", {}),
                    transient=content.get("transient") or {}, update=msg_type == "update_display_data",
                )  # fmt: skip
            case "clear_output":
                self._shell.display_pub.clear_output(wait=bool(content.get("wait")))
            case "execute_result":
                sys.displayhook(RemoteResult(content.get("data", {}), content.get("metadata", {})))
            case "error":
                self._error = message
            case _:
                show_raw(self._shell, msg_type, message, buffers, self._parent.get("header", {}))

    def flush(self) -> None:
        """Let written text reach the front end before anything else does, and before a wait."""
        if self._unflushed:
            (sys.stderr if self._unflushed == "stderr" else sys.stdout).flush()
            self._unflushed = ""

    def done(self, done: CellDone, buffers: Sequence[Buffer]) -> RemoteError | None:
        """The executor's reply: pass payloads on; the error to raise, if the cell ended with one."""
        self.flush()
        reply: dict[str, Any] = fast_json.decode(bytes(buffers[0])) if buffers else {}
        for payload in reply.get("payload") or []:
            if payload.get("source") != "ask_exit":  # exit() there must not shut this kernel down
                self._shell.payload_manager.write_payload(payload, single=False)
        if done.status == "ok" or done.error is not None:  # the worker refused the cell: CallEnded says why
            if self._error is not None:
                self._publish_error()
            return None
        shown = self._error.content if self._error is not None else {}
        failure = remote_error(
            str(reply.get("ename") or shown.get("ename") or "Aborted"),
            str(reply.get("evalue") or shown.get("evalue") or ""),
            list(shown.get("traceback") or reply.get("traceback") or []),
        )
        # No message to show: it was published as it came, or IPython there printed it (usage errors, exception groups).
        traceback = reply.get("traceback")
        if self._error is None and (not traceback or self._published.get("traceback") == traceback):
            failure.shown_in = self._shell
        self._error = None
        return failure

    def _publish_error(self) -> None:
        """An error that did not end the cell: the code showed it and went on."""
        message, self._error = self._error, None
        if message is not None:
            self._published = message.content
            send_raw(self._shell, "error", message.content, parent=self._parent)


def show_raw(
    shell: Any, msg_type: str, message: JupyterMessage, buffers: list[bytes], parent_header: dict[str, Any]
) -> None:
    """Publish a message under the cell that it belongs to, whichever runs now. From any thread."""
    content = dict(message.content)
    if msg_type == "execute_result":
        msg_type = "display_data"
        content.pop("execution_count", None)
    send_raw(shell, msg_type, content, parent={"header": parent_header}, metadata=message.metadata, buffers=buffers)
