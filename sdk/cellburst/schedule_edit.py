"""Changing a schedule that is there: what it was asked for as text, edits of that, the notebook's newest state taken over.

A schedule keeps its history through all of it. Whoever edits names the revision that was seen; the gateway tells the second of
two editors (CONFLICT), and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec
from blake3 import blake3

from cellburst_protocol.messages import MirrorSpec, PutSchedule, ScheduleInfo
from cellburst_protocol.notebooks import MAX_NOTEBOOK_BYTES
from cellburst_protocol.resources import Resources
from cellburst_protocol.schedules import Notify, ScheduleSpec, When
from cellburst_protocol.volume_mounts import text_of

from .schedule_environment import NOTHING, Kept, check_image_text, file_and_name
from .scheduling import Asked, Draft, draft, spec_of, when_of


def asked_of(spec: ScheduleSpec) -> Asked:
    """What a schedule was asked for, as a form or a command line would say it."""
    when, resources, usual = spec.when, spec.resources, Resources()
    at = ""
    if when.kind == "once":
        at = datetime.fromtimestamp(when.at_unix_seconds, ZoneInfo(when.timezone)).isoformat(timespec="seconds")
    return Asked(
        cron=when.cron if when.kind == "cron" else "", every=f"{when.every_seconds}s" if when.kind == "every" else "", at=at,
        timezone=when.timezone, name=spec.name, gpu=",".join(map(str, resources.gpus)),
        memory="" if resources.memory_mib == usual.memory_mib else f"{resources.memory_mib}MiB",
        cpu="" if resources.cpu == usual.cpu else f"{resources.cpu:g}",
        network="" if resources.network == usual.network else resources.network,
        parameters=dict(spec.parameters), secrets=",".join(spec.secrets), volumes=text_of(spec.volumes),
        timeout="" if spec.timeout_seconds is None else f"{spec.timeout_seconds:.15g}s", retries=spec.retries,
        budget=f"${spec.budget_usd}" if spec.budget_usd is not None else "", overlap=spec.overlap, missed=spec.missed,
        missed_window=f"{spec.missed_window_seconds:.15g}s" if spec.missed_window_seconds else "0", keep_runs=spec.keep_runs,
        keep_days=spec.keep_days, notify=[notify_text(one) for one in spec.notify], folder=spec.with_folder,
        modal_cells=spec.modal_cells, image=spec.image_name, environment=spec.environment,
    )  # fmt: skip


def notify_text(one: Notify) -> str:
    """One to be told, as `notify_of` reads it."""
    only = "" if one.on_success and one.on_failure else ":success" if one.on_success else ":failure"
    return (one.target or one.channel) + only


def image_to_read(spec: ScheduleSpec, asked: Asked, *, take: bool) -> str:
    """The file's image that is to be read anew for an edit, "" for none: with `take` also where it has the same name as before.
    Raises RequestError (BAD_ARGUMENT, NOT_FOUND) for a name that is no file's, unless it is the one that is kept."""
    text = asked.image.strip()
    if not text or (text == spec.image_name and not (take and file_and_name(text)[0])):
        return ""
    check_image_text(text, Path(spec.notebook).parent)
    return text


def edited(info: ScheduleInfo, asked: Asked, beside: Kept = NOTHING) -> PutSchedule:
    """The request that changes what was asked for and keeps what is frozen; `beside` has the image where `image_to_read` names
    one. Raises RequestError (BAD_ARGUMENT)."""
    old = info.spec
    same_image = asked.image.strip() == old.image_name
    spec = msgspec.structs.replace(
        spec_of(asked, Path(old.notebook)), when=_same_phase(info, asked), notebook_hash=old.notebook_hash,
        notebook_size_bytes=old.notebook_size_bytes, files=old.files, with_folder=old.with_folder, image=old.image,
        frozen=old.frozen, recipe=old.recipe if same_image else beside.recipe,
    )  # fmt: skip
    return PutSchedule(spec=spec, schedule=info.row.id, revision=info.row.revision, keep_frozen=True)


def taken_over(
    info: ScheduleInfo, image: MirrorSpec, changes: Mapping[str, Any] | None = None, data: bytes | None = None,
    beside: Kept = NOTHING,
) -> Draft:  # fmt: skip
    """The notebook, its folder and its environment as they are now, for the same schedule; `changes` are fields of Asked. An
    image that is no file's stays as it is kept: only its notebook's kernel has it.

    To be sent with `scheduling.send(..., edits=info)`. Raises RequestError: NOT_FOUND when the notebook's file is gone,
    BAD_ARGUMENT when it no longer fits what was asked (a parameter that it has no more).
    """
    asked = replace(asked_of(info.spec), **(changes or {}))
    if asked.image and asked.image == info.spec.image_name and not file_and_name(asked.image)[0]:
        stays = f"image={asked.image} stays as it is kept: `%modal schedule … image={asked.image}` in the notebook changes it"
        beside = replace(beside, recipe=info.spec.recipe, notes=(*beside.notes, stays))
    made = draft(Path(info.spec.notebook), image, asked, data, beside=beside)
    made.spec = msgspec.structs.replace(made.spec, when=_same_phase(info, asked))
    return made


def _same_phase(info: ScheduleInfo, asked: Asked) -> When:
    """The times; `every` that is as it was keeps its beat, and does not begin anew from now."""
    when, old = when_of(asked), info.spec.when
    same = when.kind == old.kind == "every" and when.every_seconds == old.every_seconds
    return msgspec.structs.replace(when, at_unix_seconds=old.at_unix_seconds) if same else when


def notebook_state(notebook: str, frozen_hash: str) -> Literal["same", "changed", "gone"]:
    """The notebook's file against what its schedule keeps. Blocks: the file is read."""
    try:
        path = Path(notebook)
        if path.stat().st_size > MAX_NOTEBOOK_BYTES:
            return "changed"
        return "same" if blake3(path.read_bytes()).hexdigest() == frozen_hash else "changed"
    except OSError:
        return "gone"
