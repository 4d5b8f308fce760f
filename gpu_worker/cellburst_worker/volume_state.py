"""What a container knows of a volume, on disk while it is parked; and folders of copies brought to another version."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from cellburst_protocol.volumes import VolumeFiles
from cellburst_runtime.volume_tree import Owner, VolumeStore

from .volume_commit import VolumeState, Writer


def renew(writer: Writer, folder: Path, files: VolumeFiles, owner: Owner, store: VolumeStore) -> None:
    """Copies: bring the folder to another version, where it differs."""
    known = writer.state.known
    now = {entry.path: entry for entry in files.entries}
    for path in sorted(known.keys() - now.keys(), reverse=True):
        target = folder / path
        with contextlib.suppress(OSError):
            target.rmdir() if target.is_dir() and not target.is_symlink() else target.unlink()
    for path, entry in now.items():
        if path in known and known[path].entry == entry:
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "folder":
            target.mkdir(exist_ok=True)
        elif entry.kind == "link":
            target.unlink(missing_ok=True)
            target.symlink_to(entry.target)
        else:
            store.copy_file(entry, owner, target)
    writer.state = VolumeState(version=files.version, shown_version=files.version)
    writer.know_all(files.entries)


def read_state(path: Path) -> VolumeState | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=VolumeState)
    except (OSError, msgspec.MsgspecError):
        return None


def write_state(path: Path, state: VolumeState) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(msgspec.json.encode(state))
    draft.replace(path)
