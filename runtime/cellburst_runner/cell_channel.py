"""The executor's sending side: whole messages or nothing, whatever interrupts the sender.

A message is put into a queue (one atomic step) and whoever holds the lock writes the queue out, in the caller's thread: no
hand-over to another thread, which would cost milliseconds in a sandbox. Three things can happen in the middle of it:

- KeyboardInterrupt in the main thread. What `send` has written is noted in the same C call that wrote it (see `_write`),
  so the stream is never torn; the next sender goes on with the rest.
- A garbage collection that closes a comm, which sends, inside our own lock: the inner call only queues, the outer writes.
- A fork. The child shares the socket and must not write to it: its messages go through a packet socket to the parent,
  as ipykernel pipes them.

A socket that is full blocks the sender. That is meant: user code waits for the reader, and no memory grows.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from . import wire

_FRAGMENT = struct.Struct(">IIB")  # process id, message number, whether it is the last
FRAGMENT_BYTES = 32 * 1024  # well under the default send buffer of a Unix socket


class Sender:
    """Sends messages on one blocking socket, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._queue: deque[tuple[bytes, list[int]]] = deque()  # (message, bytes written by each send so far)
        self._lock = threading.Lock()
        self._owner = 0
        self._child_number = 0
        self._in_child = False
        receive, send = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.from_children, self._to_parent = receive, send
        self._partial: dict[tuple[int, int], bytes] = {}
        os.register_at_fork(after_in_child=self._after_fork)

    def post(self, head: dict[str, Any], buffers: Sequence[wire.Buffer] = ()) -> None:
        """Queue a message; call `drain` to have it written. Raises wire.WireError when it is too large."""
        self._queue.append((wire.encode(head, buffers), []))

    def send(self, head: dict[str, Any], buffers: Sequence[wire.Buffer] = ()) -> None:
        """Queue a message and write it out."""
        self.post(head, buffers)
        self.drain()

    def drain(self) -> None:
        """Write out all that is queued; returns when it is written, by this thread or the one that was at it."""
        me = threading.get_ident()
        if self._owner == me and self._lock.locked():
            return  # called again from inside: the outer call goes on with the queue
        with self._lock:
            try:
                self._owner = me
                while self._queue:
                    self._write(*self._queue[0])
                    self._queue.popleft()
            finally:
                self._owner = 0

    def _write(self, message: bytes, written: list[int]) -> None:
        if self._in_child:
            self._write_to_parent(message)
            return
        view = memoryview(message)
        done = sum(written)
        while done < len(message):
            # send and append happen in one C call, between which no signal handler can run
            written.extend(map(self._socket.send, (view[done:],)))
            done = sum(written)

    # -- forked children -------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        self._in_child = True
        self._lock = threading.Lock()
        self._owner = 0
        self._queue = deque()

    def _write_to_parent(self, message: bytes) -> None:
        self._child_number += 1
        pid = os.getpid()
        for start in range(0, len(message), FRAGMENT_BYTES):
            last = start + FRAGMENT_BYTES >= len(message)
            header = _FRAGMENT.pack(pid, self._child_number, last)
            try:
                self._to_parent.send(header + message[start : start + FRAGMENT_BYTES])
            except OSError:
                return  # the parent is gone, and with it everyone who could show this

    def relay_child(self) -> int:
        """Take one packet of a child from `from_children` and send what it completes; the packet's size in bytes. In the
        parent's stream thread."""
        packet = self.from_children.recv(_FRAGMENT.size + FRAGMENT_BYTES)
        pid, number, last = _FRAGMENT.unpack_from(packet)
        whole = self._partial.pop((pid, number), b"") + packet[_FRAGMENT.size :]
        if last:
            self._queue.append((whole, []))
            self.drain()
        elif len(whole) <= wire.MAX_MESSAGE_BYTES:
            self._partial[pid, number] = whole
        return len(packet)
