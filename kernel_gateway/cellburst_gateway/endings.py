"""What ended that nobody may have watched: detached cells, long builds and scheduled runs; each is told once to each principal.

The record knows of each end to whom it was told, so that it is told once over all windows, browsers and page loads, and none is
lost when a window or the gateway is closed. A window takes ends, shows them, and says so with its next request. Until then they
are its own for CLAIM_SECONDS, so that two windows do not show the same; after that another one gets them. Claims are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cellburst_protocol.errors import ErrorCode, ErrorInfo, error
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EndedThing, Ends, ImageBuilt, TakeEnds
from cellburst_protocol.schedules import RunRow
from cellburst_protocol.states import EndReason

from .run_rules import TELLS_JUPYTER
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

    def add(self, owner: Owner, thing: EndedThing, *, at_once: bool = False) -> None:
        """It has ended. The same id again is the same end. `at_once`: it is written now, in its caller's commit."""
        last = self._of(owner.workspace)
        if all(one.id != thing.id for one in last):
            last.append(thing)
        before = thing.ended_unix_seconds - TOLD_SECONDS
        if at_once:
            self._store.add_end(owner, thing, forget_before=before)
        else:
            self._later(lambda: self._store.add_end(owner, thing, forget_before=before))

    def cell(
        self, session: SessionRecord, call: str, reason: EndReason, why: ErrorInfo | None, seconds: float, wall: float, *,
        at_once: bool = False,
    ) -> None:  # fmt: skip
        """A detached cell has ended. `at_once` as for `add`."""
        problem = "" if reason is EndReason.DONE else why.message if why is not None else reason.value.replace("_", " ")
        thing = EndedThing(
            id=call, kind="cell", title=session.notebook, session=session.name, problem=problem, seconds=round(seconds, 1),
            ended_unix_seconds=wall,
        )  # fmt: skip
        self.add(session.owner, thing, at_once=at_once)

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
        self, owner: Owner, window: str, shown: Iterable[str], *, wall: float, monotonic: float
    ) -> tuple[list[EndedThing], list[RunRecord]]:
        """Note what `window` has shown, and give it what nobody has shown and no other window has taken, the oldest first. Of
        runs those whose schedule asks for it: a run that was skipped is not told, and of several that were missed one says it
        for all, as soon as all are known."""
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
        found = self._store.untold_runs(owner, after=after, limit=MOST + len(self._claims), detail_has=TELLS_JUPYTER)
        return things, [run for run in found if self._claimed(owner, run.id, window, monotonic)]

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
        owner, asked.window, asked.shown, wall=hub.clock.wall(), monotonic=hub.clock.monotonic()
    )
    rows: list[RunRow] = [hub.schedules.row_of(run) for run in runs]
    return Ends(things=things, runs=rows)
