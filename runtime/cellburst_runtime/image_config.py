"""What an image says about running it, beside its files: environment, folder, programs, its Python."""

from __future__ import annotations

import posixpath
from typing import Any

import msgspec

from cellburst_protocol.images import AnyStep, Cmd, Entrypoint, Env, Shell, User, Workdir, expand

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageConfig(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """As after a step. `python` is the interpreter's path in the image ("" without one), `site_packages` its folder.

    `clean`: nothing but Debian's packages and this machine's Python is in it, so that its programs can be given what
    other images use too.
    """

    environment: dict[str, str] = {}
    workdir: str = ""
    entrypoint: list[str] = []
    cmd: list[str] = []
    shell: list[str] = []
    user: str = ""
    python: str = ""
    python_version: str = ""
    site_packages: str = ""
    clean: bool = False

    def variables(self) -> dict[str, str]:
        """The environment with the defaults that an image need not name."""
        return {"PATH": DEFAULT_PATH, **self.environment}


def after(config: ImageConfig, step: AnyStep) -> ImageConfig:
    """The configuration after a step that makes no layer. Raises ValueError for a `$NAME` that cannot be read."""
    match step:
        case Env():
            values = step.variables
            if step.scope is not None:
                # All of one instruction see what was before it (Dockerfile reference, "Environment replacement").
                known = {**step.scope, **config.variables()}
                values = {name: expand(value, known) for name, value in values.items()}
            return msgspec.structs.replace(config, environment={**config.environment, **values})
        case Workdir():
            path = step.path if step.scope is None else expand(step.path, {**step.scope, **config.variables()})
            return msgspec.structs.replace(
                config, workdir=posixpath.normpath(posixpath.join(config.workdir or "/", path))
            )
        case Entrypoint():
            return msgspec.structs.replace(config, entrypoint=step.arguments)
        case Cmd():
            return msgspec.structs.replace(config, cmd=step.arguments)
        case Shell():
            return msgspec.structs.replace(config, shell=step.arguments)
        case User():
            return msgspec.structs.replace(config, user=step.user)
        case _:
            return config


def from_oci(document: dict[str, Any]) -> ImageConfig:
    """From an OCI image configuration (image-spec, config.md). Fields of other types are taken as absent."""
    given = document.get("config")
    table: dict[str, Any] = given if isinstance(given, dict) else {}

    def words(name: str) -> list[str]:
        value = table.get(name)
        return [str(word) for word in value] if isinstance(value, list) else []

    pairs = (text.partition("=") for text in words("Env"))
    return ImageConfig(
        environment={name: value for name, _, value in pairs if name},
        workdir=str(table.get("WorkingDir") or ""),
        entrypoint=words("Entrypoint"),
        cmd=words("Cmd"),
        shell=words("Shell"),
        user=str(table.get("User") or ""),
    )
