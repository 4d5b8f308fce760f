"""What comes out of a fork server: a supervisor, and out of that its executors.

    zygote ── fork ──> supervisor (own session, group, environment; one thread) ── fork ──> executor

Neither runs Python's start or an import again. A fork has the parent's descriptors, environment, signals, generators: what of
these is another's is changed here. Where it cannot be done the executor is started as a new process, as everywhere else.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Optional

from . import restore, zygote_preload

MARK = "CELLBURST_CONTAINER"  # as cellburst_runtime.proc.MARK: who this process belongs to, in /proc/PID/environ
ROOM = "CELLBURST_ROOM"  # behind it: bytes for a longer mark
# Read by the executor when it starts, and only then (`fallback_path`).
_AT_START = ("CELLBURST_SYS_PATH", "CELLBURST_BUNDLE")


@dataclass
class Job:
    """One container, as the runtime asks for it. `python` is the command of its interpreter; the process belongs to `groups`
    (files that take a pid) before it does anything."""

    environment: dict[str, str]
    folder: str
    groups: list[str]
    python: list[str]


class BecomeExecutor(BaseException):
    """Raised in a fork of the supervisor, up to where the supervisor was started: no frame of it stays below the cells."""

    def __init__(self, environment: dict[str, str], descriptors: list[int]) -> None:
        self.environment = environment
        self.descriptors = descriptors


# -- the supervisor ------------------------------------------------------------------------------------------------------


def enter(job: Job, output: int) -> None:
    """Make this fork of the zygote the job's own process, with `output` for descriptors 1 and 2. Raises OSError, ValueError."""
    os.setsid()
    reset_signals()
    write_mark(job.environment[MARK])
    for path in job.groups:
        with open(path, "w") as file:
            file.write("0")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.clear()
    os.environ.update(job.environment)
    time.tzset()
    os.chdir(job.folder)
    _standard_streams(output, output)


def run_supervisor(job: Job) -> NoReturn:
    """Be the supervisor until its end, or one of its executors."""
    from .supervisor import Supervisor
    from .supervisor_start import make_subreaper

    code = 1
    try:
        make_subreaper()
        forker = Forker(job.python, dict(os.environ), descriptors())
        supervisor = Supervisor(job.environment["CELLBURST_VAR"], job.environment[MARK], forker)
        become: Optional[BecomeExecutor] = None
        try:
            code = supervisor.run()
        except BecomeExecutor as child:
            become = child.with_traceback(None)  # the frames on the way close what is theirs
        if become is not None:
            # `supervisor` stays: its sockets are closed by number, and must not be closed again as somebody else's
            close_all_but({*forker.kept, *become.descriptors})
            _become_executor(become)
    except BaseException:
        traceback.print_exc()
        code = 1
    flush()
    os._exit(code)  # what preloaded modules want done at their end is the executors' business


# -- the executor --------------------------------------------------------------------------------------------------------


class Forker:
    """Makes executors by forking this process. `kept`: descriptors that are theirs too, as preloaded modules opened them."""

    def __init__(self, python: Sequence[str], environment: dict[str, str], kept: set[int]) -> None:
        self._python = list(python)
        self._environment = environment
        self.kept = kept

    def fork(
        self, command: Sequence[str], environment: dict[str, str], folder: str, passed: Sequence[int], streams: tuple[int, int]
    ) -> int:  # fmt: skip
        """The child's pid, or 0 where this start must be a new process; raises BecomeExecutor in the child. `passed` are
        the executor's descriptors, `streams` its 1 and 2; `command` is what a new process would run."""
        if list(command[:-2]) != self._python or not zygote_preload.one_thread():
            return 0
        if any(environment.get(name) != self._environment.get(name) for name in _AT_START):
            return 0
        if folder and not os.path.isdir(folder):
            return 0  # a new process says what is wrong with it
        done, done_end = os.pipe()
        flush()
        try:
            pid = os.fork()
        except OSError:
            os.close(done_end)
            os.close(done)
            return 0
        if pid == 0:
            try:
                os.setsid()
                reset_signals()
                _standard_streams(*streams)
                if folder:
                    os.chdir(folder)
                copies = [os.dup(number) for number in passed]  # the parent's code closes its own on the way up
                os.close(done_end)
            except BaseException:
                os._exit(1)
            raise BecomeExecutor(environment, copies)
        os.close(done_end)
        os.read(done, 1)  # its session is its own now, or it is dead: signals to its group reach it
        os.close(done)
        return pid


def _become_executor(become: BecomeExecutor) -> None:
    from . import cell_executor

    given = {name: value for name, value in become.environment.items() if name not in _AT_START}
    for name in _AT_START:
        os.environ.pop(name, None)
    to_set, to_unset = restore.changes(dict(os.environ), given)
    restore.adopt_environment(to_set, to_unset)
    for line in restore.reseed():
        print(line, file=sys.stderr)
    importlib.invalidate_caches()
    cell_executor.run(become.descriptors)


# -- what both change ----------------------------------------------------------------------------------------------------


def reset_signals() -> None:
    """Signals as a new Python process has them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGURG):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _standard_streams(out: int, err: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(number, target)
    os.close(nothing)


def flush() -> None:
    """Write out what was printed: a fork would write it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


def descriptors() -> set[int]:
    """The numbers of all open descriptors."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in found if _is_open(number)}  # the listing's own is closed again


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def close_all_but(kept: set[int]) -> None:
    """Close every other descriptor but 0, 1 and 2."""
    for number in descriptors() - kept - {0, 1, 2}:
        os.close(number)


def find_mark() -> tuple[int, int]:
    """Where in memory the mark lies that the kernel shows as this process's environment, and its room in bytes.

    Raises ValueError where it cannot be found: nobody could tell whose processes the forks are.
    """
    with open("/proc/self/stat") as file:
        text = file.read()
    fields = text[text.rfind(")") + 2 :].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end of proc(5)
    if not 0 < start < end:
        raise ValueError("the kernel does not say where the environment lies")
    block = ctypes.string_at(start, end - start)
    at = block.find(f"{MARK}=".encode())
    if at < 0 or (at and block[at - 1]):
        raise ValueError("the environment has no mark")
    behind = block.find(b"\0", at) + 1
    if not block.startswith(f"{ROOM}=".encode(), behind):
        raise ValueError("there is no room behind the mark")
    return start + at, block.find(b"\0", behind) - at


def write_mark(mark: str) -> None:
    """Show `mark` in /proc/PID/environ, where the runtime looks for what belongs to a container. Raises ValueError."""
    place, room = find_mark()
    text = f"{MARK}={mark}".encode()
    if len(text) > room:
        raise ValueError(f"the container's id is too long for a fork: {mark}")
    ctypes.memmove(place, text.ljust(room, b"\0"), room)


def job_of(request: dict[str, Any]) -> Job:
    """The job of a request. Raises KeyError, TypeError."""
    return Job(dict(request["environment"]), str(request["folder"]), list(request["groups"]), list(request["python"]))
