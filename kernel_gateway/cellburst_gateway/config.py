"""What the operator may say about a gateway: command line over configuration file over defaults."""

from __future__ import annotations

import argparse
import ipaddress
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellburst_protocol.bucket_endpoints import PUBLIC, check_entries
from cellburst_protocol.errors import ErrorCode, error

DISCONNECT_GRACE_SECONDS = 600.0  # how long a session outlives its kernel or its worker's link
MAX_TIMEOUT_SECONDS = 86400.0  # one call, unless the operator raises it
MAX_BLOBS_BYTES = 20 * 1024**3  # of all values that lie between kernels and containers
LEAST_BOUND_BYTES = 1 << 20  # of images and snapshots: what is below it is a mistake in the unit
MAX_BLOB_BYTES = 64 * 1024**3  # more than a machine's GPU memory: larger is a mistake
UNREACHABLE_SECONDS = 8.0  # eight missed heartbeats; shown within 10 s
LOG_KEEP_DAYS = 30.0  # output of ended sessions, for `cellburst logs`
PARKED_KEEP_DAYS = 7.0  # a long weekend away, and the disk does not fill with what is forgotten
MAX_QUEUE = 1000  # calls that wait for capacity; beyond it a refusal is more honest than a place in the queue


@dataclass(frozen=True)
class GatewayConfig:
    """Everything that decides how a gateway runs. `raw` is the configuration file as parsed, for tables of other parts."""

    data_folder: Path
    run_folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    database: str = ""
    local_worker: bool = True
    simulate_gpus: str = ""
    engine: str = ""
    disconnect_grace_seconds: float = DISCONNECT_GRACE_SECONDS
    unreachable_seconds: float = UNREACHABLE_SECONDS
    max_timeout_seconds: float = MAX_TIMEOUT_SECONDS
    max_blob_bytes: int = MAX_BLOB_BYTES
    max_blobs_bytes: int = MAX_BLOBS_BYTES
    log_keep_days: float = LOG_KEEP_DAYS
    max_queue: int = MAX_QUEUE
    parked_keep_days: float = PARKED_KEEP_DAYS
    max_images_bytes: int = 0  # of the local worker, as the next; 0: it chooses by its disk
    max_snapshots_bytes: int = 0
    volumes_url: str = ""  # of fsspec: s3://BUCKET/PREFIX; "" is the data folder
    volumes_options: dict[str, Any] = field(default_factory=dict)  # for that file system
    volumes_sync: bool = False  # wait for the disk at each chunk
    bucket_endpoints: tuple[str, ...] = (PUBLIC,)  # where the workers connect to for buckets, see `bucket_endpoints`
    allowed_hosts: tuple[str, ...] = ()
    prices_file: Path | None = None
    config_file: Path | None = None
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """http, or https when a certificate is given."""
        return "https" if self.tls_cert else "http"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m cellburst_gateway`."""
    p = argparse.ArgumentParser(prog="python -m cellburst_gateway", description="Cellburst's control plane.")
    p.add_argument("--data-dir", type=Path, required=True, help="record, blobs, logs and tokens live here")
    p.add_argument("--run-dir", type=Path, required=True, help="gateway.json and locks")
    p.add_argument("--host", default=None, help="address to listen on (default 127.0.0.1)")
    p.add_argument("--port", type=int, default=None, help="port to listen on (default 0: any free one)")
    p.add_argument("--tls-cert", type=Path, default=None, help="certificate file, needed when not on loopback")
    p.add_argument("--tls-key", type=Path, default=None, help="private key of the certificate")
    p.add_argument("--local-worker", action=argparse.BooleanOptionalAction, default=None, help="start a worker here")
    p.add_argument("--simulate-gpus", default="", help="simulated GPUs of the local worker, such as A100:2,T4:1")
    p.add_argument("--engine", default="", help="engine of the local worker: gvisor or process")
    p.add_argument("--database", default=None, help="URL of the record (default: SQLite in the data folder)")
    p.add_argument("--config", type=Path, default=None, help="configuration file (TOML)")
    return p


def from_arguments(arguments: list[str] | None = None) -> GatewayConfig:
    """Read command line and configuration file. Raises RequestError for what is wrong in either."""
    a = parser().parse_args(arguments)
    raw = _read_toml(a.config) if a.config else {}
    table = raw.get("gateway", {})
    if not isinstance(table, dict):
        raise _wrong("gateway", table, "a table")
    local = a.local_worker if a.local_worker is not None else table.get("local_worker", True)
    config = GatewayConfig(
        data_folder=a.data_dir.absolute(),
        run_folder=a.run_dir.absolute(),
        host=a.host or _text(table, "host", "127.0.0.1"),
        port=a.port if a.port is not None else int(_number(table, "port", 0, 0, 65535)),
        tls_cert=a.tls_cert or _path(table, "tls_cert"),
        tls_key=a.tls_key or _path(table, "tls_key"),
        database=a.database or _text(table, "database", ""),
        local_worker=bool(local),
        simulate_gpus=a.simulate_gpus or _text(table, "simulate_gpus", ""),
        engine=a.engine or _text(table, "engine", ""),
        disconnect_grace_seconds=_number(table, "disconnect_grace_seconds", DISCONNECT_GRACE_SECONDS, 1, 86400),
        max_timeout_seconds=_number(table, "max_timeout_seconds", MAX_TIMEOUT_SECONDS, 1, 30 * 86400),
        max_blobs_bytes=int(_number(table, "max_blobs_bytes", MAX_BLOBS_BYTES, 0, 2**50)),
        max_blob_bytes=int(_number(table, "max_blob_bytes", MAX_BLOB_BYTES, 1024**2, 2**50)),
        log_keep_days=_number(table, "log_keep_days", LOG_KEEP_DAYS, 1, 36500),
        parked_keep_days=_number(table, "parked_keep_days", PARKED_KEEP_DAYS, 0.01, 3650),
        max_images_bytes=_bound(table, "max_images_bytes"),
        max_snapshots_bytes=_bound(table, "max_snapshots_bytes"),
        volumes_url=_text(table, "volumes_url", ""),
        volumes_options=_table(table, "volumes_options"),
        volumes_sync=bool(table.get("volumes_sync", False)),
        bucket_endpoints=check_entries(_texts(table, "bucket_endpoints", [PUBLIC])),
        allowed_hosts=tuple(str(h).lower() for h in table.get("allowed_hosts", [])),
        prices_file=_path(table, "prices_file"),
        config_file=a.config,
        raw=raw,
    )
    check_listener(config)
    return config


def check_listener(config: GatewayConfig) -> None:
    """Raises RequestError when the gateway would be reachable from other machines without TLS."""
    if bool(config.tls_cert) != bool(config.tls_key):
        raise error(
            ErrorCode.BAD_ARGUMENT,
            "a certificate needs its key and a key its certificate",
            next="give --tls-cert and --tls-key",
        )
    if not config.is_loopback and not config.tls_cert:
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"host {config.host!r} can be reached from other machines, and without TLS tokens and code would be readable",
            allowed="127.0.0.1, ::1 or localhost without TLS; any address with --tls-cert and --tls-key",
            next="give a certificate, or stay on loopback and reach it through an ssh tunnel",
        )
    for file in (config.tls_cert, config.tls_key):
        if file is not None and not file.is_file():
            raise error(
                ErrorCode.BAD_ARGUMENT, f"there is no file {str(file)!r}", next="check --tls-cert and --tls-key"
            )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as why:
        raise error(ErrorCode.BAD_ARGUMENT, f"cannot read the configuration {str(path)!r}: {why.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise error(ErrorCode.BAD_ARGUMENT, f"the configuration {str(path)!r} is no valid TOML: {why}") from None


def _wrong(key: str, value: object, allowed: str) -> Exception:
    return error(ErrorCode.BAD_ARGUMENT, f"configuration: gateway.{key} = {value!r} cannot be used", allowed=allowed)


def _text(table: dict[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise _wrong(key, value, "a text")
    return value


def _texts(table: dict[str, Any], key: str, default: list[str]) -> list[str]:
    value = table.get(key, default)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _wrong(key, value, "a list of texts")
    return value


def _table(table: dict[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise _wrong(key, value, "a table")
    return value


def _path(table: dict[str, Any], key: str) -> Path | None:
    text = _text(table, key, "")
    return Path(text).expanduser() if text else None


def _bound(table: dict[str, Any], key: str) -> int:
    """Bytes; 0 where it is not configured. The same least as `cellburst_worker.options`."""
    return int(_number(table, key, 0, LEAST_BOUND_BYTES, 2**60)) if key in table else 0


def _number(table: dict[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(key, value, f"a number from {least:g} to {most:g}")
    return float(value)
