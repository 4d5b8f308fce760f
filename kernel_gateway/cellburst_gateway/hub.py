"""What every part of the gateway shares, made once by `app.py`. Parts reach each other only through it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellburst_protocol.clock import Clock
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.states import TransitionError

from .blobs import BlobFolder
from .config import GatewayConfig
from .endings import Endings
from .folders import Secrets
from .inbox import Inbox
from .logstore import LogStore
from .metrics import Metrics
from .prices import PriceTable
from .store import Store

if TYPE_CHECKING:
    from .build_leases import BuildLeases
    from .cells import Cells
    from .fleet import Fleet
    from .images import Images
    from .mirrors import Mirrors
    from .network_file_systems import NetworkFileSystems
    from .parking import Parking
    from .placer import Placer
    from .schedules import Schedules
    from .secret_desk import SecretDesk
    from .sessions import Sessions
    from .volumes import Volumes
    from .worker_events import WorkerEvents

LATER_SECONDS = 0.02  # a short cell has ended by then: its start and end are one commit, off its path

log = logging.getLogger(__name__)


@dataclass
class Hub:
    """The gateway's shared parts. The ones below `parts` are set by `app.build` right after it is made."""

    config: GatewayConfig
    clock: Clock
    store: Store
    logs: LogStore
    prices: PriceTable
    metrics: Metrics
    blobs: BlobFolder
    inbox: Inbox
    secrets: Secrets
    instance: str
    epoch: int
    version: str
    proof_path: Path
    proof: str
    url: str = ""
    started_monotonic: float = 0.0
    shutdown: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    local_worker_wanted_at: float | None = None  # since when this machine's worker is due; None: there is none
    # parts
    endings: Endings = field(init=False)
    fleet: Fleet = field(init=False)
    sessions: Sessions = field(init=False)
    placer: Placer = field(init=False)
    parking: Parking = field(init=False)
    cells: Cells = field(init=False)
    images: Images = field(init=False)
    build_leases: BuildLeases = field(init=False)
    mirrors: Mirrors = field(init=False)
    schedules: Schedules = field(init=False)
    volumes: Volumes = field(init=False)
    network_file_systems: NetworkFileSystems = field(init=False)
    secret_desk: SecretDesk = field(init=False)
    events: WorkerEvents = field(init=False)
    _later: deque[Callable[[], object]] = field(default_factory=deque)
    _later_scheduled: bool = False
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.endings = Endings(self.store, self.later)

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run something beside; a failure is a defect and is logged whole."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    async def settle(self) -> None:
        """End what `spawn` started: at the end, when all links are closed."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (why := task.exception()) is not None:
            log.error("a task failed: %s", why, exc_info=why)

    def later(self, write: Callable[[], object]) -> None:
        """Do a record write that the log already implies, in order, once what waits to be sent has been sent.

        It may be done twice, when one that was done together with it failed. If the gateway dies before it, `recovery.py`
        finds the same fact in the session's log.
        """
        self._later.append(write)
        if not self._later_scheduled:
            self._later_scheduled = True
            asyncio.get_running_loop().call_later(LATER_SECONDS, self.write_now)

    def write_now(self) -> None:
        """Do all writes that wait. Called before any read of the record that must see them, and at the end."""
        self._later_scheduled = False
        if not self._later:
            return
        writes = list(self._later)
        self._later.clear()
        if len(writes) > 1 and self._written_together(writes):
            return
        for write in writes:
            try:
                write()
            except (CellburstError, TransitionError) as why:
                # The log has the fact; the record is put right at the next start.
                log.error("the record could not be written: %s", why)
                self.metrics.add("cellburst_record_errors_total")

    def _written_together(self, writes: list[Callable[[], object]]) -> bool:
        """Try them in one commit. False: nothing was changed, and they are to be done one by one."""
        try:
            with self.store.together():
                for one in writes:
                    one()
        except (CellburstError, TransitionError):
            return False
        return True
