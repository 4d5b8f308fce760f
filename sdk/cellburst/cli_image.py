"""`cellburst image`: what the workers have built, and building without a notebook."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import (
    ImageList,
    ImageLogs,
    ImagesPruned,
    ImagesVerified,
    ListImages,
    Logs,
    PruneImages,
    VerifyImages,
)
from cellburst_protocol.peer import Peer
from cellburst_protocol.resources import parse_memory_mib

from .cli_common import ask, err, out, shows_errors
from .parked import age_text
from .sizes import size_text

if TYPE_CHECKING:
    from .image import Image

PRUNE_SECONDS = 660.0  # the gateway waits 600 s for its workers
VERIFY_SECONDS = 7260.0  # the gateway waits 7200 s
SHOWN_STEPS = 3
ID_CHARACTERS = 12


@click.group()
def image() -> None:
    """Images that the workers have built: list, build, logs, prune, verify."""


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def list_images(as_json: bool) -> None:
    """List images, last used first."""

    async def question(peer: Peer) -> ImageList:
        answer = await peer.request(ListImages())
        assert isinstance(answer, ImageList)
        return answer

    answer = ask(question)
    if as_json:
        click.echo(json.dumps({"images": msgspec.to_builtins(answer.rows), "size_bytes": answer.size_bytes}, indent=2))
        return
    if not answer.rows:
        out.print("no images; `cellburst image build FILE.py` or a cell with image= makes one")
        return
    table = Table("image", "steps", "size", "last used", "worker", "used by", box=None)
    now = time.time()
    for row in answer.rows:
        used = f"{age_text(now - row.last_used_unix_seconds)} ago" if row.last_used_unix_seconds else "-"
        more = f" and {len(row.steps) - SHOWN_STEPS} more" if len(row.steps) > SHOWN_STEPS else ""
        steps = f"{', '.join(step[:40] for step in row.steps[:SHOWN_STEPS])}{more}"
        table.add_row(
            row.id[:ID_CHARACTERS], escape(steps), size_text(row.size_bytes), used, row.worker,
            ", ".join(row.used_by) or "-",
        )  # fmt: skip
    out.print(table)
    out.print(f"{size_text(answer.size_bytes)} on disk; images share layers, so that their sizes add up to more")


@image.command()
@click.option(
    "--max", "size", default="", metavar="SIZE", help="What each worker may keep: 20GiB. Default: 0, nothing unused."
)
@shows_errors
def prune(size: str) -> None:
    """Delete layers that nothing uses, least recently used first, and downloads kept for builds. What runs or is parked keeps its
    layers."""
    max_bytes = _size_bytes(size) if size else 0

    async def question(peer: Peer) -> ImagesPruned:
        answer = await peer.request(PruneImages(max_bytes=max_bytes), timeout_seconds=PRUNE_SECONDS)
        assert isinstance(answer, ImagesPruned)
        return answer

    with err.status("deleting layers…"):
        answer = ask(question)
    out.print(f"freed {size_text(answer.freed_bytes)}; {size_text(answer.left_bytes)} are left")


@image.command()
@click.option("--worker", default="", help="On which worker; `cellburst status` lists them. Default: all.")
@shows_errors
def verify(worker: str) -> None:
    """Read every layer to its last byte. A damaged one is put aside: the next build that needs it makes it anew. Exit code 1
    when one was found."""

    async def question(peer: Peer) -> ImagesVerified:
        answer = await peer.request(VerifyImages(worker=worker), timeout_seconds=VERIFY_SECONDS)
        assert isinstance(answer, ImagesVerified)
        return answer

    with err.status("reading layers…"):
        answer = ask(question)
    for layer in answer.damaged:
        out.print(
            f"damaged: {layer.step} ({layer.id[:ID_CHARACTERS]}, {size_text(layer.size_bytes)}) on {layer.worker}",
            markup=False,
            soft_wrap=True,
        )
        for problem in layer.problems:
            out.print(f"  {problem}", markup=False, soft_wrap=True)
        if layer.used_by:
            out.print(f"  still shown to {', '.join(layer.used_by)}, until those end", markup=False, soft_wrap=True)
    layers = "1 layer" if answer.layer_count == 1 else f"{answer.layer_count} layers"
    read = f"{layers}, {size_text(answer.size_bytes)} read"
    if not answer.damaged:
        out.print(f"{read}: all whole", soft_wrap=True)
        return
    out.print(
        f"{read}: {len(answer.damaged)} damaged and put aside; the next build makes them anew, and what stands on them",
        soft_wrap=True,
    )
    sys.exit(1)


@image.command()
@click.argument("target", metavar="FILE.py[::NAME]")
@click.option("--worker", default="", help="On which worker; `cellburst status` lists them.")
@click.option("--verbose", "-v", is_flag=True, help="Print all that the build prints.")
@shows_errors
def build(target: str, worker: str, verbose: bool) -> None:
    """Build the image that a Python file declares: the variable NAME, or the only one."""
    from .image_build import build as build_image  # the other commands read no images
    from .image_progress import StepLines, built_text, default_progress

    found = _the_image(target)
    progress = StepLines(err, whole=True) if verbose else default_progress()
    built = build_image(found, progress=progress, worker=worker)
    out.print(built_text(built), markup=False)


@image.command()
@click.argument("id")
@shows_errors
def logs(id: str) -> None:
    """Print the log of an image's last build; ID may be the beginning of it."""

    async def question(peer: Peer) -> Logs:
        answer = await peer.request(ImageLogs(id=id))
        assert isinstance(answer, Logs)
        return answer

    click.echo(ask(question).text, nl=False)


def _the_image(target: str) -> Image:
    from .image_build import load_images

    name, _, wanted = target.partition("::")
    try:
        images = load_images(Path(name))
    except CellburstError:
        raise
    except Exception as why:
        # The user's own file failed: its traceback is what helps, without our frames.
        sys.stderr.write("".join(traceback.format_exception(type(why), why, _frames_of(why, Path(name)))))
        sys.exit(1)
    known = ", ".join(sorted(images)) or "it declares none"
    if wanted:
        if wanted not in images:
            raise error(
                ErrorCode.NOT_FOUND,
                f"{name} has no image {wanted!r}",
                allowed=known,
                next=f"for example {name}::{min(images, default='NAME')}",
            )
        return images[wanted]
    if len(images) != 1:
        what = f"{name} declares {len(images)} images" if images else f"{name} declares no image"
        hint = f"say which: {name}::{min(images)}" if images else "declare one: image = cellburst.Image.debian_slim()"
        raise error(ErrorCode.BAD_ARGUMENT, what, allowed=known, next=hint)
    return next(iter(images.values()))


def _frames_of(why: BaseException, file: Path) -> TracebackType | None:
    """The traceback from the first frame in the user's file on."""
    frames = why.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename) != file:
        frames = frames.tb_next
    return frames


def _size_bytes(text: str) -> int:
    if re.fullmatch(r"0+(\.0*)?\s*([KMGT]?i?B)?", text.strip(), re.IGNORECASE):
        return 0
    try:
        return parse_memory_mib(text) * 2**20
    except CellburstError:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"--max {text!r} is not a size", allowed="0, or a number with MiB, GiB, MB or GB, from 64MiB",
            next="for example --max 20GiB",
        ) from None  # fmt: skip
