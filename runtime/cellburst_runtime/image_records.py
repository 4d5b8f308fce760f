"""The images that were built, by name: one small file each, `IMAGES/images/ID.json`; its time is the last use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

import msgspec


class ImageRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One image of the store, for `cellburst image ls`. Times are Unix seconds; `size_bytes` counts shared layers too."""

    id: str
    steps: list[str]
    layers: list[str]
    built_unix_seconds: float
    used_unix_seconds: float = 0.0
    size_bytes: int = 0


class ImageRecords:
    """All methods block briefly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def note(self, record: ImageRecord) -> None:
        """It was built, or used, now."""
        path = self._folder / f"{record.id}.json"
        if path.exists():
            os.utime(path)
            return
        draft = path.with_suffix(f".{token_hex(4)}.part")
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(path)

    def whole(self, sizes: Mapping[str, int]) -> list[ImageRecord]:
        """The images whose layers are all in `sizes` (key -> bytes), last used first."""
        found: list[ImageRecord] = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                record = msgspec.json.decode(path.read_bytes(), type=ImageRecord)
                if all(key in sizes for key in record.layers):
                    record.used_unix_seconds = path.stat().st_mtime
                    record.size_bytes = sum(sizes[key] for key in set(record.layers))
                    found.append(record)
        return sorted(found, key=lambda record: -record.used_unix_seconds)

    def forget_others(self, sizes: Mapping[str, int]) -> None:
        """Delete those of which a layer is not in `sizes`."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                if not set(msgspec.json.decode(path.read_bytes(), type=ImageRecord).layers) <= sizes.keys():
                    path.unlink()
