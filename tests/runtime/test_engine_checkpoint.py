"""Checkpoint and restore by the gvisor engine itself: its network, its failures, what it leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine import CheckpointFailed, Container, ContainerSpec
from cellburst_runtime.engine_gvisor import GvisorEngine, GvisorSettings
from cellburst_runtime.engine_process import ProcessEngine
from cellburst_runtime.network import Networks
from cellburst_runtime.tools import find_runsc
from tests.fakes.containers import make_spec, traces
from tests.fakes.dns_server import DnsServer
from tests.fakes.talking import Talking, TalkingEngine
from tests.runtime.test_network import PORT, PUBLIC, World

pytestmark = pytest.mark.gvisor


class Talks:
    """Containers of one engine that talk; `close` removes all of them."""

    def __init__(self, folder: Path, networks: Networks | None = None) -> None:
        settings = GvisorSettings(find_runsc(folder), folder / "runsc", "test")
        engine = GvisorEngine(settings, Cgroups(), networks, no_network="a test without one", snapshot=True)
        self.engine, self.folder = TalkingEngine(engine), folder
        self.network = "none" if networks is None else "outbound"
        self.open: list[tuple[Container, Talking]] = []

    def spec(self, name: str, **changes: object) -> ContainerSpec:
        return make_spec(self.folder / name, "", **{"network": self.network, **changes})

    async def start(self, spec: ContainerSpec, checkpoint: Path | None = None) -> tuple[Container, Talking]:
        talk = Talking(spec.folder / "var/ctl/s")
        await talk.listen()
        try:
            self.open.append((await self.engine.start(spec, checkpoint), talk))
        except BaseException:
            await talk.close()
            raise
        return self.open[-1]

    async def image(self, name: str, code: str = "x = 41") -> Path:
        """A checkpoint of a container that ran this code."""
        container, talk = await self.start(self.spec(f"of-{name}"))
        assert await talk.ask(code) is None
        await talk.detach()
        await container.checkpoint(self.folder / name)
        return self.folder / name

    async def close(self) -> None:
        for container, talk in self.open:
            await talk.close()
            await container.remove()
            assert traces(container.id, container.spec.folder) == []


@pytest.fixture
async def talks(tmp_path: Path) -> AsyncIterator[Talks]:
    made = Talks(tmp_path)
    yield made
    await made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_its_end_is_told_as_a_checkpoint_and_it_goes_on_as_often_as_wanted(talks: Talks) -> None:
    image = await talks.image("image")
    assert (await talks.open[0][0].wait()).cause == "checkpointed"
    for number in range(2):
        container, talk = await talks.start(talks.spec(f"c{number}"), image)
        assert await talk.ask("x += 1; _ = x") == 42
        assert (await container.usage()).memory_bytes is not None
        await talk.ask("print('said in', x, file=sys.stderr, flush=True)")
        await container.kill()
        end = await container.wait()
        assert (end.cause, end.detail) == ("killed", "said in 42")


@pytest.fixture
def world() -> Iterator[World]:
    outside = World()
    yield outside
    outside.close()


@pytest.mark.netns
async def test_a_restored_container_has_its_own_network(world: World, tmp_path: Path) -> None:
    async with DnsServer({"example.org": [PUBLIC]}) as dns:
        networks = Networks(tmp_path / "run", upstreams=[dns.upstream], machine_folder=tmp_path / "machine")
        talks = Talks(tmp_path, networks)
        try:
            spec = talks.spec("of-image")
            container, talk = await talks.start(spec)
            reach = f"""
def reach(host):
    with socket.create_connection((host, {PORT}), 10) as s:
        return [s.recv(5).decode(), s.getsockname()[0]]
kept = socket.create_connection(("{PUBLIC}", {PORT}), 10)
_ = reach("example.org")
"""
            first = await talk.ask(reach)
            await talk.detach()
            await container.checkpoint(tmp_path / "image")
            # The first one still has its address, so the restored ones have others.
            others = [await talks.start(talks.spec(f"c{number}"), tmp_path / "image") for number in range(2)]
            for _, other in others:  # a connection that was open does not come back, and says so
                broken = "try: kept.recv(9); _ = 'alive'\nexcept OSError as e: _ = type(e).__name__"
                assert await other.ask(broken) in ("ConnectionAbortedError", "ConnectionResetError")
            said = [first, *[await other.ask("_ = reach('example.org')") for _, other in others]]
            inside = {network.container_id: network.address.split("/")[0] for network in networks.existing()}
            ids = [spec.id, *[other.id for other, _ in others]]
            assert said == [["hello", inside[container_id]] for container_id in ids]
            assert len(set(inside.values())) == 3
        finally:
            await talks.close()
            await networks.close()


async def test_a_checkpoint_that_fails_leaves_it_running(talks: Talks, small_disk: Path) -> None:
    container, talk = await talks.start(talks.spec("c"))
    await talk.ask("x = 1")
    with pytest.raises(CheckpointFailed) as failed:
        await container.checkpoint(talks.folder / "connected")  # its socket to us is open
    assert failed.value.still_running and failed.value.code == ErrorCode.UNAVAILABLE
    assert await talk.ask("x += 1; _ = x") == 2
    await talk.detach()
    with pytest.raises(CheckpointFailed) as failed:
        await container.checkpoint(small_disk / "image")
    assert failed.value.still_running and failed.value.code == ErrorCode.DISK_FULL
    await talk.listen()
    assert await talk.ask("x += 1; _ = x") == 3
    await talk.detach()
    await container.checkpoint(talks.folder / "whole")
    assert (await container.wait()).cause == "checkpointed"
    with pytest.raises(CheckpointFailed) as failed:
        await container.checkpoint(talks.folder / "late")
    assert not failed.value.still_running


@pytest.mark.parametrize("damage", ["truncated", "missing", "pages missing"])
async def test_a_checkpoint_that_cannot_be_restored(
    talks: Talks, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = await talks.image("image")
    if damage == "truncated":
        state = image / "checkpoint.img"
        os.truncate(state, state.stat().st_size // 2)
    elif damage == "missing":
        shutil.rmtree(image)
    else:
        (image / "pages.img").unlink()
    spec = talks.spec("c")
    with pytest.raises(PlatformError) as failed:
        await talks.start(spec, image)
    assert failed.value.code == ErrorCode.START_FAILED
    told = f"gVisor refused to restore container {spec.id}: what it said is in the worker's log"
    assert str(failed.value) == told, "its own words, and a panic's traces, are nothing for a user"
    assert [bool(record.__dict__["said"]) for record in caplog.records if "said" in record.__dict__] == [True]
    assert [trace for trace in traces(spec.id, spec.folder) if not trace.startswith("folder")] == []
    _, talk = await talks.start(spec)  # the same folder, booted
    assert await talk.ask("_ = 'x' in globals()") is False


async def test_the_process_engine_has_no_checkpoints(tmp_path: Path) -> None:
    engine = ProcessEngine(Cgroups(), no_limits="a test")
    spec = make_spec(tmp_path / "c", "import signal; signal.pause()")
    assert engine.snapshot_parts(spec) == {}
    with pytest.raises(PlatformError):
        await engine.start(spec, tmp_path)
    container = await engine.start(spec)
    try:
        with pytest.raises(CheckpointFailed) as failed:
            await container.checkpoint(tmp_path / "image")
        assert failed.value.still_running
    finally:
        await container.remove()


async def test_a_cancelled_checkpoint_ends_either_way(talks: Talks) -> None:
    container, talk = await talks.start(talks.spec("c"))
    await talk.ask("x = 7")
    await talk.detach()
    task = asyncio.create_task(container.checkpoint(talks.folder / "image"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await container.wait()).cause == "checkpointed"
    _, talk = await talks.start(talks.spec("again"), talks.folder / "image")
    assert await talk.ask("_ = x") == 7
