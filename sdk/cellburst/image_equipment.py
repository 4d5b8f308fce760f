"""What a build step has while it runs, beside the image: variables, secrets, GPUs, volumes. Checked, and put into its struct.

Everything of it is part of the layer's key by its name: another GPU or volume is another layer. What a volume holds is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.images import AnyStep, CopyFrom, FromStage, StepVolume, Working
from cellburst_protocol.resources import parse_cpu, parse_gpus, parse_memory_mib, parse_seconds
from cellburst_protocol.volume_mounts import check_mounts
from cellburst_protocol.volumes import VolumeMount

from .image_arguments import secret_uses

if TYPE_CHECKING:
    from .network_file_system import NetworkFileSystem
    from .secret import Secret
    from .volume import Volume

Gpu = str | Sequence[str] | None
Paths = str | os.PathLike[str]
Variables = Mapping[str, str | None]
AnyWorking = TypeVar("AnyWorking", bound=Working)


@dataclass(frozen=True)
class Equipment:
    """As the fields of `Working` have it."""

    environment: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    gpu: str = ""
    volumes: list[StepVolume] = field(default_factory=list)

    def given_to(self, step: AnyWorking) -> AnyWorking:
        """The step with it; variables that the step has of its own stay."""
        return msgspec.structs.replace(
            step, environment={**self.environment, **step.environment}, secrets=self.secrets, gpu=self.gpu,
            volumes=self.volumes,
        )  # fmt: skip

    def given_to_all(self, steps: Sequence[AnyStep]) -> list[AnyStep]:
        """Those of the steps that run programs with it, in stages too."""
        return [self._given(step) for step in steps]

    def _given(self, step: AnyStep) -> AnyStep:
        if isinstance(step, Working):
            return self.given_to(step)
        if isinstance(step, FromStage | CopyFrom):
            return msgspec.structs.replace(step, steps=self.given_to_all(step.steps))
        return step


def equipment(
    name: str,
    *,
    env: Variables | None = None,
    secrets: Sequence[Secret] | None = None,
    gpu: Gpu = None,
    volumes: Mapping[Paths, Volume] | None = None,
    network_file_systems: Mapping[Paths, NetworkFileSystem] | None = None,
) -> Equipment:
    """What the method `name` was given. Raises RequestError (BAD_ARGUMENT)."""
    return Equipment(
        environment=_variables(name, env or {}), secrets=secret_uses(name, secrets or ()), gpu=_gpu_text(name, gpu),
        volumes=_volumes(name, volumes or {}, network_file_systems or {}),
    )  # fmt: skip


@dataclass(frozen=True)
class StepLimits:
    """How much of the machine a step may use, and how long: None is what every step may."""

    cpu: float | None
    memory_mib: int | None
    timeout_seconds: float | None


def step_limits(name: str, cpu: float | None, memory: int | None, timeout: float | None) -> StepLimits:
    """`cpu` in cores, `memory` in MiB, `timeout` in seconds. Raises RequestError (BAD_ARGUMENT)."""
    try:
        return StepLimits(
            cpu=None if cpu is None else parse_cpu(str(cpu)),
            memory_mib=None if memory is None else parse_memory_mib(str(memory)),
            timeout_seconds=None if timeout is None else parse_seconds(str(timeout)),
        )
    except CellburstError as why:
        raise _of(name, why) from None


def _of(name: str, why: CellburstError) -> CellburstError:
    return from_info(msgspec.structs.replace(why.info, message=f"{name}: {why.info.message}"))


def _variables(name: str, given: Variables) -> dict[str, str]:
    found = {}
    for key, value in given.items():
        if value is None:
            continue  # as Modal has it: not set
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or "\0" in value:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{name}(env=...): {key!r}: {value!r} is no variable",
                allowed="names of letters, digits and _, and strings as values", next=f'write env={{"{key}": "{value}"}}',
            )  # fmt: skip
        found[key] = value
    return found


def _gpu_text(name: str, gpu: Gpu) -> str:
    """As the grammar of `gpu=` has it. Which types there are the gateway knows: a type that this table lacks may be a card of
    the fleet."""
    if not gpu:
        return ""
    words = [gpu] if isinstance(gpu, str) else list(gpu)
    if not all(isinstance(word, str) for word in words):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{name}(gpu={gpu!r}): this is no GPU request", allowed="a string, or a list of strings",
            next='for example gpu="A100" or gpu="A100:2"',
        )  # fmt: skip
    text = ",".join(words)
    try:
        return ",".join(str(choice) for choice in parse_gpus(text))
    except CellburstError as why:
        if why.code is ErrorCode.UNKNOWN_GPU:
            return text.upper()
        raise _of(name, why) from None


def _volumes(
    name: str, volumes: Mapping[Paths, Volume], shared: Mapping[Paths, NetworkFileSystem]
) -> list[StepVolume]:  # fmt: skip
    if not volumes and not shared:
        return []
    from .network_file_system import NetworkFileSystem  # threads: only who uses one pays
    from .volume import Volume

    found = []
    for argument, kind, given in (("volumes", Volume, volumes), ("network_file_systems", NetworkFileSystem, shared)):
        for path, what in given.items():
            place = os.fspath(path)
            if not isinstance(what, kind):
                raise error(
                    ErrorCode.BAD_ARGUMENT, f"{name}({argument}=...): {repr(what)[:80]} at {place[:80]!r} is no {kind.__name__}",
                    next=f'write {argument}={{"/data": {kind.__name__}.from_name("data")}}',
                )  # fmt: skip
            found.append(what.of_step(place.rstrip("/") or place))
    check_mounts([VolumeMount(volume="", name=f"{one.kind} {one.name}", path=one.path) for one in found])
    return found


__all__ = ["Equipment", "Gpu", "Paths", "StepLimits", "Variables", "equipment", "step_limits"]
