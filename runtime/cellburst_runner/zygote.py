"""The fork server of one environment: imports once what every executor needs, and what the notebook used, then forks.

`main.py zygote SOCKET PARENT`: a packet socket to the runtime, and the pid of its process. Packets, each whole:

    runtime ──▶  b"p" with a file {"preload", "started_ns"}              first, once
    zygote  ──▶  {"t": "ready", "preloaded"} | {"t": "refused", "name", "why"} and it ends
    runtime ──▶  b"f" with a file {"environment", "folder", "groups", "python"} and a pipe for 1 and 2
    zygote  ──▶  {"t": "forked", "pid"} | {"t": "not_forked", "why", "stale"}
    zygote  ──▶  {"t": "ended", "pid", "code"}                            a fork's end; negative for a signal

Requests lie in files because an environment may be larger than a packet. One thread, one request after the other. It ends
when the socket closes, and by the kernel when its parent does; the forks live on, as containers do whose worker is gone.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn, Optional

from . import cell_executor, zygote_child, zygote_preload
from . import supervisor as _supervisor  # noqa: F401 - imported before the fork, not after
from . import supervisor_start as _supervisor_start  # noqa: F401
from .zygote_child import Job
from .zygote_preload import Refused

SETUP_SECONDS = 15.0  # a fork joins its groups and says so within milliseconds; less than fork_server.FORK_SECONDS
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PACKET_BYTES = 64


class Zygote:
    """See the module. `serve` returns in each fork, with its job."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stamps: dict[str, zygote_preload.Stamp] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def prepare(self) -> None:
        """Import what is asked for. Ends the process when it cannot be a fork server. `started_ns` of the request is the wall
        clock before this process was started."""
        _, request = self._receive()
        try:
            preloaded = zygote_preload.preload(request["preload"])
            if not zygote_preload.one_thread():
                raise Refused("", "the executor's own modules started a thread")
            zygote_child.find_mark()
        except Refused as why:
            self._send({"t": "refused", "name": why.name, "why": str(why)})
            os._exit(0)
        except (OSError, ValueError) as why:
            self._send({"t": "refused", "name": "", "why": str(why)})
            os._exit(0)
        self._stamps = zygote_preload.stamps()
        new = zygote_preload.newer(self._stamps, request["started_ns"])
        if new:
            self._send({"t": "refused", "name": "", "why": f"{new} was just written"})
            os._exit(0)
        gc.collect()
        gc.freeze()  # the forks' collections leave these alone, so that their memory stays shared
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._send({"t": "ready", "preloaded": preloaded})

    def serve(self) -> Job:
        """Fork for each request, until the socket closes. Returns in the fork only."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if self._wake_read in ready:
                self._reap()
            if self._connection.fileno() in ready:
                descriptors, request = self._receive()
                try:
                    job = self._fork(request, descriptors[0])
                finally:
                    for number in descriptors:
                        os.close(number)
                if job is not None:
                    return job

    def _reap(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._send({"t": "ended", "pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def _fork(self, request: dict[str, Any], output: int) -> Optional[Job]:
        why = zygote_preload.changed(self._stamps)
        if why or not zygote_preload.one_thread():
            text = f"{why} has changed" if why else "it has more than one thread"
            self._send({"t": "not_forked", "why": text, "stale": True})
            return None
        zygote_child.flush()
        up, up_end = os.pipe()
        go, go_end = os.pipe()
        try:
            pid = os.fork()
        except OSError as problem:
            for number in (up, up_end, go, go_end):
                os.close(number)
            self._send({"t": "not_forked", "why": f"fork: {problem.strerror}", "stale": False})
            return None
        if pid == 0:
            os.close(up)
            os.close(go_end)
            return self._become(request, output, up_end, go)
        os.close(up_end)
        os.close(go)
        try:
            text = _what_it_says(up)
            if text:
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is its own
                self._send({"t": "not_forked", "why": text, "stale": False})
            else:
                self._send({"t": "forked", "pid": pid})
                os.write(go_end, b"g")
        except BrokenPipeError:
            pass  # it was killed meanwhile; its end is told
        finally:
            os.close(up)
            os.close(go_end)
        return None

    def _become(self, request: dict[str, Any], output: int, up: int, go: int) -> Job:
        """In the fork. It runs on only when the zygote has told the runtime of it."""
        try:
            job = zygote_child.job_of(request)
            self._connection.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            zygote_child.enter(job, output)
        except Exception as why:
            os.write(up, f"{type(why).__name__}: {why}".encode("utf-8", "replace")[:1000])
            os._exit(1)
        os.close(up)
        if os.read(go, 1) != b"g":
            os._exit(1)
        os.close(go)
        return job

    def _receive(self) -> tuple[list[int], dict[str, Any]]:
        """The descriptors behind the request's file, and the request. Ends the process when the runtime is gone."""
        data, descriptors, _, _ = socket.recv_fds(self._connection, _PACKET_BYTES, 4)
        if not data:
            os._exit(0)
        with os.fdopen(descriptors[0], "rb") as file:
            file.seek(0)
            return descriptors[1:], json.loads(file.read())

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)  # nobody is there any more


def _what_it_says(up: int) -> str:
    """What a fork says of its setup: "" when it is done."""
    until = time.monotonic() + SETUP_SECONDS
    poll, said = select.poll(), b""
    poll.register(up, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            return f"the fork was not set up within {SETUP_SECONDS:g} s"
        data = os.read(up, 1000)
        if not data:
            return said.decode("utf-8", "replace")
        said += data


def main(number: int, parent: int) -> NoReturn:
    """Entry of the fork server; each of its forks goes on from here, as a supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it was gone before we asked to be told
    os.set_inheritable(number, False)
    os.environ.pop(zygote_child.ROOM, None)
    cell_executor.look_like_a_kernel()
    zygote = Zygote(socket.socket(fileno=number))
    zygote.prepare()
    job = zygote.serve()
    del zygote
    zygote_child.run_supervisor(job)
