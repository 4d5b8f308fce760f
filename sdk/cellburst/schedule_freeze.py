"""A notebook and its folder on their way into a schedule: read, listed, hashed, sent.

Of the folder goes what a run could use: no `.git`, checkpoints, caches or environments, no other notebooks, nothing that holds
keys (DESIGN section 5), no links that lead out. Files that change while they are read are read again when they are sent.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.notebooks import MAX_NOTEBOOK_BYTES
from cellburst_protocol.schedules import MAX_FOLDER_BYTES, MAX_FOLDER_FILES, FrozenFile

from .blobs import BlobClient
from .sizes import size_text

READ_BYTES = 8 * 1024 * 1024
MAX_SEEN = 20 * MAX_FOLDER_FILES  # what is looked at in a folder before it is given up
# What a run never needs, whatever it is.
LEFT_OUT = frozenset(
    """.git .hg .svn .ipynb_checkpoints __pycache__ .venv venv node_modules .mypy_cache .pytest_cache .ruff_cache .tox
    .DS_Store .virtual_documents""".split()  # noqa: SIM905 - a word list is easier to read
)
# Names that hold keys; the worker masks the same ones again when it shows the folder (`cellburst_runtime.masks`).
SECRET_NAMES = frozenset(
    """.ssh .aws .azure .config .docker .gnupg .kube .gcloud .oci .netrc .pgpass .my.cnf .pypirc .npmrc .git-credentials
    .password-store .vault-token .env .envrc .boto .s3cfg .databrickscfg .terraform.d .jupyter .ipython .mozilla .cellburst
    credentials.json kaggle.json""".split()  # noqa: SIM905
)
SECRET_PATTERNS = (
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".env.*",
)
Mode = Literal["folder", "python_files", "none"]


@dataclass
class Frozen:
    """A notebook as it is now. `secret` are paths left out because they hold keys, `links` those that lead elsewhere."""

    path: Path
    data: bytes
    hash: str
    files: list[FrozenFile] = field(default_factory=list)
    sources: dict[str, Path] = field(default_factory=dict)  # by hash
    secret: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Of the notebook and all files."""
        return len(self.data) + sum(file.size_bytes for file in self.files)


def read_notebook(path: Path) -> bytes:
    """A notebook's bytes. Raises RequestError (NOT_FOUND, TOO_LARGE)."""
    try:
        size = path.stat().st_size
        if size <= MAX_NOTEBOOK_BYTES:
            return path.read_bytes()
    except OSError as why:
        raise error(
            ErrorCode.NOT_FOUND,
            f"{str(path)!r} cannot be read: {why.strerror}",
            next="give the path of a saved notebook",
        ) from None
    raise error(
        ErrorCode.TOO_LARGE, f"{path.name} has {size_text(size)}", allowed=f"at most {size_text(MAX_NOTEBOOK_BYTES)}",
        next="clear its outputs, and put data into files or a volume",
    )  # fmt: skip


def freeze(path: Path, mode: Mode = "folder", *, data: bytes | None = None) -> Frozen:
    """Read the notebook and what lies beside it. `mode` as in `MirrorSpec.notebook_mode`. Raises RequestError (NOT_FOUND,
    TOO_LARGE: with its size and the largest folders named, before anything is read)."""
    data = read_notebook(path) if data is None else data
    frozen = Frozen(path, data, blake3(data).hexdigest())
    if mode == "none":
        return frozen
    found = _walk(path.parent, frozen, python_only=mode == "python_files")
    if len(found) > MAX_FOLDER_FILES or sum(entry.st_size for _, entry in found) > MAX_FOLDER_BYTES:
        raise _too_large(path.parent, found)
    for relative, entry in found:
        hash = _hash_file(path.parent / relative)
        if hash is not None:
            frozen.files.append(
                FrozenFile(
                    path=relative, hash=hash, size_bytes=entry.st_size, executable=bool(entry.st_mode & stat.S_IXUSR)
                )
            )
            frozen.sources[hash] = path.parent / relative
    return frozen


def send(frozen: Frozen, blobs: BlobClient, say: Callable[[str], None] = lambda line: None) -> None:
    """Send what the gateway lacks; without a hash of the notebook only the files. Raises RequestError (CONFLICT) for a file that
    changed since it was read."""
    if frozen.hash:
        blobs.put(frozen.hash, frozen.data)
    for number, (hash, path) in enumerate(frozen.sources.items(), 1):
        if blobs.has(hash):
            continue
        name = "local files of its environment or image" if path.name == f"{hash}.tar" else path.name
        say(f"sending {name} ({number} of {len(frozen.sources)})")
        if _hash_file(path) != hash:
            raise error(ErrorCode.CONFLICT, f"{path} changed while it was read", next="schedule the notebook again")
        blobs.put_file(hash, path)


def files_of(folder: Path, *, python_only: bool) -> list[tuple[str, os.stat_result]]:
    """Relative paths of the files that a run could use, sorted. Raises RequestError (TOO_LARGE) for too many to look through."""
    return _walk(folder, Frozen(folder, b"", ""), python_only=python_only)


def _walk(folder: Path, frozen: Frozen, *, python_only: bool) -> list[tuple[str, os.stat_result]]:
    found: list[tuple[str, os.stat_result]] = []
    waiting = [""]
    seen = 0
    while waiting:
        prefix = waiting.pop()
        try:
            entries = sorted(os.scandir(folder / prefix), key=lambda entry: entry.name)
        except OSError:
            continue  # gone meanwhile, or not ours to read
        for entry in entries:
            relative = prefix + entry.name
            if entry.name in LEFT_OUT or entry.name.endswith(".ipynb"):
                continue
            if is_secret(entry.name):
                frozen.secret.append(relative)
                continue
            seen += 1
            if seen > MAX_SEEN:
                raise _too_large(folder, None)
            try:
                if entry.is_symlink() and not _inside(folder, entry.path):
                    frozen.links.append(relative)
                elif entry.is_dir(follow_symlinks=False):
                    if not python_only and not (Path(entry.path) / "pyvenv.cfg").exists():
                        waiting.append(relative + "/")
                elif entry.is_file() and (not python_only or entry.name.endswith(".py")):
                    found.append((relative, entry.stat()))
            except OSError:
                continue
    return sorted(found)


def is_secret(name: str) -> bool:
    """Whether a name is one that holds keys."""
    if name in SECRET_NAMES:
        return True
    if name in ("cacert.pem", ".env.example", ".env.sample", ".env.template") or name.endswith(".pub"):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SECRET_PATTERNS)


def _inside(folder: Path, link: str) -> bool:
    """Whether a link leads to a file below the folder that is no secret's."""
    real, base = Path(os.path.realpath(link)), Path(os.path.realpath(folder))
    return real.is_file() and real.is_relative_to(base) and not any(is_secret(p) for p in real.relative_to(base).parts)


def _hash_file(path: Path) -> str | None:
    hasher = blake3()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(READ_BYTES):
                hasher.update(chunk)
    except OSError:
        return None  # gone meanwhile, or not ours to read: then not the run's either
    return hasher.hexdigest()


def _too_large(folder: Path, found: Sequence[tuple[str, os.stat_result]] | None) -> CellburstError:
    """`found` None: there is so much in it that it was not even listed to its end."""
    sizes: dict[str, int] = {}
    for relative, entry in found or []:
        top = relative.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + entry.st_size
    most = ", ".join(f"{name} ({size_text(size)})" for name, size in sorted(sizes.items(), key=lambda one: -one[1])[:3])
    has = f"{len(found):,} files and {size_text(sum(sizes.values()))}" if found else f"more than {MAX_SEEN:,} files"
    return error(
        ErrorCode.TOO_LARGE,
        f"the folder {folder} is too large to be kept with a schedule: {has}{', most of it ' + most if most else ''}",
        allowed=f"{MAX_FOLDER_FILES:,} files and {size_text(MAX_FOLDER_BYTES)}",
        next="put data into a volume, or the notebook into a folder of its own, or leave the files here (`--no-folder`; in the"
        " form: files beside the notebook stay here)",
    )  # fmt: skip
