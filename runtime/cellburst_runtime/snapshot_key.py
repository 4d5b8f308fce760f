"""The key of a snapshot: all that must be equal where it is restored, by name, so that a mismatch can be explained."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import blake3

from cellburst_protocol.messages import MirrorSpec

from .engine import Mount

HASH_LETTERS = 16  # of a part that is a hash: 64 bits tell two environments of one machine apart
# Made new for each container, or the container's own after a restore.
_FILES_NOT_COMPARED = frozenset({"/etc/resolv.conf", "/etc/machine-id"})
# Read when something is printed, so the restored process is simply given the new value; and what scikit-learn sets in every
# process that imports it: the notebook's own kernel has it from the first cell on whose names come home.
_VARIABLES_NOT_COMPARED = frozenset(
    {"TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
)
_CPU_FIELDS = re.compile(r"^(model name|cpu family|model|stepping|flags|Features|CPU part)\s*:\s*(.*)$", re.MULTILINE)


def snapshot_key(parts: Mapping[str, str]) -> str:
    """The key in hex; "" for no parts."""
    return blake3.blake3(_canonical(dict(parts))).hexdigest() if parts else ""


def image_parts(image: MirrorSpec, packages: Path) -> dict[str, str]:
    """What of the image and of ours must be equal. `packages` holds `cellburst_runner`. Blocks for milliseconds."""
    variables = {k: v for k, v in image.environment.items() if k not in _VARIABLES_NOT_COMPARED}
    return {
        "image": f"{image.executable} {image.python_version} {image.identity[:HASH_LETTERS]}",
        # Libraries and the interpreter read most variables once, when they are loaded.
        "variables": _short(_canonical(variables)),
        "runner": _runner_text(packages / "cellburst_runner"),
        "machine": machine_text(),
    }


def built_image_parts(image: str, instance: str, environment: Mapping[str, str], packages: Path) -> dict[str, str]:
    """The same for a container of a built image, by its id and `instance`: a layer that was made anew is another. `environment`
    is the container's."""
    variables = {k: v for k, v in environment.items() if k not in _VARIABLES_NOT_COMPARED}
    return {
        "image": f"{image[:HASH_LETTERS]} {instance[:HASH_LETTERS]}",
        "variables": _short(_canonical(variables)),
        "runner": _runner_text(packages / "cellburst_runner"),
        "machine": machine_text(),
    }


def machine_text() -> str:
    """This machine's root folder, without the boot: a snapshot is good after a restart, but not in another file system."""
    root = Path("/").stat()
    return f"{root.st_dev}:{root.st_ino}"


def mounts_text(mounts: Sequence[Mount]) -> str:
    """A hash of the places, kinds, sizes, modes and handles of all mounts; not of what lies there."""
    shown = [
        (
            m.destination,
            m.kind,
            m.read_only,
            m.size_bytes if m.kind == "tmpfs" else 0,
            m.mode if m.kind == "tmpfs" else 0,
            m.own_handles,
        )
        for m in mounts
    ]
    return f"{len(shown)} mounts {_short(_canonical(sorted(shown)))}"


def files_text(root_files: Mapping[str, bytes], links: Mapping[str, str]) -> str:
    """A hash of the root file system's small files and links."""
    files = {p: blake3.blake3(c).hexdigest() for p, c in root_files.items() if p not in _FILES_NOT_COMPARED}
    return f"{len(files)} files, {len(links)} links {_short(_canonical([files, dict(links)]))}"


@cache
def cpu_text() -> str:
    """The model of this machine's first CPU and a hash of its features, from /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    fields = dict(_CPU_FIELDS.findall(first))
    return f"{fields.get('model name', os.uname().machine)} {_short(_canonical(fields))}"


def _runner_text(folder: Path) -> str:
    sources = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.py"))}
    return _short(_canonical({name: blake3.blake3(content).hexdigest() for name, content in sources.items()}))


def _short(content: bytes) -> str:
    return blake3.blake3(content).hexdigest()[:HASH_LETTERS]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
