"""The order of a cell's steps around its names: asked for, set, run, sent home."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

from cellburst_protocol import messages as m
from tests.fakes.runner_harness import started


def _group(at: str = "inline", **values: Any) -> tuple[m.NameGroup, bytes]:
    data = pickle.dumps(values, 5)
    digest = hashlib.sha256(data).hexdigest()
    part = m.ValuePart(hash=digest, size_bytes=len(data), at=at)  # type: ignore[arg-type]
    return m.NameGroup(names=list(values), hash=digest, parts=[part]), data


async def test_names_that_come_with_the_cell_are_set(tmp_path: Path) -> None:
    one, data_one = _group(a=1, b=[2])
    two, data_two = _group(c="three")
    async with started(tmp_path) as worker:
        cell = await worker.run("print(a, b, c)", [data_one, data_two], names=[one, two], used=["a", "b", "c"])
        assert cell.text() == "1 [2] three\n"
        there = m.NameGroup(
            names=one.names, hash=one.hash, parts=[m.ValuePart(hash=one.hash, size_bytes=1, at="there")]
        )
        again = await worker.run("print(a)", names=[there], used=["a"])
        assert again.text() == "1\n" and not any(isinstance(e.message, m.NamesNeeded) for e in again.events)


async def test_what_is_lacking_is_asked_for_before_the_cell_starts(tmp_path: Path) -> None:
    lacking, data = _group(big=list(range(5)))
    there = m.NameGroup(
        names=["big"], hash=lacking.hash, parts=[m.ValuePart(hash=lacking.hash, size_bytes=1, at="there")]
    )
    sent, sent_data = _group(small=1)
    async with started(tmp_path) as worker:
        call = worker.begin("print(small, big)", [sent_data], names=[there, sent])
        needed = await worker.wait_for(m.NamesNeeded, call=call)
        assert isinstance(needed.message, m.NamesNeeded) and needed.message.groups == [lacking.hash]
        worker.send(m.NamesData(call=call, groups=[lacking]), [data])
        cell = await worker.finish(call)
        assert cell.text() == "1 [0, 1, 2, 3, 4]\n"
        kinds = [type(e.message) for e in cell.events]
        assert kinds.index(m.NamesNeeded) < kinds.index(m.CellStarted)


async def test_an_interrupt_while_names_are_awaited_ends_the_call_unrun(tmp_path: Path) -> None:
    lacking, _ = _group("there", big=1)
    async with started(tmp_path) as worker:
        call = worker.begin("ran = True", names=[lacking])
        await worker.wait_for(m.NamesNeeded, call=call)
        worker.send(m.Interrupt(call=call, level=1))
        cell = await worker.finish(call)
        assert cell.done.status == "error" and not any(isinstance(e.message, m.CellStarted) for e in cell.events)
        assert cell.messages("error")[0]["ename"] == "KeyboardInterrupt"
        assert (await worker.run("'ran' in globals()")).messages("execute_result")[0]["data"]["text/plain"] == "False"


async def test_a_value_that_cannot_be_opened_is_an_error_of_the_cell(tmp_path: Path) -> None:
    part = m.ValuePart(hash="00" * 32, size_bytes=3, at="inline")
    async with started(tmp_path) as worker:
        bad = m.NameGroup(names=["q"], hash="00" * 32, parts=[part])
        cell = await worker.run("1", [b"\x80\x05x"], names=[bad])
        assert cell.done.status == "error" and cell.messages("error") and cell.reply["ename"]
        short = await worker.run("1", [], names=[bad])
        assert "lacks" in short.reply["evalue"]
        assert (await worker.run("1")).done.status == "ok"


async def test_bound_names_go_home_and_after_an_error_they_stay(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("y = {'k': 1}", bound=["y"])
        assert [g.names for g in cell.done.home] == [["y"]] and cell.done.run_seconds > 0
        failed = await worker.run("z = 1\n1 / 0", bound=["z"])
        assert failed.done.home == [] and failed.done.status == "error"
        assert (await worker.run("z")).messages("execute_result")[0]["data"]["text/plain"] == "1"
