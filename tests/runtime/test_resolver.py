"""The forwarder against a real name server on loopback: what it gives back, what it refuses, and its bounds."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from cellburst_runtime import resolver as module
from cellburst_runtime import resolver_message as dns
from cellburst_runtime.resolver import Resolver, host_upstreams
from tests.fakes.dns_server import DnsServer

TABLE = {
    "example.org": ["203.0.113.7"],
    "inside.example.org": ["203.0.113.7", "10.1.2.3"],
    "link.example.org": ["169.254.169.254"],
    "azure.example.org": ["168.63.129.16"],
    "many.example.org": [f"198.51.100.{n}" for n in range(1, 200)],
}


def ask(name: str, kind: int = dns.A, ident: int = 77, payload: int = 1232) -> bytes:
    raw = b"".join(bytes([len(x)]) + x.encode() for x in name.split(".") if x) + b"\0" + struct.pack("!2H", kind, 1)
    return struct.pack("!6H", ident, 0x0100, 1, 0, 0, 1) + raw + b"\0" + struct.pack("!2HIH", dns.OPT, payload, 0, 0)


def code_and_count(answer: bytes | None) -> tuple[int, int]:
    assert answer is not None
    ident, flags, _, count, _, _ = struct.unpack_from("!6H", answer)
    assert ident == 77 and flags & 0x8000
    return flags & 15, count


async def test_a_global_address_comes_back_as_it_is() -> None:
    async with DnsServer(TABLE) as server:
        found = await Resolver([server.upstream]).answer(ask("example.org"), by_stream=False)
    assert code_and_count(found) == (0, 1)
    assert found is not None and found.endswith(socket.inet_aton("203.0.113.7"))


@pytest.mark.parametrize("name", ["inside.example.org", "link.example.org", "azure.example.org"])
async def test_an_answer_that_leads_inside_is_no_such_name(name: str) -> None:
    async with DnsServer(TABLE) as server:
        found = await Resolver([server.upstream]).answer(ask(name), by_stream=False)
        assert server.asked  # it was asked, and its answer was judged
    assert code_and_count(found) == (dns.NAME_ERROR, 0)


@pytest.mark.parametrize(
    "name",
    ["metadata.google.internal", "METADATA.google.internal", "metadata", "printer.local", "x.localhost", "router.lan",
     "4.3.2.10.in-addr.arpa", "254.169.254.169.in-addr.arpa", "nas"],
)  # fmt: skip
async def test_inner_names_are_not_even_forwarded(name: str) -> None:
    async with DnsServer({name: ["203.0.113.7"]}) as server:
        found = await Resolver([server.upstream]).answer(ask(name), by_stream=False)
        assert server.asked == []
    assert code_and_count(found) == (dns.NAME_ERROR, 0)


async def test_ipv6_and_https_records_are_none_at_once_and_pointers_of_global_addresses_are_asked() -> None:
    async with DnsServer(TABLE) as server:
        resolver = Resolver([server.upstream])
        for kind in (dns.AAAA, dns.HTTPS, dns.SVCB):
            assert code_and_count(await resolver.answer(ask("example.org", kind), by_stream=False)) == (0, 0)
        assert code_and_count(await resolver.answer(ask("example.org", dns.ANY), by_stream=False)) == (4, 0)
        assert server.asked == []
        await resolver.answer(ask("8.8.8.8.in-addr.arpa", dns.PTR), by_stream=False)
        assert server.asked == [("8.8.8.8.in-addr.arpa", dns.PTR)]


async def test_a_long_answer_is_fetched_by_tcp_and_offered_by_tcp() -> None:
    async with DnsServer(TABLE) as server:
        resolver = Resolver([server.upstream])
        by_datagram = await resolver.answer(ask("many.example.org"), by_stream=False)
        by_stream = await resolver.answer(ask("many.example.org"), by_stream=True)
        assert server.by_stream == 2
    assert by_datagram is not None and dns.is_truncated(by_datagram) and len(by_datagram) < 512
    assert code_and_count(by_stream) == (0, 199)


async def test_a_forged_answer_under_another_id_is_passed_over() -> None:
    async with DnsServer(TABLE) as server:
        server.forge = True
        found = await Resolver([server.upstream]).answer(ask("example.org"), by_stream=False)
    assert found is not None and found.endswith(socket.inet_aton("203.0.113.7"))


async def test_a_dead_upstream_is_passed_over_and_none_is_a_server_failure() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:
        dead.bind(("127.0.0.1", 0))
        closed = dead.getsockname()
    async with DnsServer(TABLE) as server:
        found = await Resolver([closed, server.upstream]).answer(ask("example.org"), by_stream=False)
    assert code_and_count(found) == (0, 1)
    assert code_and_count(await Resolver([]).answer(ask("example.org"), by_stream=False)) == (2, 0)


async def test_it_listens_by_udp_and_tcp_until_told_to_stop() -> None:
    async with DnsServer(TABLE) as server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        resolver = Resolver([server.upstream], port=port)
        await resolver.listen("127.0.0.1")
        await resolver.listen("127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        query = ask("example.org")
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        assert code_and_count(await reader.readexactly(size)) == (0, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", port))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, query)
            assert code_and_count(await asyncio.wait_for(loop.sock_recv(client, 4096), 5)) == (0, 1)
        await resolver.unlisten("127.0.0.1")
        await resolver.unlisten("127.0.0.1")
        assert await reader.read() == b""  # the open connection ended with it
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert resolver.pending == 0


async def test_a_listen_that_is_cancelled_at_any_step_leaves_nothing_open() -> None:
    for steps in range(8):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        resolver = Resolver([("127.0.0.1", 9)], port=port)
        listening = asyncio.create_task(resolver.listen("127.0.0.1"))
        for _ in range(steps):
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.wait({listening})
        await resolver.close()
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as again:
                again.bind(("127.0.0.1", port))


async def test_pending_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PENDING_OF_ONE", 3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver = Resolver([silent.getsockname()], port=0)
        await resolver.listen("127.0.0.1")
        listener = resolver._listeners["127.0.0.1"]
        for n in range(10):
            listener.datagram_received(ask(f"a{n}.example.org"), ("127.0.0.1", 9))
        assert resolver.pending == 3
        await resolver.close()
        assert resolver.pending == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 11, b"\0" * 12, ask("example.org")[:20], struct.pack("!6H", 1, 0x0100, 2, 0, 0, 0) + b"\0" * 40,
     struct.pack("!6H", 1, 0x8180, 1, 0, 0, 0) + b"\0\0\1\0\1", struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
     struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x3f" * 600],
)  # fmt: skip
async def test_bytes_that_are_no_query_get_no_answer(data: bytes) -> None:
    assert await Resolver([]).answer(data, by_stream=False) is None


def test_a_compression_loop_and_a_short_record_are_refused() -> None:
    question = dns.read_question(ask("example.org"))
    head = struct.pack("!6H", 5, 0x8180, 1, 1, 0, 0) + question.raw
    with pytest.raises(dns.BadMessage):
        dns.judge(head + b"\xc0" + bytes([len(head)]) + b"\0" * 14, question, 5)
    with pytest.raises(dns.BadMessage):
        dns.judge(head + b"\xc0\x0c" + struct.pack("!2HIH", dns.A, 1, 60, 4) + b"\1", question, 5)
    with pytest.raises(dns.BadMessage, match="our query"):
        dns.judge(head, question, 6)


def test_upstreams_are_read_from_resolv_conf(tmp_path) -> None:  # type: ignore[no-untyped-def]
    conf = tmp_path / "resolv.conf"
    conf.write_text("# c\nsearch a\nnameserver 192.0.2.53\nnameserver 2001:db8::1\noptions x\n")
    assert host_upstreams(str(conf)) == [("192.0.2.53", 53), ("2001:db8::1", 53)]
    assert host_upstreams(str(tmp_path / "none")) == []
