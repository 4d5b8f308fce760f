"""All workers that have joined and all containers that hold a lease, live or waiting for their worker to come back."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.messages import (
    ContainerReport,
    GpuUsage,
    Heartbeat,
    Hello,
    Inventory,
    Joined,
    JoinWorker,
    Message,
    SnapshotUsage,
    StopContainer,
    WorkerRow,
)
from cellburst_protocol.peer import Peer
from cellburst_protocol.states import WORKER_TRANSITIONS, ContainerState, EndReason, WorkerState, advance

from .containers import ContainerHandle
from .store_rows import Owner, WorkerRecord

if TYPE_CHECKING:
    from .hub import Hub

STOP_GRACE_SECONDS = 2.0
TOUCH_SECONDS = 10.0  # how much of a bill a gateway's crash may forget, if its worker is gone too

log = logging.getLogger(__name__)


class WorkerHandle:
    """One worker. `peer` is None while its link is down."""

    def __init__(self, id: str, owner: Owner, inventory: Inventory, *, pid: int, instance: str, now: float) -> None:
        self.id = id
        self.owner = owner
        self.inventory = inventory
        self.pid = pid
        self.instance = instance
        self.state = WorkerState.JOINED
        self.peer: Peer | None = None
        self.on_this_machine = False
        self.machine_id = ""  # as kernels have it in MirrorSpec; "" until it has dialled
        self.last_heard = now
        self.told_unreachable = False
        self.snapshots: SnapshotUsage | None = None
        self.gpu_usage: list[GpuUsage] = []

    def move(self, to: WorkerState) -> None:
        """Change state by the table; raises TransitionError."""
        if to is not self.state:
            self.state = advance(WORKER_TRANSITIONS, self.state, to, f"worker {self.id}")

    @property
    def reachable(self) -> bool:
        """Whether containers can be started there now."""
        return self.peer is not None and self.state is WorkerState.JOINED


class Fleet:
    """Workers and containers by id."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.workers: dict[str, WorkerHandle] = {}
        self.containers: dict[str, ContainerHandle] = {}
        self._touched_at = 0.0
        hub.metrics.counter("cellburst_workers_lost_total", "Workers that went away with their containers.")
        hub.metrics.gauge("cellburst_workers", "Workers by state.", self._count_workers)
        hub.metrics.gauge("cellburst_containers", "Containers that hold a lease.", lambda: [((), len(self.containers))])

    # -- joining and leaving ---------------------------------------------------------------------------------------

    def restore(self, record: WorkerRecord) -> None:
        """A worker of the record at start: unreachable until it dials."""
        inventory = msgspec.json.decode(record.inventory, type=Inventory)
        now = self._hub.clock.monotonic()
        worker = WorkerHandle(record.id, record.owner, inventory, pid=record.pid, instance=record.instance, now=now)
        worker.on_this_machine = record.hostname == socket.gethostname()
        self.workers[record.id] = worker

    def join(self, message: JoinWorker, hello: Hello, owner: Owner, peer: Peer, *, loopback: bool) -> Joined:
        """A worker dialled: adopt what the record knows of its containers, tell it to stop the rest."""
        old = self.workers.get(message.worker)
        if old is not None and old.peer is not None and old.peer is not peer:
            old.peer.close("the worker joined again on a newer link")
        restarted = old is not None and old.instance != hello.instance
        worker = WorkerHandle(
            message.worker, owner, message.inventory, pid=message.pid or hello.pid, instance=hello.instance,
            now=self._hub.clock.monotonic(),
        )  # fmt: skip
        worker.peer, worker.machine_id = peer, hello.machine_id
        worker.on_this_machine = loopback and hello.hostname == socket.gethostname() and process_lives(worker.pid)
        self._hub.store.upsert_worker(
            message.worker, owner, instance=hello.instance, hostname=hello.hostname, pid=worker.pid,
            inventory=msgspec.json.encode(message.inventory).decode(), now=self._hub.clock.wall(),
        )  # fmt: skip
        self.workers[message.worker] = worker
        forget = self._hub.parking.joined(worker.id, message.parked, {r.container for r in message.containers})
        joined = self._match(worker, message.containers, restarted)
        joined.forget = forget
        log.info(
            "worker joined", extra={"worker": worker.id, "adopted": len(joined.adopted), "stopped": len(joined.stop)}
        )
        self._hub.placer.kick()
        return joined

    def _match(self, worker: WorkerHandle, reports: list[ContainerReport], restarted: bool) -> Joined:
        joined = Joined()
        now = self._hub.clock.monotonic()
        for report in reports:
            handle = self.containers.get(report.container)
            ours = (
                handle is not None
                and handle.worker == worker.id
                and handle.lease == report.lease
                and handle.epoch == report.epoch
            )
            if handle is None or not ours:
                joined.stop.append(report.container)
                continue
            handle.reported(report.uptime_seconds, now)
            if report.state is ContainerState.ENDED and report.last_sequence <= handle.recorded:
                self._hub.events.container_gone(handle, handle.stop_reason or EndReason.CONTAINER_LOST)
                joined.stop.append(report.container)  # its end was recorded before this gateway was started
                continue
            handle.expected = report.last_sequence
            joined.adopted[report.container] = handle.recorded
            self._hub.events.adopted(handle, report)
        for handle in self.of_worker(worker.id):
            if handle.id not in joined.adopted:
                reason = EndReason.WORKER_LOST if restarted else EndReason.CONTAINER_LOST
                self._hub.events.container_gone(handle, handle.stop_reason or reason)
            elif handle.state is ContainerState.STOPPING:
                self._send_stop(handle)
        return joined

    def link_closed(self, worker_id: str, peer: Peer) -> None:
        """A worker's link went down; nothing has ended yet."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.peer is not peer:
            return
        worker.peer = None
        now = self._hub.clock.monotonic()
        for handle in self.of_worker(worker_id):
            handle.detach()
            handle.freeze(now)
        log.info("worker's link closed", extra={"worker": worker_id})

    def heartbeat(self, worker_id: str, message: Heartbeat) -> None:
        """A worker's sign of life, with what its containers use."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        now = self._hub.clock.monotonic()
        worker.last_heard = now
        worker.snapshots = message.snapshots or worker.snapshots
        worker.gpu_usage = message.gpus
        if worker.state is WorkerState.UNREACHABLE:
            self._heard_again(worker)
        for usage in message.usage:
            handle = self.containers.get(usage.container)
            if handle is not None and handle.worker == worker_id:
                handle.reported(usage.uptime_seconds, now)
                handle.usage = usage
                self._hub.sessions.tell_usage(handle)

    def _heard_again(self, worker: WorkerHandle) -> None:
        worker.move(WorkerState.JOINED)
        self._hub.store.mark_worker(worker.id, WorkerState.JOINED, now=self._hub.clock.wall())
        for handle in self.of_worker(worker.id):
            self._hub.events.reachable_again(handle)

    # -- asking ----------------------------------------------------------------------------------------------------

    def of_worker(self, worker_id: str) -> list[ContainerHandle]:
        """Containers of one worker."""
        return [handle for handle in self.containers.values() if handle.worker == worker_id]

    def notify(self, worker_id: str, message: Message) -> bool:
        """Send a control message to a worker. False: it is not connected."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.peer is None:
            return False
        worker.peer.notify(message)
        return True

    def machine(self, worker_id: str) -> str:
        """The name of a worker's machine."""
        worker = self.workers.get(worker_id)
        return worker.inventory.hostname if worker else ""

    def gpu_types(self) -> list[str]:
        """All GPU types that there are."""
        return sorted({gpu.type for worker in self.workers.values() for gpu in worker.inventory.gpus})

    def rows(self) -> list[WorkerRow]:
        """Workers as lists show them."""
        now = self._hub.clock.monotonic()
        rows = []
        for worker in self.workers.values():
            held = {gpu for handle in self.of_worker(worker.id) for gpu in handle.gpus}
            rows.append(
                WorkerRow(
                    id=worker.id, state=worker.state if worker.peer else WorkerState.UNREACHABLE, inventory=worker.inventory,
                    pid=worker.pid, free_gpus=[g.uuid for g in worker.inventory.gpus if g.uuid not in held and not g.in_use],
                    last_seen_seconds=round(now - worker.last_heard, 2), snapshots=worker.snapshots,
                    gpu_usage=worker.gpu_usage if worker.reachable else [],
                )
            )  # fmt: skip
        return rows

    def _count_workers(self) -> Iterator[tuple[tuple[tuple[str, str], ...], float]]:
        for state in WorkerState:
            yield (("state", state.value),), sum(worker.state is state for worker in self.workers.values())

    # -- stopping --------------------------------------------------------------------------------------------------

    def stop(self, handle: ContainerHandle, reason: EndReason) -> None:
        """Ask a container's worker to end it. Its lease is closed when that is reported, or the worker is gone."""
        if handle.state in (ContainerState.STOPPING, ContainerState.ENDED):
            return
        if handle.detail.is_build:
            self._hub.build_leases.revoke(handle.id, reason)
            return
        handle.stop_reason = reason
        wall = self._hub.clock.wall()
        if handle.state is ContainerState.PLACED:
            handle.move(ContainerState.STARTING)
            self._hub.store.move_container(handle.id, ContainerState.STARTING, now=wall)
        handle.move(ContainerState.STOPPING)
        self._hub.store.move_container(handle.id, ContainerState.STOPPING, now=wall, reason=reason)
        self._send_stop(handle)

    def _send_stop(self, handle: ContainerHandle) -> None:
        reason = handle.stop_reason or EndReason.STOPPED
        self.notify(handle.worker, StopContainer(container=handle.id, reason=reason, grace_seconds=STOP_GRACE_SECONDS))

    async def stop_all(self, reason: EndReason, timeout_seconds: float) -> bool:
        """End every container and wait for the workers to say so. False when some did not in time."""
        for handle in list(self.containers.values()):
            self._hub.events.release(handle, reason)
        deadline = self._hub.clock.monotonic() + timeout_seconds
        while any(self._reachable(h) for h in self.containers.values()) and self._hub.clock.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return not self.containers

    def _reachable(self, handle: ContainerHandle) -> bool:
        worker = self.workers.get(handle.worker)
        return worker is not None and worker.peer is not None

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Find workers that are not heard, and end what was unreachable too long. Called several times a second."""
        now = self._hub.clock.monotonic()
        for worker in list(self.workers.values()):
            self._check(worker, now)
        if now - self._touched_at >= TOUCH_SECONDS:
            self._touched_at = now
            self._touch(now)

    def _touch(self, now: float) -> None:
        if not self.containers:
            return
        seconds = {handle.lease: handle.uptime(now) for handle in self.containers.values()}
        leases = self._hub.store.touch_leases(seconds)
        billed = {lease.id: lease.billed_seconds for lease in leases}
        for handle in self.containers.values():
            handle.touched_seconds = billed.get(handle.lease, handle.touched_seconds)

    def _check(self, worker: WorkerHandle, now: float) -> None:
        silent = now - worker.last_heard
        if worker.state is WorkerState.LOST:
            return
        if worker.peer is None and worker.on_this_machine and not process_lives(worker.pid):
            self.lose(worker, "its process is gone")
        elif silent >= self._hub.config.disconnect_grace_seconds:
            self.lose(worker, f"nothing was heard of it for {silent:.0f} s")
        elif silent >= self._hub.config.unreachable_seconds and worker.state is WorkerState.JOINED:
            worker.move(WorkerState.UNREACHABLE)
            self._hub.store.mark_worker(worker.id, WorkerState.UNREACHABLE, now=self._hub.clock.wall())
            log.warning("worker cannot be reached", extra={"worker": worker.id})
            for handle in self.of_worker(worker.id):
                handle.freeze(now)
                self._hub.events.unreachable(handle)

    def lose(self, worker: WorkerHandle, why: str) -> None:
        """A worker is gone for good: its containers end, and their calls."""
        log.warning("worker lost: %s", why, extra={"worker": worker.id})
        self._hub.metrics.add("cellburst_workers_lost_total")
        worker.move(WorkerState.LOST)
        if worker.peer is not None:
            worker.peer.close("the worker was given up")
            worker.peer = None
        info = ErrorInfo(
            code=ErrorCode.WORKER_LOST, message=f"the worker on {worker.inventory.hostname or worker.id} was lost: {why}",
            next="run the cell again: it gets a new container",
        )  # fmt: skip
        for handle in self.of_worker(worker.id):
            self._hub.events.container_gone(handle, EndReason.WORKER_LOST, info)
        del self.workers[worker.id]
        try:
            self._hub.store.mark_worker(worker.id, WorkerState.LOST, now=self._hub.clock.wall())
        except CellburstError as problem:
            log.error("the record could not be written: %s", problem.info.message)


def process_lives(pid: int) -> bool:
    """Whether a process of this machine is there and no zombie."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return not Path("/proc/self").exists()  # no /proc on this system: the signal's answer stands
    return state[:1] != ["Z"]
