"""How one value is written and read on both sides: pickle protocol 5 with out-of-band buffers, functions without their globals.

This file lies word for word in two packages, because neither may import the other: `cellburst_runner.values_pickle` and
`cellburst_jupyter.names_pickle` (a test fails when they differ; so it is one file, a little over 400 lines). What one writes
the other reads: `Reader.find_class` takes the names of either for its own.

    functions   code, defaults and closure travel; globals do not: they are the namespace that reads them
    closures    cells keep their identity, so functions that share a `nonlocal` go on sharing it
    classes     of the notebook travel by value in a pickle of their own; cloudpickle's tracker id keeps them one class
    code        carries its Python minor version, and another one refuses to read it (`PythonDiffers`)
    arrays      large ones are out-of-band buffers; those that overlap in memory are views of one buffer (`flats`)
    modules     by name
    pandas      its own arrays never count as overlapping: copy-on-write keeps track of them itself
"""

from __future__ import annotations

import dis
import functools
import importlib
import io
import pickle
import sys
import types
import weakref
from typing import Any

SMALL_BUFFER_BYTES = 64 * 1024  # what is smaller stays in the pickle: a list of small arrays is not thousands of parts
PYTHON = (sys.version_info[0], sys.version_info[1])
_PLAIN = "plain"
_applied: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()  # class -> bytes it was read from
_code_names: dict[int, tuple[Any, frozenset[str], frozenset[str], frozenset[str]]] = {}


class PythonDiffers(pickle.UnpicklingError):
    """Code of another Python minor version was to be read. Its byte code could be loaded, and would crash this process."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(f"its code is of Python {minor_text(theirs)}, and this is Python {minor_text(PYTHON)}")


def minor_text(version: Any) -> str:
    """A version's parts as people write them: (3, 11) is 3.11."""
    return ".".join(str(part) for part in version)


def code_names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Globals that a code object and those inside it read, those they bind, and all attribute names they mention."""
    known = _code_names.get(id(code))
    if known is not None:
        return known[1], known[2], known[3]
    reads: set[str] = set()
    binds: set[str] = set()
    attributes: set[str] = set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "DELETE_GLOBAL"):
            reads.add(instruction.argval)
        elif instruction.opname == "STORE_GLOBAL":
            binds.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = code_names(constant)
            reads |= inner[0]
            binds |= inner[1]
            attributes |= inner[2]
    if len(_code_names) > 5000:  # a kernel that lives for weeks defines functions again and again
        _code_names.clear()
    _code_names[id(code)] = (code, frozenset(reads), frozenset(binds), frozenset(attributes))
    return code_names(code)


_written: weakref.WeakKeyDictionary[type, Any] = (
    weakref.WeakKeyDictionary()
)  # class -> (its state, its bytes, what it uses)
_FIXED = (str, int, float, bool, bytes, type(None), types.GetSetDescriptorType, types.MemberDescriptorType)


def _unchanging(cls: type) -> list[Any] | None:
    """Everything that a simple class consists of, for telling by identity whether it is still the same; None for classes
    that hold what could change inside: containers, closures, bases of the notebook."""
    if type(cls) is not type or any(b.__module__ == "__main__" for b in cls.__bases__):
        return None
    state: list[Any] = [cls.__name__, cls.__bases__]
    for key, value in vars(cls).items():
        state += (key, value)
        for part in (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,):
            part = getattr(part, "__func__", part) if type(part) in (staticmethod, classmethod) else part
            if type(part) is types.FunctionType:
                if part.__closure__ or part.__dict__ or part.__annotations__ or part.__kwdefaults__:
                    return None
                if any(type(d) not in _FIXED for d in part.__defaults__ or ()):
                    return None
                state += (part.__code__, part.__defaults__, part.__globals__)
            elif type(part) not in _FIXED:
                return None
    return state


def _same_objects(one: list[Any], other: list[Any] | None) -> bool:
    return other is not None and len(one) == len(other) and all(a is b for a, b in zip(one, other))  # noqa: B905


def is_main(namespace: Any) -> bool:
    """Whether a globals dict is the notebook's."""
    return namespace is getattr(sys.modules.get("__main__"), "__dict__", None)


def array_bounds(array: Any) -> tuple[int, int]:
    """First address of an array's memory and the one after its last."""
    low = high = int(array.__array_interface__["data"][0])
    for size, stride in zip(array.shape, array.strides):  # noqa: B905 - Python 3.9 has no strict=
        if size == 0:
            return low, low
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high + int(array.itemsize)


def flat_bytes(owner: Any, low: int, high: int) -> Any:
    """The memory between two addresses as an array of bytes that keeps `owner` alive."""
    import ctypes

    import numpy as np

    memory: Any = (ctypes.c_ubyte * (high - low)).from_address(low)
    memory._owner = owner
    return np.frombuffer(memory, dtype=np.uint8)


@functools.cache
def writer_class() -> Any:
    """The pickler. Made on first use, because cloudpickle comes from the image."""
    from cloudpickle import cloudpickle as cp

    class Writer(cp.Pickler):
        """Pickles one group; what it met on the way is in its fields."""

        def __init__(
            self, file: Any, buffer_callback: Any, namespace: Any, flats: Any = None, parent: Any = None
        ) -> None:
            super().__init__(file, protocol=5, buffer_callback=buffer_callback)
            self.namespace = namespace
            self.flats: dict[int, Any] = flats or {}
            self.arrays: list[Any] = []
            self.own_functions: set[int] = set()
            self.private: set[int] = set()
            self.globals_used: set[str] = set()
            self.modules_used: set[str] = set()
            self.attributes: set[str] = set()
            self.by_value: set[str] = set()  # functions and classes that only the same Python minor version can read
            self.open_classes: dict[type, str] = parent.open_classes if parent else {}
            self.class_bytes: dict[type, bytes] = parent.class_bytes if parent else {}

        def met(self, names: set[str], modules: set[str], attributes: set[str]) -> None:
            self.globals_used |= names
            self.modules_used |= modules
            self.attributes |= attributes

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            handler = _handlers.get(kind)
            if handler is None:
                handler = _handlers[kind] = _handler_of(kind)
            if handler is _PLAIN:
                return NotImplemented
            return handler(self, obj)

    class NamedWriter(Writer):
        """A Writer that leaves out objects which the reading side has under a name: `named`, id -> name."""

        named: dict[int, str]

        def persistent_id(self, obj: Any) -> Any:
            return self.named.get(id(obj))

    def function(self: Any, obj: Any) -> Any:
        if cp._should_pickle_by_reference(obj):
            self.modules_used.add(obj.__module__)
            return NotImplemented
        home = ""
        if obj.__globals__ is not self.namespace and not is_main(obj.__globals__):
            home = obj.__globals__.get("__name__", "")
            if getattr(sys.modules.get(home), "__dict__", None) is not obj.__globals__:
                return self._dynamic_function_reduce(obj)  # of no module: cloudpickle copies the globals it uses
            self.modules_used.add(home)
        else:
            reads, binds, attributes = code_names(obj.__code__)
            self.globals_used |= reads | binds
            self.attributes |= attributes
        self.own_functions.add(id(obj))
        cells = obj.__closure__ or ()
        contents = [(cell, cp._get_cell_contents(cell)) for cell in cells]
        slots = {
            "__name__": obj.__name__, "__qualname__": obj.__qualname__, "__annotations__": obj.__annotations__,
            "__kwdefaults__": obj.__kwdefaults__, "__defaults__": obj.__defaults__, "__module__": obj.__module__,
            "__doc__": obj.__doc__,
        }  # fmt: skip
        state = (dict(obj.__dict__), slots, contents)
        return Reader.make_function, (obj.__code__, home, cells or None), state, None, None, Reader.set_function

    def cell(self: Any, obj: Any) -> Any:
        return Reader.make_cell, ()  # its contents travel with the functions that close over it

    def code(self: Any, obj: Any) -> Any:
        self.by_value.add(obj.co_name)
        return Reader.make_code, (PYTHON, cp._code_reduce(obj)[1])

    def a_class(self: Any, obj: Any) -> Any:
        if obj in self.open_classes:
            return Reader.class_of, (self.open_classes[obj],)
        reduced = cp._class_reduce(obj)
        if reduced is NotImplemented or reduced[0] not in (cp._make_skeleton_class, cp._make_skeleton_enum):
            self.modules_used.add(getattr(obj, "__module__", "") or "")
            return reduced
        self.by_value.add(obj.__qualname__)
        tracker = cp._get_or_create_tracker_id(obj)
        data = self.class_bytes.get(obj)
        state = _unchanging(obj)
        cached = _written.get(obj) if state is not None else None
        if data is None and cached is not None and _same_objects(cached[0], state):
            data = self.class_bytes[obj] = cached[1]
            self.met(*cached[2])
        if data is None:
            file = io.BytesIO()
            nested = Writer(file, None, self.namespace, parent=self)
            nested.dump((reduced[0], _with_slots(obj, reduced)))
            self.open_classes[obj] = tracker
            try:
                nested.dump(reduced[2])
            finally:
                del self.open_classes[obj]
            data = file.getvalue()
            self.met(nested.globals_used, nested.modules_used, nested.attributes)
            if not self.open_classes:  # inside another class it may refer to what is only half written
                self.class_bytes[obj] = data
                if state is not None:
                    _written[obj] = (state, data, (nested.globals_used, nested.modules_used, nested.attributes))
        return Reader.make_class, (tracker, data, PYTHON)

    def module(self: Any, obj: Any) -> Any:
        name = obj.__name__
        if sys.modules.get(name) is not obj:
            return cp._module_reduce(obj)
        self.modules_used.add(name)
        return Reader.module, (name,)

    def open_file(self: Any, obj: Any) -> Any:
        if obj in (sys.stdout, sys.stderr):
            return NotImplemented
        raise TypeError("cannot pickle '_io.TextIOWrapper' object")  # cloudpickle would read the whole file

    def array(self: Any, obj: Any) -> Any:
        if obj.dtype.hasobject or not obj.nbytes:
            return NotImplemented
        if id(obj) not in self.private:
            self.arrays.append(obj)
            flat = self.flats.get(id(obj))
            if flat is not None:
                return view(obj, *flat)
        if obj.flags.forc:
            return NotImplemented
        low, high = array_bounds(obj)
        if high - low <= obj.nbytes * 3 // 2:
            return view(obj, flat_bytes(obj, low, high), low)
        import numpy as np

        return np.ascontiguousarray(obj).__reduce_ex__(5)

    def view(obj: Any, flat: Any, low: int) -> Any:
        offset = obj.__array_interface__["data"][0] - low
        return Reader.make_view, (flat, offset, obj.dtype, obj.shape, obj.strides, bool(obj.flags.writeable))

    def pandas_part(self: Any, obj: Any) -> Any:
        for attribute in ("values", "_data", "_ndarray", "_mask"):
            if attribute != "values" or "internals" in type(obj).__module__:
                self.private.add(id(getattr(obj, attribute, None)))
        return NotImplemented

    def _handler_of(kind: type) -> Any:
        if issubclass(kind, type):
            return a_class
        name = kind.__module__ or ""
        if name.startswith("pandas.") and {"Block", "Index", "ExtensionArray"} & {c.__name__ for c in kind.__mro__}:
            return pandas_part
        if name == "numpy" and kind.__name__ == "ndarray":
            return array
        return _PLAIN

    _handlers: dict[type, Any] = {
        types.FunctionType: function, types.CodeType: code, types.CellType: cell, types.ModuleType: module,
        io.TextIOWrapper: open_file,
    }  # fmt: skip
    Writer.Named = NamedWriter
    return Writer


def _with_slots(kind: type, reduced: Any) -> Any:
    """The arguments of a class's skeleton, with its slots: cloudpickle sets them on a class that is made, when they are but a
    name, so that its objects have a `__dict__`, and what they hold cannot be read by those that have none."""
    slots = vars(kind).get("__slots__")
    if reduced[0].__name__ != "_make_skeleton_class" or not isinstance(slots, (str, tuple, list, dict)):
        return reduced[1]
    constructor, name, bases, given, *rest = reduced[1]
    return (constructor, name, bases, {**given, "__slots__": slots}, *rest)


class Reader(pickle.Unpickler):
    """Reads what a Writer of either side wrote, into `namespace`.

    Only in executors and in the user's own kernel, after MACs were checked. A class that this process has already is
    changed only with `update_classes`; else its new state is put into `class_updates` for the caller to decide.
    """

    def __init__(self, file: Any, buffers: Any, namespace: dict[str, Any], update_classes: bool) -> None:
        super().__init__(file, buffers=buffers)
        self.namespace = namespace
        self.update_classes = update_classes
        self.class_updates: list[tuple[type, Any]] = []

    def find_class(self, module: str, name: str) -> Any:
        """Names of our own file are this reader's methods, whichever side wrote them."""
        if module in ("cellburst_runner.values_pickle", "cellburst_jupyter.names_pickle"):
            return getattr(self, name.rpartition(".")[2])
        return super().find_class(module, name)

    def persistent_load(self, name: Any) -> Any:
        """An object that this side has under a name."""
        return self.namespace[name]

    def make_code(self, python: tuple[int, int], parts: tuple[Any, ...]) -> types.CodeType:
        """A code object. Raises PythonDiffers when it is another version's."""
        if python != PYTHON:
            raise PythonDiffers(python)
        return types.CodeType(*parts)

    def make_function(self, code: types.CodeType, home: str, cells: tuple[Any, ...] | None) -> types.FunctionType:
        """A function whose globals are the namespace, or those of the module `home`."""
        namespace = importlib.import_module(home).__dict__ if home else self.namespace
        return types.FunctionType(code, namespace, code.co_name, None, cells)

    def set_function(self, function: types.FunctionType, state: Any) -> None:
        """Its attributes, defaults and the contents of its cells."""
        from cloudpickle import cloudpickle as cp

        attributes, slots, contents = state
        function.__dict__.update(attributes)
        for key, value in slots.items():
            setattr(function, key, value)
        for cell, value in contents:
            if value is not cp._empty_cell_value:
                cell.cell_contents = value

    def make_cell(self) -> Any:
        """An empty cell."""
        return types.CellType()

    def class_of(self, tracker: str) -> type:
        """The class of an id, while it is being read."""
        from cloudpickle import cloudpickle as cp

        found: type = cp._DYNAMIC_CLASS_TRACKER_BY_ID[tracker]
        return found

    def make_class(self, tracker: str, data: bytes, python: tuple[int, int] = PYTHON) -> type:
        """The class of an id: the one this process has, or made anew from its definition. Raises PythonDiffers."""
        from cloudpickle import cloudpickle as cp

        if python != PYTHON:
            raise PythonDiffers(python)
        known: type | None = cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
        if known is not None and _applied.get(known) == data:
            return known
        nested = Reader(io.BytesIO(data), (), self.namespace, self.update_classes)
        make, arguments = nested.load()
        made: type = make(*arguments)
        state = nested.load()
        self.class_updates += nested.class_updates
        if known is None or self.update_classes:
            cp._class_setstate(made, state)
            _applied[made] = data
        else:
            self.class_updates.append((made, state))
        return made

    def module(self, name: str, inner: tuple[str, ...] = ()) -> types.ModuleType:
        """A module by name, imported now if it was not, and those inside it that the other side uses as its attributes."""
        for dotted in inner:
            importlib.import_module(dotted)
        return importlib.import_module(name)

    def make_view(self, flat: Any, offset: int, dtype: Any, shape: Any, strides: Any, writeable: bool) -> Any:
        """An array over part of another one's memory."""
        import numpy as np

        array: Any = np.ndarray(shape, dtype, buffer=flat, offset=offset, strides=strides)
        if not writeable:
            array.flags.writeable = False
        return array

    def dill(self, data: bytes, python: tuple[int, int] = PYTHON) -> Any:
        """What only dill could write, which may hold code. Raises PythonDiffers."""
        import dill

        if python != PYTHON:
            raise PythonDiffers(python)
        return dill.loads(data)  # noqa: S301, RUF100 - read where the pickle around it is


def write(
    value: Any, namespace: dict[str, Any], flats: Any = None, named: Any = None
) -> tuple[Any, memoryview, list[memoryview]]:
    """The writer, the pickle and its out-of-band buffers, uncopied. Raises whatever the value's own reducers raise.

    `named`: objects (by id) that the reading side has under a name; only references to them are written.
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < SMALL_BUFFER_BYTES:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    kind = writer_class().Named if named else writer_class()
    writer = kind(file, keep, namespace, flats)
    writer.named = named
    writer.dump(value)
    return writer, file.getbuffer(), buffers


def read(stream: Any, buffers: Any, namespace: dict[str, Any], update_classes: bool) -> tuple[Any, Any, Reader]:
    """The value, what was appended to its pickle (or None), and the reader with what it met."""
    file = io.BytesIO(stream)
    reader = Reader(file, buffers, namespace, update_classes)
    value = reader.load()
    extra = Reader(file, (), namespace, False).load() if file.tell() < len(stream) else None
    return value, extra, reader
