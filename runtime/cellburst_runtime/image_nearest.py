"""When a frozen package cannot be had for an image: which one it is, and the nearest versions that can be.

Frozen packages ("six==1.17.0", without their dependencies) come from somebody's environment, which may have them from elsewhere:
a version that was withdrawn, one for another system, a package of the company's own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, from_info

FROZEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")
# What uv says of a requirement that no index can meet: the version is not there, has no file for this system, or nothing of that
# name is there at all.
_SAID = re.compile(
    r"(?:no version of |Because )(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:==(?P<version>\S+?))?"
    r"(?: and you require| has no | was not found | is unusable)"
)
_INSTALLS = re.compile(r"^\s*\+ (\S+)==(\S+?)\s*$", re.MULTILINE)

# Runs `uv pip install` with these words and changes nothing; what it said, "" where it failed.
Try = Callable[[Sequence[str]], Awaitable[str]]


def _plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_frozen(packages: Sequence[str]) -> bool:
    """Whether all that is to be installed is named with its version."""
    return bool(packages) and all(FROZEN.fullmatch(text) or " @ " in text for text in packages)


def missing_of(packages: Sequence[str], output: str) -> tuple[str, str] | None:
    """The name and version of the package that uv says cannot be had; None where it failed for something else."""
    frozen = (text.split("==", 1) for text in packages if FROZEN.fullmatch(text))
    wanted = {_plain(name): version for name, version in frozen}
    for found in _SAID.finditer(" ".join(output.split())):
        version = wanted.get(_plain(found["name"]), "")
        if version and found["version"] in (None, version):
            return found["name"], version
    return None


async def nearest(name: str, version: str, tries: Try) -> list[str]:
    """The last version before it and the first one after it that can be had, as far as there are such."""
    public = version.partition("+")[0]  # a local part ("+cu121") cannot be compared with
    found: list[str] = []
    for words in (["--", f"{name}<={public}"], ["--resolution", "lowest-direct", "--", f"{name}>{public}"]):
        said = await tries(words)
        installs = [got for which, got in _INSTALLS.findall(said) if _plain(which) == _plain(name)]
        found += [got for got in installs if got != version and got not in found]
    return found


async def with_nearest(why: CellburstError, packages: Sequence[str], tries: Try) -> CellburstError:
    """The error of a failed installation; where a frozen package cannot be had, with its name and the nearest that can."""
    missing = missing_of(packages, why.info.detail.get("output", "")) if why.code is ErrorCode.IMAGE_BUILD else None
    if missing is None:
        return why
    name, version = missing
    others = await nearest(name, version, tries)
    words = f"the nearest that can: {', '.join(others)}" if others else "nor can another version of it"
    advice = (
        f"`%pip install {name}=={others[0]}` here" if others else f"`%pip uninstall {name}` here if it is not needed"
    )
    info = msgspec.structs.replace(
        why.info, message=f"{name} {version} cannot be had for this image; {words}\n{why.info.message}",
        next=f"{advice}, then run it again; or give an image= without it",
        detail={**why.info.detail, "package": name, "nearest": ", ".join(others)},
    )  # fmt: skip
    return from_info(info)
