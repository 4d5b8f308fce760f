"""What a cell needs: its text is read by `names_scope`, then the notebook's functions and classes it uses are followed."""

from __future__ import annotations

import ast
import builtins
import functools
import re
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .names_pickle import code_names
from .names_scope import CellReading, read_tree

_hidden = re.compile(r"(In|Out|open|get_ipython|exit|quit|display|_{1,3}|_i{1,3}|_i\d+|_\d+|_[iod]h|__\w+__)\Z")
_NAME = re.compile(r"[^\W\d]\w*")
_EXPANDED = re.compile(r"\{([^{}]+)\}|\$([^\W\d]\w*)")
_CODE_MAGICS = {"time", "timeit", "prun", "memit", "mprun", "lprun", "capture", "debug"}
_NAME_MAGICS = {"pinfo", "pinfo2", "psource", "pdoc", "pdef", "pfile"}
_MOST_VALUES = (
    200  # elements of a container that are looked through for functions and objects of the notebook's classes
)
_DEEPEST = 20  # a class, its base, a property, its function, what that uses: six steps are soon gone


@dataclass
class CellNames:
    """The names of one cell.

    `used`: read, or reached through functions; may be changed in place. `needed`: those of them that this kernel has and
    the cell reads before it has bound them, and those it binds only on some path. `modules`: name -> module, for names that
    are modules here.
    """

    used: list[str] = field(default_factory=list)
    bound: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()


def hidden(name: str) -> bool:
    """Whether a name is IPython's own, and so never sent or brought home."""
    return _hidden.match(name) is not None


def read_cell(cell: str | ast.Module, user_ns: dict[str, Any], shell: Any = None) -> CellNames:
    """Read a cell's names from its text, or from its tree where somebody had to parse it already. Raises SyntaxError, as
    IPython's own reading would."""
    reading = _read_tree(cell if isinstance(cell, ast.Module) else _parse(cell, shell), shell)
    bound = {n for n in reading.bound if not hidden(n)}
    read = {n for n in reading.read if _is_users(n, user_ns)}
    maybe = {n for n in bound - reading.certain if n in user_ns}
    through, stored, attributes = follow(read | {n for n in reading.read_after if n in user_ns}, user_ns)
    through = {n for n in through if not hidden(n)}
    bound |= {n for n in stored if not hidden(n)}
    used = read | {n for n in reading.read_after if _is_users(n, user_ns)} | through
    needed = {n for n in read | maybe | through | (stored & set(user_ns)) if n in user_ns}
    return CellNames(
        used=sorted(used),
        bound=sorted(bound),
        deleted=sorted(n for n in reading.deleted if not hidden(n)),
        needed=sorted(needed),
        modules={n: user_ns[n].__name__ for n in needed if isinstance(user_ns[n], types.ModuleType)},
        attributes=frozenset(reading.attributes | attributes),
        imports=frozenset(reading.imports),
    )


def _is_users(name: str, user_ns: dict[str, Any]) -> bool:
    return not hidden(name) and (name in user_ns or not hasattr(builtins, name))


def _parse(body: str, shell: Any) -> ast.Module:
    return ast.parse(_transform(body, shell), filename="<cell>")


def _read_tree(tree: ast.Module, shell: Any) -> CellReading:
    reading = read_tree(tree)
    if "get_ipython" in reading.read or "get_ipython" in reading.read_after:  # what IPython makes of magics
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            _read_magic(call, reading, shell)
    return reading


def _transform(body: str, shell: Any) -> str:
    if shell is not None:
        return str(shell.transform_cell(body))
    from IPython.core import inputtransformer2

    manager: Any = inputtransformer2.TransformerManager
    return str(manager().transform_cell(body))


def _read_magic(call: ast.Call, reading: CellReading, shell: Any) -> None:
    """Names inside the text of a magic: code of `%time` and the like, `{x}` and `$x` of all."""
    match call.func:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=method):
            texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        case _:
            return
    reading.read.discard("get_ipython")
    if method in ("system", "getoutput", "sx") and texts:
        _read_expanded(texts[0], reading, shell)
    elif method in ("run_line_magic", "run_cell_magic") and len(texts) >= 2:
        name, line, *rest = texts
        if name in _NAME_MAGICS:
            reading.read.update(_NAME.findall(line)[:1])
        elif name == "capture" and rest:
            reading.bound.update(n for n in line.split() if n.isidentifier())
        elif name in _CODE_MAGICS:
            _read_more(re.sub(r"^(\s*-\w+(\s+\d+)?)+\s", "", line + " "), reading, shell)
        else:
            _read_expanded(line, reading, shell)
        if name in _CODE_MAGICS and rest:
            _read_more(rest[0], reading, shell)


def _read_expanded(text: str, reading: CellReading, shell: Any) -> None:
    for expression, name in _EXPANDED.findall(text):
        _read_more(expression or name, reading, shell)


def _read_more(text: str, reading: CellReading, shell: Any) -> None:
    try:
        inner = _read_tree(_parse(text.strip(), shell), shell)
    except SyntaxError:
        return  # options, or a format of the magic's own: the magic will say what it thinks of it
    reading.read |= inner.read - reading.certain
    reading.bound |= inner.bound
    reading.certain |= inner.certain
    reading.attributes |= inner.attributes
    reading.imports |= inner.imports


def follow(names: Iterable[str], user_ns: dict[str, Any]) -> tuple[set[str], set[str], frozenset[str]]:
    """Names of the notebook that functions and classes behind these names use, those they bind by `global`, and the
    attributes that they mention. The names themselves are not among the first unless reached."""
    walk = _Walk(user_ns)
    for name in names:
        if name in user_ns:
            walk.value(user_ns[name], 0)
    return walk.reached, walk.stored, frozenset(walk.attributes)


class _Walk:
    """Follows functions, classes, closures, partials and what holds them, each once."""

    def __init__(self, user_ns: dict[str, Any]) -> None:
        self.user_ns = user_ns
        self.reached: set[str] = set()
        self.stored: set[str] = set()
        self.attributes: set[str] = set()
        self._seen: set[int] = set()

    def value(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in (int, float, str, bytes, bool, type(None)) or depth > _DEEPEST or id(value) in self._seen:
            return
        self._seen.add(id(value))
        inner: Iterable[Any] = ()
        if kind is types.FunctionType:
            inner = self._function(value)
        elif isinstance(value, type):
            inner = [*vars(value).values(), *value.__bases__] if _of_notebook(value) else ()
        elif isinstance(value, classmethod | staticmethod):
            inner = [value.__func__]
        elif isinstance(value, property):
            inner = [value.fget, value.fset, value.fdel]
        elif kind is types.MethodType:
            inner = [value.__func__, value.__self__]
        elif isinstance(value, functools.partial):
            inner = [value.func, *value.args, *value.keywords.values()]
        elif kind in (list, tuple, set, frozenset, dict) and len(value) <= _MOST_VALUES:
            inner = list(value.values()) if kind is dict else list(value)
        elif _of_notebook(kind):
            inner = [kind, *list(getattr(value, "__dict__", {}).values())[:_MOST_VALUES]]
        for part in inner:
            self.value(part, depth + 1)

    def _function(self, function: types.FunctionType) -> Iterable[Any]:
        inner: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        inner += function.__dict__.values()
        for cell in function.__closure__ or ():
            try:
                inner.append(cell.cell_contents)
            except ValueError:
                continue  # an empty cell: the name it closes over is not bound yet
        if function.__globals__ is self.user_ns or function.__module__ == "__main__":
            reads, binds, attributes = code_names(function.__code__)
            self.attributes |= attributes
            self.stored |= binds
            for name in (reads | binds) & self.user_ns.keys():
                self.reached.add(name)
                inner.append(self.user_ns[name])
        return inner


def _of_notebook(kind: type) -> bool:
    """Whether a class was defined in the notebook."""
    module = getattr(kind, "__module__", None)
    return module == "__main__" or module not in sys.modules
