"""The supervisor's socket to the worker: dialled again and again, control first, events by credit.

Bytes wait here only as long as the worker does not take them, and then not many: the supervisor stops reading its
executor while `takes_events` is False. A message that was half written when the socket closed is sent whole on the next
one; messages written whole count as delivered (a worker that dies ends its containers, so nobody misses them).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from typing import Optional

from . import wire

FIRST_REDIAL_SECONDS = 0.002  # a restored container is ready when its worker's new socket is: found within 2 ms
LAST_REDIAL_SECONDS = 0.05
# After a detach it is dialled every 2 ms so often (30 s), then slower. Counted in dials and not in seconds: a restored
# container's clock has gone on, and its first dials must not be the slow ones.
DETACHED_DIALS = 15_000
MAX_WAITING_BYTES = 1024 * 1024  # events read from the executor ahead of what the worker takes


class WorkerLink:
    """One runner's link. Non-blocking; `socket` is None while there is no connection."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.socket: Optional[socket.socket] = None
        self.credit_bytes = 0
        self.redial_at = 0.0
        self.connections = 0  # made so far
        self._redial_seconds = FIRST_REDIAL_SECONDS
        self._fast_dials = 0
        self._control: deque[bytes] = deque()
        self._events: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._current = b""
        self._current_is_event = False
        self._sent_bytes = 0
        self._decoder = wire.Decoder()

    @property
    def takes_events(self) -> bool:
        """Whether the executor may be read: connected, credit left, and not too much waiting already."""
        return self.socket is not None and self.credit_bytes > 0 and self._waiting_bytes < MAX_WAITING_BYTES

    @property
    def wants_write(self) -> bool:
        """Whether there is something that may be written now."""
        return self.socket is not None and bool(
            self._current or self._control or (self._events and self.credit_bytes > 0)
        )

    def dial(self, now: float, hello: bytes) -> bool:
        """Try to connect; `hello` is then the first message. False: try again at `redial_at` (monotonic seconds)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            _connect(connection, self._path)
        except OSError:
            connection.close()
            self.redial_at = now + self._redial_seconds
            if self._fast_dials:
                self._fast_dials -= 1
            else:
                self._redial_seconds = min(2 * self._redial_seconds, LAST_REDIAL_SECONDS)
            return False
        self.socket = connection
        self.connections += 1
        self._fast_dials = 0
        self.credit_bytes = wire.INITIAL_CREDIT_BYTES
        self._decoder = wire.Decoder()
        self._control.appendleft(hello)
        return True

    def control(self, message: bytes) -> None:
        """Send before all waiting events, without credit."""
        self._control.append(message)

    def event(self, message: bytes) -> None:
        """Send in order, when there is credit."""
        self._events.append(message)
        self._waiting_bytes += len(message)

    def after_events(self, message: bytes) -> None:
        """Send behind the waiting events if they can go now, else before them: the end of an executor is never held up."""
        if self.credit_bytes > self._waiting_bytes:
            self._events.append(message)
            self._waiting_bytes += len(message)
        else:
            self._control.append(message)

    def write(self) -> None:
        """Write as much as the socket takes."""
        while self.socket is not None:
            if not self._current and not self._next():
                return
            try:
                self._sent_bytes += self.socket.send(memoryview(self._current)[self._sent_bytes :])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if self._sent_bytes == len(self._current):
                self._current = b""

    def read(self) -> Iterator[bytes]:
        """Message bodies that arrived. Closes the link when the worker did, or when what it sends is no message."""
        while self.socket is not None:
            try:
                count = self.socket.recv_into(self._decoder.scratch)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self.close()
                return
            try:
                yield from self._decoder.feed(self._decoder.scratch[:count])
            except wire.WireError:
                self.close()
                return
            if count < len(self._decoder.scratch):
                return

    def detach(self) -> None:
        """Close the socket, as a checkpoint needs it, and look for the next listener every 2 ms. What waits is kept."""
        self.write()
        self.close()
        self._fast_dials = DETACHED_DIALS

    def close(self) -> None:
        """Close the socket; what was half written will be sent again."""
        if self.socket is None:
            return
        self.socket.close()
        self.socket = None
        self.redial_at = 0.0
        self._redial_seconds = FIRST_REDIAL_SECONDS
        if self._current and self._current_is_event:
            self._events.appendleft(self._current)
            self._waiting_bytes += len(self._current)
        elif self._current:
            self._control.appendleft(self._current)
        self._current = b""

    def _next(self) -> bool:
        if self._control:
            self._current, self._current_is_event = self._control.popleft(), False
        elif self._events and self.credit_bytes > 0:
            self._current, self._current_is_event = self._events.popleft(), True
            self._waiting_bytes -= len(self._current)
            self.credit_bytes -= len(self._current)
        else:
            return False
        self._sent_bytes = 0
        return True


def _connect(connection: socket.socket, path: str) -> None:
    """Connect, also where the path is longer than the 108 bytes that a Unix address holds."""
    if len(os.fsencode(path)) < 108:
        connection.connect(path)
        return
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)
