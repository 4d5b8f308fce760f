"""Of the runner's wire only.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

from .messages_base import Base
from .states import EndReason


class RunnerHello(Base, kw_only=True, tag="runner_hello"):
    """First message of a runner on its socket, also after each reconnect."""

    container: str
    protocol: tuple[int, int]
    python_version: str
    pid: int = 0


class RunnerStart(Base, kw_only=True, tag="runner_start"):
    """Worker -> runner once: environment to set, links to make, working folder; then executors are started."""

    environment: dict[str, str] = {}
    links: dict[str, str] = {}
    folder: str = ""
    output_limit_bytes: int = 33_554_432
    output_tail_bytes: int = 1_048_576
    python: list[str] = []  # command line of the executor's interpreter
    matplotlib_backend: str = ""


class RunnerReady(Base, kw_only=True, tag="runner_ready"):
    """The executor is up and idle (again)."""

    executor_pid: int = 0
    seconds: float = 0.0


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
