"""The gateway's folders and secret files: made private, checked, locked for one gateway at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cellburst_protocol.errors import ErrorCode, error

TOKEN_BYTES = 32  # 256 bits: not to be guessed, no rate limit needed for that


@dataclass(frozen=True)
class Secrets:
    """What the secret files hold. Never logged."""

    token: str
    worker_token: str
    master_key: bytes

    def __repr__(self) -> str:
        return "Secrets(…)"


def lock(path: Path) -> IO[str]:
    """Hold the lock of a data folder until the file is closed. Raises RequestError naming the holder's pid."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        pid = file.read().strip() or "unknown"
        file.close()
        raise error(
            ErrorCode.CONFLICT,
            f"a gateway with pid {pid} already uses the data folder {str(path.parent)!r}",
            next="use that one, or stop it with `cellburst down`",
            pid=pid,
        ) from None
    os.set_inheritable(file.fileno(), False)  # a worker we start must not keep the lock when we are gone
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def load_secrets(data: Path) -> Secrets:
    """Read the secret files, making those that are missing. Files that others could read are closed to them."""
    return Secrets(
        token=_secret(data / "token"),
        worker_token=_secret(data / "worker-token"),
        master_key=bytes.fromhex(_secret(data / "master-key", hex_form=True)),
    )


def _secret(path: Path, *, hex_form: bool = False) -> str:
    if path.exists():
        path.chmod(0o600)
        text = path.read_text("ascii").strip()
        if len(text) >= TOKEN_BYTES:
            return text
    text = secrets.token_hex(TOKEN_BYTES) if hex_form else secrets.token_urlsafe(TOKEN_BYTES)
    write_private(path, text)
    return text


def write_private(path: Path, text: str) -> None:
    """Write a 0600 file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_announcement(run: Path, announcement: dict[str, object]) -> None:
    """Write RUN/gateway.json, by which the user's programs find the gateway."""
    write_private(run / "gateway.json", json.dumps(announcement, indent=1))


def remove_announcement(run: Path, instance: str) -> None:
    """Remove RUN/gateway.json if it is still this gateway's."""
    path = run / "gateway.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text("utf-8")).get("instance") == instance:
            path.unlink()
