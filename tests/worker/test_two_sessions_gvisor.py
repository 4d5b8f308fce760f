"""Two sessions of two environments on one machine: a real gateway and a real worker in this process, real sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.park_rules import WANTED_IDLE_SECONDS
from cellburst_jupyter.environment import collect_environment
from cellburst_protocol import messages as m
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_runtime.runtime import Runtime
from cellburst_worker.clock import SystemClock
from cellburst_worker.exchange import Exchange
from cellburst_worker.gateway_link import GatewayLink, http_url, link_url
from cellburst_worker.imports import Imports
from cellburst_worker.site import Limits, Site
from cellburst_worker.worker import Identity, Worker
from tests.fakes.fake_kernel import FakeKernel
from tests.gateway.house import House
from tests.gateway.parking_house import session_of

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
A100 = Resources(gpus=(GpuChoice("A100"),), memory_mib=512)
READY_SECONDS = 120.0


@contextlib.asynccontextmanager
async def both(folder: Path) -> AsyncIterator[tuple[House, Runtime]]:
    """A gateway with one worker that has two simulated A100 and takes templates, but keeps nothing warm."""
    for name in ("data", "run"):
        (folder / name).mkdir()
    config = GatewayConfig(data_folder=folder / "gateway", run_folder=folder / "gateway-run", local_worker=False)
    gateway = Gateway(config)
    await gateway.start()
    made = House(gateway)
    token = gateway.hub.secrets.worker_token
    runtime = await Runtime.create(
        run_folder=folder / "run", data_folder=folder / "data", simulate_gpus="A100:2", engine="gvisor"
    )
    exchange = Exchange(folder / "data" / "blobs", http_url(link_url(gateway.hub.url)), lambda: token)
    imports = Imports(folder / "data" / "imports")
    site = Site(runtime, SystemClock(), exchange, folder / "data" / "spool", imports, Limits(), True, False, None)
    worker = Worker(Identity("w1"), runtime.inventory(), site)
    link = GatewayLink(link_url(gateway.hub.url), lambda: token, worker)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(worker.beat())]
    try:
        await made.until(lambda: bool(gateway.hub.fleet.workers))
        yield made, runtime
    finally:
        async with asyncio.timeout(60):
            await worker.shutdown()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.close()
        await runtime.close()


def environment(folder: Path, name: str) -> m.MirrorSpec:
    """This one, with a folder of packages of its own in which `which` says its name."""
    packages, notebook = folder / f"packages-{name}", folder / f"notebook-{name}"
    packages.mkdir(), notebook.mkdir()
    (packages / "which.py").write_text(f"name = {name!r}\n")
    (packages / f"only_{name}.py").write_text("")
    here = collect_environment(notebook_folder=str(notebook))
    return msgspec.structs.replace(here, sys_path=[*here.sys_path, str(packages)], identity=f"{name}{here.identity}")


async def cell(kernel: FakeKernel, call: str, code: str, image: m.MirrorSpec | None) -> str:
    """Run it; what it printed."""
    await kernel.run(code, call=call, resources=A100, image=image)
    ended = await kernel.ended(call, READY_SECONDS)
    assert ended.state.value == "succeeded", ended
    return text(kernel, call)


def text(kernel: FakeKernel, call: str) -> str:
    found = []
    for (_, of, event), buffers in zip(kernel.events, kernel.buffers, strict=True):
        if of == call and isinstance(event, m.IOPub) and event.msg_type == "stream":
            found.append(msgspec.json.decode(buffers[0])["content"]["text"])
    return "".join(found)


def start(kernel: FakeKernel, call: str) -> str:
    """How the container came up for this call."""
    (started,) = kernel.of(call, m.ContainerStarted)
    return str(started.start)


def idle(house: House, kernel: FakeKernel, seconds: float) -> None:
    """Its session has been idle for so long."""
    session_of(house, kernel).idle_since = house.gateway.hub.clock.monotonic() - seconds


WHICH = """
import importlib.util, os, random, sys, which
print(which.name, 'held' in globals(), [n for n in ('only_a', 'only_b') if importlib.util.find_spec(n)])
print(sorted(os.listdir()), 'which' in (preloaded := set(sys.modules)))
held = iter([which.name + '1', which.name + '2'])
next(held)
"""


async def test_two_templates_restored_at_once_and_then_parked_for_who_waits(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellburst_worker.template_policy.QUIET_SECONDS", 0.1)
    async with both(short_path) as (house, runtime):
        images = {name: environment(short_path, name) for name in "ab"}
        kernels = {n: await house.kernel(notebook=f"/{n}.ipynb", kernel_id=n) for n in "ab"}
        await asyncio.gather(
            *(cell(kernels[n], f"boot-{n}", "import which; held = open('here', 'w')", images[n]) for n in "ab")
        )
        await house.until(lambda: len(runtime.snapshots.templates()) == 2, READY_SECONDS)
        for kernel in kernels.values():
            assert kernel.info is not None
            await kernel.peer.request(m.StopSession(session=kernel.info.session))

        # Two templates at once: nothing of one in the other, nor of the sessions that they were taken beside.
        kernels = {n: await house.kernel(notebook=f"/{n}2.ipynb", kernel_id=f"{n}2") for n in "ab"}
        said = await asyncio.gather(*(cell(kernels[n], f"which-{n}", WHICH, images[n]) for n in "ab"))
        assert [start(kernels[n], f"which-{n}") for n in "ab"] == ["template", "template"]
        assert said == [f"{n} False ['only_{n}']\n[] True\n" for n in "ab"]

        # Both GPUs are held by sessions that are not idle for long: who comes waits.
        third = await house.kernel(notebook="/c.ipynb", kernel_id="c")
        await third.run("print('mine')", call="wants", resources=A100, image=images["a"])
        await third.until(lambda: bool(third.of("wants", m.Queued)))
        for kernel in kernels.values():
            idle(house, kernel, WANTED_IDLE_SECONDS / 2)
        house.gateway.hub.placer.tick()
        assert not any(session_of(house, kernel).park for kernel in kernels.values())
        # Of two that are idle for long the one goes that is for longer.
        idle(house, kernels["a"], WANTED_IDLE_SECONDS + 5)
        idle(house, kernels["b"], WANTED_IDLE_SECONDS + 10)
        await third.ended("wants", READY_SECONDS)
        assert text(third, "wants") == "mine\n"
        assert session_of(house, kernels["b"]).kept is not None
        assert session_of(house, kernels["a"]).kept is None
        assert await cell(kernels["a"], "stayed", "print(next(held))", images["a"]) == "a2\n"
        assert third.info is not None
        await third.peer.request(m.StopSession(session=third.info.session))
        assert await cell(kernels["b"], "back", "print(next(held))", images["b"]) == "b2\n"
        assert start(kernels["b"], "back") == "snapshot"
