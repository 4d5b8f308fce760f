"""Secrets that are `.env` files on the gateway's machine, named by the operator. Read when they are used, never copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cellburst_protocol import dotenv
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import SecretRow
from cellburst_protocol.secrets import check_values

from .secret_store import Opened, SecretStore

MAX_FILE_BYTES = 1024**2  # four times the largest secret: quotes and comments


class FileSecrets(SecretStore):
    """`files`: name -> path."""

    kind = "file"

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    async def rows(self, workspace: str) -> list[SecretRow]:
        """A file that cannot be read is in the list, with the reason."""
        rows = []
        for name in sorted(self._files):
            try:
                opened = self._read(name)
                rows.append(
                    SecretRow(
                        name=name, keys=sorted(opened.values), version=opened.version, store=self.kind,
                        updated_unix_seconds=opened.version / 1e9,
                    )
                )  # fmt: skip
            except CellburstError as why:
                rows.append(SecretRow(name=name, store=self.kind, sealed=why.info.message))
        return rows

    async def keys(self, workspace: str, name: str) -> list[str] | None:
        """As the file has them now."""
        return sorted(self._read(name).values) if name in self._files else None

    async def open(self, workspace: str, name: str) -> Opened | None:
        """As the file has it now."""
        return self._read(name) if name in self._files else None

    def version(self, workspace: str, name: str) -> int | None:
        """The file's time of change: a cell after it gets the new values."""
        try:
            return self._files[name].stat().st_mtime_ns if name in self._files else None
        except OSError:
            return None

    def _read(self, name: str) -> Opened:
        path = self._files[name]
        try:
            with path.open("rb") as file:
                changed_ns = path.stat().st_mtime_ns
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise error(ErrorCode.TOO_LARGE, f"the file of secret {name!r} has more than {MAX_FILE_BYTES} bytes")
            values = dotenv.parse(data.decode("utf-8")).values
        except (OSError, UnicodeDecodeError) as why:
            reason = why.strerror if isinstance(why, OSError) else "it is not UTF-8"
            raise error(
                ErrorCode.UNAVAILABLE, f"secret {name!r}: its file {str(path)!r} cannot be read: {reason}",
                next="the operator names it in the gateway's configuration, [secrets.files]",
            ) from None  # fmt: skip
        check_values(values)
        return Opened(name, changed_ns, self.kind, values)
