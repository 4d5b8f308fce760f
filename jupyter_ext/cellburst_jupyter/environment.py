"""The kernel's own environment, described for the mirror: what a container must see to import what this kernel imports.

Runs in the user's kernel before each cell, so it uses the standard library, blake3 and our protocol only, and costs
some `stat` calls when nothing changed. `environment_paths` reads folders, `environment_notebook` knows the notebook.
"""

# Names are kept as the kernel has them: os.path neither resolves nor rewrites them, and is fast.
# ruff: noqa: PTH100, PTH111, PTH116, PTH117
from __future__ import annotations

import os
import platform
import pwd
import site
import sys
import sysconfig
from collections.abc import Iterable, Sequence

import blake3

from cellburst_protocol.messages import MirrorSpec

from .environment_notebook import find_notebook, folder_rule
from .environment_paths import FolderScan, existing, is_below, is_site_folder, link_chain, scan_folder

__all__ = ["collect_environment", "describe_drift", "find_notebook", "folder_rule", "machine_id"]

# Variables that change how code behaves and can hold no secret. Nothing else of the kernel's environment leaves it.
_ALLOWED = frozenset(
    """LANG LANGUAGE TZ TERM COLORTERM NO_COLOR FORCE_COLOR CLICOLOR
    PYTHONPATH PYTHONHOME PYTHONNOUSERSITE PYTHONHASHSEED PYTHONUTF8 PYTHONIOENCODING PYTHONWARNINGS PYTHONOPTIMIZE
    PYTHONDONTWRITEBYTECODE PYTHONFAULTHANDLER PYTHONUNBUFFERED PYTHONDEVMODE PYTHON_GIL
    OMP_NUM_THREADS OMP_PROC_BIND MKL_NUM_THREADS OPENBLAS_NUM_THREADS NUMEXPR_NUM_THREADS NUMEXPR_MAX_THREADS
    VECLIB_MAXIMUM_THREADS POLARS_MAX_THREADS RAYON_NUM_THREADS NUMBA_NUM_THREADS KMP_DUPLICATE_LIB_OK
    HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE TRANSFORMERS_CACHE TORCH_HOME HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
    TOKENIZERS_PARALLELISM KERAS_BACKEND TF_CPP_MIN_LOG_LEVEL TF_ENABLE_ONEDNN_OPTS TF_FORCE_GPU_ALLOW_GROWTH
    XLA_PYTHON_CLIENT_PREALLOCATE XLA_PYTHON_CLIENT_MEM_FRACTION JAX_ENABLE_X64 PYTORCH_CUDA_ALLOC_CONF
    PYTORCH_ALLOC_CONF CUBLAS_WORKSPACE_CONFIG
    LD_LIBRARY_PATH CONDA_PREFIX CONDA_DEFAULT_ENV VIRTUAL_ENV SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE
    CURL_CA_BUNDLE""".split()  # noqa: SIM905 - a word list is easier to read
)
_MOST_VALUE_BYTES = 32768  # of one variable: the longest sensible search path, far below the limit on a command line
_MOST_DRIFT_LINES = 8  # what fits above a cell's output


def collect_environment(*, notebook_folder: str, mounts: Sequence[str] = ()) -> MirrorSpec:
    """Describe the running interpreter. Paths are absolute and as Python names them (links are not resolved).

    `mounts` are the folders of `mount=PATH`. Under 50 ms when nothing changed since the last time.
    """
    executable = sys.executable or getattr(sys, "_base_executable", "")
    chain = [hop for start in (executable, getattr(sys, "_base_executable", "")) if start for hop in link_chain(start)]
    sys_path = existing(entry for entry in sys.path if entry)
    scans = {entry: scan for entry in sys_path if (scan := scan_folder(entry)) is not None}
    targets = _targets(scans)
    user, uid, home = _person()
    mode, note = folder_rule(notebook_folder)
    return MirrorSpec(
        executable=executable,
        python_version=platform.python_version(),
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        sys_path=sys_path,
        extra_paths=existing([*targets, *_user_site(), *_environment_paths()]),
        links=list(dict.fromkeys(chain)),
        environment=_allowed_environment(),
        user=user,
        home=home,
        uid=uid,
        notebook_folder=os.path.abspath(notebook_folder) if notebook_folder else "",
        notebook_mode=mode,
        notebook_note=note,
        mounts=[os.path.abspath(os.path.expanduser(m)) for m in mounts],
        identity=_identity(chain, scans, targets),
        packages=_packages(scans),
        machine_id=machine_id(),
    )


def describe_drift(old: MirrorSpec, new: MirrorSpec) -> str:
    """What changed from one mirror to another, a change a line ("pandas 2.2.3 -> 3.1.0"); "" if they are the same."""
    if old.identity == new.identity:
        return ""
    lines: list[str] = []
    if old.python_version != new.python_version:
        lines.append(f"Python {old.python_version} -> {new.python_version}")
    if old.executable != new.executable:
        lines.append(f"interpreter {old.executable} -> {new.executable}")
    for name in sorted(old.packages.keys() | new.packages.keys()):
        before, after = old.packages.get(name), new.packages.get(name)
        if before == after:
            continue
        if before is None:
            lines.append(f"{name} {after} installed")
        else:
            lines.append(f"{name} {before} -> {after}" if after else f"{name} {before} removed")
    gone = [p for p in old.extra_paths if p not in new.extra_paths]
    lines += [f"{path} added" for path in new.extra_paths if path not in old.extra_paths]
    lines += [f"{path} no longer there" for path in gone]
    if not lines:
        lines.append(".pth files or editable installs changed")
    more = len(lines) - _MOST_DRIFT_LINES
    return "\n".join([*lines[:_MOST_DRIFT_LINES], *([f"and {more} more"] if more > 0 else [])])


def machine_id() -> str:
    """The same for two processes that see the same files on the same running machine: boot id and root folder.

    `/etc/machine-id` is not enough, since machines cloned from one image may share it, nor is the boot id, which
    containers share with their host. `cellburst_runtime.mirror.machine_id` is the worker's side.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = platform.node()
    root = os.stat("/")
    return f"{boot}:{root.st_dev}:{root.st_ino}"


def _person() -> tuple[str, int, str]:
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = os.environ.get("USER") or "user"
    return name, uid, os.path.abspath(os.path.expanduser("~"))


def _targets(scans: dict[str, FolderScan]) -> list[str]:
    """Where `.pth` files and editable installs point, outside the folders that have them."""
    found: list[str] = []
    for folder, scan in scans.items():
        if is_site_folder(folder):
            found += [t for t in scan.targets if not is_below(t, folder)]
    return list(dict.fromkeys(found))


def _user_site() -> list[str]:
    if not site.ENABLE_USER_SITE:
        return []
    return [site.getusersitepackages()]


def _environment_paths() -> Iterable[str]:
    get = os.environ.get
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
        yield from (entry for entry in get(name, "").split(os.pathsep) if os.path.isabs(entry))
    for name in ("CONDA_PREFIX", "PYTHONHOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        yield get(name, "").split(os.pathsep)[0]


def _allowed_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if (name in _ALLOWED or name.startswith("LC_")) and len(value) <= _MOST_VALUE_BYTES
    }


def _packages(scans: dict[str, FolderScan]) -> dict[str, str]:
    packages: dict[str, str] = {}
    for scan in scans.values():  # the first on sys.path is the one that is imported
        packages = scan.packages | packages
    return packages


def _identity(chain: list[str], scans: dict[str, FolderScan], targets: list[str]) -> str:
    """BLAKE3 over interpreter, its version and build, installed distributions, `.pth` texts and editable targets."""
    hasher = blake3.blake3()
    rows: list[str] = ["cellburst mirror 1", sys.version, sysconfig.get_platform(), sys.prefix, sys.base_prefix, *chain]
    for folder, scan in sorted(scans.items()):
        # A notebook's own folder is on sys.path without being a place where packages are installed.
        if scan.packages or scan.texts:
            rows.append(f"folder {folder}")
            rows += [f"package {n} {v}" for n, v in sorted(scan.packages.items())]
            rows += [f"text {name} {text}" for name, text in sorted(scan.texts.items())]
    rows += [f"target {t}" for t in sorted(targets)]
    for row in rows:
        data = row.encode("utf-8", "surrogateescape")
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()
