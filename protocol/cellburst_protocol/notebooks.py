"""A notebook that runs without a person: checked, its cells made ready, its parameters set. Pure: text in, text out.

Parameters are set as papermill does it: a cell with the tag `parameters` has the defaults, and a cell with the tag
`injected-parameters` comes after it. What is given must be a name that the defaults bind, of the default's type.

Lines that belong to the notebook's own kernel say nothing to a run: `%modal …` and `%load_ext cellburst_jupyter` stay in the
code as comments, so that line numbers are the editor's; so does `%%modal …`, unless such cells have machines of their own.
"""

from __future__ import annotations

import ast
import copy
import difflib
import io
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .errors import CellburstError, ErrorCode, error
from .schedules import is_finite

MAX_NOTEBOOK_BYTES = 200 * 1024**2
PARAMETERS_TAG, INJECTED_TAG, RAISES_TAG = "parameters", "injected-parameters", "raises-exception"
_CELL_LINE = re.compile(r"\s*%%(modal|gpu)(?=\s|$)(.*)")
_OWN_LINE = re.compile(r"(\s*)(%(?:modal|gpu)(?=\s|$).*|%(?:load|reload|unload)_ext\s+cellburst_jupyter\s*)$")
_ACTS = re.compile(
    r"\s*%(?:modal|gpu)\s+(?:get|put|stop|restart)(?=\s|$)"
)  # what means the same to a run as to a person
_TYPES: dict[type, tuple[type, ...]] = {float: (float, int)}
_NAMES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class CodeCell:
    """A code cell to run. `index` is its place in the notebook, from 0; people count `number` over all cells, from 1."""

    index: int
    code: str
    asked: str | None = None  # what stood after %%modal, where that was its first line
    may_raise: bool = False
    notes: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Its number over all cells, as notebooks are counted by people."""
        return self.index + 1


def read(data: bytes, name: str = "the notebook") -> dict[str, Any]:
    """A notebook's JSON. Raises RequestError (BAD_ARGUMENT, TOO_LARGE) for what is none, or of before nbformat 4."""
    if len(data) > MAX_NOTEBOOK_BYTES:
        raise error(
            ErrorCode.TOO_LARGE, f"{name} has {len(data) / 1e6:.0f} MB", allowed=f"at most {MAX_NOTEBOOK_BYTES // 1024**2} MiB",
            next="clear its outputs, and put data into files or a volume",
        )  # fmt: skip
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as why:
        raise _no_notebook(name, f"it is no JSON ({why})") from None
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(found, dict) or "nbformat" not in found:
        raise _no_notebook(name, "it is JSON of something else")
    if found.get("nbformat") != 4:
        raise _no_notebook(name, f"it has the format {str(found.get('nbformat'))[:20]}, not 4")
    if not isinstance(cells, list) or not all(_is_cell(cell) for cell in cells):
        raise _no_notebook(name, "its cells are malformed")
    return found


def source_of(cell: Mapping[str, Any]) -> str:
    """A cell's text, which may be saved as a list of lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def tags_of(cell: Mapping[str, Any]) -> list[str]:
    """A cell's tags."""
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def code_cells(notebook: Mapping[str, Any], *, own_machines: bool = False) -> list[CodeCell]:
    """The code cells that have code, in order, ready to run. `own_machines`: where they run there is a `%%modal` that works, so
    its cells stay as they are."""
    found: list[CodeCell] = []
    for index, cell in enumerate(notebook["cells"]):
        text = source_of(cell)
        if cell["cell_type"] != "code" or not text.strip():
            continue
        code, asked, notes = made_ready(text, own_machines)
        found.append(CodeCell(index, code, asked, RAISES_TAG in tags_of(cell), tuple(notes)))
    return found


def made_ready(text: str, own_machines: bool = False) -> tuple[str, str | None, list[str]]:
    """A cell's code for a run; what stood after `%%modal`, if that was its first line; what was skipped."""
    lines, asked = text.split("\n"), None
    notes: list[str] = []
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    found = _CELL_LINE.match(lines[first])
    if found is not None:
        asked = found[2].strip()
        if own_machines:
            return text, asked, notes
        following = "\n".join(lines[first + 1 :])
        if following.lstrip().startswith("%%"):  # another cell magic has to stay first
            lines = following.split("\n")
        else:
            lines[first] = f"# {lines[first].strip()}"
    inside = _in_strings("\n".join(lines))
    for number, line in enumerate(lines):
        own = _OWN_LINE.match(line)
        if own is not None and number + 1 not in inside and not (own_machines and _ACTS.match(line)):
            lines[number] = f"{own[1]}pass  # {own[2].strip()}"
            notes.append(f"`{own[2].strip()[:60]}` is for a notebook's own kernel: it is skipped")
    return "\n".join(lines), asked, notes


def defaults(notebook: Mapping[str, Any]) -> dict[str, type | None] | None:
    """Names that the cell with the tag `parameters` binds, with the type of each (None: any). None: there is no such cell."""
    cell = next((c for c in notebook["cells"] if c["cell_type"] == "code" and PARAMETERS_TAG in tags_of(c)), None)
    if cell is None:
        return None
    try:
        tree = ast.parse(made_ready(source_of(cell))[0])
    except (SyntaxError, ValueError) as why:
        raise error(ErrorCode.BAD_ARGUMENT, f"the cell with the tag `parameters` is no plain Python: {why}") from None
    found: dict[str, type | None] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _type_of(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named = _NAMES.get(node.annotation.id) if isinstance(node.annotation, ast.Name) else None
            found[node.target.id] = named or (_type_of(node.value) if node.value is not None else None)
    return found


def check_parameters(notebook: Mapping[str, Any], given: Mapping[str, object]) -> None:
    """Raises RequestError (BAD_ARGUMENT) for a name that is no parameter, or a value of another type than its default's."""
    if not given:
        return
    known = defaults(notebook)
    if known is None:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"parameters are given ({', '.join(given)[:100]}), and no cell of the notebook has the tag"
            " `parameters`", next="give that tag to the cell that has the defaults (JupyterLab: the property inspector)",
        )  # fmt: skip
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{name[:80]!r} is no parameter of the notebook", allowed=", ".join(known) or "none",
                next=f"did you mean {near[0]}?" if near else "",
            )  # fmt: skip
        wanted = known[name]
        if not is_finite(value):
            raise error(ErrorCode.BAD_ARGUMENT, f"parameter {name} has a value that JSON cannot carry", allowed=_KINDS)
        if wanted is not None and type(value) not in _TYPES.get(wanted, (wanted,)):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"parameter {name}={str(value)[:60]!r} is of type {_type_name(value)}",
                allowed=f"{wanted.__name__}, as its default is",
            )  # fmt: skip


_KINDS = "bool, int, float, str, list, dict, None"


def with_parameters(notebook: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, Any]:
    """A copy of the notebook without outputs and with a cell that sets the parameters. Checks them first."""
    check_parameters(notebook, given)
    made: dict[str, Any] = copy.deepcopy(dict(notebook))
    cells = [cell for cell in made["cells"] if INJECTED_TAG not in tags_of(cell)]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    if given:
        at = next(n for n, c in enumerate(cells) if c["cell_type"] == "code" and PARAMETERS_TAG in tags_of(c))
        text = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
        new: dict[str, Any] = {
            "cell_type": "code", "execution_count": None, "metadata": {"tags": [INJECTED_TAG]}, "outputs": [], "source": text,
        }  # fmt: skip
        if int(made.get("nbformat_minor") or 0) >= 5:
            new["id"] = "injected-parameters"
        cells.insert(at + 1, new)
    made["cells"] = cells
    return made


def _type_of(node: ast.expr) -> type | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        node = node.operand
    if isinstance(node, ast.Constant):
        return type(node.value) if isinstance(node.value, bool | int | float | str) else None
    if isinstance(node, ast.JoinedStr):
        return str
    return (
        list
        if isinstance(node, ast.List | ast.ListComp)
        else dict
        if isinstance(node, ast.Dict | ast.DictComp)
        else None
    )


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _is_cell(cell: object) -> bool:
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        return False
    text = cell.get("source")
    return isinstance(text, str) or (isinstance(text, list) and all(isinstance(line, str) for line in text))


def _in_strings(code: str) -> set[int]:
    """Numbers (from 1) of lines that lie within a string of several lines, as far as the code can be read."""
    inside: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.end[0] > token.start[0] and token.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.DEDENT):
                inside.update(range(token.start[0] + 1, token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError):
        pass  # magics and shell lines may end it early: what was read counts
    return inside


def _no_notebook(name: str, why: str) -> CellburstError:
    return error(
        ErrorCode.BAD_ARGUMENT, f"{name} is no notebook that can be run: {why}", allowed="a notebook of format 4 (.ipynb)",
        next="open it in JupyterLab and save it again",
    )  # fmt: skip
