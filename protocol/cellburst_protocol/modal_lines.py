"""What `%%modal` lines of a notebook ask for, as far as it matters before they run. Pure; what cannot be read asks for nothing.

The lines themselves are read where they run, by the magic; here is only what a schedule has to know of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import CellburstError
from .volume_mounts import parse_volumes

USES = "cellburst"  # what the notebook's metadata says under this key holds for each of its `%%modal` cells
_NONE = "none"


def line_values(line: str) -> dict[str, str]:
    """`key=value` and `--key value` words of a line; of a key that comes twice, the last."""
    try:
        words = shlex.split(line)
    except ValueError:
        return {}
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals and word.startswith("--") and number + 1 < len(words):
            value = words[number + 1]
        if value:
            found[key] = value
    return found


def notebook_uses(notebook: Mapping[str, Any]) -> dict[str, str]:
    """`secrets` and `volumes` of the notebook's metadata, as a line would say them; nothing where it has another shape."""
    metadata = notebook.get("metadata")
    uses = metadata.get(USES) if isinstance(metadata, dict) else None
    if not isinstance(uses, dict):
        return {}
    found: dict[str, str] = {}
    volumes, secrets = uses.get("volumes"), uses.get("secrets")
    if isinstance(volumes, dict) and volumes and all(_plain(path, name) for path, name in volumes.items()):
        found["volumes"] = ",".join(f"{path}:{name}" for path, name in volumes.items())
    if isinstance(secrets, list) and secrets and all(_plain(name) for name in secrets):
        found["secrets"] = ",".join(secrets)
    return found


def asked_beside(lines: Iterable[str], uses: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Names of the secrets and of the volumes that cells with these lines will ask for, sorted."""
    secrets: set[str] = set()
    volumes: set[str] = set()
    for line in lines:
        values = {**uses, **line_values(line)}
        for word in values.get("secrets", _NONE).split(","):
            name = word.strip().partition(":")[0]
            secrets.update({name} - {"", _NONE})
        try:
            volumes.update(m.name for m in parse_volumes(values["volumes"]) if m.name) if "volumes" in values else None
        except CellburstError:
            continue  # the cell says so when it runs
    return sorted(secrets), sorted(volumes)


def _plain(*names: object) -> bool:
    """Whether names can stand in a line, in quotes."""
    return all(isinstance(name, str) and '"' not in name for name in names)
