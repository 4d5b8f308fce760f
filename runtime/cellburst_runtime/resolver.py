"""A small forwarding DNS server on each container's gateway address.

Containers may reach no name server but this one. It asks the host's own servers with a query it builds itself, and
gives back answers as they are, unless they hold an address a container may not reach: so a name of the internet cannot
be made to lead inside (DNS rebinding), and internal names are not told. `resolver_message` reads and judges messages.

Everything is bounded: queries pending per container and in all, sizes, and the time each takes. What is above is
dropped, as a busy name server does; the asker asks again. It does not stop a container from carrying data out in the
names it asks for, as no forwarder does; `network=none` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

from . import resolver_message as dns
from .engine_base import finish

PORT = 53
_MOST_PENDING_OF_ONE = 128  # a pip install asks for a handful at once; a crawler gets by with this
_MOST_PENDING = 1024
_MOST_CONNECTIONS_OF_ONE = 16
_MOST_MESSAGE_BYTES = 16384  # by TCP; answers above it do not occur outside attacks
_TRY_SECONDS = 2.0  # for one upstream; a resolver's usual patience is 5 s in all
_IDLE_SECONDS = 10.0  # of a TCP connection
_MOST_UPSTREAMS = 3  # as in resolv.conf(5)


def host_upstreams(path: str = "/etc/resolv.conf") -> list[tuple[str, int]]:
    """The host's own name servers, (address, port)."""
    try:
        lines = Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    rows = (line.split() for line in lines)
    return [(row[1], PORT) for row in rows if len(row) > 1 and row[0] == "nameserver"][:_MOST_UPSTREAMS]


class _Listener(asyncio.DatagramProtocol):
    """One gateway address: its sockets and what is pending for its container."""

    def __init__(self, resolver: Resolver, address: str) -> None:
        self.resolver = resolver
        self.address = address
        self.transport: asyncio.DatagramTransport | None = None
        self.server: asyncio.Server | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # asyncio's own class does not inherit from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) <= dns.PAYLOAD_BYTES:
            self.begin(self._by_datagram(data, addr))

    def error_received(self, exc: Exception) -> None:
        """An ICMP error for an answer: the container is gone or does not listen. Nothing to do."""

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self.tasks) >= _MOST_PENDING_OF_ONE or self.resolver.pending >= _MOST_PENDING:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _by_datagram(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = await self.resolver.answer(data, by_stream=False)
        if answer is not None and self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(answer, addr)

    async def by_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A TCP connection: questions one after the other."""
        if self.connections >= _MOST_CONNECTIONS_OF_ONE:
            writer.close()
            return
        self.connections += 1
        task = asyncio.current_task()
        if task is not None:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        try:
            while True:
                size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), _IDLE_SECONDS), "big")
                if size > dns.PAYLOAD_BYTES:  # a query is never that long
                    break
                data = await asyncio.wait_for(reader.readexactly(size), _IDLE_SECONDS)
                answer = await self.resolver.answer(data, by_stream=True)
                if answer is None:
                    break
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await asyncio.wait_for(writer.drain(), _IDLE_SECONDS)
        except (OSError, EOFError, TimeoutError):
            pass  # the asker went away, or is idle
        finally:
            self.connections -= 1
            writer.close()

    async def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
        if self.server is not None:
            self.server.close()
        tasks = [t for t in self.tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Resolver:
    """Answers on any number of addresses. `upstreams` are (address, port); without them the host's, read anew each time
    an address is added (networks change under laptops)."""

    def __init__(self, upstreams: Sequence[tuple[str, int]] | None = None, *, port: int = PORT) -> None:
        self._given = list(upstreams) if upstreams is not None else None
        self._upstreams: list[tuple[str, int]] = self._given or []
        self._port = port
        self._listeners: dict[str, _Listener] = {}

    @property
    def pending(self) -> int:
        """Queries being worked on, of all containers."""
        return sum(len(x.tasks) for x in self._listeners.values())

    async def listen(self, address: str) -> None:
        """Answer on this address, by UDP and TCP. Nothing happens if it already does. Raises OSError."""
        if address in self._listeners:
            return
        self._upstreams = self._given if self._given is not None else host_upstreams()
        listener = _Listener(self, address)
        try:
            # To its end also when cancelled: asyncio forgets a server that is cancelled while it starts, and leaves it open.
            await finish(self._open(listener, address))
        except BaseException:
            await listener.close()
            raise
        self._listeners[address] = listener

    async def _open(self, listener: _Listener, address: str) -> None:
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: listener, (address, self._port))
        listener.server = await asyncio.start_server(listener.by_stream, address, self._port)

    async def unlisten(self, address: str) -> None:
        """Stop answering on this address. Nothing happens if it does not."""
        listener = self._listeners.pop(address, None)
        if listener is not None:
            await listener.close()

    async def close(self) -> None:
        """Stop answering everywhere."""
        for address in list(self._listeners):
            await self.unlisten(address)

    async def answer(self, data: bytes, *, by_stream: bool) -> bytes | None:
        """The answer to a query's bytes, None where there is none to give (it is no query)."""
        try:
            question = dns.read_question(data)
        except dns.BadMessage:
            return None
        code = dns.refused(question)
        if code is not None:
            return dns.reply(question, code)
        found = await self._ask(question)
        if found is None:
            return dns.reply(question, dns.SERVER_FAILURE)
        if not by_stream and len(found) > question.payload_bytes:
            return dns.reply(question, truncated=True)
        return found

    async def _ask(self, question: dns.Question) -> bytes | None:
        """The first upstream's answer that is one, under the asker's id; a closed answer becomes "no such name"."""
        for upstream in self._upstreams:
            ident = secrets.randbelow(1 << 16)
            query = dns.query(question, ident)
            try:
                async with asyncio.timeout(_TRY_SECONDS):
                    found = await _exchange_datagram(query, upstream, question, ident)
                    if dns.is_truncated(found):
                        found = await _exchange_stream(query, upstream)
                    allowed = dns.judge(found, question, ident)
            except (OSError, EOFError, TimeoutError, dns.BadMessage):
                continue
            return dns.with_id(found, question.id) if allowed else dns.reply(question, dns.NAME_ERROR)
        return None


async def _exchange_datagram(query: bytes, upstream: tuple[str, int], question: dns.Question, ident: int) -> bytes:
    """Ask by UDP from a port of its own; forged answers are passed over until the right one comes."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in upstream[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        asker.connect(upstream)
        await loop.sock_sendall(asker, query)
        while True:
            found = await loop.sock_recv(asker, _MOST_MESSAGE_BYTES)
            with contextlib.suppress(dns.BadMessage):
                dns.judge(found, question, ident)
                return found


async def _exchange_stream(query: bytes, upstream: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*upstream)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        if size > _MOST_MESSAGE_BYTES:
            raise dns.BadMessage("too long")
        return await reader.readexactly(size)
    finally:
        writer.close()
