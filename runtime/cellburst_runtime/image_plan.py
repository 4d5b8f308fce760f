"""Plans a container that is made from a built image: what is shown over the image's root, its environment, its `/etc`.

The counterpart of `mirror`: of what the kernel said only the notebook's folder, asked-for mounts, the user and variables
that are no paths are used. Everything else is the image's. Places are constant, so that one template of an image serves
every notebook: the home is /home/user and the notebook's folder is shown at /cellburst/work.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import FilePack, ImageRecipe
from cellburst_protocol.messages import MirrorSpec, StartContainer

from .bundle import minor_of
from .engine import Mount
from .etc_files import etc_files, zone_file, zone_name
from .image_build import BuiltImage
from .image_root import find_in_layers, read_in_layers
from .mirror import (
    HOME_BYTES,
    ORDINARY_UID,
    OWN_HOME,
    REPLACED,
    MirrorPlan,
    home_variables,
    limit_threads,
    machine_id,
    model_caches,
    notebook_place,
    ordered,
    real_home,
    show_asked,
)
from .mirror_places import Places
from .network_rules import NAMESERVER

WORK = "/cellburst/work"  # the notebook's folder
SOURCE = "/root"  # where `Image.add_local_python_source` puts modules
LEAST_PYTHON = (3, 9)  # what the runner needs
# They name places or properties of the kernel's own environment, which the image has in other places or not at all.
_KERNELS_OWN = frozenset(
    """PYTHONPATH PYTHONHOME PYTHONNOUSERSITE PYTHON_GIL LD_LIBRARY_PATH CONDA_PREFIX CONDA_DEFAULT_ENV VIRTUAL_ENV
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE""".split()  # noqa: SIM905 - a word list
).union(REPLACED)
_OF_THE_IMAGE = ("HF_HOME", "TORCH_HOME", "SHELL")  # ours only where the image says nothing
_A_COPY = (
    "The notebook's folder is on another machine: its files are here as they were when the session began. "
    "`%modal put FILE` sends a later one, `%modal get FILE` brings home what was written."
)
_NO_FILES = (
    "The notebook's folder is on another machine, so none of its files are here but the modules that cells import: "
    "`%modal put FILE` sends one, `%modal get FILE` brings home what was written."
)
# Files of `/etc` that are made for the container; all others are the image's.
_OURS = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/machine-id", "/etc/localtime", "/etc/timezone")


def recipe_of(request: StartContainer) -> ImageRecipe | None:
    """The recipe that a container must be built by; None where it is the live mirror."""
    recipe = request.recipe
    if recipe is None or (recipe.mirror and _shares_machine(request.image)):
        return None
    return recipe


def shown_spec(request: StartContainer, folder_of: Callable[[FilePack | None], Path]) -> tuple[MirrorSpec, list[str]]:
    """What of the kernel's machine can be shown. Of another machine that is nothing, and a note says so: in the place of the
    notebook's folder there is one of ours then, with the files that were sent; what a session writes is kept and comes home."""
    spec, recipe = request.image, request.recipe
    if _shares_machine(spec):
        return spec, []
    pack = recipe.folder if recipe is not None else None
    notes = [_A_COPY if pack is not None else _NO_FILES] if spec.notebook_folder else []
    notes += [f"Not shown, as they are on another machine: {', '.join(spec.mounts)}."] if spec.mounts else []
    shown = msgspec.structs.replace(
        spec,
        notebook_folder=str(folder_of(pack)),
        notebook_mode="folder",
        notebook_note="",
        mounts=[],
        uid=ORDINARY_UID,
    )
    return shown, notes


def plan_image(
    spec: MirrorSpec,
    image: BuiltImage,
    *,
    cpu: float | None = None,
    cache_folder: Path | None = None,
    private_folders: Sequence[Path] = (),
    hostname: str = "cellburst",
    nameserver: str = NAMESERVER,
) -> MirrorPlan:
    """Plan a container of the image for a notebook; `spec` as `shown_spec` gives it, the rest as for `plan_mirror`.

    Raises RequestError: BAD_ARGUMENT for an image without a Python that can run cells, FORBIDDEN as `plan_mirror`.
    """
    _check_python(image)
    person, _ = real_home(spec)
    private = [os.path.realpath(path) for path in private_folders]
    # Of another machine's kernel the folder is one of ours, which lies among what is private.
    notebook = notebook_place(spec, person, private) if _shares_machine(spec) else spec.notebook_folder
    places = Places(home=person, private=private, notebook="")
    show_asked(places, spec)
    if notebook:
        places.note(spec.notebook_note)
    uid = spec.uid if spec.uid > 0 else ORDINARY_UID
    user = spec.user if spec.uid > 0 else "user"
    home_mount = Mount(OWN_HOME, kind="tmpfs", read_only=False, size_bytes=HOME_BYTES, mode=0o777)
    mounts = [home_mount, *places.mounts(), *model_caches(places, cache_folder, OWN_HOME, uid)]
    zone = spec.environment.get("TZ") or image.environment.get("TZ") or zone_name()
    environment = _environment(spec, image, user, cpu, zone)
    return MirrorPlan(
        mounts=ordered(mounts),
        links=places.links(),
        root_files=_root_files(image, user, uid, hostname, zone, nameserver),
        environment=environment,
        working_folder=WORK if notebook else image.workdir or OWN_HOME,
        python=[image.python],
        notes=places.notes,
        uid=uid,
        gid=uid,
        home=OWN_HOME,
        own_folders=(image.workdir,) if image.workdir.strip("/") else (),
    )


def _shares_machine(spec: MirrorSpec) -> bool:
    return not spec.machine_id or spec.machine_id == machine_id()


def _check_python(image: BuiltImage) -> None:
    if not image.python:
        raise error(
            ErrorCode.BAD_ARGUMENT, "this image has no Python, and cells are run by one",
            next='begin with Image.debian_slim(), or give from_registry or from_dockerfile add_python="3.12"',
        )  # fmt: skip
    if tuple(int(part) for part in minor_of(image.python_version).split(".")) < LEAST_PYTHON:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"this image's Python {image.python_version} is too old to run cells",
            allowed=f"Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or later", next='give add_python="3.12"',
        )  # fmt: skip


def _environment(spec: MirrorSpec, image: BuiltImage, user: str, cpu: float | None, zone: str) -> dict[str, str]:
    given = {k: v for k, v in spec.environment.items() if k not in _KERNELS_OWN and "\0" not in k + v}
    path = [posixpath.dirname(image.python), *image.environment.get("PATH", "").split(":")]
    ours = home_variables(user, OWN_HOME)
    if not any(find_in_layers(image.layers, name) for name in ("bin/bash", "usr/bin/bash")):
        ours["SHELL"] = "/bin/sh"
    kept = {name: image.environment[name] for name in _OF_THE_IMAGE if name in image.environment}
    environment = {
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        **image.environment,
        **given,
        **ours,
        **kept,
        "PATH": ":".join(dict.fromkeys(folder for folder in path if folder)),
        "CELLBURST_SYS_PATH": f"{WORK}{os.pathsep}{SOURCE}",
    }
    if zone and find_in_layers(image.layers, f"usr/share/zoneinfo/{zone.removeprefix(':')}") is not None:
        environment["TZ"] = zone
    elif zone and zone_file(zone) is not None:
        environment.pop("TZ", None)  # an image without zones would take it for UTC; /etc/localtime is right
    limit_threads(environment, cpu)
    return environment


def _root_files(image: BuiltImage, user: str, uid: int, hostname: str, zone: str, nameserver: str) -> dict[str, bytes]:
    made = etc_files(
        user=user, uid=uid, gid=uid, home=OWN_HOME, hostname=hostname, zone=zone, nameserver=nameserver
    )  # fmt: skip
    files = {path: made[path] for path in _OURS if path in made}
    for path, fields in (("/etc/passwd", 7), ("/etc/group", 4)):
        files[path] = _with_user(read_in_layers(image.layers, path), made[path], user, str(uid), fields)
    if find_in_layers(image.layers, "/etc/nsswitch.conf") is None:
        files["/etc/nsswitch.conf"] = made["/etc/nsswitch.conf"]
    return files


def _with_user(theirs: bytes | None, ours: bytes, user: str, number: str, fields: int) -> bytes:
    """The image's table of people or groups, with the container's user in place of who has its name or number."""
    if theirs is None:
        return ours
    rows = [line.split(":") for line in theirs.decode(errors="replace").splitlines()]
    kept = [":".join(row) for row in rows if len(row) == fields and row[0] != user and row[2] != number]
    own = next(line for line in ours.decode().splitlines() if line.split(":")[2] == number)
    return "\n".join([*kept, own, ""]).encode()
