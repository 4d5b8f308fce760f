"""The link to the gateway comes and goes; containers and events do not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import RequestError
from cellburst_protocol.states import ContainerState, EndReason
from cellburst_worker.gateway_link import delays, http_url, link_url
from tests.fakes.fake_gateway import FakeGateway
from tests.worker.conftest import MIRROR, Setup, joined_worker

PRINTS = "import time\nfor i in range(150):\n    print(i, flush=True)\n    time.sleep(0.01)"
PRINTED = "".join(f"{i}\n" for i in range(150))


async def test_a_gateway_that_restarts_loses_and_repeats_nothing(setup: Setup) -> None:
    container = await setup.ready()
    await container.run("call-1", PRINTS)
    await container.wait(lambda: "20\n" in container.text("call-1"))
    before = container.recorded
    await setup.gateway.close()
    await setup.gateway.listen()
    join = await setup.gateway.joined(2)
    report = join.containers[0]
    assert (report.container, report.state, report.running_call) == ("c1", ContainerState.READY, "call-1")
    assert report.last_sequence >= before
    await container.until(m.CellDone, "call-1")
    assert container.text("call-1") == PRINTED
    assert container.duplicates == 0


async def test_what_was_sent_but_not_recorded_is_sent_again(setup: Setup) -> None:
    container = await setup.ready()
    container.acknowledge = False
    await container.run("call-1", "for i in range(5): print(i, flush=True)")
    await container.until(m.CellDone, "call-1")
    forgotten = container.events[-3:]
    del container.events[-3:]  # a gateway that died before its record was durable
    await setup.gateway.close()
    await setup.gateway.listen()
    await container.wait(lambda: container.recorded >= forgotten[-1].sequence)
    assert [(g.sequence, g.event) for g in container.events[-3:]] == [(g.sequence, g.event) for g in forgotten]


async def test_a_container_that_is_not_adopted_is_stopped(setup: Setup) -> None:
    await setup.ready("c1")
    kept = await setup.ready("c2")
    setup.gateway.disowned.add("c1")
    await setup.gateway.close()
    await setup.gateway.listen()
    async with asyncio.timeout(10):
        while "c1" in setup.worker.containers:
            await asyncio.sleep(0.01)
    assert setup.runtime.containers["c1"].removed
    await kept.run("call-1", "print('still here')")
    await kept.until(m.CellDone, "call-1")


async def test_an_end_while_the_gateway_is_away_is_told_later(setup: Setup) -> None:
    container = await setup.ready()
    await setup.gateway.close()
    setup.runtime.containers["c1"].process.kill()
    async with asyncio.timeout(10):
        while setup.worker.containers["c1"].state is not ContainerState.ENDED:
            await asyncio.sleep(0.01)
    assert setup.runtime.containers["c1"].removed  # what it held is free at once; only its events wait
    await setup.gateway.listen()
    _, ended = await container.until(m.ContainerEnded)
    assert ended.reason is EndReason.CONTAINER_LOST


async def test_a_task_that_fails_unexpectedly_is_logged(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(stream: object, recorded_sequence: int) -> None:
        raise ZeroDivisionError("of the test")

    await setup.ready()
    monkeypatch.setattr(setup.worker.containers["c1"], "attach", broken)
    await setup.gateway.close()
    await setup.gateway.listen()
    async with asyncio.timeout(10):
        while not any("a task failed" in record.message for record in caplog.records):
            await asyncio.sleep(0.01)
    assert "ZeroDivisionError: of the test" in caplog.text
    assert "c1" in setup.worker.containers


async def test_without_a_gateway_containers_end_after_the_grace(short_path: Path) -> None:
    async with (
        FakeGateway(short_path / "gateway", grace_seconds=0.5) as gateway,
        joined_worker(short_path, gateway) as setup,
    ):
        await setup.ready()
        await gateway.close()
        async with asyncio.timeout(15):
            while not setup.runtime.containers["c1"].removed:
                await asyncio.sleep(0.02)


async def test_leases_hold_and_repeats_change_nothing(setup: Setup) -> None:
    await setup.gateway.joined()
    container = await setup.gateway.start("c1", MIRROR, gpus=["SIM-0"])
    await setup.gateway.request(container.request)  # the same once more
    assert len(setup.worker.containers) == 1
    with pytest.raises(RequestError, match="SIM-0 is leased to container c1"):
        await setup.gateway.start("c2", MIRROR, gpus=["SIM-0"])
    with pytest.raises(RequestError, match="no GPU SIM-9"):
        await setup.gateway.start("c3", MIRROR, gpus=["SIM-9"])
    with pytest.raises(RequestError, match="no container id"):
        await setup.gateway.start("../c4", MIRROR)
    await container.until(m.ContainerReady)


def test_addresses() -> None:
    assert link_url("http://127.0.0.1:8787") == "ws://127.0.0.1:8787/link"
    assert link_url("localhost:8787/") == "ws://localhost:8787/link"
    assert link_url("wss://gpu.example.org/burst/link") == "wss://gpu.example.org/burst/link"
    assert http_url("wss://gpu.example.org/burst/link") == "https://gpu.example.org/burst"
    with pytest.raises(RequestError, match="in the clear"):
        link_url("http://gpu.example.org:8787")
    with pytest.raises(RequestError, match="no gateway's address"):
        link_url("ftp://127.0.0.1")


def test_the_first_tries_come_within_a_tenth_of_a_second_and_the_later_ones_slowly() -> None:
    waits = delays(lambda: 1.0)
    first = [next(waits) for _ in range(40)]
    assert max(first) <= 0.1
    later = [next(waits) for _ in range(60)]
    assert max(later) < 6.01 and later[-1] >= 5.0
