"""What ended that nobody may have watched: detached cells, long builds and scheduled runs; each is told once to each principal.

The record knows of each end to whom it was told, so that it is told once over all windows, browsers and page loads, and none is
lost when a window or the gateway is closed. A window takes ends, shows them, and says so with its next request. Until then they
are its own for CLAIM_SECONDS, so that two windows do not show the same; after that another one gets them. Claims are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from cellburst_protocol.errors import ErrorCode, ErrorInfo, error
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EndedThing, Ends, ImageBuilt, TakeEnds
from cellburst_protocol.schedules import RunRow
from cellburst_protocol.states import EndReason

from .run_rules import detail_of
from .store import Store
from .store_rows import Owner, SessionRecord
from .store_schedules import RunRecord

if TYPE_CHECKING:
    from .hub import Hub

KEPT = 20  # with the status
LONG_BUILD_SECONDS = 10.0  # a shorter one is watched
TOLD_SECONDS = 86_400.0  # what ended longer ago is in the lists, and is not told any more
CLAIM_SECONDS = 30.0  # from the answer to the window's word that it was shown: a request's time, and a slow page
MOST = 50  # of each kind in one answer; the window asks again at once
MOST_TOLD = 500  # in one request
ID_CHARACTERS = 200


class Endings:
    """Ends, and who was told. `later` puts a write of the record off."""

    def __init__(self, store: Store, later: Callable[[Callable[[], object]], None]) -> None:
        self._store, self._later = store, later
        self._last: dict[str, deque[EndedThing]] = {}
        self._claims: dict[tuple[Owner, str], tuple[str, float]] = {}

    def add(self, owner: Owner, thing: EndedThing) -> None:
        """It has ended. The same id again is the same end."""
        last = self._of(owner.workspace)
        if all(one.id != thing.id for one in last):
            last.append(thing)
        before = thing.ended_unix_seconds - TOLD_SECONDS
        self._later(lambda: self._store.add_end(owner, thing, forget_before=before))

    def cell(
        self, session: SessionRecord, call: str, reason: EndReason, why: ErrorInfo | None, seconds: float, wall: float
    ) -> None:
        """A detached cell has ended."""
        problem = "" if reason is EndReason.DONE else why.message if why is not None else reason.value.replace("_", " ")
        thing = EndedThing(
            id=call, kind="cell", title=session.notebook, session=session.name, problem=problem, seconds=round(seconds, 1),
            ended_unix_seconds=wall,
        )  # fmt: skip
        self.add(session.owner, thing)

    def build(self, owner: Owner, recipe: ImageRecipe, built: ImageBuilt, seconds: float, wall: float) -> None:
        """A build has ended: told unless it was too short to look away from."""
        if seconds >= LONG_BUILD_SECONDS:
            title = f"image of {len(recipe.steps)} steps"
            problem = built.error.message if built.error is not None else ""
            self.add(
                owner,
                EndedThing(
                    id=f"build:{built.id}:{wall}", kind="build", title=title, problem=problem, seconds=round(seconds, 1),
                    ended_unix_seconds=wall,
                ),
            )  # fmt: skip

    def of(self, workspace: str) -> list[EndedThing]:
        """Those of a workspace, the oldest first."""
        return list(self._of(workspace))

    def take(
        self, owner: Owner, window: str, shown: Iterable[str], *, wall: float, monotonic: float,
        wanted: Callable[[RunRecord], bool], waits: Collection[str] = (),
    ) -> tuple[list[EndedThing], list[RunRecord]]:  # fmt: skip
        """Note what `window` has shown, and give it what nobody has shown and no other window has taken, the oldest first;
        `wanted` says of a run whether it is told, `waits` are runs of which that is not known yet."""
        for what in (shown := list(shown)):
            self._claims.pop((owner, what), None)
        # An end is told for a day: who was told of it must be known for longer, also when the clock is set back a little.
        if shown:
            self._store.note_told(owner, shown, now=wall, forget_before=wall - 2 * TOLD_SECONDS)
        self._claims = {key: claim for key, claim in self._claims.items() if claim[1] > monotonic}
        after = wall - TOLD_SECONDS
        things = [
            one for one in self._store.untold_ends(owner, after=after, limit=MOST + len(self._claims))
            if self._claimed(owner, one.id, window, monotonic)
        ]  # fmt: skip
        while True:
            runs = self._store.untold_runs(owner, after=after, limit=MOST + len(self._claims) + len(waits))
            runs = [run for run in runs if run.id not in waits]
            silent = [run.id for run in runs if not wanted(run)]
            if not silent:
                return things, [run for run in runs if self._claimed(owner, run.id, window, monotonic)]
            # Those that nobody wants to hear of are looked at once.
            self._store.note_told(owner, silent, now=wall, forget_before=wall - 2 * TOLD_SECONDS)

    def _claimed(self, owner: Owner, what: str, window: str, monotonic: float) -> bool:
        """Whether this window has it now."""
        holder, _ = self._claims.setdefault((owner, what), (window, monotonic + CLAIM_SECONDS))
        return holder == window

    def _of(self, workspace: str) -> deque[EndedThing]:
        if workspace not in self._last:
            self._last[workspace] = deque(self._store.last_ends(workspace, limit=KEPT), maxlen=KEPT)
        return self._last[workspace]


def take(hub: Hub, owner: Owner, asked: TakeEnds) -> Ends:
    """What a window is to tell. Raises RequestError (BAD_ARGUMENT)."""
    ids = [asked.window, *asked.shown]
    if not asked.window or len(ids) > MOST_TOLD or any(len(one) > ID_CHARACTERS for one in ids):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"a window {asked.window[:40]!r} that has shown {len(asked.shown)} ends",
            allowed=f"a window's name and at most {MOST_TOLD - 1} ids, each of at most {ID_CHARACTERS} characters",
        )  # fmt: skip
    hub.write_now()
    things, runs = hub.endings.take(
        owner, asked.window, asked.shown, wall=hub.clock.wall(), monotonic=hub.clock.monotonic(), wanted=_wanted,
        waits=hub.schedules.still_missed(),
    )  # fmt: skip
    rows: list[RunRow] = [hub.schedules.row_of(run) for run in runs]
    return Ends(things=things, runs=rows)


def _wanted(run: RunRecord) -> bool:
    """Whether its schedule asks for it. One that was skipped is not told: the next one was asked for; of several that were missed
    one says it for all."""
    return detail_of(run).tell_jupyter
