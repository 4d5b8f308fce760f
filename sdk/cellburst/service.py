"""The gateway as a service of this user: up after a log-in, a log-out and a reboot, for schedules to run.

A systemd user unit on Linux, a launchd agent on macOS. Only files are written, and the service manager asked where it is there.
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from .config import Settings

UNIT = "cellburst.service"
LABEL = "dev.cellburst.gateway"
COMMAND_SECONDS = 20.0


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

[Service]
ExecStart={quoted}
WorkingDirectory={_quoted(str(data))}
Environment=PATH={_quoted(os.environ.get("PATH", "/usr/bin:/bin"))}
Restart=on-failure
RestartSec=2
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


def install(found: Service, data: Path) -> list[str]:
    """Write the file and have the manager start it; what was done, and what is left to do, in lines."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data / "logs").mkdir(exist_ok=True)
    found.path.parent.mkdir(parents=True, exist_ok=True)
    part = found.path.with_name(f".{found.path.name}.part")
    part.write_bytes(found.text)
    part.replace(found.path)
    lines = [f"wrote {found.path}"]
    if found.manager == "systemd":
        for words in (["daemon-reload"], ["enable", "--now", UNIT]):
            why = _asked(["systemctl", "--user", *words])
            if why:
                return [
                    *lines,
                    f"systemd was not told ({why}): `systemctl --user enable --now {UNIT}` does it when you are logged in",
                ]
        lines.append("it runs now, and after every log-in")
        if not _lingers():
            lines.append("to keep it up while nobody is logged in, also after a reboot: loginctl enable-linger")
        return lines
    why = _asked(["launchctl", "bootstrap", f"gui/{os.getuid()}", str(found.path)])
    return [*lines, f"launchd was not told ({why})" if why else "it runs now, and after every log-in"]


def uninstall(found: Service) -> list[str]:
    """Stop it and remove the file."""
    if not found.path.exists():
        return ["no service was installed"]
    if found.manager == "systemd":
        _asked(["systemctl", "--user", "disable", "--now", UNIT])
    else:
        _asked(["launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}"])
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
    if found.manager == "systemd":
        why = _asked(["systemctl", "--user", "is-active", UNIT])
        lines.append(f"not active ({why})" if why else "active")
    return lines


def _asked(command: list[str]) -> str:
    """Ask a service manager; why it did not, or ""."""
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]} here"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        return str(why)
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"exit code {done.returncode}"


def _lingers() -> bool:
    return Path("/var/lib/systemd/linger", os.environ.get("USER", "")).is_file()
