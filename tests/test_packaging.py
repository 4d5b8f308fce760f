"""The built wheel in an environment of a user's own: `%%modal` works in its kernels with no other step."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from .test_imports import PACKAGES, files, imported

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="python3")
manager.start_kernel()
client = manager.blocking_client()
client.start_channels()
client.wait_for_ready(timeout=60)
def run(code):
    texts = []
    def hook(m):
        if m["msg_type"] == "stream": texts.append(m["content"]["text"])
        if m["msg_type"] == "error": texts.append("ERROR " + "\\n".join(m["content"]["traceback"]))
    client.execute_interactive(code, output_hook=hook, timeout=60, allow_stdin=False)
    return "".join(texts)
sent = run("import cellburst_jupyter; number = 6")
print(run("%%modal card=off\\nanswer = number * 7\\nprint('there', answer)"))
print(run("print('here', answer)"))
print(run("print(cellburst_jupyter.__file__)"))
manager.shutdown_kernel(now=True)
client.stop_channels()
"""

# Which extras a package is installed with. The runner lives in containers, with what their image has: see test_imports.py.
EXTRAS = {
    "cellburst_protocol": [], "cellburst": [], "cellburst_runtime": ["worker"], "cellburst_worker": ["worker"],
    "cellburst_gateway": ["gateway"], "cellburst_jupyter": ["jupyter"],
}  # fmt: skip
# What a declared one brings and is its own interface, or what is said to be missing where it is.
BROUGHT = {"IPython": "ipykernel", "comm": "ipykernel", "traitlets": "ipykernel", "tornado": "ipykernel",
           "jupyter_server": "jupyterlab", "requests": "hvac"}  # fmt: skip
# Volumes in a bucket (the extra `s3`), and a function as a step of an image (the extra `jupyter`).
SAID_TO_BE_MISSING = {("cellburst_gateway", "fsspec"), ("cellburst", "cloudpickle")}


def plain(requirement: str) -> str:
    """The distribution that a requirement names, as indexes compare names."""
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("package", EXTRAS)
def test_all_that_a_package_imports_is_declared(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [r for e in EXTRAS[package] for r in project["optional-dependencies"][e]]
    declared = {plain(requirement) for requirement in asked}
    by_module = importlib.metadata.packages_distributions()
    for path in files(package):
        for module in sorted(imported(path, package) - set(sys.stdlib_module_names) - set(PACKAGES)):
            if (package, module) in SAID_TO_BE_MISSING:
                continue
            ours = {plain(name) for name in by_module[module]}
            bringer = BROUGHT.get(module, "")
            if bringer in declared and not ours & declared:
                assert ours & {plain(r) for r in importlib.metadata.requires(bringer) or []}, f"{bringer}: {module}"
                continue
            assert ours & declared, f"{path.relative_to(ROOT)} imports {module}, which its extras do not declare"


def test_every_package_is_looked_at() -> None:
    assert set(EXTRAS) | {"cellburst_runner"} == set(PACKAGES)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_has_the_packages_and_the_autoload_file_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("cellburst", "cellburst_protocol", "cellburst_runtime", "cellburst_runner", "cellburst_worker",
                    "cellburst_gateway", "cellburst_jupyter"):  # fmt: skip
        assert f"{package}/__init__.py" in names
    assert any(n.endswith("data/etc/ipython/ipython_kernel_config.json") for n in names)
    assert any(n.endswith("prices.toml") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "bench/"))]
    assert any(n.endswith("data/etc/jupyter/jupyter_server_config.d/cellburst.json") for n in names)


@pytest.mark.skipif(shutil.which("node") is None, reason="the panel is built with Node 20.19 or later")
def test_the_wheel_has_the_built_panel_so_that_its_users_need_no_node(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    place = "data/share/jupyter/labextensions/@cellburst/labextension/"
    names = {n.partition(place)[2] for n in archive.namelist() if place in n}
    assert {"package.json", "install.json", "schemas/@cellburst/labextension/plugin.json"} <= names
    assert any(n.startswith("static/remoteEntry") for n in names)
    assert not [
        n
        for n in archive.namelist()
        if n.endswith((".ts", ".tsx", ".stamp")) or "/cellburst_jupyter/labextension/" in n
    ]


@pytest.mark.timeout(240)
def test_modal_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """The venv gets the wheel's own files; its dependencies come from the environment that runs the tests."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    subprocess.run(
        [str(uv), "pip", "install", "-q", "--python", str(python), "--no-deps", str(wheel)], check=True, timeout=100
    )
    here = subprocess.run([sys.executable, "-c", "import msgspec, pathlib; print(pathlib.Path(msgspec.__file__).parent.parent)"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    site = next(home.glob("lib/python3*/site-packages"))
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    for entry in Path(here).iterdir():
        if not entry.name.startswith(("cellburst", "_cellburst", "__editable__")):
            (borrowed / entry.name).symlink_to(entry)
    (site / "dependencies.pth").write_text(str(borrowed) + "\n")
    environment = {**os.environ, "CELLBURST_DATA": str(tmp_path / "data"), "CELLBURST_RUN": str(tmp_path / "run"),
                   "CELLBURST_CONFIG": str(tmp_path / "none"), "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}  # fmt: skip
    try:
        ran = subprocess.run(
            [str(python), "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert "there 42" in ran.stdout and "here 42" in ran.stdout, ran.stdout + ran.stderr
        assert str(site) in ran.stdout, "the wheel's own code ran"
    finally:
        subprocess.run([str(python), "-m", "cellburst", "down"], env=environment, timeout=60, check=False)
