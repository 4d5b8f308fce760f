"""This environment as an image for another machine: Python's minor version, the frozen packages, editable sources.

The Python is of this one's patch version or a later one: packages may ask for a patch ("requires-python >=3.11.5").

What pip installed from an index goes by name and version; what is installed as editable goes as its source files, in a
folder of their own on the path. What was installed from a local file or a repository goes by its address, where that has one.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import AnyStep, Copy, Env, PipInstall, debian_slim

from .image_packs import PackedFile, PackWriter, list_tree
from .image_patterns import FilePatternMatcher

EDITABLE_FOLDER = "/opt/mirror"
# What a source folder holds beside the sources, some of it large.
_LEFT_OUT = FilePatternMatcher(
    "**/.*", "**/__pycache__", "**/node_modules", "**/venv", "**/*.egg-info", "**/build", "**/dist", "**/*.ipynb"
)


def mirror_steps(packs: PackWriter) -> list[AnyStep]:
    """The steps. Raises RequestError for a package that cannot be had elsewhere, naming it."""
    major, minor, patch = sys.version_info[:3]
    frozen, roots = frozen_packages()
    steps = debian_slim(f"{major}.{minor}", least_patch=patch)
    if frozen:
        steps.append(PipInstall(packages=frozen, no_deps=True))
    entries: list[PackedFile] = []
    paths: list[str] = []
    for number, root in enumerate(roots):
        entries += list_tree(root, _LEFT_OUT, f"{number}/")
        paths.append(f"{EDITABLE_FOLDER}/{number}")
    if entries:
        steps.append(Copy(pack=packs.write(entries), destination=EDITABLE_FOLDER))
        steps.append(Env(variables={"PYTHONPATH": ":".join(paths)}))
    return steps


def frozen_packages() -> tuple[list[str], list[Path]]:
    """Requirements ("numpy==2.1.0"), sorted, and the folders on the path that editable packages are imported from."""
    frozen: dict[str, str] = {}
    roots: list[Path] = []
    for distribution in distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if not name or name in frozen:
            continue  # the first on the path is the one that is imported
        origin = _origin(distribution)
        url = str(origin.get("url", ""))
        info = origin.get("dir_info")
        if isinstance(info, dict) and info.get("editable"):
            frozen[name] = ""
            roots += [root for root in _editable_roots(distribution, url) if root not in roots]
        elif url.startswith("file:"):
            # A wheel file here is no address for another machine; the index usually has the same version.
            frozen[name] = f"{name}=={distribution.version}"
        elif url:
            vcs = origin.get("vcs_info")
            frozen[name] = (
                f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}" if isinstance(vcs, dict) else f"{name} @ {url}"
            )
        else:
            frozen[name] = f"{name}=={distribution.version}"
    return sorted(text for text in frozen.values() if text), roots


def _origin(distribution: Distribution) -> dict[str, object]:
    """direct_url.json (PEP 610), which is there when a package did not come from an index."""
    text = distribution.read_text("direct_url.json")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _editable_roots(distribution: Distribution, url: str) -> list[Path]:
    """The folders of the path that an editable package added by its .pth file; else the project's `src` or itself."""
    project = Path(unquote(urlsplit(url).path))
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
