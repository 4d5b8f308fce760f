"""Groups of both versions: on made-up trees, where the kernel's answers can be chosen; the real ones are in the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_runtime.cgroups import Cgroups, Limits

MIB = 1 << 20


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    for folder in (tmp_path, tmp_path / "cellburst"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        (folder / "cgroup.subtree_control").write_text("")
    return tmp_path


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    for name in ("memory", "cpu", "cpuacct", "pids", "freezer"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_v2_limits_and_usage(v2: Path) -> None:
    groups = Cgroups(v2)
    assert groups.version == 2 and groups.probe() == ""
    assert (v2 / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (v2 / "cellburst" / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    group = groups.group("a")
    (v2 / "cellburst" / "a").mkdir()
    put(v2 / "cellburst" / "a", memory__swap__max="max")
    group.create(Limits(memory_mib=256, cpu=1.5, pids=77))
    folder = v2 / "cellburst" / "a"
    assert (folder / "memory.max").read_text() == str(256 * MIB)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "pids.max").read_text() == "77"
    assert group.engine_path == "/cellburst/a/sandbox"
    assert group.procs_files() == [folder / "cgroup.procs"]
    put(
        folder, memory__current=str(50 * MIB), memory__stat=f"anon 1\ninactive_file {20 * MIB}\n", cpu__stat="usage_usec 2500000\n",
        memory__events="low 0\noom 2\noom_kill 1\noom_group_kill 0\n", pids__events="max 3\n", cgroup__procs="12\n",
    )  # fmt: skip
    (folder / "sandbox").mkdir()
    put(folder / "sandbox", cgroup__procs="7\n12\n")
    assert group.memory_bytes() == 30 * MIB
    assert group.memory_limit_bytes() == 256 * MIB
    assert group.cpu_seconds() == 2.5
    assert (group.oom_kills(), group.pids_refused()) == (1, 3)
    assert group.pids() == [7, 12]
    put(folder, memory__max="max")
    assert group.memory_limit_bytes() is None
    assert groups.names() == {"a"}


def test_two_installations_may_use_one_name(v2: Path) -> None:
    one, two = Cgroups(v2, tag="0a"), Cgroups(v2, tag="0b")
    one.group("c1").create(Limits(memory_mib=64, cpu=1, pids=10))
    assert one.names() == {"0a-c1"} and two.folders("c1") == [] and one.folders("c1") == [v2 / "cellburst" / "0a-c1"]
    assert one.group("c1").engine_path == "/cellburst/0a-c1/sandbox"


def test_v1_limits_and_usage(v1: Path) -> None:
    groups = Cgroups(v1)
    assert groups.version == 1 and groups.probe() == ""
    group = groups.group("a")
    group.create(Limits(memory_mib=256, cpu=0.5, pids=77))
    memory, cpu = v1 / "memory/cellburst/a", v1 / "cpu/cellburst/a"
    assert (memory / "memory.limit_in_bytes").read_text() == str(256 * MIB)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
    assert (v1 / "pids/cellburst/a/pids.max").read_text() == "77"
    assert group.engine_path == "/cellburst/a"
    put(
        memory, memory__usage_in_bytes=str(9 * MIB), memory__stat=f"total_inactive_file {MIB}\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    )  # fmt: skip
    put(v1 / "cpuacct/cellburst/a", cpuacct__usage="1500000000\n")
    put(v1 / "pids/cellburst/a", pids__events="max 2\n")
    assert (group.memory_bytes(), group.cpu_seconds(), group.oom_kills(), group.pids_refused()) == (8 * MIB, 1.5, 4, 2)
    put(memory, memory__limit_in_bytes="9223372036854771712")
    assert group.memory_limit_bytes() is None


async def test_removing_takes_the_folders_that_an_engine_added(v1: Path) -> None:
    groups = Cgroups(v1)
    for place in ("memory/cellburst/a", "freezer/cellburst/a/inner", "pids/cellburst/b"):
        (v1 / place).mkdir(parents=True)
    assert await groups.group("a").remove() == []
    assert groups.names() == {"b"}
    assert await groups.group("a").remove() == []


async def test_what_would_not_go_is_named(v2: Path) -> None:
    folder = v2 / "cellburst" / "a"
    folder.mkdir()
    put(folder, file="held")
    assert await Cgroups(v2).group("a").remove(seconds=0) == [str(folder)]


def test_a_group_that_is_gone_answers_none(v2: Path) -> None:
    group = Cgroups(v2).group("never")
    assert (group.memory_bytes(), group.cpu_seconds(), group.memory_limit_bytes(), group.pids()) == (
        None,
        None,
        None,
        [],
    )
    assert (group.oom_kills(), group.pids_refused()) == (0, 0)


def test_without_controllers_it_says_so(tmp_path: Path) -> None:
    assert "controllers" in Cgroups(tmp_path).probe()
    assert Cgroups(tmp_path).names() == set()


def test_other_limits_for_a_group_that_exists(v2: Path) -> None:
    group = Cgroups(v2).group("a")
    group.create(Limits(memory_mib=256, cpu=1.0, pids=70))
    (v2 / "cellburst" / "a" / "sandbox").mkdir()  # the engine's own
    group.limit(Limits(memory_mib=300, cpu=0.5, pids=80))
    for folder in (v2 / "cellburst" / "a", v2 / "cellburst" / "a" / "sandbox"):
        shown = [(folder / name).read_text() for name in ("memory.max", "cpu.max", "pids.max")]
        assert shown == [str(300 * MIB), "50000 100000", "80"]


@pytest.mark.parametrize("memory_mib", [200, 300])
def test_v1_never_has_the_limit_without_swap_above_the_one_with(
    v1: Path, memory_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Cgroups(v1).group("a")
    group.create(Limits(memory_mib=256, cpu=1.0, pids=70))
    memory = v1 / "memory" / "cellburst" / "a"
    (memory / "memory.memsw.limit_in_bytes").write_text(str(256 * MIB))
    write = Path.write_text

    def checked(path: Path, text: str) -> int:
        written = write(path, text)
        limits = [int((memory / name).read_text()) for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")]
        assert limits[0] <= limits[1], "the kernel refuses that"
        return written

    monkeypatch.setattr(Path, "write_text", checked)
    group.limit(Limits(memory_mib=memory_mib, cpu=2.0, pids=90))
    assert group.memory_limit_bytes() == memory_mib * MIB
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(memory_mib * MIB)
    assert (v1 / "cpu" / "cellburst" / "a" / "cpu.cfs_quota_us").read_text() == "200000"
    assert (v1 / "pids" / "cellburst" / "a" / "pids.max").read_text() == "90"
