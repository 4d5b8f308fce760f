"""A worker in this process, joined to a fake gateway, with the real runner in plain child processes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cellburst_protocol.messages import ContainerReady, MirrorSpec
from cellburst_runtime.snapshot_manifest import Manifest
from cellburst_worker.clock import SystemClock
from cellburst_worker.exchange import Exchange
from cellburst_worker.gateway_link import GatewayLink, http_url, link_url
from cellburst_worker.imports import Imports
from cellburst_worker.site import Limits, Site
from cellburst_worker.worker import Identity, Worker
from tests.fakes.fake_gateway import TOKEN, FakeContainer, FakeGateway
from tests.fakes.plain_runtime import PlainRuntime

MIRROR = MirrorSpec(
    executable="/usr/bin/python3", python_version="3.11.2", prefix="/usr", base_prefix="/usr", sys_path=[]
)


@dataclass
class Setup:
    """All parts of one test."""

    gateway: FakeGateway
    runtime: PlainRuntime
    worker: Worker
    folder: Path
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    kept: Manifest | None = None

    async def ready(self, id: str = "c1", **fields: object) -> FakeContainer:
        """A container whose executor is up."""
        await self.gateway.joined()
        container = await self.gateway.start(id, MIRROR, **fields)
        await container.until(ContainerReady)
        return container


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short path, as a run folder has."""
    with tempfile.TemporaryDirectory(prefix="cbw") as folder:
        yield Path(folder)


@contextlib.asynccontextmanager
async def joined_worker(folder: Path, gateway: FakeGateway, blob_url: str = "") -> AsyncIterator[Setup]:
    """A worker of `gateway`."""
    runtime = PlainRuntime(folder / "run", gpus=["SIM-0", "SIM-1"])
    url = link_url(gateway.url)
    exchange = Exchange(folder / "data" / "blobs", blob_url or http_url(url), lambda: TOKEN)
    imports = Imports(folder / "data" / "imports")
    limits = Limits(ping_seconds=0.1)
    site = Site(runtime, SystemClock(), exchange, folder / "data" / "spool", imports, limits, takes_templates=False)
    worker = Worker(Identity("w1"), runtime.inventory(), site)
    link = GatewayLink(url, lambda: TOKEN, worker)
    setup = Setup(
        gateway, runtime, worker, folder, [asyncio.create_task(link.run()), asyncio.create_task(worker.beat())]
    )
    try:
        yield setup
    finally:
        async with asyncio.timeout(30):
            await worker.shutdown()
        for task in setup.tasks:
            task.cancel()
        await asyncio.gather(*setup.tasks, return_exceptions=True)


@pytest.fixture
async def setup(short_path: Path) -> AsyncIterator[Setup]:
    """A joined worker on the gateway's machine."""
    async with FakeGateway(short_path / "gateway") as gateway, joined_worker(short_path, gateway) as setup:
        yield setup
