"""One background thread with an event loop, for callers that are not asynchronous (a notebook's kernel, the CLI)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A daemon thread that runs an asyncio loop until `stop`.

    A kernel's own loop cannot be used: it is blocked while a cell runs, and tasks on it stop with the cell.
    """

    _shared: LoopThread | None = None
    _lock = threading.Lock()

    def __init__(self, name: str = "cellburst-link") -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> LoopThread:
        """The process's one loop thread, started at first use."""
        with cls._lock:
            if cls._shared is None or not cls._shared._thread.is_alive():
                cls._shared = cls()
            return cls._shared

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; the future is for other threads."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the loop's thread."""
        self.loop.call_soon_threadsafe(function, *args)

    def stop(self) -> None:
        """Cancel what runs and end the thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._cancel_all)
            self._thread.join(5)

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_soon(self.loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()
