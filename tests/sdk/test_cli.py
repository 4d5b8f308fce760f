"""Commands that are programs of another extra, where that extra is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cellburst.cli import main
from cellburst.image import Image
from cellburst_protocol.errors import CellburstError


@pytest.mark.parametrize(("command", "package"), [("worker", "cellburst_worker"), ("gateway", "cellburst_gateway")])
def test_a_missing_extra_is_named(command: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    ran = CliRunner().invoke(main, [command, "--join", "http://127.0.0.1:9"])
    said = " ".join(ran.output.split())
    assert (
        ran.exit_code == 1 and f"{package} is not installed" in said and f"pip install 'cellburst[{command}]'" in said
    )


def test_so_is_the_one_that_functions_in_images_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "cellburst.image_function", raising=False)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(CellburstError, match=r"cloudpickle.*\n?.*cellburst\[jupyter\]"):
        Image.debian_slim().run_function(test_a_missing_extra_is_named).recipe(tmp_path)
