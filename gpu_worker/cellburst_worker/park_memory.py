"""Memory for putting a session away whose container is nearly full. Pure.

Its names are pickled inside it, beside what they are made of, so a container near its limit would be ended by the kernel
while it is put away. It may use more than its limit for that time, of what the machine has free; where that is not enough
for its names, fewer of them are kept by value (the snapshot has them all), and without any to spare it is not begun.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellburst_protocol.errors import ErrorCode, error
from cellburst_runtime.engine import Usage

FREEZE_BYTES = 64 << 20  # hooks, the lists of names and files, the sandbox's own tables
PER_BYTE = (
    4  # of a name by value: its pickle, the buffer that grows, and the file's pages until they are on disk, twice
)
MACHINE_BYTES = 256 << 20  # left to the machine
_MIB = 1 << 20


@dataclass(frozen=True)
class Room:
    """So much more than its limit the container may use; so much its names may take by value (at least 1: 0 is no limit)."""

    more_mib: int
    names_bytes: int


def room(usage: Usage, names_limit_bytes: int, free_bytes: int, *, whole: bool) -> Room:
    """What to give a container that uses `usage` and is to be put away. `names_limit_bytes`: 0 is no limit; `free_bytes` is the
    machine's memory that nobody uses. `whole`: its processes are kept as well, so for the names it gets no more than its limit
    once more. Raises PlatformError (UNAVAILABLE)."""
    used, limit = usage.memory_bytes, usage.memory_limit_bytes
    if used is None or limit is None:
        return Room(0, names_limit_bytes)
    names = min(used, names_limit_bytes or used)
    left = max(0, limit - used)
    more = max(0, FREEZE_BYTES + PER_BYTE * names - left)
    given = min(more, max(0, free_bytes - MACHINE_BYTES), max(limit, FREEZE_BYTES) if whole else more)
    if given == more:
        return Room(-(-more // _MIB), names_limit_bytes)
    if left + given < FREEZE_BYTES:
        raise error(
            ErrorCode.UNAVAILABLE, f"this session uses {used // _MIB} of its {limit // _MIB} MiB: to put it away it needs "
            f"{FREEZE_BYTES // _MIB} MiB more, and the machine has {max(0, free_bytes - MACHINE_BYTES) // _MIB} MiB to spare",
            next="delete what it does not need (`del name`), or `%modal stop`; it lives on until then",
        )  # fmt: skip
    return Room(given // _MIB, max(1, (left + given - FREEZE_BYTES) // PER_BYTE))
