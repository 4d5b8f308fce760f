"""Who may import whom (docs/architecture.md), what a core may not touch, and where nothing is ever unpickled."""

import ast
import gc
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
    "cellburst_protocol/clock.py",
    "cellburst_gateway/placement.py", "cellburst_gateway/prices.py", "cellburst_gateway/ledger.py", "cellburst_gateway/budget.py",
    "cellburst_gateway/park_rules.py", "cellburst_gateway/scheduler.py", "cellburst_gateway/notebook_out.py",
    "cellburst_protocol/schedules.py", "cellburst_protocol/notebooks.py",
    "cellburst_worker/leases.py", "cellburst_worker/rungs.py", "cellburst_worker/template_policy.py", "cellburst_worker/warm_policy.py",
    "cellburst_jupyter/magic_line.py", "cellburst/machine_steps.py", "cellburst/machine_look.py",
]  # fmt: skip
IMPURE = {"asyncio", "socket", "time", "random", "threading", "subprocess", "datetime"}
OPENERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
# Imports of the image's own packages that the runner makes inside functions, where user code runs.
RUNNER_IMAGE = {"IPython", "ipykernel", "jupyter_client", "traitlets", "zmq", "tornado", "cloudpickle", "dill", "numpy", "blake3",
                "comm", "ipywidgets", "matplotlib", "torch", "matplotlib_inline", "pandas"}  # fmt: skip


def files(package: str) -> list[Path]:
    return sorted((ROOT / PACKAGES[package][0] / package).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file. No garbage is collected meanwhile: what an earlier test left may parse something itself
    as it goes (the traceback of a warning does), and Python 3.11 then fails here (SystemError, gh-106905)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        if was_enabled:
            gc.enable()


def imported(path: Path, package: str, *, top_level_only: bool = False) -> set[str]:
    tree = parsed(path)
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
        openers = OPENERS - {"cloudpickle"} if path.name == "image_function.py" else OPENERS  # it pickles only
        assert not imported(path, package) & openers, path
        assert openers == OPENERS or "load" not in path.read_text()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, f"{path}:{node.lineno}"


def test_no_shell_is_ever_used() -> None:
    for package in PACKAGES:
        for path in files(package):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.keyword) and node.arg == "shell":
                    assert not (isinstance(node.value, ast.Constant) and node.value.value is True), (
                        f"{path}:{node.lineno}"
                    )


def test_garbage_of_earlier_tests_does_not_disturb_the_parsing() -> None:
    ended: list[bool] = []

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ended.append(True)
            deeper(20)

    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        else:
            ast.parse("x = 1")

    before = gc.get_threshold()
    gc.set_threshold(50)
    try:
        Garbage()
        parsed(Path(__file__))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert ended
