"""REST for runs of schedules: the end of one, what it wrote; and ends that are to be told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from jupyter_server.auth.decorator import authorized
from tornado.web import authenticated

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import CancelRun, Done, Ends, ListRuns, RunList, TakeEnds

from .base import Base

PART_BYTES = 8 * 1024**2  # of a file, in memory at a time
NO_FILE_NAME = r"[^A-Za-z0-9_-]"


class EndsHandler(Base):
    """POST ends."""

    @authenticated
    @authorized
    async def post(self) -> None:
        """What a window is to tell: what ended and was told to nobody; with it the window says what it has shown."""
        self.answer(await self.gateway.ask(self.body(TakeEnds), Ends))


class RunHandler(Base):
    """DELETE runs/ID."""

    @authenticated
    @authorized
    async def delete(self, run: str) -> None:
        """End it."""
        await self.gateway.ask(CancelRun(run=run), Done)
        self.answer({})


class RunNotebookHandler(Base):
    """GET runs/ID/notebook."""

    @authenticated
    @authorized
    async def get(self, run: str) -> None:
        """The executed notebook as it is now, also of a run that goes on or failed; `?download=1` as a file."""
        data = await self.gateway.fetch("GET", f"/runs/{quote(run, safe='')}/notebook")
        self.set_header("Content-Type", "application/x-ipynb+json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        if self.get_query_argument("download", ""):
            self.set_header("Content-Disposition", f'attachment; filename="run-{re.sub(NO_FILE_NAME, "", run)}.ipynb"')
        self.finish(await asyncio.to_thread(untrusted, data))


class RunFileHandler(Base):
    """GET runs/ID/files/PATH."""

    @authenticated
    @authorized
    async def get(self, run: str, path: str) -> None:
        """A file that the run wrote, to be kept: never a type that a browser would run. Parts of it are in memory."""
        rows = (await self.gateway.ask(ListRuns(run=run), RunList)).rows
        size = next((file.size_bytes for row in rows for file in row.files if file.path == path), None)
        if size is None:
            raise error(
                ErrorCode.NOT_FOUND, f"the run has kept no file {path[:200]!r}", next="look at its files in the panel"
            )
        await self.send_file(path.rpartition("/")[2], size, self._pieces(rows[0].id, path, size))

    async def _pieces(self, run: str, path: str, size_bytes: int) -> AsyncIterator[bytes]:
        source = f"/runs/{quote(run, safe='')}/files/{quote(path, safe='')}"
        for begin in range(0, size_bytes, PART_BYTES):
            wanted = min(PART_BYTES, size_bytes - begin)
            part = await self.gateway.fetch("GET", f"{source}?from={begin}&count={wanted}", timeout_seconds=120.0)
            if len(part) != wanted:
                raise error(ErrorCode.STORE, f"bytes of {path[:200]!r} are missing", next="try again")
            yield part


def untrusted(data: bytes) -> bytes:
    """A notebook without what its cells say of their own trust: JupyterLab believes that, and it is for a server that checks a
    notebook's signature to say it. Raises CellburstError (BAD_MESSAGE) for what is no notebook."""
    try:
        notebook: Any = json.loads(data)
        for cell in notebook["cells"]:
            cell.get("metadata", {}).pop("trusted", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise error(ErrorCode.BAD_MESSAGE, "the run's notebook is damaged", next="run it again") from None
    return json.dumps(notebook, ensure_ascii=False, indent=1).encode()
