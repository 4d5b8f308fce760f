"""Collects the places of a mirror: real folders to bind and the symbolic links that lead to them.

Every wanted path is walked component by component. Each symbolic link on the way is kept under its own name, and what
is bound is the real folder at its real path, so that in the container every name resolves exactly as on the host (a
venv's `pyvenv.cfg` is found through its links). Links below the container's memory file systems (its home, `/tmp`), which
start empty, cannot be made beforehand: there what is wanted is bound under its name as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .engine import Mount
from .mirror_rules import homes_with, is_below, refusal, secrets_in

_MOST_HOPS = 40  # the kernel's own limit on symbolic links in one path (ELOOP)
_MASK_BYTES = 4096  # an empty folder that hides another needs no more
_MEMORY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - the engine's own memory file systems, beside the home
_STORES = ("/nix/store", "/gnu/store")  # everything there refers to everything else by full path
EMPTY_FILE = str(Path(__file__).with_name("py.typed"))  # shown in place of a masked file


@dataclass(frozen=True)
class Hop:
    """A symbolic link on the way of a path: where it really lies, its target, and the whole path as named from it."""

    link: str
    target: str
    named: str


def walk(path: str) -> tuple[list[Hop], str]:
    """The symbolic links on the way of an absolute path, and the real path."""
    hops: list[Hop] = []
    here = "/"
    todo = [part for part in path.split("/") if part][::-1]
    while todo:
        part = todo.pop()
        if part == ".":
            continue
        if part == "..":
            here = os.path.dirname(here)  # noqa: PTH120 - text of a path, not a path to be opened
            continue
        step = f"{here.rstrip('/')}/{part}"
        if not os.path.islink(step) or len(hops) >= _MOST_HOPS:  # noqa: PTH114
            here = step
            continue
        target = os.readlink(step)  # noqa: PTH115
        hops.append(Hop(step, target, "/".join([step, *todo[::-1]])))
        todo += [p for p in target.split("/") if p][::-1]
        here = "/" if target.startswith("/") else here
    return hops, here


class Places:
    """What a mirror shows, as it is collected; `mounts()` and `links()` give the result."""

    def __init__(self, *, home: str, private: Sequence[str], notebook: str) -> None:
        self._home = home  # real, and an own memory file system in the container
        self._homes = homes_with(home)
        self._private = tuple(private)
        self._notebook = notebook  # real folder that part of the engine shows, or ""
        self._binds: dict[str, bool] = {}  # real path -> is it a source tree, to be masked
        self._links: dict[str, str] = {}  # link -> target
        self._named: dict[str, str] = {}  # a wanted path as named from a link -> that link
        self.notes: list[str] = []

    def show(self, path: str, what: str, *, source: bool = False) -> str:
        """Show `path` (and every name on its way) at its own place. Returns why not, or "".

        `source` marks people's own trees: secrets in them are masked, and they are left to the notebook's own layer
        where they lie in its folder.
        """
        if not path.startswith("/"):
            return f"{what} {path} is not an absolute path"
        hops, real = walk(path)
        if not Path(real).is_dir() and not Path(real).is_file():
            return f"{what} {path} does not exist"
        if source and self._notebook and is_below(real, self._notebook):
            self.name(path)
            return ""
        store = next((s for s in _STORES if is_below(real, s)), "")
        why = refusal(real, self._homes, self._private)
        if why:
            return f"{what} {path} is not shown: {why}"
        for hop in hops:
            self._links.setdefault(hop.link, hop.target)
            self._named.setdefault(hop.named, hop.link)
        self._binds[store or real] = self._binds.get(real, True) and source
        return ""

    def name(self, path: str) -> str:
        """Keep the links on the way of a path that something else shows. Returns the real path."""
        hops, real = walk(path)
        for hop in hops:
            self._links.setdefault(hop.link, hop.target)
        return real

    def note(self, text: str) -> None:
        """Add a line for the user, once."""
        if text and text not in self.notes:
            self.notes.append(text)

    def shown(self, real: str) -> bool:
        """Is this real path in what is shown so far?"""
        return any(is_below(real, bind) for bind in self._binds)

    def mounts(self) -> list[Mount]:
        """Binds without those that another one already shows, what is wanted by names in memory, and masks."""
        tops = [p for p in sorted(self._binds) if not any(p != q and is_below(p, q) for q in self._binds)]
        mounts = [Mount(destination=p, source=p) for p in tops]
        for named, link in sorted(self._named.items()):
            if self._in_memory(link, tops):
                mounts.append(Mount(destination=named, source=os.path.realpath(named)))
        for top in (p for p, source in self._binds.items() if source and p in tops):
            mounts += self._masks(top, tops)
        return mounts

    def links(self) -> dict[str, str]:
        """Links of the root file system: those that no bind shows and that do not lie in memory."""
        tops = list(self._binds)
        return {
            link: target
            for link, target in sorted(self._links.items())
            if not self._in_memory(link, tops) and not any(is_below(link, p) for p in tops)
        }

    def _in_memory(self, link: str, tops: Sequence[str]) -> bool:
        """Is the link's place in an empty memory file system, so that the link will not be there?"""
        memory = any(link != place and is_below(link, place) for place in (self._home, *_MEMORY))
        return memory and not any(is_below(link, p) for p in tops)

    def _masks(self, tree: str, tops: Sequence[str]) -> list[Mount]:
        if not Path(tree).is_dir():
            return []
        masks = []
        for path, is_folder in secrets_in(tree):
            if is_folder:
                masks.append(Mount(destination=path, kind="tmpfs", size_bytes=_MASK_BYTES, mode=0o555))
            else:
                masks.append(Mount(destination=path, source=EMPTY_FILE))
        if masks:
            self.note(f"{len(masks)} place(s) that hold secrets are hidden in {tree}")
        return masks
