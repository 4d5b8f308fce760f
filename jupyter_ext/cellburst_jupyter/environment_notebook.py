"""Which notebook this kernel belongs to, and how much of its folder a container may see (DESIGN section 5)."""

# Names are kept as the kernel has them: os.path neither resolves nor rewrites them, and is fast.
# ruff: noqa: PTH100, PTH109, PTH110, PTH111, PTH112, PTH118, PTH120
from __future__ import annotations

import functools
import os
import pwd
import sys
from pathlib import Path
from typing import Literal

from .environment_paths import is_below

Mode = Literal["folder", "python_files", "none"]
_FIRST_PERSON_UID = 1000  # below it passwd lists services, whose "homes" are such as /usr/sbin


def find_notebook() -> tuple[str, str]:
    """The notebook's path (its identity, which need not be a file) and its folder.

    From CELLBURST_NOTEBOOK; VS Code's `__vsc_ipynb_file__`; JPY_SESSION_NAME, which Jupyter Server sets for each
    kernel; else the working folder and the name of the kernel's connection file.
    """
    named = os.environ.get("CELLBURST_NOTEBOOK") or _vscode_file() or _session_file()
    if named:
        path = os.path.abspath(os.path.expanduser(named))
        folder = os.path.dirname(path)
        return path, folder if os.path.isdir(folder) else os.getcwd()
    return os.path.join(os.getcwd(), _kernel_name()), os.getcwd()


def _vscode_file() -> str:
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    value = shell.user_ns.get("__vsc_ipynb_file__", "") if shell is not None else ""
    return value if isinstance(value, str) else ""


def _session_file() -> str:
    name = os.environ.get("JPY_SESSION_NAME", "")
    drive, colon, rest = name.partition(":")
    # "RTC:folder/x.ipynb" is how collaboration names a document's drive.
    return rest if colon and drive.isalnum() and not os.path.exists(name) else name


def _kernel_name() -> str:
    application = getattr(sys.modules.get("ipykernel.kernelapp"), "IPKernelApp", None)
    if application is not None and application.initialized():
        return Path(application.instance().connection_file).stem
    return f"process-{os.getpid()}"


def folder_rule(folder: str) -> tuple[Mode, str]:
    """How the notebook's folder may be shown, and one line for the user where that is less than all of it."""
    if not folder or not os.path.isdir(folder):
        return "none", f"the notebook's folder {folder!r} is not there, so no files are shown" if folder else ""
    real = os.path.realpath(folder)
    for what, guarded in _guarded():
        if is_below(guarded, real):
            how = "is" if guarded == real else "contains"
            return "python_files", (
                f"{folder} {how} {what}, so only the .py files beside the notebook are shown (mount=PATH shows more)"
            )
    return "folder", ""


def _guarded() -> list[tuple[str, str]]:
    """Real paths that a shown folder may not be or contain, with what each is."""
    home = os.path.expanduser("~")
    share = os.environ.get("XDG_DATA_HOME") or os.path.join(home, ".local/share")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    config = os.environ.get("CELLBURST_CONFIG") or os.path.join(home, ".config/cellburst/config.toml")
    run = os.environ.get("CELLBURST_RUN") or (
        os.path.join(runtime, "cellburst") if runtime else f"/tmp/cellburst-{os.getuid()}"  # noqa: S108 - as documented
    )
    places = [
        ("the whole file system", "/"),
        ("your home folder", home),
        *(("a home folder", h) for h in _homes()),
        ("Cellburst's data folder", os.environ.get("CELLBURST_DATA") or os.path.join(share, "cellburst")),
        ("Cellburst's run folder", run),
        ("Cellburst's configuration", config),
        ("Jupyter's tokens", os.environ.get("JUPYTER_RUNTIME_DIR") or os.path.join(share, "jupyter/runtime")),
        ("a token", os.environ.get("CELLBURST_TOKEN_FILE", "")),
    ]
    return [(what, os.path.realpath(path)) for what, path in places if path]


@functools.lru_cache(maxsize=1)
def _homes() -> tuple[str, ...]:
    """Home folders of people on this machine: passwd's, root's, and whatever lies in /home."""
    homes = {"/root", "/home"}
    homes.update(p.pw_dir for p in pwd.getpwall() if p.pw_uid >= _FIRST_PERSON_UID and p.pw_dir.startswith("/"))
    return tuple(sorted(h for h in homes if os.path.isdir(h)))
