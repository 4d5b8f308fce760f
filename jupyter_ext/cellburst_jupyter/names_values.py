"""The kernel's side of names on their way out: pickled, grouped, hashed, and left out where the container has them.

`NameSync` belongs to one session. A cell's walk: `prepare` -> RunCell -> `sent` (and `payload` when the container asked for
what it turned out not to have) -> `names_home.write_back`. What kernel and container agree on is kept per name: the identity
the container knows the value under (a hash of ours, or a token of its own for what came home) and the hash of the value here
at that time. While the value here has that hash nothing is sent, also when the container has changed its own since.
"""

from __future__ import annotations

import difflib
import functools
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.mac import group_hash
from cellburst_protocol.messages import NameGroup, RemoteName, ValuePart

from . import names_pickle, names_share
from .names_errors import TOO_LARGE_BYTES, python_differs, too_large, unpicklable
from .names_modules import ModuleSources
from .names_read import CellNames, hidden
from .remote import Remote, RemoteValueError

INLINE_BYTES = 64 * 1024  # a larger part is a blob
INLINE_TOTAL_BYTES = 900 * 1024  # a message's inline parts stay under 1 MiB with room for its head
KEPT_ATOM_BYTES = 1024 * 1024  # a larger text is pickled again for each cell that uses it, and not kept alive by us
MISSING = object()


@dataclass
class Prepared:
    """What a cell needs of names: `groups` and `modules` for RunCell, `buffers` their inline parts in that order, `blobs`
    the others by hash, as uncopied views: they are valid until the cell is done. `used`, `bound` and `deleted` are RunCell's."""

    groups: list[NameGroup] = field(default_factory=list)
    modules: list[NameGroup] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    blobs: dict[str, memoryview] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    bound: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


@dataclass
class _Group:
    """A group of this cell: what it is called on the wire, and its bytes. Those of a large atom are made when they are sent."""

    names: tuple[str, ...]
    local: str
    parts: list[ValuePart]
    data: list[Any]
    atom: Any = None
    there: bool = False
    known_as: str = ""  # the container's own token for it, when it came home from there
    singles: dict[tuple[str, ...], str] = field(default_factory=dict)
    is_module: bool = False

    def pieces(self) -> list[Any]:
        """The bytes of all parts."""
        return self.data or names_share.pack_one(self.names[0], self.atom, {}).parts


@dataclass
class _Agreed:
    """Under which identity the container has a name, and the hash of its group here then, by the group's names."""

    wire: str
    hashes: dict[tuple[str, ...], str]


class _ModuleWith:
    """A module, and modules inside it that are used as its attributes."""

    def __init__(self, name: str, inner: tuple[str, ...]) -> None:
        self.name, self.inner = name, inner

    def __reduce__(self) -> Any:
        return names_pickle.Reader.module, (self.name, self.inner)


class NameSync:
    """What one session's container has of the notebook's names. Used by the kernel's main thread only.

    `fetch` brings one name here (see `names_home.read_value`); `folder` is the notebook's.
    """

    def __init__(self, fetch: Callable[[str], Any] | None = None, folder: Path | None = None) -> None:
        self.fetch_value = fetch
        self.folder = folder or Path.cwd()
        self.container = ""
        self.before: dict[str, Any] = {}  # what names held when the cell was prepared; MISSING where there was none
        self.prepared: dict[str, _Group] = {}  # by hash, until the cell is done
        self._there: dict[str, _Agreed] = {}
        self._modules_there: dict[str, str] = {}
        self._atoms: dict[str, tuple[Any, _Group]] = {}
        self._sources = ModuleSources()
        self._handles: weakref.WeakSet[Remote] = weakref.WeakSet()

    # -- before the cell -------------------------------------------------------------------------------------------

    def prepare(
        self,
        cell: CellNames,
        user_ns: dict[str, Any],
        *,
        only: Iterable[str] | None = None,
        container: str = "",
        python: str = "",
    ) -> Prepared:
        """Pickle, group and hash what the cell needs, or only the names in `only` (the magic's `in=`). `python` is the
        version that will read it ("3.13.0"), "" where it is not known.

        Raises RequestError: UNKNOWN_NAME for one of `only`, UNPICKLABLE, TOO_LARGE, PYTHON_DIFFERS, or that a needed value
        stayed in a container that is gone. Nothing has been sent or changed then.
        """
        self.finished()
        if container and container != self.container:
            self._change_container(container)
        self._atoms = {n: known for n, known in self._atoms.items() if n in user_ns}
        wanted = self._only(only, user_ns) if only is not None else [n for n in cell.needed if n in user_ns]
        packed, modules, reached = self._pack(wanted, user_ns, cell, follow=only is None)
        _check_python(packed, python)
        groups = self._groups(packed, user_ns)
        for name in cell.deleted:
            if name in user_ns and name not in packed and name not in self._there and only is None:
                groups.append(self._atom(name, None))  # `del big` needs a name to delete, not its value
        used = sorted(set(cell.used) | set(packed) | reached)
        self.before = {n: user_ns.get(n, MISSING) for n in {*used, *cell.bound, *cell.deleted}}
        sources = self._module_groups(modules | set(cell.imports))
        self.prepared = {g.local: g for g in [*groups, *sources]}
        result = self._message([*groups, *sources])
        result.used, result.bound, result.deleted = used, list(cell.bound), list(cell.deleted)
        return result

    def payload(self, hashes: Iterable[str]) -> Prepared:
        """The groups that NamesNeeded asked for, with their bytes: all in `groups`, modules first, for NamesData."""
        asked = [self.prepared[h] for h in hashes if h in self.prepared]
        asked.sort(key=lambda g: not g.is_module)
        for group in asked:
            for name in group.names:
                self._there.pop(name, None)
                self._modules_there.pop(name, None)
            group.there, group.known_as = False, ""
        result = self._message(asked)
        result.groups, result.modules = [*result.modules, *result.groups], []
        return result

    def sent(self, container: str = "") -> None:
        """The container has what was prepared (call it when the cell has started: CellStarted, or CellDone)."""
        if container and container != self.container:
            self._change_container(container)
        for group in self.prepared.values():
            if group.is_module:
                self._modules_there.update(dict.fromkeys(group.names, group.local))
            else:
                self._agree(group, group.known_as or group.local)

    def finished(self) -> None:
        """The cell is over: views of the notebook's values are given up, so that they may change their size again."""
        self.prepared = {}
        self.before = {}

    def container_lost(self, lost: Collection[str] | None = None) -> None:
        """The container is gone, and all names in it; or only `lost` where another one has the rest by value."""
        self._there.clear()
        self._modules_there.clear()
        for handle in list(self._handles):
            handle.lost = handle.lost or lost is None or handle.name in lost
        self.container = ""

    # -- for names_home --------------------------------------------------------------------------------------------

    def handle(self, info: RemoteName) -> Remote:
        """A handle for a name that stays in the container."""
        made = Remote(info, self._fetch, self)
        self._handles.add(made)
        self._there.pop(info.name, None)
        return made

    def agree(
        self, values: dict[str, Any], wire: str, user_ns: dict[str, Any], known: dict[tuple[int, int], str]
    ) -> None:
        """The container has these values under `wire`. `known` are digests of buffers that arrived with them."""
        try:
            packed = {n: names_share.pack_one(n, v, user_ns) for n, v in values.items()}
            groups = [self._hashed(g, packed, known) for g in names_share.group(packed, user_ns)]
        except Exception:  # it came here and cannot go back: it will be said when a cell needs it
            return
        for group in groups:
            self._agree(group, wire)

    def forget(self, name: str) -> None:
        """The name is gone here or there."""
        self._there.pop(name, None)
        self._atoms.pop(name, None)

    def changed_here(self, name: str, user_ns: dict[str, Any]) -> bool:
        """Whether the name was bound again or changed in place here since the cell was prepared."""
        if name not in self.before:
            return False
        value = user_ns.get(name, MISSING)
        if value is not self.before[name]:
            return True
        group = next((g for g in self.prepared.values() if name in g.names and not g.is_module), None)
        if group is None or names_share.is_atom(value) or isinstance(value, types.ModuleType):
            return False
        try:
            packed = {n: names_share.pack_one(n, user_ns.get(n), user_ns) for n in group.names}
            again = names_share.group(packed, user_ns)
        except Exception:  # it could be pickled before: it was changed
            return True
        return len(again) != 1 or self._hashed(again[0], {}, {}).local != group.local

    # -- inside ----------------------------------------------------------------------------------------------------

    def _fetch(self, name: str) -> Any:
        if self.fetch_value is None:
            raise error(
                ErrorCode.LINK_CLOSED, f"no link to the session that has `{name}`", next="run a %%modal cell first"
            )
        return self.fetch_value(name)

    def _change_container(self, container: str) -> None:
        if self.container:
            self.container_lost()
        self.container = container

    def _agree(self, group: _Group, wire: str) -> None:
        for name in group.names:
            self._there[name] = _Agreed(
                wire, {group.names: group.local, **{k: v for k, v in group.singles.items() if k == (name,)}}
            )

    def _only(self, only: Iterable[str], user_ns: dict[str, Any]) -> list[str]:
        names = list(dict.fromkeys(only))
        for name in names:
            if name not in user_ns or hidden(name):
                mine = [n for n in user_ns if not hidden(n)]
                near = difflib.get_close_matches(name, mine, 1)
                raise error(
                    ErrorCode.UNKNOWN_NAME,
                    f"in= names `{name}`, which this notebook does not have",
                    next=f"did you mean `{near[0]}`?" if near else "run the cell that makes it, or leave it out of in=",
                    name=name,
                )
        return names

    def _pack(
        self, wanted: list[str], user_ns: dict[str, Any], cell: CellNames, follow: bool
    ) -> tuple[dict[str, names_share.Packed | _Group], set[str], set[str]]:
        """Each name alone; those that functions met on the way use are added until there are no more."""
        packed: dict[str, names_share.Packed | _Group] = {}
        modules: set[str] = set()
        reached: set[str] = set()
        attributes = set(cell.attributes)
        waiting = list(wanted)
        while waiting:
            name = waiting.pop(0)
            value = user_ns[name]
            if name in packed or self._stays(name, value):
                continue
            if isinstance(value, types.ModuleType):
                modules.add(value.__name__)
                value = _ModuleWith(
                    value.__name__, _inner_modules(value.__name__, frozenset(attributes), len(sys.modules))
                )
            if names_share.is_atom(value):
                packed[name] = self._atom(name, value)
                continue
            one = self._pack_one(name, value, user_ns)
            packed[name] = one
            for writer in one.writers:
                modules |= writer.modules_used
                attributes |= writer.attributes
                more = {n for n in writer.globals_used if n in user_ns and not hidden(n)}
                reached |= more
                waiting += sorted(more) if follow else []
        return packed, modules, reached

    def _stays(self, name: str, value: Any) -> bool:
        """Whether the value is in the container already, as what a handle stands for."""
        if not isinstance(value, Remote):
            return False
        if value.lost:  # of whichever session: one that was restarted has another NameSync
            raise error(
                ErrorCode.UNKNOWN_NAME,
                f"`{name}` stayed in a container that is gone",
                next="run the cell that made it again",
                name=name,
            )
        if value.session is self and value.name == name:
            return True
        raise RemoteValueError.of(name, value.type, "send")

    def _pack_one(self, name: str, value: Any, user_ns: dict[str, Any]) -> names_share.Packed:
        try:
            one = names_share.pack_one(name, value, user_ns)
        except Exception as why:  # a reducer is the user's code and may raise anything
            raise unpicklable(name, value, why, user_ns) from None
        if one.size_bytes > TOO_LARGE_BYTES:
            raise too_large(name, one.size_bytes)
        return one

    def _atom(self, name: str, value: Any) -> _Group:
        known = self._atoms.get(name)
        if known is not None and known[0] is value:
            known[1].there, known[1].known_as = False, ""
            return known[1]
        group = self._hashed(names_share.pack_one(name, value, {}), {}, {})
        size_bytes = group.parts[0].size_bytes
        self._atoms.pop(name, None)
        if size_bytes <= KEPT_ATOM_BYTES:
            self._atoms[name] = (value, group)
            if size_bytes > INLINE_BYTES:
                group.data, group.atom = [], value
        return group

    def _groups(self, packed: dict[str, names_share.Packed | _Group], user_ns: dict[str, Any]) -> list[_Group]:
        groups = [g for g in packed.values() if isinstance(g, _Group)]
        others = {n: p for n, p in packed.items() if isinstance(p, names_share.Packed)}
        groups += [self._hashed(g, others, {}) for g in names_share.group(others, user_ns)]
        for group in groups:
            agreed = [self._there.get(n) for n in group.names]
            first = agreed[0]
            if first is not None and all(
                a is not None and a.wire == first.wire and a.hashes.get(group.names) == group.local for a in agreed
            ):
                group.there, group.known_as = True, first.wire if first.wire != group.local else ""
        return groups

    def _hashed(self, group: names_share.Packed, singles: dict[str, Any], known: dict[tuple[int, int], str]) -> _Group:
        parts, data = _parts(group, known)
        made = _Group(tuple(group.names), group_hash(parts), parts, data)
        if len(group.names) > 1:  # a later cell may need one of them alone
            for name in group.names:
                if name in singles:
                    made.singles[(name,)] = group_hash(_parts(singles[name], known)[0])
        return made

    def _module_groups(self, modules: set[str]) -> list[_Group]:
        meta = pickle.dumps({"kind": "modules"}, 5)
        groups = []
        for sources in self._sources.collect(modules, self.folder).values():
            data = pickle.dumps(sources, 5) + meta
            part = ValuePart(hash=names_share.digest(data), size_bytes=len(data))
            group = _Group(tuple(sources), group_hash([part]), [part], [data], is_module=True)
            if all(self._modules_there.get(n) == group.local for n in group.names):
                group.there = True
            groups.append(group)
        return groups

    def _message(self, groups: list[_Group]) -> Prepared:
        result = Prepared()
        room = INLINE_TOTAL_BYTES
        for group in sorted(groups, key=lambda g: g.is_module):
            parts = list(group.parts) if group.there else []  # as they are they say "there"
            for part, data in zip(group.parts, group.pieces(), strict=True) if not group.there else ():
                if part.size_bytes <= min(INLINE_BYTES, room):
                    room -= part.size_bytes
                    result.buffers.append(data)
                    parts.append(ValuePart(hash=part.hash, size_bytes=part.size_bytes, at="inline"))
                else:
                    result.blobs[part.hash] = memoryview(data)
                    parts.append(ValuePart(hash=part.hash, size_bytes=part.size_bytes, at="blob"))
            made = NameGroup(names=list(group.names), hash=group.local, parts=parts, known_as=group.known_as)
            (result.modules if group.is_module else result.groups).append(made)
        return result


def _check_python(packed: dict[str, names_share.Packed | _Group], python: str) -> None:
    if not python or python.split(".")[:2] == [str(part) for part in names_pickle.PYTHON]:
        return
    coded = {n: p.by_value for n, p in packed.items() if isinstance(p, names_share.Packed) and p.by_value}
    if coded:
        raise python_differs(coded, python)


def _parts(packed: names_share.Packed, known: dict[tuple[int, int], str]) -> tuple[list[ValuePart], list[Any]]:
    data = packed.parts
    digests = packed.digests(known)
    return [ValuePart(hash=h, size_bytes=memoryview(d).nbytes) for h, d in zip(digests, data, strict=True)], data


@functools.lru_cache(maxsize=1000)
def _inner_modules(module: str, attributes: frozenset[str], loaded: int) -> tuple[str, ...]:
    """Modules inside `module` that are loaded here and whose names all occur as attributes. `loaded` is the number of
    loaded modules: it makes the answer anew when there are more."""
    prefix = module + "."
    inside = [m for m in list(sys.modules) if m.startswith(prefix)]
    return tuple(sorted(m for m in inside if attributes.issuperset(m[len(prefix) :].split("."))))
