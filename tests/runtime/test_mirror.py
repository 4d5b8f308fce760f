"""The mirror's plan, a line of the issue's list each. That it really runs is `test_mirror_run.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cellburst_jupyter import environment
from cellburst_protocol.errors import ErrorCode, RequestError
from cellburst_protocol.messages import MirrorSpec
from cellburst_runtime import mirror_places
from cellburst_runtime.mirror import MirrorPlan, machine_id, plan_mirror
from cellburst_runtime.mirror_places import walk


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def spec(tmp_path: Path, home: Path) -> MirrorSpec:
    """A kernel of this interpreter, with a home and a notebook of its own."""
    notebook = tmp_path / "notebook"
    notebook.mkdir()
    return MirrorSpec(
        executable=sys.executable, python_version="3.11.7", prefix=sys.prefix, base_prefix=sys.base_prefix, user="ada", uid=1234,
        home=str(home), notebook_folder=str(notebook),
    )  # fmt: skip


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def shows(plan: MirrorPlan, path: Path | str) -> bool:
    """Does some read-only bind show this path at its own place?"""
    return any(
        m.kind == "bind"
        and m.read_only
        and m.source == m.destination
        and (str(path) + "/").startswith(m.destination + "/")
        for m in plan.mounts
    )


def destinations(plan: MirrorPlan) -> list[str]:
    return [m.destination for m in plan.mounts]


def test_every_existing_sys_path_entry_and_extra_path_is_shown(spec: MirrorSpec, tmp_path: Path) -> None:
    spec.sys_path = [str(folder(tmp_path / "a")), str(folder(tmp_path / "deep" / "b"))]
    spec.extra_paths = [str(folder(tmp_path / x)) for x in ("pth", "editable", "user-site", "conda", "ld")]
    (tmp_path / "egg.zip").write_bytes(b"PK")
    spec.sys_path.append(str(tmp_path / "egg.zip"))
    plan = plan_mirror(spec)
    assert all(shows(plan, p) for p in [*spec.sys_path, *spec.extra_paths])
    assert plan.sys_path == spec.sys_path == plan.environment["CELLBURST_SYS_PATH"].split(":")


def test_both_prefixes_and_every_hop_are_shown(spec: MirrorSpec, tmp_path: Path) -> None:
    real = folder(tmp_path / "real" / "bin") / "python3"
    real.write_text("#!")
    first, second = folder(tmp_path / "one" / "bin") / "python", folder(tmp_path / "two" / "bin") / "python"
    second.symlink_to(real)
    first.symlink_to(second)
    spec.executable, spec.links = str(first), [str(first), str(second), str(real)]
    plan = plan_mirror(spec)
    assert plan.python == [str(first)]
    assert shows(plan, sys.prefix) and shows(plan, sys.base_prefix) and shows(plan, real)
    # Below /tmp, which is memory in a container, a link's place shows the file itself; elsewhere it is a link.
    assert {str(first), str(second)} <= set(destinations(plan)) | set(plan.links)
    assert plan.environment["PATH"].split(":")[0] == str(first.parent)


def test_names_resolve_as_on_the_host(tmp_path: Path) -> None:
    folder(tmp_path / "data" / "venv" / "bin")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "data" / "up").symlink_to("../link/venv")
    hops, real = walk(f"{tmp_path}/link/up/bin")
    base = os.path.realpath(tmp_path)
    assert real == f"{base}/data/venv/bin"
    assert [(h.link, h.target) for h in hops] == [
        (f"{base}/link", "data"),
        (f"{base}/data/up", "../link/venv"),
        (f"{base}/link", "data"),
    ]
    assert hops[0].named == f"{base}/link/up/bin" and hops[1].named == f"{base}/data/up/bin"
    (tmp_path / "loop").symlink_to("loop")
    assert len(walk(f"{tmp_path}/loop/x")[0]) == 40


def test_links_outside_memory_are_links_of_the_root(spec: MirrorSpec) -> None:
    plan = plan_mirror(spec)
    for name in ("bin", "lib", "lib64", "sbin"):
        if Path(f"/{name}").is_symlink():
            assert plan.links[f"/{name}"] == os.readlink(f"/{name}")
        elif Path(f"/{name}").exists():
            assert shows(plan, f"/{name}")
    assert shows(plan, "/usr")


def test_mounts_are_unique_and_parents_come_first(spec: MirrorSpec, tmp_path: Path) -> None:
    outer = folder(tmp_path / "outer")
    inner = folder(outer / "inner")
    spec.sys_path = [str(inner), str(outer), str(outer), str(inner)]
    places = destinations(plan_mirror(spec))
    assert str(outer) in places and str(inner) not in places
    assert len(places) == len(set(places))
    for n, place in enumerate(places):
        assert not any(place.startswith(later + "/") for later in places[n + 1 :])


def test_the_home_is_empty_memory_and_only_what_is_wanted_lies_in_it(spec: MirrorSpec, home: Path) -> None:
    (home / "private").write_text("x")
    venv = folder(home / "venv" / "lib")
    spec.sys_path = [str(venv)]
    plan = plan_mirror(spec)
    (memory,) = (m for m in plan.mounts if m.destination == str(home))
    assert memory.kind == "tmpfs" and not memory.read_only and memory.size_bytes > 0
    assert [d for d in destinations(plan) if d.startswith(f"{home}/")] == [str(venv)]
    assert plan.environment["HOME"] == str(home) and plan.home == str(home)


def test_a_venv_that_is_the_home_shows_only_pythons_parts(spec: MirrorSpec, home: Path) -> None:
    folder(home / "lib" / "python3.11")
    folder(home / "bin")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\n")
    folder(home / "Documents")
    spec.prefix = str(home)
    plan = plan_mirror(spec)
    assert all(shows(plan, home / x) for x in ("lib/python3.11", "bin", "pyvenv.cfg"))
    assert not shows(plan, home / "Documents") and not shows(plan, home)


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/proc", "/home", "/root", "/dev/shm", "/run", "/sys/kernel", "/etc/cron.d"]
)
def test_sensitive_mounts_are_refused_by_name(spec: MirrorSpec, path: str) -> None:
    spec.mounts = [path]
    with pytest.raises(RequestError) as refused:
        plan_mirror(spec)
    assert refused.value.code is ErrorCode.FORBIDDEN and f"mount={path}" in str(refused.value)


@pytest.mark.parametrize("path", ["/", "/etc", "/root", "/proc/self"])
def test_a_sensitive_notebook_folder_is_refused(spec: MirrorSpec, path: str) -> None:
    spec.notebook_folder = path
    with pytest.raises(RequestError, match="cannot be shown"):
        plan_mirror(spec)
    spec.notebook_mode = "python_files"
    assert plan_mirror(spec).working_folder == os.path.realpath(path)


def test_sensitive_places_are_seen_through_links_and_parents(spec: MirrorSpec, tmp_path: Path, home: Path) -> None:
    (tmp_path / "innocent").symlink_to("/etc")
    secret = folder(tmp_path / "x" / ".aws" / "sub")
    for path in (tmp_path / "innocent", secret, home, tmp_path):
        spec.mounts = [str(path)]
        with pytest.raises(RequestError):
            plan_mirror(spec)
    spec.mounts, spec.sys_path = [], [str(home), "/etc", "/"]
    plan = plan_mirror(spec)
    assert not any(shows(plan, p) for p in (home, "/etc/passwd"))
    assert sum("is not shown" in note for note in plan.notes) == 3


def test_our_own_data_is_never_shown(spec: MirrorSpec, tmp_path: Path) -> None:
    data = folder(tmp_path / "project" / "data")
    for path in (data, folder(data / "blobs"), data.parent):
        spec.mounts = [str(path)]
        with pytest.raises(RequestError, match="own data"):
            plan_mirror(spec, private_folders=[data])


def test_what_does_not_exist_is_a_note(spec: MirrorSpec, tmp_path: Path) -> None:
    spec.mounts, spec.extra_paths = [str(tmp_path / "none")], [str(tmp_path / "gone")]
    notes = plan_mirror(spec).notes
    assert any("none does not exist" in n for n in notes) and any("gone does not exist" in n for n in notes)


def test_a_mount_and_a_source_tree_hide_their_secrets(spec: MirrorSpec, tmp_path: Path) -> None:
    tree = folder(tmp_path / "repo")
    (tree / ".env").write_text("TOKEN=1")
    (tree / ".env.example").write_text("TOKEN=")
    folder(tree / "sub" / ".ssh")
    spec.mounts = [str(tree)]
    plan = plan_mirror(spec)
    masks = {m.destination: m for m in plan.mounts if m.destination.startswith(f"{tree}/")}
    assert set(masks) == {f"{tree}/.env", f"{tree}/sub/.ssh"}
    assert (
        masks[f"{tree}/.env"].source == mirror_places.EMPTY_FILE and Path(mirror_places.EMPTY_FILE).read_bytes() == b""
    )
    assert masks[f"{tree}/sub/.ssh"].kind == "tmpfs"
    assert any("hidden" in n for n in plan.notes)


def test_the_notebooks_folder_is_left_to_the_layer_but_a_venv_in_it_is_shown(spec: MirrorSpec) -> None:
    notebook = Path(spec.notebook_folder)
    spec.prefix = str(folder(notebook / ".venv"))
    spec.sys_path = [str(notebook), str(folder(notebook / "src"))]
    plan = plan_mirror(spec)
    assert plan.working_folder == str(notebook)
    assert [d for d in destinations(plan) if d.startswith(str(notebook))] == [spec.prefix]


def test_system_configuration_is_made_up_or_narrow(spec: MirrorSpec) -> None:
    plan = plan_mirror(spec)
    for name in ("passwd", "group", "hosts", "nsswitch.conf", "resolv.conf", "machine-id"):
        assert f"/etc/{name}" in plan.root_files
    for path in ("/etc/localtime", "/etc/mime.types", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf"):
        assert (path in plan.root_files) == Path(path).exists()
    for path in ("/etc/alternatives", "/etc/ssl/certs", "/etc/fonts"):
        assert shows(plan, path) == Path(path).is_dir()
    assert not shows(plan, "/etc/shadow") and not shows(plan, "/etc/ssl/private")


def test_the_environment_is_ours_and_the_allow_list(spec: MirrorSpec, home: Path) -> None:
    spec.environment = {
        "LANG": "de_DE.UTF-8",
        "TZ": "Asia/Tokyo",
        "PYTHONPATH": "/x",
        "HF_HOME": "/data/hf",
        "OMP_NUM_THREADS": "64",
    }
    environment = plan_mirror(spec, cpu=1.5).environment
    want = {
        "HOME": str(home), "USER": "ada", "LOGNAME": "ada", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "PYTHONPATH": "/x",
        "XDG_CACHE_HOME": f"{home}/.cache", "XDG_CONFIG_HOME": f"{home}/.config", "XDG_DATA_HOME": f"{home}/.local/share",
        "MPLCONFIGDIR": f"{home}/.config/matplotlib", "IPYTHONDIR": f"{home}/.ipython", "HF_HOME": f"{home}/.cache/huggingface",
        "TORCH_HOME": f"{home}/.cache/torch", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2",
    }  # fmt: skip
    assert want.items() <= environment.items()
    assert not environment.keys() & os.environ.keys() - want.keys() - {
        "PATH",
        "SHELL",
        "TERM",
        "XDG_STATE_HOME",
        "NUMEXPR_MAX_THREADS",
    }


def test_root_becomes_an_ordinary_user(spec: MirrorSpec) -> None:
    spec.uid, spec.user = 0, "root"
    plan = plan_mirror(spec)
    assert (plan.uid, plan.gid, plan.environment["USER"]) == (1000, 1000, "user")
    assert b"user:x:1000:1000:" in plan.root_files["/etc/passwd"]


def test_model_caches_are_ours_and_writable(spec: MirrorSpec, tmp_path: Path, home: Path) -> None:
    plan = plan_mirror(spec, cache_folder=tmp_path / "caches")
    for name in ("huggingface", "torch"):
        (mount,) = (m for m in plan.mounts if m.destination == f"{home}/.cache/{name}")
        assert mount.source == str(tmp_path / "caches" / name) and not mount.read_only
        assert Path(mount.source).stat().st_mode & 0o777 == 0o700
        assert os.geteuid() != 0 or Path(mount.source).stat().st_uid == plan.uid
    assert not any(m.destination.startswith(f"{home}/.cache") for m in plan_mirror(spec).mounts)


@pytest.mark.parametrize("home", ["/", "/usr/local", "/proc/1", "relative", "/etc"])
def test_a_home_that_cannot_be_one_is_replaced(spec: MirrorSpec, home: str) -> None:
    spec.home = home
    assert plan_mirror(spec).environment["HOME"] == "/home/user"


def test_another_machines_kernel_is_refused_and_this_ones_is_known(spec: MirrorSpec) -> None:
    assert machine_id() == environment.machine_id()
    with pytest.raises(RequestError) as refused:
        plan_mirror(spec, shared_machine=False)
    assert refused.value.code is ErrorCode.NOT_YET
