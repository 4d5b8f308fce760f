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
        modal_cells=spec.modal_cells,
    )  # fmt: skip


def notify_text(one: Notify) -> str:
    """One to be told, as `notify_of` reads it."""
    only = "" if one.on_success and one.on_failure else ":success" if one.on_success else ":failure"
    return (one.target or one.channel) + only


def edited(info: ScheduleInfo, asked: Asked) -> PutSchedule:
    """The request that changes what was asked for and keeps what is frozen. Raises RequestError (BAD_ARGUMENT)."""
    old = info.spec
    spec = msgspec.structs.replace(
        spec_of(asked, Path(old.notebook)), when=_same_phase(info, asked), notebook_hash=old.notebook_hash,
        notebook_size_bytes=old.notebook_size_bytes, files=old.files, with_folder=old.with_folder, image=old.image,
        recipe=old.recipe,
    )  # fmt: skip
    return PutSchedule(spec=spec, schedule=info.row.id, revision=info.row.revision, keep_frozen=True)


def taken_over(
    info: ScheduleInfo, image: MirrorSpec, changes: Mapping[str, Any] | None = None, data: bytes | None = None
) -> Draft:
    """The notebook, its folder and its environment as they are now, for the same schedule; `changes` are fields of Asked.

    To be sent with `scheduling.send(..., edits=info)`. Raises RequestError: NOT_FOUND when the notebook's file is gone,
    BAD_ARGUMENT when it no longer fits what was asked (a parameter that it has no more).
    """
    asked = replace(asked_of(info.spec), **(changes or {}))
    made = draft(Path(info.spec.notebook), image, asked, data)
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
