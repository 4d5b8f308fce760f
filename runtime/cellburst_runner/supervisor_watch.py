"""Keeps a selector in line with what is to be watched, with few system calls: each is dear in a sandbox."""

from __future__ import annotations

import selectors
import socket
from typing import Any


def watch(selector: selectors.BaseSelector, wanted: dict[socket.socket, tuple[int, Any]]) -> None:
    """Watch exactly `wanted`: socket -> (mask, handler)."""
    for key in list(selector.get_map().values()):
        if key.fileobj not in wanted:
            selector.unregister(key.fileobj)
    for connection, (mask, handler) in wanted.items():
        current = selector.get_map().get(connection)
        if current is None:
            selector.register(connection, mask, handler)
        elif current.events != mask:
            selector.modify(connection, mask, handler)


def forget(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    """Stop watching a socket, also one that is closed already."""
    for key in list(selector.get_map().values()):
        if key.fileobj is connection:
            selector.unregister(connection)
