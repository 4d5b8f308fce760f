"""Which names share objects, and so travel in one pickle. Word for word in two packages, see `values_pickle`.

Each name is pickled alone first. Two names share when the picklers' memos hold the same mutable object, or when arrays of both
lie over the same memory. Only then is their group pickled again as one, overlapping arrays as views of one buffer.
"""

from __future__ import annotations

import copyreg
import enum
import hashlib
import os
import pickle
import types
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import names_pickle as pickling

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range)
_atom_set = frozenset(ATOMS)
_IMMUTABLE = {
    *ATOMS, tuple, frozenset, slice, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.GetSetDescriptorType,
    types.MemberDescriptorType, types.MethodDescriptorType, types.WrapperDescriptorType,
}  # fmt: skip
_IMMUTABLE_MODULES = ("datetime", "decimal", "fractions", "uuid", "pathlib", "re", "zoneinfo", "_operator", "operator")
_MANY_THREADS_BYTES = 1024 * 1024  # below it starting threads costs more than they save
_CHUNK_BYTES = 16 * 1024 * 1024
_shares: dict[type, bool] = dict.fromkeys(_IMMUTABLE, False)


def _can_share(kind: type) -> bool:
    """Whether two names with the same object of this type have something in common that either could change."""
    found = _shares.get(kind)
    if found is None:
        module = kind.__module__ or ""
        bases = {c.__name__ for c in kind.__mro__}
        found = not (
            issubclass(kind, (type, enum.Enum))
            or module in _IMMUTABLE_MODULES
            or (module.startswith("numpy") and bases & {"dtype", "generic", "ufunc"})
            or (
                module.startswith("pandas")
                and bases & {"Index", "ExtensionDtype", "Timestamp", "Timedelta", "BaseOffset"}
            )
            or (module.startswith("torch") and bases & {"dtype", "device", "layout", "Size"})
        )
        _shares[kind] = found
    return found


def is_atom(value: Any) -> bool:
    """Whether a value is immutable and holds nothing that is not."""
    kind = type(value)
    if kind in _atom_set:
        return True
    return kind is tuple and len(value) <= 50 and all(is_atom(v) for v in value)


class Packed:
    """One group of names, pickled: `stream` and out-of-band `buffers` of the values themselves, nothing copied."""

    stream_digest = ""  # where it is known already

    def __init__(self, names: list[str], writer: Any, stream: Any, buffers: list[memoryview]) -> None:
        self.names = names
        self.stream = stream
        self.buffers = buffers
        self.writers = [writer] if writer is not None else []
        self.values: dict[str, Any] = {}
        self.flats: dict[int, Any] = {}

    @property
    def parts(self) -> list[Any]:
        """The pickle, then its buffers."""
        return [self.stream, *self.buffers]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return len(self.stream) + sum(b.nbytes for b in self.buffers)

    @property
    def by_value(self) -> set[str]:
        """Functions and classes in it that only the same Python minor version can read."""
        return {name for writer in self.writers for name in writer.by_value}

    def digests(self, known: Any = None) -> tuple[str, ...]:
        """A digest of each part. `known`: (address, size) -> digest of buffers that nobody can have changed since."""
        return (self.stream_digest or digest(self.stream, known), *(digest(b, known) for b in self.buffers))


def pack_one(name: str, value: Any, namespace: dict[str, Any]) -> Packed:
    """One name alone. Falls back to dill; raises what cloudpickle said when neither can."""
    if is_atom(value):
        return Packed([name], None, pickle.dumps({name: value}, 5), [])
    key = _array_key(name, value)
    if key in _array_streams:
        return _array_again(name, value, *_array_streams[key])
    try:
        packed = Packed([name], *pickling.write({name: value}, namespace))
    except Exception as why:
        if holds_machinery(why):
            raise
        packed = _by_dill(name, value, namespace, why)
    packed.values[name] = value
    if key is not None and len(packed.buffers) == 1:
        if len(_array_streams) >= _MOST_ARRAY_STREAMS:
            _array_streams.clear()
        stream = bytes(packed.stream)
        _array_streams[key] = (stream, digest(stream), packed.writers[0].modules_used)
    return packed


class _OfArray:
    """What a writer would have met in a plain array, and nothing else."""

    own_functions: frozenset[int] = frozenset()
    globals_used: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    by_value: frozenset[str] = frozenset()

    def __init__(self, array: Any, modules_used: set[str]) -> None:
        self.arrays = [array]
        self.memo = {id(array): (0, array)}
        self.modules_used = modules_used


_array_streams: dict[Any, tuple[bytes, str, set[str]]] = {}  # what an array's pickle depends on -> it, digest, modules
_MOST_ARRAY_STREAMS = 1000  # of some 150 bytes; a notebook that names more arrays than that pickles them again


def _array_key(name: str, value: Any) -> Any:
    """All that the pickle of a plain array depends on, its memory being an out-of-band buffer; None for everything else."""
    kind = type(value)
    if kind.__name__ != "ndarray" or kind.__module__ != "numpy" or kind in copyreg.dispatch_table:
        return None
    dtype, flags = value.dtype, value.flags
    if dtype.kind not in "biufc" or not dtype.isnative or dtype.metadata is not None:
        return None
    if value.nbytes < pickling.SMALL_BUFFER_BYTES or not flags.forc:
        return None
    return name, kind, dtype.char, value.shape, flags.c_contiguous, flags.writeable


def _array_again(name: str, value: Any, stream: bytes, stream_digest: str, modules_used: set[str]) -> Packed:
    packed = Packed([name], _OfArray(value, modules_used), stream, [pickle.PickleBuffer(value).raw()])
    packed.stream_digest = stream_digest
    packed.values[name] = value
    return packed


class ByDill:
    """Stands for a value that only dill can write."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return pickling.Reader.dill, (self.data, pickling.PYTHON)


def holds_machinery(why: BaseException) -> bool:
    """Whether the failure names something that dill would copy although a copy is of no use: locks, files, sockets."""
    text = str(why)
    words = ("lock'", "RLock'", "_io.", "socket", "generator", "coroutine", "thread", "Remote")
    return any(w in text for w in words) or not isinstance(why, (TypeError, pickle.PicklingError, AttributeError))


def _by_dill(name: str, value: Any, namespace: dict[str, Any], why: Exception) -> Packed:
    try:
        import dill
    except ImportError:
        raise why from None
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dill warns of what it then fails at
        try:
            data = dill.dumps(value, protocol=5, recurse=True)
        except Exception:
            raise why from None
    packed = Packed([name], *pickling.write({name: ByDill(data)}, namespace))
    packed.writers[0].by_value.add(type(value).__name__)
    return packed


def group(packed: dict[str, Packed], namespace: dict[str, Any]) -> list[Packed]:
    """The same names, those that share objects packed together. Order of the names is kept."""
    if len(packed) == 1 and sum(len(w.arrays) for p in packed.values() for w in p.writers) < 2:
        return list(packed.values())  # nothing that it could share with
    parent = {name: name for name in packed}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    arrays = _links(packed, parent, root)
    groups: dict[str, list[str]] = {}
    for name in packed:
        groups.setdefault(root(name), []).append(name)
    flats = _flats(arrays)
    result = []
    for first, names in groups.items():
        if len(names) == 1 and not any(id(a) in flats for w in packed[first].writers for a in w.arrays):
            result.append(packed[first])
            continue
        values = {n: packed[n].values[n] for n in names}
        whole = Packed(names, *pickling.write(values, namespace, flats))
        whole.values = values
        whole.flats = flats
        whole.writers += [w for n in names for w in packed[n].writers]
        result.append(whole)
    return result


def _links(packed: dict[str, Packed], parent: dict[str, str], root: Any) -> list[Any]:
    """Join names that share; returns all arrays that may overlap, by address."""
    owner: dict[int, str] = {}
    bounds: list[tuple[int, int, Any, str]] = []
    alive = []  # picklers make objects on the way; freed ones would lend their ids to others
    writers = [(n, w) for n, p in packed.items() for w in p.writers]
    for name, writer in writers:
        bounds += [(*pickling.array_bounds(a), a, name) for a in writer.arrays]
        if len(writers) > 1:
            memo = writer.memo.copy()
            alive.append(memo)
            for key, (_, value) in memo.items():
                kind = type(value)
                can = _shares.get(kind)
                if not (_can_share(kind) if can is None else can) or (
                    kind is types.FunctionType and key not in writer.own_functions
                ):
                    continue
                other = owner.setdefault(key, name)
                if other != name:
                    parent[root(name)] = root(other)
    bounds.sort(key=lambda b: (b[0], b[1]))
    for before, after in zip(_running_end(bounds), bounds[1:]):  # noqa: B905 - Python 3.9 has no strict=
        if after[0] < before[0]:
            parent[root(after[3])] = root(before[1])
    return [b[:3] for b in bounds]


def _running_end(bounds: Iterable[Any]) -> Iterable[tuple[int, str]]:
    end, name = 0, ""
    for low_high in bounds:
        if low_high[1] > end:
            end, name = low_high[1], low_high[3]
        yield end, name


def _flats(arrays: list[Any]) -> dict[int, tuple[Any, int]]:
    """For arrays that overlap others: id -> (the bytes under all of them, their first address)."""
    clusters: list[list[Any]] = []
    end = 0
    for low, high, array in arrays:
        if low < end and clusters:
            clusters[-1].append((low, high, array))
        else:
            clusters.append([(low, high, array)])
            end = high
        end = max(end, high)
    flats = {}
    for cluster in clusters:
        members: set[int] = {id(a) for _, _, a in cluster}
        if len(members) > 1:
            low, high = cluster[0][0], max(h for _, h, _ in cluster)
            flat = pickling.flat_bytes([a for _, _, a in cluster], low, high)
            flats.update(dict.fromkeys(members, (flat, low)))
    return flats


def digest(data: Any, known: Any = None) -> str:
    """BLAKE3 in hex, on all cores when it is large; where the image has no blake3, BLAKE2b of chunks on all cores."""
    view = memoryview(data)
    try:
        import blake3
    except ImportError:
        return _digest_without_blake3(view)  # `known` are of the other kind
    if known and view.nbytes >= pickling.SMALL_BUFFER_BYTES:
        found = known.get((address(view), view.nbytes))
        if found is not None:
            return str(found)
    threads = blake3.blake3.AUTO if view.nbytes >= _MANY_THREADS_BYTES else 1
    return blake3.blake3(view, max_threads=threads).hexdigest()


def _digest_without_blake3(view: memoryview) -> str:
    """Only ever compared with digests of this same process."""
    view = view.cast("B")
    chunks = [view[i : i + _CHUNK_BYTES] for i in range(0, view.nbytes, _CHUNK_BYTES)]
    if len(chunks) < 2:
        return "b2:" + hashlib.blake2b(view).hexdigest()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return "b2:" + hashlib.blake2b(b"".join(pool.map(lambda c: hashlib.blake2b(c).digest(), chunks))).hexdigest()


def address(data: Any) -> int:
    """Where a buffer lies in memory."""
    import numpy as np

    return int(np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0])


_COPIED_BYTES = (
    64 * 1024 * 1024
)  # a larger array is bound anew: copying it into the old one would need the memory once more


def is_plain(kind: type) -> bool:
    """Whether objects of a class are nothing but their `__dict__`: no C state, no slots, no reducer of their own."""
    own_reducer = any("__reduce__" in vars(c) or "__reduce_ex__" in vars(c) for c in kind.__mro__ if c is not object)
    heap = all(c is object or c.__flags__ & (1 << 9) for c in kind.__mro__)  # Py_TPFLAGS_HEAPTYPE: made by `class`
    slots = any(vars(c).get("__slots__") for c in kind.__mro__)
    return heap and not own_reducer and not slots and not issubclass(kind, type)


def shallow(value: Any) -> Any:
    """Another object with the same contents, from which the other side can update its own in place; None where it cannot."""
    kind = type(value)
    if kind in (list, dict, set, bytearray):
        return value.copy()
    name = f"{kind.__module__}.{kind.__name__}"
    if name == "numpy.ndarray":
        return value.view() if value.nbytes <= _COPIED_BYTES else None
    if kind.__module__.startswith("pandas") and kind.__name__ in ("DataFrame", "Series"):
        return value.copy(deep=False)
    if is_plain(kind) and type(getattr(value, "__dict__", None)) is dict:
        made = object.__new__(kind)
        made.__dict__.update(value.__dict__)
        return made
    return None


def overlaps(value: Any, others: Iterable[Packed]) -> bool:
    """Whether an array lies over the memory of arrays of other names."""
    import numpy as np

    arrays = [a for p in others for w in p.writers for a in w.arrays if a is not value]
    return any(np.may_share_memory(value, a) for a in arrays)
