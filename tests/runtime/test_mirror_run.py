"""Mirrors that are really mounted: runsc starts the planned interpreter in the planned file system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_jupyter.environment import collect_environment
from cellburst_protocol.messages import MirrorSpec
from cellburst_runtime.engine import ContainerSpec, Mount
from cellburst_runtime.mirror import MirrorPlan, plan_mirror
from cellburst_runtime.oci import config, write_bundle
from cellburst_runtime.tools import find_runsc

RUNSC = find_runsc(Path("/nonexistent"))
pytestmark = [pytest.mark.gvisor, pytest.mark.skipif(os.geteuid() != 0 or not RUNSC, reason="needs root and runsc")]

SAY = """
import getpass, importlib, json, os, socket, ssl, sys, time
answer = {"executable": sys.executable, "prefix": sys.prefix, "base_prefix": sys.base_prefix, "path": sys.path,
          "uid": os.getuid(), "user": getpass.getuser(), "home": os.path.expanduser("~"), "zone": time.tzname[0],
          "localhost": socket.gethostbyname("localhost"), "certificates": bool(ssl.create_default_context().get_ca_certs()),
          "environment": dict(os.environ), "home_holds": sorted(os.listdir(os.path.expanduser("~")))}
for name in sys.argv[1:]:
    answer[name] = importlib.import_module(name).__file__
with open(os.path.expanduser("~/can-be-written"), "w") as file:
    file.write("x")
try:
    open(os.path.join(sys.prefix, "no"), "w")
    answer["prefix_is_writable"] = True
except OSError:
    answer["prefix_is_writable"] = False
print(json.dumps(answer))
"""


def run(plan: MirrorPlan, folder: Path, *modules: str, code: str = SAY) -> dict[str, object]:
    """Run code in a sandbox that has the planned file system; what it printed."""
    assert RUNSC
    # Short: sockets lie in it.
    state = Path("/tmp") / f"cb-{uuid.uuid4().hex[:8]}"
    name = state.name
    for part in ("var/ctl", "var/in", "var/out", "engine", "work"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    spec = ContainerSpec(
        id=name, folder=folder, arguments=(*plan.python, "-c", code, *modules), environment=plan.environment,
        working_folder=plan.working_folder, mounts=(*plan.mounts, Mount(plan.working_folder, str(folder / "work"))),
        links=plan.links, root_files=plan.root_files, cpu=1, memory_mib=1024, uid=plan.uid, gid=plan.gid,
    )  # fmt: skip
    document = config(spec, cgroup_path="", network_namespace="", uid=plan.uid, gid=plan.gid)
    write_bundle(spec, folder / "engine", document)
    command = [
        str(RUNSC),
        f"--root={state}",
        "--platform=systrap",
        "--network=none",
        "--overlay2=none",
        "--ignore-cgroups",
    ]
    try:
        done = subprocess.run(
            [*command, "run", "--bundle", str(folder / "engine"), name], capture_output=True, text=True, timeout=60
        )
    finally:
        subprocess.run([*command, "delete", "-force", name], capture_output=True)
        shutil.rmtree(state, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    folder = tmp_path / "notebook"
    folder.mkdir()
    return folder


def test_the_kernels_own_environment_imports_there_what_it_imports_here(
    tmp_path: Path, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    plan = plan_mirror(collect_environment(notebook_folder=str(notebook)), cpu=1)
    said = run(plan, tmp_path / "c", "numpy", "pandas", "cellburst_protocol")
    import numpy
    import pandas

    import cellburst_protocol

    assert (said["numpy"], said["pandas"]) == (numpy.__file__, pandas.__file__)
    assert said["cellburst_protocol"] == cellburst_protocol.__file__  # an editable install
    assert (said["executable"], said["prefix"], said["base_prefix"]) == (sys.executable, sys.prefix, sys.base_prefix)
    assert said["uid"] == plan.uid != 0 and said["user"] == plan.environment["USER"]
    assert said["localhost"] == "127.0.0.1" and said["certificates"] is True
    assert said["zone"] == "JST" and said["prefix_is_writable"] is False
    environment = said["environment"]
    assert isinstance(environment, dict) and "MY_API_TOKEN" not in environment and environment["OMP_NUM_THREADS"] == "1"
    # The real home's content is not there: only what leads to mounts below it.
    shown = {
        Path(m.destination).relative_to(plan.home).parts[0]
        for m in plan.mounts
        if m.destination.startswith(f"{plan.home}/")
    }
    assert set(said["home_holds"]) == shown  # type: ignore[call-overload]


@pytest.fixture(params=["/opt", "/tmp"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder in the root file system, and one that is below a memory file system in the container."""
    with tempfile.TemporaryDirectory(dir=request.param) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_venv_behind_links_finds_itself(place: Path, tmp_path: Path, notebook: Path) -> None:
    """venv reached through a linked folder, whose interpreter is a chain of links, with a `.pth` to a linked source."""
    real = place / "data" / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(real)], check=True)
    (place / "linked").symlink_to("data")
    source = place / "elsewhere" / "src"
    source.mkdir(parents=True)
    (source / "thing.py").write_text("x = 1\n")
    (place / "src").symlink_to(source)
    (real / "bin" / "mypython").symlink_to("python")
    (next(real.glob("lib/python3*/site-packages")) / "own.pth").write_text(f"{place / 'src'}\n")
    code = (
        "import msgspec, sys; from cellburst_jupyter.environment import collect_environment as c;"
        f"sys.stdout.buffer.write(msgspec.json.encode(c(notebook_folder={str(notebook)!r})))"
    )
    ours = [p for p in sys.path if p and Path(p).is_dir()]
    executable = str(place / "linked" / "venv" / "bin" / "mypython")
    out = subprocess.run(
        [executable, "-c", f"import sys; before = list(sys.path); sys.path += {ours!r}\n" + code],
        check=True,
        capture_output=True,
    )
    import msgspec

    spec = msgspec.json.decode(out.stdout, type=MirrorSpec)
    assert spec.executable == executable and spec.prefix == str(place / "linked" / "venv")
    said = run(plan_mirror(spec), tmp_path / "c", "thing")
    assert said["thing"] == str(place / "src" / "thing.py")
    assert (said["executable"], said["prefix"], said["base_prefix"]) == (executable, spec.prefix, spec.base_prefix)


def test_an_interpreter_behind_links_in_the_home_runs(
    tmp_path: Path, notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uv and conda lay them out: a linked folder below the home, which is empty in the container."""
    home = tmp_path / "home"
    (home / "pythons").mkdir(parents=True)
    (home / "pythons" / "current").symlink_to(sys.base_prefix)
    venv = home / "venv"
    base = str(home / "pythons" / "current" / "bin" / Path(sys._base_executable).name)  # type: ignore[attr-defined]
    subprocess.run([base, "-m", "venv", "--without-pip", str(venv)], check=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "private.txt").write_text("not to be seen")
    spec = collect_environment(notebook_folder=str(notebook))
    spec.executable, spec.prefix, spec.links = (
        str(venv / "bin" / "python"),
        str(venv),
        [str(venv / "bin" / "python"), base],
    )
    spec.base_prefix, spec.sys_path, spec.extra_paths = str(home / "pythons" / "current"), [], []
    said = run(plan_mirror(spec), tmp_path / "c", "json")
    assert said["prefix"] == str(venv) and said["home"] == str(home)
    assert said["home_holds"] == ["pythons", "venv"]
