"""`%modal schedule "0 7 * * 1-5" gpu=A100 p.rate=0.1 …`: this kernel's notebook, as it is saved, on a schedule."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cellburst import schedule_freeze
from cellburst.image import Image
from cellburst.schedule_environment import Kept, file_and_name, frozen_environment, image_in_file, with_image
from cellburst.scheduling import PUT_SECONDS, Asked, Draft, draft, parameter_of
from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.messages import (
    GetSchedule,
    ListSchedules,
    PreviewSchedule,
    PutSchedule,
    ScheduleInfo,
    ScheduleList,
    SchedulePreview,
)

from .cell_image import SHOWN_NAMES, image_names
from .notebook import Notebook
from .publish import tell

KEYS = tuple(
    field.name
    for field in dataclasses.fields(Asked)
    if field.name not in ("parameters", "notify", "folder", "retries", "keep_runs", "keep_days")
)
NUMBERS = {"retries": int, "keep_runs": int, "keep_days": float}
_EXAMPLE = 'for example `%modal schedule "0 7 * * 1-5" gpu=A100 p.rate=0.1`'
RECENT_SECONDS = 120.0


def run_schedule(notebook: Notebook, words: Sequence[str]) -> None:
    """Without words: the notebook's schedules. With them: make one, or take this state of the notebook over into it."""
    if not words:
        _list(notebook)
        return
    asked = parse_words(words)
    path = notebook_file(notebook)
    mirror = notebook.mirror(())
    with tempfile.TemporaryDirectory(prefix="cellburst-schedule-") as packs:
        answer, changed = _put(notebook, draft(path, mirror, asked, beside=_kept(notebook, asked, path, Path(packs))))
    saved = time.time() - path.stat().st_mtime
    if saved > RECENT_SECONDS:
        tell(
            f"the notebook as it was saved {saved / 60:.0f} minutes ago is what runs: save it and run this again for the newest"
        )
    tell(f"{'changed' if changed else 'scheduled'}: {answer.row.name}, {answer.row.words}")
    for moment in answer.next_unix_seconds[:3]:
        tell(f"  {datetime.fromtimestamp(moment).astimezone():%a %Y-%m-%d %H:%M %Z}")
    for line in answer.missing:
        tell(line, warning=True)
    tell(f"{answer.row.machine} must be on then, with its gateway up: `cellburst service install` sees to that")


def _kept(notebook: Notebook, asked: Asked, path: Path, packs: Path) -> Kept:
    """This kernel's environment, and the image that `image=` names: a variable, or one of a file."""
    kept, name = frozen_environment(packs), asked.image
    if not name:
        return kept
    if file_and_name(name)[0]:
        return with_image(kept, image_in_file(name, path.parent), packs)
    space = notebook.shell.user_ns
    found = space.get(name)
    if not isinstance(found, Image):
        what = f"is a {type(found).__name__}" if name in space else "is no variable of this notebook"
        known = ", ".join(image_names(space)[:SHOWN_NAMES])
        raise error(
            ErrorCode.BAD_ARGUMENT, f"image={name}: {name} {what}",
            allowed="a variable that holds a cellburst.Image, or FILE.py:NAME" + (f": {known}" if known else ""),
            next=f"for example {name} = cellburst.Image.debian_slim().pip_install(...) in a cell before",
        )  # fmt: skip
    return with_image(kept, found, packs)


def _put(notebook: Notebook, made: Draft) -> tuple[ScheduleInfo, bool]:
    """Save it; whether it was there before."""
    preview = notebook.hub.request(PreviewSchedule(when=made.spec.when))
    if isinstance(preview, SchedulePreview) and preview.problem is not None:
        raise from_info(preview.problem)
    for note in made.notes:
        tell(note)
    for finding in made.findings:
        tell(finding.line(), warning=finding.kind == "problem")
    message = PutSchedule(spec=made.spec)
    earlier = _earlier(notebook, made.spec.name)
    if earlier is not None and earlier.row.notebook == made.spec.notebook:
        message = PutSchedule(spec=made.spec, schedule=earlier.row.id, revision=earlier.row.revision)
    schedule_freeze.send(made.frozen, notebook.hub.blobs)
    answer = notebook.hub.request(message, timeout_seconds=PUT_SECONDS)
    assert isinstance(answer, ScheduleInfo)
    return answer, earlier is not None


def parse_words(words: Sequence[str]) -> Asked:
    """The line's words: a cron line first (or every=, at=), then key=value; `p.NAME=VALUE` sets a parameter."""
    given: dict[str, object] = {}
    parameters: dict[str, object] = {}
    notify: list[str] = []
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals and not given.get("cron") and (" " in word or word.startswith("@")):
            given["cron"] = word
        elif key.startswith("p.") and equals:
            name, found = parameter_of(f"{key[2:]}={value}")
            parameters[name] = found
        elif key == "notify" and equals:
            notify += value.split(",")
        elif key in NUMBERS and equals:
            try:
                given[key] = NUMBERS[key](value)
            except ValueError:
                raise error(
                    ErrorCode.BAD_ARGUMENT, f"{key}={value!r} is no number", next=f"for example {key}=3"
                ) from None
        elif key in KEYS and equals:
            given[key] = value
        else:
            near = difflib.get_close_matches(key, [*KEYS, *NUMBERS], n=1, cutoff=0.5)
            raise error(
                ErrorCode.BAD_ARGUMENT, f"%modal schedule: {word!r} is not known",
                allowed=f"a cron line in quotes, p.NAME=VALUE, {', '.join([*KEYS, *NUMBERS, 'notify'])}",
                next=f"did you mean {near[0]}=?" if near else _EXAMPLE,
            )  # fmt: skip
    return Asked(parameters=parameters, notify=notify, **given)  # type: ignore[arg-type]  # names and types are checked above


def notebook_file(notebook: Notebook) -> Path:
    """The notebook's file. Raises RequestError (NOT_FOUND) where this kernel does not know it."""
    path = Path(notebook.hub.notebook)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    raise error(
        ErrorCode.NOT_FOUND, "this kernel does not know its notebook's file",
        next="set it: %env CELLBURST_NOTEBOOK=/path/of/this.ipynb before the first %%modal; or `cellburst schedule create FILE`",
    )  # fmt: skip


def _earlier(notebook: Notebook, name: str) -> ScheduleInfo | None:
    try:
        found = notebook.hub.request(GetSchedule(schedule=name))
    except CellburstError as why:
        if why.code is ErrorCode.NOT_FOUND:
            return None
        raise
    return found if isinstance(found, ScheduleInfo) else None


def _list(notebook: Notebook) -> None:
    found = notebook.hub.request(ListSchedules(notebook=notebook.hub.notebook))
    assert isinstance(found, ScheduleList)
    for row in found.rows:
        following = row.next_unix_seconds
        then = f"next {datetime.fromtimestamp(following).astimezone():%a %Y-%m-%d %H:%M}" if following else row.state
        last = f", last {row.last.state.value}" if row.last is not None else ""
        sys.stdout.write(f"{row.name}: {row.words}; {then}{last}\n")
    if not found.rows:
        sys.stdout.write(f"this notebook has no schedule: {_EXAMPLE}\n")
