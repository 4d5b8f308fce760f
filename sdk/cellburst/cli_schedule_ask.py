"""What the commands of `cellburst schedule` ask the gateway with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from cellburst_protocol.messages import GetSchedule, ListRuns, RunList, ScheduleInfo
from cellburst_protocol.peer import Peer
from cellburst_protocol.schedules import RunRow

from . import embedded
from .blobs import BlobClient
from .cli_common import ask, err
from .endpoint import Endpoint
from .link import Link

T = TypeVar("T")


def ask_one(message: Any) -> Any:
    """One question; starts no gateway."""

    async def question(peer: Peer) -> Any:
        return await peer.request(message)

    return ask(question)


def get_schedule(name: str) -> ScheduleInfo:
    """A schedule by name or id."""
    answer = ask_one(GetSchedule(schedule=name))
    assert isinstance(answer, ScheduleInfo)
    return answer


def runs_of(message: ListRuns) -> list[RunRow]:
    """Runs."""
    answer = ask_one(message)
    assert isinstance(answer, RunList)
    return answer.rows


def endpoint() -> Endpoint:
    """The gateway, started when it is down."""
    return embedded.ensure_gateway(lambda line: err.print(line, style="dim", markup=False))


def with_blobs(question: Callable[[Peer, BlobClient], Awaitable[T]]) -> T:
    """A question with files to send; starts the gateway when it is down."""

    async def exchange() -> T:
        link = Link(endpoint, role="cli")
        try:
            welcome = await link.connect()
            assert link.peer is not None and link.endpoint is not None
            return await question(link.peer, BlobClient(link.endpoint, welcome))
        finally:
            await link.close()

    return asyncio.run(exchange())


def time_text(moment: float | None) -> str:
    """A moment on this machine's wall."""
    return f"{datetime.fromtimestamp(moment).astimezone():%a %Y-%m-%d %H:%M:%S}" if moment is not None else "-"
