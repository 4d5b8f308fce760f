"""The executor's side of names: what the kernel sent is set, what the cell bound or changed goes home.

A cell's walk: `missing` (which groups must be sent after all) -> `apply_modules`, `apply` -> `before_cell` -> the cell ->
`after_cell`. Groups and parts are the JSON objects of `NameGroup` and `ValuePart`; absent fields have their defaults.

What the executor remembers of a name: `_have`, the identity under which kernel and executor last agreed on its value. It is
given by the kernel (a hash) or, for what went home, by us (a random token that lies behind the group's pickle). It stays valid
when the value is changed here without going home: the kernel's copy is then the older one, and is not sent over it.
"""

from __future__ import annotations

import os
import pickle
import secrets
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from . import values_modules, values_pickle, values_share, values_shown
from .values_coming import Coming
from .values_files import read_file, write_file
from .values_shown import hidden

INLINE_BYTES = 64 * 1024  # a larger part is a file
INLINE_TOTAL_BYTES = 900 * 1024  # a message's inline parts stay under 1 MiB with room for its head
EARLY_BYTES = 16 * 1024 * 1024  # reading less takes about as long as saying so

Group = Dict[str, Any]


class ValueStore:
    """The names of one executor. `in_folder/<hash>` are blobs sent to it, `out_folder` takes the large parts it sends."""

    def __init__(self, namespace: Dict[str, Any], in_folder: str, out_folder: str) -> None:
        self.namespace = namespace
        self._in = os.fspath(in_folder)
        self._out = os.fspath(out_folder)
        self._have: Dict[str, str] = {}
        self._modules: Dict[str, str] = {}
        # name -> (id of its value, digests) when it was last looked at
        self._digests: Dict[str, Tuple[int, Tuple[str, ...]]] = {}
        self._received: Dict[Tuple[int, int], str] = {}  # buffers that just arrived: (address, size) -> hash
        self._ids: Dict[str, int] = {}
        self._kernel_python = ""
        self._tracked: List[str] = []
        self.coming = Coming(self._in)
        # told (name, size in bytes) of a large file in OUT that begins to be written
        self.on_file: Callable[[str, int], None] = lambda name, size_bytes: None

    # -- in --------------------------------------------------------------------------------------------------------

    def missing(self, groups: Sequence[Group]) -> List[str]:
        """Hashes of the groups that were not sent and are not here either."""
        return [g["hash"] for g in groups if _is_there(g) and not self._has(g)]

    def _has(self, group: Group) -> bool:
        names, known = group["names"], (group["hash"], group.get("known_as") or group["hash"])
        if all(self._modules.get(n) in known for n in names):
            return True
        return all(n in self.namespace and self._have.get(n) in known for n in names)

    def apply(self, groups: Sequence[Group], buffers: Sequence[Any]) -> List[str]:
        """Set the names of all groups that were sent, or of none. `buffers` are the inline parts in order. Returns the names.

        Raises OSError or EOFError for a blob that is not there, and whatever unpickling raises (an ImportError says which
        module this image lacks).
        """
        inline = iter(buffers)
        staged: List[Tuple[Group, Dict[str, Any]]] = []
        received: Dict[Tuple[int, int], str] = {}
        for group in groups:
            if _is_there(group):
                continue
            parts = [self._part(p, inline) for p in group["parts"]]
            values, meta, _ = values_pickle.read(parts[0], parts[1:], self.namespace, update_classes=True)
            if meta and meta.get("kind") == "modules":
                self._install(group, values)
                continue
            staged.append((group, values))
            for part, data in zip(group["parts"][1:], parts[1:]):  # noqa: B905 - Python 3.9 has no strict=
                received[(values_share.address(data), part["size_bytes"])] = part["hash"]
        names = []
        for group, values in staged:
            for name, value in values.items():
                self.namespace[name] = value
                self._have[name] = group["hash"]
                self._digests.pop(name, None)
                names.append(name)
        self._received.update(received)
        return names

    def apply_modules(self, groups: Sequence[Group], buffers: Sequence[Any]) -> List[str]:
        """Make the sent sources importable, and reload those that are loaded and have changed. Returns their names."""
        before = dict(self._modules)
        self.apply(groups, buffers)
        return [n for n, h in self._modules.items() if before.get(n) != h]

    def _install(self, group: Group, sources: Dict[str, Any]) -> None:
        values_modules.install(sources)
        for name in group["names"]:
            self._modules[name] = group["hash"]

    def _part(self, part: Dict[str, Any], inline: Iterator[Any]) -> Any:
        if part.get("at", "there") == "inline":
            return bytearray(next(inline))
        early = self.coming.take(part["hash"], part["size_bytes"])
        return early if early is not None else read_file(os.path.join(self._in, part["hash"]), part["size_bytes"])

    # -- around the cell -------------------------------------------------------------------------------------------

    def before_cell(self, used: Sequence[str], kernel_python: str = "") -> None:
        """Note what the names hold now, and to which Python they would go home ("3.11.7"; "" is this one).

        Only names whose value the kernel has, and that can be changed in place, are hashed, and only if that was not done
        after an earlier cell: what a cell changed that did not name them goes home with the next one that does.
        """
        ns = self.namespace
        self._kernel_python = kernel_python
        self._tracked = []
        for name in used:
            if name not in ns or name not in self._have or hidden(name):
                continue
            value = ns[name]
            if values_share.is_atom(value) or isinstance(value, types.ModuleType):
                continue
            known = self._digests.get(name)
            if known is None or known[0] != id(value):
                packed = self._pack(name)
                if packed is None:
                    continue
                self._digests[name] = (id(value), packed.digests(self._received))
            self._tracked.append(name)
        self._received.clear()
        self._ids = {n: id(v) for n, v in ns.items()}

    def after_cell(
        self,
        *,
        bound: Sequence[str],
        used: Sequence[str],
        deleted: Sequence[str],
        out: Sequence[str],
        home_limit_bytes: int,
        ok: bool,
    ) -> Tuple[Dict[str, Any], List[Any]]:
        """What CellDone says of names, and its inline buffers. With `ok` False nothing goes home: what was bound stays."""
        ns = self.namespace
        fresh = [n for n, v in ns.items() if self._ids.get(n) != id(v)]  # also by exec, star imports and %run
        names = [n for n in dict.fromkeys([*bound, *fresh]) if n in ns and not hidden(n)]
        if not ok:
            self._digests.clear()
            there = [self._describe(n, "not_asked") for n in names if n in fresh and n in self._have]
            return {"home": [], "stayed": [], "changed_there": there, "gone": []}, []
        for name in [n for n in self._have if n not in ns]:
            del self._have[name]
        result: Dict[str, Any] = {
            "home": [],
            "stayed": [],
            "changed_there": [],
            "gone": [n for n in deleted if n not in ns],
        }
        going, staying = self._choose(names, used, out, home_limit_bytes, result)
        return result, self._send(going, staying, result)

    def _choose(
        self, names: List[str], used: Sequence[str], out: Sequence[str], limit: int, result: Dict[str, Any]
    ) -> Tuple[Dict[str, values_share.Packed], Dict[str, values_share.Packed]]:
        """Which names go home, and which were used and are the same as before (they may share objects with the former)."""
        going: Dict[str, values_share.Packed] = {}
        same: Dict[str, values_share.Packed] = {}
        tracked = {n: self._digests[n] for n in self._tracked}
        for name in [n for n in self._digests if n in tracked or n in names or n in out or n not in self.namespace]:
            del self._digests[name]
        for name in dict.fromkeys([*names, *self._tracked, *out]):
            if name not in self.namespace:
                continue
            packed = self._pack(name, result["stayed"] if name in names or name in out else result["changed_there"])
            if packed is None:
                continue
            before = tracked.get(name)
            kept = before is not None and before[0] == id(self.namespace[name])
            if kept and before is not None:
                digests = packed.digests()
                self._digests[name] = (before[0], digests)
                if digests == before[1] and name not in out:
                    same[name] = packed
                    continue
            if packed.size_bytes <= limit or name in out:
                going[name] = packed
            else:
                where = "changed_there" if kept else "stayed"
                result[where].append(self._describe(name, "too_large", packed.size_bytes))
                if not kept:
                    self._have.pop(name, None)
        return going, {n: p for n, p in same.items() if p.size_bytes <= limit}

    def _pack(self, name: str, stayed: Optional[List[Dict[str, Any]]] = None) -> Optional[values_share.Packed]:
        try:
            if self.namespace[name] is self.namespace:
                # dill would write it as a mere reference, if what another pickler met first in it was not a lock
                raise TypeError("it is the table of all names")
            packed = values_share.pack_one(name, self.namespace[name], self.namespace)
        except Exception as why:  # a reducer is the user's code and may raise anything
            if stayed is not None:
                stayed.append(self._describe(name, "unpicklable", detail=f"{type(why).__name__}: {why}"[:300]))
                self._have.pop(name, None)
            return None
        if stayed is not None and self._kernel_python and packed.by_value:
            here = values_pickle.minor_text(values_pickle.PYTHON)
            if self._kernel_python.split(".")[:2] != here.split("."):
                stayed.append(self._describe(name, "python_differs", detail=here))
                self._have.pop(name, None)
                return None
        return packed

    # -- out -------------------------------------------------------------------------------------------------------

    def _send(
        self, going: Dict[str, values_share.Packed], same: Dict[str, values_share.Packed], result: Dict[str, Any]
    ) -> List[Any]:
        if not going:
            return []
        alone = all(not packed.writers for packed in going.values())  # numbers and texts hold nothing of others
        everything = going if alone else {**going, **same}
        try:
            groups = values_share.group(everything, self.namespace)
        except Exception:  # together they cannot be written: each one could
            groups = list(going.values())
        kept = [n for n in self._tracked if n in self.namespace and self._is_same_object(n)]
        buffers: List[Any] = []
        room = INLINE_TOTAL_BYTES
        for group in groups:
            if not any(n in going for n in group.names):
                continue
            head, inline = self._group(self._with_references(group, kept, everything), kept, room)
            room -= sum(len(b) for b in inline)
            buffers += inline
            result["home"].append(head)
        return buffers

    def _is_same_object(self, name: str) -> bool:
        """Whether the kernel has the object that the name still is: then it updates its own in place."""
        return self._ids.get(name) == id(self.namespace[name]) and name in self._have

    def _with_references(
        self, group: values_share.Packed, kept: List[str], packed: Dict[str, values_share.Packed]
    ) -> values_share.Packed:
        """The group once more, with references by name to objects that the kernel has, and only the contents of those of them
        that are in the group: so every reference that the kernel has to them goes on being right."""
        if not group.writers:
            group.values = {}
            return group
        named: Dict[int, str] = {}
        contents: Dict[str, Any] = {}
        for name in kept:
            value = self.namespace[name]
            if id(value) in named or isinstance(value, types.FunctionType):
                continue
            inside = values_share.shallow(value)
            if inside is None or (
                hasattr(value, "strides") and values_share.overlaps(value, self._others(group, name, packed))
            ):
                continue
            named[id(value)] = name
            contents[name] = inside
        if not any(n in contents for n in group.names) and len(group.names) == 1 and not named:
            group.values = {}
            return group
        values = {n: contents.get(n, self.namespace[n]) for n in group.names}
        try:
            made = values_share.Packed(group.names, *values_pickle.write(values, self.namespace, group.flats, named))
        except Exception:  # only dill could write it, or a reducer that answered once does not again: as it was then
            group.values = {}
            return group
        made.values = contents  # alive until it is sent
        return made

    def _others(
        self, group: values_share.Packed, name: str, packed: Dict[str, values_share.Packed]
    ) -> List[values_share.Packed]:
        value = self.namespace[name]
        return [packed[n] for n in group.names if n in packed and self.namespace[n] is not value]

    def _group(
        self, packed: values_share.Packed, kept: List[str], room: int, *, announced: bool = True
    ) -> Tuple[Group, List[Any]]:
        token = secrets.token_hex(32)
        in_place = [n for n in packed.names if n in packed.values]  # their contents travel, not they themselves
        meta = pickle.dumps({"token": token, "in_place": in_place, "same": [n for n in kept if n in packed.names]}, 5)
        inline: List[Any] = []
        parts = []
        # only what a cell brings home is announced: a question may be asked while a cell ends, and two may not be mixed up
        told = self._told if announced else (lambda name, size_bytes: None)
        for pieces in [[packed.stream, meta], *([b] for b in packed.buffers)]:
            size = sum(memoryview(p).nbytes for p in pieces)
            if size <= min(INLINE_BYTES, room):
                parts.append({"hash": "", "size_bytes": size, "at": "inline"})
                inline.append(b"".join(pieces))
                room -= size
            else:
                name = secrets.token_hex(16)
                write_file(os.path.join(self._out, name), pieces, lambda: told(name, size))  # noqa: B023
                parts.append({"hash": "file:" + name, "size_bytes": size, "at": "blob"})
        for name in packed.names:
            self._have[name] = token
        return {"names": packed.names, "hash": "", "parts": parts}, inline

    def _told(self, name: str, size_bytes: int) -> None:
        if size_bytes >= EARLY_BYTES:
            self.on_file(name, size_bytes)

    def fetch(self, name: str) -> Tuple[Group, List[Any]]:
        """One name whatever its size, as a group and its inline buffers. Raises KeyError when there is none of that name,
        and what pickling raises."""
        if hidden(name) or name not in self.namespace:
            raise KeyError(name)
        packed = values_share.pack_one(name, self.namespace[name], self.namespace)
        group = values_share.group({name: packed}, self.namespace)[0]
        group.values = {}
        return self._group(group, [], INLINE_TOTAL_BYTES, announced=False)

    def names(self) -> List[Dict[str, Any]]:
        """All names of the user here, as RemoteName objects, without pickling any."""
        shown = [n for n, v in self.namespace.items() if not hidden(n) and not isinstance(v, types.ModuleType)]
        return [self._describe(n, "not_asked") for n in sorted(shown)]

    def _describe(self, name: str, why: str, size_bytes: int = 0, detail: str = "") -> Dict[str, Any]:
        return values_shown.describe(name, self.namespace[name], why, size_bytes, detail)


def _is_there(group: Group) -> bool:
    return all(p.get("at", "there") == "there" for p in group["parts"])
