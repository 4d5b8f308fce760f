"""Real NVIDIA GPUs, through NVML (`nvidia-ml-py`, imported as `pynvml`). No library or no driver: an empty list.

Source: the NVML API reference. A figure that a GPU does not give (consumer cards, MIG, vGPU) is None.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cellburst_protocol.messages import GpuShown, GpuUsage
from cellburst_protocol.resources import gpu_type_of_device

from .devices import NO_GPUS
from .engine import DeviceGrant

MIB = 1024 * 1024
_CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


class NvidiaDevices:
    """See `devices.Devices`. `problem` says why there are none, "" when NVML answers."""

    def __init__(self, module: Any = None) -> None:
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self.problem = ""
        self.driver_version = ""
        self.notes: list[str] = []
        try:
            nvml = module if module is not None else importlib.import_module("pynvml")
        except ImportError:
            self.problem = "the package nvidia-ml-py is not installed"
            return
        try:
            nvml.nvmlInit()
            self.driver_version = _text(nvml.nvmlSystemGetDriverVersion())
        except nvml.NVMLError as problem:
            self.problem = f"NVML: {problem}"
            return
        self._nvml = nvml

    def close(self) -> None:
        """Let go of NVML."""
        with self._lock:
            if self._nvml is not None:
                try:
                    self._nvml.nvmlShutdown()
                except self._nvml.NVMLError:
                    pass  # the driver was unloaded meanwhile: nothing is held
                self._nvml = None

    def gpus(self) -> list[GpuShown]:
        """See `Devices.gpus`. A GPU split by MIG is listed as in use: its parts are not leased yet, and a note says so."""
        if self._nvml is None:
            return []
        with self._lock:
            self.notes = []
            count = self._ask(self._nvml.nvmlDeviceGetCount) or 0
            return [gpu for index in range(count) if (gpu := self._shown(index)) is not None]

    def usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """See `Devices.usage`."""
        if self._nvml is None:
            return []
        with self._lock:
            return [self._usage(uuid, self._handles[uuid]) for uuid in uuids if uuid in self._handles]

    def grant(self, gpus: Sequence[GpuShown], folder: Path, *, engine: str) -> DeviceGrant:
        """By uuid for CUDA. With gVisor also the device nodes and `--nvproxy`; the driver's libraries are the host's own,
        which the mirror shows with the system's library folders."""
        uuids = ",".join(gpu.uuid for gpu in gpus)
        if not gpus:
            return DeviceGrant(environment=dict(NO_GPUS))
        environment = {"CUDA_VISIBLE_DEVICES": uuids, "NVIDIA_VISIBLE_DEVICES": uuids}
        if engine == "process":
            return DeviceGrant(environment=environment)
        with self._lock:
            minors = [self._ask(self._nvml.nvmlDeviceGetMinorNumber, self._handles[gpu.uuid]) for gpu in gpus]
        nodes = [*_CONTROL_NODES, *(f"/dev/nvidia{minor}" for minor in minors if minor is not None)]
        existing = tuple(node for node in nodes if os.path.exists(node))  # noqa: PTH110 - device nodes, given as text
        return DeviceGrant(nodes=existing, environment=environment, engine_flags=("--nvproxy",))

    def _shown(self, index: int) -> GpuShown | None:
        handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = self._ask(self._nvml.nvmlDeviceGetUUID, handle) if handle is not None else None
        if uuid is None:
            self.notes.append(f"GPU {index} does not answer NVML and is not leased.")
            return None
        uuid, name = _text(uuid), _text(self._ask(self._nvml.nvmlDeviceGetName, handle) or "GPU")
        self._handles[uuid] = handle
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return GpuShown(
            index=index, uuid=uuid, type=gpu_type_of_device(name), name=name,
            memory_mib=memory.total // MIB if memory is not None else 0, in_use=self._in_use(index, handle),
        )  # fmt: skip

    def _in_use(self, index: int, handle: Any) -> str:
        mig = self._ask(self._nvml.nvmlDeviceGetMigMode, handle)
        if mig is not None and mig[0] == 1:
            self.notes.append(f"GPU {index} is split by MIG: its parts are not leased yet.")
            return "split by MIG"
        processes = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        pids = [int(process.pid) for process in processes]
        return f"used by {_shown_pids(pids)}" if pids else ""

    def _usage(self, uuid: str, handle: Any) -> GpuUsage:
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power_milliwatts = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        temperature = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return GpuUsage(
            uuid=uuid,
            utilization_ratio=rates.gpu / 100 if rates is not None else None,
            memory_used_mib=memory.used // MIB if memory is not None else None,
            memory_total_mib=memory.total // MIB if memory is not None else None,
            power_watts=power_milliwatts / 1000 if power_milliwatts is not None else None,
            temperature_celsius=float(temperature) if temperature is not None else None,
        )

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML answers, None where this GPU does not have it."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def _shown_pids(pids: list[int]) -> str:
    shown = ", ".join(str(pid) for pid in pids[:3])
    return f"process {shown}" if len(pids) == 1 else f"processes {shown}" + (" and others" if len(pids) > 3 else "")


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
