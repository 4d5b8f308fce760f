"""From the gateway to the runner: seals are checked, blobs shown to the container, secrets of the wire taken out.

Cells, their values, comm messages and typed input keep their order; questions (`SideRequest`) and acknowledgements do not
wait behind them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, PlatformError
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import (
    Ack,
    CommMessage,
    Interrupt,
    Message,
    NameGroup,
    NamesData,
    ReleaseSecrets,
    RunCell,
    SideReply,
    SideRequest,
    StdinReply,
    ValueComing,
)
from cellburst_protocol.peer import Stream

from .calls import Call, Calls
from .early import Early
from .outbound import Outbound
from .runner_link import RunnerLink
from .side import FILE_KINDS, answer_file_request
from .site import Site
from .values import blob_parts, check, place

MAX_WAITING = 64  # messages taken from the stream and not yet passed on; more wait in the gateway, by credit

log = logging.getLogger(__name__)


class Inbound:
    """One container's way in. `run` passes messages on while `open` is set; `serve` reads one stream."""

    def __init__(
        self,
        container: str,
        site: Site,
        calls: Calls,
        outbound: Outbound,
        link: RunnerLink,
        on_ack: Callable[[int], None],
    ) -> None:
        self._container, self._site, self._calls, self._outbound, self._link = container, site, calls, outbound, link
        self._on_ack = on_ack
        self._queue: asyncio.Queue[tuple[Message, Sequence[Buffer]]] = asyncio.Queue(MAX_WAITING)
        self.open = asyncio.Event()  # the runner takes cells: not while it starts, nor while the session is put away
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._early = Early()

    async def serve(self, stream: Stream) -> None:
        """Take what the gateway sends until the stream is gone (LinkClosed, StreamEnded, or the reset's error)."""
        while True:
            message, buffers = await stream.recv()
            match message:
                case Ack():
                    self._on_ack(message.sequence)
                case SideRequest():
                    self._spawn(self._side(message))
                case ValueComing():
                    self._value_coming(message)
                case RunCell():
                    if self._accepts(message):
                        await self._queue.put((message, buffers))
                case NamesData() | StdinReply() | CommMessage() | ReleaseSecrets():
                    await self._queue.put((message, buffers))
                case _:
                    log.warning(
                        "a message that no container takes",
                        extra={"container": self._container, "type": type(message).__name__},
                    )

    async def run(self) -> None:
        """Pass on what waits, in order and while it is open, for ever."""
        while True:
            message, buffers = await self._queue.get()
            await self.open.wait()
            match message:
                case RunCell():
                    await self._run_cell(message, buffers)
                case NamesData():
                    await self._names_data(message, buffers)
                case ReleaseSecrets():
                    self._outbound.hide(message)
                    await self._link.send(msgspec.structs.replace(message, origins={}, hidden={}))
                case _:
                    await self._link.send(message, buffers)

    async def quiet(self, seconds: float) -> None:
        """Wait for the questions that are being answered, at most so long."""
        if self._side_tasks:
            await asyncio.wait(self._side_tasks, timeout=seconds)

    async def close(self) -> None:
        """Stop what runs beside the queue."""
        for task in list(self._side_tasks):
            task.cancel()
        await asyncio.gather(*self._side_tasks, return_exceptions=True)

    def _accepts(self, cell: RunCell) -> bool:
        timeout = cell.resources.timeout_seconds if cell.resources else None
        call = self._calls.began(cell.call, cell.value_key, timeout)
        if call is not None and call.cancelled:
            self._outbound.refuse(call)
            return False
        return call is not None  # None: a repeat after a lost link

    async def _run_cell(self, cell: RunCell, buffers: Sequence[Buffer]) -> None:
        call = self._calls.get(cell.call)
        if call is None:
            return  # cancelled while it waited
        error = await self._refusal(call, [*cell.names, *cell.modules], buffers, cell.mac)
        if self._calls.get(cell.call) is None:
            return  # cancelled while its values came
        if error is not None:
            self._outbound.refuse(call, error)
            return
        if (layer := self._outbound.layer) is not None:
            await asyncio.to_thread(layer.look_again)  # on a network's disk it may take long
            if self._calls.get(cell.call) is None:
                return
        call.relayed = True
        plain = msgspec.structs.replace(cell, value_key="", mac="", image=None, recipe=None, resources=None)
        await self._link.send(plain, buffers)

    def _value_coming(self, coming: ValueComing) -> None:
        """Show a value that is only being written; a few system calls on the same disk."""
        if not self._site.exchange.shared or not self.open.is_set() or self._calls.running:
            return
        try:
            temporary = self._site.exchange.folder.temporary_of(coming.file)
            self._early.show(temporary, self._in_folder() / f"{coming.file}.coming", mode=0o444)
        except (OSError, CellburstError) as why:
            log.info("a value is not read while it is written: %s", why, extra={"container": self._container})
            return
        self._link.post(coming)

    async def _names_data(self, data: NamesData, buffers: Sequence[Buffer]) -> None:
        call = self._calls.get(data.call)
        if call is None:
            return  # the call ended meanwhile
        error = await self._refusal(call, data.groups, buffers, data.mac)
        if error is None:
            await self._link.send(msgspec.structs.replace(data, mac=""), buffers)
            return
        # The runner waits for these names; no user code has run, so an interrupt takes the call back there.
        self._link.post(Interrupt(call=call.id, level=1))
        self._outbound.refuse(call, error)

    async def _refusal(
        self, call: Call, groups: Sequence[NameGroup], buffers: Sequence[Buffer], seal: str
    ) -> ErrorInfo | None:
        try:
            check(groups, buffers, call.value_key, seal)
            parts = blob_parts(groups)
            if parts:
                await self._site.exchange.bring(parts)
                self._early.hide()
                await asyncio.to_thread(place, parts, self._site.exchange.folder, self._in_folder())
                call.blobs.update(part.hash for part in parts)
        except CellburstError as why:
            return why.info
        except OSError as why:
            return ErrorInfo(
                code=ErrorCode.DISK_FULL,
                message=f"the worker could not take a value: {why}",
                next="free some space there",
            )
        return None

    def _in_folder(self) -> Path:
        assert self._outbound.folder is not None
        return self._outbound.folder / "var" / "in"

    # -- questions -------------------------------------------------------------------------------------------------

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)

    async def _side(self, request: SideRequest) -> None:
        try:
            if request.kind in FILE_KINDS:
                reply = await answer_file_request(
                    request, self._outbound.layer, self._site.exchange, self._outbound.hiding
                )
                self._outbound.answer(reply)
                return
            if not self.open.is_set():
                raise PlatformError(
                    ErrorInfo(
                        code=ErrorCode.UNAVAILABLE,
                        message="the container is being started or put away",
                        next="try again",
                    )
                )
            self._outbound.side_keys[request.id] = request.value_key
            await self._link.send(msgspec.structs.replace(request, value_key=""))
        except CellburstError as why:
            self._outbound.answer(SideReply(id=request.id, error=why.info))
        except OSError as why:
            info = ErrorInfo(code=ErrorCode.UNAVAILABLE, message=f"the worker could not do this: {why}")
            self._outbound.answer(SideReply(id=request.id, error=info))
