"""The gateway as a service of this user: up after a log-in, a log-out and a reboot, for schedules to run.

A systemd user unit on Linux, a launchd agent on macOS. Only files are written, and the service manager asked where it is there.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from . import embedded
from .config import Folders, Settings
from .embedded import Running

UNIT = "cellburst.service"
LABEL = "dev.cellburst.gateway"
COMMAND_SECONDS = 20.0
START_SECONDS = 30.0  # from the manager's word to a gateway that serves


@dataclass(frozen=True)
class Service:
    """Where the service's file belongs, and what is in it."""

    path: Path
    text: bytes
    manager: str  # "systemd" or "launchd"


def arguments(configured: Settings) -> list[str]:
    """The gateway's command line, as the embedded start has it: its local worker is started and watched by it."""
    folders = configured.folders
    line = [
        sys.executable, "-m", "cellburst_gateway", "--data-dir", str(folders.data), "--run-dir", str(folders.run),
        "--port", str(configured.port), "--local-worker",
    ]  # fmt: skip
    line += ["--simulate-gpus", configured.simulate_gpus] if configured.simulate_gpus else []
    line += ["--engine", configured.engine] if configured.engine else []
    return [*line, "--config", str(folders.config_file)] if folders.config_file.exists() else line


def service(configured: Settings, platform: str = sys.platform) -> Service:
    """The service of this user here. Raises RequestError (NOT_YET) on other systems."""
    home = Path.home()
    if platform == "darwin":
        return Service(home / "Library/LaunchAgents" / f"{LABEL}.plist", _plist(configured), "launchd")
    if platform.startswith("linux"):
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return Service(
            config / "systemd/user" / UNIT, unit(arguments(configured), configured.folders.data).encode(), "systemd"
        )
    raise error(
        ErrorCode.NOT_YET, f"services are written for Linux and macOS, and this is {platform}",
        next="start `cellburst up` from your system's own task scheduler",
    )  # fmt: skip


def unit(line: list[str], data: Path) -> str:
    """A systemd user unit. Words are quoted by systemd's own rules (systemd.service(5), "Command lines")."""
    quoted = " ".join(_quoted(word) for word in line)
    return f"""[Unit]
Description=Cellburst gateway and worker: GPU sessions and scheduled notebooks
After=network-online.target
# Another gateway of this user may run: it is tried again until that one is gone.
StartLimitIntervalSec=0

[Service]
ExecStart={quoted}
WorkingDirectory={_quoted(str(data))}
Environment=PATH={_quoted(os.environ.get("PATH", "/usr/bin:/bin"))}
Restart=on-failure
RestartSec=10
# The gateway ends its containers and its worker by itself.
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$").replace("\n", "\\n")
    return f'"{escaped}"'


def _plist(configured: Settings) -> bytes:
    logs = configured.folders.data / "logs"
    return plistlib.dumps(
        {
            "Label": LABEL, "ProgramArguments": arguments(configured), "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False}, "WorkingDirectory": str(configured.folders.data),
            "EnvironmentVariables": {"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            "StandardOutPath": str(logs / "gateway.out"), "StandardErrorPath": str(logs / "gateway.out"),
        }
    )  # fmt: skip


def install(found: Service, configured: Settings, stop_first: Callable[[Running], None]) -> list[str]:
    """Write the file and have the manager start it; what was done, and what is left to do, in lines.

    `stop_first(gateway)` is asked when another gateway of this user runs: it comes back when that may be stopped, and raises what
    ends the installation, of which nothing is there then. Raises RequestError (CONFLICT) when one starts meanwhile.
    """
    folders, (pid, why) = configured.folders, _main_pid(found)
    folders.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folders.data / "logs").mkdir(exist_ok=True)
    if why:
        _write(found)
        return [
            f"wrote {found.path}",
            f"{found.manager} was not told ({why}): {_by_hand(found)} when you are logged in",
        ]
    seen = embedded.find(folders)
    if seen is not None and seen.pid != pid:
        stop_first(seen)
    with embedded.start_lock(folders):  # a cell that needs a gateway meanwhile waits, and finds the service's
        running = embedded.find(folders)
        if running is not None and running.pid == pid:
            new = not found.path.exists() or found.path.read_bytes() != found.text
            _write(found)
            _enable(found)
            later = f"; what is new counts from its next start: `{_restart(found)}`" if new else ""
            return [f"wrote {found.path}", f"it runs already (pid {pid}){later}", *_linger_lines(found)]
        lines = []
        if running is not None:
            if seen is None or running.pid != seen.pid:
                raise error(
                    ErrorCode.CONFLICT, f"a gateway was started meanwhile (pid {running.pid})",
                    next="install the service again",
                )  # fmt: skip
            embedded.stop(folders)
            lines = [f"stopped the gateway that ran (pid {running.pid})"]
        _write(found)
        lines.append(f"wrote {found.path}")
        if why := _enable(found):
            return [*lines, f"{found.manager} was not told ({why}): {_by_hand(found)}"]
        return [*lines, _started(found, folders), *_linger_lines(found)]


def _write(found: Service) -> None:
    found.path.parent.mkdir(parents=True, exist_ok=True)
    part = found.path.with_name(f".{found.path.name}.part")
    part.write_bytes(found.text)
    part.replace(found.path)


def _enable(found: Service) -> str:
    """Have the manager start it now and from now on; why it did not, or ""."""
    if found.manager == "systemd":
        return _asked(["systemctl", "--user", "daemon-reload"]) or _asked(
            ["systemctl", "--user", "enable", "--now", UNIT]
        )
    if not _asked(["launchctl", "print", _agent()]):
        _asked(["launchctl", "bootout", _agent()])  # what it knows of an earlier file
    return _asked(["launchctl", "bootstrap", f"gui/{os.getuid()}", str(found.path)])


def _started(found: Service, folders: Folders) -> str:
    """Wait until it serves; what came of it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        running, (pid, _), state = embedded.find(folders), _main_pid(found), _state(found)
        if running is not None and running.pid == pid:
            return f"it runs now (pid {pid}, {found.manager} says {state}), and after every log-in"
        if state in ("failed", "inactive"):  # of systemd: it is not tried again
            break
        time.sleep(0.1)
    logs = f"journalctl --user -u {UNIT}" if found.manager == "systemd" else f"tail {folders.data / 'logs/gateway.out'}"
    state = _state(found)
    again = "; it is tried again every 10 s" if state == "activating" else ""
    return f"it does not serve ({found.manager} says {state}): `{logs}` says why{again}"


def _main_pid(found: Service) -> tuple[int, str]:
    """The process that the manager runs for it, 0 for none; and why the manager cannot be asked, or ""."""
    if found.manager == "systemd":
        why, said = _said(["systemctl", "--user", "show", "--property=MainPID", "--value", UNIT])
        return (int(said) if said.isdigit() else 0), why
    if shutil.which("launchctl") is None:
        return 0, "there is no launchctl here"
    pid = re.search(r"^\s*pid = (\d+)$", _said(["launchctl", "print", _agent()])[1], re.MULTILINE)
    return (int(pid[1]) if pid else 0), ""


def _state(found: Service) -> str:
    """What the manager says of it, in its own word."""
    if found.manager == "launchd":
        return "running" if _main_pid(found)[0] else "not running"
    why, said = _said(["systemctl", "--user", "is-active", UNIT])
    return said or why


def _by_hand(found: Service) -> str:
    if found.manager == "systemd":
        return f"`systemctl --user enable --now {UNIT}` does it"
    return f"`launchctl bootstrap gui/{os.getuid()} {found.path}` does it"


def _restart(found: Service) -> str:
    return f"systemctl --user restart {UNIT}" if found.manager == "systemd" else f"launchctl kickstart -k {_agent()}"


def _agent() -> str:
    return f"gui/{os.getuid()}/{LABEL}"


def _linger_lines(found: Service) -> list[str]:
    if found.manager != "systemd" or _lingers():
        return []
    return ["to keep it up while nobody is logged in, also after a reboot: loginctl enable-linger"]


def uninstall(found: Service) -> list[str]:
    """Stop it and remove the file."""
    if not found.path.exists():
        return ["no service was installed"]
    if found.manager == "systemd":
        _asked(["systemctl", "--user", "disable", "--now", UNIT])
    else:
        _asked(["launchctl", "bootout", _agent()])
    found.path.unlink()
    if found.manager == "systemd":
        _asked(["systemctl", "--user", "daemon-reload"])
    return [f"removed {found.path}", "the gateway starts again with the next %%modal cell, and stops with this session"]


def status(found: Service) -> list[str]:
    """Whether it is installed, as this version would write it, and what its manager says."""
    if not found.path.exists():
        return ["not installed: `cellburst service install` keeps gateway and worker up"]
    same = found.path.read_bytes() == found.text
    lines = [f"installed: {found.path}" + ("" if same else " (of another version or folder: install it again)")]
    return [*lines, f"{found.manager} says {_state(found)}"]


def _asked(command: list[str]) -> str:
    """Tell a service manager to do something; why it did not, or ""."""
    why, said = _said(command)
    return why and (said.splitlines()[-1] if said else why)


def _said(command: list[str]) -> tuple[str, str]:
    """Ask a service manager: why it did not answer, or "", and what it said."""
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]} here", ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        return str(why), ""
    if done.returncode == 0:
        return "", done.stdout.strip()
    said = done.stderr.strip() or done.stdout.strip()
    return said.splitlines()[-1] if said else f"exit code {done.returncode}", said


def _lingers() -> bool:
    return Path("/var/lib/systemd/linger", os.environ.get("USER", "")).is_file()
