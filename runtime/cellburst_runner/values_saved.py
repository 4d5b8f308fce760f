"""All names of a session by value: what is kept beside its snapshot, and loaded where the snapshot cannot be restored.

    save   each name alone, cheap ones first -> those that share objects together -> smallest groups first, up to the limit
    load   group after group; one that fails is lost and the others come

What the kernel and the executor know of each other's values (`ValueStore`) is not touched: a parked session goes on with that,
and one that starts from these names starts without it. The sources of modules that travelled go first, as a group without names.
"""

from __future__ import annotations

import itertools
import os
import pickle
import secrets
import sys
import time
from typing import Any, Callable, Dict, List, Sequence, Tuple

from . import values_modules, values_pickle, values_share, values_shown
from .values import EARLY_BYTES, INLINE_BYTES, INLINE_TOTAL_BYTES, Group
from .values_culprit import BoundedFile, TooLarge, find
from .values_files import read_file, write_file

CULPRIT_SECONDS = 2.0  # for all names together: a path cut short is still of use
MEMORY_SHARE = (
    4  # pickles may take a quarter of the free memory: some are written twice, and running out ends the session
)
DETAIL_CHARACTERS = 500

Lost = List[Dict[str, Any]]


class SavedNames:
    """Saves and loads. `namespace` is the user's, `in_folder` and `out_folder` those of `ValueStore`."""

    def __init__(self, namespace: Dict[str, Any], in_folder: str, out_folder: str) -> None:
        self._namespace = namespace
        self._in = in_folder
        self._out = out_folder
        self._written: List[str] = []
        # told (name, size in bytes) of a large file in OUT that begins to be written
        self.on_file: Callable[[str, int], None] = lambda name, size_bytes: None

    # -- save ------------------------------------------------------------------------------------------------------

    def save(self, limit_bytes: int) -> Tuple[List[Group], Lost, List[Any]]:
        """Groups, names that are lost and why, and the inline parts in order. `limit_bytes` is for all together; 0 is no limit.

        Raises KeyboardInterrupt; files that were written until then are removed by `forget`.
        """
        lost: Lost = []
        groups = self._groups(self._pack_all(limit_bytes or sys.maxsize, lost))
        heads: List[Group] = []
        buffers: List[Any] = []
        room, left = INLINE_TOTAL_BYTES, limit_bytes or sys.maxsize
        modules = self._modules()
        for packed in [*modules, *sorted(groups, key=lambda g: g.size_bytes)]:
            if packed.size_bytes > left:
                lost += [
                    self._lost(n, "too_large", f"over the limit of {limit_bytes} bytes", packed) for n in packed.names
                ]
                continue
            try:
                head, inline = self._write(packed, room)
            except OSError as why:
                lost += [self._lost(n, "too_large", f"not written: {why.strerror}", packed) for n in packed.names]
                continue
            left -= packed.size_bytes
            room -= sum(len(b) for b in inline)
            heads.append(head)
            buffers += inline
        return heads, lost, buffers

    def forget(self) -> None:
        """Remove the files that `save` wrote and nobody took."""
        while self._written:
            try:
                os.unlink(os.path.join(self._out, self._written.pop()))
            except OSError:
                pass  # it was taken

    def _pack_all(self, limit_bytes: int, lost: Lost) -> Dict[str, values_share.Packed]:
        names = [n for n in self._namespace if not values_shown.hidden(n)]
        packed: Dict[str, values_share.Packed] = {}
        memory = _free_memory() // MEMORY_SHARE
        limit = "the free memory" if memory < limit_bytes else f"the limit of {limit_bytes} bytes"
        memory = min(memory, limit_bytes)
        until = time.monotonic() + CULPRIT_SECONDS
        for name in sorted(names, key=lambda n: _estimate(self._namespace[n])):
            value = self._namespace[name]
            try:
                packed[name] = made = self._pack(name, value, memory)
            except TooLarge:
                lost.append(self._lost(name, "too_large", f"more than was left of {limit}"))
                continue
            except Exception as why:  # a reducer is the user's code and may raise anything
                seconds = max(0.0, until - time.monotonic())
                path, part = find(name, value, self._namespace, seconds)
                reason = f"{path}: {values_shown.type_name(part)}: {type(why).__name__}: {why}"
                lost.append(self._lost(name, "unpicklable", reason))
                continue
            memory -= len(made.stream)
        return {n: packed[n] for n in names if n in packed}  # in the order in which they were bound

    def _pack(self, name: str, value: Any, memory: int) -> values_share.Packed:
        """As `values_share.pack_one`, within `memory` bytes."""
        if values_share.is_atom(value):
            if sys.getsizeof(value) > memory:
                raise TooLarge
            return values_share.pack_one(name, value, self._namespace)
        buffers: List[memoryview] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < values_pickle.SMALL_BUFFER_BYTES:
                return True
            buffers.append(raw)
            return False

        file = BoundedFile(memory)
        writer = values_pickle.writer_class()(file, keep, self._namespace)
        try:
            writer.dump({name: value})
        except TooLarge:
            raise
        except Exception as why:
            if values_share.holds_machinery(why):
                raise
            return values_share.pack_one(name, value, self._namespace)  # by dill, or raises
        packed = values_share.Packed([name], writer, file.getbuffer(), buffers)
        packed.values[name] = value
        return packed

    def _groups(self, packed: Dict[str, values_share.Packed]) -> List[values_share.Packed]:
        try:
            return values_share.group(packed, self._namespace)
        except Exception:  # together they cannot be written: each one could
            return list(packed.values())

    def _modules(self) -> List[values_share.Packed]:
        sources = values_modules.sources()
        if not sources:
            return []
        return [values_share.Packed([], None, pickle.dumps(sources, 5), [])]

    def _write(self, packed: values_share.Packed, room: int) -> Tuple[Group, List[Any]]:
        """The group's parts, small ones inline. Raises OSError; a file that was begun is removed then."""
        meta = pickle.dumps({"kind": "modules" if not packed.names else "saved"}, 5)
        inline: List[Any] = []
        parts = []
        begun = len(self._written)
        try:
            for pieces in [[packed.stream, meta], *([b] for b in packed.buffers)]:
                size = sum(memoryview(p).nbytes for p in pieces)
                if size <= min(INLINE_BYTES, room):
                    parts.append({"hash": "", "size_bytes": size, "at": "inline"})
                    inline.append(b"".join(pieces))
                    room -= size
                    continue
                name = secrets.token_hex(16)
                self._written.append(name)
                write_file(os.path.join(self._out, name), pieces, lambda: self._told(name, size))  # noqa: B023
                parts.append({"hash": "file:" + name, "size_bytes": size, "at": "blob"})
        except OSError:
            kept, self._written = self._written[:begun], self._written[begun:]
            self.forget()
            self._written = kept
            raise
        return {"names": packed.names, "hash": "", "parts": parts}, inline

    def _told(self, name: str, size_bytes: int) -> None:
        if size_bytes >= EARLY_BYTES:
            self.on_file(name, size_bytes)

    def _lost(self, name: str, why: str, detail: str, packed: Any = None) -> Dict[str, Any]:
        size = packed.size_bytes if packed is not None and len(packed.names) == 1 else 0
        return values_shown.describe(name, self._namespace[name], why, size, detail[:DETAIL_CHARACTERS])

    # -- load ------------------------------------------------------------------------------------------------------

    def load(self, groups: Sequence[Group], buffers: Sequence[Any]) -> Tuple[List[str], Lost]:
        """Set the names of all groups that can be read. Returns them, and those that are lost and why."""
        inline = iter(buffers)
        names: List[str] = []
        lost: Lost = []
        interrupted = False
        for group in groups:
            count = sum(p.get("at", "there") == "inline" for p in group["parts"])
            mine = iter(list(itertools.islice(inline, count)))
            try:
                if interrupted:
                    raise KeyboardInterrupt
                names += self._load(group, mine)
            except (Exception, SystemExit, KeyboardInterrupt) as why:  # unpickling is the user's code
                interrupted = isinstance(why, KeyboardInterrupt)
                kind = "python_differs" if isinstance(why, values_pickle.PythonDiffers) else "unpicklable"
                detail = "interrupted" if interrupted else f"{type(why).__name__}: {why}"[:DETAIL_CHARACTERS]
                lost += [{"name": n, "type": "", "why": kind, "detail": detail} for n in group["names"]]
        return names, lost

    def _load(self, group: Group, inline: Any) -> List[str]:
        parts: List[Any] = []
        for part in group["parts"]:
            if part.get("at", "there") == "inline":
                parts.append(bytearray(next(inline)))
            else:
                name = part["hash"].rpartition(":")[2]
                parts.append(read_file(os.path.join(self._in, name), part["size_bytes"]))
        values, meta, _ = values_pickle.read(parts[0], parts[1:], self._namespace, update_classes=True)
        if meta and meta.get("kind") == "modules":
            values_modules.install(values)
            return []
        self._namespace.update(values)
        return list(values)


def _estimate(value: Any) -> int:
    """Roughly how large a value is, without looking inside: for the order only."""
    try:
        size = getattr(value, "nbytes", None)
        return size if isinstance(size, int) else sys.getsizeof(value)
    except Exception:  # both are the user's code
        return 0


def _free_memory() -> int:
    """Bytes that are free, as /proc/meminfo says; no limit where it says nothing."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return sys.maxsize
