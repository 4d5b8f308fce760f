"""Plans the mirror: a container's file system that lets it import what the kernel imports, and shows nothing else.

A live read-only view, for a container on the kernel's own machine. `plan_mirror` is called by the worker with what the
kernel said (`MirrorSpec`); nothing in it is trusted to be harmless: each path is checked by `mirror_rules`. Binds are
collected by `mirror_places`, the files of `/etc` made by `etc_files`. The notebook's folder itself is shown by the
engine's layer, at `MirrorPlan.working_folder`.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import MirrorSpec

from .engine import Mount
from .etc_files import etc_files, loader_folders, zone_name
from .mirror_places import Places
from .mirror_rules import ETC_FOLDERS, homes_with, is_below, refusal
from .network_rules import NAMESERVER

HOME_BYTES = 1 << 30  # of the container's own home, in memory: settings and small files; counted to its memory limit
ORDINARY_UID = 1000  # what root's containers run as: user code never runs as uid 0
OWN_HOME = "/home/user"  # where the user's own home cannot be a folder of the container's
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What of a prefix is needed, where the prefix as a whole cannot be shown (`python -m venv ~`).
_PREFIX_PARTS = (
    "bin",
    "lib",
    "lib64",
    "include",
    "pyvenv.cfg",
    "conda-meta",
    "share/jupyter",
    "etc/jupyter",
    "etc/ipython",
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")
# Locations on the host that the container has in another place.
REPLACED = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE", "TORCH_HOME", "PATH", "HOME", "USER")
_CACHES = {"huggingface": "HF_HOME", "torch": "TORCH_HOME"}


@dataclass(frozen=True)
class MirrorPlan:
    """A container's file system and environment.

    `mounts` are ordered parents first; the engine adds its own (`/proc`, `/tmp`, the notebook's layer) and orders again.
    `links` and `root_files` are of the root file system. `working_folder` is the notebook's folder by its real path, or
    the home. `python` is the interpreter's command line. `sys_path` is the kernel's, for the executor to append what
    its own lacks. `notes` are lines for the user: what is not shown, and why. `own_folders` are folders of an image in
    which the user may write.
    """

    mounts: tuple[Mount, ...]
    links: dict[str, str]
    root_files: dict[str, bytes]
    environment: dict[str, str]
    working_folder: str
    python: list[str]
    notes: list[str]
    sys_path: list[str] = field(default_factory=list)
    uid: int = ORDINARY_UID
    gid: int = ORDINARY_UID
    home: str = OWN_HOME
    own_folders: tuple[str, ...] = ()


def plan_mirror(
    spec: MirrorSpec,
    *,
    shared_machine: bool = True,
    cpu: float | None = None,
    cache_folder: Path | None = None,
    private_folders: Sequence[Path] = (),
    hostname: str = "cellburst",
    nameserver: str = NAMESERVER,
) -> MirrorPlan:
    """Plan the mirror of a kernel's environment.

    `shared_machine`: kernel and worker see the same files (`MirrorSpec.machine_id` is `machine_id()` here).
    `cache_folder` is a folder of ours that keeps model caches; `private_folders` (data, run) are never shown.

    Raises RequestError: NOT_YET for another machine's kernel, FORBIDDEN for a notebook folder or `mount=` that is never
    shown. What does not exist, or is not shown and was not asked for by name, is a note.
    """
    if not shared_machine:
        raise error(
            ErrorCode.NOT_YET,
            f"the notebook's kernel (Python {spec.python_version}) is not on this worker's machine: nothing to mirror",
            next="run the kernel on the worker's machine",
        )
    home, home_name = real_home(spec)
    private = [os.path.realpath(p) for p in private_folders]
    notebook = notebook_place(spec, home, private)
    shows_folder = bool(notebook) and spec.notebook_mode == "folder"
    places = Places(home=home, private=private, notebook=notebook if shows_folder else "")
    _show_system(places)
    _show_python(places, spec)
    _show_sources(places, spec)
    show_asked(places, spec)
    places.name(home_name)
    if notebook:
        places.name(spec.notebook_folder)
        places.note(spec.notebook_note)
    uid = spec.uid if spec.uid > 0 else ORDINARY_UID
    caches = model_caches(places, cache_folder, home, uid)
    mounts = [
        Mount(destination=home, kind="tmpfs", read_only=False, size_bytes=HOME_BYTES, mode=0o777),
        *places.mounts(),
        *caches,
    ]
    environment = _environment(spec, home_name, cpu)
    zone = environment.get("TZ", "")
    return MirrorPlan(
        mounts=ordered(mounts),
        links=places.links(),
        root_files=etc_files(
            user=spec.user if spec.uid > 0 else "user",
            uid=uid,
            gid=uid,
            home=home_name,
            hostname=hostname,
            zone=zone,
            nameserver=nameserver,
        ),
        environment=environment,
        working_folder=notebook or home,
        python=[spec.executable],
        notes=places.notes,
        sys_path=list(spec.sys_path),
        uid=uid,
        gid=uid,
        home=home,
    )


def machine_id() -> str:
    """The same for two processes that see the same files on the same running machine: boot id and root folder.

    The kernel's side is `cellburst_jupyter.environment.machine_id`.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = platform.node()
    root = Path("/").stat()
    return f"{boot}:{root.st_dev}:{root.st_ino}"


def real_home(spec: MirrorSpec) -> tuple[str, str]:
    """The home's real path and its name. It is empty in the container; mounts may lie below it."""
    name = os.path.normpath(spec.home) if spec.home.startswith("/") else OWN_HOME
    real = os.path.realpath(name)
    system = (*_SYSTEM, "/etc", "/proc", "/sys", "/dev", "/run", "/cellburst")
    outer = (*system, "/tmp", "/var/tmp")  # noqa: S108 - names to refuse
    if real == "/" or any(is_below(real, s) for s in system) or any(is_below(s, real) for s in outer):
        return OWN_HOME, OWN_HOME
    return real, name


def notebook_place(spec: MirrorSpec, home: str, private: Sequence[str]) -> str:
    """The notebook folder's real path, "" where none is shown."""
    if not spec.notebook_folder or spec.notebook_mode == "none":
        return ""
    real = os.path.realpath(spec.notebook_folder)
    why = refusal(real, homes_with(home), private)
    if why and spec.notebook_mode == "folder":
        raise error(
            ErrorCode.FORBIDDEN,
            f"the notebook's folder {spec.notebook_folder} cannot be shown to a container: {why}",
            next="move the notebook into a folder of its own",
        )
    return real


def _show_system(places: Places) -> None:
    for path in (*_SYSTEM, *ETC_FOLDERS, *loader_folders()):
        if Path(path).exists():
            places.note(places.show(path, "the system folder"))


def _show_python(places: Places, spec: MirrorSpec) -> None:
    for prefix in dict.fromkeys((spec.prefix, spec.base_prefix)):
        if not prefix or not places.show(prefix, "Python's prefix"):
            continue
        # Too wide to show whole (it is a home folder, say): then the parts that Python uses.
        for part in _PREFIX_PARTS:
            path = f"{prefix.rstrip('/')}/{part}"
            if Path(path).exists():
                places.note(places.show(path, "Python's prefix"))
    for hop in dict.fromkeys((spec.executable, *spec.links)):
        places.note(places.show(hop, "the interpreter"))


def _show_sources(places: Places, spec: MirrorSpec) -> None:
    """`sys.path`, `.pth` and editable targets, user site, PYTHONPATH, conda and LD_LIBRARY_PATH folders."""
    folder = os.path.realpath(spec.notebook_folder) if spec.notebook_folder else ""
    for path in dict.fromkeys((*spec.sys_path, *spec.extra_paths)):
        if os.path.realpath(path) != folder:  # the notebook's own folder is on sys.path, and has rules of its own
            installed = Path(path).name in ("site-packages", "dist-packages")
            places.note(places.show(path, "the import path", source=not installed))


def show_asked(places: Places, spec: MirrorSpec) -> None:
    for path in spec.mounts:
        why = places.show(path, "mount=", source=True)
        if why and Path(path).exists():
            raise error(
                ErrorCode.FORBIDDEN,
                f"mount={path}: {why}",
                allowed="a folder below your home, or of data",
                next="name a narrower folder",
            )
        places.note(why)


def model_caches(places: Places, folder: Path | None, home: str, uid: int) -> list[Mount]:
    """Model caches of ours, kept from container to container; never the user's own, which hold tokens."""
    mounts = []
    for name in _CACHES if folder is not None else ():
        assert folder is not None
        source = folder / name
        try:
            source.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0 and source.stat().st_uid != uid:
                os.chown(source, uid, uid)
        except OSError as why:
            places.note(f"model caches are not kept: {why}")
            return []
        mounts.append(Mount(destination=f"{home}/.cache/{name}", source=str(source), read_only=False))
    return mounts


def _environment(spec: MirrorSpec, home: str, cpu: float | None) -> dict[str, str]:
    given = {k: v for k, v in spec.environment.items() if k not in REPLACED and "\0" not in k + v}
    folders = [
        str(Path(spec.executable).parent),
        f"{spec.prefix}/bin",
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
        "/usr/sbin",
        "/sbin",
    ]
    user = spec.user if spec.uid > 0 else "user"
    environment = {
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        **given,
        "PATH": os.pathsep.join(dict.fromkeys(folders)),
        **home_variables(user, home),
    }
    if spec.sys_path:
        # The kernel's own, with what was added at run time: an executor appends what it lacks.
        environment["CELLBURST_SYS_PATH"] = os.pathsep.join(spec.sys_path)
    if "TZ" not in environment and zone_name():
        environment["TZ"] = zone_name()
    limit_threads(environment, cpu)
    return environment


def home_variables(user: str, home: str) -> dict[str, str]:
    """What says who the user is and where settings and caches go."""
    return {
        "HOME": home,
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "XDG_STATE_HOME": f"{home}/.local/state",
        "MPLCONFIGDIR": f"{home}/.config/matplotlib",
        "IPYTHONDIR": f"{home}/.ipython",
        **{variable: f"{home}/.cache/{name}" for name, variable in _CACHES.items()},
    }


def limit_threads(environment: dict[str, str], cpu: float | None) -> None:
    """Have libraries start no more threads than the container has CPUs; fewer where that is asked for."""
    if cpu is not None:
        threads = max(1, math.ceil(cpu))
        for name in _THREADS:
            asked = environment.get(name, "")
            environment[name] = str(min(int(asked), threads) if asked.isdecimal() and int(asked) > 0 else threads)


def ordered(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """One mount a destination (the later one, which is the narrower rule), parents first."""
    unique = {m.destination: m for m in mounts}
    return tuple(sorted(unique.values(), key=lambda m: (m.destination.count("/"), m.destination)))
