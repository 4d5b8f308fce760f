"""What code in a container may ask of the gateway, where its session was given a link: cells in sessions of its own.

The token is made of the container's id and the gateway's master key, so nothing needs recording: it holds exactly while the
container lives, also over a restart of the gateway. All that is done with it stays below the outer session: the sessions it
opens carry the outer one's id in their notebook's name, run in the outer one's image, show in its workspace's lists and
ledger like any other, and end with it. It sees no other session, no secret and no token, and starts and stops nothing else.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import (
    CellDone,
    FindSession,
    GetCost,
    GetLogs,
    GetStatus,
    Interrupt,
    Message,
    NameGroup,
    Numbered,
    ParkSession,
    RunCell,
    SessionFound,
    SessionStream,
    SideReply,
    StopSession,
    decode,
)
from cellburst_protocol.peer import Peer, Stream
from cellburst_protocol.states import EndReason

from . import reports
from .auth import CONTAINER_PREFIX as PREFIX
from .kernel_stream import KernelStream
from .session import Session
from .store_rows import Role, TokenRecord

if TYPE_CHECKING:
    from .hub import Hub

INSIDE = "in:"  # what the notebook of an inner session begins with


def container_token(master_key: bytes, container: str) -> str:
    """The token of a container's code."""
    seal = hmac.new(master_key, b"container link\0" + container.encode(), "sha256").hexdigest()
    return f"{PREFIX}{container}.{seal}"


def token_record(hub: Hub, token: str) -> TokenRecord:
    """Whose token it is. Raises RequestError (UNAUTHENTICATED) unless its container lives and has a link."""
    container = token.removeprefix(PREFIX).rpartition(".")[0]
    right = hmac.compare_digest(container_token(hub.secrets.master_key, container).encode(), token.encode())
    return live_record(hub, container if right else "")


def live_record(hub: Hub, container: str) -> TokenRecord:
    """The token's record while its container lives. Raises RequestError (UNAUTHENTICATED)."""
    handle = hub.fleet.containers.get(container)
    session = hub.sessions.get(handle.session) if handle is not None else None
    if handle is None or session is None or handle.detail.link_image is None:
        raise error(ErrorCode.UNAUTHENTICATED, "the token is of no container that lives and has a link")
    return TokenRecord(
        id=container, name=f"container {container}", role=Role.CONTAINER, owner=session.record.owner, created=0.0,
        expires=None, revoked=None,
    )  # fmt: skip


def container_scope(token: TokenRecord) -> str:
    """Whose blobs the container's code may read: what it put itself, and what its own sessions gave it."""
    return f"{token.owner.workspace}/{token.id}"


def inner_notebook(outer: str, notebook: str) -> str:
    """What the notebook of a session inside another is called."""
    return f"{INSIDE}{outer}:{notebook}"


def outer_of(notebook: str) -> str:
    """The session that a session of this notebook is inside of, or ""."""
    return notebook.removeprefix(INSIDE).partition(":")[0] if notebook.startswith(INSIDE) else ""


def end_inner(hub: Hub, outer: str) -> None:
    """The outer session has ended or is parked: so do those inside it."""
    for session in hub.sessions:
        if outer_of(session.record.notebook) == outer:
            hub.sessions.end(session, EndReason.STOPPED)


class ContainerLink:
    """One link from inside a container."""

    def __init__(self, hub: Hub, token: TokenRecord, peer: Peer) -> None:
        self._hub = hub
        self._token = token
        self._peer = peer
        self._outer = hub.fleet.containers[token.id].session

    async def on_message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        """A control message."""
        hub, owner = self._hub, self._token.owner
        match message:
            case Interrupt():
                hub.cells.interrupt(self._mine(message.session, message.call), message.level, message.call)
                return None
            case StopSession() | ParkSession() | GetLogs() | GetCost() | FindSession():
                return await self._about_session(message)
            case GetStatus():
                status = reports.status(hub, owner.workspace)
                status.sessions = [row for row in status.sessions if outer_of(row.notebook) == self._outer]
                status.data_folder = status.gateway_url = ""
                return status
        raise error(
            ErrorCode.FORBIDDEN, f"{type(message).__name__} is not for code in a container",
            allowed="cells in sessions of its own", next="do it outside: in the notebook, or with `cellburst`",
        )  # fmt: skip

    async def _about_session(
        self, message: StopSession | ParkSession | GetLogs | GetCost | FindSession
    ) -> Message | None:
        hub, owner = self._hub, self._token.owner
        if not isinstance(message, FindSession) and message.session:
            self._mine(message.session)
        message = msgspec.structs.replace(message, notebook=inner_notebook(self._outer, message.notebook))
        match message:
            case StopSession():
                hub.sessions.stop(owner, message)
                return None
            case ParkSession():
                return await hub.parking.ask(owner, message)
            case GetLogs():
                return reports.logs(hub, owner.workspace, message)
            case GetCost():
                return reports.cost(hub, owner.workspace, message)
            case FindSession():
                found = hub.sessions.find(owner.workspace, message.notebook, message.name)
                return SessionFound(sessions=[session.row() for session in found])

    def on_open(self, message: Message, stream: Stream) -> None:
        """A session's stream."""
        try:
            if not isinstance(message, SessionStream):
                raise error(ErrorCode.FORBIDDEN, f"{type(message).__name__} is not for code in a container")
            if message.session:
                self._mine(message.session)
            asked = msgspec.structs.replace(message, notebook=inner_notebook(self._outer, message.notebook))
            session = self._hub.sessions.open(self._token.owner, asked)
        except CellburstError as why:
            stream.reset(why.info)
            return
        self._hub.spawn(InnerStream(self._hub, session, stream, message.from_sequence, self._token).run())

    def closed(self) -> None:
        """Its streams notice by themselves."""

    def _mine(self, session_id: str, call: str = "") -> Session:
        """A session inside this link's, by its id or by the call that it runs. Raises RequestError (NOT_FOUND)."""
        for session in self._hub.sessions:
            if outer_of(session.record.notebook) == self._outer and (
                session.id == session_id
                or (not session_id and call and session.call is not None and session.call.id == call)
            ):
                return session
        raise error(
            ErrorCode.NOT_FOUND, f"there is no live session {(session_id or call)[:80]!r} inside this one",
            next="`%modal status` lists the sessions there are",
        )  # fmt: skip


class InnerStream(KernelStream):
    """The stream of a session inside another: its cells run in the outer one's image, and have no links of their own."""

    def __init__(self, hub: Hub, session: Session, stream: Stream, from_sequence: int, token: TokenRecord) -> None:
        super().__init__(hub, session, stream, from_sequence)
        self._token = token

    async def _take(self, message: Message, buffers: list[memoryview]) -> None:
        if isinstance(message, RunCell):
            handle = self._hub.fleet.containers.get(self._token.id)
            if handle is None or handle.detail.link_image is None:
                raise CellburstError(ErrorInfo(code=ErrorCode.CONTAINER_LOST, message="the outer container is gone"))
            # As found inside, the environment has the container's paths and the machine-id of nobody.
            message = msgspec.structs.replace(
                message, image=handle.detail.link_image, recipe=message.recipe or handle.detail.recipe, with_link=False,
                has_mirror=False,
            )  # fmt: skip
        await super()._take(message, buffers)

    def _sending(self, numbered: Numbered) -> None:
        if b'"blob"' in memoryview(numbered.event).tobytes():
            event = decode(memoryview(numbered.event))
            if isinstance(event, CellDone):
                self._grant(event.home)

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """As a kernel's stream does; a value that comes home may be read from inside."""
        if isinstance(message, SideReply):
            self._grant(message.groups)
            if message.blob is not None:
                self._hub.blobs.add_owner(container_scope(self._token), message.blob.hash)
        super().post(message, buffers)

    def _grant(self, groups: list[NameGroup]) -> None:
        for part in (part for group in groups for part in group.parts if part.at == "blob"):
            self._hub.blobs.add_owner(container_scope(self._token), part.hash)
