"""Leases of GPUs for steps of an image's build: asked for by the worker that builds, when a step must be made that wants some.

One is a container of the record that never becomes ready, `b-...`: so it is placed, metered, shown as what holds a GPU, and ended
with its worker or at the next start of the gateway, as every container is. It has its session's id where the image is built for a
cell, and none where it is built without. It ends when the worker says so or its stream is gone.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.messages import BuildLease, BuildLeaseGiven, BuildLeaseOver, ContainerInfo, Queued
from cellburst_protocol.peer import Stream, StreamEnded
from cellburst_protocol.resources import Resources, parse_gpus
from cellburst_protocol.states import ContainerState, EndReason

from .build_needs import gpus_alone
from .containers import ContainerDetail, ContainerHandle
from .placement import Outcome, Placed, Refused, Request, Waits
from .store_containers import BUILD_PREFIX
from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger(__name__)


@dataclass
class _Wanted:
    """One that waits, or is held."""

    id: str
    worker: str
    owner: Owner
    session: str
    resources: Resources
    stream: Stream
    told: str = ""
    placed: asyncio.Future[ContainerHandle] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BuildLeases:
    """All of them. `builds` are the builds without a cell that are under way: id -> (worker, owner)."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiting: dict[str, _Wanted] = {}
        self._held: dict[str, _Wanted] = {}
        self.builds: dict[str, tuple[str, Owner]] = {}

    @property
    def waits(self) -> bool:
        """Whether one waits for GPUs."""
        return bool(self._waiting)

    def words(self, workspace: str) -> list[str]:
        """What waits, as lists of a workspace show it."""
        waiting = [wanted for wanted in self._waiting.values() if wanted.owner.workspace == workspace]
        return [f"an image's build waits for {wanted.told}" for wanted in waiting if wanted.told]

    async def serve(self, worker: str, asked: BuildLease, stream: Stream) -> None:
        """A worker's stream: Queued ..., BuildLeaseGiven, and the lease until its end."""
        try:
            wanted = self._wanted(worker, asked, stream)
        except CellburstError as why:
            stream.reset(why.info)
            return
        self._waiting[wanted.id] = wanted
        self._hub.placer.kick()
        over = asyncio.create_task(_over(stream))
        try:
            waited_for: set[asyncio.Future[Any]] = {over, wanted.placed}
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if wanted.placed.done() and not over.done():
                self._give(wanted, wanted.placed.result())
                await over
        except CellburstError as why:
            stream.reset(why.info)
        finally:
            over.cancel()
            await asyncio.gather(over, return_exceptions=True)
            self._waiting.pop(wanted.id, None)
            self._held.pop(wanted.id, None)
            if wanted.placed.done() and wanted.placed.exception() is None:
                self._end(wanted.placed.result(), over)
            stream.end()

    def revoke(self, id: str, reason: EndReason) -> None:
        """Take one back: its worker ends the step."""
        held = self._held.get(id)
        if held is not None:
            why = error(
                ErrorCode.UNAVAILABLE, f"the lease of the step's GPUs was ended ({reason.value})", next="build again"
            )
            held.stream.reset(why.info)
        handle = self._hub.fleet.containers.get(id)
        if handle is not None:
            self._hub.events.container_gone(handle, reason)

    # -- for the placer --------------------------------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """What waits, in order of arrival. It goes before calls: what waits here holds a container, or keeps somebody waiting
        for a build that is half done."""
        return [Request(one.id, one.resources, only=(one.worker,)) for one in self._waiting.values()]

    def take(self, outcomes: Mapping[str, Outcome]) -> list[tuple[str, ...]]:
        """What became of the requests; leases that should be parked for those that still wait."""
        evict = []
        for wanted in list(self._waiting.values()):
            outcome = outcomes.get(wanted.id)
            try:
                if isinstance(outcome, Placed):
                    handle = self._open(wanted, outcome)
                    del self._waiting[wanted.id]
                    self._held[wanted.id] = wanted
                    wanted.placed.set_result(handle)
                elif isinstance(outcome, Refused):
                    raise from_info(outcome.error)
                elif isinstance(outcome, Waits):
                    self._tell(wanted, outcome)
                    evict.append(outcome.evict)
            except CellburstError as why:
                self._waiting.pop(wanted.id, None)
                wanted.placed.set_exception(why)
        return evict

    # -- parts -----------------------------------------------------------------------------------------------------

    def _wanted(self, worker: str, asked: BuildLease, stream: Stream) -> _Wanted:
        handle = self._hub.fleet.containers.get(asked.container)
        if asked.container and handle is not None and handle.worker == worker:
            session = self._hub.sessions.get(handle.session)
            if session is None or handle.state is not ContainerState.STARTING:
                raise error(ErrorCode.NOT_FOUND, f"container {asked.container[:80]!r} is not being started")
            owner, id = session.record.owner, session.id
        elif asked.build in self.builds and self.builds[asked.build][0] == worker:
            owner, id = self.builds[asked.build][1], ""
        else:
            raise error(
                ErrorCode.FORBIDDEN, "a lease for a build that is none of this worker's", next="see PROTOCOL.md"
            )
        gpus = parse_gpus(asked.gpu, tuple(self._hub.fleet.gpu_types()))
        return _Wanted(f"{BUILD_PREFIX}{secrets.token_hex(8)}", worker, owner, id, gpus_alone(gpus), stream)

    def _tell(self, wanted: _Wanted, outcome: Waits) -> None:
        if outcome.waiting_for != wanted.told:
            wanted.told = outcome.waiting_for
            wanted.stream.post(Queued(position=outcome.position, waiting_for=outcome.waiting_for))

    def _open(self, wanted: _Wanted, placed: Placed) -> ContainerHandle:
        hub, types = self._hub, [gpu.type for gpu in placed.gpus]
        rate = hub.prices.rate(types, 0.0, 0, simulated=any(gpu.simulated for gpu in placed.gpus))
        rate_text, wall = format(rate.usd_per_second, "f"), hub.clock.wall()
        info = ContainerInfo(
            id=wanted.id, worker=wanted.worker, machine=hub.fleet.machine(wanted.worker), gpus=list(placed.gpus),
            usd_per_second=rate_text, price_note=rate.note,
        )  # fmt: skip
        detail = ContainerDetail(resources=wanted.resources, info=info, usd_per_second=rate_text, is_build=True)
        handle = ContainerHandle(
            id=wanted.id, session=wanted.session, worker=wanted.worker, lease=f"l-{wanted.id}", epoch=hub.epoch, detail=detail,
            gpus=placed.uuids, now=hub.clock.monotonic(),
        )  # fmt: skip
        handle.opened_unix_seconds = wall
        common = {"session": wanted.session, "worker": wanted.worker, "epoch": hub.epoch}
        with hub.store.together():
            hub.store.open_lease(
                handle.lease, wanted.owner, session=wanted.session, container=handle.id, worker=handle.worker, epoch=handle.epoch,
                gpus=handle.gpus, cpu=0.0, memory_mib=0, usd_per_second=handle.usd_per_second, now=wall, price_note=rate.note,
            )  # fmt: skip
            hub.store.create_container(
                handle.id, wanted.owner, session=wanted.session, worker=handle.worker, lease=handle.lease, epoch=handle.epoch,
                now=wall, detail=msgspec.json.encode(detail).decode(),
            )  # fmt: skip
            hub.store.move_container(handle.id, ContainerState.STARTING, now=wall)
        hub.fleet.containers[handle.id] = handle
        handle.move(ContainerState.STARTING)
        log.info("GPUs leased to a build", extra={"build": handle.id, "gpus": len(handle.gpus), **common})
        return handle

    def _give(self, wanted: _Wanted, handle: ContainerHandle) -> None:
        wanted.stream.post(
            BuildLeaseGiven(
                id=handle.id, lease=handle.lease, epoch=handle.epoch, gpus=list(handle.gpus),
                usd_per_second=handle.detail.usd_per_second, price_note=handle.detail.info.price_note,
            )
        )  # fmt: skip

    def _end(self, handle: ContainerHandle, over: asyncio.Task[float | None]) -> None:
        said = None if over.cancelled() or over.exception() is not None else over.result()
        if said is not None:
            now = self._hub.clock.monotonic()
            handle.reported(said, now)
            handle.freeze(now)  # what it counted is what is billed
        self._hub.events.container_gone(handle, EndReason.STOPPED if said is None else EndReason.DONE)


async def _over(stream: Stream) -> float | None:
    """Return when the worker needs them no more: the seconds that it counted, None where it is just gone."""
    try:
        while True:
            message, _ = await stream.recv()
            if isinstance(message, BuildLeaseOver):
                return message.seconds
    except (StreamEnded, CellburstError):
        return None
