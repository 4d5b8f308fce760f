"""GPUs: simulated ones whole, real ones against a stand-in for NVML's library (there is no GPU to ask)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellburst_protocol.errors import RequestError
from cellburst_runtime.devices_nvidia import NvidiaDevices
from cellburst_runtime.devices_simulated import SimulatedDevices


def test_simulated_gpus_say_what_they_are(tmp_path: Path) -> None:
    devices = SimulatedDevices("A100:2,t4", first_index=1, machine_id="m")
    gpus = devices.gpus()
    assert [(gpu.index, gpu.type, gpu.memory_mib) for gpu in gpus] == [
        (1, "A100-40GB", 40960),
        (2, "A100-40GB", 40960),
        (3, "T4", 15360),
    ]
    assert all(gpu.simulated and gpu.uuid.startswith("SIM-") and "Simulated" in gpu.name for gpu in gpus)
    assert len({gpu.uuid for gpu in gpus}) == 3
    assert gpus == SimulatedDevices("A100:2,T4", first_index=1, machine_id="m").gpus()
    assert not {gpu.uuid for gpu in gpus} & {
        gpu.uuid for gpu in SimulatedDevices("A100:2,T4", machine_id="other").gpus()
    }
    (usage,) = devices.usage([gpus[2].uuid, "GPU-unknown"])
    assert (usage.simulated, usage.utilization_ratio, usage.memory_used_mib, usage.memory_total_mib) == (
        True,
        0.0,
        0,
        15360,
    )


def test_the_stand_in_prints_simulated(tmp_path: Path) -> None:
    devices = SimulatedDevices("A100:2")
    grant = devices.grant(devices.gpus(), tmp_path, engine="gvisor")
    assert grant.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert grant.environment["CELLBURST_SIMULATED_GPUS"] == "A100-40GB:2"
    (mount,) = grant.mounts
    shown = subprocess.run([f"{mount.source}/nvidia-smi", "-q"], capture_output=True, text=True, check=True).stdout
    assert shown.count("Simulated A100-40GB") == 2 and "SIMULATED" in shown.splitlines()[1]
    assert devices.grant(devices.gpus(), tmp_path, engine="process").mounts == ()


@pytest.mark.parametrize("text", ["Z9", "A100:0", "A100:x"])
def test_bad_declarations_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        SimulatedDevices(text)


def test_none_declared() -> None:
    assert SimulatedDevices("").gpus() == []


class FakeNvml:
    """What of `pynvml` is used, for two GPUs: an A100 that someone uses, and a consumer card that lacks power figures."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, driver: bool = True, mig: bool = False) -> None:
        self.driver, self.mig, self.down = driver, mig, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:
        self.down += 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.54.15"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return ("NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090")[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 << 30, used=1 << 30)

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return [int(self.mig), 0]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=41)] if handle == 0 and not self.mig else []

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return 250_500

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        return 55

    def nvmlDeviceGetMinorNumber(self, handle: int) -> int:
        return handle


def test_nvml_inventory_and_usage(tmp_path: Path) -> None:
    nvml = FakeNvml()
    devices = NvidiaDevices(nvml)
    first, second = devices.gpus()
    assert (first.type, first.memory_mib, first.in_use) == ("A100-80GB", 80 << 10, "used by process 41")
    assert (second.type, second.in_use, second.simulated) == ("RTX-4090", "", False)
    assert devices.driver_version == "550.54.15" and devices.problem == ""
    one, two = devices.usage(["GPU-0", "GPU-1", "SIM-x"])
    assert (one.utilization_ratio, one.power_watts, one.temperature_celsius, one.memory_used_mib) == (
        0.37,
        250.5,
        55.0,
        1024,
    )
    assert two.power_watts is None and two.utilization_ratio == 0.37
    grant = devices.grant([first, second], tmp_path, engine="process")
    assert grant.environment["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1" and grant.engine_flags == ()
    assert devices.grant([second], tmp_path, engine="gvisor").engine_flags == ("--nvproxy",)
    devices.close()
    devices.close()
    assert nvml.down == 1 and devices.gpus() == []


def test_a_gpu_split_by_mig_is_not_leased() -> None:
    devices = NvidiaDevices(FakeNvml(mig=True))
    assert [gpu.in_use for gpu in devices.gpus()] == ["split by MIG", ""]
    assert "MIG" in devices.notes[0]


def test_without_a_driver_there_are_none() -> None:
    devices = NvidiaDevices(FakeNvml(driver=False))
    assert devices.gpus() == [] and devices.usage(["GPU-0"]) == []
    assert "Driver Not Loaded" in devices.problem
