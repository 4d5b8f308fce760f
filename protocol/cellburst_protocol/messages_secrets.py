"""Secrets: values inward, names and keys outward.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order. `repr` of what carries values shows none.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .messages_base import Base


class PutSecret(Base, kw_only=True, tag="put_secret"):
    """Make or change a secret. `create` refuses one that is there (CONFLICT), `replace` takes these keys for all, `update` adds
    to what is there; both make one that is not. `ephemeral` ones get a name from the gateway, stand in no list and expire a
    day after their last use. Answered with SecretRow."""

    name: str = ""
    values: dict[str, str]
    mode: Literal["create", "replace", "update"] = "create"
    ephemeral: bool = False

    def __repr__(self) -> str:
        return f"PutSecret(name={self.name!r}, keys={sorted(self.values)!r}, mode={self.mode!r})"


class SecretRow(Base, kw_only=True, tag="secret_row"):
    """A secret as it is shown: never a value. `store` is "local", "file" or "vault"; only local ones can be changed here.
    `sealed` says why its values cannot be read now, "" if they can. `used_by` are schedules that name it, as words for people."""

    name: str
    keys: list[str] = []
    version: int = 0
    created_unix_seconds: float = 0.0
    updated_unix_seconds: float = 0.0
    last_used_unix_seconds: float = 0.0
    store: str = "local"
    sealed: str = ""
    used_by: list[str] = []


class ListSecrets(Base, kw_only=True, tag="list_secrets"):
    """Ask for SecretList."""


class SecretList(Base, kw_only=True, tag="secret_list"):
    """All secrets of the workspace by name; `notes` are stores that could not be asked, in words."""

    rows: list[SecretRow] = []
    notes: list[str] = []


class DeleteSecret(Base, kw_only=True, tag="delete_secret"):
    """Remove a secret. With `all_sealed` instead of a name: all that cannot be opened because their key is lost, for good."""

    name: str = ""
    all_sealed: bool = False


class RotateSecretKey(Base, kw_only=True, tag="rotate_secret_key"):
    """Encrypt all secrets anew under a new key, all or none. Answered with SecretKeyRotated."""


class SecretKeyRotated(Base, kw_only=True, tag="secret_key_rotated"):
    """How many secrets the new key has, and where it lies, in words."""

    secret_count: int
    key_place: str


class ListReleases(Base, kw_only=True, tag="list_releases"):
    """Ask for ReleaseList: which container was given which secret. `secret` "" is all of them."""

    secret: str = ""
    limit_count: int = 100


class ReleaseRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A release, recorded before the values went out; or why there was none (`refused`)."""

    at_unix_seconds: float
    secret: str
    version: int
    keys: list[str] = []
    store: str = "local"
    session: str = ""
    container: str = ""
    worker: str = ""
    call: str = ""
    notebook: str = ""
    refused: str = ""


class ReleaseList(Base, kw_only=True, tag="release_list"):
    """Releases, newest first."""

    rows: list[ReleaseRow] = []


class ReleaseSecrets(Base, kw_only=True, tag="release_secrets"):
    """Gateway -> worker -> runner, on the container's stream before the RunCell that needs it: from now on exactly these
    variables come from secrets; what an earlier one set and this one has not is taken away. `origins` says which secret each
    key is of; `hidden` (removed by the worker) are more values that output may not show, by `NAME.KEY`: of secrets
    that the session had. Never written to a disk; sent again to each new container, and after a lost link."""

    environment: dict[str, str] = {}
    origins: dict[str, str] = {}
    hidden: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"ReleaseSecrets(keys={sorted(self.environment)!r}, hidden={sorted(self.hidden)!r})"
