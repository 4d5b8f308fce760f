"""What a notebook uses in each of its `%%modal` cells: volumes and secrets that its own metadata names.

    "cellburst": {"volumes": {"/data": "datasets"}, "secrets": ["huggingface"]}

The panel's "Use in this notebook" writes it there, so it goes where the notebook goes. It is read from the saved file, again
when that has changed; a key that a cell's line gives itself counts alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.volume_mounts import check_mount_path

KEY = "cellburst"
MAX_FILE_BYTES = 200 * 1024**2  # a larger one is not read for this


class NotebookUses:
    """One notebook's, by the path of its file; a notebook without a file uses nothing."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int] | None = None
        self._found: dict[str, str] = {}

    def now(self) -> dict[str, str]:
        """`%%modal` keys and their values: {"volumes": "/data:datasets", "secrets": "huggingface"}.

        Raises RequestError (BAD_ARGUMENT) when the metadata has another shape.
        """
        try:
            status = self._path.stat()
        except OSError:
            return {}
        seen = (status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._found = self._read() if self._path.suffix == ".ipynb" and status.st_size <= MAX_FILE_BYTES else {}
            self._seen = seen
        return self._found

    def _read(self) -> dict[str, str]:
        try:
            document = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}  # being written, or no notebook: nothing of ours
        metadata = document.get("metadata") if isinstance(document, dict) else None
        uses = metadata.get(KEY) if isinstance(metadata, dict) else None
        if uses is None:
            return {}
        volumes: Any
        secrets: Any
        volumes, secrets = (uses.get("volumes") or {}, uses.get("secrets") or []) if isinstance(uses, dict) else (0, 0)
        if not _texts(volumes, dict) or not _texts(secrets, list):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"the notebook's metadata {KEY!r} is {str(uses)[:200]}",
                allowed='{"volumes": {"/data": "NAME"}, "secrets": ["NAME"]}',
                next="press 'Use in this notebook' again, or take it out of the notebook's metadata",
            )  # fmt: skip
        found = {}
        for path in volumes:
            try:
                check_mount_path(path)
            except CellburstError as refused:  # now: as a part of a line it might mean something else
                raise told_where(refused) from None
        if volumes:
            found["volumes"] = ",".join(f"{path}:{name}" for path, name in volumes.items())
        if secrets:
            found["secrets"] = ",".join(secrets)
        return found


def with_uses(line: str, uses: dict[str, str], given: frozenset[str]) -> str:
    """The cell's line with the keys that it does not give itself."""
    more = [f"{key}={_quoted(value)}" for key, value in uses.items() if key not in given]
    return " ".join([line.rstrip(), *more]) if more else line


def told_where(problem: CellburstError) -> CellburstError:
    """An error in what the metadata added, which stands nowhere in the cell."""
    info = problem.info
    return error(
        info.code, f"the notebook's own volumes and secrets: {info.message}", allowed=info.allowed,
        next=f"{info.next}; they are in the notebook's metadata ({KEY!r}): the panel's 'Use in this notebook' changes them",
    )  # fmt: skip


def _quoted(value: str) -> str:
    return f'"{value}"' if any(char.isspace() or char == "'" for char in value) else value


def _texts(value: Any, kind: type) -> bool:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list):
        items = [(item, "") for item in value]
    return isinstance(value, kind) and all(
        isinstance(one, str) and isinstance(other, str) and '"' not in one + other for one, other in items
    )
