"""Takes templates in the background: a container that nobody uses is booted, frozen with imports, checkpointed, removed.

`TemplatePolicy` says when. One at a time, at low priority, without a lease: it holds nothing that the gateway counts, and
the machine must have far more memory free than it needs. Where the engine has no snapshots, a fork server is made instead, or
the warm pool is told what to import.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import StartContainer
from cellburst_runtime.engine import ContainerExit
from cellburst_runtime.engine_base import finish
from cellburst_runtime.fork_server import ForkFailed
from cellburst_runtime.image_build import BuiltImage
from cellburst_runtime.proc import descendants
from cellburst_runtime.record import load_record
from cellburst_runtime.snapshot_manifest import CHECKPOINT, Manifest
from cellburst_runtime.snapshots import Draft

from . import endings
from .answers import Answers, Talk
from .body import MATPLOTLIB_BACKEND
from .fresh import JustWritten, freeze_fresh, unfit_module
from .parking import DETACH_SECONDS
from .runner_link import RunnerLink
from .site import Prepared, Running, Site
from .template_policy import NEED_BYTES, Facts, TemplatePolicy, Want
from .warm_pool import WarmPool

NICE = 10
MEMORY_INFO = Path("/proc/meminfo")

log = logging.getLogger(__name__)


class Templates:
    """The templates of one worker. `tick` once a second; `close` at the end."""

    def __init__(self, site: Site, pool: WarmPool) -> None:
        self._site, self._pool = site, pool
        self._policy = TemplatePolicy()
        self._task: asyncio.Task[None] | None = None

    def tick(
        self,
        facts: Sequence[Facts],
        requests: Mapping[str, StartContainer],
        images: Mapping[str, BuiltImage | None],
    ) -> None:
        """Begin a template if one is due. `requests` and `images`: what each container of `facts` was started with, by its
        id."""
        if self._task is not None and not self._task.done():
            return
        keyed = [fact for fact in facts if fact.key]
        if keyed:
            self._task = asyncio.create_task(self._one(keyed, requests, images))

    async def close(self) -> None:
        """End the one that is being taken, and remove what it made."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _one(
        self,
        facts: Sequence[Facts],
        requests: Mapping[str, StartContainer],
        images: Mapping[str, BuiltImage | None],
    ) -> None:
        want = None
        try:
            have = {**await asyncio.to_thread(self._have, {fact.key for fact in facts}), **self._pool.preloaded()}
            usable = [fact for fact in facts if not self._disabled(fact.key)]
            want = self._policy.due(self._site.clock.monotonic(), usable, have, free_bytes())
            if want is None:
                return
            if self._pool.boots(want.key):
                self._policy.asked(want)  # it leaves out what is not fit
                self._pool.preload(want.key, want.preload)
                return  # the pool chooses when to boot; nothing is tried here
            self._policy.tried(want, self._site.clock.monotonic())
            if self._site.runtime.fork_servers.knows(want.key):
                await self._warm(want)
            else:
                await self._take(want, requests[want.container], images[want.container])
        except JustWritten as why:
            assert want is not None
            self._policy.written(want)
            log.info("a template is to be taken again", extra={"why": str(why)})
        except (CellburstError, ForkFailed, OSError) as why:
            if want is not None and (module := unfit_module(why)):
                self._policy.unfit(want, module)
                log.info("a module is not preloaded", extra={"module": module, "why": str(why)})
            else:
                log.warning("a template could not be taken", extra={"why": str(why)})
        except Exception:
            log.exception("taking a template failed")

    def _have(self, keys: set[str]) -> dict[str, list[str]]:
        found = {key: self._site.runtime.snapshots.template(key) for key in keys}
        have = {key: template.preloaded for key, template in found.items() if template is not None}
        warm = {key: self._site.runtime.fork_servers.preloaded(key) for key in keys}
        return {**have, **{key: preloaded for key, preloaded in warm.items() if preloaded is not None}}

    def _disabled(self, key: str) -> bool:
        runtime = self._site.runtime
        forks = runtime.fork_servers
        return forks.disabled(key) if forks.knows(key) else runtime.snapshots.disabled(key)

    async def _warm(self, want: Want) -> None:
        """Where the engine has no snapshots: a process that has imported the same, and forks."""
        began = self._site.clock.monotonic()
        variables = {"MPLBACKEND": MATPLOTLIB_BACKEND}  # as in `start_message`
        preloaded = await self._site.runtime.fork_servers.warm(want.key, want.preload, variables)
        seconds = round(self._site.clock.monotonic() - began, 3)
        log.info("a fork server is up", extra={"key": want.key[:16], "imports": len(preloaded), "seconds": seconds})

    async def _take(self, want: Want, request: StartContainer, image: BuiltImage | None) -> None:
        if image is None:
            await self._take_of(want, request, None)
            return
        with await self._site.runtime.images.share(image) as held:
            await self._take_of(want, request, held)

    async def _take_of(self, want: Want, request: StartContainer, image: BuiltImage | None) -> None:
        began = self._site.clock.monotonic()
        id = f"template-{secrets.token_hex(6)}"
        prepared = await self._site.runtime.prepare(
            msgspec.structs.replace(request, container=id, lease="", session="", prepare_call="", parked=""),
            image=image,
        )
        making = _Making(self._site, id, prepared)
        try:
            if prepared.snapshot_key != want.key:
                raise error(
                    ErrorCode.CONFLICT, "the image changed under it; the next container's template is another one"
                )
            manifest = await making.make(want, request.notebook)
        finally:
            await finish(making.remove())
        log.info(
            "a template is taken",
            extra={
                "key": want.key[:16], "imports": len(manifest.preloaded), "bytes": manifest.size_bytes,
                "seconds": round(self._site.clock.monotonic() - began, 3),
            },
        )  # fmt: skip


class _Making:
    """One template, from its prepared container to the sealed snapshot."""

    def __init__(self, site: Site, id: str, prepared: Prepared) -> None:
        self._site, self._id, self._prepared = site, id, prepared
        self._running: Running | None = None
        answers = Answers()
        self._link = RunnerLink(id, answers.received, ping_seconds=site.limits.ping_seconds)
        self._talk = Talk(self._link, answers, _last_words, "was made a template")

    async def make(self, want: Want, notebook: str) -> Manifest:
        """Boot, freeze, checkpoint, seal. Raises the error tree, OSError."""
        prepared, limits = self._prepared, self._site.limits
        await self._link.listen(prepared.socket_path)
        booted_ns = time.time_ns()  # as file systems stamp
        self._running = running = await prepared.start()
        await asyncio.to_thread(_make_nice, prepared.folder)
        container = running.container
        await self._talk.hello(container, limits.hello_seconds)
        preloaded, live_files = await freeze_fresh(self._talk, running, want.preload, limits, booted_ns)
        if unfound := [file.path for file in live_files if not file.inode]:
            raise error(ErrorCode.CONFLICT, f"a file that it has open is not there any more: {unfound[0]}")
        usage = await container.usage()
        draft = await asyncio.to_thread(
            self._site.runtime.snapshots.draft, "template", want.key, usage.memory_bytes or NEED_BYTES
        )
        try:
            return await self._seal(
                draft,
                Manifest(
                    kind="template", id=want.key, key=want.key, key_parts=dict(prepared.key_parts), notebook=notebook,
                    live_files=live_files, preloaded=preloaded, layers=prepared.layer_keys,
                ),
            )  # fmt: skip
        finally:
            await finish(asyncio.to_thread(draft.abandon))

    async def _seal(self, draft: Draft, manifest: Manifest) -> Manifest:
        assert self._running is not None
        if not await self._link.detach(DETACH_SECONDS):
            raise error(ErrorCode.UNAVAILABLE, f"the runner did not close its socket within {DETACH_SECONDS:g} s")
        folder = draft.folder / CHECKPOINT
        folder.mkdir(mode=0o700, exist_ok=True)
        await self._running.container.checkpoint(folder)
        return await finish(asyncio.to_thread(draft.commit, manifest))

    async def remove(self) -> None:
        """Remove the container, however far it came."""
        await self._link.close()
        try:
            if self._running is not None:
                await self._running.container.remove()
            else:
                await self._prepared.remove()
        except (CellburstError, OSError):
            log.exception("a template's container could not be removed", extra={"container": self._id})


async def _last_words(exit: ContainerExit) -> str:
    return endings.exit_text(exit)


def _make_nice(folder: Path) -> None:
    """Lower the priority of every thread of a container's processes on the host; what they start later inherits it."""
    record = load_record(folder)
    for process in descendants(record.pid) if record is not None and record.pid else ():
        with contextlib.suppress(OSError):  # it ended meanwhile
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), NICE)


def free_bytes() -> int:
    """What the kernel says is available; much where it does not say."""
    try:
        for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
