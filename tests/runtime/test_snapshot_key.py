"""Which containers one snapshot serves, and which it does not: equality of keys over real specs, and what a mismatch says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cellburst_protocol.messages import MirrorSpec
from cellburst_protocol.resources import Resources
from cellburst_runtime import snapshot_key as keys
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.devices_simulated import SimulatedDevices
from cellburst_runtime.engine import DeviceGrant, Engine
from cellburst_runtime.engine_gvisor import GvisorEngine, GvisorSettings
from cellburst_runtime.engine_process import ProcessEngine
from cellburst_runtime.layer import EmptyLayer
from cellburst_runtime.layer_make import MadeLayer
from cellburst_runtime.mirror import plan_mirror
from cellburst_runtime.network import Networks
from cellburst_runtime.oci import all_mounts, memory_class_mib
from cellburst_runtime.removal import Remover
from cellburst_runtime.runtime import PreparedContainer
from tests.runtime.test_runtime import request_for


class Case:
    """What a key is made of, to be changed in one place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nb").mkdir(exist_ok=True)
        (folder / "runsc").touch()
        self.request = request_for(folder / "nb", "c1", resources=Resources(memory_mib=1024, cpu=1.0))
        self.settings = GvisorSettings(str(folder / "runsc"), folder / "state", "1")
        self.options: dict[str, object] = {"snapshot": True}
        self.grant = DeviceGrant()
        self.engine: Engine | None = None

    def image(self, **changes: object) -> None:
        for name, value in changes.items():
            setattr(self.request.image, name, value)

    def resources(self, **changes: object) -> None:
        self.request.resources = Resources(**{"memory_mib": 1024, "cpu": 1.0, **changes})  # type: ignore[arg-type]

    def prepared(self) -> PreparedContainer:
        engine = self.engine or GvisorEngine(
            self.settings, Cgroups(), Networks(self.folder / "run"), **self.options  # type: ignore[arg-type]
        )  # fmt: skip
        plan = plan_mirror(self.request.image, cpu=self.request.resources.cpu)
        folder = self.folder / self.request.container
        made = PreparedContainer(
            self.request, folder, engine, plan, MadeLayer(EmptyLayer(), ()), self.grant, Remover(Cgroups())
        )
        made.set_key()
        return made


def simulated_gpu(case: Case) -> None:
    devices = SimulatedDevices("A100:1", first_index=0, machine_id="m")
    case.grant = devices.grant(devices.gpus(), case.folder, engine="gvisor")


def newer_runsc_of_the_same_version(case: Case) -> None:
    os.utime(case.folder / "runsc", ns=(1, 1))


SAME: dict[str, Callable[[Case], None]] = {
    "nothing": lambda case: None,
    "container": lambda case: setattr(case.request, "container", "c2"),
    "session": lambda case: setattr(case.request, "session", "s2"),
    "memory of the class": lambda case: case.resources(memory_mib=1700),
    "part of a CPU": lambda case: case.resources(cpu=0.5),
    "a simulated GPU": simulated_gpu,
    "how it prints": lambda case: case.image(environment={"TERM": "dumb"}),
    "what scikit-learn sets": lambda case: case.image(
        environment={**case.request.image.environment, "KMP_DUPLICATE_LIB_OK": "True"}
    ),
    "order of variables": lambda case: case.image(environment={"B": "2", "A": "1"}),
}
OTHER: dict[str, tuple[Callable[[Case], None], str]] = {
    "memory": (lambda case: case.resources(memory_mib=2048), "memory"),
    "less memory": (lambda case: case.resources(memory_mib=1023), "memory"),
    "CPUs": (lambda case: case.resources(cpu=2.0), "CPUs"),
    "network": (lambda case: case.resources(network="none"), "engine flags"),
    "interpreter": (lambda case: case.image(executable="/usr/bin/python3"), "image"),
    "packages": (lambda case: case.image(identity="other"), "image"),
    "user": (lambda case: case.image(uid=1234), "process"),
    "home": (lambda case: case.image(home="/home/other"), "mounts"),
    "variable": (lambda case: case.image(environment={"OMP_PROC_BIND": "true"}), "variables"),
    "engine version": (lambda case: setattr(case, "settings", replace(case.settings, version="2")), "engine"),
    "engine program": (newer_runsc_of_the_same_version, "engine"),
    "no limits": (lambda case: case.options.update(no_limits="a test"), "engine flags"),
}


@pytest.mark.parametrize("change", SAME)
def test_one_snapshot_serves_both(tmp_path: Path, change: str) -> None:
    case = Case(tmp_path)
    case.image(environment={"A": "1", "B": "2"} if change == "order of variables" else {})
    first = case.prepared()
    SAME[change](case)
    assert case.prepared().snapshot_key == first.snapshot_key != ""


@pytest.mark.parametrize("change", OTHER)
def test_one_snapshot_does_not_serve_both(tmp_path: Path, change: str) -> None:
    case = Case(tmp_path)
    first = case.prepared()
    how, part = OTHER[change]
    how(case)
    second = case.prepared()
    assert second.snapshot_key not in ("", first.snapshot_key)
    assert second.key_parts[part] != first.key_parts[part]


@pytest.mark.parametrize("part", ["kernel", "CPU", "machine", "runner", "files"])
def test_what_lies_outside_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    case = Case(tmp_path)
    first = case.prepared()
    if part == "kernel":
        monkeypatch.setattr("platform.release", lambda: "7.0")
    elif part == "CPU":
        monkeypatch.setattr("cellburst_runtime.engine_gvisor.cpu_text", lambda: "another CPU")
    elif part == "machine":
        monkeypatch.setattr(keys, "machine_text", lambda: "1:2")
    elif part == "runner":
        (tmp_path / "cellburst_runner").mkdir()
        (tmp_path / "cellburst_runner/__main__.py").write_text("pass")
        monkeypatch.setattr("cellburst_runtime.prepared._PACKAGES", tmp_path)
    else:
        case.image(user="somebody")
    second = case.prepared()
    assert [name for name in first.key_parts if first.key_parts[name] != second.key_parts[name]] == [part]
    assert second.snapshot_key != first.snapshot_key


def test_no_snapshots_no_key(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.options = {}
    assert case.prepared().snapshot_key == ""
    case = Case(tmp_path)
    case.settings = replace(case.settings, rootless=True)
    assert case.prepared().snapshot_key == ""
    case = Case(tmp_path)
    case.grant = DeviceGrant(nodes=("/dev/nvidia0",))
    assert case.prepared().snapshot_key == ""
    case = Case(tmp_path)
    case.engine = ProcessEngine(Cgroups())
    assert (case.prepared().snapshot_key, case.prepared().key_parts) == ("", {})


def test_what_cannot_be_restored_but_given_away_has_a_key_of_its_own(tmp_path: Path) -> None:
    case = Case(tmp_path)
    restored = case.prepared()
    assert restored.boot_key == "" and restored.warm_key == restored.snapshot_key != ""
    for change in (case.options.clear, lambda: setattr(case, "settings", replace(case.settings, rootless=True))):
        change()
        booted = case.prepared()
        assert (booted.snapshot_key, booted.key_parts, booted.fork_key) == ("", {}, "")
        assert booted.warm_key == booted.boot_key != restored.snapshot_key
    before = booted.boot_key
    case.request.image.environment = {"OMP_NUM_THREADS": "3"}
    assert case.prepared().boot_key not in ("", before)
    case.grant = DeviceGrant(nodes=("/dev/nvidia0",))
    assert case.prepared().warm_key == ""  # a sandbox that is up cannot be given a device
    case = Case(tmp_path)
    case.engine = ProcessEngine(Cgroups())
    assert (case.prepared().boot_key, case.prepared().warm_key) == ("", "")
    assert case.prepared().fork_key


def test_parts_are_short_and_name_nothing_secret(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.image(environment={"PYTHONPATH": "/secret-folder"})
    parts = case.prepared().key_parts
    assert all(len(value) < 300 for value in parts.values())
    assert "secret-folder" not in str(parts)


def test_sizes_inside_are_those_of_the_class(tmp_path: Path) -> None:
    assert [memory_class_mib(mib) for mib in (1, 511, 512, 1000, 1024, 1 << 20)] == [1, 256, 512, 512, 1024, 1 << 20]

    def sizes(memory_mib: int) -> dict[str, int]:
        case = Case(tmp_path)
        case.resources(memory_mib=memory_mib)
        spec = case.prepared()._spec()
        assert spec.memory_mib == memory_mib
        return {mount.destination: mount.size_bytes for mount in all_mounts(spec) if mount.kind == "tmpfs"}

    assert sizes(1024) == sizes(2047)
    assert sum(sizes(2047).values()) < 1024 << 20


@pytest.mark.parametrize("memory_mib", [300, 1500, 4096])
def test_a_container_of_other_memory_takes_the_sizes_of_a_parked_one(tmp_path: Path, memory_mib: int) -> None:
    case = Case(tmp_path)
    parked = case.prepared()
    sizes_mib, parked_spec = parked.parked_sizes_mib, parked._spec()
    assert parked.parked_key == parked.snapshot_key and sizes_mib == 1024
    case.resources(memory_mib=memory_mib)
    other = case.prepared()
    own_key, own_spec = other.snapshot_key, other._spec()
    other.take_sizes(sizes_mib)
    assert other.parked_key == parked.parked_key and other.parked_parts == parked.parked_parts
    assert other.snapshot_key == own_key  # templates and warm containers are those of its own memory
    spec = other._spec()
    assert all_mounts(spec) == all_mounts(parked_spec) and spec.pids == parked_spec.pids
    assert spec.memory_mib == memory_mib
    other.take_sizes(0)
    assert other._spec() == own_spec and other.parked_key == own_key


def test_features_of_the_cpu_are_in_it() -> None:
    assert keys.cpu_text() == keys.cpu_text() and len(keys.cpu_text().split()[-1]) == keys.HASH_LETTERS
    assert keys.snapshot_key({}) == "" and len(keys.snapshot_key({"a": "b"})) == 64
    assert keys.snapshot_key({"a": "b", "c": "d"}) == keys.snapshot_key({"c": "d", "a": "b"})
    spec = MirrorSpec(executable="/p", python_version="3", prefix="/", base_prefix="/")
    assert keys.image_parts(spec, Path("/nonexistent"))["image"].startswith("/p 3")
