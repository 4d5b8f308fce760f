"""Values and output through a worker with the real runner: seals, blobs by folder and by HTTP, bounds, late acknowledgements."""

from __future__ import annotations

import asyncio
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_protocol import mac
from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from tests.fakes.blob_server import BlobServer
from tests.fakes.fake_gateway import MASTER_KEY, TOKEN, FakeContainer, FakeGateway
from tests.worker.conftest import Setup, joined_worker


def sealed(call: str, names: dict[str, object], at: str = "inline") -> tuple[m.NameGroup, bytes, str]:
    data = pickle.dumps(names, protocol=5)
    part = m.ValuePart(hash=blake3(data).hexdigest(), size_bytes=len(data), at=at)  # type: ignore[arg-type]
    group = m.NameGroup(names=list(names), hash=mac.group_hash([part]), parts=[part])
    return group, data, mac.sign(mac.value_key(MASTER_KEY, call), "in", [group])


def there(group: m.NameGroup) -> m.NameGroup:
    parts = [m.ValuePart(hash=p.hash, size_bytes=p.size_bytes) for p in group.parts]
    return m.NameGroup(names=group.names, hash=group.hash, parts=parts)


async def give(container: FakeContainer, call: str, group: m.NameGroup, buffers: list[bytes], seal: str) -> None:
    needed = (await container.until(m.NamesNeeded, call))[1]
    assert needed.groups == [group.hash]
    assert container.stream is not None
    await container.stream.send(m.NamesData(call=call, groups=[group], mac=seal), buffers)


async def test_names_go_in_by_their_seal(setup: Setup) -> None:
    container = await setup.ready()
    group, data, seal = sealed("call-1", {"x": 41})
    await container.run("call-1", "print(x + 1)", names=[there(group)], used=["x"])
    await give(container, "call-1", group, [data], seal)
    await container.until(m.CellDone, "call-1")
    assert container.text("call-1") == "42\n"


async def test_names_with_a_wrong_seal_never_reach_the_runner(setup: Setup) -> None:
    container = await setup.ready()
    group, data, _ = sealed("call-1", {"x": 41})
    await container.run("call-1", "print(x + 1)", names=[there(group)], used=["x"])
    await give(container, "call-1", group, [data], mac.sign(mac.value_key(b"z" * 32, "call-1"), "in", [group]))
    _, cell = await container.until(m.CellDone, "call-1", 10)
    assert cell.status == "error" and cell.error is not None and cell.error.code is ErrorCode.INTEGRITY
    await container.run("call-2", "print('x' in globals())")
    await container.until(m.CellDone, "call-2")
    assert container.text("call-2") == "False\n" and container.text("call-1") == ""


async def test_a_blob_goes_in_through_the_shared_folder_and_its_link_is_removed(setup: Setup) -> None:
    container = await setup.ready()
    group, data, seal = sealed("call-1", {"big": b"y" * 2_000_000}, at="blob")
    path = setup.gateway.folder / "blobs" / group.parts[0].hash[:2] / group.parts[0].hash
    path.parent.mkdir()
    path.write_bytes(data)
    await container.run("call-1", "print(len(big))", names=[there(group)], used=["big"])
    await give(container, "call-1", group, [], seal)
    await container.until(m.CellDone, "call-1")
    assert container.text("call-1") == "2000000\n"
    assert not list((setup.folder / "run" / "c1" / "var" / "in").iterdir()) and path.exists()


@pytest.fixture
def blob_server() -> Iterator[BlobServer]:
    server = BlobServer(TOKEN)
    yield server
    server.close()


async def test_values_go_by_http_when_no_folder_is_shared(short_path: Path, blob_server: BlobServer) -> None:
    gateway = FakeGateway(short_path / "gateway", shares_blobs=False)
    async with gateway, joined_worker(short_path, gateway, blob_server.url) as setup:
        container = await setup.ready()
        group, data, seal = sealed("call-1", {"big": b"y" * 2_000_000}, at="blob")
        blob_server.blobs[group.parts[0].hash] = data
        blob_server.refusals = 2  # a gateway that is just starting: tried again
        await container.run(
            "call-1", "out = big + b'!'", names=[there(group)], used=["big"], bound=["out"], out=["out"]
        )
        await give(container, "call-1", group, [], seal)
        _, cell = await container.until(m.CellDone, "call-1")
        parts = [part for home in cell.home for part in home.parts if part.at == "blob"]
        assert parts and all(blake3(blob_server.blobs[p.hash]).hexdigest() == p.hash for p in parts)
        assert not (short_path / "gateway" / "blobs" / parts[0].hash[:2]).exists()
        missing, other, seal = sealed("call-2", {"big": b"z" * 2_000_000}, at="blob")
        for wrong in (None, other[:-1], other[:-1] + b"!"):
            call = f"call-{wrong and len(wrong)}-{wrong and wrong[-1]}"
            if wrong is not None:
                blob_server.blobs[missing.parts[0].hash] = wrong
            seal = mac.sign(mac.value_key(MASTER_KEY, call), "in", [missing])
            await container.run(call, "print(1)", names=[there(missing)], used=["big"])
            await give(container, call, missing, [], seal)
            _, cell = await container.until(m.CellDone, call, 10)
            assert cell.error is not None and cell.error.code is ErrorCode.INTEGRITY


async def test_a_flood_while_nobody_reads_stays_bounded_and_arrives_whole(setup: Setup) -> None:
    container = await setup.ready()
    await setup.gateway.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worker_container = setup.worker.containers["c1"]
    await setup.gateway.listen()
    await setup.gateway.joined(2)
    await container.run("call-1", "for i in range(300_000): print('line', i)")
    await container.until(m.CellStarted, "call-1")
    await setup.gateway.close()
    async with asyncio.timeout(60):
        while worker_container.report().running_call:
            await asyncio.sleep(0.02)
    assert worker_container.spool.waiting > 0
    await setup.gateway.listen()
    await container.until(m.CellDone, "call-1")
    assert container.text("call-1") == "".join(f"line {i}\n" for i in range(300_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB, the test's own copy included


async def test_a_full_spool_stops_the_writer_and_not_the_memory(setup: Setup) -> None:
    container = await setup.ready()
    container.acknowledge = False
    spool = setup.worker.containers["c1"].spool
    spool._limit_bytes, spool._reuse_bytes = 1_000_000, 250_000
    await container.run("call-1", "import os\nfor i in range(300): print('z' * 50_000)\nprint('end')")
    await container.wait(lambda: spool.full or None)
    async with asyncio.timeout(30):
        settled = -1
        while settled != spool.last_sequence:  # the credit given before is used up, then it stands still
            settled = spool.last_sequence
            await asyncio.sleep(0.5)
    assert not container.of(m.CellDone, "call-1")
    container.acknowledge = True
    assert container.stream is not None
    container.stream.post(m.Ack(sequence=container.recorded))
    await container.until(m.CellDone, "call-1")
    assert container.text("call-1").endswith("end\n") and container.text("call-1").count("z") == 15_000_000


async def test_completion_is_answered_while_a_cell_runs(setup: Setup) -> None:
    container = await setup.ready()
    await container.run("call-1", "alphabet = 1\nimport time\nprint('set')\ntime.sleep(60)")
    await container.wait(lambda: "set" in container.text("call-1"))  # a cell that is started has not run its first line
    reply, _ = await container.ask("complete", code="alpha", cursor_pos=5)
    assert reply.error is None and "alphabet" in reply.content["matches"]  # type: ignore[operator]
    mac.verify(mac.value_key(MASTER_KEY, reply.id), f"side:{reply.id}", reply.groups, reply.mac)
    setup.gateway.notify(m.Interrupt(container="c1", call="call-1", level=3))
    _, ended = await container.until(m.ExecutorEnded, "call-1", 10)
    assert ended.signal == 9
    await container.run("call-2", "print('again')")
    await container.until(m.CellDone, "call-2")
