"""REST for runs of schedules: all of them, the end of one, and the notebook that it wrote."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import quote

from jupyter_server.auth.decorator import authorized
from tornado.web import authenticated

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import CancelRun, Done, ListRuns, RunList

from .base import Base

NO_FILE_NAME = r"[^A-Za-z0-9_-]"


class RunsHandler(Base):
    """GET runs?after=UNIX_SECONDS."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """Runs of all schedules, newest first, without those that ended before."""
        try:
            after = float(self.get_query_argument("after", "0"))
        except ValueError:
            after = 0.0
        self.answer(await self.gateway.ask(ListRuns(after_unix_seconds=after), RunList))


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
