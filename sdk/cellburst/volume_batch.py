"""What is to be put into a volume: collected in a `with` block, sent at its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import shown

from .volume_files import stored_path
from .volume_put import PutReport, Upload, file_upload, scan


class Batch:
    """What is to be put. Local files are looked at when they are named, and read at the end of the block."""

    def __init__(self) -> None:
        self.report = PutReport()
        self._uploads: list[Upload] = []

    def put_file(
        self, local_file: str | os.PathLike[str] | BinaryIO, remote_path: str, mode: int | None = None
    ) -> None:
        """A file, by its path or open in binary mode (read from its beginning). A `remote_path` that ends with "/" is the folder
        for it. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        if isinstance(local_file, str | os.PathLike):
            local = os.fspath(local_file)
            name = os.path.basename(local)  # noqa: PTH119
            upload = file_upload(local, _named(remote_path, name), follow=True)
        elif callable(getattr(local_file, "read", None)):
            name = os.path.basename(str(getattr(local_file, "name", "")))  # noqa: PTH119
            upload = Upload(stored_path(_named(remote_path, name)), source=local_file)
        else:
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"{shown(repr(local_file))} is no file",
                allowed="a path, or a file opened with 'rb'",
            )
        if not upload.path:
            raise error(ErrorCode.BAD_ARGUMENT, "a file needs a name in the volume", next='for example "/data/a.csv"')
        upload.mode = mode
        self._uploads.append(upload)

    def put_directory(self, local_path: str | os.PathLike[str], remote_path: str, *, recursive: bool = True) -> None:
        """All that a folder holds, under `remote_path`; without `recursive` its own files only. Links are stored as links."""
        local, remote = Path(local_path), stored_path(remote_path)
        if not local.is_dir():
            raise error(ErrorCode.NOT_FOUND, f"there is no folder {shown(str(local))}", next="put_file() is for files")
        depth = remote.count("/") + 1 if remote else 0
        for upload in scan(local.resolve(), remote, self.report):
            if recursive or (upload.path.count("/") == depth and upload.kind != "folder"):
                self._uploads.append(upload)

    def uploads(self) -> list[Upload]:
        """All that was named."""
        return list(self._uploads)


def _named(remote: str, name: str) -> str:
    return remote + name if remote.endswith("/") else remote
