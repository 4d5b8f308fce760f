"""The agent of one machine: its containers and leases, its heartbeat, and what the gateway tells it to do.

The worker obeys: it starts, watches and ends containers, and says what they use. It decides only what must not wait for
a gateway: that a GPU is held once, that limits hold, and that containers end when no gateway came for too long.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from cellburst_protocol import SOFTWARE_VERSION
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.messages import (
    BuildStream,
    ContainerStream,
    ForgetParked,
    GpuUsage,
    Heartbeat,
    Hello,
    ImageLogs,
    Interrupt,
    Inventory,
    Joined,
    JoinWorker,
    ListImages,
    Message,
    ParkContainer,
    PruneImages,
    SendParked,
    Shutdown,
    StartContainer,
    StopContainer,
    VerifyImages,
    Waiting,
    Welcome,
)
from cellburst_protocol.peer import Peer, Stream
from cellburst_protocol.states import ContainerState, EndReason
from cellburst_protocol.version import PROTOCOL_VERSION

from .container import WorkerContainer
from .image_watch import ImageWatch
from .images import ImageDesk
from .leases import Lease, LeaseBook
from .moved_names import send_out
from .parking import parked_info
from .site import Site
from .template_policy import Facts, is_quiet
from .templates import Templates, free_bytes
from .warm_policy import Machine
from .warm_pool import WarmPool

FAREWELL_SECONDS = 2.0  # how long a stopping worker waits for the gateway to take the last events
TICK_SECONDS = 1.0
GRACE_SECONDS = 600.0  # until a gateway says its own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Who this worker is: `name` is the same after a restart, `machine_id` tells whether a kernel sees the same files
    (`cellburst_runtime.mirror.machine_id`)."""

    name: str
    machine_id: str = ""


class Worker:
    """One machine's worker; `gateway_link.Member` for its link."""

    def __init__(self, identity: Identity, inventory: Inventory, site: Site) -> None:
        self._identity, self._inventory, self._site = identity, inventory, site
        self._instance = secrets.token_hex(8)
        self._book = LeaseBook(inventory)
        site.gpu_desk.book, site.gpu_desk.gpus = self._book, inventory.gpus
        self.containers: dict[str, WorkerContainer] = {}
        self._reported: set[str] = set()
        self._peer: Peer | None = None
        self._parted_since = site.clock.monotonic()
        self._grace_seconds = GRACE_SECONDS
        self._heartbeat_seconds = TICK_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        self._gpu_usage: dict[str, GpuUsage] = {}
        self._pool = WarmPool(site)
        self._templates = Templates(site, self._pool)
        self._images = ImageDesk(site, identity.name, self._image_users)
        self._waiting = Waiting()
        self.image_watch = ImageWatch(site.runtime.images, self._is_busy, self._pool.release_images)
        self.shutdown_asked = asyncio.Event()

    # -- the link ----------------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Who dials."""
        return Hello(
            role="worker", protocol=PROTOCOL_VERSION, software=f"cellburst-worker {SOFTWARE_VERSION}", instance=self._instance,
            pid=os.getpid(), hostname=socket.gethostname(), machine_id=self._identity.machine_id,
        )  # fmt: skip

    def join(self) -> JoinWorker:
        """What the machine has and runs, now."""
        reports = [container.report() for container in self.containers.values()]
        self._reported = {report.container for report in reports}
        parked = [parked_info(manifest) for manifest in self._site.runtime.snapshots.parked_all()]
        return JoinWorker(
            worker=self._identity.name, inventory=self._inventory, containers=reports, parked=parked, pid=os.getpid()
        )

    def joined(self, peer: Peer, welcome: Welcome, joined: Joined) -> None:
        """The link is up: open a stream for each container that is the gateway's, stop the others."""
        self._peer = self._site.gpu_desk.peer = peer
        self._waiting = Waiting()
        self._grace_seconds = welcome.disconnect_grace_seconds
        self._heartbeat_seconds = welcome.heartbeat_seconds
        self._site.exchange.welcomed(welcome)
        if self._site.volumes is not None:
            self._site.volumes.welcomed(welcome, self._site.exchange.shared)
        for container in list(self.containers.values()):
            if container.id in self._reported and (container.id not in joined.adopted or container.id in joined.stop):
                log.info("a container is not the gateway's", extra={"container": container.id})
                container.stop(EndReason.STOPPED)
                container.disown()
            else:
                self._open_stream(container, joined.adopted.get(container.id, 0))
        self._forget(joined.forget)

    def parted(self) -> None:
        """The link is gone; containers run on."""
        log.warning("the link to the gateway is gone", extra={"containers": len(self.containers)})
        self._peer = self._site.gpu_desk.peer = None
        self._parted_since = self._site.clock.monotonic()

    async def on_message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        """A control message of the gateway's."""
        match message:
            case StartContainer():
                self.start_container(message)
            case StopContainer():
                if (container := self.containers.get(message.container)) is not None:
                    container.stop(message.reason, message.grace_seconds)
            case ParkContainer():
                await self._park(message)
            case ForgetParked():
                self._forget(message.parked)
            case SendParked():
                return await send_out(self._site, message.parked)
            case Waiting():
                self._waiting = message
                self._keep_warm()  # what is in the way goes now
            case Interrupt():
                for container in self._meant(message):
                    container.interrupt(message)
            case ListImages() | PruneImages() | VerifyImages() | ImageLogs():
                if isinstance(message, PruneImages | VerifyImages):
                    await self._pool.release_images()
                return await self._images.answer(message)
            case Shutdown():
                self.shutdown_asked.set()
            case _:
                raise error(
                    ErrorCode.BAD_MESSAGE, f"a worker takes no {type(message).__name__}", next="see PROTOCOL.md"
                )
        return None

    def on_open(self, head: Message, stream: Stream) -> None:
        """A stream that the gateway opened: an image to build."""
        if isinstance(head, BuildStream) and not self.shutdown_asked.is_set():
            self._images.serve(head, stream)
            return
        stopping = "this worker is shutting down" if isinstance(head, BuildStream) else ""
        stream.reset(
            ErrorInfo(
                code=ErrorCode.UNAVAILABLE if stopping else ErrorCode.BAD_MESSAGE,
                message=stopping or f"a worker serves no {type(head).__name__}",
            )
        )

    def _image_users(self) -> dict[str, list[str]]:
        users = {c.id: list(c.image.keys) for c in self.containers.values() if c.image is not None}
        return {**users, **self._pool.image_users()}

    def _meant(self, message: Interrupt) -> list[WorkerContainer]:
        if message.container:
            return [c for c in self.containers.values() if c.id == message.container]
        return [c for c in self.containers.values() if message.call and c.has_call(message.call)]

    # -- parked sessions ---------------------------------------------------------------------------------------------

    async def _park(self, request: ParkContainer) -> None:
        container = self.containers.get(request.container)
        if container is not None and container.state is not ContainerState.ENDED:
            container.park(request)
        elif await asyncio.to_thread(self._site.runtime.snapshots.parked, request.parked) is None:
            raise error(
                ErrorCode.NOT_FOUND, f"this worker has no container {request.container}", next="its end was told before"
            )

    def _forget(self, parked: Sequence[str]) -> None:
        if parked:
            self._spawn(self._forgotten(parked))

    async def _forgotten(self, parked: Sequence[str]) -> None:
        for id in parked:
            try:
                await asyncio.to_thread(self._site.runtime.snapshots.remove, "session", id)
            except (CellburstError, OSError) as why:
                log.warning("parked bytes could not be removed", extra={"parked": id, "why": str(why)})

    # -- containers --------------------------------------------------------------------------------------------------

    def start_container(self, request: StartContainer) -> None:
        """Take the lease and start. A repeated request changes nothing. Raises what the lease book raises."""
        if self.shutdown_asked.is_set():
            raise error(ErrorCode.UNAVAILABLE, "this worker is shutting down", next="place the container elsewhere")
        known = self.containers.get(request.container)
        if known is not None and known.lease.id == request.lease:
            return
        lease = Lease(
            id=request.lease, container=request.container, epoch=request.epoch, gpus=tuple(request.gpus),
            cpu=request.resources.cpu, memory_mib=request.resources.memory_mib, since_seconds=self._site.clock.monotonic(),
        )  # fmt: skip
        if not request.container.replace("-", "").replace("_", "").isalnum():
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{request.container!r} is no container id", allowed="letters, digits, - and _"
            )
        self._book.take(lease)
        log.info(
            "container asked for",
            extra={"container": request.container, "gpus": len(request.gpus), "engine": request.engine},
        )
        release = self._book.release
        container = WorkerContainer(request, lease, self._site, lambda: release(lease.container), self._pool)
        self.containers[container.id] = container
        self._spawn(self._live(container))
        self._open_stream(container, 0)

    async def _live(self, container: WorkerContainer) -> None:
        try:
            await container.run()
        except Exception:
            log.exception("a container's life failed", extra={"container": container.id})
            self._book.release(container.id)
        finally:
            self.containers.pop(container.id, None)

    def _open_stream(self, container: WorkerContainer, recorded_sequence: int) -> None:
        if self._peer is None:
            return  # the next Joined opens it
        try:
            stream = self._peer.open(ContainerStream(container=container.id, from_sequence=recorded_sequence))
        except CellburstError:
            return
        self._spawn(container.attach(stream, recorded_sequence))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("a task failed: %s", getattr(task.get_coro(), "__qualname__", ""), exc_info=problem)

    # -- once a second -----------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Heartbeats, figures, limits and the grace without a gateway, for ever."""
        measuring: asyncio.Task[Heartbeat] | None = None
        last = Heartbeat(worker=self._identity.name)
        while True:
            if measuring is None:
                measuring = asyncio.create_task(self._measure())
            # A driver or cgroup that hangs must not silence the heartbeat: it goes with the last figures then.
            done, _ = await asyncio.wait({measuring}, timeout=self._heartbeat_seconds / 2)
            if done:
                last, measuring = _result(measuring, last), None
            if self._peer is not None:
                self._peer.notify(last)
            for container in list(self.containers.values()):
                container.tick()
            self._take_templates()
            self._keep_warm()
            if self._site.volumes is not None and self._peer is not None:
                self._site.volumes.deliver()
            self._check_grace()
            await asyncio.sleep(self._heartbeat_seconds / 2 if not done else self._heartbeat_seconds)

    async def _measure(self) -> Heartbeat:
        uuids = [gpu.uuid for gpu in self._inventory.gpus]
        gpus = await asyncio.to_thread(self._site.runtime.gpu_usage, uuids) if uuids else []
        by_uuid = {gpu.uuid: gpu for gpu in gpus}
        alive = [c for c in self.containers.values() if c.state is not ContainerState.ENDED]
        usage = [await container.usage(by_uuid) for container in alive]
        snapshots = await asyncio.to_thread(self._site.runtime.snapshots.usage)
        snapshots.warm = self._pool.usage()
        return Heartbeat(worker=self._identity.name, usage=usage, gpus=gpus, snapshots=snapshots)

    def _take_templates(self) -> None:
        if self.shutdown_asked.is_set() or not self._site.takes_templates:
            return
        facts = self._facts()
        found = {fact.container: self.containers[fact.container] for fact in facts}
        requests = {id: container.request for id, container in found.items()}
        self._templates.tick(facts, requests, {id: container.image for id, container in found.items()})

    def _facts(self) -> list[Facts]:
        return [fact for container in self.containers.values() if (fact := container.facts()) is not None]

    def _keep_warm(self) -> None:
        if self.shutdown_asked.is_set() or not self._site.keeps_warm:
            return
        at_rest = (ContainerState.READY, ContainerState.ENDED)
        starting = any(c.state not in at_rest or c.parks for c in self.containers.values())
        busy = starting or self._waiting.count > 0
        total, leased = self._inventory.memory_mib << 20, self._book.held_memory_mib << 20
        quiet = all(is_quiet(fact) for fact in self._facts())
        self._pool.tick(Machine(total, leased, free_bytes(), busy, self._waiting.memory_mib << 20, quiet))

    def _is_busy(self) -> bool:
        """Whether a container starts, parks or runs a cell here, one waits for this machine, or an image is built."""
        at_rest = (ContainerState.READY, ContainerState.ENDED)
        moving = any(c.state not in at_rest or c.parks for c in self.containers.values())
        return moving or self._waiting.count > 0 or self._images.builds or not all(map(is_quiet, self._facts()))

    def _check_grace(self) -> None:
        if self._peer is not None or not self.containers:
            return
        if self._site.clock.monotonic() - self._parted_since > self._grace_seconds:
            log.warning("no gateway for too long: all containers end", extra={"seconds": self._grace_seconds})
            for container in self.containers.values():
                container.stop(EndReason.WORKER_LOST)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def shutdown(self) -> None:
        """End and remove all containers, let the gateway take the last events, then return."""
        self.shutdown_asked.set()
        log.info("shutting down", extra={"containers": len(self.containers)})
        for container in self.containers.values():
            container.stop(EndReason.SHUTDOWN)
        await self._templates.close()
        await self._pool.close()
        await self._images.close()
        while any(c.state is not ContainerState.ENDED for c in self.containers.values()):
            await asyncio.sleep(0.02)
        await self._pool.close()  # what a start gave back that was ended
        if self._site.volumes is not None:
            await self._site.volumes.close()
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                while self._peer is not None and self.containers:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("the gateway did not take the last events", extra={"containers": len(self.containers)})
        for container in list(self.containers.values()):
            container.disown()
        while self.containers:
            await asyncio.sleep(0.01)


def _result(task: asyncio.Task[Heartbeat], last: Heartbeat) -> Heartbeat:
    try:
        return task.result()
    except Exception:
        log.exception("usage could not be measured")
        return last
