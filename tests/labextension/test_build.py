"""The panel's sources: types that agree with the wire, its models' own tests, a build that is small and names no registry."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT = ROOT / "jupyter_ext" / "cellburst_jupyter" / "labextension"
SOURCES = sorted((ROOT / "labextension").glob("s*/**/*.*"))
MAX_COMPRESSED_BYTES = 200_000
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node 20.19 or later")


def test_the_types_are_those_of_the_protocol() -> None:
    spec = importlib.util.spec_from_file_location("protocol_types", ROOT / "scripts" / "protocol_types.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "labextension/src/protocol.ts").read_text() == module.text(), "run python scripts/protocol_types.py"


@needs_node
@pytest.mark.timeout(300)
def test_the_models_pass_their_own_tests() -> None:
    ran = subprocess.run(
        ["node", "node_modules/jest/bin/jest.js", "--ci", "--silent"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "NODE_OPTIONS": "", "FORCE_COLOR": "0"}, timeout=280, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = re.search(r"Tests:\s+(\d+) passed, \1 total", ran.stderr)
    assert found and int(found[1]) >= 24, ran.stderr[-2000:]


@needs_node
def test_the_build_is_small() -> None:
    scripts = list((BUILT / "static").glob("*.js"))
    assert any(path.name.startswith("remoteEntry") for path in scripts)
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in scripts) <= MAX_COMPRESSED_BYTES


@needs_node
def test_jupyterlabs_own_packages_are_not_built_in() -> None:
    """A second copy of one would make the plugin stay silent: its tokens are others."""
    shared = json.loads((BUILT / "package.json").read_text())["dependencies"]
    text = "".join(path.read_text() for path in (BUILT / "static").glob("*.js"))
    assert {"@jupyterlab/application", "@lumino/widgets", "react"} <= set(shared)
    assert "jp-LabShell" not in text and "react.production" not in text


def test_colours_are_the_themes() -> None:
    css = "".join(path.read_text() for path in (ROOT / "labextension/style").glob("*.css"))
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|\brgba?\(|\bhsla?\(", css)
    for path in SOURCES:
        if path.suffix == ".tsx":
            assert "dangerouslySetInnerHTML" not in path.read_text() and "innerHTML" not in path.read_text()


def test_no_address_of_a_registry_is_written_down() -> None:
    for name in ("yarn.lock", ".yarnrc.yml", "package.json"):
        assert "://" not in (ROOT / name).read_text().replace("npm:", "")
