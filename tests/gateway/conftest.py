"""A gateway on a loopback port in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from tests.gateway.house import House


@pytest.fixture
def config(tmp_path: Path) -> GatewayConfig:
    return GatewayConfig(data_folder=tmp_path / "data", run_folder=tmp_path / "run", local_worker=False)


@pytest.fixture
async def make_house(config: GatewayConfig) -> AsyncIterator[Callable[..., Awaitable[House]]]:
    made: list[House] = []

    async def make(**changes: Any) -> House:
        gateway = Gateway(replace(config, **changes))
        await gateway.start()
        made.append(House(gateway))
        return made[-1]

    yield make
    for house in made:
        await house.close()


@pytest.fixture
async def house(make_house: Callable[..., Awaitable[House]]) -> House:
    return await make_house()
