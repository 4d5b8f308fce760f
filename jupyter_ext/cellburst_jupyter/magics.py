"""The magics `%%modal` (alias `%%gpu`) and `%modal`. Importing this is cheap: the work is imported when a cell runs.

`%modal` is also the name of a line magic of Modal's own SDK. Cell and line magics are separate tables, so `%%modal`
never clashes; where `%modal` was taken before us, ours is `%gpu` only, and that is said once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellburst_protocol.errors import CellburstError, ErrorCode

from .errors_shown import shown
from .notebook import Notebook

if TYPE_CHECKING:
    from .magic_line import CellOptions

CELL_MAGICS = ("modal", "gpu")


class Magics:
    """The functions behind the magics of one shell."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook

    def cell(self, line: str, cell: str) -> None:
        """Run the cell's body on a GPU machine: %%modal gpu=A100 [key=value ...]."""
        self._run_cell(line, cell, "modal")

    def cell_gpu(self, line: str, cell: str) -> None:
        """The same as %%modal."""
        self._run_cell(line, cell, "gpu")

    def line(self, line: str) -> Any:
        """%modal status|stop|restart|park|resume|attach|names|logs|cost|get [FILE]|put FILE|schedule."""
        from .line_magics import run_line

        try:
            return run_line(self.notebook, line)
        except CellburstError as problem:
            raise shown(problem) from None

    def _run_cell(self, line: str, body: str, magic: str) -> None:
        from .cell import run_cell
        from .magic_line import parse_cell_line

        try:
            try:
                options = parse_cell_line(line, self._gpu_types())
            except CellburstError as problem:
                if problem.code is not ErrorCode.UNKNOWN_GPU or self._gpu_types():
                    raise
                self.notebook.hub.connect()  # the fleet may have a type that the table lacks
                options = parse_cell_line(line, self._gpu_types())
            options = self._with_uses(line, options)
        except CellburstError as problem:
            raise shown(problem) from None
        run_cell(self.notebook, options, body, magic)

    def _with_uses(self, line: str, options: CellOptions) -> CellOptions:
        """With the volumes and secrets that the notebook itself names."""
        from .magic_line import parse_cell_line
        from .notebook_uses import told_where, with_uses

        more = with_uses(line, self.notebook.uses.now(), options.given)
        if more == line:
            return options
        try:
            return parse_cell_line(more, self._gpu_types())
        except CellburstError as problem:
            raise told_where(problem) from None

    def _gpu_types(self) -> tuple[str, ...]:
        hub = self.notebook.hub if self.notebook.has_hub else None
        return tuple(hub.welcome.gpu_types) if hub is not None and hub.welcome is not None else ()


def register(shell: Any, notebook: Notebook) -> Magics:
    """Register the magics with a shell."""
    magics = Magics(notebook)
    for name, function in (("modal", magics.cell), ("gpu", magics.cell_gpu)):
        shell.register_magic_function(function, magic_kind="cell", magic_name=name)
    taken = shell.magics_manager.magics["line"].get("modal")
    if taken is None or getattr(taken, "__self__", None).__class__.__name__ == Magics.__name__:
        shell.register_magic_function(magics.line, magic_kind="line", magic_name="modal")
    shell.register_magic_function(magics.line, magic_kind="line", magic_name="gpu")
    return magics


def unregister(shell: Any, magics: Magics) -> None:
    """Take back what `register` did, and nothing else."""
    for kind, names in (("cell", CELL_MAGICS), ("line", CELL_MAGICS)):
        table = shell.magics_manager.magics[kind]
        for name in names:
            if getattr(table.get(name), "__self__", None) is magics:
                del table[name]
