"""What is sent to another machine: this very version as a wheel, `uv`, and where it must be, a Python.

The wheel is made of the files that run here, so that a checkout with changes goes as it is; its name in `versions/` is a hash of
its bytes. Packages of others are installed there from that machine's index, in the versions of this environment.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from . import __version__

# What a worker runs with; the gateway and the notebook's side stay here.
PACKAGES = ("cellburst", "cellburst_protocol", "cellburst_runtime", "cellburst_runner", "cellburst_worker")
DATE = (1980, 1, 1, 0, 0, 0)  # the same files are the same bytes
BLOCK_BYTES = 256 * 1024
# Of a Python: what only its developers use, and what belongs to this machine's packages; its modules go by themselves.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "tkinter", "ensurepip", "__pycache__",
            "lib2to3", "lib-dynload"}  # fmt: skip
C_LIBRARY = {"libc", "libm", "libdl", "libpthread", "librt", "libutil", "libresolv", "libnsl"}


@dataclass(frozen=True)
class Package:
    """A wheel: its file name, bytes, and the name of the folder that it is installed in there."""

    name: str
    data: bytes
    build: str


def package() -> Package:
    """This version as a wheel. Raises PlatformError (INTERNAL) where it is installed in no way that can be read."""
    name = f"cellburst-{__version__}"
    try:
        metadata = importlib.metadata.distribution("cellburst").read_text("METADATA") or ""
    except importlib.metadata.PackageNotFoundError:
        metadata = ""
    if not metadata:
        raise error(
            ErrorCode.NOT_FOUND, "this Cellburst is not installed as a package, so it cannot be sent",
            next="install it: pip install cellburst, or pip install -e of a checkout",
        )  # fmt: skip
    inside = f"{name}.dist-info"
    files = {path: data for one in PACKAGES for path, data in _files(one)}
    files[f"{inside}/METADATA"] = metadata.encode()
    files[f"{inside}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: cellburst\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{inside}/entry_points.txt"] = b"[console_scripts]\ncellburst = cellburst.cli:main\n"
    record = "".join(f"{path},sha256={_hash(data)},{len(data)}\n" for path, data in files.items())
    files[f"{inside}/RECORD"] = f"{record}{inside}/RECORD,,\n".encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, DATE), data, zipfile.ZIP_DEFLATED, 1)
    digest = hashlib.sha256("".join(record).encode()).hexdigest()[:8]
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Package(f"{name}-py3-none-any.whl", made.getvalue(), f"{__version__}-{digest}-py{minor}")


def _files(package: str) -> Iterator[tuple[str, bytes]]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise error(
            ErrorCode.NOT_FOUND,
            f"{package} is not installed here, and a worker there needs it",
            next="pip install 'cellburst[worker]'",
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{package}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def constraints() -> str:
    """The versions of this environment, one `name==version` a line: what is needed there is installed in these."""
    known: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        name, version = found.metadata["Name"], found.version
        if (
            name
            and re.fullmatch(r"[A-Za-z0-9._-]+", name)
            and re.fullmatch(r"[0-9A-Za-z.!]+", version)
            and name != "cellburst"
        ):
            known.setdefault(name.lower().replace("_", "-"), version)
    return "".join(f"{name}=={version}\n" for name, version in sorted(known.items()))


def find_uv() -> tuple[Path, str]:
    """uv's program here and its version. Raises RequestError (NOT_FOUND)."""
    beside = Path(sys.executable).with_name("uv")
    path = beside if beside.is_file() else Path(shutil.which("uv") or "")
    done = None
    if path.is_file():
        done = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=20, check=False)
    version = re.match(r"uv (\S+)", done.stdout) if done is not None else None
    if version is None:
        raise error(
            ErrorCode.NOT_FOUND,
            "there is no uv here, which installs Cellburst there",
            next="pip install 'cellburst[worker]'",
        )
    return path, version[1]


def find_runsc(data_folder: Path) -> Path | None:
    """gVisor's program, where a worker here finds it, or None."""
    configured = os.environ.get("CELLBURST_RUNSC")
    checkout = Path(__file__).resolve().parents[2] / ".tools" / "runsc"
    places = [data_folder / "tools" / "runsc", checkout, Path(shutil.which("runsc") or "none")]
    for place in [Path(configured)] if configured is not None else places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    return None


def compressed(path: Path) -> Iterator[bytes]:
    """A file, gzipped block by block."""
    with open(path, "rb") as file:
        packer = _Packer()
        while block := file.read(BLOCK_BYTES):
            yield packer.add(block)
        yield packer.end()


class _Packer:
    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._gzip = gzip.GzipFile(fileobj=self._out, mode="wb", compresslevel=1, mtime=0)

    def add(self, block: bytes) -> bytes:
        self._gzip.write(block)
        return self._taken()

    def end(self) -> bytes:
        self._gzip.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        return data


def python_name() -> str:
    """The folder's name for this machine's Python there."""
    return "sent-" + ".".join(str(n) for n in sys.version_info[:3])


def python_archive(target: Path) -> None:
    """This machine's Python as a gzipped tar archive at `target`: `bin/python3.X`, its library and its shared library.

    A Python finds its library from its own place (`lib/python3.X/os.py` beside `bin`), so it runs wherever it is unpacked, on a C
    library that is not older than this machine's: whoever unpacks it must try it. What its modules link to (OpenSSL, libffi, …)
    goes along, and is found there where they were built with a run path.
    """
    program = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    if not program.is_file():
        program = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        code = Path(os.path.realpath(program)).read_bytes()
        folder = str(sysconfig.get_config_var("LIBDIR") or "")
        shared = Path(folder, str(sysconfig.get_config_var("INSTSONAME") or "none"))
        if sysconfig.get_config_var("Py_ENABLE_SHARED") and shared.is_file():
            archive.add(os.path.realpath(shared), f"lib/{shared.name}", filter=_owned)
            code = _beside(code, folder, b"$ORIGIN/../lib")
        entry = tarfile.TarInfo(f"bin/python3.{sys.version_info.minor}")
        entry.size, entry.mode = len(code), 0o755
        archive.addfile(entry, io.BytesIO(code))
        archive.add(library, f"lib/{library.name}", filter=_kept)
        modules = sorted((library / "lib-dynload").glob("*.so"))
        for module in modules:
            code = _beside(module.read_bytes(), folder, b"$ORIGIN/../..")
            entry = tarfile.TarInfo(f"lib/{library.name}/lib-dynload/{module.name}")
            entry.size, entry.mode = len(code), 0o755
            archive.addfile(entry, io.BytesIO(code))
        for name, path in _linked(modules).items():
            archive.add(os.path.realpath(path), f"lib/{name}", filter=_owned)


def _linked(modules: list[Path]) -> dict[str, str]:
    """The shared libraries that these modules link to, less the C library's own: name -> path."""
    done = subprocess.run(["ldd", *map(str, modules)], capture_output=True, text=True, timeout=60, check=False)
    found = re.findall(r"^\s+(lib\S+) => (/\S+) ", done.stdout, re.MULTILINE)
    return {
        name: path
        for name, path in found
        if name.partition(".")[0] not in C_LIBRARY and not name.startswith("libpython")
    }


def _beside(code: bytes, folder: str, new: bytes) -> bytes:
    """A program whose run path is `folder` (ELF's DT_RUNPATH, a string that ends with NUL), with the run path `new` instead."""
    old = folder.encode() + b"\0"
    return code.replace(b"\0" + old, b"\0" + new.ljust(len(old), b"\0")) if folder and len(new) < len(old) else code


def _owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = entry.name.split("/")
    if (
        LEFT_OUT & set(parts)
        or any(part.startswith("config-") for part in parts)
        or entry.name.endswith((".pyc", ".a"))
    ):
        return None
    if entry.issym() or entry.islnk():
        return None if not entry.issym() or entry.linkname.startswith("/") else _owned(entry)
    return _owned(entry)


def python_file() -> tempfile._TemporaryFileWrapper[bytes]:
    """`python_archive` in a temporary file, removed when it is closed."""
    made = tempfile.NamedTemporaryFile(prefix="cellburst-python", suffix=".tar.gz")  # noqa: SIM115  the caller closes it
    python_archive(Path(made.name))
    return made
