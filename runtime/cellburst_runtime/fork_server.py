"""One fork server: the runner's zygote process of one environment, and what came out of it.

`cellburst_runner.zygote` has the other side and the packets. The server is this process's child and ends with it. Its mark
and its folder among the containers' let the next worker's garbage collection find it all the same.

A fork's parent is the server, which tells its end. So a server is kept while forks of it live, also when no more are asked of
it: its memory is theirs. If it dies or hangs they go on; their ends are seen all the same (pidfd_open(2), Linux 5.3), but
their exit codes are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .engine_child import Child, OutputTail
from .fork_plan import ForkPlan
from .proc import MARK, kill_until_none, marked, process_stat
from .record import ContainerRecord
from .removal import remove_folder

READY_SECONDS = 300.0  # hundreds of modules from a cold disk
FORK_SECONDS = 20.0  # a fork takes 20 ms; one that takes so long hangs, as with a template
ROOM = "CELLBURST_ROOM"  # as zygote_child.ROOM
ROOM_BYTES = 256  # behind the server's own mark: for the longest id of a container
UNKNOWN_CODE = 255  # as asyncio's, for a child that somebody else reaped
TOLD_SECONDS = 10.0  # after a fork's end: how long a busy server may take to tell its exit code
_PACKET_BYTES = 65_536
# Nobody may begin to use a GPU before the fork; torch then counts GPUs without beginning either.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
# debugpy's warning about frozen modules, as the supervisor keeps it from its executors
_QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}


class ForkFailed(Exception):
    """No fork came of it, and none will. `stale`: files changed, or it has threads: it must be made anew."""

    def __init__(self, why: str, *, stale: bool = False) -> None:
        super().__init__(why)
        self.stale = stale


class PreloadRefused(Exception):
    """The server ended because of a module that must not be preloaded; `name` is "" where the environment itself is unfit."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class ForkedChild:
    """A container's first process that came out of a fork server; `engine_child.EngineChild`. `on_end` is called at its end."""

    def __init__(
        self, pid: int, stream: asyncio.StreamReader, transport: asyncio.ReadTransport, on_end: Callable[[ForkedChild], None]
    ) -> None:  # fmt: skip
        stat = process_stat(pid)
        self.pid = pid
        self.start_ticks = stat.start_ticks if stat is not None else 0
        self.server_is_gone = False
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        self._on_end = on_end
        self._transport = transport
        self._tail = OutputTail(stream, f"output of {pid}")
        self._untold: asyncio.TimerHandle | None = None
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._process_ended()  # the server has reaped it, and tells us
        else:
            self._loop.add_reader(self._pidfd, self._process_ended)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._code.done()

    async def wait(self) -> int:
        """Its return code, negative for a signal; UNKNOWN_CODE when the server could not tell it."""
        return await asyncio.shield(self._code)

    async def output(self) -> str:
        """The end of what it printed."""
        text = await self._tail.text(ended=self.ended)
        lost = "(its exit code is not known: the fork server did not tell it)"
        return f"{text}\n{lost}".strip() if self.ended and self._code.result() == UNKNOWN_CODE else text

    async def close(self) -> None:
        """Stop reading: whoever still writes gets EPIPE."""
        await self._tail.close()
        self._transport.close()
        self._forget_pidfd()
        if self._untold is not None:
            self._untold.cancel()

    def told(self, code: int) -> None:
        """The server says its end. Nothing happens when it is known."""
        self._forget_pidfd()
        if self._untold is not None:
            self._untold.cancel()
        if not self._code.done():
            self._code.set_result(code)
            self._on_end(self)

    def _process_ended(self) -> None:
        self._forget_pidfd()
        seconds = 0.0 if self.server_is_gone else TOLD_SECONDS
        self._untold = self._loop.call_later(seconds, self.told, UNKNOWN_CODE)

    def _forget_pidfd(self) -> None:
        number, self._pidfd = self._pidfd, -1
        if number >= 0:
            self._loop.remove_reader(number)
            os.close(number)


class ForkServer:
    """Made by `start`. `on_change` is called when a fork has ended, and when the server has."""

    def __init__(self, plan: ForkPlan, id: str, connection: socket.socket, process: Child) -> None:
        self.plan = plan
        self.id = id
        self.preloaded: list[str] = []
        self.used_at = time.monotonic()
        self.on_change: Callable[[], None] = lambda: None
        self.pid = process.pid
        self.children: dict[int, ForkedChild] = {}
        self._process = process
        self._connection = connection
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._ended_early: dict[int, int] = {}  # told before `fork` had made its child of the pid
        self._lock = asyncio.Lock()
        self._gone = False
        connection.setblocking(False)
        asyncio.get_running_loop().add_reader(connection.fileno(), self._on_readable)

    @classmethod
    async def start(cls, plan: ForkPlan, preload: Sequence[str]) -> ForkServer:
        """Start it and wait until it has imported everything. Leaves nothing when it fails or is cancelled.

        Raises PreloadRefused; ForkFailed with its last words; OSError.
        """
        id = f"fork-server-{secrets.token_hex(6)}"
        started_ns = time.time_ns()
        folder = plan.containers / id
        folder.mkdir(mode=0o700)
        server: ForkServer | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ContainerRecord(id=id, engine="process").save(folder)
            arguments = [*plan.python, plan.main, "zygote", str(theirs.fileno()), str(os.getpid())]
            environment = {MARK: id, ROOM: "x" * ROOM_BYTES, **plan.environment, **_NO_GPU, **_QUIET}
            place = Path(plan.folder) if Path(plan.folder).is_dir() else folder
            process = await Child.start(arguments, environment=environment, folder=place, pass_fds=[theirs.fileno()])
            theirs.close()
            server = cls(plan, id, ours, process)
            request = {"preload": list(preload), "started_ns": started_ns}
            answer = await server._ask(b"p", request, [], READY_SECONDS)
            if answer["t"] != "ready":
                raise PreloadRefused(str(answer["name"]), str(answer["why"]))
            server.preloaded = list(answer["preloaded"])
            return server
        except BaseException:
            if server is not None:
                await server.end()
            else:
                ours.close()
                remove_folder(folder)
            raise
        finally:
            theirs.close()

    @property
    def usable(self) -> bool:
        """Whether it can be asked for a fork."""
        return not self._gone

    async def fork(self, environment: Mapping[str, str], folder: Path, groups: Sequence[Path]) -> ForkedChild:
        """A new supervisor in this environment, in these groups from its first moment. `environment` has its mark.

        Raises ForkFailed: then nothing of it is left running. Not to be cancelled: see `engine_base.finish`.
        """
        async with self._lock:
            self.used_at = time.monotonic()
            self._ended_early.clear()  # those of processes that preloaded modules had started
            request = {
                "environment": dict(environment), "folder": str(folder), "groups": [str(path) for path in groups],
                "python": list(self.plan.python),
            }  # fmt: skip
            read_end, write_end = os.pipe()
            pipe = os.fdopen(read_end, "rb", buffering=0)
            try:
                answer = await self._ask(b"f", request, [write_end], FORK_SECONDS)
                if answer["t"] != "forked":
                    raise ForkFailed(str(answer["why"]), stale=bool(answer["stale"]))
                return await self._child(int(answer["pid"]), pipe)
            except BaseException as why:
                pipe.close()
                if not isinstance(why, ForkFailed) or self._gone:
                    self.kill()  # first: what it has forked and not said yet ends with it
                    await kill_until_none(lambda: marked(environment[MARK]))
                raise
            finally:
                os.close(write_end)

    def kill(self) -> None:
        """End the server by SIGKILL and take no more of it. Its forks live on."""
        with contextlib.suppress(ProcessLookupError):
            if not self._process.ended:
                os.kill(self.pid, 9)
        self._leave()

    async def end(self) -> None:
        """End the server and remove its folder. Its forks live on."""
        self.kill()
        await self._process.wait()
        await self._process.close()
        with contextlib.suppress(FileNotFoundError):  # garbage collection was at it, too
            await asyncio.to_thread(remove_folder, self.plan.containers / self.id)

    async def _child(self, pid: int, pipe: BinaryIO) -> ForkedChild:
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
        child = ForkedChild(pid, stream, transport, self._child_ended)
        child.server_is_gone = self._gone
        self.children[pid] = child
        if pid in self._ended_early:
            child.told(self._ended_early[pid])
        return child

    async def _ask(
        self, kind: bytes, request: Mapping[str, object], passed: Sequence[int], seconds: float
    ) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises ForkFailed when there is none; the server is of no use then."""
        if self._gone:
            raise ForkFailed("the fork server has ended")
        self._answer = asyncio.get_running_loop().create_future()
        try:
            with os.fdopen(os.memfd_create("request"), "w+b") as file:
                file.write(json.dumps(request).encode())
                file.flush()
                socket.send_fds(self._connection, [kind], [file.fileno(), *passed])
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError:
            self.kill()
            raise ForkFailed(f"the fork server gave no answer within {seconds:g} s") from None
        except OSError as why:
            self.kill()
            raise ForkFailed(f"the fork server takes no request: {why}") from None
        except ForkFailed as why:
            self.kill()
            await self._process.wait()
            raise ForkFailed(f"{why}: {(await self._process.output())[-1000:] or 'it said nothing'}") from None
        finally:
            self._answer = None

    def _on_readable(self) -> None:
        while not self._gone:
            try:
                packet = self._connection.recv(_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._leave()
                return
            message = json.loads(packet)
            if message["t"] == "ended":
                child = self.children.get(message["pid"])
                if child is not None:
                    child.told(message["code"])
                else:
                    self._ended_early[message["pid"]] = message["code"]
            elif self._answer is not None and not self._answer.done():
                self._answer.set_result(message)

    def _child_ended(self, child: ForkedChild) -> None:
        self.children.pop(child.pid, None)
        self.used_at = time.monotonic()
        self.on_change()

    def _leave(self) -> None:
        """The server is gone, or is to be left alone."""
        if self._gone:
            return
        self._gone = True
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._connection.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ForkFailed("the fork server has ended"))
        for child in self.children.values():
            child.server_is_gone = True
        self.on_change()
