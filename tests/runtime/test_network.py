"""Containers' networks, on real namespaces: what a container reaches, what it does not, and that nothing stays behind.

A second namespace plays the world outside: it has a documentation address (RFC 5737), and behind it every private and
metadata address that a container must not reach, each with a server that the host itself does reach. One file over 400 lines: that world is
made once for all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellburst_runtime import network as module
from cellburst_runtime import network_host
from cellburst_runtime.network import ContainerNetwork, Networks
from cellburst_runtime.network_host import default_interfaces, ipv4_routes
from cellburst_runtime.network_rules import CLOSED_RANGES
from tests.fakes.dns_server import DnsServer

pytestmark = [pytest.mark.netns, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

PUBLIC, HOST = "203.0.113.2", "203.0.113.1"  # the outside, and this host's own address towards it
INNER = (
    "10.255.250.9",
    "172.16.99.9",
    "192.168.99.9",
    "100.127.9.9",
    "169.254.169.254",
    "192.0.0.192",
    "168.63.129.16",
)
PORT = 8099

# Prints a line for each TCP peer and UDP datagram.
SERVER = f"""
import select, socket
t = socket.create_server(("0.0.0.0", {PORT})); u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", {PORT}))
print("ready", flush=True)
while True:
    for s in select.select([t, u], [], [])[0]:
        if s is t:
            c, a = t.accept(); c.sendall(b"hello"); c.close()
        else:
            d, a = u.recvfrom(100); print(d.decode(), a[0], flush=True)
"""
# Tries many (address, port) at once; prints those that answered.
CLIENT = """
import json, select, socket, sys, time
tries = {}
for host, port in json.loads(sys.argv[1]):
    s = socket.socket(); s.setblocking(False)
    try: s.connect((host, port))
    except BlockingIOError: pass
    except OSError: continue
    tries[s] = f"{host}:{port}"
end = time.monotonic() + 1.0; good = []
while tries and time.monotonic() < end:
    for s in select.select([], list(tries), [], end - time.monotonic())[1]:
        if not s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR): good.append(tries[s])
        del tries[s]
print(json.dumps(sorted(good)))
"""


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class World:
    """The namespace outside, its server, and the host's interface towards it."""

    def __init__(self) -> None:
        self.name = f"world-{os.getpid()}"
        self.interface = f"w{os.getpid() % 10**8}"
        self.server: subprocess.Popen[str] | None = None
        try:
            self._make()
        except BaseException:
            self.close()  # its routes would end every other test
            raise

    def _make(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.interface, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("addr", "add", f"{HOST}/30", "dev", self.interface)
        ip("link", "set", self.interface, "up")
        Path(f"/proc/sys/net/ipv4/conf/{self.interface}/forwarding").write_text("1")
        ip("-n", self.name, "addr", "add", f"{PUBLIC}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        for address in INNER:
            ip("-n", self.name, "addr", "add", f"{address}/32", "dev", "lo")
            ip("route", "add", f"{address}/32", "via", PUBLIC)
        self.server = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.server is not None and self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
        subprocess.run(["ip", "link", "del", self.interface], check=False)
        subprocess.run(["ip", "netns", "del", self.name], check=False)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    outside = World()
    yield outside
    outside.close()


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with DnsServer({"example.org": [PUBLIC], "trap.example.org": ["169.254.169.254"]}) as server:
        yield server


@pytest.fixture
async def networks(tmp_path: Path, dns: DnsServer) -> AsyncIterator[Networks]:
    made = Networks(tmp_path / "run", upstreams=[dns.upstream], machine_folder=tmp_path / "machine")
    yield made
    await made.close()


async def inside(network: ContainerNetwork, code: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", network.name, sys.executable, "-c", code, *arguments), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return out.decode().strip()


async def reached(network: ContainerNetwork, *places: tuple[str, int]) -> list[str]:
    return list(json.loads(await inside(network, CLIENT, json.dumps(places))))


def traces(networks: Networks) -> list[str]:
    """Everything on this host that carries the installation's tag."""
    links = [x["ifname"] for x in json.loads(ip("-j", "link")) if x["ifname"].startswith(f"cb{networks.tag}")]
    spaces = [x.name for x in Path("/run/netns").glob(f"cellburst-{networks.tag}*")]
    rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    return links + spaces + [line for line in rules.splitlines() if networks.tag in line]


async def test_it_reaches_the_outside_and_nothing_inside(world: World, networks: Networks) -> None:
    assert await networks.probe() == ""
    first, second = await networks.create("one"), await networks.create("two")
    # The control: from the host every one of these answers, so that silence means our rules.
    places = [(address, PORT) for address in (PUBLIC, *INNER)]
    own = subprocess.run([sys.executable, "-c", CLIENT, json.dumps(places)], check=True, capture_output=True, text=True)
    assert json.loads(own.stdout) == sorted(f"{a}:{p}" for a, p in places)
    assert await reached(first, *places) == [f"{PUBLIC}:{PORT}"]
    assert await reached(second, (PUBLIC, PORT)) == [f"{PUBLIC}:{PORT}"]


async def test_the_host_is_unreachable_on_every_address_and_port(world: World, networks: Networks) -> None:
    network = await networks.create("one")
    server = await asyncio.start_server(lambda r, w: w.close(), "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    addresses = [a["local"] for x in json.loads(ip("-4", "-j", "addr")) for a in x["addr_info"]]
    assert {HOST, network.gateway_address} <= set(addresses)
    own = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps([(a, port) for a in addresses])],
        check=True,
        capture_output=True,
        text=True,
    )
    assert len(json.loads(own.stdout)) == len(addresses)
    outer = [a for a in addresses if not a.startswith("127.")]
    assert await reached(network, *[(a, p) for a in outer for p in (port, 22, 53)], (network.nameserver, 80)) == []
    assert await reached(network, (network.nameserver, 53)) == [f"{network.nameserver}:53"]
    server.close()


async def test_other_containers_are_unreachable(world: World, networks: Networks) -> None:
    first, second = await networks.create("one"), await networks.create("two")
    peer = second.address.partition("/")[0]
    server = subprocess.Popen(
        ["ip", "netns", "exec", second.name, sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None and server.stdout.readline().strip() == "ready"
        assert await reached(second, (peer, PORT)) == [f"{peer}:{PORT}"]
        assert await reached(first, (peer, PORT), (second.gateway_address, 53)) == []
        own = subprocess.run([sys.executable, "-c", CLIENT, json.dumps([(peer, PORT)])], capture_output=True, text=True)
        assert json.loads(own.stdout) == []  # nor does the host call into a container
    finally:
        server.kill()
        server.communicate()


async def test_a_forged_source_address_never_leaves(world: World, networks: Networks) -> None:
    network = await networks.create("one")
    send = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0));"
        f"s.sendto(sys.argv[2].encode(), ('{PUBLIC}', {PORT}))"
    )
    ip("-n", network.name, "addr", "add", "198.51.100.77/32", "dev", "eth0")
    await inside(network, send, "198.51.100.77", "forged")
    await inside(network, send, network.address.partition("/")[0], "honest")
    # Datagrams of one link arrive in order: the honest one first means that the forged one did not come.
    assert await asyncio.wait_for(asyncio.to_thread(world.line), 10) == f"honest {HOST}"


async def test_names_are_answered_and_never_lead_inside(world: World, dns: DnsServer, networks: Networks) -> None:
    network = await networks.create("one")
    ask = (
        "import socket, struct, sys; q = b''.join(bytes([len(x)]) + x.encode() for x in sys.argv[2].split('.')) + b'\\0\\0\\1\\0\\1';"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5);"
        "s.sendto(struct.pack('!6H', 7, 256, 1, 0, 0, 0) + q, (sys.argv[1], 53)); d = s.recv(999);"
        "print(d[3] & 15, socket.inet_ntoa(d[-4:]) if d[7] else '-')"
    )
    assert await inside(network, ask, network.nameserver, "example.org") == f"0 {PUBLIC}"
    assert await inside(network, ask, network.nameserver, "trap.example.org") == "3 -"
    assert await inside(network, ask, network.nameserver, "metadata.google.internal") == "3 -"
    assert [name for name, _ in dns.asked] == ["example.org", "trap.example.org"]


async def test_there_is_no_ipv6(networks: Networks) -> None:
    network = await networks.create("one")
    assert Path(f"/proc/sys/net/ipv6/conf/{network.interface}/disable_ipv6").read_text().strip() == "1"
    inner = json.loads(ip("-n", network.name, "-6", "-j", "addr", "show", "dev", "eth0"))
    assert [a for x in inner for a in x.get("addr_info", [])] == []
    rules = subprocess.run(["nft", "list", "table", "inet", networks.table], capture_output=True, text=True).stdout
    assert "meta nfproto != ipv4 drop" in rules


async def test_remove_and_close_leave_nothing(tmp_path: Path, networks: Networks) -> None:
    uplinks = default_interfaces(await ipv4_routes())
    before = [Path(f"/proc/sys/net/ipv4/conf/{x}/forwarding").read_text() for x in uplinks]
    first = await networks.create("one")
    again = await networks.create("one")  # the same id: the earlier one is replaced
    assert [n.container_id for n in networks.existing()] == ["one"]
    assert again.namespace_path.exists() and first.name == again.name
    await networks.create("two")
    await networks.remove("one")
    await networks.remove("one")
    assert not any("one" in x or first.interface in x for x in traces(networks))
    await networks.remove("two")
    assert traces(networks) == []  # with the last one goes what was shared
    await networks.create("three")
    await networks.close()
    assert traces(networks) == []
    assert [Path(f"/proc/sys/net/ipv4/conf/{x}/forwarding").read_text() for x in uplinks] == before
    assert not (tmp_path / "machine").exists()


async def test_a_killed_workers_networks_are_found_and_those_kept_still_work(
    tmp_path: Path, world: World, dns: DnsServer, networks: Networks
) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path; from cellburst_runtime.network import Networks\n"
        "async def main():\n"
        "    n = Networks(Path(sys.argv[1]), upstreams=[], machine_folder=Path(sys.argv[2]))\n"
        "    await n.create('kept'); await n.create('lost'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "machine")
    )
    assert await asyncio.wait_for(killed.wait(), 30) == -9
    assert {n.container_id for n in networks.existing()} == {"kept", "lost"}
    assert await networks.collect_garbage({"kept"}) == ["lost"]
    (kept,) = networks.existing()
    assert await reached(kept, (PUBLIC, PORT), (kept.nameserver, 53)) == [
        f"{kept.nameserver}:53",
        f"{PUBLIC}:{PORT}",
    ]
    assert await reached(await networks.create("new"), (PUBLIC, PORT)) == [f"{PUBLIC}:{PORT}"]
    assert sorted(await networks.collect_garbage(set())) == ["kept", "new"]
    assert traces(networks) == []


async def test_two_installations_do_not_meet(tmp_path: Path, world: World, networks: Networks) -> None:
    other = Networks(tmp_path / "other", upstreams=[], machine_folder=tmp_path / "machine")
    try:
        mine, its = await networks.create("same"), await other.create("same")
        assert mine.address != its.address
        assert await reached(mine, (its.gateway_address, 53)) == []
        await other.close()
        assert await reached(mine, (PUBLIC, PORT)) == [f"{PUBLIC}:{PORT}"]
        assert traces(other) == []
    finally:
        await other.close()


async def test_a_firewall_that_drops_by_default_lets_ours_through_and_keeps_no_rule(
    world: World, networks: Networks
) -> None:
    table = f"wall{os.getpid()}"
    others = f'iifname != "cb{networks.tag}*" oifname != "cb{networks.tag}*" accept'  # so that the test harms nobody
    script = (
        f"table ip {table} {{\n"
        f"  chain forward {{ type filter hook forward priority 5; policy drop; {others}; }}\n"
        f"  chain input {{ type filter hook input priority 5; policy drop; {others.replace('oif', 'iif')}; }}\n}}\n"
    )
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
    try:
        network = await networks.create("one")
        want = [f"{network.nameserver}:53", f"{PUBLIC}:{PORT}"]
        assert await reached(network, (PUBLIC, PORT), (network.nameserver, 53)) == want
        await networks.close()
        rest = subprocess.run(["nft", "list", "table", "ip", table], check=True, capture_output=True, text=True).stdout
        assert networks.table not in rest
    finally:
        subprocess.run(["nft", "delete", "table", "ip", table], check=True)


async def test_a_create_that_fails_leaves_nothing(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(address: str) -> None:
        raise OSError(f"{address} is taken")

    monkeypatch.setattr(networks._resolver, "listen", refuse)
    with pytest.raises(OSError, match="is taken"):
        await networks.create("one")
    assert networks.existing() == []
    await networks.close()
    assert traces(networks) == []


async def test_one_that_was_begun_is_the_one_that_is_given(networks: Networks) -> None:
    networks.begin("one")
    networks.begin("one")
    network = await networks.create("one")
    assert [n.name for n in networks.existing()] == [network.name]
    assert await networks.create("one") != network or [n.name for n in networks.existing()] == [network.name]
    await networks.remove("one")
    assert traces(networks) == []


@pytest.mark.parametrize("made", [False, True])
async def test_one_that_was_begun_and_is_not_wanted_leaves_nothing(networks: Networks, made: bool) -> None:
    async def settled() -> list[str]:
        """What there is when nothing is being made any more."""
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=30)
        return [n.container_id for n in networks.existing()]

    networks.begin("one")
    if made:
        assert await settled() == ["one"]
    await networks.remove("one")
    assert await settled() == []
    networks.begin("two")
    await networks.close()
    assert await settled() == []
    assert traces(networks) == []


async def test_an_error_of_one_that_was_begun_is_raised_where_it_is_asked_for(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(address: str) -> None:
        raise OSError(f"{address} is taken")

    monkeypatch.setattr(networks._resolver, "listen", refuse)
    networks.begin("one")
    with pytest.raises(OSError, match="is taken"):
        await networks.create("one")
    networks.begin("two")
    await networks.remove("two")  # nobody asked: it is not raised anywhere
    assert networks.existing() == []


@pytest.mark.parametrize("bad", ["", "../x", "a b", "-a", "x" * 200])
async def test_a_bad_id_is_refused(networks: Networks, bad: str) -> None:
    with pytest.raises(Exception, match="container id"):
        await networks.create(bad)


async def test_a_pool_that_a_route_covers_is_passed_over(world: World, networks: Networks) -> None:
    ip("route", "add", "100.96.0.0/13", "via", PUBLIC)
    try:
        assert (await networks.create("one")).address.startswith("10.213.")
    finally:
        ip("route", "del", "100.96.0.0/13", "via", PUBLIC)


def test_every_pool_is_closed_to_containers() -> None:
    import ipaddress

    closed = [ipaddress.ip_network(c) for c in CLOSED_RANGES]
    assert all(any(ipaddress.ip_network(p).subnet_of(c) for c in closed) for p in module.POOLS)  # type: ignore[arg-type]


def test_installations_that_come_and_go_at_once_lose_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "ipv4" / "conf" / "up0" / "forwarding"
    switch.parent.mkdir(parents=True)
    switch.write_text("0")
    (tmp_path / "ipv4" / "ip_forward").write_text("0")
    monkeypatch.setattr(network_host, "_IPV4", tmp_path / "ipv4")
    folder = tmp_path / "machine"

    def come_and_go(owner: str) -> int:
        kept = 0
        forwarding = network_host.Forwarding(owner, folder)
        for _ in range(100):
            forwarding.on(["up0"])
            kept += owner in json.loads((folder / "forwarding.json").read_text())["up0"]
            forwarding.off()
        return kept

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(come_and_go, "abcd")) == [100] * 4
    assert not folder.exists() and switch.read_text() == "0"
