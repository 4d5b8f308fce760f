"""What of this machine a mirror never shows: places by name, and masks for secrets that lie in a shown source tree."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from .masks import SECRET_NAMES

_FIRST_PERSON_UID = 1000  # below it passwd lists services, whose "homes" are such as /usr/sbin
# Shown neither whole nor in part: kernels, devices, sockets, configuration and the machine's own state.
_CLOSED = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/boot",
    "/etc",
    "/var/run",
    "/lost+found",
    "/var/lib/docker",
    "/var/log",
    "/var/spool",
)
# Too wide to show whole, though folders in them may be.
_WIDE = ("/", "/home", "/root", "/var", "/var/lib", "/tmp", "/var/tmp")  # noqa: S108
# Read-only configuration of /etc that programs need, exempt from the above.
ETC_FOLDERS = (
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/fonts",
    "/etc/ld.so.conf.d",
    "/etc/OpenCL/vendors",
)
_MOST_MASK_ENTRIES = 5000  # of one source tree; a look that stays under 20 ms
_MASK_DEPTH = 3  # where projects keep such files
_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages", ".git"})


def is_below(path: str, folder: str) -> bool:
    """Is `path` the folder itself or something in it? Both absolute and normalised."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def is_secret_name(name: str) -> bool:
    """Is this the name of a file or folder that holds credentials (`.ssh`, `.env`, `.env.local`, ...)?"""
    return name in SECRET_NAMES or (
        name.startswith(".env.") and not name.endswith((".example", ".sample", ".template"))
    )


def refusal(real: str, homes: Iterable[str], private: Sequence[str]) -> str:
    """Why the path (real, normalised) is not shown, or "" if it may be."""
    if any(is_below(real, folder) for folder in ETC_FOLDERS):
        return ""
    for closed in _CLOSED:
        if is_below(real, closed):
            return f"{closed} is never shown"
    if real in _WIDE or real == "/":
        return "it is too wide to show"
    for home in homes:
        if is_below(home, real):
            return "it is a home folder" if home == real else f"it contains the home folder {home}"
    for folder in private:
        if is_below(real, folder) or is_below(folder, real):
            return "Cellburst's own data lies there"
    secret = next((part for part in Path(real).parts if is_secret_name(part)), "")
    return f"{secret} holds secrets" if secret else ""


@lru_cache(maxsize=8)
def homes_with(home: str) -> tuple[str, ...]:
    """Real home folders of people on this machine, the given one among them."""
    found = {"/root", os.path.realpath(home)} if home else {"/root"}
    for person in pwd.getpwall():
        if person.pw_uid >= _FIRST_PERSON_UID and person.pw_dir not in ("", "/") and Path(person.pw_dir).is_dir():
            found.add(os.path.realpath(person.pw_dir))
    return tuple(sorted(found - {"/"}))


def secrets_in(tree: str) -> list[tuple[str, bool]]:
    """Paths in a source tree that hold secrets, each with whether it is a folder. Looks three levels deep, boundedly."""
    found: list[tuple[str, bool]] = []
    left = _MOST_MASK_ENTRIES
    level = [tree]
    for _ in range(_MASK_DEPTH):
        below: list[str] = []
        for folder in level:
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            left -= len(entries)
            if left < 0:
                return found
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_secret_name(entry.name) and not entry.is_symlink():
                    found.append((entry.path, is_folder))
                elif is_folder and entry.name not in _SKIPPED:
                    below.append(entry.path)
        level = below
    return found
