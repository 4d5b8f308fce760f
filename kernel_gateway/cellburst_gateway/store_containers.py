"""Containers as the gateway placed them, and the workers that joined."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.states import (
    CONTAINER_TRANSITIONS,
    WORKER_TRANSITIONS,
    ContainerState,
    EndReason,
    WorkerState,
    advance,
    is_terminal,
)

from .store_base import StoreBase
from .store_prepared import insert_row, row_of, update_row
from .store_rows import ContainerRecord, Owner, WorkerRecord
from .store_schema import containers, workers


def _container(row: Row[Any]) -> ContainerRecord:
    return ContainerRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), session=row.session, worker=row.worker, lease=row.lease,
        epoch=row.epoch, state=ContainerState(row.state), reason=EndReason(row.reason) if row.reason else None,
        created=row.created, ready=row.ready, ended=row.ended, detail=row.detail,
    )  # fmt: skip


def _worker(row: Row[Any]) -> WorkerRecord:
    return WorkerRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), state=WorkerState(row.state), instance=row.instance,
        hostname=row.hostname, pid=row.pid, inventory=row.inventory, joined=row.joined, last_seen=row.last_seen,
    )  # fmt: skip


BUILD_PREFIX = "b-"  # of those that are none: GPUs that a step of an image's build holds


class ContainerVerbs(StoreBase):
    """Verbs on containers and workers."""

    def create_container(
        self,
        container_id: str,
        owner: Owner,
        *,
        session: str,
        worker: str,
        lease: str,
        epoch: int,
        now: float,
        detail: str = "",
    ) -> tuple[ContainerRecord, bool]:
        """Record a placed container. The same id again gives its row and False. Raises RequestError (CONFLICT)."""
        with self._transaction() as c:
            return add_container(
                c, container_id, owner, session=session, worker=worker, lease=lease, epoch=epoch, now=now, detail=detail
            )

    def move_container(
        self,
        container_id: str,
        to: ContainerState,
        *,
        now: float,
        reason: EndReason | None = None,
        detail: str | None = None,
    ) -> ContainerRecord:
        """Move a container; the state it already has is no move, and the first end's reason stays.

        Raises RequestError (NOT_FOUND), TransitionError.
        """
        with self._transaction() as c:
            return change_container(c, container_id, to, now=now, reason=reason, detail=detail)

    def get_container(self, container_id: str) -> ContainerRecord | None:
        """One container, or None when it was never recorded."""
        with self._transaction() as c:
            row = c.execute(select(containers).where(containers.c.id == container_id)).first()
            return _container(row) if row is not None else None

    def last_container(self, session_id: str) -> ContainerRecord | None:
        """The newest container of a session, ended or not; None when it had none."""
        own = containers.c.id.not_like(f"{BUILD_PREFIX}%")
        query = select(containers).where(containers.c.session == session_id, own)
        with self._transaction() as c:
            row = c.execute(query.order_by(containers.c.created.desc(), containers.c.id.desc()).limit(1)).first()
            return _container(row) if row is not None else None

    def live_containers(self, worker: str | None = None) -> list[ContainerRecord]:
        """Containers that have not ended, of one worker or of all, oldest first."""
        query = select(containers).where(containers.c.ended.is_(None)).order_by(containers.c.created, containers.c.id)
        if worker is not None:
            query = query.where(containers.c.worker == worker)
        with self._transaction() as c:
            return [_container(row) for row in c.execute(query)]

    def upsert_worker(
        self, worker_id: str, owner: Owner, *, instance: str, hostname: str, pid: int, inventory: str, now: float
    ) -> WorkerRecord:
        """Record that a worker joined (JOINED), also one that was lost before: a join starts its row's next life.

        Raises RequestError (CONFLICT) when the id is that of another workspace's worker.
        """
        with self._transaction() as c:
            row = row_of(c, workers, worker_id)
            if row is not None and row.workspace != owner.workspace:
                raise error(
                    ErrorCode.CONFLICT,
                    f"worker id {worker_id!r} is that of another workspace's worker",
                    next="use another id",
                )
            values = {
                "workspace": owner.workspace, "owner": owner.principal, "state": WorkerState.JOINED.value, "instance": instance,
                "hostname": hostname, "pid": pid, "inventory": inventory, "joined": now, "last_seen": now,
            }  # fmt: skip
            if row is None:
                insert_row(c, workers, {"id": worker_id, **values})
            else:
                update_row(c, workers, worker_id, values)
            return _worker(c.execute(select(workers).where(workers.c.id == worker_id)).one())

    def mark_worker(self, worker_id: str, to: WorkerState, *, now: float) -> WorkerRecord:
        """Move a worker; the state it already has is no move, and JOINED notes that it was seen now.

        Raises RequestError (NOT_FOUND), TransitionError (a lost one comes back only by joining).
        """
        with self._transaction() as c:
            row = row_of(c, workers, worker_id)
            if row is None:
                raise error(
                    ErrorCode.NOT_FOUND, f"no worker {worker_id!r}", next="`cellburst status` lists the workers"
                )
            before = WorkerState(row.state)
            if to is not before:
                advance(WORKER_TRANSITIONS, before, to, f"worker {worker_id}")
            values: dict[str, Any] = {"state": to.value}
            if to is WorkerState.JOINED:
                values["last_seen"] = now
            update_row(c, workers, worker_id, values)
            return _worker(c.execute(select(workers).where(workers.c.id == worker_id)).one())

    def list_workers(self, *, lost: bool = False) -> list[WorkerRecord]:
        """Workers, the lost ones only when asked for, in the order they joined."""
        query = select(workers).order_by(workers.c.joined, workers.c.id)
        if not lost:
            query = query.where(workers.c.state != WorkerState.LOST.value)
        with self._transaction() as c:
            return [_worker(row) for row in c.execute(query)]


def add_container(
    c: Connection,
    container_id: str,
    owner: Owner,
    *,
    session: str,
    worker: str,
    lease: str,
    epoch: int,
    now: float,
    detail: str,
) -> tuple[ContainerRecord, bool]:
    """`create_container` inside another verb's transaction."""
    row = row_of(c, containers, container_id)
    if row is not None:
        found = _container(row)
        if (found.owner, found.session, found.lease) != (owner, session, lease):
            raise error(ErrorCode.CONFLICT, f"container id {container_id!r} is already that of another container")
        return found, False
    values = {
        "id": container_id, "workspace": owner.workspace, "owner": owner.principal, "session": session, "worker": worker,
        "lease": lease, "epoch": epoch, "state": ContainerState.PLACED.value, "reason": "", "created": now, "ready": None,
        "ended": None, "detail": detail,
    }  # fmt: skip
    insert_row(c, containers, values)
    return _locked(c, container_id), True


def change_container(
    c: Connection, container_id: str, to: ContainerState, *, now: float, reason: EndReason | None, detail: str | None
) -> ContainerRecord:
    """`move_container` inside another verb's transaction."""
    found = _locked(c, container_id)
    before = found.state
    values: dict[str, Any] = {} if detail is None else {"detail": detail}
    if to is not before:
        advance(CONTAINER_TRANSITIONS, before, to, f"container {container_id}")
        values["state"] = to.value
        if to is ContainerState.READY:
            values["ready"] = now
        if is_terminal(CONTAINER_TRANSITIONS, to):
            values |= {"ended": now, "reason": reason.value if reason else ""}
    if not values:
        return found
    update_row(c, containers, container_id, values)
    return _locked(c, container_id)


def _locked(c: Connection, container_id: str) -> ContainerRecord:
    row = row_of(c, containers, container_id)
    if row is None:
        raise error(ErrorCode.NOT_FOUND, f"no container {container_id!r}", next="`cellburst ps` lists the containers")
    return _container(row)
