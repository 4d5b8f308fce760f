"""Simulated GPUs: declared by `--simulate-gpus A100:2,T4:1`, to develop and test without one. Nothing runs on them.

Each is called simulated wherever it is shown. CUDA sees no device (`torch.cuda.is_available()` is False), and a stand-in
`nvidia-smi` says what it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cellburst_protocol.messages import GpuShown, GpuUsage
from cellburst_protocol.resources import GPU_FAMILIES, GPU_MEMORY_MIB, parse_gpus

from .devices import NO_GPUS
from .engine import DeviceGrant, Mount

BIN = "/cellburst/bin"  # on PATH in every container
DEFAULT_MEMORY_MIB = 16_384  # of a type whose true size the table lacks


class SimulatedDevices:
    """See `devices.Devices`. `text` is a GPU request as in `gpu=`; `machine_id` keeps uuids apart between machines."""

    def __init__(self, text: str, *, first_index: int = 0, machine_id: str = "") -> None:
        types = [
            GPU_FAMILIES.get(choice.type, (choice.type,))[0]
            for choice in (parse_gpus(text) if text.strip() else ())
            for _ in range(choice.count)
        ]
        self._gpus = [
            GpuShown(
                index=first_index + number,
                uuid=f"SIM-{hashlib.sha256(f'{machine_id}/{number}/{gpu_type}'.encode()).hexdigest()[:12]}",
                type=gpu_type,
                name=f"Simulated {gpu_type}",
                memory_mib=GPU_MEMORY_MIB.get(gpu_type, DEFAULT_MEMORY_MIB),
                simulated=True,
            )
            for number, gpu_type in enumerate(types)
        ]

    def gpus(self) -> list[GpuShown]:
        """See `Devices.gpus`."""
        return list(self._gpus)

    def usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """Zeros, marked simulated."""
        return [
            GpuUsage(
                uuid=gpu.uuid, utilization_ratio=0.0, memory_used_mib=0, memory_total_mib=gpu.memory_mib, power_watts=0.0,
                temperature_celsius=0.0, simulated=True,
            )
            for gpu in self._gpus
            if gpu.uuid in uuids
        ]  # fmt: skip

    def grant(self, gpus: Sequence[GpuShown], folder: Path, *, engine: str) -> DeviceGrant:
        """No device; a stand-in `nvidia-smi` in FOLDER/bin, which lies at /cellburst/bin where there are mounts."""
        program = folder / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(nvidia_smi_script(gpus))
        program.chmod(0o755)
        counts = {gpu.type: sum(other.type == gpu.type for other in gpus) for gpu in gpus}
        environment = {
            **NO_GPUS,
            "CELLBURST_SIMULATED_GPUS": ",".join(f"{name}:{count}" for name, count in counts.items()),
        }
        mounts = () if engine == "process" else (Mount(BIN, str(program.parent)),)
        return DeviceGrant(environment=environment, mounts=mounts)


def nvidia_smi_script(gpus: Sequence[GpuShown]) -> str:
    """A shell script that prints a table headed SIMULATED, whatever it is asked."""
    width = 74
    rule = "+" + "-" * width + "+"
    lines = [rule, "|" + " SIMULATED GPUs: declared by the operator, nothing runs on them ".center(width) + "|", rule]
    for number, gpu in enumerate(gpus):
        row = f" {number}  {gpu.name:<28} {gpu.uuid:<18} 0MiB / {gpu.memory_mib}MiB  0%"
        lines.append("|" + row[:width].ljust(width) + "|")
    lines.append(rule)
    return "#!/bin/sh\ncat <<'TABLE'\n" + "\n".join(lines) + "\nTABLE\n"
