"""Parts that several messages share: values, environments, GPUs, containers as they are shown.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .resources import Resources
from .states import ContainerState


class BuildSecret(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A secret that steps of an image's build use: from the gateway to the worker that builds it, in memory only. `repr` shows no
    value."""

    version: int
    values: dict[str, str]

    def __repr__(self) -> str:
        return f"BuildSecret(version={self.version}, keys={sorted(self.values)})"


class ValuePart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Bytes of a pickled group: the pickle itself (part 0) or one of its out-of-band buffers.

    `hash` is BLAKE3 in hex. `at` says where the bytes are: "inline" (the next raw buffer of this message), "blob" (the
    blob of that hash), "there" (the container has them, nothing is sent).
    """

    hash: str
    size_bytes: int
    at: Literal["inline", "blob", "there"] = "there"


class NameGroup(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Names that share objects and so travel in one pickle (a dict of name -> value, pickle protocol 5).

    `hash` is BLAKE3 over the parts' hashes in order: the group's identity. When every part is "there" and the
    container has the group, nothing is unpickled again. `known_as` is the container's own token for values that came home
    from it and have not changed since: it has them under that token, not under the hash.
    """

    names: list[str]
    hash: str
    parts: list[ValuePart]
    known_as: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(p.size_bytes for p in self.parts)


class RemoteName(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A name that stays in the container: what a `Remote` handle shows without fetching."""

    name: str
    type: str
    size_bytes: int = 0
    shape: str = ""
    length: int | None = None
    head: str = ""
    why: Literal["too_large", "unpicklable", "not_asked", "python_differs"] = "too_large"
    detail: str = ""


class FileChange(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A file that the session wrote or deleted in its layer over the notebook's folder; `path` is relative to it."""

    path: str
    size_bytes: int = 0
    deleted: bool = False


class MirrorSpec(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The kernel's own environment, as the kernel found it. Paths are absolute and as the kernel names them (unresolved).

    `identity` is a BLAKE3 hash of interpreter, dist-info set, `.pth` files and editable sources: a container whose
    mirror has another identity is out of date. `packages` (name -> version) is for telling what changed.
    """

    executable: str
    python_version: str  # "3.11.7"
    prefix: str
    base_prefix: str
    sys_path: list[str] = []
    extra_paths: list[str] = []  # editable targets, .pth targets, user site, LD_LIBRARY_PATH entries, conda prefix
    links: list[str] = []  # every hop of the symlink chain from executable to the real interpreter
    environment: dict[str, str] = {}  # allow-listed variables only
    user: str = "user"
    home: str = "/home/user"
    uid: int = 1000
    notebook_folder: str = ""
    notebook_mode: Literal["folder", "python_files", "none"] = "folder"
    notebook_note: str = ""
    mounts: list[str] = []  # asked for with mount=PATH
    identity: str = ""
    packages: dict[str, str] = {}
    machine_id: str = ""


class GpuShown(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A GPU of the inventory or of a lease, as it is shown: `index` is the machine's, `uuid` NVML's (or SIM-…)."""

    index: int
    uuid: str
    type: str
    name: str
    memory_mib: int = 0
    simulated: bool = False
    in_use: str = ""  # why it cannot be leased although no lease holds it


class GpuUsage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Live figures of one GPU from NVML. A figure that NVML does not give is None."""

    uuid: str
    utilization_ratio: float | None = None
    memory_used_mib: int | None = None
    memory_total_mib: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    simulated: bool = False


class ContainerUsage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One container's usage over the last second. `uptime_seconds` is monotonic, counted by the worker from the lease."""

    container: str
    uptime_seconds: float
    cpu_cores: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    gpus: list[GpuUsage] = []


class EngineInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An engine a worker has, and what it isolates. `warning` is shown to the user whenever the engine is used."""

    name: str
    isolates: bool
    snapshot: bool = False
    network: bool = False
    gpu: bool = False
    unprivileged: bool = False
    version: str = ""
    warning: str = ""


class Inventory(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a worker's machine has to lease."""

    hostname: str
    cpu_cores: float
    memory_mib: int
    gpus: list[GpuShown] = []
    engines: list[EngineInfo] = []  # first is preferred
    python_versions: list[str] = []
    notes: list[str] = []


class PhaseTime(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How long one phase of a start took."""

    name: Literal["queue", "image", "restore", "boot", "enter", "values", "run"]
    seconds: float
    detail: str = ""


StartKind = Literal["boot", "template", "snapshot", "names"]
"""How a container came up, from the slowest rung: an engine's cold boot; a restored template of its image; the session's own
snapshot (the process as it was); a boot or template into which the parked session's names were loaded by value."""


class ParkedInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A parked session's bytes, as its worker keeps them and as lists show them.

    `kind` "snapshot" has the process and the names by value, "names" only the latter (an engine without snapshots, or no
    disk for one). `lost` are names that could not be saved by value: they come back with the snapshot or not at all.
    `parked_unix_seconds` 0: its worker was lost while it parked, and it is not known yet whether it was kept.
    `expires_unix_seconds` 0 and `resources` (what its container was asked for) None: the gateway has not said.
    """

    id: str
    session: str
    kind: Literal["snapshot", "names"] = "snapshot"
    size_bytes: int = 0
    names: list[str] = []
    lost: list[RemoteName] = []
    parked_unix_seconds: float = 0.0
    expires_unix_seconds: float = 0.0
    worker: str = ""
    resources: Resources | None = None


class WarmContainer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A restored container that waits for a session: what a warm pool holds. It costs its machine, and nobody is billed."""

    id: str
    image: str
    memory_mib: int = 0
    age_seconds: float = 0.0


class SnapshotUsage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a worker keeps on disk and warm. `limit_bytes` bounds templates and parked sessions together."""

    template_count: int = 0
    template_bytes: int = 0
    parked_count: int = 0
    parked_bytes: int = 0
    limit_bytes: int = 0
    warm: list[WarmContainer] = []


class ContainerInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A container as it is shown to people. `resources` is what it was asked for (of the limits of a call: the first's)."""

    id: str
    worker: str = ""
    machine: str = ""
    engine: str = ""
    isolates: bool = True
    network: str = ""
    gpus: list[GpuShown] = []
    cpu: float = 0.0
    memory_mib: int = 0
    usd_per_second: str = "0"
    price_note: str = ""
    resources: Resources | None = None
    python_version: str = ""  # of its executor, once it runs: "3.13.0"
    image: str = ""  # id of the built image that it was made from; "" is a mirror
    state: ContainerState = ContainerState.PLACED
    uptime_seconds: float = 0.0
    phases: list[PhaseTime] = []  # of its start
    notes: list[str] = []  # lesser modes, said once: no network, process engine, ...
