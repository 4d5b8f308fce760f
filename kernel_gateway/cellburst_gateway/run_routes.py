"""GET /runs/ID/notebook and GET /runs/ID/files/PATH: what a run wrote; GET /schedules/ID/notebook: what a schedule keeps."""

from __future__ import annotations

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
        """The bytes: of the executed notebook, or of the kept file of that path."""
        assert self.token is not None
        source, kind = self._find(self.token.owner.workspace, run, path)
        try:
            file = source.open("rb")
        except FileNotFoundError:
            raise _nothing(run) from None
        with file:
            self.set_header("Content-Type", kind)
            self.set_header("Content-Length", str(source.stat().st_size))
            while chunk := file.read(CHUNK_BYTES):
                self.write(chunk)
                await self.flush()

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
