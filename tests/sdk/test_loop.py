"""The background loop thread."""

import asyncio
import threading

import pytest

from cellburst.loop import LoopThread


def test_coroutines_run_on_another_thread_and_errors_come_back() -> None:
    loop = LoopThread("test-loop")
    try:

        async def where() -> str:
            return threading.current_thread().name

        async def fails() -> None:
            raise ValueError("told")

        assert loop.submit(where()).result(5) == "test-loop"
        with pytest.raises(ValueError, match="told"):
            loop.submit(fails()).result(5)
    finally:
        loop.stop()
    assert not any(t.name == "test-loop" for t in threading.enumerate())


def test_stop_cancels_what_runs() -> None:
    loop = LoopThread("test-loop-2")
    cancelled = threading.Event()
    running = threading.Event()

    async def endless() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    loop.submit(endless())
    assert running.wait(5)
    loop.stop()
    assert cancelled.wait(5)
