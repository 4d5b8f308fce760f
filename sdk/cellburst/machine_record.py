"""The machines that this user connected: one file each in `DATA/machines`, and what their keepers said last in `RUN/machines`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, error

from .config import Folders
from .machine_ssh import Target

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
STOP_SECONDS = 10.0
KEEPER_TRIES = 3  # another command may start one in between
LOOKED_SECONDS = 0.5  # who looks for the holder of a lock holds it for a moment


class Machine(msgspec.Struct, kw_only=True):
    """What is needed to reach a machine again. No secret is in it."""

    name: str
    target: str
    options: list[str] = []
    base: str
    whose: str
    build: str
    port: int
    sudo: bool = False
    simulate_gpus: str = ""
    engine: str = ""
    system: str = ""
    connected_unix_seconds: float = 0.0

    @property
    def dial(self) -> Target:
        """Whom ssh dials."""
        return Target(self.target, tuple(self.options))

    @property
    def folder(self) -> str:
        """Our things there that belong to this user's gateway."""
        return f"{self.base}/for/{self.whose}"


class TunnelNow(msgspec.Struct, kw_only=True):
    """What a keeper wrote last: the state's name, since when, and why it is not up."""

    state: str
    why: str = ""
    since_unix_seconds: float = 0.0
    refused: bool = False
    dials: int = 0


def default_name(target: str) -> str:
    """The host of `user@host`, as a name."""
    host = target.rpartition("@")[2].strip("[]")
    return re.sub(r"[^A-Za-z0-9_.-]", "-", host).strip("-.") or "machine"


def check_name(name: str) -> None:
    """Raises RequestError for what cannot be a worker's and a file's name."""
    if not NAME.fullmatch(name):
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"{name!r} is no name for a machine",
            allowed="letters, digits, - _ . (up to 63)",
            next="--name NAME",
        )


def machines(folders: Folders) -> list[Machine]:
    """All connected machines, by name."""
    found = []
    for path in sorted((folders.data / "machines").glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Machine))
    return found


def machine(folders: Folders, name: str) -> Machine:
    """One of them. Raises RequestError (NOT_FOUND) naming those there are."""
    known = machines(folders)
    for one in known:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known) or "there are none"
    raise error(
        ErrorCode.NOT_FOUND, f"{name!r} is no connected machine", allowed=names, next="`cellburst machines` lists them"
    )


def keep(folders: Folders, one: Machine) -> None:
    """Write a machine's file."""
    folder = folders.data / "machines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(folder / f"{one.name}.json", msgspec.json.format(msgspec.json.encode(one)))


def forget(folders: Folders, one: Machine) -> None:
    """Remove its files here."""
    (folders.data / "machines" / f"{one.name}.json").unlink(missing_ok=True)
    for kind in ("json", "lock"):
        (folders.run / "machines" / f"{one.name}.{kind}").unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)


# -- keepers -----------------------------------------------------------------------------------------------------------


def tunnel_now(folders: Folders, name: str) -> TunnelNow:
    """What its keeper said last; "no keeper" where none runs."""
    if not keeper_pid(folders, name):
        return TunnelNow(state="no keeper", why="`cellburst up` starts it")
    try:
        return msgspec.json.decode((folders.run / "machines" / f"{name}.json").read_bytes(), type=TunnelNow)
    except (OSError, msgspec.MsgspecError):
        return TunnelNow(state="starting")


def tell(folders: Folders, name: str, now: TunnelNow) -> None:
    """What a keeper says."""
    with contextlib.suppress(OSError):  # a full disk is no reason to let a tunnel go
        _write(folders.run / "machines" / f"{name}.json", msgspec.json.encode(now))


@contextlib.contextmanager
def without_keeper(folders: Folders, name: str) -> Iterator[None]:
    """End a machine's keeper, and let none start: it would start the worker again. Raises CellburstError (CONFLICT) where
    another command does the same."""
    for _ in range(KEEPER_TRIES):
        stop_keepers(folders, [name])
        with keeper_lock(folders, name, pid=0) as mine:
            if mine:
                yield
                return
    raise error(ErrorCode.CONFLICT, f"another command works on {name!r}", next="wait for its end, and try again")


@contextlib.contextmanager
def keeper_lock(folders: Folders, name: str, pid: int | None = None) -> Iterator[bool]:
    """Be the one keeper of a machine; False where another one is. `pid` is who ends it: this process, 0 for nobody."""
    folder = folders.run / "machines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "a+", encoding="ascii") as file:
        deadline = time.monotonic() + LOOKED_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    yield False
                    return
            time.sleep(0.02)
        file.truncate(0)
        file.write(str(os.getpid() if pid is None else pid))
        file.flush()
        yield True


def keeper_pid(folders: Folders, name: str) -> int:
    """The process that keeps a machine's tunnel, 0 for none."""
    try:
        with open(folders.run / "machines" / f"{name}.lock", "r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read().strip() or 0)
    except (OSError, ValueError):
        pass
    return 0


def start_keeper(folders: Folders, name: str) -> None:
    """Have a keeper for this machine; it leaves this process at once, and ends by itself where another one is there."""
    log = folders.data / "logs" / f"machine-{name}.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = {
        "CELLBURST_DATA": str(folders.data),
        "CELLBURST_RUN": str(folders.run),
        "CELLBURST_CONFIG": str(folders.config_file),
    }
    dropped = {"JPY_SESSION_NAME", "JPY_PARENT_PID", "MPLBACKEND", "PYTHONSTARTUP", "CELLBURST_TOKEN", "SSH_ASKPASS"}
    with open(log, "ab") as output:
        subprocess.run(
            [sys.executable, "-m", "cellburst.machine_keeper", name], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**{k: v for k, v in os.environ.items() if k not in dropped}, **ours}, cwd=folders.data, check=False, timeout=30,
        )  # fmt: skip


def start_keepers(folders: Folders) -> None:
    """Have a keeper for each connected machine; cheap where they run."""
    for one in machines(folders):
        if not keeper_pid(folders, one.name):
            with contextlib.suppress(
                OSError, subprocess.TimeoutExpired
            ):  # a machine that is away is no reason not to start here
                start_keeper(folders, one.name)


def stop_keepers(folders: Folders, names: list[str] | None = None) -> None:
    """End the keepers of these machines, or of all, by their pids."""
    pids = [pid for name in names or [one.name for one in machines(folders)] if (pid := keeper_pid(folders, name))]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for pid in pids:
        while _lives(pid):
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def gateway_address(folders: Folders) -> str:
    """HOST:PORT of the gateway of these folders while its process lives, else ""."""
    try:
        found = json.loads((folders.run / "gateway.json").read_text())
        os.kill(int(found["pid"]), 0)
        return str(found["url"]).rpartition("//")[2].rstrip("/")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
