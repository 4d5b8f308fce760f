"""The image of one `%%modal` cell: the notebook's variable that `image=` names, its recipe, and its files on their way.

A line without `image=` goes on in what the session has, and begins in the mirror; `image=` with another one moves it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import ImageRecipe, python_minor

from .magic_line import CellOptions

if TYPE_CHECKING:
    from cellburst.blobs import BlobClient
    from cellburst.image import Image, Recipe

SHOWN_NAMES = 8


@dataclass(frozen=True)
class CellImage:
    """What the cell says of its image. `keep`: it says nothing; then `recipe` is None, as it is for the mirror."""

    recipe: ImageRecipe | None = None
    keep: bool = False
    packed: Recipe | None = None

    def send_files(self, blobs: BlobClient, say: Callable[[str], None]) -> None:
        """Send the local files that the gateway lacks. `say` is told how far it is. Raises as `BlobClient`."""
        if self.packed is not None:
            from cellburst.image_build import send_files

            send_files(self.packed, blobs, say)

    def python(self, mirror: str, session: str) -> str:
        """The Python version, or minor version, that will read what is sent: `mirror` is this kernel's environment's, `session`
        that of the session to go on with. "" where only the build can tell."""
        if self.keep:
            return session or mirror
        if self.recipe is None:
            return mirror
        return python_minor(self.recipe.steps) or session


@contextmanager
def wanted_image(space: Mapping[str, object], options: CellOptions) -> Iterator[CellImage]:
    """The image that the line asks for; its packed files are gone when the block ends. `space` has the notebook's variables.

    Raises RequestError: BAD_ARGUMENT for a name that holds no image, and what `Image.recipe` raises.
    """
    if not options.image:
        yield CellImage(keep=True)
        return
    image = _named(space, options)
    if image.is_mirror:
        yield CellImage()
        return
    from cellburst.image_build import packed

    with packed(image) as recipe:
        yield CellImage(recipe=recipe.recipe, packed=recipe)


def image_names(space: Mapping[str, object]) -> list[str]:
    """The variables that hold an image."""
    if "cellburst.image" not in sys.modules:
        return []  # nobody can have made one
    from cellburst.image_build import find_images

    return sorted(find_images(space))


def _named(space: Mapping[str, object], options: CellOptions) -> Image:
    from cellburst.image import Image

    name = options.image
    found = space.get(name)
    if isinstance(found, Image):
        return found
    what = f"is a {type(found).__name__}" if name in space else "is no variable of this notebook"
    raise _refused(name, what, image_names(space), options)


def _refused(name: str, what: str, known: list[str], options: CellOptions) -> CellburstError:
    names = f": {', '.join(known[:SHOWN_NAMES])}" if known else ""
    other = f"image={known[0]}" if known else f"{name} = cellburst.Image.debian_slim().pip_install(...)"
    return error(
        ErrorCode.BAD_ARGUMENT, f"image={name}: {name} {what}", allowed=f"a variable that holds a cellburst.Image{names}",
        next=f"for example {other}", column=str(options.image_column), line=options.text,
    )  # fmt: skip
