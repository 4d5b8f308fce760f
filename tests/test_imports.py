"""Who may import whom (docs/architecture.md), what a core may not touch, and where nothing is ever unpickled."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "cellburst_protocol": ("protocol", set()),
    "cellburst": ("sdk", {"cellburst_protocol"}),
    "cellburst_runtime": ("runtime", {"cellburst_protocol"}),
    "cellburst_runner": ("runtime", set()),
    "cellburst_worker": ("gpu_worker", {"cellburst_protocol", "cellburst_runtime"}),
    "cellburst_gateway": ("kernel_gateway", {"cellburst_protocol"}),
    "cellburst_jupyter": ("jupyter_ext", {"cellburst_protocol", "cellburst"}),
}
# Pure cores: events in, instructions out, time and ids passed in.
CORES = [
    "cellburst_protocol/framing.py", "cellburst_protocol/states.py", "cellburst_protocol/resources.py", "cellburst_protocol/mac.py",
    "cellburst_gateway/placement.py", "cellburst_gateway/prices.py", "cellburst_gateway/ledger.py", "cellburst_gateway/budget.py",
    "cellburst_worker/leases.py", "cellburst_jupyter/magic_line.py",
]  # fmt: skip
IMPURE = {"asyncio", "socket", "time", "random", "threading", "subprocess", "datetime"}
OPENERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
# Imports of the image's own packages that the runner makes inside functions, where user code runs.
RUNNER_IMAGE = {"IPython", "ipykernel", "jupyter_client", "traitlets", "zmq", "tornado", "cloudpickle", "dill", "numpy", "blake3",
                "comm", "ipywidgets", "matplotlib", "torch", "matplotlib_inline", "pandas"}  # fmt: skip


def files(package: str) -> list[Path]:
    return sorted((ROOT / PACKAGES[package][0] / package).rglob("*.py"))


def imported(path: Path, package: str, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names - {package}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = PACKAGES[package][1]
    for path in files(package):
        ours = imported(path, package) & set(PACKAGES)
        assert ours <= allowed, f"{path.relative_to(ROOT)} imports {ours - allowed}"


def test_the_runner_is_standard_library_only() -> None:
    for path in files("cellburst_runner"):
        foreign = imported(path, "cellburst_runner") - set(sys.stdlib_module_names) - {"__future__"}
        if path.name.startswith(("cell_", "values")):
            foreign -= RUNNER_IMAGE  # executors use the image's own packages
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("core", CORES)
def test_a_core_does_no_input_or_output(core: str) -> None:
    package = core.partition("/")[0]
    path = ROOT / PACKAGES[package][0] / core
    assert not imported(path, package) & IMPURE


@pytest.mark.parametrize(
    "package", ["cellburst_gateway", "cellburst_worker", "cellburst_runtime", "cellburst_protocol", "cellburst"]
)
def test_nothing_is_unpickled_outside_kernel_and_executor(package: str) -> None:
    for path in files(package):
        assert not imported(path, package) & OPENERS, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, f"{path}:{node.lineno}"


def test_no_shell_is_ever_used() -> None:
    for package in PACKAGES:
        for path in files(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "shell":
                    assert not (isinstance(node.value, ast.Constant) and node.value.value is True), (
                        f"{path}:{node.lineno}"
                    )
