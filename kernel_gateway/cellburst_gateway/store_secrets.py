"""Secrets in the record: ciphertext only. One row for each (workspace, name), a sealed list, and who was given what."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import ReleaseRow

from .secret_box import Sealed
from .store_base import StoreBase
from .store_rows import Owner
from .store_schema import secret_lists, secret_releases, secrets, session_secrets

MAX_RELEASES_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """One secret. `keys` are names and not secret; `expires` is None but for ephemeral ones."""

    owner: Owner
    name: str
    version: int
    sealed: Sealed
    keys: tuple[str, ...]
    created: float
    updated: float
    last_used: float | None = None
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class SecretListRecord:
    """The sealed versions of a workspace's secrets; `version` counts its changes."""

    version: int
    sealed: Sealed


@dataclass(frozen=True, slots=True)
class SessionSecrets:
    """What a session has (uses as `NAME:KEY`), and the names that it ever had."""

    uses: tuple[str, ...]
    ever: tuple[str, ...]


class SecretVerbs(StoreBase):
    """Verbs on secrets. The caller seals and opens; nothing here has a key."""

    def list_secrets(self, workspace: str) -> list[SecretRecord]:
        """All of a workspace, by name, ephemeral ones too."""
        with self._transaction() as c:
            rows = c.execute(select(secrets).where(secrets.c.workspace == workspace).order_by(secrets.c.name)).all()
        return [_secret(row) for row in rows]

    def get_secret(self, workspace: str, name: str) -> SecretRecord | None:
        """One of them, or None."""
        with self._transaction() as c:
            row = c.execute(select(secrets).where(_is(workspace, name))).first()
        return _secret(row) if row is not None else None

    def secret_list(self, workspace: str) -> SecretListRecord | None:
        """The workspace's sealed list; None while it never had a secret."""
        with self._transaction() as c:
            row = c.execute(select(secret_lists).where(secret_lists.c.id == workspace)).first()
        return SecretListRecord(row.version, Sealed(row.key_id, row.nonce, row.ciphertext)) if row is not None else None

    def secret_key_ids(self) -> set[str]:
        """The keys that the record's secrets were encrypted with, of all workspaces."""
        with self._transaction() as c:
            found = {row[0] for row in c.execute(select(secrets.c.key_id).distinct())}
            return found | {row[0] for row in c.execute(select(secret_lists.c.key_id).distinct())}

    def put_secret(self, record: SecretRecord, listed: SecretListRecord, *, expected_version: int) -> SecretRecord:
        """Write a version of a secret and the list that has it, both or none. `expected_version` 0: there is none yet.

        The same record again is no change. Raises RequestError (CONFLICT) when somebody else changed it meanwhile.
        """
        with self._transaction() as c:
            row = c.execute(select(secrets).where(_is(record.owner.workspace, record.name)).with_for_update()).first()
            before = _secret(row) if row is not None else None
            if before is not None and before.sealed == record.sealed:
                return before
            if (before.version if before is not None else 0) != expected_version:
                raise _changed(record.name)
            values = {
                "version": record.version, "keys": json.dumps(list(record.keys)), "updated": record.updated,
                "expires": record.expires, **_sealed(record.sealed),
            }  # fmt: skip
            if before is None:
                c.execute(
                    insert(secrets).values(
                        id=f"{record.owner.workspace}/{record.name}", workspace=record.owner.workspace,
                        owner=record.owner.principal, name=record.name, created=record.created, last_used=None, **values,
                    )
                )  # fmt: skip
            else:
                c.execute(update(secrets).where(_is(record.owner.workspace, record.name)).values(**values))
            _put_list(c, record.owner, listed)
        return record

    def delete_secrets(self, owner: Owner, names: Sequence[str], listed: SecretListRecord | None) -> list[str]:
        """Remove secrets and write the list without them (None: remove the list). Returns those that were there."""
        with self._transaction() as c:
            here = (secrets.c.workspace == owner.workspace) & secrets.c.name.in_(list(names))
            gone = [row[0] for row in c.execute(select(secrets.c.name).where(here).with_for_update())]
            c.execute(delete(secrets).where(here))
            if listed is None:
                c.execute(delete(secret_lists).where(secret_lists.c.id == owner.workspace))
            else:
                _put_list(c, owner, listed)
        return sorted(gone)

    def reseal_secrets(
        self,
        secret: Callable[[SecretRecord], Sealed],
        listed: Callable[[str, SecretListRecord], Sealed],
    ) -> int:
        """Write every secret and list of all workspaces as the two functions seal them, in one transaction: when one of
        them raises, nothing is changed. Returns how many secrets there are."""
        with self._transaction() as c:
            rows = c.execute(select(secrets).with_for_update()).all()
            for row in rows:
                new = secret(_secret(row))
                c.execute(update(secrets).where(secrets.c.id == row.id).values(**_sealed(new)))
            for row in c.execute(select(secret_lists).with_for_update()).all():
                record = SecretListRecord(row.version, Sealed(row.key_id, row.nonce, row.ciphertext))
                new = listed(row.workspace, record)
                c.execute(update(secret_lists).where(secret_lists.c.id == row.id).values(**_sealed(new)))
        return len(rows)

    # -- releases --------------------------------------------------------------------------------------------------

    def record_releases(
        self, owner: Owner, rows: Sequence[ReleaseRow], *, key: str, expires: float | None = None
    ) -> None:
        """Record releases, durably, before they happen; `key` makes a repeat the same ones. What was released is used now:
        an ephemeral secret then lives until `expires`."""
        with self._transaction() as c:
            for number, row in enumerate(rows):
                id = f"{key}/{number}"
                if c.execute(select(secret_releases.c.id).where(secret_releases.c.id == id)).first() is not None:
                    continue
                c.execute(
                    insert(secret_releases).values(
                        id=id, workspace=owner.workspace, owner=owner.principal, at=row.at_unix_seconds, secret=row.secret,
                        version=row.version, keys=json.dumps(row.keys), store=row.store, session=row.session,
                        container=row.container, worker=row.worker, call=row.call, notebook=row.notebook, refused=row.refused,
                    )
                )  # fmt: skip
                if not row.refused:
                    used = update(secrets).where(_is(owner.workspace, row.secret))
                    c.execute(used.values(last_used=row.at_unix_seconds))
                    if expires is not None:
                        c.execute(used.where(secrets.c.expires.is_not(None)).values(expires=expires))

    def list_releases(self, workspace: str, secret: str = "", *, limit: int = 100) -> list[ReleaseRow]:
        """Newest first, of one secret or of all."""
        query = select(secret_releases).where(secret_releases.c.workspace == workspace)
        if secret:
            query = query.where(secret_releases.c.secret == secret)
        ordered = query.order_by(secret_releases.c.at.desc(), secret_releases.c.id)
        with self._transaction() as c:
            rows = c.execute(ordered.limit(max(0, min(limit, MAX_RELEASES_LISTED)))).all()
        return [_release(row) for row in rows]

    def last_releases(self, workspace: str) -> dict[str, float]:
        """When each secret was last given out, those of other stores too."""
        query = select(secret_releases.c.secret, func.max(secret_releases.c.at)).group_by(secret_releases.c.secret)
        here = (secret_releases.c.workspace == workspace) & (secret_releases.c.refused == "")
        with self._transaction() as c:
            return {row[0]: row[1] for row in c.execute(query.where(here))}

    # -- sessions --------------------------------------------------------------------------------------------------

    def session_secrets(self, session_id: str) -> SessionSecrets | None:
        """What a session has; None when it never had any."""
        with self._transaction() as c:
            row = c.execute(select(session_secrets).where(session_secrets.c.id == session_id)).first()
        return SessionSecrets(tuple(json.loads(row.uses)), tuple(json.loads(row.ever))) if row is not None else None

    def set_session_secrets(self, session_id: str, owner: Owner, wanted: SessionSecrets) -> None:
        """Say what a session has from now on."""
        values = {"uses": json.dumps(list(wanted.uses)), "ever": json.dumps(list(wanted.ever))}
        with self._transaction() as c:
            if c.execute(select(session_secrets.c.id).where(session_secrets.c.id == session_id)).first() is None:
                c.execute(
                    insert(session_secrets).values(
                        id=session_id, workspace=owner.workspace, owner=owner.principal, **values
                    )
                )
            else:
                c.execute(update(session_secrets).where(session_secrets.c.id == session_id).values(**values))


def _is(workspace: str, name: str) -> Any:
    return (secrets.c.workspace == workspace) & (secrets.c.name == name)


def _sealed(sealed: Sealed) -> dict[str, str]:
    return {"key_id": sealed.key_id, "nonce": sealed.nonce, "ciphertext": sealed.ciphertext}


def _secret(row: Row[Any]) -> SecretRecord:
    return SecretRecord(
        owner=Owner(row.workspace, row.owner), name=row.name, version=row.version,
        sealed=Sealed(row.key_id, row.nonce, row.ciphertext), keys=tuple(json.loads(row.keys)), created=row.created,
        updated=row.updated, last_used=row.last_used, expires=row.expires,
    )  # fmt: skip


def _release(row: Row[Any]) -> ReleaseRow:
    return ReleaseRow(
        at_unix_seconds=row.at, secret=row.secret, version=row.version, keys=json.loads(row.keys), store=row.store,
        session=row.session, container=row.container, worker=row.worker, call=row.call, notebook=row.notebook,
        refused=row.refused,
    )  # fmt: skip


def _put_list(c: Connection, owner: Owner, listed: SecretListRecord) -> None:
    row = c.execute(select(secret_lists).where(secret_lists.c.id == owner.workspace).with_for_update()).first()
    values = {"version": listed.version, **_sealed(listed.sealed)}
    if row is None:
        c.execute(
            insert(secret_lists).values(id=owner.workspace, workspace=owner.workspace, owner=owner.principal, **values)
        )
        return
    if row.version + 1 != listed.version and row.ciphertext != listed.sealed.ciphertext:
        raise _changed("the list")
    c.execute(update(secret_lists).where(secret_lists.c.id == owner.workspace).values(**values))


def _changed(name: str) -> Exception:
    return error(ErrorCode.CONFLICT, f"secret {name!r} was changed by somebody else just now", next="try again")
