"""REST for schedules: the list, the form that makes and changes one, runs and their notebooks.

The form sends what a person typed, as text; it is read here exactly as the command line's. A new schedule's notebook is named by
its path in this Jupyter server, so only what may be opened here may be scheduled from here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from jupyter_server.auth.decorator import authorized
from tornado.web import HTTPError, authenticated

from cellburst import schedule_freeze
from cellburst.schedule_edit import asked_of, edited, image_to_read, taken_over
from cellburst.schedule_environment import Kept, check_image_text
from cellburst.scheduling import PUT_SECONDS, Draft, draft, when_of
from cellburst_protocol import notebooks
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.images import packs as image_packs
from cellburst_protocol.messages import (
    DeleteSchedule,
    Done,
    GetSchedule,
    ListRuns,
    ListSchedules,
    PauseSchedule,
    PreviewSchedule,
    PutSchedule,
    RunInfo,
    RunList,
    RunSchedule,
    ScheduleInfo,
    ScheduleList,
    SchedulePreview,
)

from .. import notebook_uses
from .base import Base
from .gateway import Gateway
from .schedule_books import Notebooks
from .schedule_form import (
    FindingShown,
    LookAt,
    Looked,
    ParameterShown,
    SaveSchedule,
    SchedulesShown,
    ScheduleText,
    parameters_of,
    shown,
    start_text,
    text_of,
)

PYTHONS = ("python", "python3", f"python{sys.version_info.major}.{sys.version_info.minor}")


class ScheduleBase(Base):
    """What the routes of schedules share."""

    def initialize(self, gateway: Gateway, options: Any, books: Notebooks) -> None:  # type: ignore[override]
        """Tornado gives each handler these."""
        super().initialize(gateway, options)
        self.books = books

    async def local_path(self, path: str) -> Path:
        """The file of a notebook that this server shows. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        manager: Any = self.contents_manager
        find = getattr(manager, "_get_os_path", None)  # of those that keep files on a disk
        if find is None:
            raise error(
                ErrorCode.BAD_ARGUMENT, "this Jupyter server keeps its notebooks elsewhere than on a disk",
                next="schedule the notebook where its file is: `cellburst schedule create FILE`",
            )  # fmt: skip
        path = path.strip("/")
        try:
            there = await _now(manager.file_exists(path))
            hidden = not manager.allow_hidden and await _now(manager.is_hidden(path))
        except HTTPError:  # beyond its root
            there = hidden = False
        if not there or hidden or not path.endswith(".ipynb"):
            raise error(
                ErrorCode.NOT_FOUND, f"there is no notebook {path[:200]!r} in this Jupyter server",
                next="save the notebook first, and schedule it then",
            )  # fmt: skip
        return Path(find(path))

    def python_of(self, data: bytes) -> tuple[str, list[str]]:
        """The interpreter of a notebook's kernel, and what is to be said of it. Raises RequestError (BAD_ARGUMENT)."""
        metadata = notebooks.read(data).get("metadata")
        spec = metadata.get("kernelspec") if isinstance(metadata, dict) else None
        name = str(spec.get("name") or "") if isinstance(spec, dict) else ""
        if not name:
            return sys.executable, []
        try:
            kernel = self.kernel_spec_manager.get_kernel_spec(name)
        except KeyError:
            return sys.executable, [
                f"there is no kernel {name[:80]!r} here: the run has the environment of this Jupyter server"
            ]
        if kernel.language.lower() != "python" or not kernel.argv:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"the notebook's kernel is {kernel.display_name}", allowed="a Python kernel",
                next="choose a Python kernel for it and save it",
            )  # fmt: skip
        return sys.executable if kernel.argv[0] in PYTHONS else kernel.argv[0], []

    async def info(self, schedule: str) -> ScheduleInfo:
        """A schedule, whole."""
        return await self.gateway.ask(GetSchedule(schedule=schedule), ScheduleInfo)

    async def looked(
        self, path: Path, data: bytes, text: ScheduleText, info: ScheduleInfo | None = None, *, take: bool = True
    ) -> tuple[Draft, list[str]]:
        """What was typed and the notebook's bytes as a schedule, to be looked at: with the folder and the kernel's environment as
        they are now, or unless `take` with those that the schedule keeps."""
        kept = info.spec if info is not None and not take else None
        image, files = (kept.image, kept.files) if kept is not None else (None, None)
        python, notes = self.python_of(data) if image is None else ("", [])
        image = image or await self.books.environment(python, path.parent, fresh=False)
        asked = text.asked()
        if info is not None:
            await asyncio.to_thread(image_to_read, info.spec, asked, take=take)
        elif asked.image:
            await asyncio.to_thread(check_image_text, asked.image, path.parent)
        return await asyncio.to_thread(draft, path, image, asked, data, files), notes

    async def made(self, path: Path, text: ScheduleText, packs: Path) -> Draft:
        """A new schedule of a notebook, its folder, its kernel's environment and an image as they are now."""
        data = await asyncio.to_thread(schedule_freeze.read_notebook, path)
        python, _ = self.python_of(data)
        asked = text.asked()
        await asyncio.to_thread(
            draft, path, await self.books.environment(python, path.parent, fresh=False), asked, data
        )
        image, beside = await self.books.kept(python, path.parent, packs, asked.image)
        return await asyncio.to_thread(functools.partial(draft, path, image, asked, data, beside=beside))

    async def taken(self, info: ScheduleInfo, changes: dict[str, Any], packs: Path) -> tuple[Draft, PutSchedule]:
        """A schedule with its notebook, folder and environment as they are now, and what was typed."""
        path = Path(info.row.notebook)
        data = await asyncio.to_thread(schedule_freeze.read_notebook, path)
        python, _ = self.python_of(data)
        asked = dataclasses.replace(asked_of(info.spec), **changes)
        named = await asyncio.to_thread(image_to_read, info.spec, asked, take=True)
        image, beside = await self.books.kept(python, path.parent, packs, named)
        made = await asyncio.to_thread(taken_over, info, image, changes, data, beside)
        return made, PutSchedule(spec=made.spec, schedule=info.row.id, revision=info.row.revision)

    async def changed(self, info: ScheduleInfo, text: ScheduleText, packs: Path) -> tuple[Kept, PutSchedule]:
        """What was typed for a schedule that keeps its notebook; another image is read from its file."""
        asked, beside = text.asked(), Kept()
        named = await asyncio.to_thread(image_to_read, info.spec, asked, take=False)
        if named:
            assert info.spec.image is not None
            folder = Path(info.row.notebook).parent
            beside = (await self.books.kept(info.spec.image.executable, folder, packs, named))[1]
            needed = {pack.hash for pack in image_packs(beside.recipe)} if beside.recipe is not None else set()
            beside = dataclasses.replace(beside, files={h: path for h, path in beside.files.items() if h in needed})
        return beside, edited(info, asked, beside)

    async def answer_schedule(self, info: ScheduleInfo) -> None:
        """Finish with a schedule for its editor."""
        changed, gone = await self.books.changed(info.row)
        self.answer(shown(info, changed=changed, gone=gone))


class SchedulesHandler(ScheduleBase):
    """GET and POST schedules."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """All of them, and of which the notebook has changed or is gone."""
        rows = (await self.gateway.ask(ListSchedules(), ScheduleList)).rows
        found = [(row.id, *await self.books.changed(row)) for row in rows]
        changed, gone = [id for id, is_other, _ in found if is_other], [id for id, _, is_gone in found if is_gone]
        self.answer(SchedulesShown(rows=rows, changed=changed, gone=gone))

    @authenticated
    @authorized
    async def post(self) -> None:
        """Make one of a notebook as it is saved."""
        asked = self.body(SaveSchedule)
        path = await self.local_path(asked.path)
        with packs_folder() as folder:
            packs = Path(folder)
            made = await self.made(path, asked.text, packs)
            saved = await save(self.gateway, made.frozen, PutSchedule(spec=made.spec))
        await self.answer_schedule(saved)


class PreviewHandler(ScheduleBase):
    """POST schedules/preview."""

    @authenticated
    @authorized
    async def post(self) -> None:
        """Times that are being typed: in words, the next five, what they would cost, or what is wrong."""
        asked = self.body(LookAt)
        text = asked.text or ScheduleText()
        try:
            question = PreviewSchedule(when=when_of(text.asked()), schedule=asked.schedule)
        except CellburstError as why:
            self.answer(SchedulePreview(problem=why.info))
            return
        self.answer(await self.gateway.ask(question, SchedulePreview))


class LookHandler(ScheduleBase):
    """POST schedules/look."""

    @authenticated
    @authorized
    async def post(self) -> None:
        """What a run would have and stumble over; without `text` also what the form begins with."""
        asked = self.body(LookAt)
        info = await self.info(asked.schedule) if asked.schedule else None
        path = Path(info.row.notebook) if info is not None else await self.local_path(asked.path)
        if info is not None and not asked.take:
            data = await self.books.kept_notebook(info.row.id)
        else:
            data = await asyncio.to_thread(schedule_freeze.read_notebook, path)
        text = asked.text or (text_of(info.spec) if info is not None else self._start(path))
        book = notebooks.read(data, path.name)
        problem: ErrorInfo | None = None
        try:
            made, notes = await self.looked(path, data, text, info, take=asked.take)
        except CellburstError as why:
            if asked.text is not None:
                self.answer(Looked(text=text, notebook=str(path), parameters=_parameters(book), problem=why.info))
                return
            if why.info.code is not ErrorCode.TOO_LARGE:
                raise
            # The form opens all the same: that the files stay here is decided in it.
            problem = why.info
            made, notes = await self.looked(path, data, msgspec.structs.replace(text, folder=False))
        spec, image = made.spec, made.spec.image
        if asked.text is None and info is None:
            text = start_text(spec.name, spec.resources, {"secrets": text.secrets, "volumes": text.volumes})
        self.answer(
            Looked(
                text=text, notebook=str(path), python=image.executable if image else "",
                python_version=image.python_version if image else "", parameters=_parameters(book),
                findings=[FindingShown(kind=f.kind, cell=f.cell, text=f.text) for f in made.findings],
                notes=[*notes, *made.notes], files_count=len(spec.files),
                files_bytes=sum(file.size_bytes for file in spec.files), problem=problem,
            )
        )  # fmt: skip

    def _start(self, path: Path) -> ScheduleText:
        """The notebook's own volumes and secrets, weekdays at seven."""
        used = notebook_uses.NotebookUses(str(path)).now()
        return ScheduleText(cron="0 7 * * 1-5", secrets=used.get("secrets", ""), volumes=used.get("volumes", ""))


class ScheduleHandler(ScheduleBase):
    """GET, PUT, PATCH and DELETE schedules/ID."""

    @authenticated
    @authorized
    async def get(self, schedule: str) -> None:
        """A schedule for its editor."""
        await self.answer_schedule(await self.info(schedule))

    @authenticated
    @authorized
    async def put(self, schedule: str) -> None:
        """Change it: 409 when somebody else was faster."""
        asked = self.body(SaveSchedule)
        info = await self.info(schedule)
        with packs_folder() as folder:
            packs = Path(folder)
            if asked.take:
                made, message = await self.taken(info, dataclasses.asdict(asked.text.asked()), packs)
                files = made.frozen
            else:
                beside, message = await self.changed(info, asked.text, packs)
                files = schedule_freeze.Frozen(Path(info.row.notebook), b"", "", sources=dict(beside.files))
            saved = await save(self.gateway, files, msgspec.structs.replace(message, revision=asked.revision))
        await self.answer_schedule(saved)

    @authenticated
    @authorized
    async def patch(self, schedule: str) -> None:
        """Pause it or let it go on."""
        asked = PauseSchedule(schedule=schedule, paused=self.body(Paused).paused)
        self.answer(await self.gateway.ask(asked, ScheduleInfo))

    @authenticated
    @authorized
    async def delete(self, schedule: str) -> None:
        """Delete it and its runs."""
        await self.gateway.ask(DeleteSchedule(schedule=schedule), Done)
        self.answer({})


class TakeHandler(ScheduleBase):
    """POST schedules/ID/take."""

    @authenticated
    @authorized
    async def post(self, schedule: str) -> None:
        """Keep the notebook, its folder and its environment as they are now; all else stays."""
        with packs_folder() as folder:
            packs = Path(folder)
            made, message = await self.taken(await self.info(schedule), {}, packs)
            saved = await save(self.gateway, made.frozen, message)
        await self.answer_schedule(saved)


class Paused(msgspec.Struct, kw_only=True):
    """A change of a schedule."""

    paused: bool


class ScheduleRunsHandler(ScheduleBase):
    """GET and POST schedules/ID/runs."""

    @authenticated
    @authorized
    async def get(self, schedule: str) -> None:
        """Its runs, newest first."""
        self.answer(await self.gateway.ask(ListRuns(schedule=schedule), RunList))

    @authenticated
    @authorized
    async def post(self, schedule: str) -> None:
        """Run it now."""
        self.answer(await self.gateway.ask(RunSchedule(schedule=schedule), RunInfo))


def packs_folder() -> tempfile.TemporaryDirectory[str]:
    """Where packs lie until they were sent."""
    return tempfile.TemporaryDirectory(prefix="cellburst-schedule-")


async def save(gateway: Gateway, frozen: schedule_freeze.Frozen, message: PutSchedule) -> ScheduleInfo:
    """Send what the gateway lacks of what was frozen, then the schedule."""
    if frozen.hash or frozen.sources:
        blobs = await gateway.blobs()
        await asyncio.to_thread(schedule_freeze.send, frozen, blobs)
    return await gateway.ask(message, ScheduleInfo, PUT_SECONDS)


async def _now(answer: Any) -> Any:
    """What a contents manager of either kind answers."""
    return await answer if inspect.isawaitable(answer) else answer


def _parameters(book: dict[str, Any]) -> list[ParameterShown] | None:
    try:
        return parameters_of(book)
    except CellburstError:
        return None  # the look's problem says so
