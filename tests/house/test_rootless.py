"""A whole house of a user who is not root: real gVisor without root, else plain processes, and what the user is told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
UIDS = range(54321, 54421)  # the first of these that is nobody's
NEEDED = ["setpriv", "unshare", "mount"]
SIDE_SECONDS = 150

pytestmark = [
    pytest.mark.house,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(any(shutil.which(p) is None for p in NEEDED), reason=f"needs {', '.join(NEEDED)}"),
]


def processes_of(uid: int) -> list[psutil.Process]:
    """All processes of a user that are not zombies."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.uids().real == uid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def closed_ancestor(path: Path) -> Path | None:
    """The topmost folder above `path` that other users cannot pass, such as a home folder of mode 0700."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)


@dataclass(frozen=True)
class User:
    """An ordinary user and the folder that is all he has."""

    uid: int
    folder: Path


def script(user: User, command: list[str]) -> list[str]:
    """The command line that runs `command` as the user. Interpreter and checkout may lie in a folder that is closed
    to others: then an empty one that shows only them is put over it, in a mount namespace that ends with the processes."""
    lines = ["set -e"]
    wanted = {Path(p).resolve() for p in (sys.base_prefix, sys.prefix, ROOT)}
    wanted = {p for p in wanted if not wanted & set(p.parents)}
    hidden: dict[Path, list[Path]] = {}
    for path in sorted(wanted):
        if (ancestor := closed_ancestor(path)) is not None:
            hidden.setdefault(ancestor, []).append(path)
    for number, (ancestor, paths) in enumerate(hidden.items()):
        stages = [(path, f"{user.folder}/stage-{number}-{i}") for i, path in enumerate(paths)]
        lines += [f"mkdir '{stage}'; mount --rbind '{path}' '{stage}'" for path, stage in stages]
        lines += [f"mount -t tmpfs -o mode=755,size=64k none '{ancestor}'"]
        lines += [f"mkdir -p '{path}'; mount --move '{stage}' '{path}'; rmdir '{stage}'" for path, stage in stages]
    lines += [f'exec setpriv --reuid {user.uid} --regid {user.uid} --clear-groups --no-new-privs -- "$@"']
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh", *command]


@pytest.fixture
def user() -> Iterator[User]:
    """A user with a short folder under /tmp. Whatever still runs as the user is ended, and the folder removed."""
    uid = next(uid for uid in UIDS if not processes_of(uid))
    folder = Path(tempfile.mkdtemp(prefix="cb-rl-"))
    os.chown(folder, uid, uid)
    try:
        yield User(uid, folder)
    finally:
        deadline = time.monotonic() + 20
        while (left := processes_of(uid)) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            psutil.wait_procs(left, timeout=1)
        shutil.rmtree(folder)


def run_side(user: User, *words: str, **more: str) -> dict[str, Any]:
    """What `rootless_side` saw as the user, called with these words."""
    folder = user.folder
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8", "COLUMNS": "300",
        "CELLBURST_DATA": str(folder / "data"), "CELLBURST_RUN": str(user.folder / "run"),
        "CELLBURST_CONFIG": str(folder / "none.toml"), "CELLBURST_SIMULATE_GPUS": "A100:2", **more,
    }  # fmt: skip
    command = script(user, [sys.executable, "-m", "tests.house.rootless_side", str(folder), *words])
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SIDE_SECONDS)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-6000:]
    seen: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return seen


def can_make_user_namespaces(user: User) -> bool:
    """Whether this kernel lets the user have what gVisor without root is made of."""
    line = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.uid), "--clear-groups", "unshare", "-Ur", "true"]
    return subprocess.run(line, capture_output=True).returncode == 0


def left_after(user: User, seconds: float) -> list[str]:
    """The command lines that still run as the user when so long has passed; returns at once when there are none."""
    deadline = time.monotonic() + seconds
    while left := processes_of(user.uid):
        if time.monotonic() > deadline:
            return [repr(process) for process in left]
        psutil.wait_procs(left, timeout=0.1)
    return []


def words(seen: dict[str, Any]) -> tuple[str, str, str]:
    """Engine as `cellburst status` tells it, the engine's warning, and the notes of the card as one text."""
    (worker,) = seen["workers"]
    engine = worker["inventory"]["engines"][0]
    return engine["name"], engine["warning"], "\n".join(seen["card"]["notes"])


def check_common(seen: dict[str, Any], user: User) -> None:
    """What holds whatever the engine is."""
    assert seen["uid"] == user.uid
    assert "begun\n" in seen["text"] and "interrupted\n" in seen["text"], seen["text"]
    assert seen["card"]["hardware"] == "A100-40GB SIMULATED"
    (session,) = seen["sessions"]
    engine, warning, notes = words(seen)
    assert session["container"]["engine"] == engine
    assert warning and warning in seen["status"]
    assert "limits do not hold" in notes, "what is weaker here is said on the card"
    assert "stopped" in seen["down"]
    assert left_after(user, seconds=10) == [], "down ended everything"
    assert not list((user.folder / "run").glob("containers/*")) and not list(
        (user.folder / "run").glob("runsc/*.state")
    )


@pytest.mark.gvisor
def test_a_user_without_root_has_a_house_of_his_own(user: User) -> None:
    namespaces = can_make_user_namespaces(user)
    seen = run_side(user, *(["warm"] if namespaces else []))
    check_common(seen, user)
    engine, warning, notes = words(seen)
    if not namespaces:
        assert engine == "process" and "isolates nothing" in notes
        return
    assert engine == "gvisor", seen["status"]
    assert warning == "gVisor without root: no network, and memory and CPU are not limited"
    assert "No network in this container" in notes
    assert seen["card"]["place"].startswith("gvisor on ")
    assert seen["home"] == "False\n", "the token of the data folder is not to be seen from the sandbox"
    check_warm(seen["warm"])


def check_warm(warm: dict[str, Any]) -> None:
    """Snapshots are root's: a container that was booted beforehand serves the next session, and a parked one's names."""
    assert warm["waits"]["memory_mib"] > 1 and "1 warm with " in warm["waits"]["told"]
    assert [step for step in warm["phases"] if step[0] in ("boot", "restore")] == [["boot", "warm pool"]]
    assert warm["found"].endswith("False True later c-\n"), warm["found"]
    assert "only its names are kept" in warm["parked"] and "gVisor takes snapshots as root only" in warm["parked"]
    assert [step for step in warm["phases_back"] if step[0] in ("boot", "restore")] == [["boot", "warm pool"]]
    assert warm["back"].endswith("42\n"), warm["back"]


def test_without_gvisor_code_runs_as_a_plain_process_and_that_is_said(user: User) -> None:
    seen = run_side(user, CELLBURST_RUNSC="/nonexistent")
    check_common(seen, user)
    engine, warning, notes = words(seen)
    assert engine == "process"
    assert warning == "The process engine isolates nothing: code runs as a plain process of your user on this machine."
    assert warning in notes and seen["card"]["place"].startswith("process (isolates nothing) on ")
    assert "The gvisor engine does not work here: runsc was not found" in seen["status"]
    assert "isolates nothing" in seen["text"], "the line of the first use says it too"
    assert seen["home"] == "True\n", "a plain process sees what the user sees"
