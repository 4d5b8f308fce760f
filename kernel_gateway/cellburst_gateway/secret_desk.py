"""Secrets in the gateway: what people ask about them, which of them a session has, and giving them to its container.

    RunCell{secrets} ──resolved──▶ each is there, with the keys it must have ──▶ accepted, placed, sent
    before it is handed over ──release──▶ values read ─▶ release recorded and committed ─▶ ReleaseSecrets ─▶ RunCell

A session goes on with the secrets it has until a cell names others (`secrets=` with none takes all away). Values pass through
this process's memory and are kept in none of its files: not in the inbox, a log, a metric, an error. Each new container gets
the current version, so does a warm one at its next cell after a change. Nothing is released that could not be recorded.
What a session was given stays hidden in its output and in that of sessions inside it, also when it is replaced (`secret_given`).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets as random
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import (
    DeleteSecret,
    ListReleases,
    PutSecret,
    ReleaseList,
    ReleaseRow,
    ReleaseSecrets,
    RunCell,
    SecretKeyRotated,
    SecretList,
    SecretRow,
)
from cellburst_protocol.secrets import SecretUse, check_required, missing_secret, parse_uses

from .calls import Call
from .container_link import outer_of
from .containers import ContainerHandle
from .secret_given import Given
from .secret_key import KeyHolder
from .secret_store import Opened, SecretStore, other_stores, read_config
from .secret_store_local import EPHEMERAL_SECONDS, LocalSecrets
from .session import Session
from .store_rows import Owner
from .store_secrets import SessionSecrets

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger(__name__)


class SecretDesk:
    """All of it. Raises RequestError (BAD_ARGUMENT) for a configuration that cannot be."""

    def __init__(self, hub: Hub, ring: object = None) -> None:
        self._hub = hub
        config = read_config(hub.config)
        self._local = LocalSecrets(hub.store, KeyHolder(hub.config.data_folder, config.key_store, ring), hub.clock)
        self._stores: list[SecretStore] = [self._local, *other_stores(config)]
        self._sessions: weakref.WeakKeyDictionary[Session, SessionSecrets | None] = weakref.WeakKeyDictionary()
        self._given = Given()
        hub.metrics.counter("cellburst_secret_releases_total", "Secrets given to containers, and refused.")

    # -- what people ask -------------------------------------------------------------------------------------------

    async def put(self, owner: Owner, asked: PutSecret) -> SecretRow:
        """Make or change a secret of the record. Raises what `LocalSecrets.put` does, and CONFLICT for another store's name."""
        for store in self._stores[1:]:
            if asked.name and not asked.ephemeral and await store.keys(owner.workspace, asked.name) is not None:
                raise error(
                    ErrorCode.CONFLICT, f"secret {asked.name!r} comes from another store ({store.kind})",
                    next="change it there, or take another name",
                )  # fmt: skip
        row = self._local.put(owner, asked)
        what = {"secret": row.name, "version": row.version, "keys": len(row.keys), "by": owner.principal}
        log.info("a secret was written", extra=what)
        return row

    async def listed(self, owner: Owner) -> SecretList:
        """All stores' secrets. A store that does not answer is a note."""
        rows: dict[str, SecretRow] = {}
        notes = []
        try:
            self._local.remove_expired(owner)
        except CellburstError:
            pass  # sealed: the rows say so
        used = self._hub.store.last_releases(owner.workspace)
        for store in self._stores:
            try:
                for row in await store.rows(owner.workspace):
                    if row.name in rows:
                        notes.append(
                            f"secret {row.name!r} of {store.kind} is not used: {rows[row.name].store} has that name too"
                        )
                    rows.setdefault(row.name, row)
            except CellburstError as why:
                notes.append(why.info.message)
        for name, row in rows.items():
            row.last_used_unix_seconds = max(row.last_used_unix_seconds, used.get(name, 0.0))
            row.used_by = [f"schedule {one}" for one in self._hub.schedules.users_of(owner.workspace, secret=name)]
        return SecretList(rows=[rows[name] for name in sorted(rows)], notes=notes)

    async def delete(self, owner: Owner, asked: DeleteSecret) -> None:
        """Remove one of the record's, or all that are sealed."""
        if asked.all_sealed:
            gone = self._local.delete_all_sealed(owner)
            log.warning("sealed secrets were deleted", extra={"secrets": len(gone), "by": owner.principal})
            return
        for store in self._stores[1:]:
            known = await store.keys(owner.workspace, asked.name)
            if known is not None and self._local.version(owner.workspace, asked.name) is None:
                raise error(
                    ErrorCode.CONFLICT, f"secret {asked.name!r} comes from another store ({store.kind})",
                    next="delete it there",
                )  # fmt: skip
        self._local.delete(owner, asked.name)
        log.info("a secret was deleted", extra={"secret": asked.name, "by": owner.principal})

    def rotate(self) -> SecretKeyRotated:
        """A new key for all secrets."""
        count, place = self._local.rotate()
        log.info("the key of the secrets was changed", extra={"secrets": count})
        return SecretKeyRotated(secret_count=count, key_place=place)

    def releases(self, owner: Owner, asked: ListReleases) -> ReleaseList:
        """Who was given what."""
        return ReleaseList(rows=self._hub.store.list_releases(owner.workspace, asked.secret, limit=asked.limit_count))

    # -- a session's -----------------------------------------------------------------------------------------------

    def of(self, session: Session) -> SessionSecrets | None:
        """What a session has; None while it never had any."""
        if session not in self._sessions:
            self._sessions[session] = self._hub.store.session_secrets(session.id)
        return self._sessions[session]

    def ever(self, session: Session) -> tuple[str, ...]:
        """Secrets that the session has or had, and those of the session outside it, whose code may have sent their values in."""
        had = [self.of(one) for one in self._with_outer(session)]
        return tuple(dict.fromkeys(name for one in had if one is not None for name in one.ever))

    def _with_outer(self, session: Session) -> list[Session]:
        outer_id = outer_of(session.record.notebook)
        outer = self._hub.sessions.get(outer_id) if outer_id else None
        return [session] if outer is None else [session, outer]

    def park_key(self, session: Session, parked: str) -> str:
        """What a parked session's bytes are encrypted with on its worker's disk (hex); "" where it never had a secret."""
        if not parked or self.of(session) is None:
            return ""
        return hmac.new(self._hub.secrets.master_key, b"park\0" + parked.encode(), hashlib.sha256).hexdigest()

    async def resolved(self, session: Session, cell: RunCell) -> RunCell:
        """The cell with the secrets that it will have, all of which are there now.

        Raises RequestError (NOT_FOUND naming the secret or its key, BAD_ARGUMENT, FORBIDDEN), PlatformError (UNAVAILABLE).
        """
        had = self.of(session)
        if cell.secrets is None and had is None:
            return cell
        uses = parse_uses(cell.secrets if cell.secrets is not None else list(had.uses) if had is not None else [])
        self._check_inner(session, uses)
        for use in uses:
            check_required(use, await self._keys(session.record.owner.workspace, use.name))
        return msgspec.structs.replace(cell, secrets=[str(use) for use in uses])

    async def release(self, session: Session, call: Call, handle: ContainerHandle) -> None:
        """Give the container what the call's cell needs, unless it has exactly that.

        Raises the error tree; then nothing was sent, and the call must not be handed over.
        """
        texts, had = (call.cell.secrets if call.cell is not None else None), self.of(session)
        ever = self.ever(session)
        if texts is None and not ever:
            return
        uses, workspace = parse_uses(texts or []), session.record.owner.workspace
        wanted = {use.name: self._version(workspace, use.name, handle) for use in uses}
        both = self._with_outer(session)
        # Else the session outside was given more meanwhile.
        known = had is not None and set(ever) == set(had.ever) and handle.hides == self._given.versions(both)
        if known and handle.released is not None and handle.released == wanted and None not in wanted.values():
            return
        opened: list[Opened] = []
        try:
            for use in uses:
                found = await self._opened(workspace, use.name)
                check_required(use, found.values)
                opened.append(found)
        except CellburstError as why:
            self._record(session, handle, call.id, [], refused=(use.name, why))
            raise
        ever = tuple(dict.fromkeys((*ever, *(use.name for use in uses))))
        message = ReleaseSecrets(hidden=await self._hidden(workspace, ever, uses))
        for found in opened:  # the later one wins
            message.environment.update(found.values)
            message.origins.update(dict.fromkeys(found.values, found.name))
        self._record(session, handle, call.id, opened, state=SessionSecrets(tuple(str(use) for use in uses), ever))
        for found in opened:
            self._given.add(session, found, [key for key in found.values if message.origins[key] == found.name])
        shown = {f"{message.origins[key]}.{key}": value for key, value in message.environment.items()}
        message.hidden |= self._given.others(both, {**shown, **message.hidden})
        hides = self._given.versions(both)
        await handle.send(message)
        handle.released = {found.name: (found.store, found.version) for found in opened}
        handle.hides = hides

    async def keys_for_mount(self, session: Session, name: str) -> list[str]:
        """The keys of a secret that opens a bucket. Raises RequestError (NOT_FOUND, FORBIDDEN)."""
        self._check_inner(session, [SecretUse(name)])
        return await self._keys(session.record.owner.workspace, name)

    async def open_for_mount(self, session: Session, handle: ContainerHandle, call: str, name: str) -> dict[str, str]:
        """A secret's values for the worker that shows a bucket: the container does not get them. Raises the error tree."""
        try:
            found = await self._opened(session.record.owner.workspace, name)
        except CellburstError as why:
            self._record(session, handle, call, [], refused=(name, why))
            raise
        self._record(session, handle, call, [found])
        return dict(found.values)

    async def open_for_build(self, owner: Owner, uses: Sequence[SecretUse], common: ReleaseRow) -> list[Opened]:
        """Secrets for a worker that builds an image: the build's steps get them. `common` says whom the record is to name.
        Raises the error tree."""
        opened: list[Opened] = []
        try:
            for use in uses:
                found = await self._opened(owner.workspace, use.name)
                check_required(use, found.values)
                opened.append(found)
        except CellburstError as why:
            self._write_down(owner, _rows(common, [], (use.name, why)))
            raise
        self._write_down(owner, _rows(common, opened))
        return opened

    def _record(
        self, session: Session, handle: ContainerHandle, call: str, opened: Sequence[Opened],
        *, state: SessionSecrets | None = None, refused: tuple[str, CellburstError] | None = None,
    ) -> None:  # fmt: skip
        """Commit releases before they happen. Raises PlatformError: then there is none."""
        store, owner, now = self._hub.store, session.record.owner, self._hub.clock.wall()
        common = ReleaseRow(
            at_unix_seconds=now, secret="", version=0, session=session.id, container=handle.id, worker=handle.worker,
            call=call, notebook=session.record.notebook,
        )  # fmt: skip
        with store.together():
            self._write_down(owner, _rows(common, opened, refused))
            if state is not None and state != self.of(session):
                store.set_session_secrets(session.id, owner, state)
        if state is not None:
            self._sessions[session] = state

    def _write_down(self, owner: Owner, rows: Sequence[ReleaseRow]) -> None:
        if rows:
            expires = self._hub.clock.wall() + EPHEMERAL_SECONDS
            self._hub.store.record_releases(owner, rows, key=random.token_hex(8), expires=expires)
        for row in rows:
            self._hub.metrics.add("cellburst_secret_releases_total", outcome="refused" if row.refused else "released")

    # -- the stores ------------------------------------------------------------------------------------------------

    async def _keys(self, workspace: str, name: str) -> list[str]:
        for store in self._stores:
            if (keys := await store.keys(workspace, name)) is not None:
                return keys
        raise missing_secret(name, [row.name for row in await self._local.rows(workspace)])

    async def is_there(self, workspace: str, name: str) -> bool:
        """Whether some store has a secret of this name. A store that does not answer counts as having it."""
        try:
            await self._keys(workspace, name)
        except CellburstError as why:
            return why.code is not ErrorCode.NOT_FOUND
        return True

    async def _opened(self, workspace: str, name: str) -> Opened:
        for store in self._stores:
            if (found := await store.open(workspace, name)) is not None:
                return found
        raise missing_secret(name, [row.name for row in await self._local.rows(workspace)])

    def _version(self, workspace: str, name: str, handle: ContainerHandle) -> tuple[str, int] | None:
        """What a look without asking a service says; else what the container has."""
        for store in self._stores:
            if (version := store.version(workspace, name)) is not None:
                return store.kind, version
        had = (handle.released or {}).get(name)
        return had if had is not None and had[0] == "vault" else None

    async def _hidden(self, workspace: str, ever: Sequence[str], uses: Sequence[SecretUse]) -> dict[str, str]:
        """Values that the session had earlier: its memory may still show them."""
        hidden: dict[str, str] = {}
        now = {use.name for use in uses}
        for name in ever:
            if name not in now:
                try:
                    found = await self._opened(workspace, name)
                except CellburstError:
                    continue  # deleted, or sealed: what is hidden is what this process gave
                hidden |= {f"{name}.{key}": value for key, value in found.values.items()}
        return hidden

    def _check_inner(self, session: Session, uses: Sequence[SecretUse]) -> None:
        """A session that code in a container opened has at most what that container's own session has."""
        outer_id = outer_of(session.record.notebook)
        if not outer_id:
            return
        outer = self._hub.sessions.get(outer_id)
        had = self.of(outer) if outer is not None else None
        allowed = {use.name for use in parse_uses(had.uses)} if had is not None else set()
        allowed |= outer.inner_secrets if outer is not None else frozenset()
        if refused := sorted({use.name for use in uses} - allowed):
            raise error(
                ErrorCode.FORBIDDEN, f"secret {refused[0]!r} is not for this container's code",
                allowed=f"those of its own session: {', '.join(sorted(allowed)) or 'none'}",
                next=f"name it in the cell outside: secrets={refused[0]}",
            )  # fmt: skip


def _rows(
    common: ReleaseRow, opened: Sequence[Opened], refused: tuple[str, CellburstError] | None = None
) -> list[ReleaseRow]:
    """What the record says of a release, or of one that was refused."""
    rows = [
        msgspec.structs.replace(
            common, secret=found.name, version=found.version, keys=sorted(found.values), store=found.store
        )
        for found in opened
    ]
    if refused is not None:
        name, why = refused
        rows.append(msgspec.structs.replace(common, secret=name, refused=why.info.message))
    return rows
