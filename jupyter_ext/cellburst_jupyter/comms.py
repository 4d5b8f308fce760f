"""Remote widgets: the local kernel owns their comm ids, and passes messages both ways without looking in.

Never `Comm.open` or `Comm.send` here: ipykernel's Comm remembers the (sub)shell that sent last and routes the front
end's messages there, so a widget opened by a running cell would hear them only after the cell (ipykernel 7,
`comm/comm.py`, `_reply_subshell_id`). A passive comm and raw IOPub messages keep the front end's own choice: JupyterLab
sends comm messages on a subshell, and a slider moves while the cell runs. Front ends without subshells deliver them when
the cell ends; that is their lesser mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comm as comm_package
from comm.base_comm import BaseComm
from msgspec import json as fast_json

from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import CommMessage

from .publish import JupyterMessage, send_raw
from .widget_states import WidgetStates

SendComm = Callable[[CommMessage, Sequence[Buffer]], None]


class RelayComm(BaseComm):
    """The local end of a remote comm. Messages from the front end go to the container, on whatever thread they arrive."""

    def __init__(self, comm_id: str, target_name: str, forward: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__(comm_id=comm_id, target_name=target_name, primary=False)
        self._forward = forward

    def publish_msg(self, msg_type: str, *args: Any, **keys: Any) -> None:
        """Nothing is ever published through this object; `send_raw` is used."""

    def handle_msg(self, msg: dict[str, Any]) -> None:
        """Overrides the base, which fires the shell's pre_execute and post_execute events."""
        self._forward("comm_msg", msg)

    def handle_close(self, msg: dict[str, Any]) -> None:
        """The front end closed the widget."""
        self._forward("comm_close", msg)


class SessionComms:
    """The comms of one session. `send` puts a message on the session's stream, from any thread."""

    def __init__(self, shell: Any, send: SendComm, states: WidgetStates) -> None:
        self._shell = shell
        self._send = send
        self._states = states
        self._open: dict[str, RelayComm] = {}

    def relay(self, msg_type: str, message: JupyterMessage, buffers: list[bytes]) -> None:
        """A comm message of the container: keep the local side in step, then show it to the front end."""
        comm_id = str(message.content.get("comm_id", ""))
        if msg_type == "comm_open":
            self._register(comm_id, str(message.content.get("target_name", "")))
        self._states.follow(msg_type, message.content, buffers)
        if msg_type == "comm_close":
            self._unregister(comm_id)
        send_raw(
            self._shell, msg_type, message.content, parent={"header": message.parent_header}, metadata=message.metadata,
            buffers=buffers, topic=f"comm-{comm_id}".encode(),
        )  # fmt: skip

    def close_all(self) -> None:
        """The container is gone: close every comm, so that widgets do not look alive and swallow clicks."""
        for comm_id in list(self._open):
            self._unregister(comm_id)
            self._states.forget(comm_id)
            content = {"comm_id": comm_id, "data": {}}
            send_raw(self._shell, "comm_close", content, topic=f"comm-{comm_id}".encode())

    def _register(self, comm_id: str, target_name: str) -> None:
        comm = RelayComm(comm_id, target_name, self._forward)
        self._open[comm_id] = comm
        comm_package.get_comm_manager().register_comm(comm)
        self._states.install(self._shell)

    def _unregister(self, comm_id: str) -> None:
        comm = self._open.pop(comm_id, None)
        if comm is not None:
            comm._closed = True
            comm_package.get_comm_manager().comms.pop(comm_id, None)

    def _forward(self, msg_type: str, msg: dict[str, Any]) -> None:
        content = msg["content"]
        if msg_type == "comm_close":
            self._open.pop(str(content.get("comm_id", "")), None)
        self._states.follow(msg_type, content, [bytes(b) for b in msg.get("buffers") or ()])
        head = fast_json.encode(
            {
                "header": plain_header(msg["header"]),
                "metadata": msg.get("metadata") or {},
                "content": content,
            }
        )
        self._send(CommMessage(msg_type=msg_type), [head, *(bytes(b) for b in msg.get("buffers") or ())])


def plain_header(header: dict[str, Any]) -> dict[str, Any]:
    """A Jupyter header with its date as text, and without the subshell it came on (that is this kernel's own)."""
    plain = {key: value for key, value in header.items() if key != "subshell_id"}
    date = plain.get("date")
    if date is not None and not isinstance(date, str):
        plain["date"] = date.isoformat()
    return plain
