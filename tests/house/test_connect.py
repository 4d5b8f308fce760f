"""`cellburst connect` from nothing: a second machine made here, with a real `sshd` and a network that can be cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.harness import House, house
from cellburst.machine_ssh import Ssh, Target
from cellburst_protocol.errors import CellburstError, ErrorCode
from tests.house.far_machine import FarMachine, debian

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def box(debian_store: Path) -> Iterator[FarMachine]:
    made = FarMachine(debian(debian_store))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house("A100:1", warm_pool=False) as made:
        yield made


def cellburst(place: House, *arguments: str, status: int = 0) -> str:
    """A command's standard output, or what it said on the other one where it is to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "cellburst", *arguments], env={**os.environ, **place.environment, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr if status else done.stdout


def machine(place: House) -> dict[str, Any]:
    (row,) = json.loads(cellburst(place, "machines", "--json"))
    return dict(row)


def until(place: House, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The machine's row once it is so; each question is a process, so this does not spin."""
    deadline = time.monotonic() + 90
    while not holds(row := machine(place)):
        assert time.monotonic() < deadline, row
    return row


def joined(row: dict[str, Any]) -> bool:
    return bool(row["tunnel"]["state"] == "up" and row["worker"].get("state") == "joined")


def keeper(place: House) -> psutil.Process:
    return psutil.Process(int(Path(place.environment["CELLBURST_RUN"], "machines", "box.lock").read_text()))


def end_ssh(keeps: psutil.Process) -> None:
    """End the ssh of a tunnel, at once."""
    (ssh,) = [child for child in keeps.children() if child.name() == "ssh"]
    ssh.send_signal(signal.SIGKILL)


def test_what_keeps_ssh_out_is_said(box: FarMachine, tmp_path: Path) -> None:
    def refused(host: str, *options: str) -> CellburstError:
        with (
            pytest.raises(CellburstError) as caught,
            Ssh(Target(host, ("-F", str(box.login), *options)), tmp_path) as ssh,
        ):
            ssh.open()
        return caught.value

    other = tmp_path / "known"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    other.write_text(f"{box.address} {' '.join((tmp_path / 'key.pub').read_text().split()[:2])}\n")
    changed = refused("box", "-o", f"UserKnownHostsFile={other}")
    assert changed.code is ErrorCode.FORBIDDEN and "another machine may answer in its place" in str(changed)
    unknown = refused("box", "-o", "UserKnownHostsFile=/dev/null")
    assert unknown.code is ErrorCode.UNAUTHENTICATED and "not known here yet" in str(unknown)
    assert refused("box-nobody").code is ErrorCode.UNAUTHENTICATED, "it asks for a password, and nobody is there"
    assert refused("box", "-p", "1").code is ErrorCode.UNAVAILABLE
    assert refused("no-such-host.invalid").code is ErrorCode.NOT_FOUND
    assert not list(tmp_path.glob("s*")), "no socket is left"


def test_from_nothing_cut_and_healed_and_away_again(box: FarMachine, place: House) -> None:
    login = ("-F", str(box.login), "--name", "box")
    said = cellburst(place, "connect", "box-jump", *login, "--simulate-gpus", "T4:1")
    assert "Debian GNU/Linux" in said and "T4 (simulated) of box" in said, said
    first = machine(place)
    assert joined(first) and first["worker"]["inventory"]["hostname"] == "box" and first["gpus"] == "T4 (simulated)"
    home = set((box.run("ls -A") or "").split())
    assert home == {".local"}, "nothing outside its own folder"

    again = cellburst(place, "connect", "box-jump", *login, "--simulate-gpus", "T4:1")
    assert "package" not in again and machine(place)["worker"]["pid"] == first["worker"]["pid"], again
    other = cellburst(place, "connect", "box-root", *login, status=1)
    assert "'box' is box-jump" in other
    assert "was started with --simulate-gpus T4:1" in cellburst(place, "connect", "box-jump", *login, status=1)
    twice = cellburst(place, "connect", "box-jump", *login[:2], "--name", "second", "--simulate-gpus", "T4:1", status=1)
    assert "is connected as 'box' already" in twice and machine(place)["name"] == "box"

    # The near end of the tunnel goes, and the far one does not notice: it still holds the port.
    keeps = keeper(place)
    box.run("kill -STOP $(cut -d' ' -f1 .local/share/cellburst/machine/for/*/tunnel)")
    end_ssh(keeps)
    log = Path(place.environment["CELLBURST_DATA"], "logs", "machine-box.log")
    until(place, lambda row: joined(row) and f"port {row['port']} there is taken" in log.read_text())

    box.cut()
    end_ssh(keeps)
    until(place, lambda row: row["tunnel"]["state"] != "up" and row["worker"]["state"] == "unreachable")
    box.heal()
    healed = until(place, joined)
    assert healed["worker"]["pid"] == first["worker"]["pid"], "it ran on meanwhile"
    assert keeper(place).pid == keeps.pid

    box.reboot()
    until(place, lambda row: joined(row) and row["tunnel"]["dials"] > healed["tunnel"]["dials"])
    assert box.run("sh .local/share/cellburst/machine/for/*/worker.sh state") == "runs\n", "it was started there again"

    keeps.send_signal(signal.SIGKILL)
    psutil.wait_procs([keeps], 20)
    cellburst(place, "up")
    assert keeper(place).pid != keeps.pid
    until(place, joined)

    box.run("pid=$(cat .local/share/cellburst/machine/for/*/run/worker.lock); kill -9 $pid; "
            "while [ -n \"$(tr -d '\\0' </proc/$pid/cmdline 2>/dev/null)\" ]; do :; done")  # fmt: skip
    left = cellburst(place, "disconnect", "box", "--yes")
    assert "one more ends what it left" in left and "the worker ended\n" in left, left
    assert "removed" in left and cellburst(place, "machines", "--json").strip() == "[]"
    assert "cellburst_worker" not in (box.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '") or "")
    assert (box.run("ls -A .local/share/cellburst/machine/for") or "").split() == []
