"""What all commands share: the two consoles, errors as words, one exchange with the gateway."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rich.console import Console

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.peer import Peer

from . import embedded
from .config import settings
from .endpoint import Endpoint
from .link import Link

T = TypeVar("T")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def shows_errors(command: Callable[..., T]) -> Callable[..., T]:
    """One place where an error of ours becomes words and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        try:
            return command(*args, **kwargs)
        except CellburstError as problem:
            err.print(problem.info.text(), style="red", markup=False, soft_wrap=True)
            sys.exit(1)

    return wrapped


def ask(question: Callable[[Peer], Awaitable[T]], *, start: bool = False) -> T:
    """Run one exchange with the gateway; without `start`, a gateway that is not there is an error."""

    def endpoint() -> Endpoint:
        if start:
            return embedded.ensure_gateway(lambda line: err.print(line, style="dim"))
        configured = settings()
        if not configured.gateway_url and embedded.find(configured.folders) is None:
            raise error(
                ErrorCode.GATEWAY_DOWN,
                "no gateway is running",
                next="`cellburst up` starts one; so does the first %%modal cell",
            )
        return embedded.ensure_gateway()

    async def exchange() -> T:
        link = Link(endpoint, role="cli")
        try:
            await link.connect()
            assert link.peer is not None
            return await question(link.peer)
        finally:
            await link.close()

    return asyncio.run(exchange())
