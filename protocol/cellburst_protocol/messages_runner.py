"""Of the runner's wire only.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

from .errors import ErrorInfo
from .messages_base import Base
from .messages_parts import NameGroup, RemoteName
from .states import EndReason


class RunnerHello(Base, kw_only=True, tag="runner_hello"):
    """First message of a runner on its socket, also after each reconnect."""

    container: str
    protocol: tuple[int, int]
    python_version: str
    pid: int = 0


class RunnerStart(Base, kw_only=True, tag="runner_start"):
    """Worker -> runner: environment to set, links to make, working folder; then executors are started.

    `restored`: the runner was just restored from a snapshot and has a live executor: it is given this environment (a
    variable that is missing here and was in the last RunnerStart is unset), working folder and links, re-seeded when
    `reseed` (a template: others were restored from the same bytes; a parked session goes on with its own generators),
    `on_restore` hooks run, then RunnerReady. Also after a checkpoint that failed, with `reseed` false: thawing.
    """

    environment: dict[str, str] = {}
    links: dict[str, str] = {}
    folder: str = ""
    output_limit_bytes: int = 33_554_432
    output_tail_bytes: int = 1_048_576
    python: list[str] = []  # command line of the executor's interpreter
    matplotlib_backend: str = ""
    restored: bool = False
    reseed: bool = False


class RunnerReady(Base, kw_only=True, tag="runner_ready"):
    """The executor is up and idle (again). `notes` are for the user: a hook that raised, by name."""

    executor_pid: int = 0
    seconds: float = 0.0
    notes: list[str] = []


class RunnerPing(Base, kw_only=True, tag="runner_ping"):
    """Worker -> runner every second; answered at once by RunnerPong, by the supervisor, whatever user code does."""

    number: int


class RunnerPong(Base, kw_only=True, tag="runner_pong"):
    """Answer to RunnerPing. `executor_alive_seconds` is how long ago the executor itself last gave a sign."""

    number: int
    executor_alive_seconds: float = 0.0


class RunnerCredit(Base, kw_only=True, tag="runner_credit"):
    """Worker -> runner: so many more bytes of events may be sent. The runner starts with 4 MiB."""

    size_bytes: int


class ExecutorEnded(Base, kw_only=True, tag="executor_ended"):
    """The executor process is gone; the runner starts another one and says RunnerReady. `signal` or `exit_code` says how."""

    call: str = ""
    exit_code: int | None = None
    signal: int | None = None
    killed_by_runner: bool = False
    text: str = ""
    ended_by: EndReason | None = None  # set by the worker when it asked for it: TIMEOUT


class RunnerFreeze(Base, kw_only=True, tag="runner_freeze"):
    """Worker -> runner: get ready for a checkpoint; answered by RunnerFrozen. The phase before the snapshot: imports
    `preload` (modules, in order; one that fails is left out), saves names by value when `save_names` (as the cell's values: large
    parts in out/, at most `limit_bytes` together, 0 for no limit), runs the hooks of before, collects garbage, and takes no
    cell until the next RunnerStart. Refused while a cell runs."""

    preload: list[str] = []
    save_names: bool = False
    limit_bytes: int = 0


class RunnerFrozen(Base, kw_only=True, tag="runner_frozen"):
    """The answer. `files` are the container's paths of all files that any process has mapped or open, other than
    those in memory file systems; without `save_names` also those that the executor's modules were read from. `groups` are the
    saved names, `lost` those that could not be; `preloaded` what was imported. With `error` nothing was frozen. Raw buffers:
    the inline parts."""

    files: list[str] = []
    groups: list[NameGroup] = []
    lost: list[RemoteName] = []
    preloaded: list[str] = []
    notes: list[str] = []
    error: ErrorInfo | None = None


class RunnerDetach(Base, kw_only=True, tag="runner_detach"):
    """Worker -> runner after RunnerFrozen: close this socket (no host socket may be open in a checkpoint) and dial the same
    path every 2 ms until somebody answers: the worker of the restored container, or this one if the checkpoint failed.
    The worker stops listening before it sends this, or the runner is back at once."""


class RunnerLoadNames(Base, kw_only=True, tag="runner_load_names"):
    """Worker -> runner, before the first cell: set these names of a parked session. Parts as in RunCell: inline, or
    files in in/. Answered by RunnerNamesLoaded."""

    groups: list[NameGroup]


class RunnerNamesLoaded(Base, kw_only=True, tag="runner_names_loaded"):
    """What came back, and what did not (why in `detail`: the class is gone, an import fails)."""

    names: list[str] = []
    lost: list[RemoteName] = []
