"""Where this machine gets Python packages from, told to uv in a build: by environment and mounts, never by a file of the image.

uv's own configuration (UV_* variables, uv.toml) is taken if it names an index; else pip's (variables, pip.conf), with pip's
rule that the best version of all indexes wins. Folders that it names are shown read-only.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .engine import Mount

PLACE = "/cellburst/build"
MOST_FOLDERS = 8  # mount points that the scaffold has
_UV_NAMES = (
    "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX_STRATEGY",
    "UV_INSECURE_HOST", "UV_HTTP_TIMEOUT",
)  # fmt: skip
_UV_FILES = ("~/.config/uv/uv.toml", "/etc/uv/uv.toml")
_PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_CERTIFICATE_NAMES = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)


@dataclass
class PackageSource:
    """Variables and mounts that a step with packages gets."""

    environment: dict[str, str] = field(default_factory=dict)
    mounts: list[Mount] = field(default_factory=list)


def certificates() -> PackageSource:
    """This machine's certificate authorities, for every program of a build: an organisation's own may be among them."""
    source = PackageSource()
    for path in (os.environ.get("SSL_CERT_FILE", ""), *_CERTIFICATES):
        if path and Path(path).is_file():
            inside = f"{PLACE}/certificates.crt"
            source.environment.update(dict.fromkeys(_CERTIFICATE_NAMES, inside))
            source.mounts.append(Mount(inside, os.path.realpath(path)))
            break
    return source


def package_source(environment: Mapping[str, str] | None = None) -> PackageSource:
    """The package indexes of this machine."""
    given = os.environ if environment is None else environment
    source = PackageSource({name: given[name] for name in _UV_NAMES if given.get(name)})
    files = (
        [Path(given["UV_CONFIG_FILE"])] if given.get("UV_CONFIG_FILE") else [_home(name, given) for name in _UV_FILES]
    )
    found = next((path for path in files if path.is_file()), None)
    if found is not None:
        source.environment["UV_CONFIG_FILE"] = f"{PLACE}/uv.toml"
        source.mounts.append(Mount(f"{PLACE}/uv.toml", os.path.realpath(found)))
    if not any("INDEX" in name or "LINKS" in name or "CONFIG" in name for name in source.environment):
        source.environment.update(_from_pip(given))
    _show_folders(source)
    return source


def _from_pip(given: Mapping[str, str]) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    names = [given["PIP_CONFIG_FILE"]] if given.get("PIP_CONFIG_FILE") else _PIP_FILES
    for name in names:
        try:
            parser.read(_home(name, given), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself will say so

    def value(option: str) -> list[str]:
        from_variable = given.get(f"PIP_{option.upper().replace('-', '_')}", "")
        sections = (parser.get(section, option, fallback="") for section in ("install", "global"))
        return (from_variable or next((text for text in sections if text), "")).split()

    index, extra, links = value("index-url"), value("extra-index-url"), value("find-links")
    result: dict[str, str] = {}
    if index:
        result["UV_DEFAULT_INDEX"] = index[0]
    if extra:
        result["UV_INDEX"] = " ".join(extra)
        result["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # what pip does
    if links:
        result["UV_FIND_LINKS"] = ",".join(links)
    return result


def _show_folders(source: PackageSource) -> None:
    """Mount every folder that an index or find-links names, and write its place in the build instead."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
        text = source.environment.get(name, "")
        separator = "," if name == "UV_FIND_LINKS" else " "
        words = [_shown(word, source) for word in text.replace(",", separator).split(separator) if word]
        if text:
            source.environment[name] = separator.join(word for word in words if word)


def _shown(word: str, source: PackageSource) -> str:
    label, at, url = word.partition("=") if "=" in word.partition("://")[0] else ("", "", word)
    path = unquote(urlsplit(url).path) if url.startswith("file:") else url if url.startswith("/") else ""
    if not path:
        return word
    # Pages of a simple index point beside it (../../files), so its parent is shown.
    folder = Path(path.rstrip("/"))
    shown = folder.parent if folder.name == "simple" else folder
    used = [mount for mount in source.mounts if mount.destination.startswith(f"{PLACE}/index/")]
    mount = next((mount for mount in used if mount.source == str(shown)), None)
    if mount is None:
        if not shown.is_dir() or len(used) >= MOST_FOLDERS:
            return ""
        mount = Mount(f"{PLACE}/index/{len(used)}", str(shown))
        source.mounts.append(mount)
    inside = mount.destination + ("/simple" if folder.name == "simple" else "")
    return f"{label}{at}{f'file://{inside}' if url.startswith('file:') else inside}"


def _home(name: str, given: Mapping[str, str]) -> Path:
    return Path(given.get("HOME", str(Path.home()))) / name[2:] if name.startswith("~/") else Path(name)
