"""The fork servers of one worker, by key: made in the background, used by the `process` engine, ended when idle.

    a container is started by a boot ── note ──▶ its plan is known ── warm ──▶ a server of its key ── fork ──▶ the next ones

A server is replaced when it is warmed again with other imports, and given up when its modules' files have changed. One that
still has forks is kept until the last of them has ended (`fork_server.py` says why), but asked for no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .engine_base import finish
from .fork_plan import ForkPlan
from .fork_server import ForkedChild, ForkFailed, ForkServer, PreloadRefused
from .proc import MARK

IDLE_SECONDS = 600.0
MOST_SERVERS = 4  # each keeps its imports in memory: 50 MiB to 500 MiB
MOST_PLANS = 64
MOST_REFUSALS = 8  # modules that one server's list may lose, before it preloads nothing
MOST_FAILURES = 3  # of a key, one after the other: then it is booted for good

log = logging.getLogger(__name__)


class ForkServers:
    """All calls are made on one event loop."""

    def __init__(self) -> None:
        self._plans: dict[str, ForkPlan] = {}
        self._servers: dict[str, ForkServer] = {}
        self._retired: list[ForkServer] = []
        self._rested: dict[str, list[str]] = {}  # keys whose server was idle for too long -> what it had imported
        self._failures: dict[str, int] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.why_not = _why_not()

    def note(self, plan: ForkPlan) -> None:
        """A container of this plan is started: a server of its key can be made."""
        self._plans.pop(plan.key, None)
        self._plans[plan.key] = plan
        while len(self._plans) > MOST_PLANS:
            del self._plans[next(iter(self._plans))]

    def knows(self, key: str) -> bool:
        """Whether this is a `fork_key` that a server could be made for."""
        return key in self._plans

    def preloaded(self, key: str) -> list[str] | None:
        """What the server of this key has imported beforehand; None where there is none and one should be made.

        A server that ended because it was idle is not made again before the next boot of its key.
        """
        server = self._servers.get(key)
        return server.preloaded if server is not None else self._rested.get(key)

    def disabled(self, key: str) -> bool:
        """Whether a server of this key is of no use: it cannot be made here, or failed too often."""
        return self._closed or bool(self.why_not) or self._failures.get(key, 0) >= MOST_FAILURES

    async def warm(self, key: str, preload: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """Make the server of a key, in place of one that there is. Returns what it has imported: a module that must not be
        preloaded is left out, with all below it. `variables`: what the executor's environment has beside the plan's.

        Raises ForkFailed, OSError; the earlier server, if any, then serves on.
        """
        plan = self._plans.get(key)
        if plan is None or self.disabled(key):
            raise ForkFailed(
                self.why_not or "no container of this kind was started lately, or forking failed too often"
            )
        plan = replace(plan, environment={**plan.environment, **variables})
        server = await self._start(plan, list(preload))
        if self._closed:  # meanwhile
            await finish(server.end())
            raise ForkFailed("the worker is ending")
        self._retire(key)
        self._rested.pop(key, None)
        self._servers[key] = server
        server.on_change = self._look
        while len(self._servers) > MOST_SERVERS:
            self._retire(min(self._servers, key=lambda k: self._servers[k].used_at))
        self._look()
        return list(server.preloaded)

    async def fork(
        self, key: str, environment: Mapping[str, str], folder: Path, groups: Sequence[Path]
    ) -> ForkedChild | None:
        """A container's first process, or None where it must be booted. Never raises for what a server does; a task that is
        cancelled meanwhile gets its CancelledError when it is known what became of the fork."""
        server = self._servers.get(key)
        if server is None or self._closed:
            self._rested.pop(key, None)
            return None
        made: list[ForkedChild] = []

        async def make() -> None:
            made.append(await server.fork(environment, folder, groups))

        try:
            await finish(make())
        except asyncio.CancelledError:
            for child in made:
                await child.close()
            raise
        except (ForkFailed, OSError) as why:
            log.warning("no fork came of a fork server", extra={"container": environment[MARK], "why": str(why)})
            if not (isinstance(why, ForkFailed) and why.stale):
                self._failures[key] = self._failures.get(key, 0) + 1
            if self._servers.get(key) is server and (not server.usable or getattr(why, "stale", False)):
                self._retire(key)
            return None
        self._failures.pop(key, None)
        return made[0]

    async def close(self) -> None:
        """End all servers. Their forks live on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for key in list(self._servers):
            self._retired.append(self._servers.pop(key))
        retired, self._retired = self._retired, []
        await asyncio.gather(*(server.end() for server in retired), *self._ending)

    async def _start(self, plan: ForkPlan, preload: list[str]) -> ForkServer:
        for _ in range(MOST_REFUSALS):
            try:
                return await ForkServer.start(plan, preload)
            except PreloadRefused as why:
                log.info("a module is not preloaded", extra={"module": why.name, "why": str(why)})
                if not why.name:
                    raise ForkFailed(str(why)) from None
                preload = [name for name in preload if name != why.name and not name.startswith(f"{why.name}.")]
        try:
            return await ForkServer.start(plan, [])
        except PreloadRefused as why:
            raise ForkFailed(str(why)) from None

    def _retire(self, key: str) -> None:
        server = self._servers.pop(key, None)
        if server is not None:
            self._retired.append(server)
            self._look()

    def _look(self) -> None:
        """End what is not needed any more, and look again when the next server is idle for long enough."""
        if self._closed:
            return
        now = time.monotonic()
        for key, server in list(self._servers.items()):
            if not server.usable:
                self._retired.append(self._servers.pop(key))
            elif not server.children and now - server.used_at >= IDLE_SECONDS:
                self._rested[key] = server.preloaded
                self._retired.append(self._servers.pop(key))
        for server in list(self._retired):
            if not server.children or not server.usable:
                self._retired.remove(server)
                task = asyncio.create_task(server.end(), name=f"end of {server.id}")
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        idle = [server.used_at for server in self._servers.values() if not server.children]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if idle:
            delay = max(0.0, min(idle) + IDLE_SECONDS - now) + 0.01
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)


def _why_not() -> str:
    """Why this machine can have none; "" if it can."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as why:
        return f"fork servers need pidfd_open, Linux 5.3: {why}"
    return ""
