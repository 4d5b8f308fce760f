"""What a container wrote to a volume and could not publish at its end: kept on the worker's disk and tried again.

    FOLDER/<random>/files/     the changed files, under their paths
    FOLDER/<random>/item.json  which volume, whose, what was deleted; written last, so that half an item is none

Everything blocks and is called in a thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.volumes import VolumeMount
from cellburst_runtime.volume_scan import open_found

from .volume_commit import VolumeState, Writer
from .volume_gateway import GatewayVolumes

ITEM, FILES = "item.json", "files"

log = logging.getLogger(__name__)


class Item(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One volume's last changes of one container."""

    asked: VolumeMount
    by: str
    tag: str
    state: VolumeState
    deleted: list[str] = []


class Outbox:
    """The ones of one worker."""

    def __init__(self, folder: Path, gateway: GatewayVolumes) -> None:
        self.folder = folder
        self._gateway = gateway

    def keep(self, writer: Writer) -> None:
        """Keep what a writer has not published. Raises CellburstError, OSError."""
        changed, deleted = writer.unpublished()
        if not changed and not deleted:
            return
        place = self.folder / secrets.token_hex(8)
        try:
            for path, found in changed.items():
                target = place / FILES / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if found.kind == "folder":
                    target.mkdir(exist_ok=True)
                elif found.kind == "link":
                    target.symlink_to(found.target)
                else:
                    _copy(writer.folder, path, target)
                    target.chmod(found.mode)
                    os.utime(target, ns=(found.modified_ns, found.modified_ns))
            (place / FILES).mkdir(parents=True, exist_ok=True)
            state = msgspec.structs.replace(writer.state, known={})
            item = Item(asked=writer.asked, by=writer.by, tag=writer.tag, state=state, deleted=deleted)
            draft = place / f"{ITEM}.new"
            draft.write_bytes(msgspec.json.encode(item))
            draft.replace(place / ITEM)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        what = {"volume": writer.asked.name, "files": len(changed), "deleted": len(deleted)}
        log.warning("what a container wrote to a volume waits for the gateway", extra=what)

    @property
    def waiting(self) -> bool:
        """Whether there is anything to deliver."""
        try:
            return any(self.folder.iterdir())
        except OSError:
            return False

    def deliver(self) -> None:
        """Publish what waits. What cannot be yet stays; what never can (its volume is deleted) is dropped and logged."""
        for place in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            try:
                item = msgspec.json.decode((place / ITEM).read_bytes(), type=Item)
            except (OSError, msgspec.MsgspecError):
                shutil.rmtree(place, ignore_errors=True)  # half of one: its worker was killed while it was made
                continue
            writer = Writer(item.asked, self._gateway, place / FILES, None, item.by, item.tag, item.state)
            writer.deleted_too = item.deleted
            try:
                writer.commit(explicit=False, patient=False)
            except CellburstError as why:
                if why.code is ErrorCode.UNAVAILABLE:
                    return
                log.error(
                    "kept changes of a volume cannot be published", extra={"volume": item.asked.name, "why": str(why)}
                )
                if why.code is not ErrorCode.NOT_FOUND:
                    continue
            for text in writer.notices:
                log.warning(text)
            shutil.rmtree(place, ignore_errors=True)


def _copy(folder: Path, path: str, target: Path) -> None:
    fd = open_found(folder, path)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with open(fd, "rb", closefd=False) as source, open(target, "xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    finally:
        os.close(fd)
