"""What is installed in an environment, by name and version, and how two such lists differ. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_DISTRIBUTION = re.compile(r"^(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py[\d.]+)?\.(?:dist|egg)-info$")


def packages_named(entries: Iterable[str]) -> dict[str, str]:
    """Packages by the names of what lies in a folder of `sys.path`; names are lower case with `-`."""
    found: dict[str, str] = {}
    for entry in sorted(entries):
        match = _DISTRIBUTION.match(entry)
        if match:
            found.setdefault(match["name"].replace("_", "-").lower(), match["version"])
    return found


def package_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """A line for each package that differs, by name: "numpy 2.2.3 -> 2.3.0", "x 1.0 installed", "y 2.0 removed"."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None:
            lines.append(f"{name} {after} installed")
        else:
            lines.append(f"{name} {before} -> {after}" if after is not None else f"{name} {before} removed")
    return lines
