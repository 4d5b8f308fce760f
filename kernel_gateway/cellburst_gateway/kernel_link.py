"""What kernels and command lines ask for, over one link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import (
    BuildStream,
    DeleteSecret,
    Ends,
    FindSession,
    GetCost,
    GetLogs,
    GetSpending,
    GetStatus,
    Hello,
    ImageLogs,
    Interrupt,
    ListImages,
    ListReleases,
    ListSecrets,
    Message,
    ParkSession,
    PruneImages,
    PutSecret,
    RotateSecretKey,
    SessionFound,
    SessionStream,
    SetBudget,
    Shutdown,
    StopSession,
    TakeEnds,
    VerifyImages,
)
from cellburst_protocol.peer import Peer, Stream

from . import endings, reports, schedule_requests, spending
from .kernel_stream import KernelStream
from .store_rows import Role, TokenRecord

if TYPE_CHECKING:
    from .hub import Hub


class KernelLink:
    """One kernel's or command line's link."""

    def __init__(self, hub: Hub, hello: Hello, token: TokenRecord, peer: Peer) -> None:
        self._hub = hub
        self._token = token
        self._peer = peer

    async def on_message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        """A control message."""
        match message:
            case Interrupt():
                self._may_act()
                self._interrupt(message)
                return None
            case StopSession():
                self._may_act()
                self._hub.sessions.stop(self._token.owner, message)
                return None
            case ParkSession():
                self._may_act()
                return await self._hub.parking.ask(self._token.owner, message)
            case GetStatus():
                return reports.status(self._hub, self._token.owner.workspace)
            case GetLogs():
                return reports.logs(self._hub, self._token.owner.workspace, message)
            case GetCost():
                return reports.cost(self._hub, self._token.owner.workspace, message)
            case GetSpending():
                return spending.report(self._hub, self._token.owner.workspace, message)
            case TakeEnds():
                if self._token.role is Role.VIEWER and not message.shown:
                    return Ends()  # what it took, those who may act would not be told; GetStatus has them for it too
                self._may_act()
                return endings.take(self._hub, self._token.owner, message)
            case SetBudget():
                self._may_act()
                spending.set_budget(self._hub, self._token.owner, message)
                return None
            case FindSession():
                found = self._hub.sessions.find(self._token.owner.workspace, message.notebook, message.name)
                return SessionFound(sessions=[session.row() for session in found])
            case Shutdown():
                self._may_act()
                self._hub.shutdown.set()
                return None
            case ListImages():
                return await self._hub.images.listed(self._token.owner.workspace, message)
            case ImageLogs():
                return await self._hub.images.logs(self._token.owner.workspace, message)
            case PruneImages():
                self._may_act()
                return await self._hub.images.prune(self._token.owner.workspace, message)
            case VerifyImages():
                self._may_act()
                return await self._hub.images.verify(self._token.owner.workspace, message)
            case ListSecrets():
                return await self._hub.secret_desk.listed(self._token.owner)
            case ListReleases():
                return self._hub.secret_desk.releases(self._token.owner, message)
            case PutSecret() | DeleteSecret() | RotateSecretKey():
                self._may_act()
                return await self._change_secrets(message)
        if schedule_requests.is_one(message):
            if schedule_requests.acts(message):
                self._may_act()
            return await schedule_requests.answer(self._hub, self._token.owner, message)
        raise error(ErrorCode.FORBIDDEN, f"{type(message).__name__} is not for a user's link", next="see PROTOCOL.md")

    async def _change_secrets(self, message: PutSecret | DeleteSecret | RotateSecretKey) -> Message | None:
        desk, owner = self._hub.secret_desk, self._token.owner
        match message:
            case PutSecret():
                return await desk.put(owner, message)
            case DeleteSecret():
                await desk.delete(owner, message)
                return None
            case RotateSecretKey():
                return desk.rotate()

    def on_open(self, message: Message, stream: Stream) -> None:
        """A session's stream, or one that builds an image."""
        try:
            if isinstance(message, BuildStream):
                self._may_act()
                self._hub.spawn(self._hub.images.build(self._token.owner, message, stream))
                return
            if not isinstance(message, SessionStream):
                raise error(
                    ErrorCode.FORBIDDEN, f"{type(message).__name__} is not for a user's link", next="see PROTOCOL.md"
                )
            self._may_act()
            session = self._hub.sessions.open(self._token.owner, message)
        except CellburstError as why:
            stream.reset(why.info)
            return
        self._hub.spawn(KernelStream(self._hub, session, stream, message.from_sequence).run())

    def closed(self) -> None:
        """Its streams notice by themselves."""

    def _may_act(self) -> None:
        if self._token.role is Role.VIEWER:
            raise error(ErrorCode.FORBIDDEN, "this token may look and not act", next="ask for a user's token")

    def _interrupt(self, message: Interrupt) -> None:
        workspace = self._token.owner.workspace
        if message.session:
            self._hub.cells.interrupt(self._hub.sessions.owned(workspace, message.session), message.level, message.call)
            return
        for session in self._hub.sessions:
            if (
                session.record.owner.workspace == workspace
                and session.call is not None
                and session.call.id == message.call
            ):
                self._hub.cells.interrupt(session, message.level, message.call)
