"""The fake gateway speaks the true protocol: a link of ours opens a session, runs a cell and sees a replay."""

from __future__ import annotations

import asyncio

from cellburst.endpoint import Endpoint
from cellburst.link import Link
from cellburst_protocol import messages as m
from tests.fakes.fake_gateway_for_kernel import TOKEN, Cell, FakeKernelGateway


async def play(cell: Cell) -> None:
    cell.print("hi")
    cell.done()
    cell.end()


async def events(link: Link, from_sequence: int, run: m.RunCell | None) -> list[m.Message]:
    assert link.peer is not None
    stream = link.peer.open(m.SessionStream(notebook="n", from_sequence=from_sequence))
    if run is not None:
        stream.post(run)
    got: list[m.Message] = []
    while not (got and isinstance(got[-1], m.Numbered) and got[-1].sequence == 3):
        message, _ = await asyncio.wait_for(stream.recv(), 20)
        got.append(message)
    return got


async def test_a_cell_and_its_replay() -> None:
    with FakeKernelGateway({"ok": play}) as gateway:
        link = Link(lambda: Endpoint(gateway.url, TOKEN), role="kernel")
        await link.connect()
        first = await events(link, 0, m.RunCell(call="c", code="1"))
        assert [type(message).__name__ for message in first] == ["SessionInfo", "CellAccepted", *["Numbered"] * 3]
        again = await events(link, 1, None)
        assert [message.sequence for message in again if isinstance(message, m.Numbered)] == [2, 3]
        await link.close()
