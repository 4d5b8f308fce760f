"""A gateway in this process with the fakes that dial it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cellburst_gateway.app import Gateway
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeWorker


class House:
    """A gateway with its fakes; everything is closed at the end."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._closing: list[Callable[[], Awaitable[Any]]] = []

    @property
    def url(self) -> str:
        return self.gateway.hub.url

    @property
    def token(self) -> str:
        return self.gateway.hub.secrets.token

    async def kernel(self, **session: Any) -> FakeKernel:
        kernel = await FakeKernel(self.url, self.token).dial()
        self._closing.append(kernel.close)
        await kernel.session(**session)
        return kernel

    async def cli(self) -> FakeKernel:
        cli = await FakeKernel(self.url, self.token, role="cli").dial()
        self._closing.append(cli.close)
        return cli

    async def worker(self, **settings: Any) -> FakeWorker:
        worker = FakeWorker(self.url, self.gateway.hub.secrets.worker_token, **settings)
        self._closing.append(worker.stop)
        return await worker.start()

    async def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for a state of the gateway itself."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for closing in reversed(self._closing):
            await closing()
        await self.gateway.close()
