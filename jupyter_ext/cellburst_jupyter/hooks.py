"""What is hooked into the shell: completion, a word about names that live remotely, `%debug` after a remote error."""

from __future__ import annotations

import logging
from typing import Any

from cellburst_protocol.errors import CellburstError

from .errors_shown import RemoteError
from .notebook import Notebook
from .publish import kernel_of, tell

ASK_SECONDS = 0.3
log = logging.getLogger(__name__)


class Hooks:
    """The hooks of one shell. Each is harmless until a `%%modal` cell was run."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._shell = notebook.shell
        self._completion: Any = None
        self._debug: Any = None

    def install(self) -> None:
        """Put all hooks in place."""
        self._shell.events.register("post_run_cell", self.after_cell)
        self._shell.events.register("pre_run_cell", self.before_cell)
        kernel = kernel_of(self._shell)
        if kernel is not None:
            from .completion import Completion

            self._completion = Completion(self._notebook, kernel)
            self._completion.install()
        self._notebook.on_remote_error = self._wrap_debug

    def _wrap_debug(self) -> None:
        """At the first remote error: IPython loads its own %debug late, and by name, so it must be found first."""
        if self._debug is None:
            self._debug = self._shell.find_line_magic("debug")
            self._shell.register_magic_function(self.debug, magic_kind="line", magic_name="debug")

    def uninstall(self) -> None:
        """Take all hooks away again."""
        self._shell.events.unregister("post_run_cell", self.after_cell)
        self._shell.events.unregister("pre_run_cell", self.before_cell)
        if self._completion is not None:
            self._completion.uninstall()
        if self._debug is not None:
            self._shell.magics_manager.magics["line"]["debug"] = self._debug

    def before_cell(self, info: object = None) -> None:
        """Names of detached cells that have ended come home before the next cell of any kind."""
        for cell in list(self._notebook.detached.values()):
            cell.bring_home()

    def after_cell(self, result: Any = None) -> None:
        """After a local NameError: say where the name lives, if it lives in a container."""
        problem = getattr(result, "error_in_exec", None)
        if not isinstance(problem, NameError) or isinstance(problem, RemoteError) or not self._notebook.has_hub:
            return
        name = getattr(problem, "name", None)
        if not isinstance(name, str):
            return
        for session in list(self._notebook.hub.sessions.values()):
            kind = session.there.get(name)
            if kind is None and session.container_id and session.current is None:
                kind = self._ask(session, name)
            if kind is not None:
                where = f"`{name}` ({kind}) lives in session {session.name!r}"
                tell(f"{where}: use it in a %%modal cell, or bring it here with `%%modal out={name}`", warning=True)
                return

    def _ask(self, session: Any, name: str) -> str | None:
        try:
            reply, _ = session.side("names", timeout_seconds=ASK_SECONDS)
        except (CellburstError, TimeoutError):
            return None
        found = [item for item in reply.content.get("names") or [] if item.get("name") == name]
        return str(found[0].get("type", "a value")) if found else None

    def debug(self, line: str, cell: str | None = None) -> None:
        """%debug: after a remote error it opens the debugger in the container, otherwise IPython's own here."""
        import sys

        last = getattr(sys, "last_value", None)
        session = self._notebook.last_error_session
        if isinstance(last, CellburstError) and not line.strip():
            tell("%debug: the last cell was ended by the platform, there are no frames to look at", warning=True)
            return
        if line.strip() or not isinstance(last, RemoteError) or session is None:
            self._debug(line)
            return
        if not session.container_id:
            tell("%debug: the container in which that error happened is gone, and its frames with it", warning=True)
            return
        kernel = kernel_of(self._shell)
        if kernel is None or not getattr(kernel, "_allow_stdin", False):
            tell(
                "%debug needs a front end that takes input; the remote frames cannot be shown without one", warning=True
            )
            return
        from .cell import run_cell
        from .magic_line import CellOptions

        run_cell(self._notebook, CellOptions(session=session.name, card=False, only=()), "%debug\n")
