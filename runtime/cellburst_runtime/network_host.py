"""What the host's kernel is asked for containers' networks: `ip`, `nft`, and forwarding switched on and off again.

Forwarding is switched on per interface, never for the whole machine: the container's own and those of the default
routes. Which interfaces we switched, and for which installation, stands in one file per machine, since two
installations share an uplink: the last one to leave switches it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

MACHINE_FOLDER = Path("/run/cellburst-network")
_COMMAND_SECONDS = 10.0  # ip and nft answer in milliseconds; a hung netlink must not hang a start
_IPV4 = Path("/proc/sys/net/ipv4")


async def command(*arguments: str, text: str = "", check: bool = True) -> str:
    """Run a program with `text` on its input; its output. Raises PlatformError (START_FAILED) with its last line."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(text.encode()), _COMMAND_SECONDS)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if check and process.returncode:
        said = err.decode("utf-8", "replace").strip().splitlines() or [f"exit status {process.returncode}"]
        raise error(ErrorCode.START_FAILED, f"the network could not be set up: {' '.join(arguments)}: {said[-1]}")
    return out.decode("utf-8", "replace")


async def ipv4_routes() -> list[dict[str, str]]:
    """This host's IPv4 routes of all tables, as `ip -j` gives them."""
    found: list[dict[str, str]] = json.loads(await command("ip", "-4", "-j", "route", "show", "table", "all") or "[]")
    return found


def default_interfaces(routes: list[dict[str, str]]) -> list[str]:
    """Interfaces of the default routes."""
    return sorted({r["dev"] for r in routes if "dev" in r and r.get("dst", "default") == "default"})


def set_interface(interface: str, **values: int) -> None:
    """Set `net.ipv4.conf.INTERFACE.NAME` values."""
    for name, value in values.items():
        (_IPV4 / "conf" / interface / name).write_text(str(value), "ascii")


def disable_ipv6(interface: str) -> None:
    """Take IPv6 off one of the host's interfaces, where the kernel has it."""
    path = Path("/proc/sys/net/ipv6/conf") / interface / "disable_ipv6"
    if path.exists():
        path.write_text("1", "ascii")


def _machine_forwards() -> bool:
    return (_IPV4 / "ip_forward").read_text("ascii").strip() == "1"


class Forwarding:
    """Switches forwarding on for uplinks and, when nobody needs it, off again."""

    def __init__(self, owner: str, folder: Path = MACHINE_FOLDER) -> None:
        self._owner = owner
        self._folder = folder
        self._file = folder / "forwarding.json"

    def on(self, interfaces: list[str]) -> list[str]:
        """Switch it on for these; remembered before it is done, so that a kill in between is undone later.

        Returns the interfaces that forward only because of us: none once the machine itself forwards.
        """
        with self._locked() as record:
            for name in interfaces:
                switch = _IPV4 / "conf" / name / "forwarding"
                if name not in record and switch.read_text("ascii").strip() == "1":
                    continue  # not ours: it was on before
                owners = record.setdefault(name, [])
                if self._owner not in owners:
                    owners.append(self._owner)
            self._write(record)
            for name in record:
                with contextlib.suppress(FileNotFoundError):  # an interface that went away
                    set_interface(name, forwarding=1)
            return [] if _machine_forwards() else sorted(record)

    def off(self) -> None:
        """Switch off what only this installation needed, unless forwarding was meanwhile asked for by the machine."""
        if not self._file.exists():
            return
        machine_wide = _machine_forwards()
        with self._locked() as record:
            for name in list(record):
                record[name] = [o for o in record[name] if o != self._owner]
                if record[name]:
                    continue
                del record[name]
                if not machine_wide:
                    with contextlib.suppress(FileNotFoundError):
                        set_interface(name, forwarding=0)
            self._write(record)
            if not record:  # while the lock is held: else another's record would go with ours
                for leftover in (self._file, self._folder / "lock"):
                    leftover.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self._folder.rmdir()

    def _write(self, record: dict[str, list[str]]) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(record), "utf-8")
        part.replace(self._file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, list[str]]]:
        handle = self._lock()
        try:
            try:
                record = json.loads(self._file.read_text("utf-8"))
            except (FileNotFoundError, ValueError):
                record = {}
            yield record
        finally:
            os.close(handle)

    def _lock(self) -> int:
        """The machine's lock, held. The last to leave removes its file: who waited for that one takes the next."""
        while True:
            self._folder.mkdir(mode=0o755, exist_ok=True)
            try:
                handle = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # the folder went in between
            fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), (self._folder / "lock").stat()):
                    return handle
            os.close(handle)
