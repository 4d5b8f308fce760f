"""One container's parking, from the gateway's request to its event: refuses, begins, lets it come to its end, and tells."""

from __future__ import annotations

import asyncio
import logging

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.messages import ParkContainer, ParkFailed
from cellburst_protocol.states import ContainerState, EndReason

from .body import Body
from .calls import Calls
from .endings import Ending
from .inbound import Inbound
from .parking import Parking

# A worker that stops for reasons of its own lets a parking come to its end: the session would be lost otherwise.
KEPT_REASONS = frozenset({EndReason.SHUTDOWN, EndReason.WORKER_LOST})
QUIET_SECONDS = 5.0  # for questions about files that are being answered

log = logging.getLogger(__name__)


class ParkDesk:
    """`over` is set when the container is to end: the session is parked, or it could neither be parked nor go on."""

    def __init__(self, body: Body, calls: Calls, inbound: Inbound) -> None:
        self._body, self._calls, self._inbound = body, calls, inbound
        self._parking: Parking | None = None
        self._task: asyncio.Task[None] | None = None
        self.over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    @property
    def busy(self) -> bool:
        """Whether a parking is under way."""
        return self._task is not None and not self._task.done()

    def begin(self, request: ParkContainer, state: ContainerState) -> None:
        """Put the session away; how that ends is an event. The same request again changes nothing. Raises RequestError (BUSY:
        the container starts, ends, or a cell runs; CONFLICT: it is being put away under another id)."""
        id = request.container
        if self._parking is not None:
            if self._parking.id == request.parked:
                return
            raise error(
                ErrorCode.CONFLICT, f"container {id} is being put away as {self._parking.id}, not {request.parked}"
            )
        if state is not ContainerState.READY or self._calls.running:
            doing = f"runs {self._calls.running}" if self._calls.running else f"is {state.value}"
            raise error(ErrorCode.BUSY, f"container {id} {doing}", next="park it when it is idle")
        self._inbound.open.clear()
        self._parking = Parking(self._body, request)
        self._task = asyncio.create_task(self._park(self._parking))

    async def settle(self, stop: asyncio.Future[tuple[EndReason, float]]) -> None:
        """Called when something ends the container: mostly it is the parking itself, which then comes to its end. When the
        user ends the session, nothing is kept of it."""
        if self._task is None:
            return
        while not self._task.done() and (not stop.done() or stop.result()[0] in KEPT_REASONS):
            both: set[asyncio.Future[object]] = {self._task}  # type: ignore[arg-type]  # Future is invariant
            if not stop.done():
                both.add(stop)  # type: ignore[arg-type]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _park(self, parking: Parking) -> None:
        await self._inbound.quiet(QUIET_SECONDS)
        try:
            event = await parking.run()
        except Exception as why:
            info = _info(why)
            log.warning(
                "a session could not be put away",
                extra={"container": self._body.id, "why": self._body.outbound.clear_text(info.message)},
            )
            self._body.outbound.emit(ParkFailed(parked=parking.id, error=info))
            self._parking = None
            if parking.thawed:
                self._inbound.open.set()
            else:
                self.over.set_result(Ending(EndReason.CONTAINER_LOST, info))
            return
        self._body.outbound.emit(event)
        self.over.set_result(Ending(EndReason.PARKED))


def _info(why: Exception) -> ErrorInfo:
    if isinstance(why, CellburstError):
        return why.info
    if isinstance(why, OSError):
        code = ErrorCode.DISK_FULL if why.errno == 28 else ErrorCode.INTERNAL
        return ErrorInfo(code=code, message=f"the session could not be put away: {why}", next="free some space there")
    log.error("a parking failed", exc_info=why)
    return ErrorInfo(
        code=ErrorCode.INTERNAL, message=f"the session could not be put away: {why}", next="see the worker's log"
    )
