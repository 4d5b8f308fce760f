"""HTTP to a gateway: over TCP, TLS, or the Unix socket by which code in a container reaches it."""

from __future__ import annotations

import http.client
import socket
import ssl
from urllib.parse import urlsplit

from .endpoint import Endpoint

TIMEOUT_SECONDS = 300.0  # of one read or write


def connection(endpoint: Endpoint, timeout_seconds: float = TIMEOUT_SECONDS) -> http.client.HTTPConnection:
    """A connection that dials when it is first used."""
    if endpoint.unix_path:
        return _UnixConnection(endpoint.unix_path, timeout_seconds)
    parts = urlsplit(endpoint.url)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.netloc, timeout=timeout_seconds, context=ssl.create_default_context())
    return http.client.HTTPConnection(parts.netloc, timeout=timeout_seconds)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        """Dial the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
