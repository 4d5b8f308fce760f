"""Reading Python: which names a cell reads, binds and deletes at its top level, by `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class CellReading:
    """What the text of a cell says, before anything is known of the notebook's values.

    `read` are names read before the cell has certainly bound them, `read_after` those it reads later only; `bound` all it
    may bind, `certain` those it binds on every path. `attributes` are all attribute names, `imports` dotted module names.
    """

    read: set[str] = field(default_factory=set)
    read_after: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    certain: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)


def read_tree(tree: ast.Module) -> CellReading:
    """Read a whole cell, statement by statement, so that `x = 1; f(x)` does not count as needing an x from before."""
    reading = CellReading()
    for statement in tree.body:
        visitor = _Visitor()
        visitor.visit(statement)
        for name in visitor.read:
            (reading.read_after if name in reading.certain else reading.read).add(name)
        reading.bound |= visitor.bound
        reading.deleted |= visitor.deleted
        reading.attributes |= visitor.attributes
        reading.imports |= visitor.imports
        reading.certain |= set(_certainly_bound(statement))
        reading.certain -= visitor.deleted
    return reading


def _certainly_bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds whenever it ends without an exception."""
    match statement:
        case ast.Assign(targets=targets):
            for target in targets:
                yield from _targets(target)
        case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (_bound_by_import(a) for a in names if a.name != "*")
        case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
            for item in items:
                if item.optional_vars is not None:
                    yield from _targets(item.optional_vars)
            for inner in body:  # a context manager that swallows exceptions is rare, and costs only a name not sent
                yield from _certainly_bound(inner)


def _targets(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name(id=name):
            yield name
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            for element in elements:
                yield from _targets(element)
        case ast.Starred(value=value):
            yield from _targets(value)


def _bound_by_import(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


class _Visitor(ast.NodeVisitor):
    """One statement's names. `local` is the stack of inner scopes; a name that no inner scope binds is the notebook's."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.bound: set[str] = set()
        self.deleted: set[str] = set()
        self.attributes: set[str] = set()
        self.imports: set[str] = set()
        self._local: list[tuple[set[str], bool]] = []  # (names, is it a class body: not seen by functions inside)
        self._global: list[set[str]] = []
        self._caught: list[str | None] = []

    # names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._reads(node.id)
        elif isinstance(node.ctx, ast.Store):
            self._binds(node.id)
        elif not self._local or node.id in self._global[-1]:
            self.deleted.add(node.id)

    def _reads(self, name: str) -> None:
        if name in self._caught:
            return
        for depth, (names, is_class) in enumerate(reversed(self._local)):
            if name in names and not (is_class and depth):
                if is_class:
                    self.read.add(name)  # a class body reads the notebook's name until it has bound its own
                return
        self.read.add(name)

    def _binds(self, name: str) -> None:
        if not self._local or name in self._global[-1]:
            self.bound.add(name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.attributes.add(node.attr)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._reads(node.target.id)
        self.generic_visit(node)

    # statements that bind without a Name node

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imports.add(alias.name)
            self._binds(_bound_by_import(alias))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if not node.level:
            self.imports.add(module)
            self.imports.update(f"{module}.{a.name}" for a in node.names if a.name != "*")
        for alias in node.names:
            if alias.name != "*":
                self._binds(_bound_by_import(alias))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Python unbinds the name at the end of the handler: it is bound inside, and deleted afterwards."""
        if node.type is not None:
            self.visit(node.type)
        if node.name and (not self._local or node.name in self._global[-1]):
            self.deleted.add(node.name)
        self._caught.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self._caught.pop()

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self._binds_pattern(node.name, node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self._binds_pattern(node.name, node)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self._binds_pattern(node.rest, node)

    def _binds_pattern(self, name: str | None, node: ast.AST) -> None:
        if name:
            self._binds(name)
        self.generic_visit(node)

    # scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._binds(node.name)
        for outside in [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults, node.returns]:
            if outside is not None:
                self.visit(outside)
        for argument in _arguments(node.args):
            if argument.annotation is not None:
                self.visit(argument.annotation)
        self._scope(node.body, {a.arg for a in _arguments(node.args)})

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._scope([node.body], {a.arg for a in _arguments(node.args)})

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._binds(node.name)
        for outside in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(outside)
        self._scope(node.body, set(), is_class=True)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        self.visit(node.generators[0].iter)
        names = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        for walrus in (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr)):
            self._binds(walrus.target.id)  # binds in the scope around the comprehension
        self._local.append((names, False))
        self._global.append(set())
        for number, generator in enumerate(node.generators):
            for part in [*([generator.iter] if number else []), *generator.ifs]:
                self.visit(part)
        for result in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(result)
        self._local.pop()
        self._global.pop()

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._comprehension(node)

    def _scope(self, body: list[ast.stmt] | list[ast.expr], names: set[str], is_class: bool = False) -> None:
        declared = {n for s in _own_nodes(body) if isinstance(s, ast.Global) for n in s.names}
        for part in _own_nodes(body):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
            elif isinstance(part, ast.Import | ast.ImportFrom):
                names.update(_bound_by_import(a) for a in part.names)
            elif isinstance(part, _NAMED) and part.name:
                names.add(part.name)
            elif isinstance(part, ast.MatchMapping) and part.rest:
                names.add(part.rest)
        self._local.append((names - declared, is_class))
        self._global.append(declared)
        for part in body:
            self.visit(part)
        self._local.pop()
        self._global.pop()


_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def _own_nodes(body: list[ast.stmt] | list[ast.expr]) -> Iterator[ast.AST]:
    """All nodes of a body that belong to its own scope: inner functions and classes are given but not entered."""
    stack: list[ast.AST] = list(body)
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        stack.extend(ast.iter_child_nodes(node))
