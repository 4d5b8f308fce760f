"""Who has the other end of a connection to a port of this machine's loopback: looked at before a token goes there.

Any user of a machine may listen on a loopback port that is free. While the ssh tunnel of `cellburst connect` is down its
port is, so a worker would give its token to whoever is quicker. Linux says in /proc/net which user a listening or an
accepted socket belongs to. The look comes after the connection is made, so that nobody can change places with the one who
was seen: a listener that goes away resets what it has not accepted, and what it has accepted has a row of its own.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENS = "0A"
NOT_ACCEPTED = "0"  # an inode: the kernel holds the connection, and has no user for it yet
ROOT = 0
Address = tuple[str, int]


def check(connection: socket.socket, owners: Iterable[int] = ()) -> None:
    """Raises PermissionError where the other end of a loopback connection is of another user than root, this one and `owners`.

    Other connections pass, and where nothing is known of the other end: it is no Linux, or in another network namespace.
    """
    far, near = connection.getpeername()[:2], connection.getsockname()[:2]
    if not ipaddress.ip_address(far[0]).is_loopback:
        return
    tables = []
    for path in TABLES:
        try:
            tables.append(path.read_text(encoding="latin-1"))
        except OSError:
            continue
    if strangers := users("\n".join(tables), far, near) - {ROOT, os.geteuid(), *owners}:
        raise PermissionError(
            f"user {min(strangers)} of this machine listens on {far[0]}:{far[1]}, and may not have this worker's token "
            "(allowed: root, the worker's own user, the owner of its token file)"
        )


def users(tables: str, far: Address, near: Address) -> set[int]:
    """The user ids of those who listen at `far`, and of who accepted the connection from `near`; `tables` as in /proc/net/tcp."""
    found = set()
    theirs, ours = set(_words(*far)), set(_words(*near))
    anywhere = {f"{'0' * digits}:{far[1]:04X}" for digits in (8, 32)}
    port = f":{far[1]:04X} "
    for line in tables.splitlines():
        if port not in line:
            continue
        words = line.split()
        if len(words) < 10 or not words[7].isdigit():
            continue
        local, remote, state, uid, inode = words[1], words[2], words[3], words[7], words[9]
        if state == LISTENS:
            if local in theirs or local in anywhere:
                found.add(int(uid))
        elif local in theirs and remote in ours and inode != NOT_ACCEPTED:
            found.add(int(uid))
    return found


def _words(address: str, port: int) -> Iterator[str]:
    """An address as the tables write it: 32-bit words in this machine's order; IPv4 also as a socket of both kinds has it."""
    there = ipaddress.ip_address(address)
    forms = [there.packed]
    if there.version == 4:
        forms.append(b"\0" * 10 + b"\xff\xff" + there.packed)
    for form in forms:
        yield "".join(f"{word:08X}" for word in struct.unpack(f"={len(form) // 4}I", form)) + f":{port:04X}"
