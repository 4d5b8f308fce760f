"""One container of this worker, from StartContainer to the last acknowledged event.

    run():  start (prepare, listen, engine, hello, ready) -> live until something ends it -> end (kill, drain, remove)
            -> ContainerEnded -> kept until the gateway has everything

Whatever ends it, one path cleans up. The link to the gateway may come and go meanwhile: `attach` serves one stream, and
the spool bridges the rest. Over 400 lines: one life, whose ends all meet in one place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.framing import FramingError
from cellburst_protocol.messages import (
    ContainerEnded,
    ContainerReport,
    ContainerUsage,
    GpuUsage,
    Interrupt,
    Notice,
    ParkContainer,
    StartContainer,
)
from cellburst_protocol.peer import LinkClosed, Stream, StreamEnded
from cellburst_protocol.states import CONTAINER_TRANSITIONS, ContainerState, EndReason, advance
from cellburst_runtime.engine import ContainerExit
from cellburst_runtime.image_build import BuiltImage

from . import endings
from .body import Body
from .calls import Call, Calls
from .endings import Ending
from .fresh import preload_of
from .inbound import Inbound
from .leases import Lease
from .outbound import Outbound
from .park_desk import ParkDesk
from .runner_link import SILENT_PINGS, RunnerLink
from .site import Site
from .spool import Spool
from .starting import Starting
from .template_policy import Facts
from .usage import CpuMeter
from .volumes import ContainerVolumes
from .warm_pool import WarmPool

log = logging.getLogger(__name__)


class WorkerContainer:
    """One container. The worker makes it when it has granted the lease, and runs `run` as a task."""

    def __init__(
        self, request: StartContainer, lease: Lease, site: Site, release: Callable[[], object],
        pool: WarmPool | None = None,
    ) -> None:  # fmt: skip
        self.id, self.request, self.lease, self._site = request.container, request, lease, site
        self._release = release
        self.state = ContainerState.PLACED
        self.spool = Spool(site.spool_folder / self.id)
        self._calls = Calls()
        self._outbound = Outbound(self.id, site, self.spool, self._calls, self._on_started)
        self._link = RunnerLink(
            self.id, self._outbound.received, on_connect=self._outbound.connected, ping_seconds=site.limits.ping_seconds
        )
        self._outbound.link = self._link
        self._outbound.on_imported = self._on_cell_done
        self._inbound = Inbound(self.id, site, self._calls, self._outbound, self._link, self._on_ack)
        self._stop: asyncio.Future[tuple[EndReason, float]] = asyncio.get_running_loop().create_future()
        self._wanted = True  # a gateway will take the events
        self._settled = asyncio.Event()  # ended, and the gateway has every event
        self._pool = pool
        self._body = Body(request, site, self._link, self._outbound, pool=pool)
        if request.volumes and site.volumes is not None:
            self._body.volumes = ContainerVolumes(site.volumes, request, self._outbound.emit, self._shown_call)
        self._desk = ParkDesk(self._body, self._calls, self._inbound)
        self._ready_sequence = 0
        self._ready_since = self._busy_seen = site.clock.monotonic()
        self._cpu = CpuMeter()
        self._peak_bytes: int | None = None
        self._limit_timer: asyncio.TimerHandle | None = None
        self._unwatched_since = site.clock.monotonic()  # ended, and no gateway took the events since then

    # -- what the worker calls -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The container's whole life. Returns when nothing of it is left here."""
        ways = [asyncio.create_task(self._outbound.run()), asyncio.create_task(self._inbound.run())]
        for way in ways:
            way.add_done_callback(self._way_ended)
        await self._end(await self._live())
        for way in ways:
            await _cancelled(way)
        await self._settled.wait()
        self.spool.remove()

    async def attach(self, stream: Stream, recorded_sequence: int) -> None:
        """Serve one stream until it is gone; the gateway has recorded everything up to `recorded_sequence`."""
        self._on_ack(recorded_sequence)
        self._outbound.stream = stream
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._outbound.feed.run(stream, recorded_sequence))
                group.create_task(self._inbound.serve(stream))
                group.create_task(self._half_close(stream))
        except* (LinkClosed, StreamEnded):
            pass
        except* (CellburstError, FramingError) as why:
            log.warning(
                "a container's stream was given up", extra={"container": self.id, "why": str(why.exceptions[0])}
            )
        finally:
            if self._outbound.stream is stream:
                self._outbound.stream = None
            self._unwatched_since = self._site.clock.monotonic()

    def stop(self, reason: EndReason, grace_seconds: float = 0.0) -> None:
        """End it for this reason. The first reason stands."""
        if not self._stop.done():
            self._stop.set_result((reason, grace_seconds))

    def disown(self) -> None:
        """Nobody will take the events any more: forget them as soon as the container has ended."""
        self._wanted = False
        self._settle()

    def interrupt(self, message: Interrupt) -> None:
        """Pass an interrupt to the runner, or keep the call from reaching it."""
        call = self._calls.get(message.call)
        if not message.call or (call is not None and call.relayed):
            self._link.post(Interrupt(call=message.call or self._calls.running, level=message.level))
        elif call is not None:
            self._outbound.refuse(call)
        else:
            self._calls.cancel_early(message.call)

    def park(self, request: ParkContainer) -> None:
        """See `ParkDesk.begin`."""
        self._desk.begin(request, self.state)

    def facts(self) -> Facts | None:
        """What the policy of templates needs; None while it is not ready, or is put away."""
        if self.state is not ContainerState.READY or self._desk.busy:
            return None
        now = self._site.clock.monotonic()
        return Facts(
            container=self.id, key=self._body.template_key, busy=bool(self._calls.running),
            quiet_seconds=now - self._busy_seen, ready_seconds=now - self._ready_since,
            cells_done=self._calls.ended_count, imports=preload_of(self._site, self.request),
        )  # fmt: skip

    @property
    def image(self) -> BuiltImage | None:
        """The image that it is made from; None for a mirror, and while it is being built."""
        return self._body.image

    @property
    def parks(self) -> bool:
        """Whether its session is being put away."""
        return self._desk.busy

    def has_call(self, call: str) -> bool:
        """Whether the call was given to this container."""
        return self._calls.knows(call)

    def tick(self) -> None:
        """Once a second: a full disk is tried again, credit is given, an ended container nobody asks for is forgotten."""
        if self.spool.disk_error:
            self.spool.flush()
        self._outbound.grant()
        self._enforce_limits()
        if self._calls.running:
            self._busy_seen = self._site.clock.monotonic()
        unwatched = self._site.clock.monotonic() - self._unwatched_since
        if (
            self.state is ContainerState.ENDED
            and self._outbound.stream is None
            and unwatched > self._site.limits.keep_seconds
        ):
            self.disown()

    def report(self) -> ContainerReport:
        """What a joining worker says about it."""
        return ContainerReport(
            container=self.id, lease=self.lease.id, epoch=self.lease.epoch, state=self.state,
            uptime_seconds=self.uptime_seconds, running_call=self._calls.running, last_sequence=self.spool.last_sequence,
        )  # fmt: skip

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the lease began, on the worker's monotonic clock."""
        return self._site.clock.monotonic() - self.lease.since_seconds

    async def usage(self, gpus: dict[str, GpuUsage]) -> ContainerUsage:
        """Usage now; `gpus` are the machine's figures by UUID."""
        running = self._body.running
        usage = await running.container.usage() if running is not None else None
        now = self._site.clock.monotonic()
        memory = usage.memory_bytes if usage else None
        self._peak_bytes = max(self._peak_bytes or 0, memory or 0) or None
        return ContainerUsage(
            container=self.id,
            uptime_seconds=self.uptime_seconds,
            cpu_cores=self._cpu.cores(usage.cpu_seconds if usage else None, now),
            memory_bytes=memory,
            memory_limit_bytes=usage.memory_limit_bytes if usage else None,
            gpus=[gpus[uuid] for uuid in self.lease.gpus if uuid in gpus],
        )

    # -- start -----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._become(ContainerState.STARTING)
        ready = await Starting(self._body).run()
        self._become(ContainerState.READY)
        what = {"container": self.id, "engine": ready.engine.name, "start": ready.start, "lost": len(ready.lost)}
        log.info("container is ready", extra=what)
        self._outbound.emit(ready, self.request.prepare_call)
        self._ready_sequence = self.spool.last_sequence
        self._ready_since = self._busy_seen = self._site.clock.monotonic()
        self._inbound.open.set()
        if self._body.volumes is not None:
            self._body.volumes.begin()
        if self._pool is not None:
            assert self._body.prepared is not None
            self._pool.started(self._body.prepared, self.request, self._body.image)

    async def _forget_parked(self) -> None:
        """The gateway knows that the session is up again: what was parked of it is not needed any more."""
        id = self.request.parked
        try:
            await asyncio.to_thread(self._site.runtime.snapshots.remove, "session", id)
        except (CellburstError, OSError) as why:
            log.warning("a resumed session's parked bytes stay", extra={"parked": id, "why": str(why)})

    def _way_ended(self, way: asyncio.Task[None]) -> None:
        if not way.cancelled() and way.exception() is not None:
            log.error("a container's relay failed", exc_info=way.exception(), extra={"container": self.id})
            self.stop(EndReason.CONTAINER_LOST)

    # -- life ------------------------------------------------------------------------------------------------------

    async def _live(self) -> Ending:
        starting = asyncio.create_task(self._start())
        if not await self._first(starting, self._stop):
            await _cancelled(starting)
            return Ending(self._stop.result()[0])
        if (failure := starting.exception()) is not None:
            return endings.of_start(_start_error(failure, self.id))
        running = self._body.running
        assert running is not None
        exited = asyncio.create_task(running.container.wait())
        silent = asyncio.create_task(self._link.silent.wait())
        try:
            causes: set[asyncio.Future[Any]] = {exited, silent, self._stop, self._desk.over}
            await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
            await self._desk.settle(self._stop)
            if self._desk.over.done() and not _limit_reached(exited):
                return self._desk.over.result()
            if self._stop.done():
                reason, grace_seconds = self._stop.result()
                await self._let_finish(grace_seconds, exited)
                return Ending(reason)
            if exited.done():
                resources = self.request.resources
                return endings.of_exit(
                    exited.result(), resources.memory_mib, self._peak_bytes, running.container.spec.pids
                )
            return endings.of_silence(SILENT_PINGS * self._site.limits.ping_seconds)
        finally:
            for task in (exited, silent):
                await _cancelled(task)

    async def _first(self, task: asyncio.Task[None], other: asyncio.Future[Any]) -> bool:
        both: set[asyncio.Future[Any]] = {task, other}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return task.done()

    async def _let_finish(self, grace_seconds: float, exited: asyncio.Task[Any]) -> None:
        """Interrupt what runs and wait for its end, at most the grace."""
        call = self._calls.running
        if not call or grace_seconds <= 0:
            return
        self._link.post(Interrupt(call=call, level=1))
        deadline = self._site.clock.monotonic() + grace_seconds
        while self._calls.get(call) and not exited.done() and self._site.clock.monotonic() < deadline:
            await asyncio.wait({exited}, timeout=0.02)

    # -- end -------------------------------------------------------------------------------------------------------

    async def _end(self, ending: Ending) -> None:
        if self.state is not ContainerState.PLACED:
            self._become(ContainerState.STOPPING)
        if self._limit_timer is not None:
            self._limit_timer.cancel()
        body = self._body
        if body.running is not None:
            await self._guarded("kill", body.running.container.kill())
            await body.drain()
        if body.volumes is not None:
            await self._guarded("volumes", body.volumes.finish())
        await body.close_door()
        await self._link.close()
        await self._inbound.close()
        await self._outbound.close()
        if body.running is not None:
            await self._guarded("remove", body.running.container.remove())
        elif body.prepared is not None:
            await self._guarded("remove", body.prepared.remove())
        body.release_image()
        self._release()
        self._become(ContainerState.ENDED)
        self._unwatched_since = self._site.clock.monotonic()
        log.info("container ended", extra={"container": self.id, "reason": ending.reason.value})
        self._outbound.emit(ContainerEnded(container=self.id, reason=ending.reason, error=ending.error))
        self._settle()

    async def _guarded(self, what: str, work: Awaitable[object]) -> None:
        # An end that fails half-way must still release the lease and tell the gateway; garbage collection does the rest.
        try:
            await work
        except Exception:
            log.exception("a container could not be cleaned up", extra={"container": self.id, "step": what})

    def _become(self, state: ContainerState) -> None:
        self.state = advance(CONTAINER_TRANSITIONS, self.state, state, f"container {self.id}")

    def _on_ack(self, sequence: int) -> None:
        self.spool.ack(sequence)
        if self.request.parked and 0 < self._ready_sequence <= self.spool.acked_sequence:
            self._ready_sequence = 0
            self._forgetting = asyncio.create_task(self._forget_parked())
        self._outbound.grant()
        self._settle()

    def _settle(self) -> None:
        if self.state is ContainerState.ENDED and not (self._wanted and self.spool.waiting):
            self._settled.set()

    async def _half_close(self, stream: Stream) -> None:
        await self._settled.wait()
        stream.end()
        raise StreamEnded

    # -- time limits -----------------------------------------------------------------------------------------------

    def _shown_call(self) -> str:
        """The call under which a line of the platform's own is seen now; "" for none."""
        starts = self.state in (ContainerState.PLACED, ContainerState.STARTING)
        return self._calls.running or (self.request.prepare_call if starts else "")

    def _on_cell_done(self, imported: list[str]) -> None:
        self._site.imports.add(self.request.notebook, imported)
        if self._body.volumes is not None:
            self._body.volumes.nudge()

    def _on_started(self, call: Call) -> None:
        self._arm_limit()
        if self._body.volumes is not None:
            self._body.volumes.flush_notices()
        # The executor has read what was shown to it: its disk and memory are free again.
        if self._outbound.folder is not None:
            for shown in (self._outbound.folder / "var" / "in").iterdir():
                shown.unlink(missing_ok=True)

    def _arm_limit(self) -> None:
        due = self._calls.next_due_seconds()
        if self._limit_timer is not None:
            self._limit_timer.cancel()
            self._limit_timer = None
        if due is not None:
            delay = max(0.0, due - self._site.clock.monotonic())
            self._limit_timer = asyncio.get_running_loop().call_later(delay, self._enforce_limits)

    def _enforce_limits(self) -> None:
        for call, level in self._calls.due(self._site.clock.monotonic()):
            self._link.post(Interrupt(call=call, level=level))
            if level == 1:
                found = self._calls.get(call)
                seconds = found.limit.timeout_seconds if found else None
                self._outbound.emit(
                    Notice(text=f"timeout={seconds:g}s is reached: the cell is interrupted", level="warning"), call
                )
        self._arm_limit()


def _limit_reached(exited: asyncio.Task[ContainerExit]) -> bool:
    return exited.done() and exited.result().cause in ("oom", "pids")


def _start_error(failure: BaseException, container: str) -> ErrorInfo:
    if isinstance(failure, CellburstError):
        return failure.info
    log.error("a start failed", exc_info=failure, extra={"container": container})
    return ErrorInfo(
        code=ErrorCode.START_FAILED,
        message=f"the container could not be started: {failure}",
        next="see the worker's log",
    )


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
