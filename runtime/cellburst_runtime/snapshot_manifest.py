"""What a kept snapshot says of itself: which session or template it is, by which key, and the live files it stands on."""

from __future__ import annotations

from typing import Literal

import msgspec

from cellburst_protocol.messages import NameGroup, RemoteName

SnapshotKind = Literal["template", "session"]
CHECKPOINT, NAMES, STORE, MANIFEST = "checkpoint", "names", "store.img", "manifest.json"


class LiveFile(msgspec.Struct, kw_only=True):
    """A file that a checkpointed process has mapped or open in a live mount, as it was at the checkpoint.

    `path` is the container's, `host_path` where it lies on this machine. `inode` 0: it was not found there, and the
    checkpoint cannot be restored.
    """

    path: str
    host_path: str = ""
    device: int = 0
    inode: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0


class Manifest(msgspec.Struct, kw_only=True):
    """`manifest.json` of a snapshot folder, beside `checkpoint/` (the engine's image), `names/` and `store.img`.

    `id` is the folder's name; a template's is its key. `key_parts` explain a mismatch of keys. A group's part of hash H is
    the file `names/H`, whatever its `at` says. `size_bytes` is what it takes on disk, set by `Draft.commit`. `layers` are the
    keys of the image's layers that it stands on. `encrypted`: the session was given a secret once, and checkpoint and store are
    `sealed_files` under a key that this machine does not keep. `memory_mib` and `sizes_mib` are those of its
    `ContainerSpec`, 0 where they were not kept.
    """

    kind: SnapshotKind
    id: str
    key: str = ""
    key_parts: dict[str, str] = {}
    session: str = ""
    notebook: str = ""
    workspace: str = ""
    parked_unix_seconds: float = 0.0
    size_bytes: int = 0
    live_files: list[LiveFile] = []
    names: list[NameGroup] = []
    lost: list[RemoteName] = []
    preloaded: list[str] = []
    layers: list[str] = []
    encrypted: bool = False
    memory_mib: int = 0
    sizes_mib: int = 0


class SnapshotUnusable(Exception):
    """A snapshot cannot be restored here now; `reason` is for the user."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
