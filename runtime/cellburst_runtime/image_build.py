"""Building images: every step a layer, every layer made once, by whichever process comes first.

One step: hold the layer if it is there; else wait for the right to make it, look again, run the step on a draft over the
layers below, and rename the finished draft into the store. A build holds the layers it has so far, so that none is
evicted under it; the BuiltImage it returns keeps holding them until it is released.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.images import (
    METADATA,
    AnyStep,
    CopyFrom,
    FromStage,
    ImageRecipe,
    Working,
    describe,
    layer_keys,
)

from .image_check import check_recipe
from .image_config import ImageConfig, after
from .image_downloads import Downloads
from .image_equipment import BuildAids, Leased, NoAids, check_limits
from .image_logs import Log, LogFiles
from .image_manifest import Damage
from .image_records import ImageRecord, ImageRecords
from .image_room import Room
from .image_root import mount_root
from .image_sandbox import BuildMachine
from .image_secrets import BuildSecrets
from .image_step_base import StepMachine
from .image_steps import StepRunner
from .image_store import HeldLayer, ImageStore, LayerMeta
from .image_verify import Verified, most_overdue, verify
from .mounts import unmount_below
from .tools import find_uv

Files = Callable[[str], Path | Awaitable[Path]]


@dataclass
class BuiltImage:
    """An image whose layers stay on disk until `release`.

    `id` is the key of the recipe with its adds, `base_id` that without them. `layers` are folders, top first, to be mounted
    as overlayfs lowers; the last is the scaffold with the places that containers mount to. `instance` changes when a layer
    was made anew: snapshots belong to it. `keys` name the layers for `prune(keep=...)`.
    """

    id: str
    base_id: str
    instance: str
    layers: list[Path]
    keys: list[str]
    environment: dict[str, str]
    workdir: str
    entrypoint: list[str]
    cmd: list[str]
    user: str
    python: str
    python_version: str
    site_packages: str
    held: list[HeldLayer] = field(repr=False)

    def release(self) -> None:
        """The layers may be evicted from now on. May be repeated."""
        for layer in self.held:
            layer.lock.release()

    def __enter__(self) -> BuiltImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass
class _Chain:
    """A recipe as far as it is built: its layers from the base up, and its configuration."""

    store: ImageStore
    held: list[HeldLayer] = field(default_factory=list)
    config: ImageConfig = field(default_factory=ImageConfig)

    @property
    def parent(self) -> LayerMeta | None:
        return self.held[-1].meta if self.held else None

    def lowers(self) -> list[Path]:
        """Top first, the scaffold last."""
        return [*(layer.files for layer in reversed(self.held)), self.store.scaffold]

    def release(self) -> None:
        for layer in self.held:
            layer.lock.release()


@dataclass
class _Job:
    """What all steps of one build have: its own mark for steps that are forced, local files, secrets, the keys of all its layers,
    who gives GPUs and volumes; `made` counts the layers it made."""

    nonce: str
    files: Files
    secrets: BuildSecrets
    keys: frozenset[str]
    aids: BuildAids
    made: int = 0


@dataclass
class _Progress:
    """Writes one build's log: to the caller and to the file."""

    log: Log
    total: int
    done: int = 0
    clock: Callable[[], float] = time.monotonic


class ImageBuilder:
    """Builds the images of one machine. All coroutines; several builds may run at once, also in several processes.

    `folder` is the store (DATA/images). `uv` is uv's program. `max_cache_bytes` as in `image_room.Room`. `keep` names layers (by
    key) that snapshots stand on: a build evicts none of them.
    """

    def __init__(
        self,
        folder: Path,
        machine: BuildMachine,
        *,
        uv: str = "",
        uv_cache: Path | None = None,
        max_cache_bytes: int | None = None,
        keep: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._keep = keep
        uv = uv or find_uv()
        self.downloads = Downloads(uv_cache or folder.parent / "uv-cache", folder / "pythons", uv)
        self.store = ImageStore(folder, machine.remover, self._forget_damaged)
        self.room = Room(self.store, self.downloads, max_cache_bytes, machine.disk_reserve_bytes)
        self._steps = StepMachine(build=machine, uv=uv, downloads=self.downloads, pickle_folder=_pickle_folder())
        self._records = ImageRecords(folder / "images")
        self._logs = LogFiles(folder / "logs")

    async def build(
        self, recipe: ImageRecipe, files: Files, log: Log, secrets: BuildSecrets | None = None,
        aids: BuildAids | None = None,
    ) -> BuiltImage:  # fmt: skip
        """Build what is missing of the image, and hold it. `files` gives a pack's tar by its hash; `log` gets each line.
        `secrets` are those that its steps use: no line, and no error, has a value of them. `aids` gives GPUs and volumes.

        Raises RequestError for a recipe that cannot be built here, UserCodeError (IMAGE_BUILD) when a step fails: its
        message has the step, the command, the exit code and the last 40 lines. Nothing of the failed step is left.
        """
        architecture = platform.machine()
        if os.geteuid() != 0 or not self._steps.build.gvisor.runsc or not self._steps.uv:
            raise error(
                ErrorCode.START_FAILED, "images cannot be built on this machine: that needs root, gVisor's runsc and uv",
                next="start the worker as root, after `make setup`; without that, cells run in the notebook's own environment",
            )  # fmt: skip
        check_recipe(recipe, architecture)
        check_limits(recipe.steps, self._steps.build.cpu, self._steps.build.most_memory_mib)
        given = secrets or BuildSecrets()
        nonce, steps = token_hex(8), [*recipe.steps, *recipe.adds]
        keys = layer_keys(steps, architecture=architecture, nonce=nonce, versions=given.versions)
        job = _Job(nonce, files, given, frozenset(keys), aids or NoAids())
        await self.store.remove_dead_drafts()
        chain = _Chain(self.store)
        with self._logs.begin(keys[-1], log) as written:

            def logged(line: str) -> None:
                written(given.hide(line))

            try:
                await self._build_chain(chain, steps, keys, job, _Progress(logged, len(steps)))
            except BaseException as problem:
                chain.release()
                if isinstance(problem, CellburstError):
                    hidden = given.hidden(problem)
                    written(hidden.info.text())
                    raise hidden from None
                raise
        image = self._image(chain, keys, len(recipe.steps))
        told = [describe(step) for step in steps]
        self._records.note(ImageRecord(id=image.id, steps=told, layers=image.keys, built_unix_seconds=time.time()))
        await self.room.keep_to_bound(await asyncio.to_thread(self._keep), downloaded=job.made > 0)
        return image

    async def _build_chain(
        self,
        chain: _Chain,
        steps: Sequence[AnyStep],
        keys: Sequence[str],
        job: _Job,
        progress: _Progress,
    ) -> None:
        for step, key in zip(steps, keys, strict=True):
            progress.done += 1
            title = f"Step {progress.done} of {progress.total}: {describe(step)}"
            try:
                if isinstance(step, FromStage):
                    await self._stage(chain, step.steps, job, progress)
                elif isinstance(step, METADATA):
                    chain.config = _after(chain.config, step)
                else:
                    await self._layer(chain, step, key, job, progress, title)
            except CellburstError as problem:
                if not problem.info.detail.get("step"):
                    info = problem.info
                    info.detail["step"] = title
                    # The command is in the message already, whole.
                    said = str(step.__struct_config__.tag) if "command" in info.detail else describe(step)
                    info.message = f"Step {progress.done} of {progress.total}: {said} failed: {info.message}"
                    raise from_info(info) from None
                raise

    async def _stage(self, chain: _Chain, steps: Sequence[AnyStep], job: _Job, progress: _Progress) -> None:
        """Build another recipe into the chain: its layers are keyed by themselves, so that recipes share stages."""
        versions = job.secrets.versions
        keys = layer_keys(steps, architecture=platform.machine(), nonce=job.nonce, versions=versions)
        inner = _Progress(progress.log, len(steps))
        progress.log(f"A stage of {len(steps)} steps")
        await self._build_chain(chain, steps, keys, job, inner)

    async def _layer(self, chain: _Chain, step: AnyStep, key: str, job: _Job, progress: _Progress, title: str) -> None:
        found = await self.store.hold(key, chain.parent)
        if found is None:
            found = await self._missing_layer(chain, step, key, job, progress, title)
        else:
            progress.log(f"{title}: there already")
        chain.held.append(found)
        # What the layer says about the image is as of its own step: metadata steps before it are in it.
        chain.config = found.meta.config

    async def _missing_layer(
        self, chain: _Chain, step: AnyStep, key: str, job: _Job, progress: _Progress, title: str
    ) -> HeldLayer:  # fmt: skip
        # Who has the right to make the layer may not wait for a GPU, for itself or a stage: somebody may hold that who waits
        # for the layer.
        async with self._other_image(step, job, progress.log) as other, Leased() as gpus:
            progress.log(title)
            waiting = f"{title}: waiting for another build that makes this step"
            if isinstance(step, Working) and step.gpu:
                with await self.store.building(key, waiting=lambda: progress.log(waiting)):
                    found = await self.store.hold(key, chain.parent)
                    if found is not None:
                        return found  # who made it had the GPU: none is paid for here
                await gpus.enter(job.aids.gpus(step.gpu, progress.log))
            with await self.store.building(key, waiting=lambda: progress.log(waiting)):
                found = await self.store.hold(key, chain.parent)
                if found is not None:
                    return found
                started = progress.clock()
                await self.room.before_layer(job.keys | {*await asyncio.to_thread(self._keep)})
                await self._make(chain, step, key, job, gpus, other, progress.log)
                job.made += 1
                progress.log(f"{title}: done in {progress.clock() - started:.1f} s")
                found = await self.store.hold(key, chain.parent)
                if found is None:
                    raise error(ErrorCode.STORE, "the layer just made is not in the store", next="build again")
                return found

    async def _make(
        self, chain: _Chain, step: AnyStep, key: str, job: _Job, gpus: Leased, other: _Chain | None, log: Log
    ) -> None:  # fmt: skip
        parent = chain.parent
        async with self.store.draft() as made:
            draft = replace(made, hiding=job.secrets.stream)
            runner = StepRunner(
                self._steps, draft, chain.lowers(), chain.config, job.files, log, secrets=job.secrets, aids=job.aids,
                gpus=gpus,
            )  # fmt: skip
            if other is not None:
                runner.other_root = draft.folder / "other"
                runner.other_root.mkdir()
                await mount_root(runner.other_root, other.lowers(), None, None)
            config = await runner.run(step)
            if runner.other_root is not None:
                await unmount_below(runner.other_root)
            meta = LayerMeta(
                key=key,
                instance=token_hex(8),
                parent=parent.key if parent else "",
                parent_instance=parent.instance if parent else "",
                step=describe(step),
                made_unix_seconds=time.time(),
                config=config,
            )
            await asyncio.to_thread(self.store.commit, draft, meta)

    @asynccontextmanager
    async def _other_image(self, step: AnyStep, job: _Job, log: Log) -> AsyncIterator[_Chain | None]:
        """The built stage that a step copies from."""
        if not isinstance(step, CopyFrom):
            yield None
            return
        chain = _Chain(self.store)
        try:
            await self._stage(chain, step.steps, job, _Progress(log, 0))
            yield chain
        finally:
            chain.release()

    def _image(self, chain: _Chain, keys: Sequence[str], base_steps: int) -> BuiltImage:
        config = chain.config
        instances = "\n".join(layer.meta.instance for layer in chain.held)
        return BuiltImage(
            id=keys[-1],
            base_id=keys[base_steps - 1],
            instance=blake3(f"{keys[-1]}\n{instances}".encode()).hexdigest(20),
            layers=chain.lowers(),
            keys=[layer.meta.key for layer in chain.held],
            environment=config.variables(),
            workdir=config.workdir,
            entrypoint=config.entrypoint,
            cmd=config.cmd,
            user=config.user,
            python=config.python,
            python_version=config.python_version,
            site_packages=config.site_packages,
            held=chain.held,
        )

    def share(self, image: BuiltImage) -> BuiltImage | None:
        """Hold an image that somebody holds, or held, once more; None where it is not whole any more. Blocks briefly."""
        taken: list[HeldLayer] = []
        for layer in image.held:
            found = self.store.hold_now(layer.meta)
            if found is None:
                for other in taken:
                    other.lock.release()
                return None
            taken.append(found)
        return replace(image, held=taken)

    def ls(self) -> list[ImageRecord]:
        """The images whose layers are all here, last used first."""
        return self._records.whole(self._sizes())

    def _sizes(self) -> dict[str, int]:
        return {meta.key: meta.size_bytes for meta, _ in self.store.list_layers()}

    async def prune(self, *, max_bytes: int = 0, keep: Collection[str] = ()) -> int:
        """Delete unused layers, least recently used first, and downloads, the oldest first, until at most `max_bytes` are left;
        layers named in `keep` (by key) stay. Returns the bytes freed."""
        await self.store.remove_dead_drafts()
        freed = await self.room.prune(max_bytes, keep)
        self._records.forget_others(self._sizes())
        return freed

    async def verify(self) -> Verified:
        """Read every byte of every layer. Damaged ones are put aside, so that the next build that needs one makes it anew. Raises
        OSError."""
        return await verify(self.store, [meta for meta, _ in await asyncio.to_thread(self.store.list_layers)])

    async def verify_next(self, *, every_seconds: float) -> Verified:
        """The same of one layer, slowly: the one that was compared longest ago, if that is `every_seconds` ago."""
        due = await asyncio.to_thread(most_overdue, self.store, time.time(), every_seconds)
        return await verify(self.store, [due] if due is not None else [], slow=True)

    async def _forget_damaged(self, damage: Damage) -> None:
        """What is damaged in a layer is damaged in uv's cache too where both are one file: it is fetched again."""
        await self.downloads.forget(damage.shared)

    def logs(self, image: str) -> str:
        """See `image_logs.LogFiles.read`."""
        return self._logs.read(image)


def _after(config: ImageConfig, step: AnyStep) -> ImageConfig:
    try:
        return after(config, step)
    except ValueError as problem:
        raise error(
            ErrorCode.BAD_ARGUMENT, str(problem), next="write \\$ for a dollar sign that is no variable"
        ) from None


def _pickle_folder() -> Path | None:
    """The folder of the package cloudpickle here; it is only shown to a build, never imported by this process."""
    spec = find_spec("cloudpickle")
    return Path(spec.origin).parent if spec is not None and spec.origin else None
