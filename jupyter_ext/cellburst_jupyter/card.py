"""The run card above a cell's output: an anywidget while the cell runs, one line of text and HTML afterwards.

The widget is anywidget's model spoken directly: its comm is passive and its messages raw, for the reason given in
`comms.py` (the stop button must be heard while the cell runs), and so that nothing heavy is imported here. After the
cell the display is replaced by its one line, so the saved notebook holds no widget state.
"""

from __future__ import annotations

import _thread
import functools
import importlib.metadata
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comm as comm_package

from .card_model import CardModel
from .comms import RelayComm
from .publish import send_raw
from .widget_states import WIDGET_TARGET, WidgetStates

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
WIDGET_PROTOCOL = "2.1.0"
UPDATE_SECONDS = 0.5  # live enough to see, few enough not to matter
SHOW_AFTER_SECONDS = 1.0  # a warm cell that takes longer shows its card


class Card:
    """Shows one CardModel. All calls on the main thread; `on_stop` may be called on another (a subshell's).

    `visible` False (`card=off`) shows nothing; `widget` False shows one line of text only.
    """

    def __init__(self, shell: Any, model: CardModel, *, visible: bool, widget: bool, states: WidgetStates) -> None:
        self._shell = shell
        self.model = model
        self.visible = visible
        self._widget = widget and widget_version() is not None
        self.on_stop: Callable[[], None] = _thread.interrupt_main  # until there is a call: as the notebook's own button
        self._states = states
        self._display_id = f"cellburst-card-{uuid.uuid4().hex[:12]}"
        self._comm: RelayComm | None = None
        self._updated = 0.0
        self.shown = False

    def show(self, now: float) -> None:
        """Put the card into the cell's output; nothing happens the second time."""
        if self.shown or not self.visible:
            return
        self.shown = True
        self._updated = now
        bundle = self._bundle(now)
        if self._widget:
            self._open(now)
            assert self._comm is not None
            bundle[WIDGET_MIME] = {"version_major": 2, "version_minor": 0, "model_id": self._comm.comm_id}
        self._publish(bundle, update=False)

    def tick(self, now: float) -> None:
        """Bring the shown card up to date, at most twice a second."""
        if self._comm is not None and now - self._updated >= UPDATE_SECONDS:
            self._updated = now
            self._send("comm_msg", {"method": "update", "state": {"card": self.model.state(now)}, "buffer_paths": []})

    def refresh(self, now: float) -> None:
        """Something changed that a person waits for: bring the line of text up to date where it is all that is shown."""
        if self.shown and self._comm is None:
            self._publish(self._bundle(now), update=True)

    def fold(self, now: float) -> None:
        """The cell is over: leave one line."""
        if self.shown:
            self._publish(self._bundle(now), update=True)
            self._close()

    def _bundle(self, now: float) -> dict[str, Any]:
        return {"text/plain": self.model.line(now), "text/html": self.model.html(now)}

    def _publish(self, bundle: dict[str, Any], update: bool) -> None:
        self._shell.display_pub.publish(
            data=bundle,
            metadata={"cellburst": {"card": True}},
            transient={"display_id": self._display_id},
            update=update,
        )

    def _open(self, now: float) -> None:
        comm = self._comm = RelayComm(uuid.uuid4().hex, WIDGET_TARGET, self._heard)
        comm_package.get_comm_manager().register_comm(comm)
        self._states.install(self._shell)
        version = widget_version()
        state: dict[str, object] = {
            "_model_module": "anywidget", "_model_name": "AnyModel", "_model_module_version": version,
            "_view_module": "anywidget", "_view_name": "AnyView", "_view_module_version": version, "_view_count": None,
            "_dom_classes": [], "_anywidget_id": "cellburst_jupyter.card", "_esm": _asset("card_widget.js"),
            "_css": _asset("card_widget.css"), "layout": None, "tabbable": None, "tooltip": None,
            "card": self.model.state(now),
        }  # fmt: skip
        self._send("comm_open", {"state": state, "buffer_paths": []})

    def _send(self, msg_type: str, data: dict[str, Any]) -> None:
        assert self._comm is not None
        content: dict[str, Any] = {"comm_id": self._comm.comm_id, "data": data}
        if msg_type == "comm_open":
            content["target_name"] = WIDGET_TARGET
        self._states.follow(msg_type, content, [])
        send_raw(
            self._shell, msg_type, content, metadata={"version": WIDGET_PROTOCOL} if msg_type == "comm_open" else None,
            parent=self._shell.kernel.get_parent("shell"), topic=self._comm.topic,
        )  # fmt: skip

    def _heard(self, msg_type: str, message: dict[str, Any]) -> None:
        """A message of the front end, on whatever thread."""
        data = message["content"].get("data") or {}
        if msg_type == "comm_msg" and data.get("method") == "custom" and data.get("content", {}).get("kind") == "stop":
            self.on_stop()

    def _close(self) -> None:
        comm, self._comm = self._comm, None
        if comm is not None:
            content = {"comm_id": comm.comm_id, "data": {}}
            self._states.forget(comm.comm_id)
            comm._closed = True
            comm_package.get_comm_manager().comms.pop(comm.comm_id, None)
            send_raw(
                self._shell, "comm_close", content, parent=self._shell.kernel.get_parent("shell"), topic=comm.topic
            )


@functools.cache
def widget_version() -> str | None:
    """anywidget's front-end version range, or None where it is not installed (then the card is text)."""
    try:
        major, minor, *_ = importlib.metadata.version("anywidget").split(".")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    return f"~{major}.{minor}.*"


@functools.cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
