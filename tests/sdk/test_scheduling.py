"""Schedules as a person asks for them: times, the frozen folder, what a run would stumble over, services."""

from __future__ import annotations

import json
import os
import plistlib
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from cellburst import service as services
from cellburst.cli import main
from cellburst.config import settings
from cellburst.preflight import Surroundings, preflight
from cellburst.schedule_freeze import freeze
from cellburst.scheduling import Asked, draft, notify_of, parameter_of, when_of
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import MirrorSpec

MIRROR = MirrorSpec(executable="/usr/bin/python3", python_version="3.11.7", prefix="/usr", base_prefix="/usr")


def book(*cells: str) -> dict[str, Any]:
    made = [
        {"cell_type": "code", "metadata": {}, "source": text, "outputs": [], "execution_count": None} for text in cells
    ]
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": made}


def save(folder: Path, *cells: str) -> Path:
    path = folder / "report.ipynb"
    path.write_text(json.dumps(book(*cells)))
    return path


# -- what is asked ------------------------------------------------------------------------------------------------------


def test_times() -> None:
    assert when_of(Asked(cron="0 7 * * *", timezone="Asia/Tokyo")).cron == "0 7 * * *"
    assert when_of(Asked(every="90m")).every_seconds == 5400
    assert when_of(Asked(at="2026-07-01T12:00", timezone="Europe/Berlin")).at_unix_seconds == 1782900000
    assert when_of(Asked(at="2026-07-01T12:00+00:00")).at_unix_seconds == 1782907200


@pytest.mark.parametrize(
    ("asked", "said"),
    [(Asked(), "no time"), (Asked(cron="* * * * *", every="1h"), "cron and every"), (Asked(at="tomorrow"), "no moment"),
     (Asked(cron="* * * * *", timezone="Berlin"), "Europe/Berlin"), (Asked(every="soon"), "no.* a duration")],
)  # fmt: skip
def test_wrong_times(asked: Asked, said: str) -> None:
    with pytest.raises(CellburstError, match=said):
        when_of(asked)


def test_parameters_and_whom_to_tell() -> None:
    assert (
        parameter_of("a=1") == ("a", 1)
        and parameter_of("b=[1, null]") == ("b", [1, None])
        and parameter_of("c=x=y") == ("c", "x=y")
    )
    assert parameter_of("d=NaN") == ("d", "NaN") and parameter_of('e="7"') == ("e", "7")
    for wrong in ("a", "1a=2", "=3"):
        with pytest.raises(CellburstError, match="sets no parameter"):
            parameter_of(wrong)
    assert notify_of("ann@example.org:failure").on_success is False and notify_of("https://x/y").channel == "webhook"
    assert notify_of("jupyter").channel == "jupyter" and notify_of("https://x:8443").target == "https://x:8443"


def test_modal_cells_have_machines_of_their_own_or_share_the_first_line_s(tmp_path: Path) -> None:
    path = save(tmp_path, "x = 1", "%%modal gpu=A100 memory=8GiB secrets=hf,db:KEY volumes=/data:sets\ny = x")
    own = draft(path, MIRROR, Asked(every="1d"))
    assert own.spec.modal_cells == "own" and own.spec.resources.gpus == () and own.notes == []
    assert own.spec.cell_secrets == ["db", "hf"] and own.spec.cell_volumes == ["sets"] and own.spec.secrets == []
    same = draft(path, MIRROR, Asked(every="1d", modal_cells="same"))
    assert str(same.spec.resources.gpus[0]) == "A100" and same.spec.resources.memory_mib == 8192
    assert "cell 2" in same.notes[0] and same.spec.cell_secrets == []
    for how in ("own", "same"):
        given = draft(path, MIRROR, Asked(every="1d", gpu="T4", modal_cells=how))
        assert [str(gpu) for gpu in given.spec.resources.gpus] == ["T4"]
    with pytest.raises(CellburstError, match="no code cell"):
        draft(save(tmp_path), MIRROR, Asked(every="1d"))


def test_an_environment_without_cellburst_has_no_machines_for_cells(tmp_path: Path) -> None:
    path = save(tmp_path, "x = 1", "%%modal gpu=A100\ny = x")
    bare = msgspec.structs.replace(MIRROR, packages={"numpy": "2.0"})
    made = draft(path, bare, Asked(every="1d"))
    assert made.spec.modal_cells == "same" and str(made.spec.resources.gpus[0]) == "A100"
    assert "has no cellburst" in made.notes[0]
    full = msgspec.structs.replace(MIRROR, packages={"cellburst": "1.0"})
    assert draft(path, full, Asked(every="1d")).spec.modal_cells == "own"


def test_what_the_notebook_s_metadata_names_counts_for_its_modal_cells(tmp_path: Path) -> None:
    path = tmp_path / "report.ipynb"
    made = book("%%modal gpu=A100\nx = 1", "%%modal secrets=none\nx = 1")
    made["metadata"] = {"cellburst": {"volumes": {"/data": "sets"}, "secrets": ["hf"]}}
    path.write_text(json.dumps(made))
    spec = draft(path, MIRROR, Asked(every="1d")).spec
    assert spec.cell_secrets == ["hf"] and spec.cell_volumes == ["sets"]


# -- frozen -------------------------------------------------------------------------------------------------------------


def test_the_folder_goes_along_without_what_no_run_needs_or_may_have(tmp_path: Path) -> None:
    path = save(tmp_path, "1")
    for name in ("data/a.csv", "helper.py", ".git/config", "venv/pyvenv.cfg", "venv/x.py", "__pycache__/x.pyc", ".env", ".ssh/id_rsa", "server.pem",
                 "deep/.aws/credentials", "other.ipynb", ".ipynb_checkpoints/report-checkpoint.ipynb", "key.pub"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "inside.csv").symlink_to("data/a.csv")
    (tmp_path / "sneaky").symlink_to(".env")
    (tmp_path / "run.sh").write_text("x")
    (tmp_path / "run.sh").chmod(0o755)
    frozen = freeze(path)
    assert [file.path for file in frozen.files] == ["data/a.csv", "helper.py", "inside.csv", "key.pub", "run.sh"]
    assert sorted(frozen.secret) == [".env", ".ssh", "deep/.aws", "server.pem"] and sorted(frozen.links) == [
        "out",
        "sneaky",
    ]
    assert frozen.files[-1].executable and not frozen.files[0].executable
    assert [file.path for file in freeze(path, "python_files").files] == ["helper.py"] and freeze(
        path, "none"
    ).files == []


def test_a_folder_that_is_too_large_says_what_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "1")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.bin").write_bytes(b"x" * 100)
    monkeypatch.setattr("cellburst.schedule_freeze.MAX_FOLDER_BYTES", 50)
    monkeypatch.setattr(
        "cellburst.schedule_freeze._hash_file", lambda _: pytest.fail("it is refused before it is read")
    )
    with pytest.raises(CellburstError, match=r"1 files and 100 B, most of it images \(100 B\)") as caught:
        freeze(path)
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert (
        caught.value.info.allowed == "10,000 files and 50 B" and "files beside the notebook" in caught.value.info.next
    )
    monkeypatch.setattr("cellburst.schedule_freeze.MAX_SEEN", 0)
    with pytest.raises(CellburstError, match="more than 0 files"):
        freeze(path)
    with pytest.raises(CellburstError, match="cannot be read"):
        freeze(tmp_path / "gone.ipynb")


# -- preflight ----------------------------------------------------------------------------------------------------------


def found(*cells: str, network: str = "outbound", gpu: str = "", own: bool = False) -> list[str]:
    around = Surroundings(
        "/home/ann/work", lambda path: path.startswith("/home/ann/work/"), frozenset({"helper"}), lambda module: module in ("numpy", "requests"),
        frozenset({"HOME"}), network, gpu, own_machines=own, cell_variables=frozenset({"HOME", "HF_TOKEN"}),
    )  # fmt: skip
    return [f"{finding.kind} {finding.line()}" for finding in preflight(book(*cells), around)]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = input('name?')", "problem cell 1: input() waits for a person"), ("import getpass\ngetpass.getpass()", "getpass"),
        ("breakpoint()", "leave it out"), ("import os\nos.environ['API_KEY']", "problem cell 1: the variable API_KEY is not set"),
        ("import os\nos.getenv('TOKEN')", "hint cell 1: the variable TOKEN"), ("open('/home/bob/x.csv')", "'/home/bob/x.csv' is not shown"),
        ("p = '~/data/x.csv'", "is not shown to a run"), ("import nonesuch", "'nonesuch' is neither installed"),
        ("def f(:", "cannot be read"), ("%time x = input()", ""), ("%%bash\necho", ""),
    ],
)  # fmt: skip
def test_what_a_run_would_stumble_over(code: str, said: str) -> None:
    lines = found(code)
    assert (any(said in line for line in lines) and len(lines) == 1) if said else lines == []


def test_what_is_fine_is_not_told() -> None:
    code = """import os, helper, numpy as np, json
home = os.environ["HOME"]
open("/home/ann/work/x.csv")
os.environ["SET"] = "1"
try:
    import nonesuch
except ImportError:
    pass
!echo hi
%matplotlib inline
url = "https://example.org/home/x"
"""
    assert found(code) == []


def test_cells_that_need_a_network_it_will_not_have() -> None:
    assert "problem cell 1: a command" in found("!pip install x", network="none")[0]
    assert "requests may need a network" in found("import requests", network="none")[0]
    assert found("import requests\n!pip install x") == []


def test_modal_cells_among_plain_ones_are_told_by_number() -> None:
    lines = found("x = 1", "%%modal gpu=A100\ny = x", gpu="T4")
    assert "cells 2 are %%modal cells" in lines[0] and "gpu=A100; the run has gpu=T4" in lines[1]
    assert found("%%modal gpu=A100\ny = 1", gpu="A100") == []


def test_modal_cells_on_machines_of_their_own_have_their_own_surroundings() -> None:
    token = "import os\nos.environ['HF_TOKEN']"
    assert found("x = 1", f"%%modal gpu=A100\n{token}", gpu="T4", own=True) == []
    assert "HF_TOKEN is not set" in found(token, own=True)[0]
    assert found("%%modal\n!pip install x", network="none", own=True) == []
    assert "needs a network" in found("%%modal network=none\n!pip install x", own=True)[0]
    assert "two are needed at once" in found("x = 1", "%%modal gpu=T4\ny = x", gpu="T4", own=True)[0]


# -- services -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {
        "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "CELLBURST_DATA": str(tmp_path / "da ta%"),
        "CELLBURST_RUN": str(tmp_path / "run"), "CELLBURST_CONFIG": str(tmp_path / "none.toml"), "CELLBURST_ENGINE": "process", "PATH": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path


def test_the_unit_is_written_shown_and_removed(home: Path) -> None:
    path = home / "config/systemd/user/cellburst.service"
    said = CliRunner().invoke(main, ["service", "install"])
    assert said.exit_code == 0 and "there is no systemctl here" in said.output, said.output
    text = path.read_text()
    assert "Restart=on-failure" in text and "WantedBy=default.target" in text and "da ta%%" in text
    assert "installed" in CliRunner().invoke(main, ["service", "status"]).output
    assert "removed" in CliRunner().invoke(main, ["service", "uninstall"]).output and not path.exists()
    assert "not installed" in CliRunner().invoke(main, ["service", "status"]).output
    assert "no service" in CliRunner().invoke(main, ["service", "uninstall"]).output


def test_the_command_of_the_unit_starts_the_gateway(home: Path) -> None:
    found = services.service(settings(), "linux")
    line = next(one for one in found.text.decode().splitlines() if one.startswith("ExecStart=")).removeprefix(
        "ExecStart="
    )
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]
    words[words.index("--local-worker")] = "--no-local-worker"  # a worker of its own would only take time
    process = subprocess.Popen(words, env={**os.environ, "PATH": "/usr/bin:/bin"})
    try:
        announced = home / "run/gateway.json"
        end = time.monotonic() + 60
        while not announced.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert json.loads(announced.read_text())["pid"] == process.pid
        assert json.loads(announced.read_text())["data_folder"] == str(home / "da ta%")
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_agent_of_macos_has_the_same_command(home: Path) -> None:
    found = services.service(settings(), "darwin")
    plist = plistlib.loads(found.text)
    assert (
        plist["ProgramArguments"] == services.arguments(settings()) and plist["ProgramArguments"][0] == sys.executable
    )
    assert plist["RunAtLoad"] is True and found.path == home / "Library/LaunchAgents/dev.cellburst.gateway.plist"
    with pytest.raises(CellburstError, match="Linux and macOS"):
        services.service(settings(), "win32")
