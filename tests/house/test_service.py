"""The service is installed while a gateway runs, as it mostly is: a real gateway, and a stand-in for the service manager that starts
what the unit says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.harness import House, house

pytestmark = [pytest.mark.house, pytest.mark.timeout(180)]

SYSTEMCTL = """#!{python}
import json, os, shlex, signal, subprocess, sys, time
from pathlib import Path
here = Path({folder!r})
unit, kept = here / "config/systemd/user/cellburst.service", here / "manager.json"

def alive(pid):
    try:
        return Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

state = json.loads(kept.read_text()) if kept.exists() else {{}}
pid = state.get("pid", 0)
words = [word for word in sys.argv[1:] if word != "--user"]
with (here / "asked").open("a") as asked:
    asked.write(" ".join(words) + "\\n")
if words[0] == "show":
    print(pid if pid and alive(pid) else 0)
elif words[0] == "is-active":
    active = bool(pid) and alive(pid)
    print("active" if active else "inactive")
    sys.exit(0 if active else 3)
elif words[0] == "enable" and not (pid and alive(pid)):
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    with (here / "service.out").open("ab") as out:
        started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    kept.write_text(json.dumps({{"pid": started.pid}}))
elif words[0] == "disable" and pid and alive(pid):
    os.kill(pid, signal.SIGTERM)
    while alive(pid):
        time.sleep(0.05)
"""


@pytest.fixture
def place() -> Iterator[House]:
    with house("A100:1", warm_pool=False) as made:
        made.environment |= {
            "HOME": str(made.folder), "XDG_CONFIG_HOME": str(made.folder / "config"), "CELLBURST_ENGINE": "process",
            "PATH": f"{made.folder / 'tools'}:{os.environ['PATH']}", "COLUMNS": "300",
        }  # fmt: skip
        tools = made.folder / "tools"
        tools.mkdir()
        stand_in = tools / "systemctl"
        stand_in.write_text(SYSTEMCTL.format(python=sys.executable, folder=str(made.folder)))
        stand_in.chmod(0o755)
        yield made


def command(place: House, *words: str, answer: str = "") -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cellburst", *words], env={**os.environ, **place.environment}, input=answer,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def gateway_pid(place: House) -> int:
    return int(json.loads((place.folder / "run/gateway.json").read_text())["pid"])


def test_a_gateway_that_runs_is_stopped_first_and_only_when_it_may_be(place: House) -> None:
    unit = place.folder / "config/systemd/user/cellburst.service"
    code, said = command(place, "up")
    assert code == 0, said
    first = gateway_pid(place)

    code, said = command(place, "service", "install", answer="n\n")
    assert code == 1 and f"a gateway runs already (pid {first})" in said and "No session has a container" in said, said
    assert not unit.exists() and gateway_pid(place) == first and command(place, "status")[0] == 0

    code, said = command(place, "service", "install", "--yes")
    second = gateway_pid(place)
    assert code == 0 and second != first and f"stopped the gateway that ran (pid {first})" in said, said
    assert f"it runs now (pid {second}, systemd says active)" in said, said
    lines = unit.read_text().splitlines()
    section = lines.index("[Service]")
    assert lines.index("StartLimitIntervalSec=0") < section < lines.index("RestartSec=10")
    assert "systemd says active" in command(place, "service", "status")[1]

    code, said = command(place, "service", "install")  # again: nothing is asked, nothing is stopped
    assert code == 0 and f"it runs already (pid {second})" in said and gateway_pid(place) == second, said
    assert "removed" in command(place, "service", "uninstall")[1] and command(place, "status")[0] == 1


def test_what_the_manager_says_is_said(place: House) -> None:
    """A unit whose gateway ends at once does not run, whatever `enable` answered."""
    (place.folder / "none.toml").write_text("[smtp]\nhost = 'mail.example.org'\n")  # without "from"
    code, said = command(place, "service", "install")
    assert code == 0 and "it does not serve (systemd says inactive)" in said and "journalctl" in said, said
