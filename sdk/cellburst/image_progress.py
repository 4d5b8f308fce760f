"""How a build is shown to a person: on a terminal one line that changes, elsewhere a line for each step."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from cellburst_protocol.messages import BuildLog, ImageBuilt

from .sizes import size_text


class Progress(Protocol):
    """Who shows a build: called from the thread that builds, or the link's."""

    def say(self, text: str) -> None:
        """What happens now, in a few words."""

    def log(self, lines: BuildLog) -> None:
        """Lines of the build."""

    def close(self) -> None:
        """It is over."""


def step_text(log: BuildLog) -> str:
    """`step 2 of 5: apt_install git`; "" before the first step."""
    return f"step {log.step} of {log.steps}: {log.title}" if log.step else ""


def built_text(built: ImageBuilt) -> str:
    """`built 3f2a60b1c4d5 in 12.3 s: Python 3.12, 210.4 MB on w-1`."""
    what = "was there already" if built.cached else f"built in {built.seconds:.1f} s"
    facts = [f"Python {built.python_version}" if built.python_version else "", size_text(built.size_bytes)]
    where = f" on {built.worker}" if built.worker else ""
    return f"image {built.id[:12]} {what}: {', '.join(fact for fact in facts if fact)}{where}"


def default_progress() -> Progress:
    """For a terminal a line that changes, for everything else a line for each step."""
    console = Console(stderr=True, highlight=False)
    # rich's live line needs a package of its own in notebooks.
    return LiveLine(console) if console.is_terminal and not console.is_jupyter else StepLines(console)


class StepLines:
    """A line for each step; the build's own words only in the error, or with `whole`."""

    def __init__(self, console: Console, *, whole: bool = False) -> None:
        self._console = console
        self._whole = whole
        self._said = ""

    @classmethod
    def to_stderr(cls) -> StepLines:
        """On this process's stderr."""
        return cls(Console(stderr=True, highlight=False))

    def say(self, text: str) -> None:
        """See `Progress`."""
        if text and text != self._said:
            self._said = text
            self._console.print(text, markup=False, soft_wrap=True)

    def log(self, lines: BuildLog) -> None:
        """See `Progress`."""
        self.say(step_text(lines))
        if self._whole:
            for line in lines.lines:
                self._console.print(f"  {line}", markup=False, soft_wrap=True)

    def close(self) -> None:
        """See `Progress`."""


class LiveLine:
    """One line of a terminal: the step, and the last line of its output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def say(self, text: str) -> None:
        """See `Progress`."""
        words = escape(text)
        if self._status is None:
            self._status = self._console.status(words)
            self._status.start()
        else:
            self._status.update(words)

    def log(self, lines: BuildLog) -> None:
        """See `Progress`."""
        last = next((line.strip() for line in reversed(lines.lines) if line.strip()), "")
        room = max(20, self._console.width - 8)
        words = "  ".join(text for text in (step_text(lines), last) if text)
        self.say(words if len(words) <= room else f"{words[: room - 1]}…")

    def close(self) -> None:
        """See `Progress`."""
        if self._status is not None:
            self._status.stop()
            self._status = None
