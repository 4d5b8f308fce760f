"""GET /runs/ID/notebook and GET /runs/ID/files/PATH: what a run wrote; GET /schedules/ID/notebook: what a schedule keeps."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .blobs import CHUNK_BYTES
from .http_base import Base
from .store_rows import Role


class RunRoute(Base):
    """One file of a run."""

    def prepare(self) -> None:
        """Whoever may look at values may look at these."""
        super().prepare()
        if not self._finished and self.token is not None and self.token.role not in (Role.USER, Role.ADMIN):
            self.refuse(error(ErrorCode.FORBIDDEN, "this token may not look at what runs wrote").info)

    async def get(self, run: str, path: str | None = None) -> None:
        """The bytes: of the executed notebook, or of the kept file of that path; `?from=N&count=M` of a part of it."""
        assert self.token is not None
        begin, count = self._whole("from"), self._whole("count")
        source, kind = self._find(self.token.owner.workspace, run, path)
        try:
            file = source.open("rb")
        except FileNotFoundError:
            raise _nothing(run) from None
        with file:
            left = max(0, os.fstat(file.fileno()).st_size - (begin or 0))
            left = left if count is None else min(left, count)
            file.seek(begin or 0)
            self.set_header("Content-Type", kind)
            self.set_header("Content-Length", str(left))
            while left > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                self.write(chunk)
                await self.flush()

    def _whole(self, name: str) -> int | None:
        """A number of the query, None without it. Raises RequestError (BAD_ARGUMENT)."""
        text = self.get_query_argument(name, None)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 16):
            raise error(ErrorCode.BAD_ARGUMENT, f"{name}={text[:40]!r} is no number of bytes", allowed="0 or more")
        return None if text is None else int(text)

    def _find(self, workspace: str, run: str, path: str | None) -> tuple[Path, str]:
        schedules = self.hub.schedules
        record = schedules.run_of(workspace, run)
        if path is None:
            return schedules.files.notebook_path(record.id), "application/x-ipynb+json"
        wanted = unquote(path)
        for number, kept in enumerate(schedules.row_of(record).files):
            if kept.path == wanted:
                return schedules.files.file_path(record.id, number), "application/octet-stream"
        raise _nothing(run)


class FrozenRoute(RunRoute):
    """The notebook that a schedule keeps, as it was scheduled."""

    def _find(self, workspace: str, run: str, path: str | None) -> tuple[Path, str]:
        schedules = self.hub.schedules
        kept = schedules.get(workspace, run).spec.notebook_hash
        return schedules.files.frozen_path(kept), "application/x-ipynb+json"


def _nothing(run: str) -> CellburstError:
    return error(
        ErrorCode.NOT_FOUND,
        f"run {run[:40]!r} has nothing of that name",
        next="`cellburst schedule history` says what runs kept",
    )


def run_routes(base: dict[str, object]) -> list[tuple[str, type[RunRoute], dict[str, object]]]:
    """The routes."""
    return [
        (r"/runs/([^/]+)/notebook", RunRoute, base), (r"/runs/([^/]+)/files/(.+)", RunRoute, base),
        (r"/schedules/([^/]+)/notebook", FrozenRoute, base),
    ]  # fmt: skip
