"""Environments without ipykernel: the true runner on a real engine, its executor on the bundle of that Python version.

The bundles are installed for real, once for this file. This Python's own always; those of other minor versions where this
machine has such an interpreter and the package index can be reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cellburst_jupyter import names_pickle
from cellburst_jupyter.names_read import read_cell
from cellburst_jupyter.names_values import NameSync
from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, PlatformError, RequestError
from cellburst_protocol.resources import Resources
from cellburst_runtime.runtime import Runtime
from cellburst_runtime.tools import find_runsc
from tests.fakes.containers import traces
from tests.fakes.runner_harness import Cell, FakeWorker

RUN = f"test-{secrets.token_hex(4)}"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
GVISOR = [
    pytest.mark.gvisor,
    pytest.mark.skipif(os.geteuid() != 0 or not find_runsc(Path("/nonexistent")), reason="needs root and runsc"),
]
NO_INDEX = re.compile(
    r"dns error|connect|Failed to fetch|timed out|unreachable|network was disabled|no answer", re.IGNORECASE
)
DESCRIBE = "import json, sys; print(json.dumps([sys.version.split()[0], sys.base_prefix, sys.path[1:]]))"


def interpreter(minor: str) -> str:
    """A Python of this minor version on this machine, from where people put them; skips the test where there is none."""
    if minor == HERE:
        return sys.executable
    known = [*Path.home().glob(f".pyenv/versions/{minor}.*/bin/python{minor}")]
    known += Path.home().glob(f".local/share/uv/python/cpython-{minor}.*/bin/python{minor}")
    if found := shutil.which(f"python{minor}"):
        known.append(Path(found))
    for path in known:
        said = subprocess.run(
            [path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"], capture_output=True
        )
        if said.stdout.decode().strip() == minor:
            return str(path)
    pytest.skip(f"there is no Python {minor} on this machine")


def bare(minor: str, folder: Path, notebook: Path) -> m.MirrorSpec:
    """A virtual environment with nothing in it, as its own kernel would describe it."""
    subprocess.run([interpreter(minor), "-m", "venv", "--without-pip", str(folder)], check=True)
    executable = str(folder / "bin" / "python")
    out = subprocess.run([executable, "-c", DESCRIBE], check=True, capture_output=True, cwd=notebook)
    version, base_prefix, path = json.loads(out.stdout)
    return m.MirrorSpec(
        executable=executable, python_version=version, prefix=str(folder), base_prefix=base_prefix, sys_path=path,
        notebook_folder=str(notebook), links=[executable, os.path.realpath(executable)], home=str(folder.parent / "home"),
    )  # fmt: skip


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    for name in ("home", "nb"):
        (tmp_path / name).mkdir()
    return tmp_path / "nb"


@pytest.fixture(autouse=True)
def impatient_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a way to the index it must give up before a test's own time is over."""
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "20")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for the file: each bundle is made once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
async def runtime(request: pytest.FixtureRequest, tmp_path: Path, data_folder: Path) -> AsyncIterator[Runtime]:
    made = await Runtime.create(run_folder=tmp_path / "r", data_folder=data_folder, engine=request.param)
    yield made
    await made.collect_garbage()
    await made.close()


@contextlib.asynccontextmanager
async def container(runtime: Runtime, image: m.MirrorSpec) -> AsyncIterator[FakeWorker]:
    """A container of this mirror with its executor ready; nothing of it is left afterwards."""
    request = m.StartContainer(
        container=f"{RUN}-{secrets.token_hex(2)}", lease="l", epoch=1, session="s", notebook="n", gpus=[], image=image,
        resources=Resources(memory_mib=1024, network="none"),
    )  # fmt: skip
    try:
        prepared = await runtime.prepare(request)
    except PlatformError as why:
        if ".".join(image.python_version.split(".")[:2]) != HERE and NO_INDEX.search(str(why)):
            pytest.skip(f"the package index cannot be reached: {why}")
        raise
    worker = FakeWorker(prepared.folder / "var")
    try:
        await worker.listen()
        running = await prepared.start()
        await worker.wait_for(m.RunnerHello)
        start = m.RunnerStart(
            environment=running.environment,
            folder=running.working_folder,
            python=running.python,
            matplotlib_backend="module://matplotlib_inline.backend_inline",
        )
        worker.send(start)
        await worker.wait_for(m.RunnerReady)
        yield worker
    finally:
        await prepared.remove()
        worker.close()
    assert traces(request.container, prepared.folder) == []


CASES = [pytest.param(HERE, "gvisor", marks=GVISOR), (HERE, "process")]
CASES += [pytest.param(minor, "gvisor", marks=GVISOR) for minor in ("3.9", "3.10", "3.13") if minor != HERE]


@pytest.mark.parametrize(("minor", "runtime"), CASES, indirect=["runtime"])
async def test_a_bare_environment_runs_cells(runtime: Runtime, minor: str, tmp_path: Path, notebook: Path) -> None:
    image = bare(minor, tmp_path / "venv", notebook)
    async with container(runtime, image) as worker:
        cell = await worker.run("import sys\nprint(sys.version_info[:2], sys.prefix)\n6 * 7")
        assert cell.text() == f"({minor.replace('.', ', ')}) {tmp_path / 'venv'}\n" and cell.text("stderr") == ""
        assert cell.messages("execute_result")[0]["data"] == {"text/plain": "42"}
        cell = await worker.run(
            "from IPython.display import HTML\ndisplay(HTML('<b>x</b>'))\nimport time\nawait __import__('asyncio').sleep(0)"
        )
        assert cell.messages("display_data")[0]["data"]["text/html"] == "<b>x</b>" and cell.reply["status"] == "ok"
        cell = await worker.run("def f():\n    return 1 / 0\nf()")
        assert cell.messages("error")[0]["ename"] == "ZeroDivisionError" and cell.done.status == "error"
        cell = await worker.run("import matplotlib")
        assert cell.messages("error")[0]["ename"] == "ModuleNotFoundError"
        # Last on the path, and told to nobody.
        cell = await worker.run(
            "import os, ipykernel, cloudpickle, dill\n"
            "print(sys.path[-1] in ipykernel.__file__, [n for n in os.environ if n in ('CELLBURST_BUNDLE', 'CELLBURST_SYS_PATH')])"
        )
        assert cell.text() == "True []\n"
        if runtime.engines[0].isolates:
            cell = await worker.run(
                "for line in open('/proc/mounts'):\n"
                "    place, _, options = line.split()[1:4]\n"
                "    if place == sys.path[-1]: print(place, options.split(',')[0])"
            )
            assert cell.text() == f"/cellburst/bundle/{minor} ro\n"


@pytest.mark.parametrize("runtime", [pytest.param("gvisor", marks=GVISOR)], indirect=True)
async def test_an_environment_with_ipykernel_gets_no_bundle(runtime: Runtime, notebook: Path) -> None:
    image = m.MirrorSpec(
        executable=sys.executable, python_version=platform.python_version(), prefix=sys.prefix, base_prefix=sys.base_prefix,
        notebook_folder=str(notebook), sys_path=[p for p in sys.path if os.path.isdir(p)],
    )  # fmt: skip
    async with container(runtime, image) as worker:
        cell = await worker.run("import sys\nprint([p for p in sys.path if 'bundle' in p])")
        assert cell.text() == "[]\n"


@pytest.fixture
def kernel_names(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The kernel's namespace, of its `__main__`."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main.__dict__


@pytest.mark.parametrize("minor", [minor for minor in ("3.13", "3.12", "3.9") if minor != HERE][:2])
@pytest.mark.parametrize("runtime", [pytest.param("gvisor", marks=GVISOR)], indirect=True)
async def test_names_between_two_minor_versions(
    runtime: Runtime, minor: str, tmp_path: Path, notebook: Path, kernel_names: dict[str, object]
) -> None:
    exec("d = {'k': [1, 2.5, 'x', None]}\ndef f(): return 1\nclass C: pass", kernel_names)
    image = bare(minor, tmp_path / "venv", notebook)
    sync = NameSync(folder=notebook)
    async with container(runtime, image) as worker:
        there = (await worker.wait_for(m.RunnerHello)).message
        assert isinstance(there, m.RunnerHello) and there.python_version.startswith(minor)

        async def run(code: str, python: str) -> Cell:
            ready = sync.prepare(read_cell(code, kernel_names), kernel_names, python=python)
            return await worker.run(
                code, [bytes(b) for b in ready.buffers], names=ready.groups, used=ready.used, bound=ready.bound,
                python_version=platform.python_version(),
            )  # fmt: skip

        for code in ("r = f()", "r = C()"):
            with pytest.raises(RequestError) as caught:
                await run(code, there.python_version)
            assert caught.value.code is ErrorCode.PYTHON_DIFFERS
            # The container refuses it too, before the cell: the interpreter would crash on it.
            cell = await run(code, "")
            assert cell.messages("error")[0]["ename"] == "PythonDiffers" and not cell.text()
            assert not any(isinstance(e.message, m.CellStarted) for e in cell.events)
        cell = await run("d['k'].append(3)\ndef g(): return d['k']\nn = len(g())", there.python_version)
        assert cell.done.status == "ok", cell.reply
        assert {n: r.why for r in cell.done.stayed for n in [r.name]} == {"g": "python_differs"}
        home = home_values(cell, kernel_names)
        assert home["n"] == 5 and home["d"]["k"] == [1, 2.5, "x", None, 3]
        assert (await worker.run("g()[-1]")).messages("execute_result")[0]["data"]["text/plain"] == "3"


def home_values(cell: Cell, names: dict[str, object]) -> dict[str, Any]:
    """What came home with a cell, read as the kernel reads it."""
    found: dict[str, Any] = {}
    done = next(e for e in cell.events if isinstance(e.message, m.CellDone))
    buffers: Sequence[Any] = done.buffers[1:]
    for group in cell.done.home:
        parts, buffers = buffers[: len(group.parts)], buffers[len(group.parts) :]
        values, meta, _ = names_pickle.read(bytes(parts[0]), [bytearray(p) for p in parts[1:]], names, False)
        assert set(meta) >= {"token", "in_place"}
        found |= values
    return found
