"""Secrets that steps of an image's build use: looked at when a cell is accepted, given to the worker that builds.

They go with each container of such an image, also where its layers are there: a layer's key has the secret's version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellburst_protocol.images import ImageRecipe, secrets_of
from cellburst_protocol.messages import BuildSecret, ReleaseRow
from cellburst_protocol.secrets import check_required, parse_uses

from .containers import ContainerHandle, same_image
from .session import Session
from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub

BUILD = "an image's build"  # whom the record of releases names where there is no notebook


async def check_build_secrets(hub: Hub, session: Session, recipe: ImageRecipe | None) -> None:
    """Whether the secrets of a cell's image are there, with their keys. Raises RequestError (NOT_FOUND, FORBIDDEN, BAD_ARGUMENT),
    PlatformError (UNAVAILABLE)."""
    if recipe is None or (session.container is not None and same_image(recipe, session.container.detail.recipe)):
        return  # it goes on in what is built
    for use in parse_uses(secrets_of(recipe.steps)):
        check_required(use, await hub.secret_desk.keys_for_mount(session, use.name))


async def for_container(hub: Hub, session: Session, handle: ContainerHandle, call: str) -> dict[str, BuildSecret]:
    """The secrets of a container's image, for its worker. Raises what `check_build_secrets` does."""
    common = ReleaseRow(
        at_unix_seconds=hub.clock.wall(), secret="", version=0, session=session.id, container=handle.id,
        worker=handle.worker, call=call, notebook=session.record.notebook,
    )  # fmt: skip
    return await _opened(hub, session.record.owner, handle.detail.recipe, common)


async def for_build(hub: Hub, owner: Owner, recipe: ImageRecipe, worker: str) -> dict[str, BuildSecret]:
    """The secrets of an image that is built without a cell. Raises the error tree."""
    common = ReleaseRow(at_unix_seconds=hub.clock.wall(), secret="", version=0, worker=worker, notebook=BUILD)
    return await _opened(hub, owner, recipe, common)


async def _opened(hub: Hub, owner: Owner, recipe: ImageRecipe | None, common: ReleaseRow) -> dict[str, BuildSecret]:
    uses = parse_uses(secrets_of(recipe.steps)) if recipe is not None else []
    if not uses:
        return {}
    opened = await hub.secret_desk.open_for_build(owner, uses, common)
    return {found.name: BuildSecret(version=found.version, values=dict(found.values)) for found in opened}
