"""What ended that nobody may have watched: detached cells and long builds. Told with the status, so that a window can say so.

Kept in memory only, the last ones of each workspace: what a cell showed is in its session's log. Scheduled runs have a record.
"""

from __future__ import annotations

from collections import defaultdict, deque

from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EndedThing, ImageBuilt
from cellburst_protocol.states import EndReason

from .store_rows import SessionRecord

KEPT = 20
LONG_BUILD_SECONDS = 10.0  # a shorter one is watched


class Endings:
    """The last things that ended, by workspace."""

    def __init__(self) -> None:
        self._by_workspace: defaultdict[str, deque[EndedThing]] = defaultdict(lambda: deque(maxlen=KEPT))

    def add(self, workspace: str, thing: EndedThing) -> None:
        """It has ended."""
        self._by_workspace[workspace].append(thing)

    def cell(
        self, session: SessionRecord, call: str, reason: EndReason, why: ErrorInfo | None, seconds: float, wall: float
    ) -> None:
        """A detached cell has ended."""
        problem = "" if reason is EndReason.DONE else why.message if why is not None else reason.value.replace("_", " ")
        thing = EndedThing(
            id=call, kind="cell", title=session.notebook, session=session.name, problem=problem, seconds=round(seconds, 1),
            ended_unix_seconds=wall,
        )  # fmt: skip
        self.add(session.owner.workspace, thing)

    def build(self, workspace: str, recipe: ImageRecipe, built: ImageBuilt, seconds: float, wall: float) -> None:
        """A build has ended: told unless it was too short to look away from."""
        if seconds >= LONG_BUILD_SECONDS:
            title = f"image of {len(recipe.steps)} steps"
            problem = built.error.message if built.error is not None else ""
            self.add(
                workspace,
                EndedThing(
                    id=f"build:{built.id}:{wall}", kind="build", title=title, problem=problem, seconds=round(seconds, 1),
                    ended_unix_seconds=wall,
                ),
            )  # fmt: skip

    def of(self, workspace: str) -> list[EndedThing]:
        """Those of a workspace, the oldest first."""
        return list(self._by_workspace.get(workspace, ()))
