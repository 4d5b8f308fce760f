"""A worker whose engine has no snapshots: a fork server with the notebook's imports takes the place of a template."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from cellburst_jupyter.environment import collect_environment
from cellburst_protocol import messages as m
from cellburst_protocol.states import EndReason
from cellburst_runtime.runtime import Runtime
from cellburst_worker import template_policy
from cellburst_worker.clock import SystemClock
from cellburst_worker.exchange import Exchange
from cellburst_worker.gateway_link import GatewayLink, http_url, link_url
from cellburst_worker.imports import Imports
from cellburst_worker.site import Limits, Site
from cellburst_worker.worker import Identity, Worker
from tests.fakes.fake_gateway import TOKEN, FakeContainer, FakeGateway
from tests.fakes.forks import until


async def cell(container: FakeContainer, call: str, code: str) -> str:
    await container.run(call, code)
    _, done = await container.until(m.CellDone, call)
    assert done.status == "ok", container.text(call)
    return container.text(call)


async def test_later_containers_of_a_notebook_come_out_of_a_fork_server(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_policy, "QUIET_SECONDS", math.inf)  # until the first cell is done
    monkeypatch.setattr(template_policy, "NEED_BYTES", 0)
    notebook = short_path / "notebook"
    for folder in (notebook, short_path / "run", short_path / "data"):
        folder.mkdir()
    async with FakeGateway(short_path / "gateway") as gateway:
        runtime = await Runtime.create(run_folder=short_path / "run", data_folder=short_path / "data", engine="process")
        url = link_url(gateway.url)
        exchange = Exchange(short_path / "data" / "blobs", http_url(url), lambda: TOKEN)
        imports = Imports(short_path / "data" / "imports")
        site = Site(runtime, SystemClock(), exchange, short_path / "data" / "spool", imports, Limits())
        worker = Worker(Identity("w1"), runtime.inventory(), site)
        tasks = [
            asyncio.create_task(GatewayLink(url, lambda: TOKEN, worker).run()),
            asyncio.create_task(worker.beat()),
        ]
        try:
            await gateway.joined()
            mirror = collect_environment(notebook_folder=str(notebook))
            first = await gateway.start("c1", mirror)
            _, ready = await first.until(m.ContainerReady)
            assert ready.start == "boot"
            assert await cell(first, "a", "import sys\nprint('wave' in sys.modules)\nimport wave") == "False\n"
            monkeypatch.setattr(template_policy, "QUIET_SECONDS", 0.0)
            key = worker.containers["c1"].facts().key  # type: ignore[union-attr]
            await until(lambda: "wave" in (runtime.fork_servers.preloaded(key) or []))
            second = await gateway.start("c2", mirror)
            _, ready = await second.until(m.ContainerReady)
            assert ready.start == "template" and ready.engine.name == "process"
            assert [p.detail for p in ready.phases if p.name == "boot"] == ["fork server"]
            assert await cell(second, "b", "import sys\nprint('wave' in sys.modules)\nkept = 41") == "True\n"
            # it is parked by value, and its names come back into the next fork
            await gateway.request(m.ParkContainer(container="c2", parked="p1"))
            _, ended = await second.until(m.ContainerEnded)
            assert ended.reason is EndReason.PARKED
            third = await gateway.start("c3", mirror, parked="p1")
            _, ready = await third.until(m.ContainerReady)
            assert ready.start == "names" and [p.detail for p in ready.phases if p.name == "boot"] == ["fork server"]
            assert await cell(third, "c", "print(kept + 1)") == "42\n"
        finally:
            async with asyncio.timeout(60):
                await worker.shutdown()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runtime.close()
    assert list((short_path / "run" / "containers").iterdir()) == []
