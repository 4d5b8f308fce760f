"""What steps of an image's build ask for beside secrets: GPUs and volumes. Looked at when the image is asked for, before anything
is started; told to the worker that builds.

A volume is sent as its id. Which GPUs a step gets is decided when the step runs (`build_leases.py`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, from_info
from cellburst_protocol.images import ImageRecipe, StepVolume, Working, every_step, gpus_of, volumes_of
from cellburst_protocol.resources import GpuChoice, Resources, parse_gpus
from cellburst_protocol.volume_mounts import check_mounts
from cellburst_protocol.volumes import CreateVolume, VolumeMount

from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub


def build_gpus(recipe: ImageRecipe | None) -> tuple[tuple[GpuChoice, ...], ...]:
    """What steps of a recipe that was checked ask for, each once: a type of which no machine is there any more is none of an
    unknown name."""
    asked = gpus_of(recipe.steps) if recipe is not None else []
    return tuple(parse_gpus(text, tuple(re.split("[,:]", text))) for text in asked)


def gpus_alone(gpus: tuple[GpuChoice, ...]) -> Resources:
    """A lease of GPUs and nothing else: builds are not counted by CPU and memory, which their limits bound."""
    return Resources(gpus=gpus, cpu=0.0, memory_mib=0)


async def check_build_needs(hub: Hub, owner: Owner, recipe: ImageRecipe | None) -> None:
    """Whether its volumes are there, those made that are to be made, and its GPUs have names that are known. Raises RequestError
    (NOT_FOUND, BAD_ARGUMENT, UNKNOWN_GPU), PlatformError."""
    if recipe is None:
        return
    for text in gpus_of(recipe.steps):
        parse_gpus(text, tuple(hub.fleet.gpu_types()))
    for step in every_step(recipe.steps):
        if isinstance(step, Working) and step.volumes:
            check_mounts([VolumeMount(volume="", name=f"{one.kind} {one.name}", path=one.path) for one in step.volumes])
    for volume in volumes_of(recipe.steps):
        if volume.create:
            await _create(hub, owner, volume)
    build_volumes(hub, owner, recipe)


def build_volumes(
    hub: Hub, owner: Owner, recipe: ImageRecipe | None, *, there_only: bool = False
) -> dict[str, str]:  # fmt: skip
    """The ids of its volumes by name. Raises RequestError (NOT_FOUND, BAD_ARGUMENT); with `there_only` those that are not there
    are left out: no step may need them any more."""
    found = {}
    for volume in volumes_of(recipe.steps) if recipe is not None else ():
        try:
            if volume.kind == "shared":
                hub.network_file_systems.check_there(owner.workspace, volume.name)
            else:
                found[volume.name] = hub.store.get_volume(owner.workspace, volume.name, now=hub.clock.wall()).id
        except CellburstError as why:
            if there_only:
                continue
            text = f"a step of the image asks for it: {why.info.message}"
            raise from_info(msgspec.structs.replace(why.info, message=text)) from None
    return found


def build_shared_folder(hub: Hub, owner: Owner, recipe: ImageRecipe | None) -> str:
    """Where the network file systems of its steps lie, "" where it has none."""
    shared = recipe is not None and any(volume.kind == "shared" for volume in volumes_of(recipe.steps))
    return hub.network_file_systems.folder_text(owner.workspace) if shared else ""


async def _create(hub: Hub, owner: Owner, volume: StepVolume) -> None:
    if volume.kind == "shared":
        hub.network_file_systems.create(owner.workspace, volume.name, if_missing=True)
    else:
        await hub.volumes.create(owner, CreateVolume(name=volume.name, if_missing=True))
