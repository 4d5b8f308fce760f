"""A notebook's folder as one pack, for a session whose machine cannot show it.

What a scheduled run would not be given either stays here (`.git`, caches, environments, other notebooks, what holds keys, links
that lead out), and of the rest the largest files, where all are more than goes along.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.images import FilePack

from .image_packs import PackedFile, PackWriter
from .schedule_freeze import files_of
from .sizes import size_text

MAX_BYTES = 128 << 20  # a minute over a line of 20 Mbit/s, before the session's first cell
MAX_FILES = 5000
SHOWN_FILES = 4


@dataclass(frozen=True)
class FolderPack:
    """The pack, the bytes of its files, and those of the folder's files that are not in it, the largest first."""

    pack: FilePack
    size_bytes: int
    left_out: tuple[tuple[str, int], ...] = ()

    def words(self) -> str:
        """What went along, in a sentence."""
        text = f"the notebook's folder went along as it is now: {self.pack.files} files, {size_text(self.size_bytes)}"
        if self.left_out:
            names = ", ".join(
                f"{name} ({size_text(size)})" for name, size in itertools.islice(self.left_out, SHOWN_FILES)
            )
            more = f" and {len(self.left_out) - SHOWN_FILES} more" if len(self.left_out) > SHOWN_FILES else ""
            text += f"; not {names}{more}, as {size_text(MAX_BYTES)} do: `%modal put FILE` sends one"
        return text


def pack_folder(folder: Path, packs: PackWriter, *, python_only: bool = False) -> FolderPack | None:
    """Pack what of the folder goes along; None where that is nothing. `python_only`: the .py files beside the notebook.

    Raises RequestError for a folder with too many files to look through (TOO_LARGE), or one whose files change meanwhile."""
    found = sorted(files_of(folder, python_only=python_only), key=lambda one: (one[1].st_size, one[0]))
    entries: list[PackedFile] = []
    left: list[tuple[str, int]] = []
    total = 0
    for name, status in found:
        if total + status.st_size > MAX_BYTES or len(entries) == MAX_FILES:
            left.append((name, status.st_size))
            continue
        total += status.st_size
        entries.append(PackedFile(name, folder / name, executable=bool(status.st_mode & 0o100)))
    if not entries and not left:
        return None
    return FolderPack(packs.write(entries), total, tuple(reversed(left)))
