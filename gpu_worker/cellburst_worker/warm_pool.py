"""Warm containers: up, their imports made, their runner connected, given to nobody yet. A start then is an assignment.

    fill:  prepare -> restore -> hello -> waits          (in the background, one at a time; `WarmPolicy` says when)
           prepare -> boot -> hello -> imports, stands still -> waits     (gVisor without root, which has no snapshots)
    take:  out of the pool -> compared with what would be made now -> limits, GPUs -> the session's own runner link

They hold no lease, are in no list of containers, and the gateway does not know their ids. One that is taken keeps its id,
folder, network and group on the host; everywhere else it is the session's container.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import StartContainer, WarmContainer
from cellburst_runtime.assignment import Sources, Unlike
from cellburst_runtime.engine import ContainerExit
from cellburst_runtime.engine_base import finish
from cellburst_runtime.image_build import BuiltImage
from cellburst_runtime.live_files import changed
from cellburst_runtime.oci import memory_class_mib
from cellburst_runtime.snapshot_manifest import LiveFile, Manifest, SnapshotUnusable

from . import endings
from .answers import Answers, Talk
from .fresh import freeze_fresh, preload_of, unfit_module
from .runner_link import RunnerLink
from .site import Prepared, Running, Site
from .template_policy import MAX_PRELOAD, MOST_UNFIT, without
from .warm_policy import Held, Machine, WarmPolicy

PREFIX = "warm-"
MOST_BOOTED_KEYS = 64  # whose imports are remembered
PING_SECONDS = 5.0  # enough to notice one that hangs before it is needed, and next to no work
_MIB = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A warm container that is the caller's now. It listens nowhere: listen at `prepared.socket_path`."""

    prepared: Prepared
    running: Running
    booted: bool = False  # beforehand, not restored


@dataclass(frozen=True)
class Preload:
    """What containers of a key import that are booted, where the engine has no templates."""

    names: tuple[str, ...]


@dataclass(eq=False)
class _Warm:
    """One that waits."""

    id: str
    request: StartContainer
    image: BuiltImage | None
    prepared: Prepared
    link: RunnerLink
    made_of: Manifest | Preload
    sources: Sources
    since_seconds: float
    live_files: Sequence[LiveFile] = ()  # what it has open or mapped, or read its modules from
    running: Running | None = None
    memory_bytes: int | None = None
    watch: asyncio.Task[None] | None = None


@dataclass
class _Demand:
    """The last request of a key. A released image can be held again as long as it is whole."""

    request: StartContainer
    image: BuiltImage | None


@dataclass
class WarmPool:
    """The warm containers of one worker. `tick` once a second; `close` at the end."""

    site: Site
    policy: WarmPolicy = field(default_factory=WarmPolicy)
    _held: list[_Warm] = field(default_factory=list)  # oldest first
    _demand: dict[str, _Demand] = field(default_factory=dict)
    _booted: dict[str, Preload | None] = field(default_factory=dict)  # keys without templates; None: not said yet
    _unfit: dict[str, set[str]] = field(default_factory=dict)  # modules that are not imported beforehand, by key
    _working: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _closed: bool = False

    # -- what the worker calls ------------------------------------------------------------------------------------

    def started(self, prepared: Prepared, request: StartContainer, image: BuiltImage | None) -> None:
        """A container of this kind came up for a session."""
        key, copies = prepared.warm_key, request.image.notebook_mode == "python_files"
        # Copies are of files as they are at its start: none made beforehand is handed out (`check_layer`).
        if not key or copies or not self.site.keeps_warm or self._closed:
            return
        self.policy.started(key, self.site.clock.monotonic())
        self._demand[key] = _Demand(request, image)
        if prepared.boot_key:
            self._booted[key] = self._booted.pop(key, None)
            for oldest in list(self._booted)[:-MOST_BOOTED_KEYS]:
                del self._booted[oldest]
                self._unfit.pop(oldest, None)

    def boots(self, key: str) -> bool:
        """Whether containers of this key are booted to wait."""
        return key in self._booted

    def preloaded(self) -> dict[str, list[str]]:
        """What those import, by key; none of a key before the first is made."""
        return {key: list(preload.names) for key, preload in self._booted.items() if preload is not None}

    def preload(self, key: str, names: Sequence[str]) -> None:
        """From now on containers of this key import these that are fit; one that waits with others is made anew."""
        if key in self._booted:  # else it was forgotten meanwhile
            unfit = self._unfit.get(key, set())
            self._booted[key] = Preload(tuple(without(names, unfit)) if len(unfit) < MOST_UNFIT else ())

    def tick(self, machine: Machine) -> None:
        """Do what the policy says is due, in the background."""
        if self._closed or (self._working is not None and not self._working.done()):
            return
        if self._demand or self._held:
            self._working = asyncio.create_task(self._work(machine))

    def usage(self) -> list[WarmContainer]:
        """What waits, for lists."""
        return [
            WarmContainer(
                id=one.id, image=one.image.id[:12] if one.image is not None else one.request.image.executable,
                memory_mib=math.ceil((one.memory_bytes or 0) / _MIB), age_seconds=self.site.clock.monotonic() - one.since_seconds,
            )
            for one in self._held
        ]  # fmt: skip

    def image_users(self) -> dict[str, list[str]]:
        """Which layers of images they stand on."""
        return {one.id: list(one.image.keys) for one in self._held if one.image is not None}

    async def release_images(self) -> None:
        """Remove what is made from built images: their disk is wanted back. Others are made when such a container starts."""
        self._demand = {key: demand for key, demand in self._demand.items() if demand.image is None}
        for one in (gone := [one for one in self._held if one.image is not None]):
            self._withdraw(one)
        await asyncio.gather(*(self._remove(one) for one in gone))

    async def close(self) -> None:
        """End and remove all of them, and those that are being made or given back; none is made or given any more. May be
        called again: it then waits for what was given back meanwhile."""
        self._closed = True
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        for one in list(self._held):
            self._drop(one, "the worker ends")
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # -- taking ---------------------------------------------------------------------------------------------------

    async def take(
        self, request: StartContainer, image: BuiltImage | None, unfit: Callable[[str], None] = lambda why: None
    ) -> Taken | None:
        """A warm container for this request, or None. It is handed out once; one that does not fit any more is removed, and
        `unfit` called with the reason."""
        for one in [one for one in self._held if _alike(one.request, request)]:
            if one not in self._held:
                continue  # taken, or gone, while another one was looked at
            self._withdraw(one)
            try:
                return await self._assign(one, request, image)
            except Unlike:
                self._put_back(one)
            except (CellburstError, OSError, SnapshotUnusable) as why:
                log.info("a warm container is not used", extra={"container": one.id, "why": str(why)})
                unfit(str(why))
                self._spawn(self._remove(one))
            except BaseException:
                self._spawn(self._remove(one))
                raise
        return None

    async def _assign(self, one: _Warm, request: StartContainer, image: BuiltImage | None) -> Taken:
        running = one.running
        assert running is not None
        if not one.link.connected.is_set():
            raise error(ErrorCode.CONFLICT, "its runner is not connected")
        runtime = self.site.runtime
        if why := await asyncio.to_thread(_first_change, one.live_files):
            raise SnapshotUnusable(why)
        prepared, running = await runtime.assign(one.prepared, running, request, sources=one.sources, image=image)
        await one.link.close()  # its runner dials the session's link at once
        if one.image is not None:
            one.image.release()  # the session holds the same layers
        return Taken(prepared, running, isinstance(one.made_of, Preload))

    def _withdraw(self, one: _Warm) -> None:
        self._held.remove(one)
        if one.watch is not None:
            one.watch.cancel()

    def _put_back(self, one: _Warm) -> None:
        if self._closed:
            self._spawn(self._remove(one))
            return
        self._held.append(one)
        self._held.sort(key=lambda other: other.since_seconds)
        one.watch = self._spawn(self._watch(one))

    # -- making and removing --------------------------------------------------------------------------------------

    async def _work(self, machine: Machine) -> None:
        key = ""
        try:
            now = self.site.clock.monotonic()
            known = {*self.policy.keys(now)}
            for gone in self._demand.keys() - known:
                del self._demand[gone]
            templates = await self._ways({*known, *(w.prepared.warm_key for w in self._held)})
            for one in list(self._held):
                await _measure(one)
                if one in self._held and templates.get(one.prepared.warm_key) != one.made_of:
                    self._drop(one, "its template was made anew or is gone, or it is to import other modules")
            held = [Held(one.id, one.prepared.warm_key, one.memory_bytes) for one in self._held]
            plan = self.policy.plan(now, held, templates.keys(), machine, self._booted.keys())
            for one in [one for one in self._held if one.id in plan.drop]:
                self._drop(one, "not asked for lately, or its memory is wanted")
            key = plan.fill
            if key in self._demand:
                await self._fill(key, self._demand[key], templates[key])
        except (CellburstError, OSError, SnapshotUnusable) as why:
            self.policy.failed(key, self.site.clock.monotonic())
            log.warning("no warm container could be made", extra={"key": key[:16], "why": str(why)})
        except Exception:
            self.policy.failed(key, self.site.clock.monotonic())
            log.exception("keeping containers warm failed")

    async def _ways(self, keys: set[str]) -> dict[str, Manifest | Preload]:
        """How containers of these keys are made; only those that can be."""
        found: dict[str, Manifest | Preload] = {}
        for key in keys & self._booted.keys():
            preload = self._booted[key]
            if preload is None and key in self._demand:
                # It is made when the session is quiet: its first cell has said by then what it imports.
                preload = Preload(tuple(preload_of(self.site, self._demand[key].request)[:MAX_PRELOAD]))
            if preload is not None:
                found[key] = preload
        return {**found, **await asyncio.to_thread(self._templates, keys - self._booted.keys())}

    def _templates(self, keys: set[str]) -> dict[str, Manifest]:
        template = self.site.runtime.snapshots.template
        return {key: found for key in keys if (found := template(key)) is not None}

    async def _fill(self, key: str, demand: _Demand, made_of: Manifest | Preload) -> None:
        runtime, began = self.site.runtime, self.site.clock.monotonic()
        if isinstance(made_of, Preload):
            self._booted[key] = made_of
        id = PREFIX + secrets.token_hex(6)
        image = await runtime.images.share(demand.image) if demand.image is not None else None
        request = msgspec.structs.replace(
            demand.request, container=id, lease="", session="", prepare_call="", parked="", gpus=[]
        )
        try:
            prepared = await runtime.prepare(request, image=image)
        except BaseException:
            if image is not None:
                image.release()
            raise
        answers = Answers()
        link = RunnerLink(id, answers.received, ping_seconds=PING_SECONDS)
        one = _Warm(id, request, image, prepared, link, made_of, {}, began)
        try:
            await self._come_up(one, key, answers)
        except BaseException:
            await finish(self._remove(one))
            raise
        one.since_seconds = self.site.clock.monotonic()
        log.info("a container is warm", extra={"container": id, "seconds": round(one.since_seconds - began, 3)})
        self._put_back(one)

    async def _come_up(self, one: _Warm, key: str, answers: Answers) -> None:
        if one.prepared.warm_key != key:
            raise error(ErrorCode.CONFLICT, "the image changed under it")
        await one.link.listen(one.prepared.socket_path)
        one.sources = await asyncio.to_thread(one.prepared.sources)
        if isinstance(one.made_of, Preload):
            await self._boot(one, one.made_of, answers)
        else:
            await self._restore(one, one.made_of, answers)
        await _measure(one)

    async def _boot(self, one: _Warm, preload: Preload, answers: Answers) -> None:
        booted_ns = time.time_ns()  # as file systems stamp
        running = one.running = await one.prepared.start()
        talk = Talk(one.link, answers, _last_words, "was made to wait")
        await talk.hello(running.container, self.site.limits.hello_seconds)
        one.link.start_pings()
        try:
            _, files = await freeze_fresh(talk, running, preload.names, self.site.limits, booted_ns)
        except CellburstError as why:
            if (module := unfit_module(why)) and (key := one.prepared.warm_key) in self._booted:  # else forgotten
                self._unfit.setdefault(key, set()).add(module)
                self.preload(key, preload.names)
            raise
        one.live_files = [file for file in files if file.inode]  # a process may well have one open that is gone

    async def _restore(self, one: _Warm, manifest: Manifest, answers: Answers) -> None:
        snapshots = self.site.runtime.snapshots
        await asyncio.to_thread(snapshots.check, manifest, checkpoint=True)
        one.live_files = manifest.live_files
        try:
            one.running = await one.prepared.start(snapshots.checkpoint(manifest))
            talk = Talk(one.link, answers, _last_words, "was restored")
            await talk.hello(one.running.container, self.site.limits.hello_seconds)
        except (CellburstError, OSError):
            await asyncio.to_thread(snapshots.failures.failed, "template", one.prepared.snapshot_key)
            raise
        one.link.start_pings()

    async def _watch(self, one: _Warm) -> None:
        """Take it out of the pool when it ends or hangs."""
        assert one.running is not None
        ends = [asyncio.create_task(one.running.container.wait()), asyncio.create_task(one.link.silent.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if one in self._held:
            self._held.remove(one)
            log.warning("a warm container ended", extra={"container": one.id})
            self.policy.failed(one.prepared.warm_key, self.site.clock.monotonic())
            await self._remove(one)

    def _drop(self, one: _Warm, why: str) -> None:
        log.info("a warm container is given back", extra={"container": one.id, "why": why})
        self._withdraw(one)
        self._spawn(self._remove(one))

    async def _remove(self, one: _Warm) -> None:
        await one.link.close()
        try:
            if one.running is not None:
                await one.running.container.remove()
            else:
                await one.prepared.remove()
        except (CellburstError, OSError):
            log.exception("a warm container could not be removed", extra={"container": one.id})
        finally:
            if one.image is not None:
                one.image.release()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _alike(one: StartContainer, other: StartContainer) -> bool:
    """Whether it is worth comparing their keys."""
    return _shape(one) == _shape(other) and one.image.packages == other.image.packages


def _shape(request: StartContainer) -> Sequence[object]:
    image, resources = request.image, request.resources
    return (
        request.engine, request.recipe, image.executable, image.identity, image.notebook_folder, image.notebook_mode,
        image.mounts, image.uid, image.home, resources.network, memory_class_mib(resources.memory_mib), math.ceil(resources.cpu),
    )  # fmt: skip


async def _measure(one: _Warm) -> None:
    if one.running is not None:
        one.memory_bytes = (await one.running.container.usage()).memory_bytes


def _first_change(files: Sequence[LiveFile]) -> str:
    return next((why for file in files if (why := changed(file))), "")


async def _last_words(exit: ContainerExit) -> str:
    return endings.exit_text(exit)
