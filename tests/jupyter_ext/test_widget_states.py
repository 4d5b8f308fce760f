"""Remote widgets' states, as they are given to a front end that was reloaded."""

from __future__ import annotations

from typing import Any

import comm
import pytest

from cellburst_jupyter.widget_states import CONTROL_TARGET, WidgetStates, put_buffers, take_buffers


def opened(states: WidgetStates, comm_id: str = "w1", **state: Any) -> None:
    data = {
        "state": {"_model_name": "M", "_model_module": "m", "_model_module_version": "1", **state},
        "buffer_paths": [],
    }
    states.follow("comm_open", {"comm_id": comm_id, "target_name": "jupyter.widget", "data": data}, [])


def test_updates_of_both_directions_are_kept_until_the_comm_closes() -> None:
    states = WidgetStates()
    opened(states, value=1, other=2)
    states.follow("comm_msg", {"comm_id": "w1", "data": {"method": "update", "state": {"value": 5}}}, [])
    states.follow("comm_msg", {"comm_id": "w1", "data": {"method": "custom", "content": {}}}, [])
    answer, _, _ = states.answer()
    assert answer["w1"]["state"]["value"] == 5
    assert answer["w1"]["state"]["other"] == 2
    assert answer["w1"]["model_name"] == "M"
    states.follow("comm_close", {"comm_id": "w1", "data": {}}, [])
    assert states.answer() == ({}, [], [])


def test_buffers_are_put_in_and_taken_out_at_their_paths() -> None:
    state = {"image": None, "deep": {"list": [1, None, 3]}}
    whole = put_buffers(state, [["image"], ["deep", "list", 1]], [b"a", b"b"])
    assert whole == {"image": b"a", "deep": {"list": [1, b"b", 3]}}
    assert state["image"] is None
    clean, found = take_buffers(whole)
    assert clean == {"deep": {"list": [1, None, 3]}}
    assert found == [(["image"], b"a"), (["deep", "list", 1], b"b")]


class FakeComm:
    """The control comm as a kernel gives it to a target."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.callback: Any = None

    def on_msg(self, callback: Any) -> None:
        self.callback = callback

    def send(self, data: dict[str, Any], metadata: Any = None, buffers: Any = None) -> None:
        self.sent.append((data, buffers))


@pytest.fixture
def targets() -> Any:
    table = comm.get_comm_manager().targets
    before = dict(table)
    table.pop(CONTROL_TARGET, None)
    yield table
    table.clear()
    table.update(before)


REQUEST = {"content": {"data": {"method": "request_states"}}}


def test_without_local_widgets_the_remote_ones_are_the_answer(targets: dict[str, Any]) -> None:
    states, control = WidgetStates(), FakeComm()
    opened(states, image=b"bytes")
    states.install(None)
    targets[CONTROL_TARGET](control, {})
    control.callback(REQUEST)
    ((data, buffers),) = control.sent
    assert list(data["states"]) == ["w1"]
    assert data["buffer_paths"] == [["w1", "state", "image"]]
    assert buffers == [b"bytes"]


def test_remote_states_are_added_to_what_local_ipywidgets_answers(targets: dict[str, Any]) -> None:
    def local_target(given: Any, message: Any) -> None:
        def answer(request: Any) -> None:
            state = {"local": {"state": {}}}
            given.send(
                {"method": "update_states", "states": state, "buffer_paths": [["local", "state", "b"]]}, buffers=[b"l"]
            )

        given.on_msg(answer)

    states, control = WidgetStates(), FakeComm()
    opened(states, image=b"r")
    targets[CONTROL_TARGET] = local_target
    states.install(None)
    states.install(None)  # a second time changes nothing: it must not wrap itself
    targets[CONTROL_TARGET](control, {})
    control.callback(REQUEST)
    ((data, buffers),) = control.sent
    assert set(data["states"]) == {"local", "w1"}
    assert data["buffer_paths"] == [["local", "state", "b"], ["w1", "state", "image"]]
    assert buffers == [b"l", b"r"]
