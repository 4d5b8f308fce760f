"""Names of a parked session from one worker to another, with the real runner in plain processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode
from tests.fakes.blob_server import BlobServer
from tests.fakes.fake_gateway import TOKEN, FakeGateway
from tests.worker.conftest import Setup, joined_worker
from tests.worker.test_parking import cell, park

NAMES = "big = b'x' * 3_000_000; small = {'a': [1]}; also = small['a']; import threading; lock = threading.Lock()"


async def sent(setup: Setup, parked: str) -> m.ParkedNames:
    answer = await setup.gateway.request(m.SendParked(parked=parked))
    assert isinstance(answer, m.ParkedNames)
    return answer


async def arrived(setup: Setup, names: m.ParkedNames) -> None:
    """The names are in a container of this worker, which has nothing parked."""
    there = await setup.ready("c9", names=names)
    _, ready = await there.until(m.ContainerReady)
    assert ready.start == "names" and [lost.name for lost in ready.lost] == ["lock"]
    assert "another machine" in next(phase.detail for phase in ready.phases if phase.name == "restore")
    assert await cell(there, "call-9", "print(len(big), small, also is small['a'])") == "3000000 {'a': [1]} True\n"


async def test_names_go_to_another_container_and_stay_where_they_are_kept(setup: Setup) -> None:
    await cell(await setup.ready(), "call-1", NAMES)
    await park(setup)
    names = await sent(setup, "p1")
    assert names.inline is not None and {name for group in names.groups for name in group.names} > {
        "big",
        "small",
        "also",
    }
    await arrived(setup, names)
    assert setup.runtime.snapshots.parked("p1") is not None  # until it is forgotten
    await setup.gateway.request(m.ForgetParked(parked=["p1"]))
    async with asyncio.timeout(10):
        while setup.runtime.snapshots.parked("p1") is not None:
            await asyncio.sleep(0.01)


async def test_they_go_through_the_gateway_s_store_where_no_folder_is_shared(short_path: Path) -> None:
    server = BlobServer(TOKEN)
    here, there = short_path / "1", short_path / "2"
    here.mkdir()
    there.mkdir()
    gateways = FakeGateway(here / "g", shares_blobs=False), FakeGateway(there / "g", shares_blobs=False)
    try:
        async with (
            gateways[0] as one, gateways[1] as two, joined_worker(here, one, server.url) as first,
            joined_worker(there, two, server.url) as second,
        ):  # fmt: skip
            await cell(await first.ready(), "call-1", NAMES)
            await park(first)
            names = await sent(first, "p1")
            hashes = {part.hash for group in names.groups for part in group.parts if part.at == "blob"}
            assert names.inline is not None and {*hashes, names.inline.hash} <= set(server.blobs)
            assert not [path for path in (here / "data" / "blobs").rglob("*") if path.name in hashes]
            await arrived(second, names)
            # What did not come whole is said, and the container is there without it.
            server.blobs.clear()
            for path in (there / "data" / "blobs").rglob("*"):
                if path.is_file():
                    path.unlink()
            empty = await second.ready("c10", names=names)
            _, ready = await empty.until(m.ContainerReady)
            assert ready.start == "boot" and {"big", "small", "lock"} <= {lost.name for lost in ready.lost}
            assert ready.notes and await cell(empty, "call-10", "print(1)") == "1\n"
    finally:
        server.close()


async def test_what_is_not_there_or_had_secrets_is_refused(setup: Setup) -> None:
    with pytest.raises(CellburstError) as caught:
        await setup.gateway.request(m.SendParked(parked="p-none"))
    assert caught.value.code is ErrorCode.NOT_FOUND
