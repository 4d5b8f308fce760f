"""GPUs and volumes for the steps of one build: `image_equipment.BuildAids`, asked of the gateway.

A GPU is leased when a step must be made that asks for it, unless the container that the image is built for has such ones anyway,
and given back when the step has ended, however it did. A step that loses its lease, with the link to the gateway, is ended.

A volume is shown as a container sees it: a version's files, and above them what the step writes, which is committed when the step
has succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from cellburst_protocol.clock import Clock
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import StepVolume
from cellburst_protocol.messages import BuildLease, BuildLeaseGiven, BuildLeaseOver, GpuShown, Queued
from cellburst_protocol.peer import LinkClosed, Peer, Stream, StreamEnded
from cellburst_protocol.resources import parse_gpus
from cellburst_protocol.volumes import VolumeMount, check_name
from cellburst_runtime.engine_base import finish
from cellburst_runtime.image_equipment import Owner, ShownVolume
from cellburst_runtime.volume_mount import VOLUMES, VolumePlaces

from .leases import Lease, LeaseBook
from .volume_commit import VolumeState, Writer
from .volume_desk import VolumeDesk

WAIT_SECONDS = 600.0  # of a step whose container holds other GPUs
BY = "an image's build"  # who changed a volume's files
Log = Callable[[str], None]


@dataclass
class GpuDesk:
    """Where builds of one worker ask for GPUs. The worker fills it: its own book, and the link while there is one."""

    book: LeaseBook | None = None
    gpus: Sequence[GpuShown] = ()
    peer: Peer | None = None

    def types(self, uuids: Sequence[str]) -> list[GpuShown]:
        """What these GPUs are."""
        return [gpu for gpu in self.gpus if gpu.uuid in uuids]


@dataclass
class WorkerAids:
    """Of one build. `container` is that it is for, whose lease has the GPUs `own`; else `build` names it to the gateway. `ids`
    are those of the volumes that its steps name."""

    desk: GpuDesk
    clock: Clock
    volume_desk: VolumeDesk | None = None
    container: str = ""
    build: str = ""
    own: Sequence[str] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    shared_folder: str = ""

    # -- GPUs ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def gpus(self, gpu: str, log: Log) -> AsyncIterator[Sequence[str]]:
        """See `BuildAids.gpus`."""
        if mine := self._mine(gpu):
            log(f"GPU: the container's own {_told(self.desk.types(mine))}")
            yield mine
            return
        async with self._leased(gpu, log) as uuids:
            yield uuids

    def _mine(self, gpu: str) -> Sequence[str]:
        """Of the container's own GPUs those that do for the step; all of a lease are of one type."""
        own = self.desk.types(self.own)
        for choice in parse_gpus(gpu, tuple(one.type for one in self.desk.gpus)):
            if own and choice.accepts(own[0].type) and choice.count <= len(own):
                return [one.uuid for one in own[: choice.count]]
        return []

    @asynccontextmanager
    async def _leased(self, gpu: str, log: Log) -> AsyncIterator[Sequence[str]]:
        peer, book = self.desk.peer, self.desk.book
        if peer is None or book is None:
            raise _lost(f"gpu={gpu} cannot be leased")
        stream = peer.open(BuildLease(gpu=gpu, container=self.container, build=self.build))
        try:
            given = await self._given(stream, gpu, log)
            since = self.clock.monotonic()
            book.take(Lease(given.lease, given.id, given.epoch, tuple(given.gpus), 0.0, 0, since))
        except BaseException:
            stream.reset()
            raise
        try:
            log(self._priced(given))
            async with _while_there(stream):
                yield given.gpus
        finally:
            book.release(given.id)
            with contextlib.suppress(CellburstError):
                stream.post(BuildLeaseOver(seconds=max(0.0, self.clock.monotonic() - since)))
                stream.end()

    async def _given(self, stream: Stream, gpu: str, log: Log) -> BuildLeaseGiven:
        waits_for = ""
        try:
            # Two containers may each hold what the other one's step waits for: neither waits for ever then.
            async with asyncio.timeout(WAIT_SECONDS if self.own else None):
                while True:
                    message, _ = await stream.recv()
                    if isinstance(message, BuildLeaseGiven):
                        return message
                    if isinstance(message, Queued):
                        waits_for = message.waiting_for
                        log(f"waiting for {waits_for}")
        except (StreamEnded, LinkClosed):
            raise _lost(f"gpu={gpu} was not leased: the gateway is not there any more") from None
        except TimeoutError:
            raise error(
                ErrorCode.UNAVAILABLE, f"gpu={gpu} was not free for {WAIT_SECONDS / 60:.0f} minutes, in which the container held"
                f" GPUs of its own: {waits_for}", next="`image.build()` builds it beforehand, without a container",
            ) from None  # fmt: skip

    def _priced(self, given: BuildLeaseGiven) -> str:
        shown = self.desk.types(given.gpus)
        hourly = (Decimal(given.usd_per_second) * 3600).quantize(Decimal("0.01"))
        text = f"GPU: {_told(shown)}, ${hourly} an hour until the step has ended ({given.price_note})"
        if any(not one.simulated for one in shown):
            text += "; the driver's libraries of this machine are not shown in images yet: CUDA finds no GPU"
        return text

    # -- volumes ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def volumes(
        self, asked: Sequence[StepVolume], folder: Path, owner: Owner, log: Log
    ) -> AsyncIterator[Sequence[ShownVolume]]:
        """See `BuildAids.volumes`."""
        desk = self.volume_desk
        if desk is None:
            raise error(ErrorCode.UNAVAILABLE, "this worker has no volumes", next="build it on another worker")
        shown: list[ShownVolume] = []
        writers: list[Writer] = []
        async with AsyncExitStack() as stack:
            for number, one in enumerate(asked):
                if one.kind == "shared":
                    shown.append(await self._shared(desk, one))
                    continue
                place = folder / str(number)
                source, writer = await self._shown(desk, one, place, owner, log, stack)
                shown.append(ShownVolume(one.path, source, one.read_only))
                writers += [writer] if not one.read_only else []
            yield shown
            for writer in writers:
                await _commit(writer, log)

    async def _shown(
        self, desk: VolumeDesk, asked: StepVolume, folder: Path, owner: Owner, log: Log, stack: AsyncExitStack
    ) -> tuple[Path, Writer]:
        if asked.name not in self.ids:
            raise error(
                ErrorCode.NOT_FOUND, f"there is no volume {asked.name}", next=f"`cellburst volume create {asked.name}` makes it"
            )  # fmt: skip
        mount = VolumeMount(
            volume=self.ids[asked.name], name=asked.name, path=asked.path, read_only=asked.read_only
        )  # fmt: skip
        (folder / VOLUMES).mkdir(parents=True)
        files = await desk.newest(mount.volume)
        tree = await desk.tree(mount, files, owner, log)
        stack.callback(desk.store.unpin, tree)
        places = VolumePlaces(folder, owner, overlay=True, isolated=True)
        place = await places.show(mount, tree, 1, desk.store, files)
        stack.push_async_callback(places.hide, mount.volume, place)
        log(f"volume {asked.name} at {asked.path}: version {files.version}{', read-only' if asked.read_only else ''}")
        state = VolumeState(version=files.version, shown_version=files.version)
        tag = (self.container or self.build).rpartition("-")[2][:8] or "build"
        return place.merged, Writer(mount, desk.gateway, place.upper or place.tree, tree, BY, tag, state)

    async def _shared(self, desk: VolumeDesk, asked: StepVolume) -> ShownVolume:
        if not desk.beside_gateway or not self.shared_folder:
            raise error(
                ErrorCode.START_FAILED, f"network file system {asked.name} is on the gateway's machine, and this worker is not",
                next="give the step a volume, or build on the gateway's machine",
            )  # fmt: skip
        source = Path(self.shared_folder) / check_name(asked.name)
        if not await asyncio.to_thread(source.is_dir):
            raise error(
                ErrorCode.NOT_FOUND, f"there is no network file system {asked.name} any more",
                next=f"cellburst nfs create {asked.name}",
            )  # fmt: skip
        return ShownVolume(asked.path, source, asked.read_only)


async def _commit(writer: Writer, log: Log) -> None:
    """Publish what the step wrote; what stands against others' changes goes beside them. Raises what `Writer.commit` does."""
    before = writer.state.version
    try:
        version = await finish(asyncio.to_thread(writer.commit, explicit=False, patient=False))
    finally:
        for text in writer.notices:
            log(text)
    log(f"volume {writer.asked.name}: " + (f"committed, version {version}" if version != before else "nothing changed"))


@asynccontextmanager
async def _while_there(stream: Stream) -> AsyncIterator[None]:
    """Run the block as long as the gateway holds the lease; it is cancelled, and PlatformError raised, when that is over."""
    lost: list[CellburstError] = []
    bound = asyncio.timeout(None)

    async def watch() -> None:
        try:
            while True:
                await stream.recv()
        except StreamEnded:
            lost.append(_lost("the lease of the step's GPUs was ended"))
        except CellburstError as why:
            lost.append(_lost(f"the lease of the step's GPUs was lost: {why.info.message}"))
        bound.reschedule(asyncio.get_running_loop().time())

    try:
        async with bound:
            watching = asyncio.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
    except TimeoutError:
        if not bound.expired() or not lost:
            raise
        raise lost[0] from None


def _lost(what: str) -> CellburstError:
    return error(ErrorCode.UNAVAILABLE, what, next="build again: the steps that were finished are kept")


def _told(gpus: Sequence[GpuShown]) -> str:
    """Such as "2 x A100-80GB (simulated: nothing runs on it)"."""
    counts = Counter((gpu.type, gpu.simulated) for gpu in gpus)
    said = [
        f"{count} x {name}{' (simulated: nothing runs on it)' if fake else ''}"
        for (name, fake), count in counts.items()
    ]
    return ", ".join(said)
