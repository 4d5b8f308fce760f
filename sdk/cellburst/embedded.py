"""The embedded gateway: one per user, found and reused, started at first use, stopped by `cellburst down`.

`RUN/gateway.json` says where a serving gateway is. Starters take `RUN/start.lock`, so that two notebooks that start at
once get one gateway; the gateway itself takes a lock on its data folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.private_folder import FULL, START_ROOM_BYTES, check_room

from .config import Folders, Settings, settings
from .endpoint import Endpoint

START_TIMEOUT_SECONDS = 30.0
HEALTH_TIMEOUT_SECONDS = 2.0
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Running:
    """What `RUN/gateway.json` says of a gateway whose process is there."""

    pid: int
    url: str
    data_folder: Path
    instance: str


def find(folders: Folders) -> Running | None:
    """The embedded gateway that serves now, or None (a stale file counts as none)."""
    try:
        found = json.loads((folders.run / "gateway.json").read_text())
        running = Running(int(found["pid"]), str(found["url"]), Path(found["data_folder"]), str(found["instance"]))
        os.kill(running.pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return running if _healthy(running.url) else None


def ensure_gateway(on_progress: Callable[[str], None] | None = None) -> Endpoint:
    """The configured gateway, or this user's embedded one, started when it does not serve.

    Raises GATEWAY_DOWN with the end of the gateway's own words when it cannot be started.
    """
    configured = settings()
    if configured.gateway_url:
        return Endpoint(url=configured.gateway_url.rstrip("/"), token=configured.token)
    running = find(configured.folders)
    if running is None:
        with start_lock(configured.folders):
            running = find(configured.folders) or _start(configured, on_progress or (lambda line: None))
    if (configured.folders.data / "machines").is_dir():
        from .machine_record import start_keepers  # few have machines of their own

        start_keepers(configured.folders)
    token = (running.data_folder / "token").read_text().strip()
    return Endpoint(url=running.url, token=token, embedded=True, run_folder=configured.folders.run)


def _start(configured: Settings, on_progress: Callable[[str], None]) -> Running:
    for package, extra in (("cellburst_gateway.app", "gateway"), ("cellburst_worker", "worker")):
        if importlib.util.find_spec(package.partition(".")[0]) is None or not _importable(extra):
            raise error(
                ErrorCode.GATEWAY_DOWN, f"no gateway is configured, and the parts for an embedded one ({extra}) are missing",
                next=f"pip install 'cellburst[{extra}]', or set CELLBURST_GATEWAY and CELLBURST_TOKEN",
            )  # fmt: skip
    folders = configured.folders
    on_progress(f"starting the gateway and a worker on this machine (data in {folders.data})")
    _make_private(folders.data)
    log_path = folders.data / "logs" / "gateway.out"
    log_path.parent.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "cellburst_gateway", "--data-dir", str(folders.data), "--run-dir", str(folders.run),
        "--port", str(configured.port), "--local-worker",
    ]  # fmt: skip
    if configured.simulate_gpus:
        command += ["--simulate-gpus", configured.simulate_gpus]
    if configured.engine:
        command += ["--engine", configured.engine]
    if folders.config_file.exists():
        command += ["--config", str(folders.config_file)]
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folders.data,
            env=_clean_environment(),
        )  # fmt: skip
    return _await_start(process, folders, log_path)


def _await_start(process: subprocess.Popen[bytes], folders: Folders, log_path: Path) -> Running:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        running = find(folders)
        if running is not None:
            return running
        if process.poll() is not None:
            raise _did_not_start(f"ended with exit code {process.returncode}", log_path)
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise _did_not_start(f"did not serve within {START_TIMEOUT_SECONDS:.0f} s", log_path)


def _did_not_start(how: str, log_path: Path) -> CellburstError:
    try:
        _make_private(log_path.parent.parent)
    except CellburstError as why:  # the disk filled up meanwhile: then its last lines are missing too
        return why
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    said = f"Its last lines:\n{tail}" if tail.strip() else "It left no words."
    return error(
        ErrorCode.GATEWAY_DOWN,
        f"the gateway {how}. {said}",
        next=f"`cellburst up` tries again; its log is {log_path}",
    )


def _clean_environment() -> dict[str, str]:
    """This process's environment less what belongs to the notebook and not to a service that outlives it."""
    drop = {"JPY_SESSION_NAME", "JPY_PARENT_PID", "MPLBACKEND", "PYTHONSTARTUP", "CELLBURST_TOKEN"}
    return {k: v for k, v in os.environ.items() if k not in drop}


def _importable(extra: str) -> bool:
    needed = {"gateway": ("tornado", "sqlalchemy"), "worker": ("websockets",)}
    return all(importlib.util.find_spec(m) is not None for m in needed[extra])


def _make_private(folder: Path, what: str = "data", variable: str = "CELLBURST_DATA") -> None:
    """Make `folder` this user's alone. Raises GATEWAY_DOWN where it cannot be written, or has no room for a start."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        check_room(folder)
    except OSError as why:
        if why.errno in FULL:
            raise error(
                ErrorCode.GATEWAY_DOWN, f"the disk of the {what} folder {folder} is full: {why.strerror}",
                allowed=f"a gateway starts with {START_ROOM_BYTES // 1024**2} MiB or more of free space there",
                next=f"free some space (`df -h {folder}` shows how much there is), or set {variable} to a folder on another disk",
            ) from None  # fmt: skip
        raise error(
            ErrorCode.GATEWAY_DOWN, f"the {what} folder {folder} cannot be written: {why.strerror}",
            next=f"make it writable, or set {variable} to another folder",
        ) from None  # fmt: skip


@contextlib.contextmanager
def start_lock(folders: Folders) -> Iterator[None]:
    """One starter at a time; others wait and then find what it started."""
    _make_private(folders.run, "run", "CELLBURST_RUN")
    with open(folders.run / "start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _healthy(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=HEALTH_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def stop(folders: Folders, timeout_seconds: float = 30.0) -> bool:
    """End the embedded gateway, the tunnels to other machines, and a worker that outlived its gateway; False if neither of the
    programs was there.

    SIGTERM, which lets both end their containers; SIGKILL after the timeout.
    """
    if (folders.data / "machines").is_dir():
        from .machine_record import stop_keepers

        stop_keepers(folders)
    gateway = _gateway_pid(folders)
    if gateway:
        _end(gateway, timeout_seconds)
        (folders.run / "gateway.json").unlink(missing_ok=True)
    worker = _worker_pid(folders)
    if worker:
        _end(worker, timeout_seconds)
    return bool(gateway or worker)


def _gateway_pid(folders: Folders) -> int:
    try:
        pid = int(json.loads((folders.run / "gateway.json").read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return pid if _is_alive(pid) else 0


def _worker_pid(folders: Folders) -> int:
    """The process that holds the run folder's worker lock, as it wrote itself into it; 0 when nobody holds it."""
    try:
        with open(folders.run / "worker.lock", "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return int(lock.read().strip() or 0)
    except (OSError, ValueError):
        pass  # no lock file: no worker was ever here
    return 0


def _end(pid: int, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while _is_alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
