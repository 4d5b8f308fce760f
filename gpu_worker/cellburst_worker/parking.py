"""How a session is put away: frozen, its names kept by value, checkpointed, its layer's store kept, sealed at last.

    freeze -> names to the draft -> detach -> checkpoint -> store to the draft -> commit        (an engine with snapshots)
    freeze -> names to the draft -> end -> store to the draft -> commit                         (names only)

Large names go to the draft while the container still writes them: the disk is what all this waits for.
Until the checkpoint nothing is lost by a failure: the draft is thrown away, the runner is thawed and the session lives on.
A checkpoint that fails and takes the container with it leaves the names, which are then all that is kept. After the commit
the session outlives this worker. A worker that is killed before that leaves a draft and a container, which the next one
removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.messages import (
    ContainerParked,
    EngineInfo,
    NameGroup,
    ParkContainer,
    ParkedInfo,
    RemoteName,
    RunnerFreeze,
    RunnerFrozen,
    RunnerReady,
)
from cellburst_runtime.engine import CheckpointFailed
from cellburst_runtime.engine_base import finish
from cellburst_runtime.snapshot_manifest import CHECKPOINT, NAMES, STORE, LiveFile, Manifest
from cellburst_runtime.snapshots import Draft

from . import park_memory, parked_sealed
from .behind import HashBehind, flush_behind
from .body import Body, start_message
from .early import Copies
from .parked_names import NamesFolder, keep, known_hashes, lost_names, names_bytes
from .site import Prepared, Running

FREEZE_SECONDS = 300.0  # pickling 1 GB of names by a slow `__reduce__`; hooks of before
DETACH_SECONDS = 10.0
SHOWN_FILES = 3
PAGES = "pages.img"  # of a checkpoint: nearly all of it, and written by runsc from beginning to end

log = logging.getLogger(__name__)


class Parking:
    """One try to put a session away."""

    def __init__(self, body: Body, request: ParkContainer) -> None:
        assert body.prepared is not None and body.running is not None
        self.id = request.parked
        self.thawed = True  # the container goes on as before; False after a failure: it cannot, and must be ended
        self._body, self._request = body, request
        self._site = body.site
        self._prepared: Prepared = body.prepared
        self._running: Running = body.running
        self._talk = body.talk("was put away")
        self._frozen = self._detached = False
        self._gone = False  # the container's processes are: only the draft has what they were
        self._notes: list[str] = []
        self._steps: dict[str, float] = {}
        self._known: dict[str, str] = {}  # hashes of the draft's files, by path, that the seal need not take

    async def run(self) -> ContainerParked:
        """Put it away. Raises the error tree and OSError: it was not, see `thawed`. When cancelled nothing is kept."""
        began = self._site.clock.monotonic()
        volumes = self._body.volumes
        try:
            if volumes is not None:
                with self._step("volumes"):
                    await volumes.park(self.id)
            names_limit_bytes = await self._make_room()
            async with self._copying(names_limit_bytes) as (draft, names):
                with self._step("freeze"):
                    frozen, buffers = await self._freeze(names_limit_bytes)
                manifest = await self._put_away(frozen, buffers, draft, names)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self.thawed = await self._thaw()
            if volumes is not None and self.thawed:
                volumes.begin()
            raise
        if volumes is not None:
            volumes.parked()
        seconds = self._site.clock.monotonic() - began
        what = {
            "container": self._body.id,
            "parked": self.id,
            "bytes": manifest.size_bytes,
            "seconds": round(seconds, 3),
        }
        log.info("a session is parked", extra={**what, **{name: round(s, 3) for name, s in self._steps.items()}})
        return ContainerParked(parked=parked_info(manifest), seconds=seconds, notes=[*frozen.notes, *self._notes])

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = self._site.clock.monotonic()
        try:
            yield
        finally:
            self._steps[name] = self._site.clock.monotonic() - began

    @contextlib.asynccontextmanager
    async def _copying(self, names_limit_bytes: int) -> AsyncIterator[tuple[Draft | None, Copies]]:
        """A draft to which the names are copied as they are written. None: they are when all are, because they come from the
        draft's own disk and are moved, or that disk has no room to spare."""
        names, outbound, out = Copies(direct=True), self._body.outbound, self._prepared.folder / "var" / "out"
        draft = await self._early_draft(out, names_limit_bytes)
        try:
            if draft is not None:
                folder = NamesFolder(draft.folder / NAMES)
                outbound.saving = lambda coming: names.begin(out / coming.file, folder.temporary(), coming.size_bytes)
            yield draft, names
        finally:
            outbound.saving = None
            await finish(asyncio.to_thread(names.drop))
            if draft is not None:
                await finish(asyncio.to_thread(draft.abandon))

    async def _early_draft(self, out: Path, names_limit_bytes: int) -> Draft | None:
        snapshots = self._site.runtime.snapshots
        if self._request.park_key or not out.is_dir() or out.stat().st_dev == snapshots.folder.stat().st_dev:
            return None
        memory_bytes = await self._memory_bytes()
        expected_bytes = min(memory_bytes, names_limit_bytes or memory_bytes)
        expected_bytes += memory_bytes if self._prepared.snapshot_key else 0
        try:
            return await asyncio.to_thread(snapshots.draft, "session", self.id, expected_bytes, spare=True)
        except CellburstError as why:  # the true size may fit
            log.info(
                "names are copied when all are written", extra={"container": self._body.id, "why": why.info.message}
            )
            return None

    async def _make_room(self) -> int:
        """Let the container use what it takes to be put away. Returns what its names may take by value; see `park_memory`."""
        from .templates import free_bytes  # it imports this

        container, limit_bytes = self._running.container, self._request.names_limit_bytes
        whole = bool(self._prepared.snapshot_key)
        wanted = 1 if self._request.park_key else limit_bytes  # no names are saved of a session with secrets
        given = park_memory.room(await container.usage(), wanted, await asyncio.to_thread(free_bytes), whole=whole)
        if given.more_mib:
            with contextlib.suppress(OSError):  # it has what it has
                container.spare_memory(given.more_mib)
        return limit_bytes if self._request.park_key else given.names_bytes

    async def _freeze(self, names_limit_bytes: int) -> tuple[RunnerFrozen, list[memoryview]]:
        question = RunnerFreeze(save_names=not self._request.park_key, limit_bytes=names_limit_bytes)
        container = self._running.container
        asking = self._talk.ask(container, question, RunnerFrozen, FREEZE_SECONDS, "was not ready to be put away")
        self._frozen = True  # it may be, also when no answer comes
        frozen, buffers = await asking
        if frozen.error is not None:
            self._frozen = False
            raise from_info(frozen.error)
        return frozen, buffers

    async def _put_away(
        self, frozen: RunnerFrozen, buffers: Sequence[memoryview], early: Draft | None, names: Copies
    ) -> Manifest:
        live_files = await asyncio.to_thread(self._running.live_files, frozen.files)
        whole = self._can_restore(live_files)
        if self._request.park_key:
            why = [] if self._prepared.snapshot_key else [_why_no_snapshot(self._running.engine)]
            parked_sealed.only_whole(self._running.engine.name, whole, self._notes or why)
            parked_sealed.check_memory(await self._memory_bytes())
        if not whole and frozen.lost and not frozen.groups:
            raise error(
                ErrorCode.UNPICKLABLE,
                f"this session cannot be put away: {_why_no_snapshot(self._running.engine)}, and none of its names can be kept "
                f"by value ({_list([lost.name for lost in frozen.lost])})",
                next="%modal stop ends it; it lives on until then",
            )
        if not self._prepared.snapshot_key:
            self._notes.append(f"Its processes are not kept: {_why_no_snapshot(self._running.engine)}.")
        expected_bytes = names_bytes(frozen.groups) + (await self._memory_bytes() if whole else 0)
        draft = early
        if draft is None:
            draft = await asyncio.to_thread(self._site.runtime.snapshots.draft, "session", self.id, expected_bytes)
        try:
            keeping = asyncio.create_task(self._keep_names(draft, frozen, buffers, names))
            try:
                if whole:
                    with self._step("checkpoint"):
                        whole = await self._checkpoint(draft)  # meanwhile: the names' files change no more
            finally:
                await asyncio.wait({keeping})
            groups, lost = keeping.result()
            manifest = self._manifest(groups, [*frozen.lost, *lost], live_files)
            if not whole:
                manifest.key, manifest.key_parts, manifest.live_files = "", {}, []
            return await self._seal(draft, manifest)
        finally:
            await finish(asyncio.to_thread(draft.abandon))

    def _can_restore(self, live_files: Sequence[LiveFile]) -> bool:
        if not self._prepared.snapshot_key:
            return False
        if unfound := [file.path for file in live_files if not file.inode]:
            # Deleted while it is open, mostly: the engine cannot restore that.
            self._notes.append(
                f"Only the names were kept, not the processes: these open files are not there any more: {_list(unfound)}."
            )
        return not unfound

    async def _memory_bytes(self) -> int:
        usage = await self._running.container.usage()
        return usage.memory_bytes or self._body.request.resources.memory_mib * 1024 * 1024

    async def _keep_names(
        self, draft: Draft, frozen: RunnerFrozen, buffers: Sequence[memoryview], names: Copies
    ) -> tuple[list[NameGroup], list[RemoteName]]:
        out, folder = self._prepared.folder / "var" / "out", draft.folder / NAMES
        self._body.outbound.saving = None

        def kept() -> tuple[list[NameGroup], list[RemoteName]]:
            try:
                return keep(frozen.groups, buffers, out, folder, names.finish)
            finally:
                names.drop()  # what was announced and given up must not go on growing in what is sealed

        try:
            with self._step("names"):
                return await asyncio.to_thread(kept)
        except (CellburstError, OSError) as why:
            if not self._prepared.snapshot_key:
                raise
            # The snapshot has them all: better that alone than nothing.
            self._notes.append(f"Names were not kept by value beside the snapshot: {why}")
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            return [], lost_names(frozen.groups, str(why))

    def _manifest(self, groups: list[NameGroup], lost: list[RemoteName], live_files: list[LiveFile]) -> Manifest:
        request = self._body.request
        return Manifest(
            kind="session", id=self.id, key=self._prepared.parked_key, key_parts=dict(self._prepared.parked_parts),
            session=request.session, notebook=request.notebook, parked_unix_seconds=self._site.clock.wall(),
            live_files=live_files, names=groups, lost=lost, layers=self._prepared.layer_keys,
            encrypted=bool(self._request.park_key), memory_mib=request.resources.memory_mib,
            sizes_mib=self._prepared.parked_sizes_mib,
        )  # fmt: skip

    async def _checkpoint(self, draft: Draft) -> bool:
        """Whether the draft has the processes now. Raises when the container lives on without."""
        body = self._body
        body.outbound.layer = None  # its store is about to be taken away
        self._detached = True
        if not await body.link.detach(DETACH_SECONDS):
            raise error(ErrorCode.UNAVAILABLE, f"the runner did not close its socket within {DETACH_SECONDS:g} s")
        folder = draft.folder / CHECKPOINT
        folder.mkdir(mode=0o700, exist_ok=True)
        flushing = asyncio.create_task(flush_behind(folder))
        container, key = self._running.container, self._request.park_key
        try:
            if key:
                memory_bytes = await self._memory_bytes()
                hidden = body.outbound.hiding.given if body.outbound.hiding is not None else []
                await parked_sealed.checkpoint(
                    self._prepared.folder, folder, key, memory_bytes, hidden, self._take_checkpoint
                )
            else:
                pages = HashBehind(folder / PAGES)
                try:
                    await container.checkpoint(folder)
                finally:
                    content_hash = await finish(asyncio.to_thread(pages.finish))
                if content_hash:
                    self._known[f"{CHECKPOINT}/{PAGES}"] = content_hash
        except CheckpointFailed as why:
            if why.still_running:
                raise
            self._gone = True
            if key:
                raise  # there are no names without it
            self._notes.append(f"Only the names were kept, not the processes: {why.info.message}")
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            return False
        finally:
            flushing.cancel()
            await asyncio.wait({flushing})
        self._gone = True
        return True

    async def _take_checkpoint(self, folder: Path) -> None:
        await self._running.container.checkpoint(folder)
        self._gone = True

    async def _seal(self, draft: Draft, manifest: Manifest) -> Manifest:
        """Keep the store, and commit. From here on a cancellation comes too late to be half-way: it is kept or it is not."""
        running = self._running
        if not self._gone and running.engine.isolates:
            self._body.outbound.layer = None
            await running.container.kill()
            self._gone = True
        if self._gone:
            try:
                with self._step("store"):
                    await finish(self._keep_store(draft))
                    if key := self._request.park_key:
                        await finish(asyncio.to_thread(parked_sealed.seal_store, draft.folder, key))
            except (CellburstError, OSError) as why:
                if self._request.park_key:
                    raise
                # Processes that have files open in it cannot go on without: what is left are the names.
                log.warning("a session's store could not be kept", extra={"container": self._body.id, "why": str(why)})
                self._notes.append(f"Files that the session wrote were not kept: {why}")
                await self._only_names(draft, manifest)
        try:
            return await self._commit(draft, manifest)
        except (CellburstError, OSError) as why:
            if not self._gone or not manifest.key or self._request.park_key:
                raise
            self._notes.append(f"Only the names were kept, not the processes: {why}")
            await self._only_names(draft, manifest)
            return await self._commit(draft, manifest)

    async def _keep_store(self, draft: Draft) -> None:
        await self._running.keep_store(draft.folder / STORE)

    async def _only_names(self, draft: Draft, manifest: Manifest) -> None:
        manifest.key, manifest.key_parts, manifest.live_files = "", {}, []
        await asyncio.to_thread(shutil.rmtree, draft.folder / CHECKPOINT, ignore_errors=True)

    async def _commit(self, draft: Draft, manifest: Manifest) -> Manifest:
        try:
            with self._step("seal"):
                known = {**self._known, **known_hashes(manifest.names, NAMES)}
                return await finish(asyncio.to_thread(draft.commit, manifest, known))
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await finish(asyncio.to_thread(self._site.runtime.snapshots.remove, "session", self.id))
            raise

    async def _thaw(self) -> bool:
        """Let the session go on in its container. False: it cannot."""
        if self._gone or not self._frozen:
            return not self._gone
        body, running = self._body, self._running
        try:
            if self._detached:
                await body.link.unlisten()
                await body.link.listen(self._prepared.socket_path)
                await self._talk.hello(running.container, self._site.limits.hello_seconds)
                body.link.start_pings()
            thaw = start_message(running, restored=True)
            await self._talk.ask(
                running.container, thaw, RunnerReady, self._site.limits.ready_seconds, "did not go on after that"
            )
        except (CellburstError, OSError) as why:
            log.error("a session could not go on", extra={"container": body.id, "why": str(why)})
            return False
        body.outbound.layer = running.layer
        with contextlib.suppress(OSError):  # what it freed may not have come back yet: it has more for a while
            running.container.spare_memory(0)
        return True


def parked_info(manifest: Manifest) -> ParkedInfo:
    """What lists and the gateway are told of a parked session."""
    return ParkedInfo(
        id=manifest.id, session=manifest.session, kind="snapshot" if manifest.key else "names",
        size_bytes=manifest.size_bytes, names=[name for group in manifest.names for name in group.names],
        lost=list(manifest.lost), parked_unix_seconds=manifest.parked_unix_seconds,
    )  # fmt: skip


def _why_no_snapshot(engine: EngineInfo) -> str:
    """Why a container of this engine has no snapshot's key."""
    if engine.snapshot:
        return f"{engine.name} takes no snapshot of a container with a real GPU"
    if engine.name == "gvisor" and engine.unprivileged:
        return "gVisor takes snapshots as root only"
    return f"the engine {engine.name} takes no snapshots"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return ", ".join(names[:SHOWN_FILES]) + more
