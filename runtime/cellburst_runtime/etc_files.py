"""The small files of a container's `/etc`, made up rather than shown: they say who the user is and nothing of the host.

Only the linker's cache, OpenSSL's and the resolver-free configuration files that programs read are copied from this
machine, since they describe the libraries under `/usr` that the container sees.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from .network_rules import NAMESERVER

_SHELL = "/bin/bash"
_FIXED_PEOPLE = (("root", 0, "/root"), ("daemon", 1, "/usr/sbin"), ("nobody", 65534, "/nonexistent"))
_FIXED_GROUPS = (("root", 0), ("daemon", 1), ("tty", 5), ("users", 100), ("nogroup", 65534))
# Copied as they are: path and the most bytes that are taken.
_COPIED = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/mime.types",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/services",
    "/etc/protocols",
    "/etc/locale.alias",
    "/etc/os-release",
    "/etc/debian_version",
    "/etc/bash.bashrc",
    "/etc/inputrc",
)
_MOST_COPY_BYTES = 4 << 20  # an ld.so.cache of a large desktop is 300 KB; more than this is no configuration file


def passwd(user: str, uid: int, gid: int, home: str) -> bytes:
    """`/etc/passwd` with the container's user, so that `getpass.getuser()` and `~` work."""
    lines = [
        f"{name}:x:{n}:{n}:{name}:{folder}:/usr/sbin/nologin"
        for name, n, folder in _FIXED_PEOPLE
        if n != uid and name != user
    ]
    return "\n".join([*lines, f"{_field(user)}:x:{uid}:{gid}:{_field(user)}:{_field(home)}:{_SHELL}", ""]).encode()


def group(user: str, gid: int) -> bytes:
    """`/etc/group` with the user's own group."""
    lines = [f"{name}:x:{n}:" for name, n in _FIXED_GROUPS if n != gid and name != user]
    return "\n".join([*lines, f"{_field(user)}:x:{gid}:", ""]).encode()


def hosts(hostname: str) -> bytes:
    """`/etc/hosts`: localhost and the container's own name."""
    return f"127.0.0.1\tlocalhost\n127.0.1.1\t{_field(hostname)}\n::1\tlocalhost ip6-localhost ip6-loopback\n".encode()


def nsswitch_conf() -> bytes:
    """`/etc/nsswitch.conf` without services that live outside the container (systemd, mDNS, LDAP)."""
    return b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n"


def resolv_conf(nameserver: str = NAMESERVER) -> bytes:
    """`/etc/resolv.conf` naming one server: ours, which has the same address in every container.

    Without a network there is no route to it, so names fail at once.
    """
    return f"nameserver {nameserver}\noptions timeout:3 attempts:2 edns0\n".encode()


def machine_id() -> bytes:
    """A new `/etc/machine-id`: containers neither share one nor show the host's."""
    return f"{secrets.token_hex(16)}\n".encode()


def zone_file(zone: str) -> Path | None:
    """The compiled time zone file of TZ's value or, when that is empty, of this machine; None if there is none."""
    name = zone.removeprefix(":")
    if name and not name.startswith("/") and ".." not in name:
        found = Path("/usr/share/zoneinfo") / name
        return found if found.is_file() else None
    local = Path("/etc/localtime")
    return local.resolve() if local.exists() else None


def zone_name() -> str:
    """This machine's time zone by name ("Europe/Berlin"), or "" where only its file is known."""
    local = Path("/etc/localtime")
    parts = str(local.resolve()).partition("/zoneinfo/") if local.exists() else ("", "", "")
    return parts[2]


def etc_files(
    *, user: str, uid: int, gid: int, home: str, hostname: str, zone: str = "", nameserver: str = NAMESERVER
) -> dict[str, bytes]:
    """All of them: path -> content."""
    files = {path: data for path in _COPIED if (data := _copy(path)) is not None}
    found = zone_file(zone)
    data = _copy(str(found)) if found is not None else None
    if data is not None:
        files["/etc/localtime"] = data
    name = zone.removeprefix(":") or zone_name()
    if name and not name.startswith("/"):
        files["/etc/timezone"] = f"{_field(name)}\n".encode()
    return files | {
        "/etc/passwd": passwd(user, uid, gid, home),
        "/etc/group": group(user, gid),
        "/etc/hosts": hosts(hostname),
        "/etc/hostname": f"{_field(hostname)}\n".encode(),
        "/etc/nsswitch.conf": nsswitch_conf(),
        "/etc/resolv.conf": resolv_conf(nameserver),
        "/etc/machine-id": machine_id(),
    }


def loader_folders(conf: str = "/etc/ld.so.conf") -> list[str]:
    """Folders that the dynamic linker is configured with (`ld.so.conf` and what it includes) and that exist."""
    found: list[str] = []
    for line in _conf_lines(Path(conf), depth=0):
        if line.startswith("/") and Path(line).is_dir():
            found.append(line)
    return list(dict.fromkeys(found))


def _conf_lines(path: Path, *, depth: int) -> Iterable[str]:
    if depth > 3:
        return
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith("include "):
            pattern = line.removeprefix("include ").strip()
            base = Path(pattern).parent if pattern.startswith("/") else path.parent / Path(pattern).parent
            for included in sorted(base.glob(Path(pattern).name)):
                yield from _conf_lines(included, depth=depth + 1)
        elif line:
            yield line


def _copy(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_COPY_BYTES:
                return None
            return file.read(_MOST_COPY_BYTES)
    except OSError:
        return None


def _field(text: str) -> str:
    """A value that cannot break out of its field or line."""
    return "".join(c for c in text if c.isprintable() and c != ":" and not c.isspace()) or "user"
