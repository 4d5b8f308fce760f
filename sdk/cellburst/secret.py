"""Secrets: named sets of environment variables that cells and functions get, and nobody can read back.

    Secret.objects.create("huggingface", {"HF_TOKEN": "hf_..."})      # kept by the gateway, encrypted
    Secret.from_name("huggingface", required_keys=["HF_TOKEN"])       # used by name
    Secret.from_dict({...})  from_dotenv()  from_local_environ([...])  # kept for a day after their last use, without a name

A secret made from values is sent when it is first used (`hydrate`). Each blocking method has a coroutine beside it: `.aio`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cellburst_protocol import dotenv
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import DeleteSecret, ListSecrets, PutSecret, SecretList, SecretRow
from cellburst_protocol.peer import Peer
from cellburst_protocol.secrets import (
    SecretUse,
    check_key,
    check_name,
    check_required,
    check_values,
    missing_secret,
    shown,
)

from . import embedded
from .both import both
from .link import Link

MAX_FILE_BYTES = 1024**2
T = TypeVar("T")


async def _ask(question: Callable[[Peer], Awaitable[T]]) -> T:
    link = Link(embedded.ensure_gateway, role="cli")
    try:
        await link.connect()
        assert link.peer is not None
        return await question(link.peer)
    finally:
        await link.close()


async def _listed() -> SecretList:
    answer = await _ask(lambda peer: peer.request(ListSecrets()))
    assert isinstance(answer, SecretList)
    return answer


async def _put(message: PutSecret) -> SecretRow:
    answer = await _ask(lambda peer: peer.request(message))
    assert isinstance(answer, SecretRow)
    return answer


class SecretObjects:
    """The gateway's secrets: `Secret.objects`."""

    @both
    async def create(
        self, name: str, env_dict: Mapping[str, str | None], *, allow_existing: bool = False, replace: bool = False
    ) -> SecretRow:
        """Make a secret of keys and values (a value of None leaves its key out).

        One of that name is an error (RequestError, CONFLICT), unless `replace` it, or `allow_existing`, which leaves it as it is.
        """
        values = _values(env_dict)
        if allow_existing and not replace:
            found = [row for row in (await _listed()).rows if row.name == name]
            if found:
                return found[0]
        return await _put(PutSecret(name=check_name(name), values=values, mode="replace" if replace else "create"))

    @both
    async def list(self) -> Sequence[SecretRow]:
        """All of them by name: keys, version, last use; no values."""
        return (await _listed()).rows

    @both
    async def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Remove one. Raises RequestError (NOT_FOUND) unless `allow_missing`."""
        if allow_missing and all(row.name != name for row in (await _listed()).rows):
            return
        await _ask(lambda peer: peer.request(DeleteSecret(name=check_name(name))))


class Secret:
    """One secret, by name or by values. `repr` shows no value."""

    objects = SecretObjects()

    def __init__(
        self, name: str = "", *, values: Mapping[str, str] | None = None, required: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._values = dict(values) if values is not None else None
        self._required = tuple(required)

    def __repr__(self) -> str:
        return f"Secret({self._name!r})" if self._values is None else f"Secret(keys={sorted(self._values)})"

    @classmethod
    def from_name(cls, name: str, *, required_keys: Sequence[str] = ()) -> Secret:
        """One that the gateway has. Whoever uses it is refused where it, or one of `required_keys`, is missing."""
        return cls(check_name(name), required=[check_key(key) for key in required_keys])

    @classmethod
    def from_dict(cls, env_dict: Mapping[str, str | None] | None = None) -> Secret:
        """One of these keys and values. A value of None leaves its key out."""
        return cls(values=_values(env_dict or {}))

    @classmethod
    def from_dotenv(cls, path: str | os.PathLike[str] | None = None, *, filename: str = ".env") -> Secret:
        """One of the keys in the nearest file FILENAME: in the folder of `path` (a file or a folder; without it the working
        folder) or above. Raises RequestError (NOT_FOUND, BAD_ARGUMENT naming the line)."""
        start = Path(path) if path is not None else Path.cwd()
        folder = (start if start.is_dir() else start.parent).absolute()
        for place in (folder, *folder.parents):
            if (place / filename).is_file():
                return cls(values=read_dotenv(place / filename).values)
        raise error(
            ErrorCode.NOT_FOUND, f"there is no file {filename!r} in {str(folder)!r} or above",
            next="give its folder: Secret.from_dotenv(__file__)",
        )  # fmt: skip

    @classmethod
    def from_local_environ(cls, env_keys: Sequence[str]) -> Secret:
        """One of variables of this process. Raises RequestError (NOT_FOUND) naming those that are not set."""
        if missing := [key for key in env_keys if key not in os.environ]:
            raise error(
                ErrorCode.NOT_FOUND, f"not set in this process's environment: {', '.join(missing)}",
                next="set them before this program, or this notebook's kernel, is started",
            )  # fmt: skip
        return cls(values=_values({key: os.environ[key] for key in env_keys}))

    @property
    def name(self) -> str:
        """Its name at the gateway; "" while one of values was not sent."""
        return self._name

    @property
    def by_name(self) -> bool:
        """Whether it is one that the gateway keeps by its name, and not one of values."""
        return self._values is None

    @property
    def use(self) -> str:
        """How a cell names it: `NAME` or `NAME:KEY`. Hydrate one of values first."""
        return str(SecretUse(self._name, self._required))

    @both
    async def hydrate(self) -> Secret:
        """Have the gateway know it: send values, or see that the name and its keys are there. Returns itself."""
        if self._values is not None:
            if not self._name:
                self._name = (await _put(PutSecret(values=self._values, ephemeral=True))).name
            return self
        await self._row()
        return self

    @both
    async def info(self) -> SecretRow:
        """Its keys, version and last use. Raises RequestError (NOT_FOUND)."""
        return await self._row()

    @both
    async def update(self, env_dict: Mapping[str, str | None]) -> SecretRow:
        """Add keys, or give keys that it has other values. Containers get them with their next cell."""
        if self._values is not None:
            raise error(
                ErrorCode.BAD_ARGUMENT, "only a secret with a name can be updated", next="Secret.from_name(NAME)"
            )
        return await _put(PutSecret(name=self._name, values=_values(env_dict), mode="update"))

    async def _row(self) -> SecretRow:
        rows = {row.name: row for row in (await _listed()).rows}
        if self._name not in rows:
            raise missing_secret(self._name, list(rows))
        row = rows[self._name]
        if row.keys or row.store == "local":  # Vault tells keys to containers only: the cell is refused then
            check_required(SecretUse(self._name, self._required), row.keys)
        return row


def read_dotenv(path: Path) -> dotenv.Parsed:
    """A `.env` file. Raises RequestError (NOT_FOUND, BAD_ARGUMENT, TOO_LARGE)."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise error(ErrorCode.TOO_LARGE, f"{str(path)!r} has more than {MAX_FILE_BYTES} bytes")
        parsed = dotenv.parse(data.decode("utf-8"))
    except FileNotFoundError:
        raise error(ErrorCode.NOT_FOUND, f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) else "it is not UTF-8"
        raise error(ErrorCode.BAD_ARGUMENT, f"{str(path)!r} cannot be read: {reason}") from None
    check_values(parsed.values)
    return parsed


def _values(env_dict: Mapping[str, str | None]) -> dict[str, str]:
    if not isinstance(env_dict, Mapping):
        raise error(ErrorCode.BAD_ARGUMENT, f"{type(env_dict).__name__} is no dictionary of keys and values")
    for key in env_dict:
        if not isinstance(key, str):
            raise error(ErrorCode.BAD_ARGUMENT, f"the key {shown(repr(key))} is no text", allowed="names of variables")
    values = {key: value for key, value in env_dict.items() if value is not None}
    check_values(values)
    return values
