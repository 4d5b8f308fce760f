"""Building images: every step a layer, every layer made once, by whichever process comes first.

One step: hold the layer if it is there; else wait for the right to make it, look again, run the step on a draft over the
layers below, and rename the finished draft into the store. A build holds the layers it has so far, so that none is
evicted under it; the BuiltImage it returns keeps holding them until it is released.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.images import (
    METADATA,
    AnyStep,
    CopyFrom,
    FromStage,
    ImageRecipe,
    describe,
    layer_keys,
)

from .image_check import check_recipe
from .image_config import ImageConfig, after
from .image_logs import Log, LogFiles
from .image_root import mount_root
from .image_sandbox import BuildMachine
from .image_secrets import BuildSecrets
from .image_step_base import StepMachine
from .image_steps import StepRunner
from .image_store import MAX_CACHE_BYTES, HeldLayer, ImageStore, LayerMeta
from .mounts import unmount_below
from .tools import find_uv

Files = Callable[[str], Path | Awaitable[Path]]


class ImageRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One image of the store, for `cellburst image ls`. Times are Unix seconds; `size_bytes` counts shared layers too."""

    id: str
    steps: list[str]
    layers: list[str]
    built_unix_seconds: float
    used_unix_seconds: float = 0.0
    size_bytes: int = 0


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


@dataclass(frozen=True)
class _Job:
    """What all steps of one build have: its own mark for steps that are forced, local files, secrets."""

    nonce: str
    files: Files
    secrets: BuildSecrets


@dataclass
class _Progress:
    """Writes one build's log: to the caller and to the file."""

    log: Log
    total: int
    done: int = 0
    clock: Callable[[], float] = time.monotonic


class ImageBuilder:
    """Builds the images of one machine. All coroutines; several builds may run at once, also in several processes.

    `folder` is the store (DATA/images). `uv` is uv's program. `keep` names layers (by key) that snapshots stand on: a build
    evicts none of them.
    """

    def __init__(
        self,
        folder: Path,
        machine: BuildMachine,
        *,
        uv: str = "",
        uv_cache: Path | None = None,
        max_cache_bytes: int = MAX_CACHE_BYTES,
        keep: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._keep = keep
        self.store = ImageStore(folder, machine.remover)
        self.max_cache_bytes = max_cache_bytes
        self._folder = folder
        self._steps = StepMachine(
            build=machine,
            uv=uv or find_uv(),
            uv_cache=uv_cache or folder.parent / "uv-cache",
            pythons=folder / "pythons",
            pickle_folder=_pickle_folder(),
        )
        (folder / "images").mkdir(exist_ok=True)
        self._logs = LogFiles(folder / "logs")

    async def build(
        self, recipe: ImageRecipe, files: Files, log: Log, secrets: BuildSecrets | None = None
    ) -> BuiltImage:
        """Build what is missing of the image, and hold it. `files` gives a pack's tar by its hash; `log` gets each line.
        `secrets` are those that its steps use: no line, and no error, has a value of them.

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
        given = secrets or BuildSecrets()
        job = _Job(token_hex(8), files, given)
        steps: list[AnyStep] = [*recipe.steps, *recipe.adds]
        keys = layer_keys(steps, architecture=architecture, nonce=job.nonce, versions=given.versions)
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
        self._note(image, [describe(step) for step in steps])
        await self.store.prune(max_bytes=self.max_cache_bytes, keep=await asyncio.to_thread(self._keep))
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
            waiting = "waiting for another build that makes this step"
            with await self.store.building(key, waiting=lambda: progress.log(f"{title}: {waiting}")):
                found = await self.store.hold(key, chain.parent)
                if found is None:
                    progress.log(title)
                    started = progress.clock()
                    await self._make(chain, step, key, job, progress.log)
                    progress.log(f"{title}: done in {progress.clock() - started:.1f} s")
                    found = await self.store.hold(key, chain.parent)
                    if found is None:
                        raise error(ErrorCode.STORE, "the layer just made is not in the store", next="build again")
        else:
            progress.log(f"{title}: there already")
        chain.held.append(found)
        # What the layer says about the image is as of its own step: metadata steps before it are in it.
        chain.config = found.meta.config

    async def _make(self, chain: _Chain, step: AnyStep, key: str, job: _Job, log: Log) -> None:
        parent = chain.parent
        async with self._other_image(step, job, log) as other, self.store.draft() as draft:
            runner = StepRunner(self._steps, draft, chain.lowers(), chain.config, job.files, log, secrets=job.secrets)
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

    def _note(self, image: BuiltImage, steps: list[str]) -> None:
        record = ImageRecord(id=image.id, steps=steps, layers=image.keys, built_unix_seconds=time.time())
        path = self._folder / "images" / f"{image.id}.json"
        if path.exists():
            os.utime(path)
            return
        draft = path.with_suffix(f".{token_hex(4)}.part")
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(path)

    def ls(self) -> list[ImageRecord]:
        """The images whose layers are all here, last used first."""
        sizes = {meta.key: meta.size_bytes for meta, _ in self.store.list_layers()}
        found: list[ImageRecord] = []
        for path in (self._folder / "images").glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                record = msgspec.json.decode(path.read_bytes(), type=ImageRecord)
                if all(key in sizes for key in record.layers):
                    record.used_unix_seconds = path.stat().st_mtime
                    record.size_bytes = sum(sizes[key] for key in set(record.layers))
                    found.append(record)
        return sorted(found, key=lambda record: -record.used_unix_seconds)

    async def prune(self, *, max_bytes: int = 0, keep: Collection[str] = ()) -> int:
        """Delete unused layers, least recently used first, until at most `max_bytes` are left; those named in `keep`
        (keys of layers) stay. Returns the bytes freed."""
        await self.store.remove_dead_drafts()
        deleted = await self.store.prune(max_bytes=max_bytes, keep=keep)
        here = {meta.key for meta, _ in self.store.list_layers()}
        for path in (self._folder / "images").glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                if not set(msgspec.json.decode(path.read_bytes(), type=ImageRecord).layers) <= here:
                    path.unlink()
        return sum(meta.size_bytes for meta in deleted)

    async def verify(self) -> dict[str, list[str]]:
        """Read every byte of every layer; those that are damaged, with what is wrong. They are put aside, so that the next
        build that needs one makes it anew."""
        found: dict[str, list[str]] = {}
        for meta, _ in self.store.list_layers():
            problems = await asyncio.to_thread(self.store.damage, meta, deep=True)
            if problems:
                found[meta.key] = problems
                with await self.store.building(meta.key):
                    self.store.put_aside(meta.key)
        return found

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
