"""A network of its own for each container: outbound to the internet, and to nothing else.

A container gets a namespace, a veth pair and a /30 of a private range that this host does not use. What it may reach
is decided on the host by one nftables table (`network_rules`); names are answered by our resolver (`resolver`), which
listens on its gateway address and is asked under one constant address.

Everything carries the installation's tag (a hash of its run folder) in its name, and a
namespace's name carries its container and address: after a SIGKILL the next worker finds all of it by name.

Tells gVisor's `--network=sandbox` all it needs: it takes addresses and the default route off the interface in the
namespace, so a namespace is used once.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from . import network_rules as rules
from .network_host import (
    MACHINE_FOLDER,
    Forwarding,
    command,
    default_interfaces,
    disable_ipv6,
    ipv4_routes,
    set_interface,
)
from .resolver import Resolver
from .together import both

NAMESPACES = Path("/run/netns")
INSIDE = "eth0"
# Looked through in order for a /30 that no route of this host covers. Containers may reach none of these ranges.
POOLS = ("100.96.0.0/14", "10.213.0.0/16", "172.29.0.0/16", "192.168.213.0/24")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class ContainerNetwork:
    """A container's network: its namespace, its address (with "/30") and the host's end of the link."""

    container_id: str
    namespace_path: Path
    name: str
    address: str
    gateway_address: str
    nameserver: str
    interface: str  # the host's end


class Networks:
    """The networks of one installation's containers. One worker uses it, on its event loop.

    `upstreams` are the resolver's name servers ((address, port)); without them those of the host's resolv.conf.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        upstreams: Sequence[tuple[str, int]] | None = None,
        machine_folder: Path = MACHINE_FOLDER,
    ) -> None:
        self.tag = hashlib.sha256(os.fsencode(run_folder.resolve())).hexdigest()[:6]
        self.table = f"cellburst_{self.tag}"
        self._prefix = f"cb{self.tag}"  # with 7 digits or letters more it is an interface's 15 characters
        self._namespace_prefix = f"cellburst-{self.tag}-"
        self._resolver = Resolver(upstreams)
        self._forwarding = Forwarding(self.tag, machine_folder)
        self._lock = asyncio.Lock()
        self._begun: dict[str, asyncio.Task[ContainerNetwork]] = {}  # by `begin`; nobody has asked for them yet
        self._installed = False  # our table, by this process: one left by an older version may have other rules

    async def probe(self) -> str:
        """Why networks cannot be made here, or "" if they can: makes one namespace, checks the rules, removes it."""
        if os.geteuid() != 0:
            return "making networks needs root"
        missing = [p for p in ("ip", "nft") if shutil.which(p) is None]
        if missing:
            return f"not installed: {', '.join(missing)} (packages iproute2, nftables)"
        name = f"{self._namespace_prefix}probe"
        try:
            await command("ip", "netns", "add", name)
            await command("nft", "--check", "-f", "-", text=rules.table_text(self.table, self._prefix, ()))
        except (CellburstError, TimeoutError) as why:
            return str(why)
        finally:
            await command("ip", "netns", "del", name, check=False)
        return ""

    def begin(self, container_id: str) -> None:
        """Start making a container's network, which `create` then gives: the container's folder is made meanwhile. Whoever
        calls this sees to a `remove`, also where `create` is never called."""
        if container_id not in self._begun:
            self._begun[container_id] = asyncio.create_task(self._create(container_id))

    async def create(self, container_id: str) -> ContainerNetwork:
        """Make a container's network and start answering its names. One that it already had is removed first.

        Raises PlatformError (START_FAILED) and leaves nothing behind then; also when cancelled.
        """
        begun = self._begun.pop(container_id, None)
        return await (begun if begun is not None else self._create(container_id))

    async def _create(self, container_id: str) -> ContainerNetwork:
        if not _ID.fullmatch(container_id):
            raise error(ErrorCode.BAD_ARGUMENT, f"{container_id!r} is no container id", allowed=_ID.pattern)
        async with self._lock:
            await self._remove(container_id)
            routes = await ipv4_routes()
            network = self._network(container_id, self._free_address(routes))
            try:
                await self._build(network, default_interfaces(routes))
            except BaseException:
                await asyncio.shield(self._remove_network(network))
                raise
            return network

    async def remove(self, container_id: str) -> None:
        """Remove a container's network; nothing happens if it has none. Its processes must have ended.

        With the last one goes everything shared: the table, rules in others' chains, forwarding that we switched on.
        """
        await self._give_up(self._begun.pop(container_id, None))
        async with self._lock:
            await self._remove(container_id)
            if not self.existing():
                await self._remove_shared()

    async def collect_garbage(self, keep: set[str]) -> list[str]:
        """Remove the networks of containers not in `keep` (a dead worker's), serve those kept. Ids of those removed."""
        async with self._lock:
            gone = [n for n in self.existing() if n.container_id not in keep]
            for network in gone:
                await self._remove_network(network)
            kept = self.existing()
            if kept:
                await self._install_table(self._forwarding.on(default_interfaces(await ipv4_routes())))
                for network in kept:
                    await self._resolver.listen(network.gateway_address)
            else:
                await self._remove_shared()
            return [n.container_id for n in gone]

    async def close(self) -> None:
        """Remove every network of this installation and everything that was set up for them."""
        while self._begun:
            await self._give_up(self._begun.popitem()[1])
        async with self._lock:
            for network in self.existing():
                await self._remove_network(network)
            await self._resolver.close()
            await self._remove_shared()

    def existing(self) -> list[ContainerNetwork]:
        """The networks that are there now, whoever made them for this installation: read from the namespaces' names."""
        found = []
        for path in sorted(NAMESPACES.glob(f"{self._namespace_prefix}*")) if NAMESPACES.is_dir() else []:
            gateway, _, container_id = path.name.removeprefix(self._namespace_prefix).partition("-")
            if container_id and re.fullmatch(r"[0-9a-f]{8}", gateway):
                found.append(self._network(container_id, ipaddress.IPv4Address(int(gateway, 16))))
        return found

    def _network(self, container_id: str, gateway: ipaddress.IPv4Address) -> ContainerNetwork:
        name = f"{self._namespace_prefix}{int(gateway):08x}-{container_id}"
        return ContainerNetwork(
            container_id=container_id,
            namespace_path=NAMESPACES / name,
            name=name,
            address=f"{gateway + 1}/30",
            gateway_address=str(gateway),
            nameserver=rules.NAMESERVER,
            # The last 24 bits tell a gateway from all others of a pool.
            interface=f"{self._prefix}{int(gateway) & 0xFFFFFF:06x}",
        )

    def _free_address(self, routes: Sequence[dict[str, str]]) -> ipaddress.IPv4Address:
        """The gateway address of a /30 that no route of this host and no container of ours has."""
        used = [ipaddress.IPv4Network(r["dst"], strict=False) for r in routes if r.get("dst", "default") != "default"]
        taken = {ipaddress.IPv4Address(n.gateway_address) for n in self.existing()}
        for pool in map(ipaddress.IPv4Network, POOLS):
            near = [u for u in used if u.overlaps(pool)]
            if any(u.supernet_of(pool) for u in near):
                continue
            count = pool.num_addresses // 4
            start = int(self.tag, 16) % count  # installations begin apart, so that two rarely race for one place
            for step in range(count):
                base = pool.network_address + 4 * ((start + step) % count)
                block = ipaddress.IPv4Network((base, 30))
                if base + 1 not in taken and not any(u.overlaps(block) for u in near):
                    return base + 1
        raise error(ErrorCode.START_FAILED, f"no free private addresses for a container: this host uses all of {POOLS}")

    async def _build(self, network: ContainerNetwork, uplinks: list[str]) -> None:
        # Each program is a process to start: what can be done in one or at the same time is.
        await both(self._let_in(_link(network), self._forwarding.on(uplinks)), _make_link(network))
        # No packet passes before the rules stand: both ends of the link are down until here.
        await both(
            command("ip", "-batch", "-", text=_outside_text(network)),
            command("ip", "-n", network.name, "-batch", "-", text=_inside_text(network)),
        )
        set_interface(network.interface, forwarding=1)
        await self._resolver.listen(network.gateway_address)

    async def _let_in(self, link: rules.Link, opened: Sequence[str]) -> None:
        if not await self._add_to_table(link, opened):
            await self._install_table(opened, link)

    async def _give_up(self, begun: asyncio.Task[ContainerNetwork] | None) -> None:
        """Let go of a network that nobody asked for: it leaves nothing when it fails, and is removed when it was made."""
        if begun is not None:
            begun.cancel()
            await asyncio.wait({begun})
            if not begun.cancelled():
                begun.exception()  # seen: whoever prepared the container has an error of its own

    async def _remove(self, container_id: str) -> None:
        for network in self.existing():
            if network.container_id == container_id:
                await self._remove_network(network)

    async def _remove_network(self, network: ContainerNetwork) -> None:
        await self._resolver.unlisten(network.gateway_address)
        await command("ip", "link", "del", network.interface, check=False)
        await command("ip", "netns", "del", network.name, check=False)
        await command("nft", "-f", "-", text=rules.remove_text(self.table, _link(network)), check=False)

    async def _add_to_table(self, link: rules.Link, opened: Sequence[str]) -> bool:
        """Let a container in, if this process's table is there (a firewall's reload may have flushed it)."""
        if not self._installed:
            return False
        try:
            await command("nft", "-f", "-", text=rules.add_text(self.table, link, opened))
        except CellburstError:
            return False
        return True

    async def _install_table(self, opened: Sequence[str], *more: rules.Link) -> None:
        """Set our table up anew, in one transaction, and open others' chains that would drop our packets."""
        links = {_link(n) for n in self.existing()} | set(more)
        ordered = sorted(links, key=lambda x: x.address)
        await command("nft", "-f", "-", text=rules.table_text(self.table, self._prefix, ordered, opened))
        self._installed = True
        await self._close_others()
        for chain in await self._chains():
            if (
                chain.get("hook") in ("forward", "input")
                and chain.get("policy") == "drop"
                and chain["family"] in ("ip", "inet")
            ):
                text = rules.opening_text(
                    chain["family"], chain["table"], chain["name"], chain["hook"], self._prefix, self.table
                )
                await command("nft", "-f", "-", text=text)

    async def _remove_shared(self) -> None:
        if shutil.which("nft") is None or os.geteuid() != 0:
            return
        self._installed = False
        await self._close_others()
        await command("nft", "delete", "table", "inet", self.table, check=False)
        await self._remove_strays()
        self._forwarding.off()

    async def _remove_strays(self) -> None:
        """Interfaces of ours without a namespace name: what a kill between two steps leaves."""
        for link in json.loads(await command("ip", "-j", "link", "show", "type", "veth") or "[]"):
            if link.get("ifname", "").startswith(self._prefix):
                await command("ip", "link", "del", link["ifname"], check=False)

    async def _close_others(self) -> None:
        """Take our rules out of others' chains."""
        for item in json.loads(await command("nft", "-j", "-a", "list", "ruleset") or "{}").get("nftables", []):
            rule = item.get("rule", {})
            if rule.get("comment") == self.table:
                place = (rule["family"], rule["table"], rule["chain"], "handle", str(rule["handle"]))
                await command("nft", "delete", "rule", *place, check=False)

    async def _chains(self) -> list[dict[str, str]]:
        listed = json.loads(await command("nft", "-j", "list", "chains") or "{}").get("nftables", [])
        return [i["chain"] for i in listed if "chain" in i and i["chain"]["table"] != self.table]


def _link(network: ContainerNetwork) -> rules.Link:
    return rules.Link(network.interface, network.address.partition("/")[0], network.gateway_address)


async def _make_link(network: ContainerNetwork) -> None:
    """The namespace and the veth pair, both ends down."""
    text = f"netns add {network.name}\nlink add {network.interface} type veth peer name {INSIDE} netns {network.name}\n"
    await command("ip", "-batch", "-", text=text)
    set_interface(
        network.interface,
        rp_filter=1,
        accept_redirects=0,
        send_redirects=0,
        proxy_arp=0,
        route_localnet=0,
        arp_ignore=1,
    )
    disable_ipv6(network.interface)


def _outside_text(network: ContainerNetwork) -> str:
    outside = network.interface
    return f"addr add {network.gateway_address}/30 dev {outside}\nlink set {outside} alias {network.container_id} up\n"


def _inside_text(network: ContainerNetwork) -> str:
    # The route needs no link that is up at its other end.
    return (
        f"link set lo up\nlink set {INSIDE} addrgenmode none\naddr add {network.address} dev {INSIDE}\n"
        f"link set {INSIDE} up\nroute add default via {network.gateway_address} dev {INSIDE}\n"
    )
