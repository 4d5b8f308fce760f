"""Bases of images: a small Debian by mmdebstrap, and images of a registry by skopeo and umoci.

These programs run on the host, since they only fetch, check signatures and unpack; what a user wrote never runs there.
mmdebstrap also runs the scripts of Debian's own packages, in a chroot: the archive's signature is what they are trusted
by, as it is on every Debian.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import SUITE_PYTHON, DebianSlim

from .image_config import ImageConfig, from_oci
from .image_sandbox import BuildMachine, run_on_host
from .image_store import Draft
from .tools import find_program, run_command

# What a Python that is not Debian's needs of the system, by what its extension modules link to.
_PYTHON_LIBRARIES = {
    "bookworm": "libssl3 libffi8 libsqlite3-0 libreadline8 libbz2-1.0 liblzma5 libncursesw6 libgdbm6 libdb5.3 libexpat1 "
    "libuuid1 zlib1g libtirpc3 libnsl2 libcrypt1",
    "trixie": "libssl3t64 libffi8 libsqlite3-0 libreadline8t64 libbz2-1.0 liblzma5 libncursesw6 libgdbm6t64 libdb5.3t64 "
    "libexpat1 libuuid1 zlib1g libtirpc3t64 libnsl2 libcrypt1",
}
_ALWAYS = "ca-certificates netbase tzdata"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SECONDS = 1800.0  # a base on a slow line
_OCI_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_REFUSED = re.compile(r"unauthorized|authentication required|invalid username/password|denied:", re.IGNORECASE)
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?/")


async def _run(machine: BuildMachine, draft: Draft, arguments: list[str], log: Callable[[str], None]) -> None:
    """Run a program of this machine's. Raises PlatformError (START_FAILED) when it is not installed, UserCodeError
    (IMAGE_BUILD) with its last lines when it fails, since what it was asked for is the user's choice."""
    program = find_program(arguments[0])
    if not program:
        raise error(
            ErrorCode.START_FAILED, f"{arguments[0]} is not installed on the worker's machine",
            next=f"install it there (Debian: apt install {arguments[0]})",
        )  # fmt: skip
    outcome = await run_on_host(machine, draft, [program, *arguments[1:]], log)
    if outcome.exit_code != 0 or outcome.ended_for:
        why, tail = outcome.ended_for or f"exit code {outcome.exit_code}", "\n".join(outcome.tail)
        raise error(
            ErrorCode.IMAGE_BUILD, f"{arguments[0]} failed: {why}\n{tail}",
            command=" ".join(arguments), exit_code=str(outcome.exit_code), output=tail,
        )  # fmt: skip


async def make_debian(machine: BuildMachine, draft: Draft, step: DebianSlim, log: Callable[[str], None]) -> None:
    """A minimal Debian in `draft.upper`, from the mirror that this machine uses."""
    suite = step.suite
    if suite not in SUITE_PYTHON:
        raise error(ErrorCode.BAD_ARGUMENT, f"suite {suite!r} is not known", allowed=", ".join(SUITE_PYTHON))
    include = [*_ALWAYS.split(), *(["python3"] if step.python else _PYTHON_LIBRARIES[suite].split())]
    sources = await _sources(suite)
    listed = draft.folder / "sources.list"
    listed.write_text("".join(f"{line}\n" for line in sources))
    small = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    options = ["--mode=root", "--variant=minbase", f"--include={','.join(include)}", *small]
    options.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    await _run(
        machine, draft, ["mmdebstrap", *options, suite, str(draft.upper), *([str(listed)] if sources else [])], log
    )
    root = draft.upper
    # Copied from this machine by mmdebstrap, and none of the image's business.
    for name in ("etc/resolv.conf", "etc/hostname"):
        (root / name).unlink(missing_ok=True)
        (root / name).touch()
    if step.python:
        (root / "usr/bin/python").symlink_to("python3")
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()  # in an image, pip is the package manager


async def _sources(suite: str) -> list[str]:
    """Lines of sources.list for the suite, from the Debian mirrors apt uses here; none: mmdebstrap's own default."""
    show = ["indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages"]
    result = await run_command([find_program("apt-get") or "apt-get", *show])
    main = security = ""
    for line in result.output.splitlines() if result.ok else []:
        uri, _, rest = line.partition(" ")
        if rest == "Debian Debian":
            main = main or uri
        elif rest.strip() in ("", "$(ORIGIN) $(LABEL)") and uri.rstrip("/").endswith("/debian"):
            main = main or uri  # apt has not fetched its release file yet
        elif rest == "Debian Debian-Security":
            security = security or uri
    if not main:
        return []
    signed = f"[signed-by={_KEYRING}] " if Path(_KEYRING).exists() else ""
    lines = [f"deb {signed}{main} {suite} main", f"deb {signed}{main} {suite}-updates main"]
    return [*lines, f"deb {signed}{security} {suite}-security main"] if security else lines


async def pull(
    machine: BuildMachine, draft: Draft, reference: str, log: Callable[[str], None], *, login: Path | None = None,
    secret: str = "",
) -> ImageConfig:  # fmt: skip
    """An image of a registry into `draft.upper`; what it says about running it. `login` is a file with the registry's login, of
    the secret `secret`.

    Raises RequestError for one that is made for another architecture, PlatformError and UserCodeError as the programs fail.
    """
    layout = draft.folder / "oci"
    wanted = _OCI_ARCHITECTURES.get(platform.machine(), platform.machine())
    # A registry on this very machine has no certificate; that is how Docker treats it too.
    insecure = ["--src-tls-verify=false"] if _LOOPBACK.match(reference) else []
    known = ["--authfile", str(login)] if login is not None else []  # never in an argument: others can see those
    platform_options = ["--override-os", "linux", "--override-arch", wanted]
    command = ["skopeo", *platform_options, "copy", *insecure, *known, f"docker://{reference}", f"oci:{layout}:image"]
    try:
        await _run(machine, draft, command, log)
    except CellburstError as why:
        if _REFUSED.search(why.info.detail.get("output", "")):
            raise _refused(reference, secret, why) from None
        raise
    document = _oci_config(layout)
    architecture = str(document.get("architecture", ""))
    if architecture != wanted:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{reference} is for {architecture or 'something else'}, and this machine is {wanted}",
            allowed=f"images for linux/{wanted}", next="name a tag that has this architecture",
        )  # fmt: skip
    await _run(machine, draft, ["umoci", "unpack", "--image", f"{layout}:image", str(draft.folder / "bundle.oci")], log)
    unpacked = draft.folder / "bundle.oci" / "rootfs"
    os.rmdir(draft.upper)  # noqa: PTH106  beside its pathlib twin rename
    unpacked.rename(draft.upper)
    await asyncio.to_thread(strip_overlay_marks, draft.upper)
    return from_oci(document)


def _refused(reference: str, secret: str, why: CellburstError) -> CellburstError:
    registry, name = reference.partition("/")[0], secret.partition(":")[0]
    if secret:
        message = f"{registry} did not accept the login of the secret {name!r} for {reference}"
        then = f"`cellburst secret create {name} REGISTRY_USERNAME=... REGISTRY_PASSWORD=- --update` changes it"
    else:
        message = f"{registry} wants a login for {reference}, or has no such image"
        then = 'give from_registry(..., secret=Secret.from_name("...")), with the keys REGISTRY_USERNAME and REGISTRY_PASSWORD'
    return error(
        ErrorCode.IMAGE_BUILD, message, next=then, **{k: v for k, v in why.info.detail.items() if k != "command"}
    )


def strip_overlay_marks(root: Path) -> None:
    """Remove attributes that overlayfs would take for its own notes: an image could bring some to show other layers' files
    under false names. Nothing else writes into a layer but through overlayfs, which keeps them to itself."""
    for folder, folders, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):  # noqa: PTH118
            for name in os.listxattr(path, follow_symlinks=False):
                if name.startswith(("trusted.overlay.", "user.overlay.")):
                    os.removexattr(path, name, follow_symlinks=False)


def _oci_config(layout: Path) -> dict[str, Any]:
    """The image's configuration from an OCI layout with one image (image-spec, image-layout.md)."""

    def blob(descriptor: dict[str, Any]) -> dict[str, Any]:
        algorithm, _, digest = str(descriptor["digest"]).partition(":")
        found = json.loads((layout / "blobs" / algorithm / digest).read_bytes())
        assert isinstance(found, dict)
        return found

    index = json.loads((layout / "index.json").read_bytes())
    return blob(blob(index["manifests"][0])["config"])
