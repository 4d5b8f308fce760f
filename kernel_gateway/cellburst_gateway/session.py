"""A live session: its record, container, current call, and the kernel's stream. State only; what happens is elsewhere.

cells.py           a cell from RunCell to its end
worker_events.py   what the container's worker reports
placer.py          a container for it
parking.py         putting it away, and what a worker keeps of it
sessions.py        finding, making, superseding and ending sessions
kernel_stream.py   the kernel's stream, fed from the session's log
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import msgspec

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.framing import Buffer
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import (
    Event,
    Message,
    Notice,
    Numbered,
    ParkedInfo,
    SessionInfo,
    SessionParked,
    SessionRow,
    SideReply,
    encode,
)
from cellburst_protocol.states import ContainerState, EndReason, SessionState
from cellburst_protocol.volumes import VolumeMount

from .calls import Call
from .containers import ContainerHandle
from .park_rules import Cause, Pending
from .store_rows import SessionRecord

if TYPE_CHECKING:
    from .hub import Hub

RING_BYTES = 256 * 1024  # newest events kept in memory for streams that keep up; others read the log


class Subscriber(Protocol):
    """The kernel's side of a session, as the session needs it."""

    def wake(self) -> None:
        """There are new events in the log."""

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send a message that is not numbered, beside events. Dropped when the stream is gone."""

    def post_live(self, message: Message) -> None:
        """Send a live figure, unless the stream is behind."""

    def close(self, why: str) -> None:
        """Give the stream up: another one took the session."""


@dataclass
class ParkUnderWay:
    """A park from its request to its outcome; the session's worker knows it by `id`."""

    id: str
    cause: Cause
    waiters: list[asyncio.Future[SessionParked]] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    safe: bool = False  # its worker has said that it is on disk
    lost: bool = False  # its worker is back and has neither the container nor the bytes

    def done(self, answer: SessionParked) -> None:
        """Tell who waits that it is parked."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(answer)

    def fail(self, why: CellburstError) -> None:
        """Tell who waits that it is not."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(why)


class KeptRecord(ParkedInfo, kw_only=True, omit_defaults=True):
    """What the record has of a parked session: also the image that it goes on in, which nobody else is told."""

    recipe: ImageRecipe | None = None
    volumes: list[VolumeMount] = msgspec.field(default_factory=list)


class Session:
    """One session that has not ended."""

    def __init__(self, hub: Hub, record: SessionRecord, last_sequence: int) -> None:
        self.hub = hub
        self.record = record
        self.container: ContainerHandle | None = None
        self.call: Call | None = None
        self.lost_container = bool(record.detail)  # an earlier container is gone, and names with it
        self.last_sequence = last_sequence
        self.subscriber: Subscriber | None = None
        self.superseded: SessionRecord | None = None
        now = hub.clock.monotonic()
        self.kernel_left_at: float | None = now
        self.idle_since = now
        self.superseded_at: float | None = now if record.state is SessionState.SUPERSEDED else None
        self.kept = msgspec.json.decode(record.parked, type=ParkedInfo) if record.parked else None
        self.kept_recipe = msgspec.json.decode(record.parked, type=KeptRecord).recipe if record.parked else None
        # Kept when its container is lost as well: the next one has them again.
        self.volumes = msgspec.json.decode(record.parked, type=KeptRecord).volumes if record.parked else []
        self.kept_missing = False  # its worker has joined without the bytes
        self.park: ParkUnderWay | None = None
        if record.parking:
            pending = msgspec.json.decode(record.parking, type=Pending)
            self.park = ParkUnderWay(pending.id, pending.cause, safe=self.kept is not None)
        self.park_failed_at: float | None = None
        self.park_failure_told = False
        self.inner_secrets: frozenset[str] = frozenset()  # what sessions inside it may have beside its own
        self.sides: dict[str, str] = {}  # side requests whose answers are due, and the keys of those
        self._ring: deque[tuple[int, Numbered, list[bytes], int]] = deque()
        self._ring_bytes = 0

    @property
    def id(self) -> str:
        """The session's id."""
        return self.record.id

    # -- events ----------------------------------------------------------------------------------------------------

    def emit(
        self, event: Event, *, call: str = "", buffers: Sequence[Buffer] = (), source: tuple[str, int] | None = None
    ) -> int:
        """Append an event to the session's log and let the kernel have it. Raises PlatformError (DISK_FULL, STORE)."""
        return self.emit_raw(encode(event), call=call, buffers=buffers, source=source)

    def emit_raw(
        self, event: bytes, *, call: str = "", buffers: Sequence[Buffer] = (), source: tuple[str, int] | None = None
    ) -> int:
        """`emit` for an event that is encoded already."""
        kept = [bytes(b) for b in buffers]
        sequence = self.last_sequence + 1
        if not self.hub.logs.append(self.id, sequence, call, event, kept, source):
            return self.last_sequence  # recorded before a restart
        self.last_sequence = sequence
        size = len(event) + sum(map(len, kept)) + 200
        self._ring.append((sequence, Numbered(sequence=sequence, call=call, event=msgspec.Raw(event)), kept, size))
        self._ring_bytes += size
        while self._ring_bytes > RING_BYTES or (self.subscriber is None and self._ring):
            self._ring_bytes -= self._ring.popleft()[3]
        if self.subscriber is not None:
            self.subscriber.wake()
        return sequence

    def notice(self, text: str, *, warning: bool = True) -> None:
        """A line of the platform's own, under the running cell."""
        self.emit(Notice(text=text, level="warning" if warning else "info"), call=self.call.id if self.call else "")

    def recent(self, after: int) -> list[tuple[Numbered, list[bytes]]] | None:
        """Events after a sequence from memory, or None when they are only in the log."""
        if not self._ring or self._ring[0][0] > after + 1 or self._ring[-1][0] < self.last_sequence:
            return None
        unseen = islice(self._ring, max(0, after + 1 - self._ring[0][0]), None)  # sequences have no gaps
        return [(numbered, buffers) for _, numbered, buffers, _ in unseen]

    def side_answered(self, reply: SideReply, buffers: Sequence[Buffer]) -> None:
        """Pass the answer of a side request on to the kernel that asked."""
        key = self.sides.pop(reply.id, None)
        if key is not None and self.subscriber is not None:
            self.subscriber.post(msgspec.structs.replace(reply, value_key=key), buffers)

    def tell_info(self) -> None:
        """Send SessionInfo: container or state changed."""
        if self.subscriber is not None:
            self.subscriber.post(self.info())

    # -- how it is shown -------------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """The session's state."""
        return self.record.state

    @property
    def is_superseded(self) -> bool:
        """Whether another session has its name now."""
        return self.record.state is SessionState.SUPERSEDED

    @property
    def at_rest(self) -> SessionState:
        """What it is when its call has ended."""
        if self.is_superseded:
            return self.state
        if self.park is not None:
            return SessionState.PARKING
        if self.container is None:
            return SessionState.PARKED if self.kept is not None else SessionState.IDLE
        resuming = self.kept is not None and self.container.state is not ContainerState.READY
        return SessionState.STARTING if resuming else SessionState.IDLE

    @property
    def shown_parked(self) -> ParkedInfo | None:
        """What is kept of it, while that is all there is."""
        if self.kept is None or self.kept_missing or self.container is not None:
            return None
        return self.kept

    def info(self) -> SessionInfo:
        """What the kernel is told."""
        now = self.hub.clock.monotonic()
        old = self.hub.sessions.get(self.superseded.id) if self.superseded else None
        return SessionInfo(
            session=self.id,
            notebook=self.record.notebook,
            name=self.record.name,
            state=self.state,
            container=self.container.info(now) if self.container else None,
            running_call=self.call.id if self.call else "",
            last_sequence=self.last_sequence,
            superseded=old.row() if old else None,
            parked=self.shown_parked,
        )

    def row(self) -> SessionRow:
        """What lists show."""
        now, parked = self.hub.clock.monotonic(), self.shown_parked
        return SessionRow(
            id=self.id,
            notebook=self.record.notebook,
            name=self.record.name,
            state=self.state,
            kernel_id=self.record.kernel_id,
            container=self.container.info(now) if self.container else None,
            running_call=self.call.id if self.call else "",
            created_unix_seconds=self.record.created,
            last_used_unix_seconds=self.record.last_used,
            cost_usd=self.hub.sessions.cost_text(self),
            names=parked.names if parked is not None else [],
            parked=parked,
            usage=self.container.usage if self.container else None,
            volumes=self.volumes,
        )

    # -- its record ------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> ImageRecipe | None:
        """The image of its container, or of what is kept of it; None is the mirror."""
        return self.container.detail.recipe if self.container is not None else self.kept_recipe

    def kept_text(self) -> str | None:
        """What is kept of it, as the record has it; None where nothing is."""
        if self.kept is None:
            return None
        kept = msgspec.structs.asdict(self.kept)
        return msgspec.json.encode(KeptRecord(**kept, recipe=self.kept_recipe, volumes=self.volumes)).decode()

    def has_volumes(self, volumes: list[VolumeMount]) -> None:
        """From now on it has these, in this container and in later ones."""
        self.volumes = volumes
        self.hub.volumes.uses(self.id, [mount.volume for mount in volumes])

    def update(
        self, *, state: SessionState | None = None, container: str | None = None, kernel_id: str | None = None,
        reason: EndReason | None = None, detail: str | None = None, parking: str | None = None, parked: str | None = None,
    ) -> None:  # fmt: skip
        """Change the record. A superseded session stays so, whatever its calls do, until it ends."""
        self.hub.write_now()  # in order: what waits is of before
        if self.is_superseded and state is not SessionState.ENDED:
            state = None
        if state is self.record.state:
            state = None
        self.record = self.hub.store.update_session(
            self.id,
            now=self.hub.clock.wall(),
            state=state,
            container=container,
            kernel_id=kernel_id,
            reason=reason,
            detail=detail,
            parking=parking,
            parked=parked,
        )
