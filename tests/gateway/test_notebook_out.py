"""The executed notebook: outputs as a front end would have saved them, and their bounds."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst_gateway import notebook_out
from cellburst_gateway.notebook_out import NotebookOut, overwritten


def fresh(cells: int = 1) -> NotebookOut:
    made = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": "", "outputs": [], "execution_count": None}
        for n in range(cells)
    ]
    return NotebookOut({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def stream(out: NotebookOut, text: str, name: str = "stdout", cell: int = 0) -> None:
    out.message(cell, "stream", {"content": {"name": name, "text": text}})


def display(out: NotebookOut, text: str, kind: str = "display_data", display_id: str = "", cell: int = 0) -> None:
    transient = {"display_id": display_id} if display_id else {}
    out.message(
        cell,
        kind,
        {"content": {"data": {"text/plain": text}, "metadata": {}, "transient": transient, "execution_count": 3}},
    )


def outputs(out: NotebookOut, cell: int = 0) -> list[Any]:
    found: list[Any] = out.notebook["cells"][cell]["outputs"]
    return found


def test_streams_of_one_name_are_one_output() -> None:
    out = fresh()
    for text, name in (("a", "stdout"), ("b", "stdout"), ("c", "stderr"), ("d", "stdout")):
        stream(out, text, name)
    assert [(o["name"], o["text"]) for o in outputs(out)] == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


def test_a_display_is_updated_wherever_it_was_shown() -> None:
    out = fresh(2)
    display(out, "one", display_id="x")
    display(out, "one", display_id="x", cell=1)
    display(out, "two", "update_display_data", "x", cell=1)
    assert [outputs(out, n)[0]["data"] for n in (0, 1)] == [{"text/plain": "two"}] * 2 and len(outputs(out, 1)) == 1


def test_clear_output_clears_now_or_at_the_next_output() -> None:
    out = fresh()
    stream(out, "old")
    out.message(0, "clear_output", {"content": {"wait": True}})
    assert outputs(out)[0]["text"] == "old"
    stream(out, "new")
    assert [o["text"] for o in outputs(out)] == ["new"]
    out.message(0, "clear_output", {"content": {"wait": False}})
    assert outputs(out) == []


def test_what_a_terminal_overwrites_is_gone() -> None:
    assert overwritten("10%\r20%\r100%\ndone\n") == "100%\ndone\n"
    assert overwritten("long line\rab\n") == "abng line\n" and overwritten("ab\bc") == "ac"
    assert overwritten("dos\r\nlines\r\n") == "dos\nlines\n"
    assert overwritten("half\r") == "half\r", "the next text goes over it"
    out = fresh()
    for number in range(20_000):
        stream(out, f"\rstep {number:6} of 20000")
    out.ended(0)
    assert outputs(out)[0]["text"].strip("\r") == "step  19999 of 20000"


def test_a_cell_keeps_so_much_and_says_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_out, "MAX_CELL_BYTES", 100)
    out = fresh(2)
    stream(out, "x" * 90)
    stream(out, "y" * 90)
    display(out, "z" * 90)
    out.failed(0, "RunTimeout", "over")
    out.ended(0)
    stream(out, "fits", cell=1)
    kinds = [o["output_type"] for o in outputs(out)]
    assert kinds == ["stream", "error", "stream"] and "bytes more of output were dropped" in outputs(out)[-1]["text"]
    assert outputs(out, 1)[0]["text"] == "fits"


def test_what_is_none_changes_nothing() -> None:
    out = fresh()
    assert not out.message(0, "status", {"content": {"execution_state": "idle"}})
    assert not out.message(0, "stream", {"content": "text"}) and not out.message(0, "comm_open", {"content": {}})
    out.message(0, "error", {"content": {"ename": None, "traceback": "no list"}})
    assert outputs(out)[0]["traceback"] == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("stream"), st.sampled_from(["stdout", "stderr"]), st.text(max_size=20)),
            st.tuples(st.sampled_from(["display_data", "execute_result", "update_display_data"]), st.sampled_from(["", "a", "b"]), st.text(max_size=20)),
            st.tuples(st.just("clear_output"), st.sampled_from(["", "wait"]), st.just("")),
            st.tuples(st.just("error"), st.text(max_size=5), st.text(max_size=5)),
        ),
        max_size=40,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_a_valid_notebook_whatever_comes(messages: list[tuple[str, str, str]]) -> None:
    out = fresh()
    for kind, one, text in messages:
        if kind == "stream":
            stream(out, text, one)
        elif kind == "clear_output":
            out.message(0, kind, {"content": {"wait": one == "wait"}})
        elif kind == "error":
            out.message(0, kind, {"content": {"ename": one, "evalue": text, "traceback": [text]}})
        else:
            display(out, text, kind, one)
    out.ended(0)
    nbformat.validate(nbformat.from_dict(out.notebook))
