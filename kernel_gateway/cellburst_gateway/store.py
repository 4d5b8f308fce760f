"""The record: what the gateway must not lose, as verbs. SQLite for one user, PostgreSQL for many; one contract suite.

Each verb is one transaction and idempotent by the key its caller gives, so a commit of unknown result may be repeated.
Nothing here reads a clock: `now` is unix seconds. Verbs block for one commit (about a millisecond): call them from one
thread (an executor of one) or directly; a lock inside keeps two callers apart. All raise

    RequestError   NOT_FOUND, CONFLICT (a key used for something else), UNAUTHENTICATED
    PlatformError  DISK_FULL, UNAVAILABLE (busy or lost connection: the same verb may be repeated), STORE
    TransitionError   a move its table does not have; nothing was changed

    store.py              this: opening, closing, and the class that has all verbs
    store_base.py         engine, transactions, the lock of the one active gateway
    store_tokens.py       workspaces, principals, tokens
    store_sessions.py     sessions and who holds a name
    store_calls.py        calls
    store_containers.py   containers and workers
    store_leases.py       leases and what was spent
    store_prepared.py     a row by its id, by statements compiled once
    store_rows.py         what verbs return; store_schema.py the tables; store_migrations.py how they came to be;
    store_errors.py       foreign errors into ours

All verbs (keyword-only after `*`):

    together()              `with store.together():` makes the verbs inside one commit, all or none

    Store.open(url_or_path, *, now, synchronous="FULL") -> Store       close()
    acquire_gateway_lock(instance, *, now) -> epoch        CONFLICT while another gateway is active
    ensure_workspace(owner, *, now)
    add_token(token_hash, owner, *, name, role, now, expires=None) -> TokenRecord       (hash_token(text) makes the hash)
    authenticate(token_hash, *, now) -> TokenRecord        list_tokens(workspace) -> [TokenRecord]
    revoke_token(token_id, *, now) -> TokenRecord
    create_session(session_id, owner, *, notebook, name, kernel_id, now, supersede=False, detail="")
        -> (SessionRecord, created: bool, superseded: SessionRecord | None)
    find_live_sessions(workspace, notebook, name) -> [SessionRecord]   not ended, newest generation first; [0].live or not
    get_session(session_id) -> SessionRecord               list_sessions(workspace=None, *, ended=False) -> [SessionRecord]
    update_session(session_id, *, now, state=None, container=None, kernel_id=None, reason=None, detail=None, parking=None,
        parked=None) -> SessionRecord
    supersede_session(session_id, *, now) -> SessionRecord
    take_name(session_id, *, kernel_id, now) -> (SessionRecord, superseded | None)   an earlier session gets its name back
    record_call(call_id, owner, *, session, now, state=CREATED, container="", kind="cell", detail="", session_state=None)
        -> (CallRecord, created: bool)                     state=SENT, session_state=BUSY: a warm cell's first commit
    move_call(call_id, to, *, now, container=None, detail=None) -> CallRecord         not to a final state
    end_call(call_id, reason, *, now, error=None, run_seconds=0, cost_usd=0, session_state=None) -> CallRecord
    get_call(call_id) -> CallRecord | None                 running_calls(session=None) -> [CallRecord]   all without an end
    calls_of_session(session_id, *, limit=100) -> [CallRecord]          newest first
    create_container(container_id, owner, *, session, worker, lease, epoch, now, detail="") -> (ContainerRecord, created)
    move_container(container_id, to, *, now, reason=None, detail=None) -> ContainerRecord
    get_container(container_id) -> ContainerRecord | None               live_containers(worker=None) -> [ContainerRecord]
    upsert_worker(worker_id, owner, *, instance, hostname, pid, inventory, now) -> WorkerRecord
    mark_worker(worker_id, to, *, now) -> WorkerRecord     list_workers(*, lost=False) -> [WorkerRecord]
    open_lease(lease_id, owner, *, session, container, worker, epoch, gpus, cpu, memory_mib, usd_per_second, now,
        price_note="") -> (LeaseRecord, created)
    touch_lease(lease_id, *, seconds) -> LeaseRecord       never goes down
    close_lease(lease_id, *, seconds, reason, now) -> LeaseRecord       leases_open(worker=None) -> [LeaseRecord]
    place_container(container_id, owner, *, session, worker, lease, epoch, gpus, cpu, memory_mib, usd_per_second, now,
        price_note="", detail="") -> (ContainerRecord, LeaseRecord, created)          lease + container + session at once
    end_container(container_id, reason, *, now, seconds=None) -> (ContainerRecord, LeaseRecord)                likewise
    touch_leases({lease_id: seconds}) -> [LeaseRecord]     get_lease(lease_id) -> LeaseRecord | None
    cost_by_session(workspace, notebook=None, session=None) -> [SessionCost]          cost_total(workspace) -> Decimal
"""

from __future__ import annotations

from .store_calls import CallVerbs
from .store_containers import ContainerVerbs
from .store_leases import LeaseVerbs
from .store_rows import (
    CallRecord,
    ContainerRecord,
    LeaseRecord,
    Owner,
    Role,
    SessionCost,
    SessionRecord,
    TokenRecord,
    WorkerRecord,
)
from .store_sessions import SessionVerbs
from .store_tokens import TokenVerbs, hash_token

__all__ = [
    "CallRecord",
    "ContainerRecord",
    "LeaseRecord",
    "Owner",
    "Role",
    "SessionCost",
    "SessionRecord",
    "Store",
    "TokenRecord",
    "WorkerRecord",
    "hash_token",
]


class Store(TokenVerbs, SessionVerbs, CallVerbs, ContainerVerbs, LeaseVerbs):
    """The record with all its verbs; make one with `Store.open`."""
