"""What of a notebook would fail when nobody is there: read from its cells, before it is scheduled. Pure but for looking whether
paths and modules are there; nothing of the notebook is run.

A finding is a "problem" (the run would fail) or a "hint" (it may).
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cellburst_protocol.modal_lines import line_values
from cellburst_protocol.notebooks import CodeCell, code_cells
from cellburst_protocol.resources import Resources

NETWORK_MODULES = frozenset(
    """requests httpx urllib3 aiohttp boto3 s3fs gcsfs psycopg psycopg2 pymysql pymongo redis paramiko smtplib ftplib websockets
    huggingface_hub kaggle wget openai anthropic""".split()  # noqa: SIM905 - a word list is easier to read
)
_SHELL_NETWORK = re.compile(r"^\s*[!%]\s*(pip|uv|conda|mamba|curl|wget|git)\b", re.MULTILINE)
_PATH = re.compile(r"(~|/home/|/Users/|/root/)[^\s'\"]*")
_MAGIC = re.compile(r"^(\s*)([%!?].*|.*\?\??\s*$)", re.MULTILINE)
_MAX_FINDINGS = 50


@dataclass(frozen=True)
class Finding:
    """One thing, in a cell (its number over all cells; 0: the notebook)."""

    kind: Literal["problem", "hint"]
    cell: int
    text: str

    def line(self) -> str:
        """For people."""
        return f"{f'cell {self.cell}: ' if self.cell else ''}{self.text}"


@dataclass(frozen=True)
class Surroundings:
    """Where the run will be. `shown(path)`: whether the run sees that path of this machine. `modules`: top-level names beside the
    notebook that go with it; `known(module)`: whether the environment has it. `variables` are those that the run will have.

    `own_machines`: `%%modal` cells have sessions of their own, with `cell_variables`; else all cells share the run's session."""

    folder: str
    shown: Callable[[str], bool]
    modules: frozenset[str]
    known: Callable[[str], bool]
    variables: frozenset[str]
    network: str
    gpu: str = ""
    own_machines: bool = False
    cell_variables: frozenset[str] = frozenset()

    def of(self, cell: CodeCell) -> Surroundings:
        """What a cell has around it."""
        if cell.asked is None or not self.own_machines:
            return self
        network = line_values(cell.asked).get("network", Resources().network)
        return replace(self, variables=self.cell_variables, network=network)


def preflight(notebook: Mapping[str, Any], around: Surroundings) -> list[Finding]:
    """All findings, in the order of the cells."""
    cells = code_cells(notebook)
    found: list[Finding] = [*_mixed(cells, around)]
    everywhere = around
    for cell in cells:
        around = everywhere.of(cell)
        tree = _tree(cell.code)
        if tree is None:
            if not cell.code.lstrip().startswith("%%"):
                found.append(Finding("hint", cell.number, "its code cannot be read here: it is not checked"))
            continue
        found += [
            *_inputs(cell, tree),
            *_variables(cell, tree, around),
            *_paths(cell, tree, around),
            *_imports(cell, tree, around),
        ]
        if around.network == "none" and _SHELL_NETWORK.search(cell.code):
            found.append(
                Finding("problem", cell.number, "a command of it needs a network, and the run has none (network=none)")
            )
    return list(dict.fromkeys(found))[:_MAX_FINDINGS]


def _mixed(cells: list[CodeCell], around: Surroundings) -> Iterator[Finding]:
    """`%%modal` cells among plain ones: on machines of their own, or in one session with all others."""
    remote = [cell for cell in cells if cell.asked is not None]
    if around.own_machines:
        both = [cell for cell in remote if around.gpu and _gpu(cell.asked or "") == around.gpu]
        if both:
            yield Finding(
                "hint", 0, f"cell {both[0].number} asks for gpu={around.gpu} of its own, beside what the run's plain cells"
                " hold: two are needed at once (leave --gpu out, or --modal-cells same)",
            )  # fmt: skip
        return
    plain = [cell for cell in cells if cell.asked is None]
    if remote and plain:
        numbers = ", ".join(str(cell.number) for cell in remote[:10])
        where = f"gpu={around.gpu}" if around.gpu else "the schedule's resources"
        yield Finding(
            "hint", 0, f"cells {numbers} are %%modal cells and the others are not: a run executes all of them in one session with"
            f" {where}, and what each %%modal line asks for is not looked at again",
        )  # fmt: skip
    asked = {gpu for cell in remote if (gpu := _gpu(cell.asked or ""))}
    others = sorted(asked - {around.gpu})
    if others:
        has = f"gpu={around.gpu}" if around.gpu else "no GPU"
        yield Finding("hint", 0, f"%%modal lines ask for gpu={', gpu='.join(others)}; the run has {has}")


def _gpu(line: str) -> str:
    return line_values(line).get("gpu", "")


def _tree(code: str) -> ast.Module | None:
    """The cell's tree; lines of IPython's own syntax count as `pass`."""
    for text in (code, _MAGIC.sub(r"\1pass", code)):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
    return None


def _inputs(cell: CodeCell, tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _dotted(node.func)
            if name in ("input", "getpass", "getpass.getpass", "breakpoint", "pdb.set_trace"):
                then = "make it a parameter or a secret" if "pass" in name or name == "input" else "leave it out"
                yield Finding("problem", cell.number, f"{name}() waits for a person, and none is there: {then}")


def _variables(cell: CodeCell, tree: ast.Module, around: Surroundings) -> Iterator[Finding]:
    for node in ast.walk(tree):
        name: object = None
        if (
            isinstance(node, ast.Subscript)
            and _dotted(node.value) in ("os.environ", "environ")
            and isinstance(node.ctx, ast.Load)
        ):
            name = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if isinstance(name, str) and name not in around.variables:
            yield Finding(
                "problem", cell.number, f"the variable {name} is not set in a run: put it into a secret (secrets=)"
            )
        if (
            isinstance(node, ast.Call)
            and _dotted(node.func) in ("os.getenv", "os.environ.get", "getenv", "environ.get")
            and node.args
        ):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value not in around.variables:
                yield Finding(
                    "hint",
                    cell.number,
                    f"the variable {first.value} is not set in a run: a secret (secrets=) would set it",
                )


def _paths(cell: CodeCell, tree: ast.Module, around: Surroundings) -> Iterator[Finding]:
    home = os.path.expanduser("~")  # noqa: PTH111 - text in, text out
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or len(node.value) > 1000:
            continue
        text = node.value
        if not _PATH.match(text) and not (text.startswith(home + "/") and home != "/"):
            continue
        path = os.path.expanduser(text)  # noqa: PTH111
        if not around.shown(path):
            yield Finding(
                "problem", cell.number,
                f"{text[:80]!r} is not shown to a run: put the file beside the notebook, or into a volume (volumes=)",
            )  # fmt: skip


def _imports(cell: CodeCell, tree: ast.Module, around: Surroundings) -> Iterator[Finding]:
    for module in _imported(tree):
        if module in around.modules:
            continue
        if not around.known(module):
            yield Finding(
                "problem",
                cell.number,
                f"the module {module!r} is neither installed in the environment nor beside the notebook",
            )
        elif around.network == "none" and module in NETWORK_MODULES:
            yield Finding("hint", cell.number, f"{module} may need a network, and the run has none (network=none)")


def _imported(tree: ast.Module) -> Iterable[str]:
    names: list[str] = []
    guarded = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue  # code that does without it says so
        if isinstance(node, ast.Import):
            names += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module.partition(".")[0])
    return dict.fromkeys(name for name in names if name not in sys.stdlib_module_names or name in NETWORK_MODULES)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""
