"""GPUs of a build's step at the worker: its container's own first, else a lease, which ends the step when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.peer import Peer, Stream, StreamEnded
from cellburst_worker.build_aids import GpuDesk, WorkerAids
from cellburst_worker.clock import SystemClock
from cellburst_worker.leases import LeaseBook

GPUS = [
    m.GpuShown(index=i, uuid=f"g{i}", type=kind, name=kind, memory_mib=1, simulated=True)
    for i, kind in enumerate(("A100-80GB", "A100-80GB", "T4"))
]
GIVEN = m.BuildLeaseGiven(id="b-1", lease="l-1", epoch=1, gpus=["g2"], usd_per_second="0.001", price_note="as of today")


@dataclass
class Side:
    """A worker's desk, linked to a gateway that the test plays."""

    desk: GpuDesk
    opened: asyncio.Queue[tuple[m.Message, Stream]] = field(default_factory=asyncio.Queue)
    log: list[str] = field(default_factory=list)

    def aids(self, **fields: object) -> WorkerAids:
        return WorkerAids(self.desk, SystemClock(), **fields)  # type: ignore[arg-type]


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    made = Side(GpuDesk(LeaseBook(m.Inventory(hostname="h", cpu_cores=1, memory_mib=1, gpus=GPUS)), GPUS))

    async def answer(message: m.Message, buffers: list[memoryview]) -> None:
        return None

    worker = Peer(dialer=True, on_message=answer)
    gateway = Peer(dialer=False, on_message=answer, on_open=lambda head, stream: made.opened.put_nowait((head, stream)))

    async def to_gateway(frame: bytes) -> None:
        gateway.feed(frame)

    async def to_worker(frame: bytes) -> None:
        worker.feed(frame)

    pumps = [asyncio.create_task(worker.pump(to_gateway)), asyncio.create_task(gateway.pump(to_worker))]
    made.desk.peer = worker
    yield made
    worker.close()
    gateway.close()
    for pump in pumps:
        pump.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)


async def test_a_containers_own_gpus_do_where_they_fit(side: Side) -> None:
    aids = side.aids(container="c-1", own=["g0", "g1"])
    for asked, got in (("A100", ["g0"]), ("T4,A100-80GB:2", ["g0", "g1"]), ("any", ["g0"])):
        async with aids.gpus(asked, side.log.append) as uuids:
            assert list(uuids) == got
    assert (
        side.opened.empty() and side.log[0] == "GPU: the container's own 1 x A100-80GB (simulated: nothing runs on it)"
    )


async def test_a_lease_is_in_the_book_while_the_step_runs_and_counted(side: Side) -> None:
    book = side.desk.book
    assert book is not None

    async def play() -> float:
        head, stream = await side.opened.get()
        assert isinstance(head, m.BuildLease) and (head.gpu, head.container) == ("T4", "c-1")
        stream.post(m.Queued(position=1, waiting_for="gpu=T4 on h"))
        stream.post(GIVEN)
        over, _ = await stream.recv()
        assert isinstance(over, m.BuildLeaseOver)
        with pytest.raises(StreamEnded):
            await stream.recv()
        return over.seconds

    playing = asyncio.create_task(play())
    async with side.aids(container="c-1", own=["g0"]).gpus("T4", side.log.append) as uuids:
        assert list(uuids) == ["g2"] and [lease.container for lease in book.held] == ["b-1"]
    assert book.held == [] and await playing >= 0
    assert side.log[0] == "waiting for gpu=T4 on h"
    assert side.log[1].startswith("GPU: 1 x T4 (simulated: nothing runs on it), $3.60 an hour")


async def test_a_step_that_fails_gives_its_lease_back(side: Side) -> None:
    async def play() -> None:
        _, stream = await side.opened.get()
        stream.post(GIVEN)
        assert isinstance((await stream.recv())[0], m.BuildLeaseOver)

    playing = asyncio.create_task(play())
    with pytest.raises(ValueError, match="of the step"):
        async with side.aids(build="ib-1").gpus("T4", side.log.append):
            raise ValueError("of the step")
    await playing
    assert side.desk.book is not None and side.desk.book.held == []


async def test_a_lost_lease_ends_the_step_and_not_who_waits_for_it(side: Side) -> None:
    async def play() -> None:
        _, stream = await side.opened.get()
        stream.post(GIVEN)
        await taken.wait()  # a reset overtakes what is queued
        stream.reset()

    taken = asyncio.Event()
    playing = asyncio.create_task(play())
    with pytest.raises(CellburstError, match="the lease of the step's GPUs was lost") as caught:
        async with side.aids(build="ib-1").gpus("T4", side.log.append):
            taken.set()
            await asyncio.Event().wait()
    await playing
    assert caught.value.code is ErrorCode.UNAVAILABLE and side.desk.book is not None and side.desk.book.held == []
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_refusal_is_the_gateways_own_words(side: Side) -> None:
    async def play() -> None:
        _, stream = await side.opened.get()
        stream.reset(ErrorInfo(code=ErrorCode.NO_SUCH_HARDWARE, message="no machine has it"))

    playing = asyncio.create_task(play())
    with pytest.raises(CellburstError, match="no machine has it"):
        async with side.aids(build="ib-1").gpus("T4", side.log.append):
            raise AssertionError("it was given")
    await playing
    side.desk.peer = None
    with pytest.raises(CellburstError, match="cannot be leased"):
        async with side.aids(build="ib-1").gpus("T4", side.log.append):
            raise AssertionError("it was given")
