"""Secrets in HashiCorp Vault, a KV engine of version 2, by `hvac`. Read when they are used; nothing is written there.

A secret NAME is at PREFIX + NAME of the engine at MOUNT; its fields are the keys. All calls are made in a thread, with a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import SecretRow
from cellburst_protocol.secrets import check_values

from .outbound import check_url
from .secret_store import Opened, SecretStore

TIMEOUT_SECONDS = 10.0
T = TypeVar("T")
_KEYS = {"url", "token_file", "token_env", "mount", "prefix", "namespace", "ca_file", "allow_private"}


@dataclass(frozen=True)
class VaultConfig:
    """The table [secrets.vault]; see `secret_store.py`."""

    url: str
    token_file: str = ""
    token_env: str = ""
    mount: str = "secret"
    prefix: str = ""
    namespace: str = ""
    ca_file: str = ""
    allow_private: bool = False


def vault_config(table: dict[str, Any]) -> VaultConfig:
    """The table, checked; nothing is dialled. Raises RequestError (BAD_ARGUMENT)."""
    if unknown := sorted(set(table) - _KEYS):
        raise _wrong(f"{unknown[0]} is not known", ", ".join(sorted(_KEYS)))
    for key, value in table.items():
        if not isinstance(value, bool if key == "allow_private" else str):
            raise _wrong(f"{key} = {value!r}", "true or false" if key == "allow_private" else "a text")
    if not table.get("url"):
        raise _wrong("url is missing", 'for example url = "https://vault.example:8200"')
    if bool(table.get("token_file")) == bool(table.get("token_env")):
        raise _wrong("it needs one of token_file and token_env", "the token itself does not belong into this file")
    return VaultConfig(**table)


class VaultSecrets(SecretStore):
    """One Vault."""

    kind = "vault"

    def __init__(self, config: VaultConfig) -> None:
        self._config = config

    async def rows(self, workspace: str) -> list[SecretRow]:
        """Names only: Vault's list has no keys, and reading each secret for a list would be a release."""
        return await self._ask(self._rows)

    async def keys(self, workspace: str, name: str) -> list[str] | None:
        """Read from Vault, and only the keys kept."""
        opened = await self.open(workspace, name)
        return sorted(opened.values) if opened is not None else None

    async def open(self, workspace: str, name: str) -> Opened | None:
        """The newest version."""
        return await self._ask(lambda client: self._open(client, name))

    # -- in a thread -----------------------------------------------------------------------------------------------

    async def _ask(self, work: Callable[[Any], T]) -> T:
        return await asyncio.to_thread(self._with_client, work)

    def _with_client(self, work: Callable[[Any], T]) -> T:
        import hvac
        import requests
        from hvac.exceptions import Forbidden, VaultDown, VaultError

        config = self._config
        check_url(config.url, allow_private=config.allow_private)
        with requests.Session() as session:
            session.trust_env = False  # no proxy, no .netrc
            client = hvac.Client(
                url=config.url, token=self._token(), namespace=config.namespace or None, timeout=TIMEOUT_SECONDS,
                verify=config.ca_file or True, allow_redirects=False, session=session,
            )  # fmt: skip
            try:
                return work(client)
            except Forbidden:
                raise self._problem(self._why_forbidden(client)) from None
            except VaultDown:
                raise self._problem("it is sealed or down") from None
            except VaultError as why:
                raise self._problem(f"it answered {type(why).__name__}") from None
            except requests.RequestException as why:
                raise self._problem(f"it does not answer ({type(why).__name__})") from None
            except (KeyError, TypeError, ValueError):
                raise self._problem("its answer is not that of a KV engine of version 2") from None

    def _token(self) -> str:
        config = self._config
        try:
            token = Path(config.token_file).read_text("ascii") if config.token_file else os.environ[config.token_env]
        except (OSError, UnicodeDecodeError, KeyError):
            raise self._problem(f"its token is not there ({config.token_file or config.token_env})") from None
        return token.strip()

    def _why_forbidden(self, client: Any) -> str:
        from hvac.exceptions import VaultError

        try:
            client.auth.token.lookup_self()
        except VaultError:
            return "it does not know the token (any more)"
        return f"the token may not read {self._config.mount}/{self._config.prefix}"

    def _rows(self, client: Any) -> list[SecretRow]:
        from hvac.exceptions import InvalidPath

        try:
            answer = client.secrets.kv.v2.list_secrets(path=self._config.prefix, mount_point=self._config.mount)
        except InvalidPath:
            return []
        names = [str(name) for name in answer["data"]["keys"]]
        return [SecretRow(name=name, store=self.kind) for name in sorted(names) if not name.endswith("/")]

    def _open(self, client: Any, name: str) -> Opened | None:
        from hvac.exceptions import InvalidPath

        try:
            answer = client.secrets.kv.v2.read_secret_version(
                path=self._config.prefix + name, mount_point=self._config.mount, raise_on_deleted_version=True
            )
        except InvalidPath:
            return None
        data, version = answer["data"]["data"], int(answer["data"]["metadata"]["version"])
        values = {str(key): value if isinstance(value, str) else _text(name, key, value) for key, value in data.items()}
        check_values(values)
        return Opened(name, version, self.kind, values)

    def _problem(self, why: str) -> Exception:
        return error(
            ErrorCode.UNAVAILABLE, f"Vault at {self._config.url} cannot be used: {why}",
            next="the operator names it in the gateway's configuration, [secrets.vault]",
        )  # fmt: skip


def _text(name: str, key: object, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise error(
        ErrorCode.BAD_ARGUMENT, f"secret {name!r} in Vault: {key} is a {type(value).__name__}",
        allowed="texts and numbers: keys become environment variables",
    )  # fmt: skip


def _wrong(what: str, allowed: str) -> Exception:
    return error(ErrorCode.BAD_ARGUMENT, f"configuration: secrets.vault: {what}", allowed=allowed)
