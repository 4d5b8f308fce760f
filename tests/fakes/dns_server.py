"""A name server with a small table, on loopback: what the resolver's upstream is in tests. UDP and TCP on one port."""

from __future__ import annotations

import asyncio
import ipaddress
import struct

from cellburst_runtime import resolver_message as dns


class DnsServer:
    """Answers A questions from `table` (name -> IPv4 addresses); every question it saw is in `asked`."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table
        self.asked: list[tuple[str, int]] = []
        self.by_stream = 0
        self.forge = False  # a wrong answer under another id first, as an attacker would send

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        while True:
            self._tcp = await asyncio.start_server(self._stream, "127.0.0.1", 0)
            self.port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", self.port))
                return self
            except OSError:  # somebody has that port for datagrams: another one
                self._tcp.close()
                await self._tcp.wait_closed()

    async def __aexit__(self, *_: object) -> None:
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    @property
    def upstream(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def answer(self, data: bytes, limit: int, addresses: list[str] | None = None) -> bytes:
        question = dns.read_question(data)
        found = self.table.get(question.name, []) if addresses is None else addresses
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!2HIH", dns.A, 1, 60, 4) + ipaddress.IPv4Address(a).packed for a in found
        )
        code = 0 if found else dns.NAME_ERROR
        full = struct.pack("!6H", question.id, 0x8180 | code, 1, len(found), 0, 0) + question.raw + records
        return full if len(full) <= limit else struct.pack("!6H", question.id, 0x8380, 1, 0, 0, 0) + question.raw

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.by_stream += 1
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        found = self.answer(data, 65535)
        writer.write(len(found).to_bytes(2, "big") + found)
        await writer.drain()
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = dns.read_question(data)
        self.server.asked.append((question.name, question.type))
        if self.server.forge:
            forged = self.server.answer(data, 1232, ["198.51.100.66"])
            self.transport.sendto(dns.with_id(forged, question.id ^ 1), addr)  # type: ignore[attr-defined]
        self.transport.sendto(self.server.answer(data, question.payload_bytes), addr)  # type: ignore[attr-defined]
