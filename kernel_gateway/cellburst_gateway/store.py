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
    store_ends.py         what ended unwatched, and who was told of which end
    store_leases.py       leases and what was spent
    store_schedules.py    schedules, their runs, and who is told of them
    store_secrets.py      secrets (ciphertext), their releases, which sessions have some
    store_spending.py     leases of a span of time, for charts of cost
    store_volumes.py      volumes, their files and commits
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
    last_container(session_id) -> ContainerRecord | None   the newest, ended or not
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
    put_schedule(schedule_id, owner, *, name, notebook, spec, now, revision=0, seen=None, state=None) -> ScheduleRecord
    set_schedule_state(schedule_id, state, *, now, seen=None)      get_schedule(id)      list_schedules(workspace=None)
    delete_schedule(schedule_id) -> [run id]
    note_instants(schedule_id, *, seen_before, seen, planned, now) -> [RunRecord] | None      each instant has one record
    missed_untold(schedule_id) -> [RunRecord]              since the last notice
    add_run(run_id, schedule_id, *, now)    move_run(run_id, to, *, now, session, spec, detail, attempt) -> RunRecord
    end_run(run_id, reason, *, now, error=None, cost_usd=0, detail=None, tell=()) -> (RunRecord, ended now: bool)
    get_run(id)    find_runs(workspace, start)    list_runs(workspace, *, schedule, ended_after, limit)    active_runs()
    runs_to_forget(schedule_id, *, keep, ended_before) -> [id]     delete_runs([id])
    add_end(owner, thing, *, forget_before)                last_ends(workspace, *, limit) -> [EndedThing]
    untold_ends(owner, *, after, limit) -> [EndedThing]    untold_runs(owner, *, after, limit, detail_has) -> [RunRecord]
    note_told(owner, [id], *, now, forget_before)
    due_deliveries(now, *, limit)  deliveries_of(run_id)  note_delivery(id, *, now, sent, error="", again_at=None)
    list_secrets(workspace)   get_secret(workspace, name)   secret_list(workspace)   secret_key_ids()
    put_secret(record, listed, *, expected_version) -> SecretRecord      delete_secrets(owner, names, listed) -> [name]
    reseal_secrets(secret, listed) -> how many             all of them under another key, or none
    record_releases(owner, rows, *, key, expires=None)     list_releases(workspace, secret="", *, limit)
    last_releases(workspace) -> {name: when}               session_secrets(id)   set_session_secrets(id, owner, wanted)
    create_volume(volume_id, owner, *, name, now, if_missing=False, ephemeral=False) -> (VolumeRecord, created)
    get_volume(workspace, name_or_id, *, now=None) -> VolumeRecord      list_volumes(workspace) -> [VolumeRecord]
    rename_volume(workspace, name_or_id, *, name) -> VolumeRecord       delete_volume(workspace, name_or_id)
    commit_volume(workspace, volume_id, principal, commit, *, now) -> (VolumeRecord, VolumeCommitted)
    volume_files(volume_id, *, since=0, prefix="") -> (version, [FileEntry])      volume_horizon(volume_id) -> version
    idle_ephemeral_volumes(*, before)   drop_old_commits(*, before)   chunk_workspaces()   chunks_page(workspace, after)
"""

from __future__ import annotations

from .store_calls import CallVerbs
from .store_containers import ContainerVerbs
from .store_ends import EndVerbs
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
from .store_schedules import ScheduleVerbs
from .store_secrets import SecretVerbs
from .store_sessions import SessionVerbs
from .store_spending import SpendingVerbs
from .store_tokens import TokenVerbs, hash_token
from .store_volumes import VolumeVerbs

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


class Store(
    TokenVerbs, SessionVerbs, CallVerbs, ContainerVerbs, LeaseVerbs, SecretVerbs, VolumeVerbs, ScheduleVerbs, SpendingVerbs,
    EndVerbs,
):  # fmt: skip
    """The record with all its verbs; make one with `Store.open`."""
