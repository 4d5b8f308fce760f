"""How errors reach the notebook: remote ones as the remote kernel showed them, ours as a few plain lines.

IPython shows an exception that has `_render_traceback_` by calling it, and takes `ename` from the class and `evalue`
from `str()`. So a class made for each remote error gives the notebook exactly the remote kernel's own message.
"""

from __future__ import annotations

import builtins
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo


class RemoteError(Exception):
    """Code in a container raised. `ename` and `evalue` are the remote exception's, `lines` its traceback as shown."""

    ename = "RemoteError"
    evalue = ""
    lines: tuple[str, ...] = ()
    shown_in: Any = None  # the shell in whose output it stands already

    def __str__(self) -> str:
        return self.evalue

    def _render_traceback_(self) -> list[str]:
        shell, self.shown_in = self.shown_in, None  # IPython renders again for its history
        if shell is not None:
            _show_nothing_once(shell)
        return list(self.lines)


def _show_nothing_once(shell: Any) -> None:
    """The next traceback of the shell is only remembered for the reply: its message was published where it belongs."""

    def remember(kind: type, value: BaseException, lines: list[str]) -> None:
        del shell._showtraceback
        shell._last_traceback = lines

    shell._showtraceback = remember


def remote_error(ename: str, evalue: str, lines: list[str]) -> RemoteError:
    """An exception that IPython shows as the remote kernel did.

    Its class is called `ename` and also derives from the builtin of that name, where that is an ordinary exception, so
    that `except ValueError` around `run_cell_magic` works. IPython treats SyntaxError by itself, so not from that one.
    """
    bases: tuple[type, ...] = (RemoteError,)
    builtin = getattr(builtins, ename, None)
    if isinstance(builtin, type) and issubclass(builtin, Exception) and not issubclass(builtin, SyntaxError):
        bases = (RemoteError, builtin)
    space: dict[str, Any] = {"__module__": "builtins", "ename": ename, "evalue": evalue, "lines": tuple(lines)}
    try:
        return _make(ename, bases, space)
    except TypeError:  # an exception with a layout or arguments of its own (UnicodeDecodeError)
        return _make(ename, (RemoteError,), space)


def _make(ename: str, bases: tuple[type, ...], space: dict[str, Any]) -> RemoteError:
    made = type(ename or "RemoteError", bases, space)()
    assert isinstance(made, RemoteError)
    return made


def shown(problem: CellburstError) -> CellburstError:
    """The same error, which IPython will show as its own few lines instead of our frames."""
    problem._render_traceback_ = lambda: rendered(problem.info)  # type: ignore[attr-defined]  # read by IPython
    return problem


def rendered(info: ErrorInfo) -> list[str]:
    """Lines for a person: what was wrong, where in the magic's line, what is allowed, what to do next."""
    first, *more = info.message.splitlines() or [""]
    lines = [f"\x1b[0;31m{first}\x1b[0m", *more]  # more: the output of a command that failed
    column, line = info.detail.get("column", ""), info.detail.get("line", "")
    if column.isdigit() and line:
        lines += [f"    %%modal {line}", " " * (len("    %%modal ") + int(column)) + "^"]
    if info.allowed:
        lines.append(f"Allowed: {info.allowed}")
    if info.next:
        lines.append(f"Next:    {info.next}")
    return lines


def ended_without_error(reason: str) -> ErrorInfo:
    """What to show for a call that ended without saying why."""
    return ErrorInfo(code=ErrorCode.UNAVAILABLE, message=f"the cell ended: {reason}", next="run it again")


def call_error(info: ErrorInfo) -> CellburstError:
    """An error of the platform that ended a call, ready to be raised in the notebook."""
    from cellburst_protocol.errors import from_info

    return shown(from_info(info))


def interrupted(before_start: bool) -> RemoteError:
    """A cell that was cancelled where the remote kernel had no traceback to give."""
    when = "before its code started" if before_start else "by you"
    return remote_error("KeyboardInterrupt", "", [f"\x1b[0;31mKeyboardInterrupt\x1b[0m: the cell was stopped {when}"])


INTERRUPT_CODES = frozenset({ErrorCode.INTERRUPTED})
