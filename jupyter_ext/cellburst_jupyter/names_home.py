"""Names on their way home: read whole, then written in one step.

MACs were checked by the caller (`cellburst_protocol.mac`); inline bytes are checked here against their hashes before
anything is unpickled, blobs by whoever fetches them. If reading fails, or one update does, the notebook is as it was.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import CellDone, NameGroup, RemoteName, ValuePart

from . import names_pickle, names_share, names_update
from .names_values import MISSING, NameSync
from .remote import Remote, size_text

FetchBlob = Callable[[ValuePart], Buffer]  # a blob's bytes in fresh, writable memory, checked against its hash


@dataclass
class _Home:
    """One group, read."""

    values: dict[str, Any]
    token: str
    in_place: list[str]
    same: list[str]
    classes: dict[type, Any]
    known: dict[tuple[int, int], str]


@dataclass
class _Staged:
    """All that is to be written, before any of it is."""

    groups: list[_Home] = field(default_factory=list)
    handles: dict[str, RemoteName] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)


def read_group(group: NameGroup, inline: Iterator[Buffer], fetch_blob: FetchBlob, user_ns: dict[str, Any]) -> _Home:
    """Read one group. Raises PlatformError (INTEGRITY) when bytes are not those of their hash, and what unpickling raises."""
    data: list[Any] = []
    known = {}
    for part in group.parts:
        piece: Any = bytearray(next(inline)) if part.at == "inline" else fetch_blob(part)
        wrong = part.at == "inline" and names_share.digest(piece) != part.hash
        if wrong or memoryview(piece).nbytes != part.size_bytes:
            raise error(
                ErrorCode.INTEGRITY,
                f"the bytes of {', '.join(f'`{n}`' for n in group.names)} are not those that were sent",
                next="run the cell again; if it stays, something between this kernel and the worker changes data",
            )
        if data:
            known[(names_share.address(piece), part.size_bytes)] = part.hash
        data.append(piece)
    values, meta, reader = names_pickle.read(data[0], data[1:], user_ns, update_classes=False)
    meta = meta or {}
    return _Home(
        values, meta.get("token", ""), meta.get("in_place", []), meta.get("same", []), dict(reader.class_updates), known
    )


def read_value(
    group: NameGroup, inline_buffers: Sequence[Buffer], fetch_blob: FetchBlob, user_ns: dict[str, Any], sync: NameSync
) -> Any:
    """The value of a `fetch` SideReply, for `NameSync.fetch_value`. Its name is not bound here.

    Raises RequestError (PYTHON_DIFFERS) for code of another Python version, and what `read_group` raises.
    """
    try:
        home = read_group(group, iter(inline_buffers), fetch_blob, user_ns)
    except names_pickle.PythonDiffers as why:
        raise error(
            ErrorCode.PYTHON_DIFFERS,
            f"{', '.join(f'`{n}`' for n in group.names)} cannot be fetched: {why}",
            next="use it in %%modal cells, where it is; or bring home what it computes",
        ) from None
    sync.agree(home.values, home.token, user_ns, home.known)
    (value,) = home.values.values()
    return value


def write_back(
    done: CellDone, inline_buffers: Sequence[Buffer], fetch_blob: FetchBlob, user_ns: dict[str, Any], sync: NameSync
) -> list[str]:
    """Write a finished cell's names into the notebook, all or none, and return the lines to show under the cell.

    `inline_buffers` are those of CellDone after its first. Raises PlatformError (INTEGRITY) and what `fetch_blob` raises;
    nothing was written then. Gives the cell's views up (`NameSync.finished`).
    """
    staged = _stage(done, iter(inline_buffers), fetch_blob, user_ns, sync)
    lines: list[str] = []
    undo: list[names_update.Undo] = []
    try:
        for home in staged.groups:
            _write_group(home, user_ns, undo)
        for name, info in staged.handles.items():
            _bind(user_ns, name, sync.handle(info), undo)
        for name in done.gone:
            if name in user_ns and not (name in sync.before and user_ns[name] is not sync.before[name]):
                _unbind(user_ns, name, undo)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    for home in staged.groups:
        sync.agree({n: user_ns[n] for n in home.values}, home.token, user_ns, home.known)
    for name in done.gone:
        sync.forget(name)
    lines += _lines(done, staged)
    sync.finished()
    return lines


def _stage(
    done: CellDone, inline: Iterator[Buffer], fetch_blob: FetchBlob, user_ns: dict[str, Any], sync: NameSync
) -> _Staged:
    staged = _Staged()
    for group in done.home:
        try:
            home = read_group(group, inline, fetch_blob, user_ns)
        except (ImportError, AttributeError, KeyError, pickle.UnpicklingError) as why:  # what it needs is not here
            for name in group.names:
                staged.handles[name] = RemoteName(
                    name=name, type="object", size_bytes=group.size_bytes, why="not_asked"
                )
                staged.unread[name] = f"{type(why).__name__}: {why}"
            continue
        kept = [n for n in home.values if sync.changed_here(n, user_ns)]
        staged.kept += kept
        for name in kept:
            del home.values[name]
        staged.groups.append(home)
    for info in done.stayed:
        if sync.before.get(info.name, MISSING) is user_ns.get(info.name, MISSING) or info.name not in sync.before:
            staged.handles[info.name] = info
        else:
            staged.kept.append(info.name)
    return staged


def _write_group(home: _Home, user_ns: dict[str, Any], undo: list[names_update.Undo]) -> None:
    """In place where it was changed in place there; else bound, with every other name of the same object when it was."""
    for name, value in list(home.values.items()):
        if isinstance(value, type) and value in home.classes:
            undo.append(names_update.update_class(value, home.classes[value]))
        old = user_ns.get(name, MISSING)
        if name not in home.same or old is MISSING or isinstance(old, Remote) or old is value:
            _bind(user_ns, name, value, undo)
            continue
        step = names_update.update(old, value) if name in home.in_place else None
        if step is not None:
            undo.append(step)
            continue
        for other in [n for n, v in user_ns.items() if v is old]:
            _bind(user_ns, other, value, undo)


def _bind(user_ns: dict[str, Any], name: str, value: Any, undo: list[names_update.Undo]) -> None:
    old = user_ns.get(name, MISSING)
    undo.append((lambda: user_ns.pop(name, None)) if old is MISSING else (lambda: user_ns.__setitem__(name, old)))
    user_ns[name] = value


def _unbind(user_ns: dict[str, Any], name: str, undo: list[names_update.Undo]) -> None:
    old = user_ns.pop(name)
    undo.append(lambda: user_ns.__setitem__(name, old))


def _lines(done: CellDone, staged: _Staged) -> list[str]:
    lines = []
    changed = [i.name for i in done.changed_there if i.why != "python_differs"]
    if changed:
        lines.append(f"changed there, not here: {', '.join(changed)} (`out={','.join(changed)}`)")
    large = [i for i in done.stayed if i.why == "too_large" and i.name in staged.handles]
    if large:
        shown = ", ".join(f"{i.name} ({i.type}, {size_text(i.size_bytes)})" for i in large)
        lines.append(f"stayed there: {shown} (`out={','.join(i.name for i in large)}`)")
    for info in done.stayed:
        if info.why == "unpicklable" and info.name in staged.handles:
            lines.append(f"stayed there: {info.name}, because a {info.type} cannot be pickled ({info.detail})")
    coded = [i for i in done.stayed if i.why == "python_differs" and i.name in staged.handles]
    coded += [i for i in done.changed_there if i.why == "python_differs"]
    if coded:
        lines.append(
            f"stayed there: {', '.join(i.name for i in coded)}, because functions and classes of Python {coded[0].detail} "
            f"cannot be read by this kernel's Python {names_pickle.minor_text(names_pickle.PYTHON)}"
        )
    for name, why in staged.unread.items():
        lines.append(f"stayed there: {name}, because it cannot be read here ({why})")
    if staged.kept:
        lines.append(f"changed here and there, the value here was kept: {', '.join(staged.kept)}")
    return lines
