"""The server's side of the gateway: one link for all windows, made at the first question and made again when it is lost.

Control requests go over the link, volumes and files over the gateway's HTTP routes, with the same token. Neither the token nor a
value of a secret is in anything that this gives back.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.messages import Message

if TYPE_CHECKING:
    from cellburst.blobs import BlobClient
    from cellburst.chunk_folder import ChunkFolder
    from cellburst.endpoint import Endpoint
    from cellburst.link import Link
    from cellburst.volume_api import VolumeApi

REQUEST_SECONDS = 30.0
PARK_SECONDS = 600.0  # tens of GB of memory go to a slow disk in that time
T = TypeVar("T")


class Gateway:
    """The user's gateway. All methods run on the server's event loop."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._dialling = asyncio.Lock()
        self._http: AsyncHTTPClient | None = None
        self._files: tuple[Endpoint, VolumeApi] | None = None

    async def start(self) -> None:
        """Start the user's own gateway unless one is configured or runs. Raises CellburstError (GATEWAY_DOWN)."""
        from cellburst.embedded import ensure_gateway

        await asyncio.to_thread(ensure_gateway)

    async def ask(self, message: Message, kind: type[T], timeout_seconds: float = REQUEST_SECONDS) -> T:
        """A control request and its answer, which is a `kind`. Raises CellburstError (GATEWAY_DOWN when there is none)."""
        link = await self._connected()
        assert link.peer is not None
        answer = await link.peer.request(message, timeout_seconds=timeout_seconds)
        if not isinstance(answer, kind):
            raise error(ErrorCode.BAD_MESSAGE, f"the gateway answered with {type(answer).__name__}")
        return answer

    async def fetch(self, method: str, path: str, body: bytes | None = None, timeout_seconds: float = 60.0) -> bytes:
        """A request to one of the gateway's HTTP routes. Raises the error that it answers with."""
        endpoint = await self.endpoint()
        if self._http is None:
            self._http = AsyncHTTPClient(force_instance=True, max_body_size=256 * 1024**2, max_clients=8)
        request = HTTPRequest(
            endpoint.url + path, method=method, body=body,
            headers={"Authorization": f"Bearer {endpoint.token}", "Content-Type": "application/json"},
            request_timeout=timeout_seconds, connect_timeout=10.0, follow_redirects=False, decompress_response=False,
        )  # fmt: skip
        try:
            answer: HTTPResponse = await self._http.fetch(request, raise_error=False)
        except OSError as why:
            raise error(ErrorCode.GATEWAY_DOWN, f"the gateway does not answer: {why}", next=_NEXT) from None
        if answer.code == 599:
            raise error(ErrorCode.GATEWAY_DOWN, f"the gateway does not answer: {answer.error}", next=_NEXT)
        if answer.code >= 400:
            raise _refused(answer)
        return answer.body or b""

    async def close(self) -> None:
        """End the link."""
        if self._http is not None:
            self._http.close()
            self._http = None
        await self._drop()

    async def blobs(self) -> BlobClient:
        """For values that go to the gateway whole; its methods block. Raises CellburstError (GATEWAY_DOWN)."""
        from cellburst.blobs import BlobClient

        link = await self._connected()
        assert link.endpoint is not None and link.welcome is not None
        return BlobClient(link.endpoint, link.welcome)

    async def chunks(self) -> ChunkFolder | None:
        """The gateway's folder of chunks, if it lies on this machine; its methods block. Raises CellburstError (GATEWAY_DOWN)."""
        from cellburst.chunk_folder import ChunkFolder

        link = await self._connected()
        assert link.welcome is not None
        return await asyncio.to_thread(ChunkFolder.of, link.welcome)

    async def files(self) -> VolumeApi:
        """For files that are streamed; its methods block. Raises CellburstError (GATEWAY_DOWN)."""
        from cellburst.volume_api import VolumeApi

        endpoint = await self.endpoint()
        if self._files is None or self._files[0] != endpoint:  # it was started again: its folders may be others
            self._files = endpoint, VolumeApi(lambda: endpoint)
        return self._files[1]

    async def endpoint(self) -> Endpoint:
        """Where it is now. Raises CellburstError (GATEWAY_DOWN)."""
        return await asyncio.to_thread(_find)

    async def _connected(self) -> Link:
        from cellburst.link import Link

        async with self._dialling:
            link = self._link
            if link is not None and link.peer is not None and not link.peer.closed.is_set():
                return link
            await self._drop()
            link = Link(_find, role="cli")
            try:
                await link.connect()
            except BaseException:
                await link.close()
                raise
            self._link = link
            return link

    async def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(OSError):
                await link.close()


_NEXT = "press Start in the panel, or run `cellburst up`"


def _find() -> Endpoint:
    """The configured gateway, or the user's own if it runs. Blocks for a look at a file and one short request."""
    from cellburst.config import settings
    from cellburst.embedded import ensure_gateway, find

    configured = settings()
    if not configured.gateway_url and find(configured.folders) is None:
        raise error(ErrorCode.GATEWAY_DOWN, "no gateway is running", next=_NEXT)
    return ensure_gateway()


def _refused(answer: HTTPResponse) -> CellburstError:
    try:
        return from_info(msgspec.json.decode(answer.body or b"", type=ErrorInfo))
    except msgspec.MsgspecError:
        return error(ErrorCode.UNAVAILABLE, f"the gateway answered with HTTP status {answer.code}")


def decoded(body: bytes, kind: type[Any]) -> Any:
    """A JSON answer of the gateway. Raises CellburstError (BAD_MESSAGE)."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as why:
        raise error(ErrorCode.BAD_MESSAGE, f"the gateway's answer is of the wrong shape: {why}") from None
