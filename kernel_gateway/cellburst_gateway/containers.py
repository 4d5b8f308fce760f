"""A container as the gateway sees it: its lease, its stream to the worker, its meter."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from decimal import Decimal

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.images import ImageRecipe, image_key
from cellburst_protocol.messages import Ack, ContainerInfo, ContainerUsage, Message, MirrorSpec
from cellburst_protocol.peer import LinkClosed, Stream
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import CONTAINER_TRANSITIONS, ContainerState, EndReason, advance
from cellburst_protocol.volumes import VolumeMount

ACK_DELAY_SECONDS = 0.05  # one acknowledgement for a burst of events
MAX_WAITING_MESSAGES = 256  # keystrokes and widget messages for a container that cannot be reached
MAX_WAITING_BYTES = 4 * 1024 * 1024

log = logging.getLogger(__name__)


class ContainerDetail(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the record keeps of a container as JSON, to take it up again after a restart."""

    resources: Resources
    info: ContainerInfo
    usd_per_second: str = "0"
    mirror_identity: str = ""
    warning: str = ""
    names_lost: bool = False
    parked: str = ""  # the id of the parked session that it was to resume
    moved: str = ""  # the id of its session as another worker keeps it, whose names it gets
    recipe: ImageRecipe | None = (
        None  # None: the mirror, live; one with `mirror`: as its worker, on another machine, builds it
    )
    volumes: list[VolumeMount] = []
    is_build: bool = False  # no container: GPUs that a step of an image's build holds (see `build_leases.py`)
    link_image: MirrorSpec | None = None  # its code may use the gateway: what sessions of its own run in

    def serves(self, asked: Resources, recipe: ImageRecipe | None) -> bool:
        """Whether the container can run a cell that asks for this: it has what it would get."""
        if not same_image(recipe, self.recipe):
            return False
        if asked.same_container(self.resources):
            return True
        gpus = self.info.gpus
        same = asked.cpu == self.resources.cpu and asked.memory_mib == self.resources.memory_mib
        if asked.gpus:
            fits = any(gpus and len(gpus) == one.count and one.accepts(gpus[0].type) for one in asked.gpus)
        else:
            fits = not gpus
        return same and asked.network == self.resources.network and fits


def is_mirror(recipe: ImageRecipe | None) -> bool:
    """Whether it is the notebook's own environment: shown live (None), or as it is built on another machine."""
    return recipe is None or recipe.mirror


def same_image(one: ImageRecipe | None, other: ImageRecipe | None) -> bool:
    """Whether two recipes, with their local files, make the same image."""
    if one is None or other is None or one.mirror or other.mirror:
        return is_mirror(one) and is_mirror(other)
    return one is other or image_key(one) == image_key(other)


class ContainerHandle:
    """One container from its placement to its end. `recorded` is the last of its events in the session's log."""

    def __init__(
        self,
        *,
        id: str,
        session: str,
        worker: str,
        lease: str,
        epoch: int,
        detail: ContainerDetail,
        gpus: Sequence[str],
        now: float,
    ) -> None:
        self.id = id
        self.session = session
        self.worker = worker
        self.lease = lease
        self.epoch = epoch
        self.detail = detail
        detail.info.resources = detail.resources
        self.gpus = tuple(gpus)
        self.state = ContainerState.PLACED
        self.usd_per_second = Decimal(detail.usd_per_second)
        self.opened_unix_seconds = 0.0
        self.touched_seconds = 0.0  # of its uptime, what the record has
        self.recorded = 0
        self.expected = 0  # events in the worker's spool when it last joined: up to here a replay is on its way
        self.stop_reason: EndReason | None = None
        self.reported_call = ""  # what its worker ran when it last joined
        self.usage: ContainerUsage | None = None
        self.building = False  # its worker builds its image
        self.released: dict[str, tuple[str, int]] | None = (
            None  # secrets that it has: (store, version); None: not known
        )
        # Of secrets (store, name, version): what its session and the one outside had been given when it was told what to hide.
        self.hides: frozenset[tuple[str, str, int]] = frozenset()
        self._uptime_seconds = 0.0
        self._uptime_at = now
        self._frozen = False
        self._stream: Stream | None = None
        self._waiting: deque[tuple[Message, list[bytes]]] = deque()
        self._waiting_bytes = 0
        self._ack_scheduled = False

    def move(self, to: ContainerState) -> None:
        """Change state by the table; raises TransitionError."""
        self.state = advance(CONTAINER_TRANSITIONS, self.state, to, f"container {self.id}")
        self.detail.info.state = to

    def note_scaledown(self, seconds: float) -> None:
        """A later cell said for how long the container may be idle. A gateway that starts again has the first cell's."""
        self.detail.resources = msgspec.structs.replace(self.detail.resources, scaledown_seconds=seconds)
        self.detail.info.resources = self.detail.resources

    def info(self, now: float) -> ContainerInfo:
        """The container as it is shown now."""
        self.detail.info.uptime_seconds = round(self.uptime(now), 3)
        return self.detail.info

    # -- meter -----------------------------------------------------------------------------------------------------

    def uptime(self, now: float) -> float:
        """Billed seconds so far: the worker's own count, carried on by our clock while the worker is heard."""
        return self._uptime_seconds if self._frozen else self._uptime_seconds + max(0.0, now - self._uptime_at)

    def reported(self, uptime_seconds: float, now: float) -> None:
        """The worker told its count; it never goes down."""
        self._uptime_seconds = max(self._uptime_seconds, uptime_seconds)
        self._uptime_at = now
        self._frozen = False

    def freeze(self, now: float) -> None:
        """The worker is not heard: nothing is added until it says so itself."""
        if not self._frozen:
            self._uptime_seconds = self.uptime(now)
            self._frozen = True

    def cost(self, now: float, since_uptime: float = 0.0) -> Decimal:
        """US dollars since that uptime."""
        return self.usd_per_second * Decimal(str(round(max(0.0, self.uptime(now) - since_uptime), 3)))

    # -- stream ----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether its worker's stream is open."""
        return self._stream is not None

    def attach(self, stream: Stream) -> None:
        """The worker opened the container's stream: send what waited."""
        if self._stream is not None:
            self._stream.reset()
        self._stream = stream
        self.released = None  # what was sent on the last one may be lost
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        try:
            stream.post(Ack(sequence=self.recorded))  # an earlier one may have been lost with its link
            for message, buffers in waiting:
                stream.post(message, buffers)
        except CellburstError:
            self.detach(stream)

    def detach(self, stream: Stream | None = None) -> None:
        """The stream is gone (or, without an argument, the container)."""
        if stream is None or stream is self._stream:
            self._stream = None

    def close_stream(self) -> None:
        """End the stream from this side: the container is gone."""
        if self._stream is not None:
            self._stream.end()
            self._stream = None
        self._waiting.clear()

    async def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send on the stream, waiting while it is full. Without a stream it is kept a while.

        Raises PlatformError (UNAVAILABLE) when too much waits already.
        """
        stream = self._stream
        if stream is not None:
            try:
                await stream.send(message, buffers)
                return
            except LinkClosed:
                self.detach(stream)
        size = sum(memoryview(b).nbytes for b in buffers)
        if len(self._waiting) >= MAX_WAITING_MESSAGES or self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise error(
                ErrorCode.UNAVAILABLE, f"the worker {self.worker} cannot be reached and too much waits for it already"
            )
        self._waiting.append((message, [bytes(b) for b in buffers]))
        self._waiting_bytes += size

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> bool:
        """Queue on the open stream. False: there is none, and nothing is kept."""
        if self._stream is None:
            return False
        try:
            self._stream.post(message, buffers)
        except CellburstError:
            self.detach(self._stream)
            return False
        return True

    def ack_soon(self) -> None:
        """Acknowledge what is recorded, once for a burst."""
        if not self._ack_scheduled:
            self._ack_scheduled = True
            asyncio.get_running_loop().call_later(ACK_DELAY_SECONDS, self._ack)

    def ack_now(self) -> None:
        """Acknowledge at once: the last event."""
        self._ack()

    def _ack(self) -> None:
        self._ack_scheduled = False
        self.post(Ack(sequence=self.recorded))
