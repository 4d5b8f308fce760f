"""Where this user's things lie, and what is configured: environment first, then `config.toml`.

[gateway]
url = "https://gpu.example.org:8443"     # absent: an embedded gateway on this machine
token_file = "~/.config/cellburst/token"

[embedded]
simulate_gpus = "A100:1"                 # for trying placement, metering and UI without a GPU
engine = "gvisor"                        # default: the best that works here
port = 0                                 # 0: any free one
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error


@dataclass(frozen=True)
class Folders:
    """This user's data, run and configuration folders (see docs/architecture.md)."""

    data: Path
    run: Path
    config_file: Path


@dataclass(frozen=True)
class Settings:
    """Configuration after environment and file; empty `gateway_url` means embedded."""

    folders: Folders
    gateway_url: str = ""
    token: str = field(default="", repr=False)
    simulate_gpus: str = ""
    engine: str = ""
    port: int = 0


def folders() -> Folders:
    """The folders by environment variable, XDG rule or default."""
    home = Path.home()
    data = _folder("CELLBURST_DATA", "XDG_DATA_HOME", home / ".local/share")
    config = os.environ.get("CELLBURST_CONFIG") or str(
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "cellburst" / "config.toml"
    )
    run = os.environ.get("CELLBURST_RUN")
    if not run:
        base = os.environ.get("XDG_RUNTIME_DIR")
        run = (
            f"{base}/cellburst" if base and Path(base).is_dir() else f"{tempfile.gettempdir()}/cellburst-{os.getuid()}"
        )
    return Folders(data=data, run=Path(run).absolute(), config_file=Path(config).expanduser())


def _folder(ours: str, xdg: str, default: Path) -> Path:
    value = os.environ.get(ours)
    if value:
        return Path(value).expanduser().absolute()
    return Path(os.environ.get(xdg) or default).expanduser().absolute() / "cellburst"


def settings() -> Settings:
    """Read the configuration. Raises RequestError naming file and line for one that cannot be read."""
    where = folders()
    table: dict[str, dict[str, object]] = {}
    try:
        table = tomllib.loads(where.config_file.read_text())
    except FileNotFoundError:
        pass
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as why:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{where.config_file} cannot be read: {why}", next="mend or remove the file"
        ) from None
    gateway, embedded = _section(table, "gateway", where), _section(table, "embedded", where)
    token = os.environ.get("CELLBURST_TOKEN", "")
    token_file = str(gateway.get("token_file", ""))
    if not token and token_file:
        token = _read_token(Path(token_file).expanduser())
    return Settings(
        folders=where,
        gateway_url=_inside() or os.environ.get("CELLBURST_GATEWAY", "") or str(gateway.get("url", "")),
        token=token,
        simulate_gpus=os.environ.get("CELLBURST_SIMULATE_GPUS", "") or str(embedded.get("simulate_gpus", "")),
        engine=os.environ.get("CELLBURST_ENGINE", "") or str(embedded.get("engine", "")),
        port=int(os.environ.get("CELLBURST_PORT", "") or str(embedded.get("port", 0))),
    )


def _inside() -> str:
    """In a container whose code may use the gateway: the socket that leads there. Else ""."""
    folder = os.environ.get("CELLBURST_VAR", "")
    return f"unix:{folder}/ctl/gateway" if folder and os.environ.get("CELLBURST_LINK") else ""


def _section(table: dict[str, dict[str, object]], name: str, where: Folders) -> dict[str, object]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{where.config_file}: [{name}] is not a table", next=f"write it as [{name}]"
        )
    return section


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as why:
        raise error(
            ErrorCode.UNAUTHENTICATED, f"the token file {path} cannot be read: {why.strerror}",
            next="put the gateway's token there, or set CELLBURST_TOKEN",
        ) from None  # fmt: skip
