"""REST of volumes.

A file comes in pieces of at most 8 MiB that the browser cuts (`POST volumes/NAME/chunks`: its progress and its retries are by
piece), then one commit names them (`POST volumes/NAME/files`); it goes out as one stream.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from jupyter_server.auth.decorator import authorized
from tornado.web import authenticated

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import ChunkHashes, CreateVolume, RenameVolume, VolumeList, VolumeRow, check_name

from .base import Base
from .gateway import decoded
from .settings import CellburstServer
from .transfers import VolumeChange, Volumes

MAX_PREVIEW_BYTES = 8 * 1024**2


class VolumesBase(Base):
    """A route of volumes, or of what a window sees as one."""

    def initialize(self, volumes: Volumes, **shared: Any) -> None:  # type: ignore[override]  # one more than the base
        """Tornado gives each handler these."""
        super().initialize(**shared)
        self.volumes = volumes

    def by(self) -> str:
        """Who does it, as others see it in a conflict."""
        user = self.current_user
        name = getattr(user, "display_name", "") or getattr(user, "username", "")
        return f"JupyterLab ({name})" if name and not name.startswith("Anonymous") else "JupyterLab"


class VolumesHandler(VolumesBase):
    """GET and POST volumes."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """All of them."""
        self.answer(decoded(await self.gateway.fetch("GET", "/volumes"), VolumeList))

    @authenticated
    @authorized
    async def post(self) -> None:
        """Make one."""
        body = msgspec.json.encode(CreateVolume(name=check_name(self.body(CreateVolume).name)))
        self.answer(decoded(await self.gateway.fetch("POST", "/volumes", body), VolumeRow))


class VolumeHandler(VolumesBase):
    """PATCH and DELETE volumes/NAME."""

    @authenticated
    @authorized
    async def patch(self, name: str) -> None:
        """Rename it."""
        body = msgspec.json.encode(RenameVolume(name=check_name(self.body(RenameVolume).name)))
        answer = await self.gateway.fetch("PATCH", f"/volumes/{quote(name, safe='')}", body)
        self.volumes.forget(name)
        self.answer(decoded(answer, VolumeRow))

    @authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Delete it; refused while something uses it, unless `used=1`."""
        used = "?used=1" if self.get_query_argument("used", "") == "1" else ""
        await self.gateway.fetch("DELETE", f"/volumes/{quote(name, safe='')}{used}")
        self.volumes.forget(name)
        self.answer({})


class ChunksHandler(VolumesBase):
    """POST volumes/NAME/chunks."""

    @authenticated
    @authorized
    async def post(self, name: str) -> None:
        """Take a piece of a file; answered with its hash and size."""
        self.answer(await self.volumes.put_chunk(self.request.body))


class MissingHandler(VolumesBase):
    """POST volumes/NAME/chunks/missing."""

    @authenticated
    @authorized
    async def post(self, name: str) -> None:
        """Which of these pieces the gateway has not: what an upload that goes on has to send."""
        asked = msgspec.json.encode(ChunkHashes(hashes=self.body(ChunkHashes).hashes))
        self.answer(decoded(await self.gateway.fetch("POST", "/chunks/missing", asked), ChunkHashes))


class FilesHandler(VolumesBase):
    """GET and POST volumes/NAME/files."""

    @authenticated
    @authorized
    async def get(self, name: str) -> None:
        """One folder (`path`)."""
        self.answer(await self.volumes.folder(name, self.get_query_argument("path", "", strip=False)))

    @authenticated
    @authorized
    async def post(self, name: str) -> None:
        """New files, deletions and renames, all or none."""
        asked = self.body(VolumeChange)
        check_size(asked, self.server_options)
        self.answer(await self.volumes.change(name, asked, self.by()))


class FileHandler(VolumesBase):
    """GET volumes/NAME/files/PATH."""

    @authenticated
    @authorized
    async def get(self, name: str, path: str) -> None:
        """Its bytes; with `preview=1` at most 8 MiB of its start. Never a type that a browser would run."""
        entry = await self.volumes.file(name, path)
        preview = self.get_query_argument("preview", "") == "1"
        limit = min(entry.size_bytes, MAX_PREVIEW_BYTES) if preview else entry.size_bytes
        await self.send_file(entry.path.rpartition("/")[2], limit, self.volumes.read(entry, limit))


def check_size(asked: VolumeChange, options: CellburstServer) -> None:
    """Raises RequestError (TOO_LARGE) where a file is larger than the operator allows."""
    for file in asked.files:
        if file.size_bytes > options.max_upload_bytes:
            raise error(
                ErrorCode.TOO_LARGE, f"a file of {file.size_bytes:,} bytes",
                allowed=f"{options.max_upload_bytes:,} (CellburstServer.max_upload_bytes)",
                next="`cellburst volume put` and `cellburst nfs put` take larger ones",
            )  # fmt: skip
