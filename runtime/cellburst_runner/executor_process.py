"""One executor as the supervisor sees it: a child in its own session, two sockets, three pipes.

It is a new process of the environment's Python; or, where the supervisor came out of a fork server, a fork of the supervisor,
which has everything imported and runs nothing of the user's itself (`zygote_child.Forker`).

`work` carries cells to it and everything it says in order, and is not read while there is no credit, so that user code
waits instead of memory growing. `side` carries what may not wait for a running cell (stdin replies, comms, questions and
their answers, signs of life) and is always read. `pipes` are the read ends of its file descriptors 1 and 2: the executor
reads them itself while it lives, the supervisor when it is dead or silent. `fault` takes faulthandler's text.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

from . import wire

if TYPE_CHECKING:
    from .zygote_child import Forker


class Channel:
    """The supervisor's end of one socket to the executor: non-blocking, with a queue."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.waiting_bytes = 0
        self._queue: deque[bytes] = deque()
        self._sent_bytes = 0
        self._decoder = wire.Decoder()

    def send(self, message: bytes) -> None:
        """Queue and write what the socket takes."""
        self._queue.append(message)
        self.waiting_bytes += len(message)
        self.write()

    def write(self) -> None:
        """Write as much as the socket takes; a dead executor's messages are forgotten."""
        while self._queue:
            try:
                self._sent_bytes += self.socket.send(memoryview(self._queue[0])[self._sent_bytes :])
            except BlockingIOError:
                return
            except OSError:
                self._queue.clear()
                self.waiting_bytes = self._sent_bytes = 0
                return
            if self._sent_bytes == len(self._queue[0]):
                self.waiting_bytes -= len(self._queue.popleft())
                self._sent_bytes = 0

    def read(self) -> Iterator[bytes]:
        """Message bodies of one chunk. Raises EOFError when the other end is closed."""
        try:
            count = self.socket.recv_into(self._decoder.scratch)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            raise EOFError
        yield from self._decoder.feed(self._decoder.scratch[:count])

    def read_rest(self) -> Iterator[bytes]:
        """Everything a dead executor left: at most what the socket's buffer holds."""
        try:
            while True:
                before = self._peek()
                yield from self.read()
                if not before:
                    return
        except (EOFError, wire.WireError):
            return

    def _peek(self) -> bool:
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False


class ExecutorProcess:
    """A started executor. `alive_at` is when it last gave a sign and `closed_at` when its sockets closed (monotonic
    seconds), `ready` whether it said so."""

    def __init__(
        self, command: list[str], environment: dict[str, str], folder: str, now: float, forker: Optional[Forker] = None
    ) -> None:
        work, work_end = socket.socketpair()
        side, side_end = socket.socketpair()
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        self.fault, fault_end = os.pipe()
        for pipe in (out, err, self.fault):
            os.set_blocking(pipe, False)
        passed = [work_end.fileno(), side_end.fileno(), out, err, fault_end]
        self._process: Optional[subprocess.Popen[bytes]] = None
        try:
            # raises BecomeExecutor in the fork
            self.pid = forker.fork(command, environment, folder, passed, (out_end, err_end)) if forker else 0
            if not self.pid:
                self._process = subprocess.Popen(
                    [*command, *(str(n) for n in passed)], env=environment, cwd=folder or None, stdin=subprocess.DEVNULL,
                    stdout=out_end, stderr=err_end, pass_fds=passed, start_new_session=True,
                )  # fmt: skip
                self.pid = self._process.pid
        except BaseException:
            work.close()
            side.close()
            for end in (out, err, self.fault):
                os.close(end)
            raise
        finally:
            work_end.close()
            side_end.close()
            for end in (out_end, err_end, fault_end):
                os.close(end)
        self.work = Channel(work)
        self.side = Channel(side)
        self.pipes = {"stdout": out, "stderr": err}
        self.started_at = self.alive_at = now
        self.closed_at: Optional[float] = None
        self.ready = False
        self.killed_by_runner = False

    def signal_group(self, number: int) -> None:
        """Send a signal to its whole process group, so that `!cmd` and DataLoader children get it too."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # already gone

    def kill(self) -> None:
        """SIGKILL the group, on the runner's own decision."""
        self.killed_by_runner = True
        self.signal_group(signal.SIGKILL)

    def read_pipe(self, name: str) -> bytes:
        """What lies in the pipe of stdout or stderr now, at most 64 KiB."""
        return _read_now(self.pipes[name])

    def read_fault(self) -> str:
        """What faulthandler wrote, if it did."""
        return _read_now(self.fault).decode("utf-8", "replace")

    def ended(self, status: int) -> tuple[Optional[int], Optional[int]]:
        """It was reaped with this wait status: its exit code and signal. Its group is killed: nothing of it stays."""
        code = os.waitstatus_to_exitcode(status)
        if self._process is not None:
            self._process.returncode = code  # it was reaped by us, and Popen must not wait for another with its pid
        self.signal_group(signal.SIGKILL)
        return (code, None) if code >= 0 else (None, -code)

    def wait(self) -> None:
        """Reap it, after `kill`."""
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # reaped already

    def close(self) -> None:
        """Close all descriptors."""
        self.work.socket.close()
        self.side.socket.close()
        for pipe in (*self.pipes.values(), self.fault):
            os.close(pipe)


def _read_now(pipe: int) -> bytes:
    try:
        return os.read(pipe, 65536)
    except (BlockingIOError, OSError):
        return b""
