"""The supervisor's side of a snapshot: which of its steps an executor is in, and whether cells may be given to it.

    OPEN ── RunnerFreeze ──> FREEZING ── frozen ──> FROZEN ── RunnerStart ──> THAWING ── thawed ──> OPEN
                                 └──────── RunnerStart of another worker ────────┘
    OPEN ── RunnerLoadNames ──> LOADING ── runner_names_loaded ──> OPEN

Outside OPEN cells wait. A worker that went away while it froze this runner is forgotten: its answer is not given to the next
one, whose RunnerStart thaws. An executor that dies ends the step that it was in; FROZEN stays until a RunnerStart, because the
worker decides what comes then.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, Callable, Optional

from . import freeze_files, restore, wire
from .executor_process import ExecutorProcess
from .worker_link import WorkerLink

NOT_LISTED = "/proc/cannot/be/read"  # a file that is never found the same again: such a snapshot is not restored


class Step(enum.Enum):
    """See the module."""

    OPEN = "open"
    FREEZING = "freezing"
    FROZEN = "frozen"
    THAWING = "thawing"
    LOADING = "loading"


class Freezer:
    """One supervisor's. `open_files` lists the files that processes have open or mapped."""

    def __init__(self, link: WorkerLink, open_files: Callable[[], list[str]] = freeze_files.open_files) -> None:
        self._link = link
        self._open_files = open_files
        self._number = 0  # of the last freeze or thaw; answers to earlier ones are of no interest
        self._connection = 0  # the one over which RunnerFreeze came
        self._to_send: deque[bytes] = deque()  # for an executor that is not ready yet
        self._loading: list[str] = []  # names
        self.step = Step.OPEN

    @property
    def holds(self) -> bool:
        """Whether cells wait."""
        return self.step is not Step.OPEN

    @property
    def runs_user_code(self) -> bool:
        """Whether the executor is at something of the user's that may be interrupted: hooks, pickling."""
        return self.step in (Step.FREEZING, Step.THAWING, Step.LOADING)

    @property
    def is_taking_a_snapshot(self) -> bool:
        """Whether a RunnerFreeze was not followed by a RunnerStart yet."""
        return self.step in (Step.FREEZING, Step.FROZEN)

    @property
    def is_thawing(self) -> bool:
        """Whether RunnerReady follows without being asked for."""
        return self.step is Step.THAWING

    # -- from the worker -------------------------------------------------------------------------------------------

    def freeze(self, message: dict[str, Any], executor: Optional[ExecutorProcess], has_cells: bool) -> None:
        """RunnerFreeze: pass it on, or refuse it."""
        if self.holds:
            text = f"the container is {self.step.value} already"
            return self._refuse("request.busy", text, "send RunnerStart, or wait for the answer")
        if has_cells:
            return self._refuse("request.busy", "a cell runs or waits in the container", "freeze it after that cell")
        if executor is None or not executor.ready:
            return self._refuse(
                "platform.unavailable", "the container's Python is not up", "freeze it when it is ready"
            )
        self.step, self._connection = Step.FREEZING, self._link.connections
        self._number += 1
        executor.work.send(wire.encode({**message, "number": self._number}))

    def thaw(self, executor: Optional[ExecutorProcess], before: dict[str, Any], start: dict[str, Any]) -> None:
        """RunnerStart after the first: have the executor take over what differs from `before`, and go on. RunnerReady follows."""
        self.step = Step.THAWING
        self._number += 1
        old, new = before.get("environment", {}), start.get("environment", {})
        to_set, to_unset = restore.changes(_all_variables(before), _all_variables(start))
        thaw = wire.encode({
            "t": "thaw", "number": self._number, "set": to_set, "unset": to_unset, "reseed": start.get("reseed", False),
            "path_before": old.get("CELLBURST_SYS_PATH", ""), "path": new.get("CELLBURST_SYS_PATH", ""),
            "folder_before": before.get("folder", ""), "folder": start.get("folder", ""),
        })  # fmt: skip
        self._give(executor, thaw)

    def load(
        self, executor: Optional[ExecutorProcess], message: dict[str, Any], framed: bytes, runs_cell: bool
    ) -> None:
        """RunnerLoadNames: pass it on, when the executor is ready. The worker sends it while nothing else goes on."""
        self._loading = [name for group in message["groups"] for name in group["names"]]
        if self.holds or runs_cell:
            why = "a cell ran" if runs_cell else f"the container was {self.step.value}"
            return self._all_lost(f"they came while {why}")
        self.step = Step.LOADING
        self._give(executor, framed)

    # -- from and about the executor -------------------------------------------------------------------------------

    def executor_ready(self, executor: ExecutorProcess) -> bool:
        """An executor is up. Whether its RunnerReady is to be said now: not if it has something to take over first."""
        waiting = bool(self._to_send)
        while self._to_send:
            executor.work.send(self._to_send.popleft())
        return not waiting or self.step is Step.LOADING

    def answered(self, message: dict[str, Any], framed: bytes) -> bool:
        """`frozen`, `thawed` or `runner_names_loaded` of the executor. True when it is ready again after a thaw."""
        if message["t"] == "runner_names_loaded":
            if self.step is Step.LOADING:
                self.step = Step.OPEN
            self._link.control(framed)
            return False
        if message["number"] != self._number:
            return False
        if message["t"] == "thawed":
            self.step = Step.OPEN
            return True
        self.step = Step.OPEN if "error" in message else Step.FROZEN
        if self._connection == self._link.connections and self._link.socket is not None:
            head = {k: v for k, v in message.items() if k not in ("t", "number", "sources")}
            if "error" not in message:
                head["files"] = sorted({*self._listed(), *message.get("sources", ())})
            _, buffers = wire.split(memoryview(framed)[4:])
            self._link.control(wire.encode({"t": "runner_frozen", **head}, buffers))
        return False

    def executor_ended(self) -> None:
        """The executor died: the step that it was in has failed."""
        self._to_send.clear()
        if self.step is Step.FREEZING:
            self._refuse(
                "platform.unavailable", "the container's Python ended while it was frozen", "its names are gone"
            )
        elif self.step is Step.LOADING:
            self._all_lost("the container's Python ended while they were read")
        if self.step is not Step.FROZEN:
            self.step = Step.OPEN

    def _listed(self) -> list[str]:
        try:
            return self._open_files()
        except OSError:
            return [NOT_LISTED]

    def _give(self, executor: Optional[ExecutorProcess], framed: bytes) -> None:
        if executor is not None and executor.ready:
            executor.work.send(framed)
        else:
            self._to_send.append(framed)

    def _all_lost(self, why: str) -> None:
        lost = [{"name": n, "type": "", "why": "unpicklable", "detail": why} for n in self._loading]
        self._link.control(wire.encode({"t": "runner_names_loaded", "names": [], "lost": lost}))

    def _refuse(self, code: str, message: str, next_step: str) -> None:
        error = {"code": code, "message": message, "next": next_step}
        self._link.control(wire.encode({"t": "runner_frozen", "error": error}))


def _all_variables(start: dict[str, Any]) -> dict[str, str]:
    """What a RunnerStart gives an executor, with the variables that come from its other fields."""
    found = dict(start.get("environment", {}))
    if start.get("matplotlib_backend"):
        found["MPLBACKEND"] = start["matplotlib_backend"]
    return found


class Pause:
    """Notices that this process did not run for a while: restored from a snapshot, or stopped. Monotonic time went on.

    `gap` is asked right after each select, before anything is handled: so all deadlines are of before the pause.
    """

    def __init__(self, now: float, longest_seconds: float) -> None:
        self._last = now
        self._longest_seconds = longest_seconds

    def gap(self, now: float) -> float:
        """Seconds by which deadlines have to be moved; 0 in ordinary times. May be negative after a restore elsewhere."""
        passed, self._last = now - self._last, now
        return passed if passed < 0 or passed > self._longest_seconds else 0.0
