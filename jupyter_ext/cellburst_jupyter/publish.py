"""Ways into the notebook: through the shell (hooks, %%capture and history see it) or raw (it keeps its own parent).

Raw messages may be sent from any thread: ipykernel's IOPub socket hands them to its own thread. Nothing here is used at
import; outside ipykernel (a terminal) raw messages have nowhere to go and are dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import json as fast_json

if TYPE_CHECKING:
    from cellburst_protocol.framing import Buffer


class JupyterMessage(msgspec.Struct):
    """Buffer 0 of an `IOPub` or `CommMessage`."""

    header: dict[str, Any] = {}
    parent_header: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    content: dict[str, Any] = {}


_decoder = fast_json.Decoder(JupyterMessage)


def read_message(buffers: Sequence[Buffer]) -> tuple[JupyterMessage, list[bytes]]:
    """The Jupyter message of an event's buffers, and the message's own buffers."""
    return _decoder.decode(bytes(buffers[0])), [bytes(buffer) for buffer in buffers[1:]]


def kernel_of(shell: Any) -> Any:
    """The ipykernel of a shell, or None in a terminal."""
    return getattr(shell, "kernel", None)


def shell_parent(shell: Any) -> dict[str, Any]:
    """The message that the running cell came in, or {}. ipykernel 6 has no argument."""
    kernel = kernel_of(shell)
    if kernel is None:
        return {}
    parent = kernel.get_parent("shell")
    return parent if isinstance(parent, dict) else {}


def send_raw(
    shell: Any,
    msg_type: str,
    content: dict[str, Any],
    *,
    parent: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    buffers: Sequence[bytes] = (),
    topic: bytes | None = None,
) -> None:
    """Publish a message on IOPub as it is, with `parent` (a whole message, or {"header": ...})."""
    kernel = kernel_of(shell)
    if kernel is None or kernel.session is None or kernel.iopub_socket is None:
        return
    kernel.session.send(
        kernel.iopub_socket, msg_type, content, parent=parent or {}, metadata=metadata,
        ident=topic if topic is not None else f"kernel.{kernel.ident}.{msg_type}".encode(), buffers=list(buffers),
    )  # fmt: skip


def tell(text: str, *, warning: bool = False) -> None:
    """A line of ours under the cell, told apart from the cell's own output by its mark."""
    stream = sys.stderr if warning else sys.stdout
    stream.write(f"cellburst: {text}\n")
    stream.flush()


class RemoteResult:
    """What `Out[n]` holds after a remote cell: the remote result as it was shown there, not the value itself."""

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self._data = data
        self._metadata = metadata

    def __repr__(self) -> str:
        text = self._data.get("text/plain", "")
        return text if isinstance(text, str) else str(text)

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return dict(self._data), dict(self._metadata)
