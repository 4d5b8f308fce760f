"""The text of our nftables table: what a container's packets may reach. Pure; `network.py` applies it.

A packet from a container is judged where it enters the host, before any address translation, and again when it is
forwarded. It passes only if it carries that container's own IPv4 address and goes to a global unicast address that is
not this host's. The one thing of the host it may reach is our resolver, by port 53 of NAMESERVER: an address that is
the same in every container, so that `/etc/resolv.conf` is too, also after a restore. It is redirected to the gateway
address of the container's own link. Nothing but answers goes to a container. IPv6 is dropped altogether.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Not for containers: IANA's special-purpose IPv4 blocks (RFC 6890) but for the documentation ranges, which are
# nobody's, and cloud metadata addresses that lie outside those blocks.
CLOSED_RANGES = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "168.63.129.16/32",  # Azure's wire server: Microsoft Learn, "What is IP address 168.63.129.16?"
)

NAMESERVER = "192.0.0.53"  # of IANA's protocol assignments (RFC 6890): no host or network has it
ANY_INSTALLATION = "cb"  # starts every installation's interfaces; each one's own table judges what goes there


@dataclass(frozen=True)
class Link:
    """A container's side of the network: the host's interface and the two addresses."""

    interface: str
    address: str
    gateway: str


def table_text(table: str, prefix: str, links: Iterable[Link], opened: Iterable[str] = ()) -> str:
    """An nft script that replaces our table in one transaction. `prefix` starts the names of our interfaces.

    `opened` are interfaces that forward only because we made them: what comes from there goes to containers only, so
    that this host does not become a router for its neighbours.
    """
    ours = f'"{prefix}*"'
    closed = ", ".join(CLOSED_RANGES)
    return f"""table inet {table}
delete table inet {table}
table inet {table} {{
  set senders {{ type ifname . ipv4_addr; {_elements(f'"{x.interface}" . {x.address}' for x in links)} }}
  set addresses {{ type ipv4_addr; {_elements(x.address for x in links)} }}
  set opened {{ type ifname; {_elements(f'"{name}"' for name in opened)} }}
  set closed {{ type ipv4_addr; flags interval; elements = {{ {closed} }} }}
  chain from_container {{
    meta nfproto != ipv4 drop
    iifname . ip saddr != @senders drop
    ip daddr {NAMESERVER} meta l4proto {{ tcp, udp }} th dport 53 accept
    fib daddr type != unicast drop
    ip daddr @closed drop
  }}
  chain arrive {{
    type filter hook prerouting priority raw; policy accept;
    iifname {ours} jump from_container
  }}
  chain names {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname {ours} ip daddr {NAMESERVER} meta l4proto {{ tcp, udp }} th dport 53 redirect
  }}
  chain host {{
    type filter hook input priority filter; policy accept;
    iifname {ours} meta l4proto {{ tcp, udp }} th dport 53 accept
    iifname {ours} drop
  }}
  chain pass {{
    type filter hook forward priority filter; policy accept;
    iifname {ours} oifname {ours} drop
    iifname {ours} meta nfproto != ipv4 drop
    iifname {ours} ip daddr @closed drop
    oifname {ours} ct state != {{ established, related }} drop
    iifname @opened oifname != "{ANY_INSTALLATION}*" drop
  }}
  chain leave {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @addresses oifname != {ours} masquerade
  }}
}}
"""


def add_text(table: str, link: Link, opened: Iterable[str] = ()) -> str:
    """An nft script that lets one more container in and states anew which interfaces we opened."""
    names = ", ".join(f'"{name}"' for name in opened)
    return (
        f"flush set inet {table} opened\n"
        + (f"add element inet {table} opened {{ {names} }}\n" if names else "")
        + f'add element inet {table} senders {{ "{link.interface}" . {link.address} }}\n'
        f"add element inet {table} addresses {{ {link.address} }}\n"
    )


def remove_text(table: str, link: Link) -> str:
    """An nft script that takes a container's elements out."""
    return (
        f'delete element inet {table} senders {{ "{link.interface}" . {link.address} }}\n'
        f"delete element inet {table} addresses {{ {link.address} }}\n"
    )


def opening_text(family: str, table: str, chain: str, hook: str, prefix: str, comment: str) -> str:
    """An nft script that lets our packets through a chain of someone else's that drops by default (Docker's, ufw's).

    Our own table still judges them: an accept ends only the chain it stands in.
    """
    place = f"insert rule {family} {table} {chain}"
    note = f'comment "{comment}"'
    if hook == "input":
        return f'{place} iifname "{prefix}*" meta l4proto {{ tcp, udp }} th dport 53 counter accept {note}\n'
    return (
        f'{place} iifname "{prefix}*" counter accept {note}\n'
        f'{place} oifname "{prefix}*" ct state established,related counter accept {note}\n'
    )


def _elements(items: Iterable[str]) -> str:
    text = ", ".join(items)
    return f"elements = {{ {text} }}" if text else ""
