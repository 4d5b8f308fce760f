"""Blocking methods and their twins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from cellburst.both import both, both_context, both_iter, both_static, run
from cellburst.loop import LoopThread


class Thing:
    """Something with methods of each kind."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    @both
    async def add(self, one: int, two: int = 1) -> int:
        """Add."""
        await asyncio.sleep(0)
        if one < 0:
            raise ValueError("below zero")
        return one + two

    @both_iter
    async def count(self, upto: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(upto):
                await asyncio.sleep(0)
                yield number
        finally:
            self.closed.append("count")

    @both_context
    async def held(self) -> AsyncIterator[str]:
        try:
            yield "held"
        finally:
            self.closed.append("held")

    @both_static
    async def twice(number: int) -> int:
        return 2 * number


async def _in_loop() -> None:
    # As in a notebook: this thread's loop runs, and a blocking call blocks it and comes back.
    thing = Thing()
    assert thing.add(1, two=2) == 3 == await thing.add.aio(1, two=2)
    assert list(thing.count(3)) == [0, 1, 2] == [number async for number in thing.count.aio(3)]
    with thing.held() as word:
        assert word == "held" and thing.closed == ["count", "count"]
    async with thing.held() as word:
        assert thing.closed[-1] == "held"
    assert Thing.twice(2) == thing.twice(2) == await Thing.twice.aio(2) == 4
    assert thing.closed == ["count", "count", "held", "held"]


async def test_each_kind_blocks_and_has_a_twin() -> None:
    await _in_loop()


def test_without_a_loop_too() -> None:
    asyncio.run(_in_loop())


def test_errors_come_out_as_they_are() -> None:
    with pytest.raises(ValueError, match="below zero"):
        Thing().add(-1)
    thing = Thing()
    with pytest.raises(KeyError), thing.held():
        raise KeyError
    assert thing.closed == ["held"]


def test_an_iterator_that_is_left_early_is_closed() -> None:
    thing = Thing()
    for number in thing.count(5):
        if number == 1:
            break
    del number
    assert thing.closed == ["count"]


def test_names_and_docstrings_stay() -> None:
    assert Thing.add.__doc__ == Thing().add.__doc__ == "Add."
    assert Thing().add.__name__ == "add"


def test_a_blocking_call_on_the_loop_thread_is_refused_and_not_waited_for() -> None:
    async def inner() -> None:
        Thing().add(1)

    with pytest.raises(RuntimeError, match="aio"):
        run(inner())


def test_an_interrupt_cancels_the_work() -> None:
    cancelled = threading.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    shared = LoopThread.shared()
    real = shared.submit

    def interrupted(coroutine):  # type: ignore[no-untyped-def]
        future = real(coroutine)
        real(asyncio.sleep(0)).result(10)  # the work has begun

        def result(timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        future.result = result  # type: ignore[method-assign]
        return future

    shared.submit = interrupted  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            run(long())
    finally:
        del shared.submit
    assert cancelled.wait(10)
