"""Remote widgets after a page reload: the front end asks the kernel for all widget states; ours are added to the answer.

A reloaded page opens a comm on target `jupyter.widget.control` and sends `request_states`; if that is answered, nothing
else is asked (ipywidgets `manager-base.ts`, `_loadFromKernel`). Local ipywidgets answers with local widgets only, so its
handler is wrapped: it gets a stand-in for the comm, and what it sends through it goes out with the remote states added.
The states are kept here from the comms' own messages.
"""

from __future__ import annotations

from typing import Any

import comm as comm_package

CONTROL_TARGET = "jupyter.widget.control"
WIDGET_TARGET = "jupyter.widget"
Path = list[str | int]


class WidgetStates:
    """The last known state of every remote widget of this kernel."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}
        self._original: Any = None

    def follow(self, msg_type: str, content: dict[str, Any], buffers: list[bytes]) -> None:
        """Take a comm message of either direction into account."""
        comm_id, data = str(content.get("comm_id", "")), content.get("data")
        if msg_type == "comm_close":
            self.forget(comm_id)
        elif not isinstance(data, dict) or not isinstance(data.get("state"), dict):
            return
        elif msg_type == "comm_open" and content.get("target_name") == WIDGET_TARGET:
            self._states[comm_id] = put_buffers(data["state"], data.get("buffer_paths") or [], buffers)
        elif data.get("method") in ("update", "echo_update") and comm_id in self._states:
            self._states[comm_id].update(put_buffers(data["state"], data.get("buffer_paths") or [], buffers))

    def forget(self, comm_id: str) -> None:
        """A widget is closed."""
        self._states.pop(comm_id, None)

    def answer(self) -> tuple[dict[str, Any], list[Path], list[bytes]]:
        """`states`, `buffer_paths` and buffers of all remote widgets, as in an `update_states` message."""
        states: dict[str, Any] = {}
        paths: list[Path] = []
        buffers: list[bytes] = []
        for comm_id, state in list(self._states.items()):
            clean, found = take_buffers(state)
            states[comm_id] = {
                "model_name": state.get("_model_name"),
                "model_module": state.get("_model_module"),
                "model_module_version": state.get("_model_module_version"),
                "state": clean,
            }
            for path, buffer in found:
                paths.append([comm_id, "state", *path])
                buffers.append(buffer)
        return states, paths, buffers

    def install(self, shell: Any) -> None:
        """Wrap the control target. Called again and again, because importing ipywidgets registers its own over ours."""
        targets = comm_package.get_comm_manager().targets
        current = targets.get(CONTROL_TARGET)
        if current != self._opened:
            self._original = current
            targets[CONTROL_TARGET] = self._opened

    def _opened(self, comm: Any, message: dict[str, Any]) -> None:
        control = _ControlComm(comm, self)
        if self._original is not None:
            self._original(control, message)
        else:
            comm.on_msg(control.answer_alone)


class _ControlComm:
    """What local ipywidgets takes for the control comm."""

    def __init__(self, comm: Any, states: WidgetStates) -> None:
        self._comm = comm
        self._states = states

    def send(self, data: dict[str, Any] | None = None, metadata: Any = None, buffers: Any = None) -> None:
        """Add the remote states to an answer; pass anything else on."""
        data, buffers = dict(data or {}), list(buffers or [])
        if data.get("method") == "update_states":
            states, paths, more = self._states.answer()
            data["states"] = {**data.get("states", {}), **states}
            data["buffer_paths"] = [*data.get("buffer_paths", []), *paths]
            buffers += more
        self._comm.send(data, metadata=metadata, buffers=buffers)

    def answer_alone(self, message: dict[str, Any]) -> None:
        """Answer without local ipywidgets."""
        if message["content"]["data"].get("method") == "request_states":
            self.send({"method": "update_states", "states": {}, "buffer_paths": []})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)


def put_buffers(state: dict[str, Any], paths: list[Path], buffers: list[bytes]) -> dict[str, Any]:
    """A copy of a state with its buffers at their paths."""
    whole: dict[str, Any] = _copy(state)
    for path, buffer in zip(paths, buffers, strict=False):
        place: Any = whole
        for key in path[:-1]:
            place = place[key]
        if isinstance(place, list):
            place.insert(int(path[-1]), buffer) if int(path[-1]) >= len(place) else place.__setitem__(
                int(path[-1]), buffer
            )
        else:
            place[path[-1]] = buffer
    return whole


def take_buffers(value: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Path, bytes]]]:
    """A copy of a state without its buffers (in a list None takes a buffer's place), and the buffers with their paths."""
    found: list[tuple[Path, bytes]] = []

    def walk(item: Any, path: Path) -> Any:
        if isinstance(item, dict):
            kept = {}
            for key, inner in item.items():
                if isinstance(inner, bytes | bytearray | memoryview):
                    found.append(([*path, key], bytes(inner)))
                else:
                    kept[key] = walk(inner, [*path, key])
            return kept
        if isinstance(item, list):
            return [walk_in_list(inner, [*path, index]) for index, inner in enumerate(item)]
        return item

    def walk_in_list(inner: Any, path: Path) -> Any:
        if isinstance(inner, bytes | bytearray | memoryview):
            found.append((path, bytes(inner)))
            return None
        return walk(inner, path)

    return walk(value, []), found


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
