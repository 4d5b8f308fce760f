"""This environment as an image for another machine: Python's minor version, the frozen packages, local sources.

The Python is of this one's patch version or a later one: packages may ask for a patch ("requires-python >=3.11.5").

What pip installed from an index goes by name and version; what is installed as editable goes as its source files, in a
folder of their own on the path. What was installed from a repository goes by its address; from a local file or folder as its
installed files, where those are Python only (as Cellburst itself always does), else by name and version.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import AnyStep, Copy, Env, PipInstall, debian_slim

from .image_packs import PackedFile, PackWriter, list_tree
from .source_files import SourceLeftOut

EDITABLE_FOLDER = "/opt/mirror"
OWN = "cellburst"  # no index need have it
# Builds for a GPU's driver have versions of their own, which are not on PyPI ("torch==2.4.0+cu121"). Source: PyTorch,
# "Start Locally".
_TORCH_BUILD = re.compile(r"torch[a-z]*==\S+\+(cu\d+|cpu|xpu|rocm[\d.]+)")


def mirror_steps(packs: PackWriter) -> list[AnyStep]:
    """The steps. Raises RequestError for a package that cannot be had elsewhere, naming it."""
    major, minor, patch = sys.version_info[:3]
    files: dict[str, Path] = {}
    packages, roots = frozen_packages(files)
    steps = debian_slim(f"{major}.{minor}", least_patch=patch)
    if packages:
        steps.append(install_step(packages))
    entries: list[PackedFile] = []
    paths: list[str] = []
    for number, root in enumerate(roots):
        entries += list_tree(root, SourceLeftOut(root), f"{number}/")
        paths.append(f"{EDITABLE_FOLDER}/{number}")
    if files:
        entries += [PackedFile(f"installed/{name}", path) for name, path in files.items()]
        paths.append(f"{EDITABLE_FOLDER}/installed")
    if entries:
        steps.append(Copy(pack=packs.write(entries), destination=EDITABLE_FOLDER))
        steps.append(Env(variables={"PYTHONPATH": ":".join(paths)}))
    return steps


def install_step(packages: list[str]) -> PipInstall:
    """The step that installs requirements of `frozen_packages`, and nothing else."""
    builds = {found[1] for text in packages if (found := _TORCH_BUILD.fullmatch(text))}
    where = ["--torch-backend", min(builds)] if builds else []  # uv knows where PyTorch keeps each
    return PipInstall(packages=packages, no_deps=True, options=where)


def frozen_packages(files: dict[str, Path] | None = None) -> tuple[list[str], list[Path]]:
    """Requirements ("numpy==2.1.0"), sorted, and the folders on the path that editable packages are imported from. With `files`,
    packages that go as they are installed are no requirements: their files are put there, by their names below site-packages.
    Raises RequestError (NOT_FOUND) for an editable package without its source."""
    named: dict[str, str] = {}
    roots: dict[Path, None] = {}
    for distribution in distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if not name or name in named:
            continue  # the first on the path is the one that is imported
        origin = _origin(distribution)
        url = str(origin.get("url", ""))
        info = origin.get("dir_info")
        named[name] = f"{name}=={distribution.version}"
        if isinstance(info, dict) and info.get("editable"):
            named[name] = ""
            roots.update(dict.fromkeys(_editable_roots(distribution, url)))
        elif name == OWN or url.startswith("file:"):
            # A file here is no address for another machine. One that is gone was a builder's, whose index has the same version.
            if files is not None and (name == OWN or Path(_path(url)).exists()):
                own = _python_files(distribution)
                files |= own
                named[name] = "" if own else named[name]
        elif url:
            vcs = origin.get("vcs_info")
            named[name] = (
                f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}" if isinstance(vcs, dict) else f"{name} @ {url}"
            )
    return sorted(text for text in named.values() if text), list(roots)


def _origin(distribution: Distribution) -> dict[str, object]:
    """direct_url.json (PEP 610), which is there when a package did not come from an index."""
    text = distribution.read_text("direct_url.json")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _path(url: str) -> str:
    return unquote(urlsplit(url).path)


def _python_files(distribution: Distribution) -> dict[str, Path]:
    """The installed files of a package that is the same on every machine, by their names; none of another one. Source: PEP 427,
    "Root-Is-Purelib"."""
    wheel = distribution.read_text("WHEEL") or ""
    if not re.search(r"^Root-Is-Purelib:\s*true\s*$", wheel, re.MULTILINE | re.IGNORECASE):
        return {}
    found: dict[str, Path] = {}
    for file in distribution.files or ():
        name, place = PurePosixPath(str(file)), Path(str(distribution.locate_file(file)))
        inside = not name.is_absolute() and ".." not in name.parts and "__pycache__" not in name.parts
        if inside and place.is_file():
            found[str(name)] = place
    return found


def _editable_roots(distribution: Distribution, url: str) -> list[Path]:
    """The folders of the path that an editable package added by its .pth file; else the project's `src` or itself."""
    project = Path(_path(url))
    found: list[Path] = []
    for file in distribution.files or ():
        if str(file).endswith(".pth"):
            try:
                lines = Path(str(distribution.locate_file(file))).read_text(encoding="utf-8").splitlines()
            except OSError:
                continue
            found += [Path(line) for line in lines if line.startswith("/") and line in sys.path]
    found = found or ([project / "src"] if (project / "src").is_dir() else [project])
    for root in found:
        if not root.is_dir():
            raise error(
                ErrorCode.NOT_FOUND, f"the source of the editable package {distribution.metadata['Name']!r} is not there: {root}",
                next="install it again",
            )  # fmt: skip
    return found
