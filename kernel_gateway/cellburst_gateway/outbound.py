"""The gateway's way to services outside: which addresses it may reach. Everything that dials out asks here first.

A URL that somebody gives (a webhook, a Vault) must not make the gateway reach what only it can: other services of its own
machine, of a private network, or a cloud's metadata service. Addresses are looked at after the name was resolved; all of
them must be permitted. Redirects are the caller's to refuse.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from cellburst_protocol.errors import ErrorCode, error

METADATA = frozenset({"169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"})


def check_url(url: str, *, allow_private: bool = False) -> list[str]:
    """The addresses that a URL's host has, if all of them may be reached. Blocks for the look-up of the name.

    `allow_private`: the operator says that the service is inside (loopback and private networks; metadata services never).
    Raises RequestError (BAD_ARGUMENT), PlatformError (UNAVAILABLE: the name has no address).
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{_shown(url)} is no address of a service", allowed="http(s)://HOST[:PORT]/..."
        )
    if parts.username or parts.password:
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"an address at {host} with a password in it",
            next="give the password where it belongs",
        )
    try:
        found = socket.getaddrinfo(host, port or (443 if parts.scheme == "https" else 80), type=socket.SOCK_STREAM)
    except OSError as why:
        raise error(
            ErrorCode.UNAVAILABLE, f"{host} cannot be found: {why.strerror or why}", next="check its name"
        ) from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        check_address(host, address, allow_private=allow_private)
    return addresses


def check_address(host: str, address: str, *, allow_private: bool = False) -> None:
    """One address of a host. Raises RequestError (BAD_ARGUMENT)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    never = ip.is_link_local or ip.is_multicast or ip.is_unspecified or (ip.is_reserved and not ip.is_loopback)
    if str(ip) in METADATA or never:
        raise _inside(host, ip, "no service outside has it")
    if not allow_private and not ip.is_global:
        raise _inside(host, ip, "it is inside: this machine or a private network")


def _inside(host: str, ip: object, why: str) -> Exception:
    return error(
        ErrorCode.BAD_ARGUMENT, f"{host} has the address {ip}, which the gateway does not dial: {why}",
        allowed="addresses of the internet",
        next="for a service of your own network the operator says allow_private = true in the gateway's configuration",
    )  # fmt: skip


def _shown(url: str) -> str:
    return repr(url if len(url) <= 120 else url[:117] + "...")
