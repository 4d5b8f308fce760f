"""Fork servers for tests: the plan of one with modules of the test's own, and containers that come out of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol import messages as m
from cellburst_runtime.fork_plan import ForkPlan
from cellburst_runtime.fork_server import ForkedChild
from cellburst_runtime.proc import MARK, kill_until_none, marked
from tests.fakes.runner_harness import RUNNER, FakeWorker

WAIT_SECONDS = 60.0


def write_module(folder: Path, name: str, text: str) -> Path:
    """A module of the plan's path, as old as an installed one: what was just written is not forked."""
    path = folder / "lib" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def make_plan(folder: Path, key: str = "k") -> ForkPlan:
    """A plan with the modules of `write_module` on its path."""
    for name in ("containers", "lib", "home"):
        (folder / name).mkdir(exist_ok=True)
    environment = {
        "PATH": os.defpath, "HOME": str(folder / "home"), "IPYTHONDIR": str(folder / "home" / ".ipython"),
        "PYTHONPATH": str(folder / "lib"), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return ForkPlan(
        key=key, python=(sys.executable,), main=str(RUNNER), environment=environment, folder=str(folder / "home"),
        containers=folder / "containers",
    )  # fmt: skip


@dataclass
class Forked:
    """A container out of a fork server, with its runner's other side."""

    id: str
    environment: dict[str, str]
    worker: FakeWorker
    child: ForkedChild


@contextlib.asynccontextmanager
async def forked(
    folder: Path, plan: ForkPlan, make: Callable[[dict[str, str], Path], object], **variables: str
) -> AsyncIterator[Forked]:
    """What `make(environment, folder)` forks, with its executor up. All of it is ended afterwards."""
    id = f"forked-{secrets.token_hex(6)}"
    var = folder / id
    for name in ("ctl", "in", "out"):
        (var / name).mkdir(parents=True)
    environment = {**plan.environment, "CELLBURST_VAR": str(var), MARK: id, **variables}
    worker = FakeWorker(var)
    await worker.listen()
    child = None
    try:
        child = await make(environment, Path(plan.folder))  # type: ignore[misc]
        assert isinstance(child, ForkedChild)
        await worker.wait_for(m.RunnerHello)
        worker.send(m.RunnerStart(environment=environment, folder=plan.folder, python=list(plan.python)))
        await worker.wait_for(m.RunnerReady)
        yield Forked(id, environment, worker, child)
    finally:
        worker.close()
        await kill_until_none(lambda: marked(id))
        if child is not None:
            if not child.ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            await child.wait()
            await child.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds. Raises TimeoutError."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)
