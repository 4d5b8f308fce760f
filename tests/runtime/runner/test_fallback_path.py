"""The executor's `sys.path`: the environment's own packages, then the notebook's entries, then the bundle if it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGES = Path(__file__).resolve().parents[3] / "runtime"
SAY = """
import json, os, sys
sys.path[:] = [entry for entry in sys.path if "-packages" not in entry]
sys.path += sys.argv[1:]
from cellburst_runner.fallback_path import extend_path
extend_path()
import importlib
print(json.dumps({"path": sys.path, "left": [n for n in os.environ if n.startswith("CELLBURST_")],
                  "from": {n: getattr(importlib.import_module(n), "__file__", "") for n in ("ipykernel", "other")}}))
"""


def packages(folder: Path, **sources: str) -> str:
    folder.mkdir()
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    return str(folder)


def said(own: str, **environment: str) -> dict[str, Any]:
    variables = {"PATH": os.defpath, "PYTHONPATH": str(PACKAGES), **environment}
    done = subprocess.run([sys.executable, "-S", "-c", SAY, own], capture_output=True, env=variables, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return packages(tmp_path / "bundle", ipykernel="", cloudpickle="", other="")


@pytest.mark.parametrize(
    "own", [{}, {"ipykernel": ""}, {"cloudpickle": ""}, {"ipykernel": "import nothing_like_it", "cloudpickle": ""}]
)
def test_the_bundle_is_last_and_only_a_fallback(tmp_path: Path, bundle: str, own: dict[str, str]) -> None:
    site = packages(tmp_path / "site", other="", **own)
    added = packages(tmp_path / "added")
    if "nothing_like_it" in own.get("ipykernel", ""):
        (tmp_path / "bundle" / "nothing_like_it.py").write_text("")
    found = said(site, CELLBURST_BUNDLE=bundle, CELLBURST_SYS_PATH=os.pathsep.join([site, added, ""]))
    assert found["path"][-3:] == [site, added, bundle] and found["left"] == []
    assert found["from"]["other"] == f"{site}/other.py"
    assert found["from"]["ipykernel"] == f"{site if own.get('ipykernel') is not None else bundle}/ipykernel.py"


def test_an_environment_that_has_both_never_sees_it(tmp_path: Path, bundle: str) -> None:
    site = packages(tmp_path / "site", ipykernel="", cloudpickle="", other="")
    found = said(site, CELLBURST_BUNDLE=bundle)
    assert bundle not in found["path"] and found["left"] == []


def test_the_notebooks_own_entries_come_before_it(tmp_path: Path, bundle: str) -> None:
    """A kernel that was started with ipykernel on a path that it was given at run time."""
    added = packages(tmp_path / "added", ipykernel="", cloudpickle="", other="")
    found = said(str(tmp_path), CELLBURST_BUNDLE=bundle, CELLBURST_SYS_PATH=added)
    assert found["path"][-1] == added and found["from"]["ipykernel"] == f"{added}/ipykernel.py"
