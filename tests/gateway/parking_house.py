"""What tests of parking share: a session with an idle container, and steps that are taken in many of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cellburst_gateway.session import Session
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.messages import (
    ParkSession,
    SessionParked,
)
from cellburst_protocol.resources import GpuChoice, Resources
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeContainer, FakeWorker
from tests.gateway.house import House

A100 = Resources(gpus=(GpuChoice("A100"),))
H100 = Resources(gpus=(GpuChoice("H100"),))
NO_ROOM = ErrorInfo(
    code=ErrorCode.DISK_FULL, message="the disk has 1.0 GB left, 3.0 GB are needed", next="free some space"
)
MakeHouse = Callable[..., Awaitable[House]]


async def with_session(house: House, worker: FakeWorker, resources: Resources = A100, **given: Any) -> FakeKernel:
    """A kernel whose session has an idle container."""
    kernel = await house.kernel(**given)
    await kernel.run("print x", call=f"first-{given}", resources=resources)
    await kernel.ended(f"first-{given}")
    return kernel


def session_of(house: House, kernel: FakeKernel) -> Session:
    assert kernel.info is not None
    session = house.gateway.hub.sessions.get(kernel.info.session)
    assert session is not None
    return session


def seen(kernel: FakeKernel, kind: type[Any]) -> list[Any]:
    return [event for _, _, event in kernel.events if isinstance(event, kind)]


async def park(house: House, kernel: FakeKernel, **named: str) -> SessionParked:
    assert kernel.info is not None
    answer = await kernel.peer.request(ParkSession(**(named or {"session": kernel.info.session})))
    assert isinstance(answer, SessionParked)
    return answer


async def begin_to_park(
    house: House, kernel: FakeKernel, worker: FakeWorker
) -> tuple[asyncio.Task[Any], FakeContainer]:
    """Somebody asks, and the worker has begun and does not finish."""
    worker.hold_park = True
    asked = asyncio.create_task(park(house, kernel))
    await house.until(lambda: any(c.parking for c in worker.containers.values()))
    return asked, next(c for c in worker.containers.values() if c.parking)


async def refusal(asked: Awaitable[Any]) -> ErrorInfo:
    with pytest.raises(CellburstError) as caught:
        await asked
    return caught.value.info


def is_free(house: House) -> bool:
    return not house.gateway.hub.store.leases_open()


async def leave(house: House, kernel: FakeKernel) -> None:
    """The kernel goes, and the grace is over."""
    session = session_of(house, kernel)
    await kernel.close()
    await house.until(lambda: session.kernel_left_at is not None)
    assert session.kernel_left_at is not None
    session.kernel_left_at, session.idle_since = session.kernel_left_at - 601, session.idle_since - 601
