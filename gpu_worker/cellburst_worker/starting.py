"""How a container comes up: by the fastest rung that works (see `rungs.py`), with a parked session's names if it has one.

    look at the parked bytes -> prepare -> { restore or boot -> enter } until a rung works -> names by value -> ready

A rung that fails is cleared away entirely and the next one is prepared anew, so that nothing of it can be in the way. The
parked bytes are not touched: the layer's store is a copy, and who started this removes them when the gateway knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import (
    ContainerReady,
    NameGroup,
    Phase,
    PhaseTime,
    RemoteName,
    RunnerHello,
    RunnerLoadNames,
    RunnerNamesLoaded,
    RunnerReady,
    StartKind,
)
from cellburst_runtime.runtime import STORES
from cellburst_runtime.snapshot_failures import MOST_FAILURES
from cellburst_runtime.snapshot_manifest import NAMES, Manifest, SnapshotKind, SnapshotUnusable

from .answers import Ended
from .body import Body, start_message
from .build_aids import WorkerAids
from .images import BuildLogs, build_secrets, pack_files
from .moved_names import bring
from .parked_names import lost_names, show
from .parked_sealed import open_checkpoint, open_store, opened
from .rungs import WARM_SECONDS, Rung, Rungs, detail, difference, restore_seconds, unusable
from .site import Prepared

FORKED = "fork server"  # what the phase of a boot says that was none
TOO_OFTEN = f"restoring it failed {MOST_FAILURES} times in a row; it is tried again after a day"
SANDBOX_MIB = 32  # what a sandbox takes beside what it restores: 20 MiB were measured
LOAD_SECONDS = 120.0  # 1 GB of names from a cold disk

log = logging.getLogger(__name__)
_T = TypeVar("_T")
PhaseName = Literal["image", "restore", "boot", "enter", "values"]


@dataclass
class Parked:
    """What is here of the session that the request names. `why_not`: why its snapshot cannot be restored, "" if it may."""

    manifest: Manifest
    why_not: str = ""


class Starting:
    """One start."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._site = body.site
        self._parked: Parked | None = None
        self._template: Manifest | None = None
        self._notes: list[str] = []
        self._image_detail = ""
        self._bound_seconds = 0.0  # of the restore under way
        self._booted = False  # the warm container at hand was, and not restored
        self._unfit: list[str] = []  # why warm containers were not used
        self._talk = body.talk("started")

    async def run(self) -> ContainerReady:
        """Bring it up. Raises the error tree when not even a boot worked; `body` then has what must be removed."""
        await self._look()
        prepared = await self._phase("image", self._build_and_take())
        rungs = await self._rungs(prepared)
        while True:
            rung = rungs.next()
            try:
                hello, ready = await self._climb(rung)
                break
            except SnapshotUnusable as why:
                rungs.failed(rung, why.reason)  # nothing was begun with it
            except (CellburstError, OSError) as why:
                if not rungs.failed(rung, str(why)):
                    raise
                log.warning("a restore failed", extra={"container": self._body.id, "rung": rung, "why": str(why)})
                if rung in ("snapshot", "template"):
                    await asyncio.to_thread(self._site.runtime.snapshots.failures.failed, *self._counted(rung))
                await self._clear_away()
                prepared = await self._prepare()
        if rung == "snapshot":
            await asyncio.to_thread(self._site.runtime.snapshots.failures.succeeded, *self._counted(rung))
        elif rung == "template":
            await asyncio.to_thread(self._site.runtime.snapshots.used, prepared.snapshot_key)
        kind, lost = await self._give_names(rungs.kind(rung), rung)
        running = self._body.running
        assert running is not None
        if kind == "boot" and running.forked:
            kind = "template"
        notes = [*self._notes, *running.notes, *running.container.notes, *ready.notes]
        return ContainerReady(
            engine=running.engine, network=running.network, phases=self._body.phases, notes=[*dict.fromkeys(notes)],
            python_version=hello.python_version, start=kind, lost=lost,
            image_id=self._body.image.id if self._body.image is not None else "",
        )  # fmt: skip

    # -- what there is ---------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Find the parked session's bytes."""
        if self._body.request.names is not None:
            self._told("restore", 0.0, unusable("snapshot", "it is on another machine"))
        id = self._body.request.parked
        manifest = await asyncio.to_thread(self._site.runtime.snapshots.parked, id) if id else None
        if manifest is not None:
            self._parked = Parked(manifest)
        elif id:
            self._notes.append("The parked session is not on this machine any more: its names are gone.")

    async def _rungs(self, prepared: Prepared) -> Rungs:
        parked, key = self._parked, self._body.snapshot_key
        if parked is not None and parked.manifest.key:
            if not parked.why_not:
                parked.why_not = await asyncio.to_thread(self._differs, parked.manifest, prepared)
            if not parked.why_not and self._body.volumes is not None:
                parked.why_not = self._body.volumes.stale
            if not parked.why_not and self._site.runtime.snapshots.failures.too_many(*self._counted("snapshot")):
                parked.why_not = TOO_OFTEN
            if parked.why_not:
                self._told("restore", 0.0, unusable("snapshot", parked.why_not))
        self._template = await asyncio.to_thread(self._site.runtime.snapshots.template, key) if key else None
        if key and self._template is None and self._site.runtime.snapshots.disabled(key):
            self._told("restore", 0.0, unusable("template", TOO_OFTEN))
        if self._unfit and self._template is None and self._body.running is None:  # else the template says it
            self._told("restore", 0.0, unusable("warm", self._unfit[-1]))
        return Rungs(
            snapshot=parked is not None and bool(parked.manifest.key) and not parked.why_not,
            template=self._template is not None,
            parked=parked is not None or self._body.request.names is not None,
            warm=self._body.running is not None,
        )

    def _differs(self, manifest: Manifest, prepared: Prepared) -> str:
        """Why the parked process cannot go on in this container, "" if it can: more or less memory is no reason."""
        if not prepared.snapshot_key:
            return "this container's engine restores none"
        if manifest.sizes_mib and manifest.sizes_mib != prepared.parked_sizes_mib:
            prepared.take_sizes(manifest.sizes_mib)
        if manifest.key != prepared.parked_key:
            return difference(manifest.key_parts, prepared.parked_parts)
        need_mib = (self._site.runtime.snapshots.checkpoint_bytes(manifest) >> 20) + SANDBOX_MIB
        limit_mib = self._body.request.resources.memory_mib
        if limit_mib < manifest.memory_mib and need_mib > limit_mib:
            return f"it needs {need_mib} MiB of memory, and {limit_mib} MiB are asked for now"
        return ""

    def _counted(self, rung: Rung) -> tuple[SnapshotKind, str]:
        """Whose failures to be restored are counted: all sessions have one template, and each its own snapshots."""
        if rung == "snapshot" and self._parked is not None:
            return "session", self._parked.manifest.session or self._parked.manifest.id
        return "template", self._body.snapshot_key

    # -- one rung --------------------------------------------------------------------------------------------------

    async def _build_and_take(self) -> Prepared:
        body, recipe = self._body, self._body.request.recipe
        if recipe is not None:
            logs = BuildLogs(recipe, lambda message: body.outbound.emit(message, body.request.prepare_call))
            try:
                files = pack_files(recipe, self._site.exchange)
                secrets = build_secrets(body.request.build_secrets)
                aids = WorkerAids(
                    self._site.gpu_desk, self._site.clock, self._site.volumes, container=body.id, own=body.request.gpus,
                    ids=body.request.build_volumes, shared_folder=body.request.shared_folder,
                )  # fmt: skip
                body.image = await self._site.runtime.build_image(body.request, files, logs.line, secrets, aids)
            finally:
                logs.close()
                body.request.build_secrets = {}  # this memory has no more use for them
            self._image_detail = logs.summary() if body.image is not None else ""
        return await self._from_pool() or await self._prepare()

    async def _from_pool(self) -> Prepared | None:
        body = self._body
        if body.pool is None or body.volumes is not None:
            return None  # volumes are shown before a sandbox starts
        if self._parked is not None and await asyncio.to_thread(self._needs_its_own, self._parked):
            return None
        taken = await body.pool.take(body.request, body.image, self._unfit.append)
        if taken is None:
            return None
        body.prepared, body.running, self._booted = taken.prepared, taken.running, taken.booted
        body.outbound.folder = taken.prepared.folder
        await body.link.listen(taken.prepared.socket_path)
        await body.open_door(taken.prepared)
        return taken.prepared

    async def _prepare(self) -> Prepared:
        body, store = self._body, None
        if self._parked is not None:
            store = await asyncio.to_thread(self._copy_store, self._parked)
        try:
            prepared = await self._site.runtime.prepare(body.request, store_image=store, image=body.image)
        finally:
            if store is not None:
                store.unlink(missing_ok=True)  # not taken
        body.prepared = prepared
        body.outbound.folder = prepared.folder
        if body.volumes is not None:
            await body.volumes.show(prepared)
        await body.link.listen(prepared.socket_path)
        await body.open_door(prepared)
        return prepared

    def _needs_its_own(self, parked: Parked) -> bool:
        """Whether more than names is kept: a process to be restored, or files that come back with the container's store."""
        return bool(parked.manifest.key) or self._site.runtime.snapshots.has_store(parked.manifest)

    def _copy_store(self, parked: Parked) -> Path | None:
        snapshots = self._site.runtime.snapshots
        try:
            copy = snapshots.store_copy(parked.manifest, snapshots.folder.parent / STORES)
            if copy is None or not parked.manifest.encrypted:
                return copy
            return open_store(copy, self._body.request.park_key)
        except SnapshotUnusable as why:
            parked.why_not = parked.why_not or why.reason
            self._notes.append(f"The files that the session wrote are gone: {why.reason}.")
            return None

    async def _climb(self, rung: Rung) -> tuple[RunnerHello, RunnerReady]:
        if rung != "snapshot" and self._body.prepared is not None:
            await asyncio.to_thread(self._body.prepared.take_sizes, 0)  # those of a parked process are for it alone
        if rung == "boot":
            hello = await self._phase("boot", self._come_up(None))
            return hello, await self._phase("enter", self._enter(restored=False, reseed=False))
        manifest = self._parked.manifest if rung == "snapshot" and self._parked is not None else self._template
        size_bytes = manifest.size_bytes if manifest is not None else 0
        seconds = WARM_SECONDS if rung == "warm" else restore_seconds(self._site.limits.restore_seconds, size_bytes)
        self._bound_seconds = seconds
        self._body.outbound.restoring = True
        try:
            async with asyncio.timeout(seconds):
                restoring = self._greet() if rung == "warm" else self._restore(manifest)
                hello = await self._phase("boot" if rung == "warm" and self._booted else "restore", restoring, rung)
                entering = self._enter(restored=True, reseed=rung != "snapshot")
                return hello, await self._phase("enter", entering, rung)
        except TimeoutError:
            raise error(ErrorCode.START_FAILED, _too_slow(seconds)) from None
        finally:
            self._body.outbound.restoring = False

    async def _restore(self, manifest: Manifest | None) -> RunnerHello:
        assert manifest is not None
        snapshots = self._site.runtime.snapshots
        try:
            await asyncio.to_thread(snapshots.check, manifest, checkpoint=True)
        except SnapshotUnusable as why:
            log.warning("a snapshot is unusable", extra={"kind": manifest.kind, "id": manifest.id, "why": why.reason})
            if manifest.kind == "template":  # what it stood on has changed for good: the next boot makes another
                await asyncio.to_thread(snapshots.remove, "template", manifest.id)
            raise
        checkpoint = snapshots.checkpoint(manifest)
        if checkpoint is None or not manifest.encrypted:
            return await self._come_up(checkpoint)
        prepared = self._body.prepared
        assert prepared is not None
        folder, hidden = await open_checkpoint(manifest, checkpoint, prepared.folder, self._body.request.park_key)
        self._body.outbound.know_hidden(hidden)  # before it may say anything
        hello = await self._come_up(folder)
        await opened(prepared.folder)
        return hello

    async def _come_up(self, checkpoint: Path | None) -> RunnerHello:
        body = self._body
        assert body.prepared is not None
        body.running = await body.prepared.start(checkpoint)
        return await self._greet()

    async def _greet(self) -> RunnerHello:
        body, running = self._body, self._body.running
        assert running is not None
        body.outbound.layer = running.layer
        hello = await self._talk.hello(running.container, self._site.limits.hello_seconds)
        body.link.start_pings()
        return hello

    async def _enter(self, *, restored: bool, reseed: bool) -> RunnerReady:
        running = self._body.running
        assert running is not None
        start = start_message(running, restored=restored, reseed=reseed, link_token=self._body.request.link_token)
        seconds = self._site.limits.ready_seconds
        ready, _ = await self._talk.ask(running.container, start, RunnerReady, seconds, "its executor did not start")
        return ready

    async def _clear_away(self) -> None:
        """Remove what a failed rung left."""
        body = self._body
        await body.link.unlisten()
        await body.close_door()
        body.outbound.layer, body.outbound.folder = None, None
        if body.volumes is not None:
            await body.volumes.clear()
        running, body.running = body.running, None
        if running is not None:
            await running.container.remove()
        elif body.prepared is not None:
            await body.prepared.remove()

    # -- names -----------------------------------------------------------------------------------------------------

    async def _give_names(self, kind: StartKind, rung: Rung) -> tuple[StartKind, list[RemoteName]]:
        """After a rung that has not the session's memory: give it the names by value. Returns how it came up after all, and
        the names that did not come back. A start does not fail for want of names."""
        moved = self._body.request.names
        if kind != "names" or (self._parked is None and moved is None):
            return kind, []
        manifest = self._parked.manifest if self._parked is not None else None
        if manifest is not None and manifest.encrypted:  # a session that had secrets has no names beside its processes
            self._notes.append(
                "The parked session had secrets and was kept with its processes only: its names are gone."
            )
            return ("template" if rung == "template" else "boot"), []
        groups, gone = (manifest.names, manifest.lost) if manifest is not None else ([], [])
        if manifest is None and moved is not None:
            groups, gone = moved.groups, moved.lost
        try:
            lost = await self._phase("values", self._load(groups, manifest)) if groups else []
        except (CellburstError, OSError, SnapshotUnusable) as why:
            if not self._body.link.connected.is_set():
                raise  # the container is gone: the start has failed
            log.warning("parked names were not taken", extra={"container": self._body.id, "why": str(why)})
            self._notes.append(f"The names of the parked session cannot be used: {why}.")
            return ("template" if rung == "template" else "boot"), [
                *gone,
                *lost_names(groups, str(why)),
            ]
        return kind, [*gone, *lost]

    async def _load(self, groups: Sequence[NameGroup], manifest: Manifest | None) -> list[RemoteName]:
        """Names that are parked here, or without a `manifest` those that come from another machine."""
        running, prepared, moved = self._body.running, self._body.prepared, self._body.request.names
        assert running is not None and prepared is not None
        snapshots, into = self._site.runtime.snapshots, prepared.folder / "var" / "in"
        if manifest is not None:
            await asyncio.to_thread(snapshots.check, manifest, checkpoint=False)
            buffers = await asyncio.to_thread(show, groups, snapshots.path(manifest) / NAMES, into)
        else:
            assert moved is not None
            buffers = await bring(self._site, moved, into)
        question, what = RunnerLoadNames(groups=list(groups)), "did not take its names"
        loaded, _ = await self._talk.ask(running.container, question, RunnerNamesLoaded, LOAD_SECONDS, what, buffers)
        return loaded.lost

    # -- phases ----------------------------------------------------------------------------------------------------

    async def _phase(self, name: PhaseName, work: Coroutine[Any, Any, _T], rung: Rung | None = None) -> _T:
        """Do one phase; its begin and end are events. One of a restore says which, or why it did not work."""
        began = self._site.clock.monotonic()
        self._body.outbound.emit(Phase(name=name), self._body.request.prepare_call)
        try:
            result = await work
        except (CellburstError, OSError, SnapshotUnusable, asyncio.CancelledError) as why:
            if rung is not None:
                text = unusable(rung, _in_words(why) or _too_slow(self._bound_seconds))
                self._told(name, self._site.clock.monotonic() - began, text)
            raise
        what = detail(rung) if name in ("restore", "boot") and rung else self._image_detail if name == "image" else ""
        if name == "boot" and self._body.running is not None and self._body.running.forked:
            what = FORKED
        self._told(name, self._site.clock.monotonic() - began, what)
        return result

    def _told(self, name: PhaseName, seconds: float, detail: str) -> None:
        self._body.phases.append(PhaseTime(name=name, seconds=seconds, detail=detail))
        self._body.outbound.emit(Phase(name=name, seconds=seconds, detail=detail), self._body.request.prepare_call)


def _in_words(why: BaseException) -> str:
    """What is told of a restore that failed. What the sandbox printed is of its insides: that is in the log."""
    if isinstance(why, Ended):
        return f"{why.plain}: what was printed is in the worker's log"
    return why.info.message if isinstance(why, CellburstError) else str(why)


def _too_slow(seconds: float) -> str:
    return f"it was not up within {seconds:.0f} s" if seconds >= 1 else f"it was not up within {seconds:.1f} s"
