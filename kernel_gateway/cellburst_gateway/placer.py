"""The queue for containers: asks `placement.py`, opens the lease, tells the worker. One pass after each change.

Over 400 lines: one queue, from a cell's arrival in it to its worker's answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import (
    ContainerInfo,
    MirrorSpec,
    ParkedNames,
    Phase,
    Queued,
    RunCell,
    SendParked,
    StartContainer,
    Waiting,
)
from cellburst_protocol.peer import LinkClosed, Peer
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import CallState, ContainerState, EndReason, SessionState, WorkerState

from .build_needs import build_gpus, build_shared_folder, build_volumes
from .build_secrets import for_container
from .calls import Call
from .cell_volumes import bucket_keys, shared_folder
from .cells import describe
from .container_link import INSIDE, container_token
from .containers import ContainerDetail, ContainerHandle, is_mirror
from .park_rules import Cause, wanted_after
from .placement import Holding, Machine, Placed, Refused, Request, Waits, place, place_all
from .placement_words import waited
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub

RUNS = "schedule:"  # what the notebook of a scheduled run's own session begins with
NOBODY = ""  # no worker: a call that only workers which are not there could take
MOVE_SECONDS = 900.0  # 1 GB of names over a slow line
LOCAL_WORKER_SECONDS = 60.0  # how long a request waits for this machine's own worker to come up
KEEPER_SECONDS = 60.0  # how long a cell waits for the lost worker that keeps its session; then it starts without it
REPEAT_SECONDS = 5.0  # between two Queued events that differ in words only
LOCAL_WORKER_WORDS = "this machine's worker, which is starting"
KEEPER_WORDS = (
    f"the worker that keeps this session, which is away; after {KEEPER_SECONDS:.0f} s it starts without its names"
)

log = logging.getLogger(__name__)


class _Waiting:
    def __init__(self, session: Session, call: Call) -> None:
        self.session = session
        self.call = call
        self.since = session.hub.clock.monotonic()
        self.builds = build_gpus(call.recipe)
        self.told: tuple[int, str] = (0, "")
        self.told_at = float("-inf")


class Placer:
    """Calls that need a container, in order of arrival."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._queue: dict[str, _Waiting] = {}
        self._scheduled = False
        self._told_waiting: dict[str, tuple[Peer | None, Waiting]] = {}  # by worker
        hub.metrics.gauge("cellburst_queue", "Calls that wait for capacity.", lambda: [((), len(self._queue))])

    def words(self, workspace: str) -> list[str]:
        """The queue as lists of a workspace show it: who of its own waits, for how long, and for what."""
        now = self._hub.clock.monotonic()
        return [
            f"{w.session.record.name} of {w.session.record.notebook} {waited(now - (w.call.queued_at or now))}: {w.told[1]}"
            for w in self._queue.values()
            if w.session.record.owner.workspace == workspace
        ]

    # -- coming and going ------------------------------------------------------------------------------------------

    def check(self, resources: Resources, session: Session, recipe: ImageRecipe | None, cell: RunCell) -> None:
        """Refuse what could never be had, before anything is recorded. Raises CapacityError or RequestError (CONFLICT:
        not where the session is, and it cannot move: its names would be lost)."""
        if len(self._queue) >= self._hub.config.max_queue:
            raise error(
                ErrorCode.QUEUE_FULL, f"{len(self._queue)} calls wait already", next="try again later, or add a worker"
            )
        machines, wall = self._machines(), self._hub.clock.wall()
        outcome = place(Request("new", resources, build=build_gpus(recipe)), machines, now=wall)
        if isinstance(outcome, Refused) and not self._local_worker_due() and not self._keeper_lost(session):
            raise from_info(outcome.error)
        keeper = session.container.worker if session.container is not None else self._keeper(session)
        if not keeper or isinstance(outcome, Refused) or self._can_give(keeper, resources, machines):
            return
        if why := self._stuck(session, outcome.worker, recipe, cell):
            raise error(
                ErrorCode.CONFLICT, f"session {session.record.name!r} is on {self._hub.fleet.machine(keeper)}, which can never "
                f"give {describe(resources)}, and it cannot move: {why}", next="`%modal restart` gives the session a new "
                "container elsewhere (its names are lost), session=NAME one beside it",
            )  # fmt: skip

    def _can_give(self, worker: str, resources: Resources, machines: list[Machine]) -> bool:
        """Whether a worker could ever give this, busy or not."""
        return not isinstance(place(Request("new", resources, only=(worker,)), machines), Refused)

    def _stuck(self, session: Session, target: str, recipe: ImageRecipe | None, cell: RunCell) -> str:
        """Why a session's names cannot go to another worker; "" if they can. Its processes never do."""
        if self._hub.secret_desk.of(session) is not None:
            return "it has had secrets, and its names are kept by value nowhere"
        if recipe is None and not cell.has_mirror and not self._hub.mirrors.shares(target, cell.image):
            return (
                f"the notebook's own environment is not on {self._hub.fleet.machine(target)} (image=... is built there)"
            )
        return ""

    def enqueue(self, session: Session, call: Call) -> None:
        """A QUEUED call needs a container."""
        if call.queued_at is None:
            call.queued_at = self._hub.clock.monotonic()
        self._queue[call.id] = _Waiting(session, call)
        self.kick()

    def forget(self, call: Call) -> None:
        """The call waits no more."""
        if self._queue.pop(call.id, None) is not None:
            self.kick()

    def kick(self) -> None:
        """Something changed: look at the queue once what happens now is done."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pass)

    def tick(self) -> None:
        """Called several times a second: words and this machine's worker change with time."""
        if self._queue or self._hub.build_leases.waits:
            self._pass()

    # -- one pass --------------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        self._scheduled = False
        if self._hub.stopping:
            return
        builds = self._hub.build_leases
        if not self._queue and not builds.waits:
            self._tell_workers(())
            return
        machines = self._machines()
        calls = [
            Request(
                call_id,
                w.call.resources,
                self._hub.mirrors.at_home(w.call.image, None),  # also in an image: its folder is there, live
                self._only(w, machines),
                w.builds,
            )
            for call_id, w in self._queue.items()
            if not self._keeper_due(w)
        ]
        outcomes = place_all([*builds.requests(), *calls], machines, now=self._hub.clock.wall())
        for evict in builds.take(outcomes):
            self._evict(evict)
        for position, (call_id, waiting) in enumerate(list(self._queue.items()), 1):
            outcome = outcomes.get(call_id)
            try:
                if outcome is None:
                    self._tell(waiting, position, KEEPER_WORDS)
                elif isinstance(outcome, Placed):
                    del self._queue[call_id]
                    self._start(waiting.session, waiting.call, outcome)
                elif isinstance(outcome, Waits):
                    self._tell(waiting, outcome.position, outcome.waiting_for)
                    self._evict(outcome.evict)
                elif self._local_worker_due():
                    self._tell(waiting, position, LOCAL_WORKER_WORDS)
                else:
                    del self._queue[call_id]
                    self._hub.cells.end(waiting.session, waiting.call, EndReason.NO_CAPACITY, error=outcome.error)
            except CellburstError as why:
                self._queue.pop(call_id, None)
                log.error("a container could not be placed: %s", why.info.message, extra={"call": call_id})
                self._hub.cells.end(waiting.session, waiting.call, EndReason.START_FAILED, error=why.info)
        self._tell_workers(outcome for outcome in outcomes.values() if isinstance(outcome, Waits))

    def _tell_workers(self, waits: Iterable[Waits]) -> None:
        """Tell each worker what waits for its hardware, where that changed: it keeps nothing ready that is in the way."""
        now: dict[str, Waiting] = {}
        for one in waits:
            one_worker = now.setdefault(one.worker, Waiting())
            one_worker.count += 1
            one_worker.memory_mib += one.memory_mib
        for worker in self._hub.fleet.workers.values():
            waiting = now.get(worker.id, Waiting())
            peer, told = self._told_waiting.get(worker.id, (None, Waiting()))
            if worker.peer is not peer:
                told = Waiting()  # it knows of none when it has joined
            if waiting != told and self._hub.fleet.notify(worker.id, waiting):
                self._told_waiting[worker.id] = worker.peer, waiting
        for gone in self._told_waiting.keys() - self._hub.fleet.workers.keys():
            del self._told_waiting[gone]

    def _tell(self, waiting: _Waiting, position: int, words: str) -> None:
        now = self._hub.clock.monotonic()
        if (position, words) == waiting.told:
            return
        if position == waiting.told[0] and now - waiting.told_at < REPEAT_SECONDS:
            return
        waiting.told, waiting.told_at = (position, words), now
        waiting.session.emit(Queued(position=position, waiting_for=words), call=waiting.call.id)

    def _evict(self, leases: tuple[str, ...]) -> None:
        for handle in list(self._hub.fleet.containers.values()):
            session = self._hub.sessions.get(handle.session)
            if handle.lease in leases and session is not None and self._idle(handle) is not None:
                self._hub.parking.begin(session, Cause.WANTED)

    def _keeper(self, session: Session) -> str:
        """The worker that keeps this parked session and is there, or ""."""
        kept = session.kept
        return kept.worker if kept and not session.kept_missing and kept.worker in self._hub.fleet.workers else ""

    def _only(self, waiting: _Waiting, machines: list[Machine]) -> tuple[str, ...]:
        """The workers that a waiting call must go to, unless they can never give what is asked: the one that keeps its session;
        those that show its environment live, where nobody can say what to build it from."""
        keeper, call = self._keeper(waiting.session), waiting.call
        if keeper and self._can_give(keeper, call.resources, machines):
            return (keeper,)
        if call.cell is None or call.cell.has_mirror:
            return ()
        # A scheduled run's folder is laid out on the gateway's machine, also where it or a cell of it runs in an image.
        run = waiting.session.record.notebook.startswith((RUNS, INSIDE))
        home = self._hub.mirrors.at_home(call.image, None if run else call.recipe)
        able = tuple(worker for worker in home if self._can_give(worker, call.resources, machines))
        if able or not run or call.image is None or not call.image.machine_id:
            return able
        return home or (NOBODY,)

    def _keeper_lost(self, session: Session) -> bool:
        """Whether the worker that keeps the session is not there, and may come back with it."""
        kept = session.kept
        return kept is not None and not session.kept_missing and kept.worker not in self._hub.fleet.workers

    def _keeper_due(self, waiting: _Waiting) -> bool:
        """Whether a cell had better wait a while for the lost worker that keeps its session."""
        waited = self._hub.clock.monotonic() - waiting.since
        return waited < KEEPER_SECONDS and self._keeper_lost(waiting.session)

    def _local_worker_due(self) -> bool:
        """Whether this machine's own worker is being started (again), so that nothing is refused for want of it yet."""
        since = self._hub.local_worker_wanted_at
        if since is None or self._hub.clock.monotonic() - since >= LOCAL_WORKER_SECONDS:
            return False
        return not any(worker.on_this_machine and worker.reachable for worker in self._hub.fleet.workers.values())

    def _machines(self) -> list[Machine]:
        return [
            Machine(
                worker.id,
                worker.inventory,
                tuple(self._holding(handle) for handle in self._hub.fleet.of_worker(worker.id)),
                WorkerState.JOINED if worker.reachable else WorkerState.UNREACHABLE,
            )
            for worker in self._hub.fleet.workers.values()
        ]

    def _holding(self, handle: ContainerHandle) -> Holding:
        session = self._hub.sessions.get(handle.session)
        who = (
            f"{session.record.notebook.rpartition('/')[2]} ({session.record.name})"
            if session
            else "a session that is ending"
        )
        who = f"a build's step for {who}" if handle.detail.is_build and session else who
        who = "an image's build" if handle.detail.is_build and not session else who
        parks = session is not None and session.park is not None and not handle.detail.is_build
        idle = self._idle(handle)
        return Holding(
            lease=handle.lease, who=f"{who}, being parked" if parks else who, gpus=frozenset(handle.gpus),
            cpu=handle.detail.resources.cpu, memory_mib=handle.detail.resources.memory_mib,
            opened_unix_seconds=handle.opened_unix_seconds, evictable=idle is not None, idle_seconds=idle or 0.0,
            leaving=parks or handle.state is ContainerState.STOPPING,
        )  # fmt: skip

    def _idle(self, handle: ContainerHandle) -> float | None:
        """For how long the container's session has been idle, if it may be parked for somebody who waits."""
        session = self._hub.sessions.get(handle.session)
        if session is None or session.container is not handle or session.call is not None or session.park is not None:
            return None
        if self._hub.parking.obstacle(session) is not None:
            return None
        now, failed = self._hub.clock.monotonic(), session.park_failed_at
        failed_ago = now - failed if failed is not None else None
        return wanted_after(now - session.idle_since, session.is_superseded, failed_ago)

    # -- starting --------------------------------------------------------------------------------------------------

    def _start(self, session: Session, call: Call, placed: Placed) -> None:
        now, wall = self._hub.clock.monotonic(), self._hub.clock.wall()
        handle, image = self._make(session, call, placed, now, wall)
        store, record = self._hub.store, session.record
        starts = record.state in (SessionState.IDLE, SessionState.PARKED)
        self._hub.write_now()  # what an earlier container of the session left to write comes first
        with store.together():
            store.place_container(
                handle.id, record.owner, session=session.id, worker=handle.worker, lease=handle.lease, epoch=handle.epoch,
                gpus=handle.gpus, cpu=call.resources.cpu, memory_mib=call.resources.memory_mib,
                usd_per_second=handle.usd_per_second, now=wall, price_note=handle.detail.info.price_note,
                detail=msgspec.json.encode(handle.detail).decode(),
            )  # fmt: skip
            store.move_container(handle.id, ContainerState.STARTING, now=wall)
            store.move_call(call.id, CallState.STARTING, now=wall, container=handle.id)
            if starts:
                store.update_session(session.id, now=wall, state=SessionState.STARTING)
        self._hub.fleet.containers[handle.id] = handle
        handle.move(ContainerState.STARTING)
        session.container = handle
        session.record = dataclasses.replace(
            record, container=handle.id, state=SessionState.STARTING if starts else record.state
        )
        call.move(CallState.STARTING)
        call.container, call.starts, call.billed_from_uptime = handle.id, call.starts + 1, 0.0
        queued = Phase(name="queue", seconds=round(now - (call.queued_at or now), 4))
        call.add_phase(queued)
        session.emit(queued, call=call.id)
        session.tell_info()
        log.info("container placed", extra={"container": handle.id, "worker": handle.worker, "gpus": len(handle.gpus)})
        self._hub.spawn(self._tell_worker(handle, session, call.id, image))

    def _make(
        self, session: Session, call: Call, placed: Placed, now: float, wall: float
    ) -> tuple[ContainerHandle, MirrorSpec]:
        image = call.image
        if image is None:
            raise error(ErrorCode.INTERNAL, "the cell's image is not known any more", next="run the cell again")
        resources, types = call.resources, [gpu.type for gpu in placed.gpus]
        rate = self._hub.prices.rate(
            types, resources.cpu, resources.memory_mib, simulated=any(gpu.simulated for gpu in placed.gpus)
        )
        name = secrets.token_hex(8)
        rate_text = format(rate.usd_per_second, "f")
        info = ContainerInfo(
            id=f"c-{name}", worker=placed.worker, machine=self._hub.fleet.machine(placed.worker), gpus=list(placed.gpus),
            cpu=resources.cpu, memory_mib=resources.memory_mib, usd_per_second=rate_text, price_note=rate.note,
        )  # fmt: skip
        kept = session.kept
        keeper = self._keeper(session)
        parked = kept.id if kept is not None and keeper == placed.worker else ""
        moved = kept.id if kept is not None and keeper and not parked else ""
        detail = ContainerDetail(
            resources=resources, info=info, usd_per_second=rate_text, recipe=call.recipe, parked=parked, moved=moved,
            mirror_identity=image.identity if is_mirror(call.recipe) else "",
            names_lost=session.lost_container or (kept is not None and not parked and not moved),
            volumes=(call.cell.volumes if call.cell is not None else None) or [],
            link_image=image if call.cell is not None and call.cell.with_link else None,
        )  # fmt: skip
        handle = ContainerHandle(
            id=info.id, session=session.id, worker=placed.worker, lease=f"l-{name}", epoch=self._hub.epoch, detail=detail,
            gpus=placed.uuids, now=now,
        )  # fmt: skip
        handle.opened_unix_seconds = wall
        if detail.volumes or session.volumes:
            session.has_volumes(detail.volumes)
        return handle, image

    async def _tell_worker(self, handle: ContainerHandle, session: Session, call_id: str, image: MirrorSpec) -> None:
        worker = self._hub.fleet.workers.get(handle.worker)
        problem: ErrorInfo | None = None
        try:
            keys = await bucket_keys(self._hub, session, handle, call_id)
            build_secrets = await for_container(self._hub, session, handle, call_id)
            recipe, owner = handle.detail.recipe, session.record.owner
            volumes = build_volumes(self._hub, owner, recipe, there_only=True)
            names = await self._moved_names(session, handle)
            call = session.call if session.call is not None and session.call.id == call_id else None
            await self._hub.mirrors.fill(session, handle, call, image)
            if handle.state is not ContainerState.STARTING:
                # Stopped since it was placed: the worker did not know what to stop, and must not start it now.
                self._hub.events.container_gone(handle, handle.stop_reason or EndReason.STOPPED)
                return
            if (
                handle.detail.recipe is not recipe
            ):  # what was answered is what it goes on with after a restart of this gateway
                self._hub.store.move_container(
                    handle.id, ContainerState.STARTING, now=self._hub.clock.wall(),
                    detail=msgspec.json.encode(handle.detail).decode(),
                )  # fmt: skip
            if worker is None or worker.peer is None:
                return  # its end, or its next join without this container, places the call again
            await worker.peer.request(
                StartContainer(
                    container=handle.id, lease=handle.lease, epoch=handle.epoch, session=session.id,
                    notebook=session.record.notebook, resources=handle.detail.resources, gpus=list(handle.gpus), image=image,
                    recipe=handle.detail.recipe, engine="", prepare_call=call_id, parked=handle.detail.parked,
                    volumes=handle.detail.volumes, bucket_keys=keys, build_secrets=build_secrets, names=names,
                    build_volumes=volumes,
                    park_key=self._hub.secret_desk.park_key(session, handle.detail.parked),
                    shared_folder=shared_folder(self._hub, session, handle.detail.volumes)
                    or build_shared_folder(self._hub, owner, recipe),
                    link_token=container_token(self._hub.secrets.master_key, handle.id)
                    if handle.detail.link_image is not None else "",
                )
            )  # fmt: skip
        except (LinkClosed, TimeoutError):
            return  # the same: whether it was started is told when the worker joins again
        except CellburstError as why:
            problem = why.info
        if problem is not None:
            self._hub.events.container_gone(handle, handle.stop_reason or EndReason.START_FAILED, problem)

    async def _moved_names(self, session: Session, handle: ContainerHandle) -> ParkedNames | None:
        """The names of a session that another worker keeps, for the one that it goes to. Raises the error tree: then the
        container is not started, and the session stays where it is kept."""
        kept = session.kept
        if not handle.detail.moved or kept is None:
            return None
        worker = self._hub.fleet.workers.get(kept.worker)
        try:
            if worker is not None and worker.peer is not None:
                answer = await worker.peer.request(SendParked(parked=kept.id), timeout_seconds=MOVE_SECONDS)
                assert isinstance(answer, ParkedNames)
                return answer
        except (LinkClosed, TimeoutError):
            pass
        where = self._hub.fleet.machine(kept.worker) or kept.worker
        raise error(
            ErrorCode.UNAVAILABLE, f"the names of session {session.record.name!r} could not be fetched from {where}",
            next="run the cell again when that machine is back",
        )  # fmt: skip
