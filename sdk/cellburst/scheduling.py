"""Making a schedule from what a person says: times, resources, parameters; the notebook frozen, looked through and sent.

Shared by `cellburst schedule create` and `%modal schedule`, which differ in where the environment's description comes from.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from cellburst_protocol import notebooks
from cellburst_protocol.errors import ErrorCode, error, from_info
from cellburst_protocol.messages import MirrorSpec, PutSchedule, ScheduleInfo
from cellburst_protocol.modal_lines import asked_beside, line_values, notebook_uses
from cellburst_protocol.peer import Peer
from cellburst_protocol.resources import (
    Resources,
    parse_cpu,
    parse_gpus,
    parse_memory_mib,
    parse_seconds,
    parse_usd,
)
from cellburst_protocol.schedules import (
    MAX_MISSED_WINDOW_SECONDS,
    FrozenFile,
    Notify,
    Parameter,
    ScheduleSpec,
    When,
    near_timezone,
)
from cellburst_protocol.volume_mounts import parse_volumes

from .blobs import BlobClient
from .preflight import Finding, Surroundings, preflight
from .schedule_environment import NOTHING, Kept
from .schedule_freeze import Frozen, freeze, read_notebook

LONGEST_SECONDS = 366 * 86400.0
LONGEST_RUN_SECONDS = 30 * 86400.0
OUR_PACKAGE = "cellburst"
PUT_SECONDS = 300.0  # a folder of the stated size is copied and checked meanwhile


@dataclass(frozen=True)
class Asked:
    """What a person says of a schedule, as text. Exactly one of `cron`, `every` and `at` is given. `image` is `FILE.py:NAME`, the
    file below the notebook's folder or anywhere, or of a kernel's own notebook a variable's name; without it the run's session
    has the notebook's environment, `environment` "frozen" or "live" (see `ScheduleSpec`)."""

    cron: str = ""
    every: str = ""
    at: str = ""
    timezone: str = ""
    name: str = ""
    gpu: str = ""
    memory: str = ""
    cpu: str = ""
    network: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
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
    notify: Sequence[str] = ()
    folder: bool = True
    modal_cells: str = "own"
    image: str = ""
    environment: str = "frozen"


@dataclass
class Draft:
    """A schedule that can be sent. `findings` are what a run would stumble over; `notes` say what was decided for the person."""

    spec: ScheduleSpec
    frozen: Frozen
    findings: list[Finding]
    notes: list[str]


def draft(
    path: Path, image: MirrorSpec, asked: Asked, data: bytes | None = None, kept: Sequence[FrozenFile] | None = None,
    beside: Kept = NOTHING,
) -> Draft:  # fmt: skip
    """Freeze and look through a notebook. With `kept`, a schedule's own files, the folder as it is now is not looked at: that
    draft is for being looked at only. `beside` is what is kept of its environment and image; without it the draft is for being
    looked at, too. Raises RequestError for what is wrong in it or in what was asked."""
    data = read_notebook(path) if data is None else data
    notebook = notebooks.read(data, path.name)
    cells = notebooks.code_cells(notebook)
    if not cells:
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"{path.name} has no code cell: nothing would run",
            next="write a cell and save the notebook",
        )
    notes: list[str] = []
    asked = _machine_of(cells, asked, image, notes)
    notebooks.check_parameters(notebook, asked.parameters)
    frozen = freeze(path, image.notebook_mode if asked.folder and kept is None else "none", data=data)
    frozen.files = list(kept) if kept is not None else frozen.files
    notes += [*_left_out(frozen), *beside.notes]
    frozen.sources |= beside.files
    plain = msgspec.structs.replace(
        spec_of(asked, path), notebook_hash=frozen.hash, notebook_size_bytes=len(data), files=frozen.files, image=image,
        recipe=beside.recipe, frozen=beside.environment,
    )  # fmt: skip
    spec = with_cells(plain, notebook)
    findings = preflight(notebook, _surroundings(frozen, spec, asked.gpu))
    return Draft(spec, frozen, findings, notes)


def with_cells(spec: ScheduleSpec, notebook: Mapping[str, Any]) -> ScheduleSpec:
    """With the names of what its `%%modal` cells ask for beside the run's own session."""
    secrets: list[str] = []
    volumes: list[str] = []
    if spec.modal_cells == "own":
        lines = [cell.asked for cell in notebooks.code_cells(notebook) if cell.asked is not None]
        secrets, volumes = asked_beside(lines, notebook_uses(notebook))
    return msgspec.structs.replace(spec, cell_secrets=secrets, cell_volumes=volumes)


def spec_of(asked: Asked, path: Path) -> ScheduleSpec:
    """What was asked for, without anything frozen. Raises RequestError (BAD_ARGUMENT)."""
    return ScheduleSpec(
        name=asked.name or path.stem, notebook=str(path), when=when_of(asked), resources=_resources(asked),
        with_folder=asked.folder, modal_cells=_one_of(asked.modal_cells, "modal_cells", ("own", "same")),
        image_name=asked.image.strip(), environment=_one_of(asked.environment, "environment", ("frozen", "live")),
        secrets=[name.strip() for name in asked.secrets.split(",") if name.strip()],
        volumes=list(parse_volumes(asked.volumes)) if asked.volumes else [], parameters=dict(asked.parameters),
        timeout_seconds=parse_seconds(asked.timeout, "timeout", LONGEST_RUN_SECONDS) if asked.timeout else None,
        retries=asked.retries, budget_usd=parse_usd(asked.budget) if asked.budget else None,
        overlap=_one_of(asked.overlap, "overlap", ("skip", "queue", "replace")),
        missed=_one_of(asked.missed, "missed", ("skip", "latest", "all")),
        missed_window_seconds=_window(asked.missed_window),
        keep_runs=asked.keep_runs, keep_days=asked.keep_days, notify=[notify_of(text) for text in asked.notify],
    )  # fmt: skip


def _window(text: str) -> float:
    if text.strip() in ("", "0", "0s"):
        return 0.0 if text.strip() else 600.0
    return parse_seconds(text, "missed_window", MAX_MISSED_WINDOW_SECONDS)


async def send(
    peer: Peer, blobs: BlobClient, made: Draft, say: Callable[[str], None], *, edits: ScheduleInfo | None = None
) -> ScheduleInfo:
    """Send the frozen files, then the schedule. `edits` is the schedule to be changed, as its editor saw it."""
    import asyncio

    from . import schedule_freeze

    await asyncio.to_thread(schedule_freeze.send, made.frozen, blobs, say)
    message = PutSchedule(spec=made.spec)
    if edits is not None:
        message = PutSchedule(spec=made.spec, schedule=edits.row.id, revision=edits.row.revision)
    answer = await peer.request(message, timeout_seconds=PUT_SECONDS)
    assert isinstance(answer, ScheduleInfo)
    return answer


def when_of(asked: Asked) -> When:
    """The times. A cron line is read by the gateway, which has the say. Raises RequestError (BAD_ARGUMENT)."""
    given = [name for name in ("cron", "every", "at") if getattr(asked, name)]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given" if given else "no time is given"
        raise error(
            ErrorCode.BAD_ARGUMENT, what, allowed="one of a cron line, every, at",
            next="for example `0 7 * * 1-5`, every=15m or at=2026-12-24T18:00",
        )  # fmt: skip
    zone = asked.timezone or local_timezone()
    if zone not in available_timezones():
        raise from_info(near_timezone(zone, sorted(available_timezones())))
    if asked.cron:
        return When(kind="cron", cron=asked.cron, timezone=zone)
    if asked.every:
        return When(
            kind="every", every_seconds=round(parse_seconds(asked.every, "every", LONGEST_SECONDS)), timezone=zone
        )
    try:
        moment = datetime.fromisoformat(asked.at)
    except ValueError:
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"at={asked.at!r} is no moment",
            allowed="YYYY-MM-DDTHH:MM",
            next="for example at=2026-12-24T18:00",
        ) from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=ZoneInfo(zone))
    return When(kind="once", at_unix_seconds=int(moment.timestamp()), timezone=zone)


def local_timezone() -> str:
    """This machine's timezone by name, UTC where it does not say."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named in available_timezones():
        return named
    real = os.path.realpath("/etc/localtime")
    _, _, name = real.partition("/zoneinfo/")
    for prefix in ("posix/", "right/"):
        name = name.removeprefix(prefix)
    return name if name in available_timezones() else "UTC"


def parameter_of(text: str) -> tuple[str, Parameter]:
    """`name=value`: a value that is JSON is that, anything else is text. Raises RequestError (BAD_ARGUMENT)."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"{text[:60]!r} sets no parameter",
            allowed="NAME=VALUE",
            next="for example -p rate=0.1",
        )
    try:
        found: Parameter = json.loads(value, parse_constant=_no_constant)
    except ValueError:
        found = value
    return name.strip(), found


def notify_of(text: str) -> Notify:
    """`jupyter`, a URL or an address, each with `:failure` or `:success` behind it for that only."""
    target, success, failure = text, True, True
    for end in ("failure", "success"):
        if text.endswith(f":{end}"):
            target, success, failure = text.removesuffix(f":{end}"), end == "success", end == "failure"
    if target == "jupyter":
        return Notify(channel="jupyter", on_success=success, on_failure=failure)
    channel: Literal["webhook", "email"] = "webhook" if "://" in target else "email"
    return Notify(channel=channel, target=target, on_success=success, on_failure=failure)


def _no_constant(text: str) -> float:
    raise ValueError(text)


def _one_of(text: str, key: str, allowed: tuple[Any, ...]) -> Any:
    if text not in allowed:
        near = difflib.get_close_matches(text, allowed, n=1)
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"{key}={text!r} is not known",
            allowed=", ".join(allowed),
            next=f"did you mean {near[0]}?" if near else "",
        )
    return text


def _machine_of(cells: Sequence[notebooks.CodeCell], asked: Asked, image: MirrorSpec, notes: list[str]) -> Asked:
    """With what the run's own session has: what was asked for; and where all cells share it, else what the first `%%modal`
    line asks for."""
    first = next((cell for cell in cells if cell.asked is not None), None)
    if first is None:
        return asked
    if asked.modal_cells == "own" and asked.image:
        notes.append(
            f"%%modal cells have machines of their own where image={asked.image} has {OUR_PACKAGE}[jupyter]; else they run"
            " in the run's own session"
        )
    elif asked.modal_cells == "own" and image.packages and OUR_PACKAGE not in image.packages:
        notes.append(
            f"{image.executable} has no {OUR_PACKAGE}: %%modal cells run in the run's own session, not on machines of their own"
            f" (pip install {OUR_PACKAGE} there, and schedule it again)"
        )
        asked = replace(asked, modal_cells="same")
    if asked.modal_cells == "own" or asked.gpu or asked.memory or asked.cpu or asked.network:
        return asked
    values = line_values(first.asked or "")
    found = {key: values[key] for key in ("gpu", "memory", "cpu", "network") if key in values}
    if found:
        notes.append(f"the run gets what cell {first.number} asks for: %%modal {first.asked}")
    return replace(asked, **found)  # type: ignore[arg-type]  # these four are text


def _resources(asked: Asked) -> Resources:
    resources = Resources()
    return Resources(
        gpus=parse_gpus(asked.gpu) if asked.gpu else (), cpu=parse_cpu(asked.cpu) if asked.cpu else resources.cpu,
        memory_mib=parse_memory_mib(asked.memory) if asked.memory else resources.memory_mib,
        network=_one_of(asked.network, "network", ("outbound", "none")) if asked.network else resources.network,
    )  # fmt: skip


def _left_out(frozen: Frozen) -> list[str]:
    notes = []
    for what, paths in (("hold keys", frozen.secret), ("are links that lead elsewhere", frozen.links)):
        if paths:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            notes.append(f"left out, because they {what}: {', '.join(paths[:3])}{more}")
    return notes


def _surroundings(frozen: Frozen, spec: ScheduleSpec, gpu: str) -> Surroundings:
    image = spec.image
    assert image is not None
    folder = str(frozen.path.parent)
    with_it = {file.path for file in frozen.files}

    def shown(path: str) -> bool:
        if (path + "/").startswith(folder + "/"):
            return os.path.relpath(path, folder) in with_it or any(
                p.startswith(os.path.relpath(path, folder) + "/") for p in with_it
            )
        return any(path.startswith(mount.rstrip("/") + "/") for mount in image.mounts)

    def known(module: str) -> bool:
        if spec.image_name:
            return True  # what an image has is known when it is built
        try:
            return importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            return False

    modules = {path.partition("/")[0].removesuffix(".py") for path in with_it if path.endswith(".py")}
    variables = {"HOME", "PATH", "USER", "LANG", "PWD", "CUDA_VISIBLE_DEVICES", *image.environment}
    return Surroundings(
        folder, shown, frozenset(modules), known, frozenset(variables) if not spec.secrets else _Everything(variables),
        spec.resources.network, gpu, own_machines=spec.modal_cells == "own",
        cell_variables=frozenset(variables) if not spec.cell_secrets else _Everything(variables),
    )  # fmt: skip


class _Everything(frozenset[str]):
    """Secrets are given: which variables they set is the gateway's to know, so none is called unset."""

    def __contains__(self, name: object) -> bool:
        return True
