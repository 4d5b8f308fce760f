"""Completion that answers in time: by IPython's completer with jedi, or without jedi where that would be late.

The first completion with jedi imports it and reads its descriptions of the standard library: some hundred files, 6 MB in a
template for the modules alone and 30 MB more later. Beside a cell that holds the GIL it takes ten seconds. IPython's completer
without jedi knows the session's live objects too, needs nothing that is not there, and takes a millisecond. It answers

- the first question; if no cell runs, jedi is got ready behind it, on a thread of its own;
- while that thread is still at an earlier question, or takes longer than FULL_SECONDS for this one.
"""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable, Optional

FULL_SECONDS = 0.12  # the kernel waits 0.3 s for the whole way there and back


class _Question:
    """One question to the full completer; `done` once it has its content or its error."""

    def __init__(self, code: str, position: int) -> None:
        self.code = code
        self.position = position
        self.done = threading.Event()
        self.content: dict[str, Any] = {}
        self.error: Optional[Exception] = None


class Completer:
    """Completes for one kernel, asked from one thread. `is_busy` says whether a cell runs."""

    def __init__(self, kernel: Any, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._shell = kernel.shell
        self._complete = kernel.do_complete
        self._plain: Any = None
        self._last: Optional[_Question] = None
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()

    def complete(self, code: str, position: int) -> dict[str, Any]:
        """The content of a complete_reply. Raises what the user's objects raise."""
        if self._last is None:
            content = self.without_jedi(code, position)
            if not self._is_busy():
                self._start()
                self._ask(code, position)
            return content
        if not self._last.done.is_set():
            return self.without_jedi(code, position)
        question = self._ask(code, position)
        if not question.done.wait(FULL_SECONDS):
            return self.without_jedi(code, position)
        if question.error is not None:
            raise question.error
        return question.content

    def without_jedi(self, code: str, position: int) -> dict[str, Any]:
        """The same from what is in memory only; without types and signatures."""
        if self._plain is None:
            self._plain = _without_jedi(self._shell)
        begin = code.rfind("\n", 0, position) + 1
        line = code[begin:].partition("\n")[0]
        text, matches = self._plain.complete("", line, position - begin)
        known = text.rpartition(".")[
            0
        ]  # jedi completes what stands behind the last dot; the two are merged by that place
        if known or text.startswith("."):
            known += "."
            if all(match.startswith(known) for match in matches):
                text, matches = text[len(known) :], [match[len(known) :] for match in matches]
        return {
            "matches": list(matches), "cursor_start": position - len(text), "cursor_end": position, "metadata": {},
            "status": "ok",
        }  # fmt: skip

    def _ask(self, code: str, position: int) -> _Question:
        question = self._last = _Question(code, position)
        self._questions.put(question)
        return question

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="cellburst-completion", daemon=True)
        thread.pydev_do_not_trace = True  # type: ignore[attr-defined]
        thread.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
        thread.start()

    def _work(self) -> None:
        while True:
            question = self._questions.get()
            try:
                question.content = self._complete(question.code, question.position)
            except BaseException as why:  # the user's objects are asked, and may raise anything
                question.error = why if isinstance(why, Exception) else RuntimeError(type(why).__name__)
            question.done.set()


def _without_jedi(shell: Any) -> Any:
    """A completer of its own: each keeps state while it completes, and the two work side by side."""
    from IPython.core.completer import IPCompleter

    make: Any = IPCompleter
    plain: Any = make(
        shell=shell, namespace=shell.user_ns, global_namespace=shell.user_global_ns, parent=shell, use_jedi=False
    )
    for name in ("custom_completers", "custom_matchers"):  # what the user added
        if hasattr(shell.Completer, name):
            setattr(plain, name, getattr(shell.Completer, name))
    return plain


def rehearse(shell: Any) -> None:
    """Complete and inspect something, for a template: what both import at first is then in every copy, where a cell that holds
    the GIL would make it wait."""
    _without_jedi(shell).complete("", "print.__na", 10)
    shell.object_inspect_mime("print")
