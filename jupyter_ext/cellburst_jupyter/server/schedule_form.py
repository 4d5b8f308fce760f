"""What the form of a schedule is filled with and what it says: text on both sides, as a person types it. Pure."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from cellburst.schedule_edit import asked_of
from cellburst.scheduling import Asked, local_timezone
from cellburst_protocol import notebooks
from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.messages import ScheduleInfo
from cellburst_protocol.resources import Resources
from cellburst_protocol.schedules import Parameter, ScheduleRow, ScheduleSpec

SHOWN_DEFAULT_CHARACTERS = 200
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


class ScheduleText(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A schedule as the form has it: the fields of `cellburst.scheduling.Asked`. One of `cron`, `every` and `at` is given."""

    cron: str = ""
    every: str = ""
    at: str = ""
    timezone: str = ""
    name: str = ""
    gpu: str = ""
    memory: str = ""
    cpu: str = ""
    network: str = ""
    parameters: dict[str, Parameter] = {}
    secrets: str = ""
    volumes: str = ""
    timeout: str = ""
    retries: int = 0
    budget: str = ""
    overlap: str = "skip"
    missed: str = "latest"
    missed_window: str = ""
    keep_runs: int = 50
    keep_days: float = 30.0
    notify: list[str] = []
    folder: bool = True
    modal_cells: str = "own"
    image: str = ""
    environment: str = "frozen"

    def asked(self) -> Asked:
        """As the command line has it."""
        return Asked(**msgspec.structs.asdict(self))


class ParameterShown(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A parameter of the notebook: its type ("" for any) and its default as it stands in the cell."""

    name: str
    type: str = ""
    default: str = ""


class FindingShown(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a run would ("problem") or may ("hint") stumble over; `cell` 0 is the notebook."""

    kind: str
    cell: int = 0
    text: str = ""


class LookAt(msgspec.Struct, kw_only=True):
    """A question: what of this would a run stumble over? `path` is the Jupyter server's, or `schedule` an id. Without `text` the
    answer fills the form."""

    path: str = ""
    schedule: str = ""
    text: ScheduleText | None = None
    take: bool = True


class Looked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The form's start, and what a run would have and stumble over. `parameters` None: no cell has the tag. `problem`: it
    cannot be scheduled as it was typed; of what it has then only the parameters are told, and for a new form its start."""

    text: ScheduleText
    notebook: str = ""
    python: str = ""
    python_version: str = ""
    parameters: list[ParameterShown] | None = None
    findings: list[FindingShown] = []
    notes: list[str] = []
    files_count: int = 0
    files_bytes: int = 0
    problem: ErrorInfo | None = None


class SaveSchedule(msgspec.Struct, kw_only=True):
    """What the form saves. `path` of a new one; `revision` is what the editor saw; `take` the notebook as it is now, else the one
    that the schedule keeps."""

    text: ScheduleText
    path: str = ""
    revision: int = 0
    take: bool = True


class ScheduleShown(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A schedule for its editor. `changed`: the notebook is another now than the one that is kept; `gone`: it is not there;
    `environment_changes`: packages that are others now, a line each; `missing`: secrets and volumes that are not there."""

    row: ScheduleRow
    text: ScheduleText
    next_unix_seconds: list[int] = []
    changed: bool = False
    gone: bool = False
    environment_changes: list[str] = []
    missing: list[str] = []


class SchedulesShown(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All schedules by name; `changed` are ids of those whose notebook is another now than the one that is kept, `gone` of those
    whose notebook's file is not there any more."""

    rows: list[ScheduleRow] = []
    changed: list[str] = []
    gone: list[str] = []


def shown(info: ScheduleInfo, *, changed: bool, gone: bool) -> ScheduleShown:
    """A schedule for its editor."""
    return ScheduleShown(
        row=info.row, text=text_of(info.spec), next_unix_seconds=info.next_unix_seconds, changed=changed, gone=gone,
        environment_changes=info.environment_changes, missing=info.missing,
    )  # fmt: skip


def text_of(spec: ScheduleSpec) -> ScheduleText:
    """A schedule as a person would type it; `ScheduleText.asked` gives the same schedule again."""
    asked = asked_of(spec)
    text = ScheduleText(**vars(asked) | {"parameters": dict(asked.parameters), "notify": list(asked.notify)})
    text.at = _field_time(asked.at)
    if spec.when.kind == "every":
        text.every = duration_text(spec.when.every_seconds)
    if spec.timeout_seconds is not None:
        text.timeout = duration_text(spec.timeout_seconds)
    if spec.missed_window_seconds:
        text.missed_window = duration_text(spec.missed_window_seconds)
    text.budget = spec.budget_usd or ""
    return with_resources(text, spec.resources)


def _field_time(at: str) -> str:
    """A moment as a field for local time has it: in the schedule's own zone, without saying it; seconds only where there are."""
    if not at:
        return ""
    moment = datetime.fromisoformat(at).replace(tzinfo=None)
    return moment.isoformat(timespec="seconds" if moment.second else "minutes")


def start_text(name: str, resources: Resources, used: Mapping[str, str]) -> ScheduleText:
    """What a new form begins with: weekdays at seven in this machine's zone, and what the notebook itself asks for."""
    text = ScheduleText(
        cron="0 7 * * 1-5", timezone=local_timezone(), name=name, secrets=used.get("secrets", ""),
        volumes=used.get("volumes", ""), missed_window="10m", notify=["jupyter"],
    )  # fmt: skip
    return with_resources(text, resources)


def with_resources(text: ScheduleText, resources: Resources) -> ScheduleText:
    """Hardware as `%%modal` writes it. All of it is said: the notebook's first `%%modal` line decides nothing then."""
    mib = resources.memory_mib
    return msgspec.structs.replace(
        text, gpu=",".join(map(str, resources.gpus)),
        memory=f"{mib // 1024}GiB" if mib % 1024 == 0 else f"{mib}MiB", cpu=f"{resources.cpu:g}", network=resources.network,
    )  # fmt: skip


def duration_text(seconds: float) -> str:
    """`1h30m`, exactly; a broken rest stays a number of seconds."""
    if seconds != int(seconds):
        return f"{seconds:g}s"
    left, parts = int(seconds), []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parameters_of(notebook: Mapping[str, Any]) -> list[ParameterShown] | None:
    """The notebook's parameters with type and default, None where no cell has the tag. Raises RequestError (BAD_ARGUMENT)."""
    found = notebooks.defaults(notebook)
    if found is None:
        return None
    cell = next(
        c for c in notebook["cells"] if c["cell_type"] == "code" and notebooks.PARAMETERS_TAG in notebooks.tags_of(c)
    )
    sources: dict[str, str] = {}
    for node in ast.parse(notebooks.made_ready(notebooks.source_of(cell))[0]).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                sources[target.id] = ast.unparse(node.value)[:SHOWN_DEFAULT_CHARACTERS]
    return [
        ParameterShown(name=name, type=kind.__name__ if kind is not None else "", default=sources.get(name, ""))
        for name, kind in found.items()
    ]


def same_notebook(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a run of both is the same: cells, their order, text and tags. Outputs and counts are not looked at."""

    def what(notebook: Mapping[str, Any]) -> list[tuple[object, ...]]:
        return [(c["cell_type"], notebooks.source_of(c), *notebooks.tags_of(c)) for c in notebook["cells"]]

    return what(one) == what(other)
