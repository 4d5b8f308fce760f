"""The worker of this machine: started, started again when it dies, taken over from an earlier gateway, ended at the end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .fleet import process_lives

if TYPE_CHECKING:
    from .config import GatewayConfig
    from .hub import Hub

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0  # one that lived so long starts again without delay
ADOPT_SECONDS = 20.0  # an earlier gateway's worker dials within 4 s; one that does not is of no use
STOP_SECONDS = 15.0  # two seconds of grace a container, then removal; then SIGKILL
POLL_SECONDS = 0.1

log = logging.getLogger(__name__)


def running_worker(run_folder: Path) -> int:
    """Pid of the worker that holds this run folder's lock, 0 when there is none."""
    try:
        with open(run_folder / "worker.lock", "r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                text = file.read().strip()
                return int(text) if text.isdigit() else 0
            return 0  # nobody holds it; closing gives it free again
    except OSError:
        return 0


class LocalWorker:
    """Keeps one worker running on this machine."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self.pid = 0

    def start(self) -> None:
        """Begin to keep it."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            began = self._hub.clock.monotonic()
            self.pid = running_worker(self._hub.config.run_folder)
            if self.pid:
                await self._adopt()
            else:
                await self._run()
            ended = self._hub.clock.monotonic()
            if ended - began >= STEADY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
                self._hub.local_worker_wanted_at = ended  # one that keeps dying young is not waited for again
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)

    async def _run(self) -> None:
        config = self._hub.config
        arguments = command(config, self._hub.url)
        path = config.data_folder / "logs" / "worker.log"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(path, "ab", opener=_private) as output:
            # A session of its own: what ends the gateway's terminal must not end running cells.
            self._process = await asyncio.create_subprocess_exec(
                *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid
        log.info("local worker started", extra={"pid": self.pid})
        code = await self._process.wait()
        self._process = None
        log.warning("the local worker ended with status %s; its log is %s", code, path)

    async def _adopt(self) -> None:
        """Wait while an earlier gateway's worker lives; end it if it does not find this gateway."""
        log.info("a worker of an earlier gateway is taken over", extra={"pid": self.pid})
        began = self._hub.clock.monotonic()
        while process_lives(self.pid):
            joined = any(w.pid == self.pid and w.peer is not None for w in self._hub.fleet.workers.values())
            if joined:
                began = self._hub.clock.monotonic()
            elif self._hub.clock.monotonic() - began > ADOPT_SECONDS:
                log.warning("the worker with pid %s does not dial this gateway and is ended", self.pid)
                await self._end(self.pid)
                return
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        """End it, by its pid."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        pid = self.pid or running_worker(self._hub.config.run_folder)
        if pid and process_lives(pid):
            await self._end(pid)

    async def _end(self, pid: int) -> None:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 2.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = self._hub.clock.monotonic() + seconds
            while process_lives(pid):
                if self._hub.clock.monotonic() > deadline:
                    break
                await asyncio.sleep(POLL_SECONDS / 4)
            else:
                return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def command(config: GatewayConfig, url: str) -> list[str]:
    """The worker's command line: what is configured for it, and nothing that it chooses better by its machine."""
    chosen = {
        "--simulate-gpus": config.simulate_gpus, "--engine": config.engine,
        "--max-images-bytes": str(config.max_images_bytes or ""),
        "--max-snapshots-bytes": str(config.max_snapshots_bytes or ""),
    }  # fmt: skip
    return [
        sys.executable, "-m", "cellburst_worker", "--join", url, "--token-file", str(config.data_folder / "worker-token"),
        "--data-dir", str(config.data_folder), "--run-dir", str(config.run_folder),
        *(word for option, value in chosen.items() if value for word in (option, value)),
    ]  # fmt: skip
