"""A reverse proxy as a hub has one before its users' servers: a prefix, a public name and address, HTTP and WebSockets, nothing stripped."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClientConnection, WebSocketHandler, websocket_connect

OF_THIS_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length", "te", "trailer"}


@dataclass
class HubProxy:
    """Where it serves, and the paths that were asked for through it."""

    url: str
    seen: list[str] = field(default_factory=list)


def _forwarded(handler: RequestHandler) -> dict[str, str]:
    """The request's headers as a hub passes them on: with who asked, and by which address."""
    # Else the client says of a body that it is a form.
    kept = {"Content-Type": "application/octet-stream"} | {
        name: value for name, value in handler.request.headers.get_all()
        if name.lower() not in OF_THIS_HOP and not name.lower().startswith("sec-websocket")
    }  # fmt: skip
    host = handler.request.host
    more = {
        "X-Forwarded-For": "198.51.100.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": host,
        "X-Forwarded-Port": "443",
    }
    return kept | more | {"X-Scheme": "https", "X-Real-IP": "198.51.100.7"}


class _Pages(RequestHandler):
    def initialize(self, proxy: HubProxy, target: str, client: AsyncHTTPClient) -> None:
        self.proxy, self.target, self.client = proxy, target, client

    async def prepare(self) -> None:
        self.proxy.seen.append(self.request.path)
        method, uri = self.request.method or "", self.request.uri or ""
        request = HTTPRequest(
            self.target + uri, method=method, headers=_forwarded(self), follow_redirects=False, request_timeout=60,
            body=self.request.body if method not in ("GET", "HEAD", "DELETE") else None, decompress_response=False,
            allow_nonstandard_methods=True,
        )  # fmt: skip
        answer = await self.client.fetch(request, raise_error=False)
        self.set_status(answer.code, answer.reason)
        self.clear_header("Server")
        for name, value in answer.headers.get_all():
            if name.lower() not in OF_THIS_HOP:
                self.add_header(name, value) if name.lower() == "set-cookie" else self.set_header(name, value)
        await self.finish(answer.body or None)


class _Sockets(WebSocketHandler):
    inner: WebSocketClientConnection | None = None

    def initialize(self, proxy: HubProxy, target: str, client: AsyncHTTPClient) -> None:
        self.proxy, self.target = proxy, target

    def check_origin(self, origin: str) -> bool:
        return True  # the server behind decides

    async def get(self, *args: Any, **kwargs: Any) -> None:
        self.proxy.seen.append(self.request.path)
        url = self.target.replace("http", "ws", 1) + (self.request.uri or "")
        try:
            self.inner = await websocket_connect(
                HTTPRequest(url, headers=_forwarded(self)), on_message_callback=self._told, compression_options={}
            )
        except HTTPClientError as why:
            self.set_status(why.code)
            await self.finish()
            return
        answer = super().get(*args, **kwargs)
        if answer is not None:
            await answer

    def _told(self, message: str | bytes | None) -> None:
        if message is None:
            self.close(self.inner.close_code if self.inner else None)
        else:
            self.write_message(message, binary=isinstance(message, bytes))

    async def on_message(self, message: str | bytes) -> None:
        assert self.inner is not None
        await self.inner.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        if self.inner is not None:
            self.inner.close()


@contextlib.contextmanager
def hub_proxy(target: str, prefix: str) -> Iterator[HubProxy]:
    """Serve `prefix` of the server at `target` on a port of its own, from a thread; all else is not there."""
    (socket,) = bind_sockets(0, "127.0.0.1")
    proxy = HubProxy(f"http://127.0.0.1:{socket.getsockname()[1]}")
    serving, over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        client = AsyncHTTPClient(force_instance=True, max_body_size=64 * 1024**2)
        both = {"proxy": proxy, "target": target, "client": client}
        live = rf"{prefix}(?:.*/)?(?:live|channels)"
        server = HTTPServer(
            Application([(live, _Sockets, both), (rf"{prefix}.*", _Pages, both)]), max_body_size=64 * 1024**2
        )
        server.add_sockets([socket])
        serving.set()
        await over.wait()
        server.stop()
        await server.close_all_connections()
        client.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="hub-proxy")
    thread.start()
    try:
        assert serving.wait(20), "the proxy did not start"
        assert urlsplit(proxy.url).port
        yield proxy
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join(20)
