"""GET /health, GET /metrics, and PUT, GET and HEAD of /blobs/HASH."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tornado.web import stream_request_body

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.version import PROTOCOL_VERSION

from .blobs import CHUNK_BYTES, BlobWriter
from .container_link import container_scope
from .http_base import Base
from .metrics import CONTENT_TYPE
from .store_rows import Role


class Health(Base):
    """Whether the gateway serves; open to all on purpose, and says nothing else of interest."""

    open_to_all = True

    def get(self) -> None:
        """200 while it serves, 503 while it shuts down."""
        self.set_header("Content-Type", "application/json")
        if self.hub.stopping:
            self.set_status(503)
        self.finish(
            msgspec.json.encode(
                {"ok": not self.hub.stopping, "instance": self.hub.instance, "protocol": list(PROTOCOL_VERSION)}
            )
        )

    def head(self) -> None:
        """The same without a body."""
        self.set_status(503 if self.hub.stopping else 200)


class MetricsRoute(Base):
    """Prometheus' figures."""

    def get(self) -> None:
        """All of them as text."""
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(self.hub.metrics.text())


@stream_request_body
class BlobRoute(Base):
    """One blob."""

    for_containers = True
    _writer: BlobWriter | None = None

    def prepare(self) -> None:
        """Check token and hash; for an upload, open its file before the first byte arrives."""
        super().prepare()
        if self._finished:
            return
        assert self.token is not None
        try:
            if self.token.role is Role.VIEWER:
                raise error(ErrorCode.FORBIDDEN, "this token may look at sessions, and not at values")
            self.hub.blobs.path(self.path_args[0])
            if self.request.method == "PUT":
                limit = self.hub.config.max_blob_bytes
                self.request.connection.set_max_body_size(limit)  # type: ignore[union-attr]  # tornado's HTTP/1 one
                self._writer = self.hub.blobs.writer(self.path_args[0], limit)
        except CellburstError as why:
            self.refuse(why.info)

    def data_received(self, chunk: bytes) -> None:
        """The next bytes of an upload."""
        if self._writer is None or self._finished:
            return
        try:
            self._writer.write(chunk)
        except CellburstError as why:
            self._abandon()
            self.refuse(why.info)

    def put(self, hash: str) -> None:
        """The upload is whole: check it and put it in place. 201 when it is there."""
        assert self._writer is not None and self.token is not None
        self._writer.finish()
        self.hub.blobs.add_owner(self.token.owner.workspace, hash)
        if self.token.role is Role.CONTAINER:
            self.hub.blobs.add_owner(container_scope(self.token), hash)
        self.set_status(201)
        self.finish(b"{}")

    async def get(self, hash: str) -> None:
        """The bytes, streamed."""
        path = self._path(hash)
        with path.open("rb") as file:
            self._headers_for(path.stat().st_size)
            while chunk := file.read(CHUNK_BYTES):
                self.write(chunk)
                await self.flush()

    def head(self, hash: str) -> None:
        """Whether it is there, and its size."""
        self._headers_for(self._path(hash).stat().st_size)
        self.finish()

    def on_finish(self) -> None:
        """Nothing of an unfinished upload stays."""
        self._abandon()

    def on_connection_close(self) -> None:
        """The other side went away."""
        self._abandon()

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()

    def _path(self, hash: str) -> Path:
        assert self.token is not None
        path = self.hub.blobs.path(hash)
        scope = container_scope(self.token) if self.token.role is Role.CONTAINER else self.token.owner.workspace
        if not self.hub.blobs.may_read(scope, hash):
            raise CellburstError(ErrorInfo(code=ErrorCode.NOT_FOUND, message=f"there is no blob {hash}"))
        return path

    def _headers_for(self, size_bytes: int) -> None:
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Length", str(size_bytes))
