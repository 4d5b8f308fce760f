"""Where volumes may be shown in a container: `/data:NAME`, `/data:NAME:ro`, `/data:NAME:last_write_wins`, with commas. No I/O.

Beside volumes there may be buckets, `/data:s3://BUCKET/PREFIX?secret=NAME` (see `buckets.py`), and network file systems,
`/data:nfs://NAME` (`?ro`: read-only).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence

from .buckets import SCHEME, bucket_id, bucket_text, parse_bucket
from .errors import ErrorCode, error
from .volumes import MAX_PATH_BYTES, VolumeMount, check_name, shown

MAX_VOLUMES = 16  # of one container: each is a mount, and a look at what was written every few seconds
# What a container's programs, its kernel and we ourselves need where it is.
SYSTEM_PATHS = (
    "/bin", "/boot", "/cellburst", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys",
    "/usr",
)  # fmt: skip
OPTIONS = ("ro", "last_write_wins")
SHARED = "nfs://"
_MARKS = (",", ":", '"')  # of a line; a name with one is refused, however it came
_FORM = (
    "/PATH:NAME, several with commas; /PATH:NAME:ro is read-only, /PATH:NAME:last_write_wins never tells conflicts;"
    " /PATH:s3://BUCKET/PREFIX?secret=NAME is a bucket, /PATH:nfs://NAME a network file system"
)


def parse_volumes(text: str, notebook_folder: str = "") -> list[VolumeMount]:
    """What `volumes=` says; ids are the gateway's to fill in. Raises RequestError (BAD_ARGUMENT)."""
    mounts: list[VolumeMount] = []
    for part in text.split(","):
        path, colon, rest = part.strip().partition(":")
        path = path.rstrip("/") or path
        if rest.startswith(SCHEME):
            source, read_only = parse_bucket(rest)
            mounts.append(
                VolumeMount(
                    volume=bucket_id(source, path), name=source.text, path=path, read_only=read_only, kind="bucket",
                    bucket=source,
                )
            )  # fmt: skip
            continue
        if rest.startswith(SHARED):
            mounts.append(_parse_shared(rest, path))
            continue
        name, *options = rest.split(":")
        if not colon or not name:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"volumes={shown(part)} does not say which volume is to be where", allowed=_FORM,
                next="for example volumes=/data:datasets",
            )  # fmt: skip
        if unknown := [option for option in options if option not in OPTIONS]:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{shown(unknown[0])} is no option of a volume", allowed=", ".join(OPTIONS),
                next=f"for example volumes={path}:{name}:ro",
            )  # fmt: skip
        mounts.append(
            VolumeMount(
                volume="", name=check_name(name), path=path, read_only="ro" in options,
                last_write_wins="last_write_wins" in options,
            )
        )  # fmt: skip
    check_mounts(mounts, notebook_folder)
    return mounts


def check_mounts(mounts: Sequence[VolumeMount], notebook_folder: str = "") -> None:
    """Whether these can stand in one container together. Raises RequestError (BAD_ARGUMENT)."""
    if len(mounts) > MAX_VOLUMES:
        raise error(ErrorCode.BAD_ARGUMENT, f"{len(mounts)} volumes in one container", allowed=f"at most {MAX_VOLUMES}")
    for mount in mounts:
        check_mount_path(mount.path, notebook_folder)
    for place, one in enumerate(mounts):
        for other in mounts[place + 1 :]:
            _check_pair(one, other)


def check_mount_path(path: str, notebook_folder: str = "") -> None:
    """Whether something may be shown at a path of a container. Raises RequestError (BAD_ARGUMENT)."""
    why = ""
    if not path.startswith("/") or path.startswith("//"):
        why = "it is not absolute"
    elif path == "/":
        why = "everything is below it"
    elif posixpath.normpath(path) != path:
        why = "it has an empty part, '.' or '..'"
    elif not path.isprintable() or "\\" in path or len(path.encode(errors="replace")) > MAX_PATH_BYTES:
        why = "it has characters that cannot be shown, or is too long"
    elif mark := next((mark for mark in _MARKS if mark in path), ""):
        why = f"{mark} has a meaning of its own in volumes=, so no line could say it"
    elif system := next((place for place in SYSTEM_PATHS if _is_at_or_below(path, place)), ""):
        why = f"{system} is the system's"
    elif notebook_folder and (_is_at_or_below(path, notebook_folder) or _is_at_or_below(notebook_folder, path)):
        why = f"the notebook's folder {notebook_folder} is there"
    if why:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"a volume cannot be shown at {shown(path)}: {why}",
            allowed=f"an absolute path without {' '.join(_MARKS)}, outside {', '.join(SYSTEM_PATHS)} and the notebook's folder",
            next="for example volumes=/data:NAME",
        )  # fmt: skip


def same_mounts(some: Sequence[VolumeMount], others: Sequence[VolumeMount]) -> bool:
    """Whether both show the same volumes at the same places in the same way; the order and names do not count."""

    def facts(mounts: Sequence[VolumeMount]) -> list[tuple[object, ...]]:
        return sorted((m.path, m.kind, m.volume, m.read_only, m.last_write_wins) for m in mounts)

    return facts(some) == facts(others)


def text_of(mounts: Sequence[VolumeMount]) -> str:
    """As a line's `volumes=` says it."""
    return ",".join(f"{m.path}:{_text(m)}" for m in mounts)


def shared_id(workspace: str, name: str) -> str:
    """The id under which a workspace's network file system is mounted: it also names a folder. Raises RequestError
    (BAD_ARGUMENT) for what is no name."""
    return f"n-{hashlib.sha256(workspace.encode()).hexdigest()[:16]}-{check_name(name)}"


def shared_mount(name: str, path: str, *, read_only: bool = False, workspace: str = "") -> VolumeMount:
    """A network file system at a path; the gateway fills in whose. Raises RequestError (BAD_ARGUMENT) for what is no name."""
    return VolumeMount(
        volume=shared_id(workspace, name), name=f"{SHARED}{name}", path=path, read_only=read_only, kind="shared"
    )


def shared_name(mount: VolumeMount) -> str:
    """The network file system's name. Raises RequestError (BAD_ARGUMENT)."""
    return check_name(mount.name.removeprefix(SHARED))


def _text(mount: VolumeMount) -> str:
    if mount.bucket is not None:
        return bucket_text(mount.bucket, read_only=mount.read_only)
    if mount.kind == "shared":
        return f"{mount.name}{'?ro' if mount.read_only else ''}"
    options = f"{':ro' if mount.read_only else ''}{':last_write_wins' if mount.last_write_wins else ''}"
    return f"{mount.name or mount.volume}{options}"


def _parse_shared(text: str, path: str) -> VolumeMount:
    name, _, option = text.removeprefix(SHARED).partition("?")
    if option not in ("", "ro"):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(option)} is no option of a network file system", allowed="ro",
            next=f"for example volumes={path}:{SHARED}{name}?ro",
        )  # fmt: skip
    return shared_mount(name, path, read_only=option == "ro")


def _check_pair(one: VolumeMount, other: VolumeMount) -> None:
    why = ""
    if one.path == other.path:
        why = f"{one.name} and {other.name} are both to be at {one.path}"
    elif _is_at_or_below(one.path, other.path) or _is_at_or_below(other.path, one.path):
        why = f"{one.path} and {other.path} lie in each other"
    elif (one.volume or one.name) == (other.volume or other.name):
        why = f"volume {one.name} is at {one.path} and at {other.path}"
    if why:
        raise error(
            ErrorCode.BAD_ARGUMENT, why, allowed="each volume once, each at a path of its own",
            next="for example volumes=/data:datasets,/models:models",
        )  # fmt: skip


def _is_at_or_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")
