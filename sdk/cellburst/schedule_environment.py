"""The environment that a notebook's runs have, described and kept by its own interpreter, and the image that a schedule names.

What is kept is a recipe: Python's minor version, every package with its version, the sources of what is installed as editable. A
run whose environment has changed since has it built from that. Packs of sources lie in a folder of the caller's, who removes it
when they were sent.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.images import AnyStep, Copy, Env, ImageRecipe, debian_slim
from cellburst_protocol.messages import MirrorSpec
from cellburst_protocol.schedules import MAX_FOLDER_BYTES, FrozenEnvironment

from .sizes import size_text
from .source_files import SourceLeftOut

if TYPE_CHECKING:
    from .image import Image

DESCRIBE_SECONDS = 300.0  # an image's file is run as well, and may import much
ANSWER = "told.json"
OURS = ("cellburst", "cellburst_protocol", "cellburst_jupyter")  # what a run's `%%modal` cells need of us
_ALSO_OURS = ("cellburst_runtime", "cellburst_runner", "cellburst_worker", "cellburst_gateway")
_PLACE = "ours"  # of our own packages, in the pack
_INSTALLED = "installed"


@dataclass(frozen=True)
class Kept:
    """What a schedule keeps beside its notebook and folder; `files` has the packs of both recipes, by hash. `environment` None:
    it could not be kept, as one of `notes` says. `recipe` is the image that was asked for."""

    environment: FrozenEnvironment | None = None
    recipe: ImageRecipe | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NOTHING = Kept()


class Told(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What an interpreter says of its environment, as a file in the folder of the packs."""

    image: MirrorSpec
    environment: FrozenEnvironment | None = None
    recipe: ImageRecipe | None = None
    files: dict[str, str] = {}
    notes: list[str] = []
    problem: ErrorInfo | None = None


def describe_environment(python: str, folder: Path, packs: Path, image: str = "") -> tuple[MirrorSpec, Kept]:
    """The environment of an interpreter as it describes itself, and what is kept of it; `image` as in `Asked`, of a notebook in
    `folder`. Blocks. Raises RequestError: NOT_FOUND; for an image that cannot be had BAD_ARGUMENT or what its recipe raises."""
    try:
        subprocess.run(
            command(python, folder, packs, image), capture_output=True, timeout=DESCRIBE_SECONDS, check=True, cwd="/"
        )
    except subprocess.CalledProcessError as why:
        last = why.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise not_described(python, last or why) from None
    except (OSError, subprocess.SubprocessError) as why:
        raise not_described(python, why) from None
    return answer(python, packs)


def command(python: str, folder: Path, packs: Path, image: str = "") -> list[str]:
    """The program whose `answer` is in `packs` when it has ended."""
    return [python, "-m", "cellburst_jupyter.environment_told", str(folder), str(packs), image]


def answer(python: str, packs: Path) -> tuple[MirrorSpec, Kept]:
    """What an interpreter's program told. Raises as `describe_environment`."""
    try:
        told = msgspec.json.decode((packs / ANSWER).read_bytes(), type=Told)
    except (OSError, msgspec.MsgspecError) as why:
        raise not_described(python, why) from None
    if told.problem is not None:
        raise from_info(told.problem)
    files = {hash: Path(path) for hash, path in told.files.items()}
    return told.image, Kept(told.environment, told.recipe, files, tuple(told.notes))


def not_described(python: str, why: object) -> CellburstError:
    """An interpreter that does not answer."""
    return error(
        ErrorCode.NOT_FOUND, f"the environment of {python} cannot be described: {why}",
        next="install cellburst there (`pip install 'cellburst[jupyter]'`), or give another --python",
    )  # fmt: skip


def tell(spec: MirrorSpec, folder: Path, packs: Path, image: str) -> None:
    """Within that interpreter: write the answer."""
    told = Told(image=spec)
    kept = frozen_environment(packs)
    try:
        if image:
            kept = with_image(kept, image_in_file(image, folder), packs)
    except CellburstError as why:
        told.problem = why.info
    told.environment, told.recipe, told.notes = kept.environment, kept.recipe, list(kept.notes)
    told.files = {hash: str(path) for hash, path in kept.files.items()}
    (packs / ANSWER).write_bytes(msgspec.json.encode(told))


# -- this interpreter's environment --------------------------------------------------------------------------------------


def frozen_environment(packs: Path) -> Kept:
    """What is kept of this environment; its packs are written to `packs`. Nothing is, and a note says why, where it could not be
    built again."""
    from .image_mirror import EDITABLE_FOLDER, frozen_packages, install_step  # reads every installed package's metadata
    from .image_packs import PackedFile, PackWriter, list_tree

    installed: dict[str, Path] = {}  # of what came from local files, by their names below site-packages
    try:
        frozen, found = frozen_packages(installed)
        own = _own_folders()
        roots = [root for root in dict.fromkeys(found) if root.resolve() not in own]
        trees = [(root, str(number)) for number, root in enumerate(roots)]
        trees += [(place, f"{_PLACE}/{name}") for name in OURS for place in _places(name)]
        entries = [entry for root, name in trees for entry in list_tree(root, SourceLeftOut(root), f"{name}/")]
        entries += [PackedFile(f"{_INSTALLED}/{name}", path) for name, path in installed.items() if not _is_ours(name)]
        size = sum(entry.path.stat().st_size for entry in entries if entry.path is not None)
        if size > MAX_FOLDER_BYTES:
            what = f"the sources of its editable packages have {size_text(size)}"
            raise error(ErrorCode.TOO_LARGE, what, allowed=size_text(MAX_FOLDER_BYTES))
        writer = PackWriter(packs)
        pack = writer.write(entries)
    except (CellburstError, OSError) as why:
        told = why.info.message if isinstance(why, CellburstError) else str(why)
        limit = f" (at most {why.info.allowed})" if isinstance(why, CellburstError) and why.info.allowed else ""
        return Kept(notes=(f"the environment is not kept, and runs have it as it is then: {told}{limit}",))
    major, minor, patch = sys.version_info[:3]
    steps: list[AnyStep] = debian_slim(f"{major}.{minor}", least_patch=patch)
    if packages := [text for text in frozen if text.partition("==")[0].partition(" ")[0] != OURS[0]]:
        steps.append(install_step(packages))
    steps.append(Copy(pack=pack, destination=EDITABLE_FOLDER))
    path = [f"{EDITABLE_FOLDER}/{name}" for name in (*map(str, range(len(roots))), _INSTALLED, _PLACE)]
    steps.append(Env(variables={"PYTHONPATH": ":".join(path)}))
    environment = FrozenEnvironment(
        recipe=ImageRecipe(steps=steps), roots=[str(root) for root in roots], sources=pack.hash
    )
    return Kept(environment, files=writer.files)


def _is_ours(name: str) -> bool:
    return name.partition("/")[0] in (*OURS, *_ALSO_OURS)


def _own_folders() -> set[Path]:
    return {place.parent.resolve() for name in (*OURS, *_ALSO_OURS) for place in _places(name)}


def _places(name: str) -> Iterator[Path]:
    found = importlib.util.find_spec(name)
    yield from (Path(place) for place in (found.submodule_search_locations or [])[:1]) if found is not None else ()


# -- the image that is asked for -----------------------------------------------------------------------------------------


def file_and_name(text: str) -> tuple[str, str]:
    """`FILE.py:NAME` or `FILE.py` as (file, name or ""); of anything else the file is ""."""
    file, colon, name = text.rpartition(":")
    if colon and name.isidentifier() and file.endswith(".py"):
        return file, name
    return (text, "") if text.endswith(".py") else ("", text)


def check_image_text(text: str, folder: Path) -> None:
    """Whether it can name an image, for a notebook in `folder`. Raises RequestError (BAD_ARGUMENT, NOT_FOUND)."""
    file, _ = file_and_name(text)
    if not file:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"image={text[:80]!r} names no file", allowed="FILE.py:NAME, a Python file and its variable",
            next=f"write it into a file, or say it in the notebook: %modal schedule … image={text[:80]}",
        )  # fmt: skip
    if not (folder / file).is_file():
        raise error(ErrorCode.NOT_FOUND, f"image={text[:80]!r}: there is no file {str(folder / file)!r}")


def image_in_file(text: str, folder: Path) -> Image:
    """The image that a file's variable holds; the file is run. Raises RequestError (BAD_ARGUMENT, NOT_FOUND)."""
    from .image_build import load_images

    check_image_text(text, folder)
    file, name = file_and_name(text)
    try:
        found = load_images(folder / file)
    except CellburstError:
        raise
    except Exception as why:  # whatever the user's own file raises
        last = traceback.format_exception_only(why)[-1].strip()
        raise error(ErrorCode.BAD_ARGUMENT, f"image={text}: {file} cannot be run: {last[:500]}") from None
    if name in found or (not name and len(found) == 1):
        return found[name or next(iter(found))]
    what = f"{name!r} is no image" if name else f"{file} has {len(found)} images"
    known = ", ".join(sorted(found)[:20])
    raise error(
        ErrorCode.BAD_ARGUMENT, f"image={text}: {what}", allowed=f"a variable of {file} that holds a cellburst.Image"
        + (f": {known}" if known else ""), next=f"for example image={file}:{next(iter(sorted(found)), 'NAME')}",
    )  # fmt: skip


def with_image(kept: Kept, image: Image, packs: Path) -> Kept:
    """With an image's recipe, its local files packed into `packs`. Raises what `Image.recipe` raises."""
    if image.is_mirror:
        return replace(kept, notes=(*kept.notes, "the image is the mirror: the notebook's own environment"))
    made = image.recipe(packs)
    return replace(kept, recipe=made.recipe, files={**kept.files, **made.files})
