"""The devices seam: which GPUs this machine has, what they do now, and what a lease of some adds to a container.

Files of the family: `devices.py` (this), `devices_nvidia.py` (real ones, from NVML), `devices_simulated.py` (declared
ones, to develop without a GPU). `cellburst_runtime.runtime` chooses. Methods block (NVML does, for milliseconds): the
worker calls them in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cellburst_protocol.messages import GpuShown, GpuUsage

from .engine import DeviceGrant

# What makes CUDA see no device, without a warning: an empty list (CUDA C++ programming guide, CUDA_VISIBLE_DEVICES).
NO_GPUS = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}


class Devices(Protocol):
    """The GPUs of one kind that this machine has."""

    def gpus(self) -> list[GpuShown]:
        """All of them, by index, with `in_use` where something else holds one. Called at start and with each inventory."""

    def usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """Live figures of those of these GPUs that are of this kind. Called once a second."""

    def grant(self, gpus: Sequence[GpuShown], folder: Path, *, engine: str) -> DeviceGrant:
        """What a container in `folder` with the engine of that name gets to use the GPUs. May write to FOLDER/bin."""


def no_gpus() -> DeviceGrant:
    """The grant of a container without GPUs: on a machine that has some, it sees none."""
    return DeviceGrant(environment=dict(NO_GPUS))
