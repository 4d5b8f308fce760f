"""Where secrets come from: the seam, and the choice of stores by the configuration.

    secret_store_local.py   the record, encrypted: made, changed and deleted here
    secret_store_file.py    `.env` files that the operator names
    secret_store_vault.py   HashiCorp Vault, KV version 2

A name is looked for in this order; the first store that has it gives it. Configuration:

    [secrets]
    key_store = "auto"                      # where the key of local ones lies: auto, file, keyring

    [secrets.files]
    production = "/etc/cellburst/prod.env"  # the secret `production`, read when it is used

    [secrets.vault]
    url = "https://vault.example:8200"
    token_file = "/run/vault-token"         # or token_env = "VAULT_TOKEN"
    mount = "secret"                        # of a KV version 2 engine
    prefix = "cellburst/"                   # a secret NAME is at PREFIX + NAME
    allow_private = true                    # the server is inside: a private or loopback address
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import SecretRow
from cellburst_protocol.secrets import check_name

from .config import GatewayConfig


@dataclass(frozen=True)
class Opened:
    """A secret with its values: what a release is made of. `repr` shows none."""

    name: str
    version: int
    store: str
    values: dict[str, str] = field(repr=False)


class SecretStore(ABC):
    """One place of secrets. The desk calls it on the gateway's loop: what takes long waits in a thread.

    All raise PlatformError: UNAVAILABLE (sealed, the service does not answer), INTEGRITY (changed from outside).
    """

    kind: str

    @abstractmethod
    async def rows(self, workspace: str) -> list[SecretRow]:
        """All that it has, without values."""

    @abstractmethod
    async def keys(self, workspace: str, name: str) -> list[str] | None:
        """The keys of one, None where it has none of that name. Called for each cell that asks for the secret."""

    @abstractmethod
    async def open(self, workspace: str, name: str) -> Opened | None:
        """Its values now. The caller has promised to record the release before they leave the gateway."""

    def version(self, workspace: str, name: str) -> int | None:
        """Its version, where that can be told at once; None: it is not looked again while a container has it."""
        return None


@dataclass(frozen=True)
class SecretsConfig:
    """The table [secrets]."""

    key_store: str = "auto"
    files: dict[str, Path] = field(default_factory=dict)
    vault: dict[str, Any] | None = None


def read_config(config: GatewayConfig) -> SecretsConfig:
    """The table, checked. Raises RequestError (BAD_ARGUMENT)."""
    table = config.raw.get("secrets", {})
    if not isinstance(table, dict):
        raise _wrong("secrets", "a table")
    if unknown := sorted(set(table) - {"key_store", "files", "vault"}):
        raise _wrong(f"secrets.{unknown[0]}", "key_store, files, vault")
    key_store = table.get("key_store", "auto")
    if key_store not in ("auto", "file", "keyring"):
        raise _wrong("secrets.key_store", "auto, file, keyring")
    files = table.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(path, str) for path in files.values()):
        raise _wrong("secrets.files", 'a table of NAME = "PATH"')
    vault = table.get("vault")
    if vault is not None and not isinstance(vault, dict):
        raise _wrong("secrets.vault", "a table")
    return SecretsConfig(
        key_store=key_store,
        files={check_name(name): Path(path).expanduser() for name, path in files.items()},
        vault=vault,
    )


def other_stores(config: SecretsConfig) -> list[SecretStore]:
    """Those besides the record's, in order. Raises RequestError (BAD_ARGUMENT)."""
    stores: list[SecretStore] = []
    if config.files:
        from .secret_store_file import FileSecrets

        stores.append(FileSecrets(config.files))
    if config.vault is not None:
        from .secret_store_vault import VaultSecrets, vault_config

        stores.append(VaultSecrets(vault_config(config.vault)))
    return stores


def _wrong(key: str, allowed: str) -> Exception:
    return error(ErrorCode.BAD_ARGUMENT, f"configuration: {key} cannot be used as it is", allowed=allowed)
