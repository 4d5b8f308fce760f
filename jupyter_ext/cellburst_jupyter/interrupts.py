"""SIGINT while a cell is relayed: counted and passed on, never raised in the middle of our own code.

ipykernel installs Python's default handler for each request, which raises KeyboardInterrupt at whatever line the main
thread is. While a cell is relayed ours is installed instead.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

MAX_LEVEL = 3


class Interrupts:
    """Calls `on_interrupt(level)` for each SIGINT, level 1 first, inside a `with` on the main thread.

    On another thread (a subshell) signals do not arrive at all, and nothing is installed.
    """

    def __init__(self, on_interrupt: Callable[[int], None]) -> None:
        self._on_interrupt = on_interrupt
        self._previous: object = None
        self._installed = False
        self.level = 0

    def __enter__(self) -> Interrupts:
        self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def raised_inside(self) -> _Raised:
        """A `with` in which SIGINT raises KeyboardInterrupt as usual (for prompts and for work of our own)."""
        return _Raised(self)

    def interrupt(self) -> None:
        """Count one more interrupt and pass it on (also the card's stop button)."""
        self.level = min(self.level + 1, MAX_LEVEL)
        self._on_interrupt(self.level)

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True

    def _restore(self) -> None:
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGINT, self._previous or signal.default_int_handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.interrupt()


class _Raised:
    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        if self._interrupts._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._interrupts._installed:
            signal.signal(signal.SIGINT, self._interrupts._handle)
