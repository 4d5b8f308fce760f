"""The volumes of a worker's containers: fetched, shown, committed by and by, reloaded, put away with their sessions.

show():    list -> room -> fetch what is missing -> tree -> overlay, once per start or rung; the door opens
running:   a commit every 5 s where something changed, and after each cell; `commit` and `reload` through the door
park():    a commit, then the state is kept beside what was written: the store goes with the session
finish():  the last commit, after the container's processes are gone

Buckets and network file systems are shown beside them: see `volume_live`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import Message, Notice, StartContainer
from cellburst_protocol.volumes import VolumeFiles, VolumeMount
from cellburst_runtime.engine_base import finish
from cellburst_runtime.volume_mount import Place, VolumePlaces

from .site import Prepared
from .volume_commit import VolumeState, Writer
from .volume_desk import VolumeDesk
from .volume_door import Door
from .volume_live import LiveMounts
from .volume_state import read_state, renew, write_state

COMMIT_SECONDS = 5.0
SCAN_SHARE = 0.05  # of the time; who has a million files written is looked at less often
STATE = "state.json"
RELOADS = 3  # until what was written during a reload is in it

log = logging.getLogger(__name__)


@dataclass
class _Shown:
    """One volume of one container."""

    asked: VolumeMount
    place: Place
    writer: Writer
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    problem: str = ""  # of the last commit, told once


class ContainerVolumes:
    """The volumes of one container. `emit` sends an event of a call; `call` names the one that runs, "" for none."""

    def __init__(
        self, desk: VolumeDesk, request: StartContainer, emit: Callable[[Message, str], None], call: Callable[[], str]
    ) -> None:
        self._desk, self._request, self._emit, self._call = desk, request, emit, call
        self._places: VolumePlaces | None = None
        self._shown: dict[str, _Shown] = {}
        self._live = LiveMounts(desk, request, self.tell)
        self._door = Door(self._answer)
        self._loop: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._notices: list[str] = []
        self._put_away = False
        self.stale = ""  # why a snapshot of the session cannot stand on what is shown now

    # -- a start ---------------------------------------------------------------------------------------------------

    async def show(self, prepared: Prepared) -> None:
        """Have all volumes in a container that is prepared and not started. Raises the error tree, OSError."""
        if not self._request.volumes:
            return
        places = self._places = prepared.volume_places()
        root, runner = places.links(self._request.volumes)
        await places.begin()
        for asked in self._request.volumes:
            if asked.kind == "volume":
                await self._show(places, asked)
            else:
                await self._live.show(places, asked)
        await self._door.open(prepared.folder / "var" / "ctl")
        prepared.show_volumes(root, runner, f"{places.var}/ctl/{Door.NAME}")
        if not places.isolated:
            for asked in self._request.volumes:
                what = f"volume {asked.name}" if asked.kind == "volume" else asked.name
                self.tell(f"{what} is at {places.path_in(asked)}: this engine cannot show it at {asked.path}")
        if not places.overlay and any(v.read_only and v.kind == "volume" for v in self._request.volumes):
            self.tell("read-only volumes are copies here: what is written to them is not published, and not refused")

    async def clear(self) -> None:
        """The container that they were shown in is removed: another one comes, or none."""
        await self._door.close()
        await self._live.close(flush=False)
        for one in self._shown.values():
            self._desk.store.unpin(one.place.tree)
        self._shown, self._places = {}, None

    def begin(self) -> None:
        """The container runs: commit by and by."""
        if self._shown and self._loop is None:
            self._loop = asyncio.create_task(self._commit_often())

    def nudge(self) -> None:
        """A cell ended: commit soon."""
        self._wanted.set()

    def flush_notices(self) -> None:
        """A cell runs: it shows what happened while none did."""
        waiting, self._notices = self._notices, []
        for text in waiting:
            self.tell(text)

    def tell(self, text: str) -> None:
        """Show a line under the cell that runs or waits for the start, else under the next one."""
        call = self._call()
        if call:
            self._emit(Notice(text=text, level="warning"), call)
        else:
            self._notices.append(text)

    async def _show(self, places: VolumePlaces, asked: VolumeMount) -> None:
        state = read_state(places.store_of(asked.volume) / STATE)
        tree: Path | None = None
        files = VolumeFiles(version=0)
        if state is not None:
            path = self._desk.store.tree_path(asked.volume, state.shown_version, places.owner)
            if await asyncio.to_thread(self._desk.store.pin, path):
                tree = path
                await self._say_if_deleted(asked)
            else:
                self.stale = f"version {state.shown_version} of volume {asked.name} is not on this machine any more"
                await self._publish_left(places, asked, state)
                state = None
        if tree is None or state is None:
            files = await self._desk.newest(asked.volume)
            tree = await self._desk.tree(asked, files, places.owner, self._tell_fetch)
            state = VolumeState(version=files.version, shown_version=files.version)
        try:
            place = await places.show(asked, tree, state.serial, self._desk.store, files)
        except BaseException:
            self._desk.store.unpin(tree)
            raise
        places.switch(asked, place)
        self._shown[asked.volume] = await self._writer(asked, place, state, files)

    async def _writer(self, asked: VolumeMount, place: Place, state: VolumeState, files: VolumeFiles) -> _Shown:
        folder = place.merged if place.copies else place.upper or place.tree
        writer = Writer(
            asked, self._desk.gateway, folder, None if place.copies else place.tree, self._by, self._tag, state
        )
        if place.copies:
            await asyncio.to_thread(writer.know_all, files.entries)
        return _Shown(asked, place, writer)

    async def _say_if_deleted(self, asked: VolumeMount) -> None:
        try:
            await asyncio.to_thread(self._desk.gateway.files, asked.volume, 2**62)
        except CellburstError as why:
            if why.code is ErrorCode.NOT_FOUND:
                self.tell(f"volume {asked.name} was deleted: this session still sees its files, and cannot publish any")

    async def _publish_left(self, places: VolumePlaces, asked: VolumeMount, state: VolumeState) -> None:
        """What a parked session had written and could not publish then; the tree below it is gone."""
        own = places.store_of(asked.volume)
        upper, nothing = own / str(state.serial) / "upper", own / str(state.serial) / "empty"
        if asked.read_only or not upper.is_dir():
            return
        writer = Writer(asked, self._desk.gateway, upper, nothing, self._by, self._tag, state)
        try:
            await finish(asyncio.to_thread(writer.commit, explicit=False, patient=False))
        except (CellburstError, OSError) as why:
            self.tell(f"volume {asked.name}: what this session wrote before it was parked is lost: {why}")
        for text in writer.notices:
            self.tell(text)
        # Another serial: what lies there belongs to the old tree.
        (own / STATE).unlink(missing_ok=True)
        (own / str(state.serial)).rename(own / f"old-{state.serial}")

    def _tell_fetch(self, text: str) -> None:
        call = self._call() or self._request.prepare_call
        self._emit(Notice(text=text), call)

    @property
    def _by(self) -> str:
        notebook = self._request.notebook.rpartition("/")[2] or "a notebook"
        return f"{notebook} (session {self._tag})"

    @property
    def _tag(self) -> str:
        return self._request.session.removeprefix("s-")[:8] or "session"

    # -- commits ---------------------------------------------------------------------------------------------------

    async def _commit_often(self) -> None:
        pause = COMMIT_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
            self._wanted.clear()
            began = asyncio.get_running_loop().time()
            for one in list(self._shown.values()):
                await self._commit_quietly(one, patient=True)
            pause = max(COMMIT_SECONDS, (asyncio.get_running_loop().time() - began) / SCAN_SHARE)

    async def _commit_quietly(self, one: _Shown, *, patient: bool) -> bool:
        """Whether all is published."""
        if one.asked.read_only:
            return True
        try:
            await self._commit(one, explicit=False, patient=patient)
        except (CellburstError, OSError) as why:
            text = why.info.message if isinstance(why, CellburstError) else str(why)
            if text != one.problem:
                one.problem = text
                log.warning("a volume was not committed", extra={"volume": one.asked.name, "why": text})
                self.tell(f"volume {one.asked.name} could not be committed: {text}; it is tried again")
            return False
        one.problem = ""
        return True

    async def _commit(self, one: _Shown, *, explicit: bool, patient: bool) -> int:
        async with one.lock:
            return await self._commit_locked(one, explicit=explicit, patient=patient)

    async def _commit_locked(self, one: _Shown, *, explicit: bool, patient: bool) -> int:
        try:
            return await finish(asyncio.to_thread(one.writer.commit, explicit=explicit, patient=patient))
        finally:
            told, one.writer.notices = one.writer.notices, []
            for text in told:
                self.tell(text)

    # -- through the door ------------------------------------------------------------------------------------------

    async def _answer(self, operation: str, volume: str) -> int:
        """What code in the container asked for; the version afterwards. Raises the error tree."""
        one = next((s for s in self._shown.values() if volume in (s.asked.name, s.asked.volume)), None)
        if one is None:
            names = ", ".join(s.asked.name for s in self._shown.values())
            raise error(
                ErrorCode.NOT_FOUND, f"no volume {volume[:80]!r} is in this container", allowed=names,
                next="name it in the cell's line: volumes=/data:NAME",
            )  # fmt: skip
        try:
            if operation == "commit":
                return await self._commit(one, explicit=True, patient=False)
            return await self._reload(one)
        except OSError as why:
            raise error(ErrorCode.STORE, f"volume {one.asked.name}: {why}", next="free space on its disk") from why

    async def _reload(self, one: _Shown) -> int:
        async with one.lock:
            for _ in range(RELOADS):
                if not one.asked.read_only:
                    await self._commit_locked(one, explicit=False, patient=False)
                files = await self._desk.newest(one.asked.volume)
                state = one.writer.state
                if files.version == state.version and not state.foreign and not state.aside:
                    break
                if not await finish(self._exchange(one, files)):
                    break
            return one.writer.state.version

    async def _exchange(self, one: _Shown, files: VolumeFiles) -> bool:
        """Show another version in place of the one that is shown. Whether something was published meanwhile that is not in it."""
        places, old, asked = self._places, one.place, one.asked
        if places is None:
            raise error(ErrorCode.UNAVAILABLE, "the container is being put away")
        tree = await self._desk.tree(asked, files, places.owner, self._tell_fetch)
        if old.copies:
            await asyncio.to_thread(renew, one.writer, old.merged, files, places.owner, self._desk.store)
            self._desk.store.unpin(old.tree)
            old.tree = tree
            return False
        serial = old.serial + 1
        try:
            place = await places.show(asked, tree, serial, self._desk.store, files)
        except BaseException:
            self._desk.store.unpin(tree)
            raise
        places.switch(asked, place)
        late = one.writer.state.version
        if not asked.read_only:
            # What was written between the commit and the exchange.
            await self._commit_locked(one, explicit=False, patient=False)
        written_late = one.writer.state.version != late
        state = VolumeState(version=files.version, shown_version=files.version, serial=serial)
        fresh = await self._writer(asked, place, state, files)
        one.place, one.writer = fresh.place, fresh.writer
        await places.hide(asked.volume, old)
        self._desk.store.unpin(old.tree)
        return written_late

    # -- the end ---------------------------------------------------------------------------------------------------

    async def park(self, parked: str) -> None:
        """The session is about to be put away: publish, and keep what it must go on with. Nothing is committed until `begin`
        or `finish`."""
        await self._stop_loop()
        for one in self._shown.values():
            await self._commit_quietly(one, patient=False)
            if one.place.copies or self._places is None:
                continue
            target = self._places.store_of(one.asked.volume) / STATE
            await asyncio.to_thread(write_state, target, one.writer.state)
        trees = [one.place.tree for one in self._shown.values() if not one.place.copies]
        if trees:
            await asyncio.to_thread(self._desk.store.keep_parked, parked, trees)

    def parked(self) -> None:
        """It is put away: its store is gone from here, and holds what was not published."""
        self._put_away = True

    async def finish(self) -> None:
        """The container's processes are gone: publish what is left, and let go of the trees. What cannot be published now is
        kept on this worker and tried again."""
        await self._stop_loop()
        await self._door.close()
        for one in self._shown.values():
            if one.asked.read_only or (self._put_away and not one.place.copies):
                continue
            if not await self._commit_quietly(one, patient=False):
                with contextlib.suppress(OSError, CellburstError):
                    await finish(asyncio.to_thread(self._desk.outbox.keep, one.writer))
        await self._live.close(flush=True)
        for text in self._notices:
            self._emit(Notice(text=text, level="warning"), self._call())
        self._notices = []
        await self.clear()

    async def _stop_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
