"""A step of an image with a secret, a simulated GPU and a volume, through a real gateway and a real worker with real sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.store_rows import BUILDS
from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.images import AnyStep, Copy, ImageRecipe, RunCommands, StepVolume
from cellburst_protocol.volumes import Chunk, CommitVolume, CreateVolume, FileEntry
from cellburst_runtime.image_secrets import BuildSecrets
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.runtime import Runtime
from cellburst_runtime.volume_tree import VolumeStore
from cellburst_worker.clock import SystemClock
from cellburst_worker.exchange import Exchange
from cellburst_worker.gateway_link import GatewayLink, http_url, link_url
from cellburst_worker.imports import Imports
from cellburst_worker.site import Site
from cellburst_worker.volume_desk import VolumeDesk
from cellburst_worker.volume_gateway import GatewayVolumes
from cellburst_worker.volume_outbox import Outbox
from cellburst_worker.worker import Identity, Worker
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.images import ImageHouse, content
from tests.gateway.house import House

pytestmark = [pytest.mark.gvisor, pytest.mark.netns, pytest.mark.timeout(400)]

BUILD_SECONDS = 120.0
VALUE = "s3cr3t-of-the-step"


@asynccontextmanager
async def real_worker(house: House, folder: Path) -> AsyncIterator[Runtime]:
    """A worker with gVisor and two simulated GPUs, joined."""
    for name in ("run", "data"):
        (folder / name).mkdir()
    hub = house.gateway.hub
    runtime = await Runtime.create(
        run_folder=folder / "run", data_folder=folder / "data", simulate_gpus="A100:2", engine="gvisor"
    )
    token, url = hub.secrets.worker_token, link_url(hub.url)
    exchange = Exchange(folder / "data" / "blobs", http_url(url), lambda: token)
    routes, files = GatewayVolumes(http_url(url), lambda: token), folder / "data" / "volumes"
    site = Site(
        runtime, SystemClock(), exchange, folder / "data" / "spool", Imports(folder / "data" / "imports"),
        keeps_warm=False, volumes=VolumeDesk(VolumeStore(files), routes, Outbox(files / "outbox", routes)),
    )  # fmt: skip
    worker = Worker(Identity("real"), runtime.inventory(), site)
    tasks = [asyncio.create_task(GatewayLink(url, lambda: token, worker).run()), asyncio.create_task(worker.beat())]
    try:
        await house.until(lambda: "real" in hub.fleet.workers)
        yield runtime
    finally:
        async with asyncio.timeout(60):
            await worker.shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runtime.close()


async def volume_with(house: House, name: str, text: bytes) -> str:
    """A volume with one file, `old`; its id."""
    hub = house.gateway.hub
    owner = hub.fleet.workers["real"].owner
    row, _ = await hub.volumes.create(owner, CreateVolume(name=name))
    hash = blake3(text).hexdigest()
    hub.volumes.chunks.put(owner.workspace, hash, text)
    entry = FileEntry(path="old", size_bytes=len(text), mode=0o644, chunks=[Chunk(hash, len(text))])
    await hub.volumes.commit(owner, row.id, CommitVolume(base=0, key="first", by="a test", changes=[entry]))
    return row.id


async def names_in(house: House, volume: str) -> list[str]:
    workspace = house.gateway.hub.fleet.workers["real"].owner.workspace
    files = await house.gateway.hub.volumes.files(workspace, volume, 0, "")
    return sorted(entry.path for entry in files.entries if not entry.deleted)


async def built(cli: FakeKernel, recipe: ImageRecipe) -> tuple[m.ImageBuilt, list[str]]:
    """How a build ended, and its lines."""
    stream = cli.peer.open(m.BuildStream(recipe=recipe))
    lines: list[str] = []
    async with asyncio.timeout(BUILD_SECONDS):
        while not isinstance(message := (await stream.recv())[0], m.ImageBuilt):
            assert isinstance(message, m.BuildLog)
            lines += message.lines
    return message, lines


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    gateway = Gateway(GatewayConfig(data_folder=tmp_path / "data", run_folder=tmp_path / "run", local_worker=False))
    await gateway.start()
    made = House(gateway)
    try:
        yield made
    finally:
        await made.close()


async def test_a_step_has_a_secret_a_gpu_and_a_volume(house: House, short_path: Path, tmp_path: Path) -> None:
    tools, hub = ImageHouse(short_path / "base"), house.gateway.hub
    base = tools.base()
    for pack in (step.pack for step in base if isinstance(step, Copy)):
        place = hub.blobs.path(pack.hash)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(tools.file(pack.hash).read_bytes())
    look = (
        f'set -e; test "${{#TOKEN}}" = {len(VALUE)}; echo "it is $TOKEN"; nvidia-smi > /smi; cat /data/sub/old > /old; '
        "echo new > /data/sub/new; rm /data/sub/old; if touch /fixed/x; then exit 9; fi; ls /fixed > /fixed-has; "
        "echo live > /shared/now"
    )
    volumes = [
        StepVolume(name="data", path="/data/sub"), StepVolume(name="fixed", path="/fixed", read_only=True),
        StepVolume(name="scratch", path="/shared", kind="shared", create=True),
    ]  # fmt: skip

    def recipe(command: str) -> ImageRecipe:
        step: AnyStep = RunCommands(commands=[command], secrets=["hub"], gpu="A100:2", volumes=volumes)
        return ImageRecipe(steps=[*base, step])

    async with real_worker(house, short_path) as runtime:
        cli = await house.cli()
        await cli.peer.request(m.PutSecret(name="hub", values={"TOKEN": VALUE}, mode="create"))
        data, fixed = await volume_with(house, "data", b"as it was"), await volume_with(house, "fixed", b"fixed")
        # A step that fails has changed nothing, and holds nothing.
        failed, _ = await built(cli, recipe("echo bad > /data/sub/bad; exit 3"))
        assert failed.error is not None and failed.error.code is ErrorCode.IMAGE_BUILD, failed.error
        await house.until(lambda: not hub.fleet.containers)
        assert await names_in(house, data) == ["old"]
        done, lines = await built(cli, recipe(look))
        assert done.error is None, done.error
        await house.until(lambda: not hub.fleet.containers)
        assert not hub.store.leases_open()
        assert await names_in(house, data) == ["new"] and await names_in(house, fixed) == ["old"]
        shared = Path(hub.network_file_systems.folder_text(hub.fleet.workers["real"].owner.workspace))
        assert (shared / "scratch/now").read_text() == "live\n"
        assert "it is ****(hub.TOKEN)" in lines
        assert any("2 x A100-40GB (simulated" in line and "an hour until the step has ended" in line for line in lines)
        cost = await cli.peer.request(m.GetCost())
        assert isinstance(cost, m.CostReport)
        [line] = cost.lines
        assert line.notebook == BUILDS and Decimal(line.usd) > 0 and line.seconds > 0
        # It is there: nothing is asked for any more, so it comes without anybody who could give it.
        known = BuildSecrets(versions={"hub": 1})
        with await runtime.images.build(recipe(look), tools.file, lines.append, known) as image:
            assert b"SIMULATED" in content(image, "/smi") and content(image, "/old") == b"as it was"
            assert content(image, "/fixed-has") == b"old\n"
            made = {path.relative_to(image.layers[0]).as_posix() for path in image.layers[0].rglob("*")}
            assert made == {"smi", "old", "fixed-has"}
    assert mounts_below(short_path) == []
    await house.close()  # nothing changes any more
    files = [path for folder in (short_path, tmp_path) for path in folder.rglob("*")]
    kept = [path for path in files if path.is_file() and not path.is_symlink()]
    assert kept and not [path for path in kept if VALUE.encode() in path.read_bytes()]
