"""A worker is told what waits for its hardware, once, also when it has joined anew."""

from __future__ import annotations

import pytest

from cellburst_gateway import reports
from cellburst_gateway.placement_words import waited
from cellburst_protocol.messages import Interrupt, Queued, Waiting
from cellburst_protocol.resources import GpuChoice, Resources
from tests.gateway.house import House

ALL_GPUS = Resources(gpus=(GpuChoice("A100", 2),), memory_mib=700)


async def test_a_worker_is_told_what_waits_for_it_and_when_nothing_does(house: House) -> None:
    worker = await house.worker(gpus=("A100-80GB", "A100-80GB"))
    first = await house.kernel()
    await first.run("wait", call="c1", resources=ALL_GPUS)
    await first.until(lambda: "CellStarted" in first.kinds("c1"))
    assert worker.waiting == []
    second, third = await house.kernel(notebook="/2.ipynb"), await house.kernel(notebook="/3.ipynb")
    await second.run("print 2", call="c2", resources=ALL_GPUS)
    await second.until(lambda: bool(second.of("c2", Queued)))
    await house.until(lambda: worker.waiting == [Waiting(count=1, memory_mib=700)])
    await third.run("print 3", call="c3", resources=ALL_GPUS)
    await house.until(lambda: worker.waiting[1:] == [Waiting(count=2, memory_mib=1400)])
    hub = house.gateway.hub
    session = next(session for session in hub.sessions if session.record.notebook == "/2.ipynb")
    assert session.call is not None and session.call.queued_at is not None
    session.call.queued_at -= 3 * 60 + 5
    said = reports.status(hub, session.record.owner.workspace).queue
    assert [line.partition(":")[0] for line in said] == [
        "default of /2.ipynb waits 3 min", "default of /3.ipynb waits less than a minute",
    ]  # fmt: skip
    assert "is held by" in said[0] and "1 ahead in the queue" in said[1]
    assert house.gateway.hub.placer.words("another") == [], "whose notebooks wait is nobody else's business"
    # It has joined anew: what it knew is gone.
    before = len(worker.waiting)
    await worker.drop_link()
    await house.until(lambda: worker.waiting[before:] == [Waiting(count=2, memory_mib=1400)])
    for kernel, call in ((second, "c2"), (third, "c3")):
        assert kernel.info is not None
        kernel.peer.notify(Interrupt(session=kernel.info.session, level=1))
        await kernel.ended(call)
    await house.until(lambda: worker.waiting[-1] == Waiting())
    worker.release()
    await first.ended("c1")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "less than a minute"),
        (59.9, "less than a minute"),
        (60.0, "1 min"),
        (3599.0, "59 min"),
        (7200.0, "2 h"),
        (7560.0, "2 h 6 min"),
    ],
)
def test_a_wait_is_told_to_the_minute(seconds: float, words: str) -> None:
    assert waited(seconds) == f"waits {words}"
