"""Secrets in the record: encrypted with the house's own key, changed by `PutSecret` and `DeleteSecret`."""

from __future__ import annotations

import secrets as random
from collections.abc import Mapping

from cellburst_protocol.clock import Clock
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import PutSecret, SecretRow
from cellburst_protocol.secrets import check_name, check_values, missing_secret

from .secret_box import Sealed, SecretBox, tampered
from .secret_key import KeyHolder, sealed
from .secret_store import Opened, SecretStore
from .store import Store
from .store_rows import Owner
from .store_secrets import SecretListRecord, SecretRecord

EPHEMERAL_SECONDS = 86400.0  # since its last use
EPHEMERAL_PREFIX = "ephemeral-"


class LocalSecrets(SecretStore):
    """The record's."""

    kind = "local"

    def __init__(self, store: Store, holder: KeyHolder, clock: Clock) -> None:
        self._store, self._holder, self._clock = store, holder, clock
        self._box: SecretBox | None = None
        self._key = b""

    # -- reading ---------------------------------------------------------------------------------------------------

    async def rows(self, workspace: str) -> list[SecretRow]:
        """Works while sealed: then each row says why."""
        why, versions = "", None
        records = self._store.list_secrets(workspace)
        try:
            box = self._opener()
            versions = self._versions(workspace, box) if box is not None else {}
        except CellburstError as problem:
            why = problem.info.message
        rows = []
        for record in records:
            if record.expires is not None:
                continue
            changed = versions is not None and versions.get(record.name) != record.version
            rows.append(_row(record, tampered(f"secret {record.name!r}").info.message if changed else why))
        there = {record.name for record in records}
        for name, version in sorted((versions or {}).items()):
            if version > 0 and name not in there and not name.startswith(EPHEMERAL_PREFIX):
                rows.append(SecretRow(name=name, sealed=tampered(f"secret {name!r}").info.message))
        return rows

    async def keys(self, workspace: str, name: str) -> list[str] | None:
        """Of a secret that can be opened now: a cell is refused before it costs anything."""
        opened = await self.open(workspace, name)
        return sorted(opened.values) if opened is not None else None

    async def open(self, workspace: str, name: str) -> Opened | None:
        """Decrypt it."""
        record = self._record(workspace, name)
        if record is None and self._store.secret_list(workspace) is None:
            return None
        box = self._opener()
        if box is None:
            return None
        version = self._versions(workspace, box).get(name, 0)
        if (record.version if record is not None else 0) != max(version, 0):
            raise tampered(f"secret {name!r}")
        if record is None or self._has_expired(record):
            return None
        return Opened(name, record.version, self.kind, box.open(workspace, name, record.version, record.sealed))

    def version(self, workspace: str, name: str) -> int | None:
        """As the record has it: a cell after a change gets the new values."""
        record = self._record(workspace, name)
        return record.version if record is not None else None

    # -- changing --------------------------------------------------------------------------------------------------

    def put(self, owner: Owner, asked: PutSecret) -> SecretRow:
        """Write a version. Raises RequestError (BAD_ARGUMENT, TOO_LARGE, CONFLICT), PlatformError (UNAVAILABLE, INTEGRITY)."""
        check_values(asked.values)
        self.remove_expired(owner)
        name = f"{EPHEMERAL_PREFIX}{random.token_hex(8)}" if asked.ephemeral else check_name(asked.name)
        if not asked.ephemeral and name.startswith(EPHEMERAL_PREFIX):
            raise error(ErrorCode.BAD_ARGUMENT, f"names that begin with {EPHEMERAL_PREFIX} are the gateway's own")
        record = self._record(owner.workspace, name)
        if record is not None and asked.mode == "create":
            raise error(
                ErrorCode.CONFLICT, f"there is a secret {name!r} already (version {record.version})",
                next=f"`cellburst secret create {name} ... --replace` takes these keys for all, --update adds them",
            )  # fmt: skip
        box = self._opener(make=True)
        assert box is not None
        versions = self._versions(owner.workspace, box)
        values = dict(asked.values)
        if record is not None and asked.mode == "update":
            if versions.get(name) != record.version:
                raise tampered(f"secret {name!r}")
            values = {**box.open(owner.workspace, name, record.version, record.sealed), **values}
            check_values(values)
        return self._write(owner, name, values, record, versions, box, ephemeral=asked.ephemeral)

    def _write(
        self, owner: Owner, name: str, values: Mapping[str, str], before: SecretRecord | None, versions: dict[str, int],
        box: SecretBox, *, ephemeral: bool,
    ) -> SecretRow:  # fmt: skip
        now = self._clock.wall()
        version = max(abs(versions.get(name, 0)), before.version if before is not None else 0) + 1
        record = SecretRecord(
            owner=owner, name=name, version=version, sealed=box.seal(owner.workspace, name, version, values),
            keys=tuple(sorted(values)), created=before.created if before is not None else now, updated=now,
            last_used=before.last_used if before is not None else None,
            expires=now + EPHEMERAL_SECONDS if ephemeral else None,
        )  # fmt: skip
        listed = self._listed(owner.workspace, {**versions, name: version}, box)
        self._store.put_secret(record, listed, expected_version=before.version if before is not None else 0)
        return _row(record, "")

    def delete(self, owner: Owner, name: str) -> None:
        """Remove one. Raises RequestError (NOT_FOUND), PlatformError (UNAVAILABLE: sealed)."""
        there = [record.name for record in self._store.list_secrets(owner.workspace) if record.expires is None]
        if name not in there:
            raise missing_secret(name, there)
        box = self._opener()
        assert box is not None
        self._delete(owner, [name], self._versions(owner.workspace, box), box)

    def delete_all_sealed(self, owner: Owner) -> list[str]:
        """Remove all secrets of the workspace whose key is lost. Raises RequestError (CONFLICT) when they can be opened."""
        try:
            box = self._opener()
            if box is None:
                return []
            self._versions(owner.workspace, box)
        except CellburstError:
            names = [record.name for record in self._store.list_secrets(owner.workspace)]
            self._box = None
            gone = self._store.delete_secrets(owner, names, None)
            if not self._store.secret_key_ids():
                self._holder.set_aside()
            return gone
        raise error(
            ErrorCode.CONFLICT, "the secrets are not sealed: their key is there",
            next="`cellburst secret delete NAME` removes one",
        )  # fmt: skip

    def remove_expired(self, owner: Owner) -> None:
        """Ephemeral secrets that nobody used for a day."""
        names = [r.name for r in self._store.list_secrets(owner.workspace) if self._has_expired(r)]
        box = self._opener() if names else None
        if box is not None:
            self._delete(owner, names, self._versions(owner.workspace, box), box)

    def _delete(self, owner: Owner, names: list[str], versions: dict[str, int], box: SecretBox) -> None:
        # A name's version goes on counting, so that a row of before cannot come back; an ephemeral one never comes again.
        left = {name: -abs(version) if name in names else version for name, version in versions.items()}
        for name in names:
            if name.startswith(EPHEMERAL_PREFIX):
                left.pop(name, None)
        self._store.delete_secrets(owner, names, self._listed(owner.workspace, left, box))

    def rotate(self) -> tuple[int, str]:
        """Encrypt everything under a new key. Returns how many secrets, and where the key lies.

        Raises PlatformError (UNAVAILABLE: sealed; INTEGRITY: one of them was changed), and then nothing has changed.
        """
        old = self._opener(make=True)
        assert old is not None
        key = self._holder.next_key(self._key)
        new = SecretBox(key)

        def secret(record: SecretRecord) -> Sealed:
            workspace = record.owner.workspace
            values = old.open(workspace, record.name, record.version, record.sealed)
            return new.seal(workspace, record.name, record.version, values)

        def listed(workspace: str, record: SecretListRecord) -> Sealed:
            return new.seal_list(workspace, record.version, old.open_list(workspace, record.version, record.sealed))

        try:
            count = self._store.reseal_secrets(secret, listed)
        except CellburstError as why:
            if why.code is ErrorCode.INTEGRITY:
                self._holder.forget()  # else it may have been committed: the next look decides by the record
            self._box = None
            raise
        self._box, self._key = new, key
        return count, self._holder.settle(key)

    # -- the key ---------------------------------------------------------------------------------------------------

    def _opener(self, *, make: bool = False) -> SecretBox | None:
        """The box for the record as it is. None: there is no secret yet. Raises PlatformError (UNAVAILABLE: sealed)."""
        known = self._store.secret_key_ids()
        if self._box is not None and known <= {self._box.key_id}:
            return self._box
        self._box = None
        key = self._holder.find(known)
        if key is None:
            if not make:
                return None
            key = self._holder.make()
        self._box, self._key = SecretBox(key), key
        if not known <= {self._box.key_id}:
            self._box = None
            raise sealed("the record has secrets of another key")
        return self._box

    def _versions(self, workspace: str, box: SecretBox) -> dict[str, int]:
        record = self._store.secret_list(workspace)
        if record is None:
            if self._store.list_secrets(workspace):
                raise tampered("the list of secrets")
            return {}
        return box.open_list(workspace, record.version, record.sealed)

    def _listed(self, workspace: str, versions: dict[str, int], box: SecretBox) -> SecretListRecord:
        before = self._store.secret_list(workspace)
        version = before.version + 1 if before is not None else 1
        return SecretListRecord(version, box.seal_list(workspace, version, versions))

    def _record(self, workspace: str, name: str) -> SecretRecord | None:
        return self._store.get_secret(workspace, name)

    def _has_expired(self, record: SecretRecord) -> bool:
        return record.expires is not None and record.expires <= self._clock.wall()


def _row(record: SecretRecord, why_sealed: str) -> SecretRow:
    return SecretRow(
        name=record.name, keys=list(record.keys), version=record.version, created_unix_seconds=record.created,
        updated_unix_seconds=record.updated, last_used_unix_seconds=record.last_used or 0.0, sealed=why_sealed,
    )  # fmt: skip
