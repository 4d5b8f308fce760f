"""Two steps of a start at once. What is begun is always seen to its end, so that a failure leaves nothing going on behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_A = TypeVar("_A")
_B = TypeVar("_B")


async def both(one: Coroutine[Any, Any, _A], other: Coroutine[Any, Any, _B]) -> tuple[_A, _B]:
    """Do two things at once; their results. Where one fails its error is raised when the other is done; where both do, the
    first one's. Cancelled, it cancels both and waits for them."""
    first, second = await asyncio.gather(one, other, return_exceptions=True)
    if isinstance(first, BaseException):
        raise first
    if isinstance(second, BaseException):
        raise second
    return first, second
