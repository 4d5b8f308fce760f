"""sys.stdout and sys.stderr of cells: ipykernel's OutStream without its hand-overs between threads.

Text is collected and sent by whoever fills or flushes the stream; one thread, the pump, sends what lies longer than
FLUSH_SECONDS, reads what programs write to file descriptors 1 and 2, and relays messages of forked children.
"""

# ipykernel has few annotations
# mypy: disable-error-code="no-untyped-call, assignment"
from __future__ import annotations

import codecs
import fcntl
import os
import selectors
import struct
import termios
import threading
import time
from io import StringIO
from typing import Any, Optional

from ipykernel.iostream import BackgroundSocket, IOPubThread, OutStream

from .cell_channel import Sender

FLUSH_SECONDS = 0.01  # a printed line is on its way within 10 ms (ipykernel's own interval is 0.2 s)
FULL_BYTES = 256 * 1024  # a stream with so much text is flushed by its writer, so that the writer waits for the reader
QUIET_SECONDS = 2.0  # at the end of a cell: how long to wait for the pump to take what was written to it
READ_BYTES = 65536


class CellPubThread(IOPubThread):
    """Stands where ipykernel expects its IOPub thread; nothing is scheduled, everything is done by the caller."""

    def __init__(self, session: Any, pump: Pump) -> None:
        # ipykernel's own __init__ would make ZeroMQ sockets and a loop
        self.socket = self
        self.session = session
        self.pump = pump
        self.thread = pump.thread
        self.io_loop = None
        self.background_socket = BackgroundSocket(self)

    def schedule(self, f: Any) -> None:
        """Do it now."""
        f()

    def send_multipart(self, *args: Any, **kwargs: Any) -> None:
        """Raw ZeroMQ frames: nothing here speaks them."""

    def start(self) -> None:
        """The pump runs already."""

    def stop(self) -> None:
        """The pump ends with the process."""


class Pump:
    """The stream thread. `pipes` maps "stdout" and "stderr" to the read ends of descriptors 1 and 2."""

    def __init__(self, sender: Sender, pipes: dict[str, int]) -> None:
        self._sender = sender
        self._pipes = pipes
        self._streams: dict[str, CellStream] = {}
        self._decoders = {n: codecs.getincrementaldecoder("utf-8")("replace") for n in pipes}
        self._sources = {**pipes, "children": sender.from_children.fileno()}
        self._taken = dict.fromkeys(self._sources, 0)  # bytes that are in the streams, or sent
        self._busy = False
        self._flush_at: Optional[float] = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self.thread = threading.Thread(target=self._run, name="IOPub", daemon=True)
        self.thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
        self.thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]

    def add(self, stream: CellStream) -> None:
        """The stream that takes what comes through the pipe of its name; the thread starts with the first one."""
        self._streams[stream.name] = stream
        if not self.thread.is_alive():
            self.thread.start()

    def flush_soon(self) -> None:
        """Have all streams flushed after FLUSH_SECONDS."""
        if self._flush_at is None:
            self._flush_at = time.monotonic() + FLUSH_SECONDS
            try:
                os.write(self._wake_write, b"f")
            except BlockingIOError:
                pass  # so full of wake-ups that it wakes anyway

    def wait_quiet(self) -> None:
        """Return when what programs and forked children have written until now is in the streams or sent, or after
        QUIET_SECONDS. What is written meanwhile, by one that goes on, is not waited for."""
        if self._quiet():
            return
        # What was read and is in no stream yet is at most one reading.
        until = {name: _bytes_in(source) + self._taken[name] + READ_BYTES for name, source in self._sources.items()}
        deadline = time.monotonic() + QUIET_SECONDS
        while not self._quiet() and time.monotonic() < deadline:
            if all(self._taken[name] >= count for name, count in until.items()):
                return
            time.sleep(0.0005)

    def _quiet(self) -> bool:
        # the pump is busy from before it reads until the text is in the stream, so this order misses nothing
        return not any(map(_bytes_in, self._sources.values())) and not self._busy

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._wake_read, selectors.EVENT_READ)
        selector.register(self._sender.from_children, selectors.EVENT_READ)
        for pipe in self._pipes.values():
            selector.register(pipe, selectors.EVENT_READ)
        names = {pipe: name for name, pipe in self._pipes.items()}
        while True:
            flush_at = self._flush_at
            timeout = None if flush_at is None else max(0.0, flush_at - time.monotonic())
            for key, _ in selector.select(timeout):
                if key.fileobj == self._wake_read:
                    os.read(self._wake_read, 4096)
                elif key.fileobj is self._sender.from_children:
                    self._relay()
                else:
                    self._take(names[key.fd])
            if self._flush_at is not None and time.monotonic() >= self._flush_at:
                self._flush_at = None
                for stream in list(self._streams.values()):
                    stream.flush()

    def _relay(self) -> None:
        self._busy = True
        try:
            self._taken["children"] += self._sender.relay_child()
        finally:
            self._busy = False

    def _take(self, name: str) -> None:
        self._busy = True
        try:
            data = os.read(self._pipes[name], READ_BYTES)
            stream = self._streams.get(name)
            text = self._decoders[name].decode(data)
            if stream is not None and text:
                stream.write(text)
                stream.flush()  # at once: when this process dies, the supervisor only finds what is still in the pipe
            self._taken[name] += len(data)
        except BlockingIOError:
            pass  # the supervisor took it: this process had been silent for long
        finally:
            self._busy = False


def _bytes_in(source: int) -> int:
    count: int = struct.unpack("i", fcntl.ioctl(source, termios.FIONREAD, b"\0\0\0\0"))[0]
    return count


class CellStream(OutStream):
    """One of sys.stdout and sys.stderr. Parents, hooks and interface are OutStream's; buffers and sending are ours."""

    def __init__(self, session: Any, pub_thread: CellPubThread, name: str, echo: Any = None, **options: Any) -> None:
        super().__init__(session, pub_thread, name, watchfd=False, isatty=False)
        self._segments: list[
            tuple[dict[str, Any], StringIO]
        ] = []  # text in order, with the parent it was written under
        self._size = 0
        self._text_lock = threading.RLock()
        self._pump = pub_thread.pump
        self._descriptor = {"stdout": 1, "stderr": 2}[name]
        self._in_child = False
        os.register_at_fork(after_in_child=self._after_fork)
        self._pump.add(self)

    def fileno(self) -> int:
        """The real descriptor: what programs write to it arrives in this stream."""
        return self._descriptor

    def write(self, string: str) -> int:
        """Take text. Sends it now if there is much of it, or if a forked child ends a line, else soon."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        parent = self.parent_header
        with self._text_lock:
            if not self._segments or self._segments[-1][0] is not parent:
                self._segments.append((parent, StringIO()))
            self._segments[-1][1].write(string)
            self._size += len(string)
        if self._size >= FULL_BYTES:
            self.flush()
        elif not self._is_master_process():
            if "\n" in string:
                self.flush()  # a child has no pump; by lines, so that those of several children stay whole
        else:
            self._pump.flush_soon()
        return len(string)

    def flush(self) -> None:
        """Send what was written; blocks while nobody reads."""
        if self.pub_thread is None or not self._segments:
            return
        with self._text_lock:
            segments, self._segments = self._segments, []
            self._size = 0
            try:
                while segments:
                    self._post(*segments[0])
                    del segments[0]
            finally:
                self._segments[:0] = segments  # an interrupt came in between: not lost
        self.session.sender.drain()

    def close(self) -> None:
        """Flush; the descriptors stay as they are until the process ends."""
        self.flush()
        self.pub_thread = None

    def _post(self, parent: dict[str, Any], buffer: StringIO) -> None:
        text = buffer.getvalue()
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # lone surrogates have no UTF-8
            text = text.encode("utf-8", "replace").decode()
            size = len(text)
        msg = self.session.msg("stream", {"name": self.name, "text": text}, parent=parent)
        for hook in getattr(self, "_hooks", ()):
            msg = hook(msg)
            if msg is None:
                return
        self.session.post_iopub(msg, text_bytes=size)

    def _is_master_process(self) -> bool:
        # OutStream asks os.getpid() for every write: a system call, which a sandbox answers in up to 60 microseconds
        return not self._in_child

    def _after_fork(self) -> None:
        self._in_child = True
        self._text_lock = threading.RLock()
        self._segments = []
        self._size = 0
