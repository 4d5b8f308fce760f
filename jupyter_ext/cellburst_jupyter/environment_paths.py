"""Where this interpreter's code lies: symlink hops, `.pth` files, editable installs, installed packages.

Each folder of `sys.path` is read once and again only when its modification time, or that of one of the few files that
were opened in it, has changed: a warm look at 300 packages costs some `stat` calls.
"""

# Names are kept as the kernel has them: os.path neither resolves nor rewrites them, and is fast.
# ruff: noqa: PTH100, PTH110, PTH114, PTH115, PTH116, PTH118, PTH119, PTH120
from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_DISTRIBUTION = re.compile(r"^(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py[\d.]+)?\.(?:dist|egg)-info$")
_MOST_HOPS = 40  # the kernel's own limit on symbolic links in one path (ELOOP)
_MOST_TEXT_BYTES = 1 << 20  # a .pth or finder file above this is not one


def link_chain(path: str) -> list[str]:
    """Every name on the way from `path` to the real file: itself, each symlink's target, and the last one.

    Only links of the file itself are hops here; folders that are links are followed when the mirror is planned.
    """
    chain = [path]
    while os.path.islink(chain[-1]) and len(chain) < _MOST_HOPS:
        hop = chain[-1]
        chain.append(os.path.normpath(os.path.join(os.path.realpath(os.path.dirname(hop)), os.readlink(hop))))
    return chain


@dataclass
class FolderScan:
    """What one folder of `sys.path` says. `stamps` are the files that were opened, with (mtime_ns, size)."""

    mtime_ns: int
    stamps: dict[str, tuple[int, int]] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # file name -> content, for the identity


_scans: dict[str, FolderScan] = {}


def scan_folder(folder: str) -> FolderScan | None:
    """The folder's packages, `.pth` and editable targets, from the cache where nothing changed. None if it is no folder."""
    try:
        mtime_ns = os.stat(folder).st_mtime_ns
    except OSError:
        _scans.pop(folder, None)
        return None
    known = _scans.get(folder)
    if known is not None and known.mtime_ns == mtime_ns and all(_stamp(f) == s for f, s in known.stamps.items()):
        return known
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        return None
    scan = FolderScan(mtime_ns=mtime_ns)
    projects: list[str] = []
    for entry in entries:
        _read_entry(scan, folder, entry, projects)
    # A build back end whose hook we cannot read still wrote where its project is.
    scan.targets += [p for p in projects if not any(is_below(t, p) for t in scan.targets)]
    scan.targets = [t for t in dict.fromkeys(scan.targets) if os.path.exists(t)]
    _scans[folder] = scan
    return scan


# For each entry of `sys.path`: its time, and those of the files that were opened in it with their sizes.
Stamps = tuple[tuple[str, int, tuple[tuple[str, tuple[int, int]], ...]], ...]


def installed_stamp() -> Stamps:
    """What `read_stamp` would say after reading again: another value once a package was installed or removed, a `.pth` or
    editable install changed, also in place, or `sys.path` did. A `stat` for each site-packages folder and such file."""
    return tuple(
        (entry, _stamp(entry)[0], tuple((path, _stamp(path)) for path in _read_stamps(entry)[1]))
        if is_site_folder(entry)
        else (entry, 0, ())
        for entry in sys.path
        if isinstance(entry, str)
    )


def read_stamp() -> Stamps:
    """The same as it was when `scan_folder` last read: each stamp is older than what was read after it."""
    return tuple(
        (entry, (read := _read_stamps(entry))[0], tuple(read[1].items())) if is_site_folder(entry) else (entry, 0, ())
        for entry in sys.path
        if isinstance(entry, str)
    )


def _read_stamps(folder: str) -> tuple[int, dict[str, tuple[int, int]]]:
    scan = _scans.get(os.path.abspath(folder))
    return (scan.mtime_ns, scan.stamps) if scan is not None else (-1, {})


def is_site_folder(folder: str) -> bool:
    """Whether installers put packages there."""
    return os.path.basename(folder) in ("site-packages", "dist-packages")


def _read_entry(scan: FolderScan, folder: str, entry: os.DirEntry[str], projects: list[str]) -> None:
    name = entry.name
    found = _DISTRIBUTION.match(name)
    if found:
        scan.packages.setdefault(found["name"].replace("_", "-").lower(), found["version"])
        project = _editable_project(scan, os.path.join(entry.path, "direct_url.json"))
        if project:
            projects.append(project)
    elif name.endswith((".pth", ".egg-link")):
        text = _read(scan, entry.path)
        scan.texts[name] = text
        scan.targets += _pth_targets(folder, text)
    elif name.startswith("__editable__") and name.endswith("_finder.py"):
        text = _read(scan, entry.path)
        scan.texts[name] = text
        scan.targets += finder_targets(text)
    elif entry.is_symlink():  # flit --symlink, and folders that people link by hand
        target = os.path.realpath(entry.path)
        if not is_below(target, os.path.realpath(folder)):
            scan.targets.append(target)


def _pth_targets(folder: str, text: str) -> list[str]:
    """Folders that a `.pth` file adds, by the rules of `site.addpackage`: no comments, no `import` lines."""
    lines = (line.strip() for line in text.splitlines())
    return [
        os.path.normpath(os.path.join(folder, line))
        for line in lines
        if line and line != "." and not line.startswith(("#", "import ", "import\t"))
    ]


def finder_targets(source: str) -> list[str]:
    """Folders and files that a setuptools `__editable___*_finder.py` maps, from its MAPPING and NAMESPACES literals."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
    found: list[str] = []
    for node in body:
        names = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        wanted = any(isinstance(n, ast.Name) and n.id in ("MAPPING", "NAMESPACES") for n in names)
        if not wanted or not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue
        for target in value.values() if isinstance(value, dict) else ():
            found += [target] if isinstance(target, str) else [t for t in target if isinstance(t, str)]
    # A mapped module may be named without its suffix.
    return [p if os.path.exists(p) or not os.path.exists(p + ".py") else p + ".py" for p in found]


def _editable_project(scan: FolderScan, path: str) -> str:
    """The project folder of an editable install (PEP 610), or ""."""
    if not os.path.exists(path):
        return ""
    try:
        said = json.loads(_read(scan, path))
        url = urlsplit(said["url"])
        editable = said["dir_info"]["editable"] is True
    except (ValueError, KeyError, TypeError):
        return ""
    return unquote(url.path) if editable and url.scheme == "file" else ""


def _read(scan: FolderScan, path: str) -> str:
    stamp = _stamp(path)
    scan.stamps[path] = stamp
    if not 0 <= stamp[1] <= _MOST_TEXT_BYTES:
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _stamp(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (-1, -1)
    return (stat.st_mtime_ns, stat.st_size)


def is_below(path: str, folder: str) -> bool:
    """Is `path` the folder itself or something in it? Both absolute and normalised."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def existing(paths: Iterable[str]) -> list[str]:
    """Those that exist, absolute and once each, in order."""
    return [p for p in dict.fromkeys(os.path.abspath(p) for p in paths if p) if os.path.exists(p)]
