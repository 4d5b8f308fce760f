"""What ended and is told with the status: detached cells, long builds, the last ones of each workspace."""

from __future__ import annotations

import pytest

from cellburst_gateway.endings import KEPT, LONG_BUILD_SECONDS, Endings
from cellburst_gateway.store_rows import Owner, SessionRecord
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import ImageBuilt
from cellburst_protocol.states import EndReason, SessionState


def session(workspace: str = "default") -> SessionRecord:
    return SessionRecord(
        id="s", owner=Owner(workspace, "ann"), notebook="/n.ipynb", name="train", generation=1, kernel_id="k",
        state=SessionState.IDLE, live=True, container="", reason=None, created=0.0, last_used=0.0, ended=None, detail="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "why", "problem"),
    [
        (EndReason.DONE, None, ""),
        (EndReason.RAISED, ErrorInfo(code=ErrorCode.RAISED, message="ValueError: x"), "ValueError: x"),
        (EndReason.OUT_OF_MEMORY, None, "out of memory"),
    ],
)
def test_a_detached_cell_says_how_it_ended(reason: EndReason, why: ErrorInfo | None, problem: str) -> None:
    endings = Endings()
    endings.cell(session(), "call-1", reason, why, 12.34, 1000.0)
    (thing,) = endings.of("default")
    assert (thing.id, thing.kind, thing.title, thing.session) == ("call-1", "cell", "/n.ipynb", "train")
    assert (thing.problem, thing.seconds, thing.ended_unix_seconds) == (problem, 12.3, 1000.0)


def test_only_a_long_build_is_told() -> None:
    endings = Endings()
    failed = ImageBuilt(error=ErrorInfo(code=ErrorCode.IMAGE_BUILD, message="step 2 failed"))
    endings.build("default", ImageRecipe(steps=[]), ImageBuilt(id="i"), LONG_BUILD_SECONDS - 0.1, 1.0)
    assert endings.of("default") == []
    endings.build("default", ImageRecipe(steps=[]), ImageBuilt(id="i"), LONG_BUILD_SECONDS, 2.0)
    endings.build("default", ImageRecipe(steps=[]), failed, 90.0, 3.0)
    assert [(one.kind, one.problem) for one in endings.of("default")] == [("build", ""), ("build", "step 2 failed")]
    assert len({one.id for one in endings.of("default")}) == 2


def test_the_last_ones_of_each_workspace() -> None:
    endings = Endings()
    for number in range(KEPT + 5):
        endings.cell(session(), f"call-{number}", EndReason.DONE, None, 0.0, float(number))
    endings.cell(session("other"), "theirs", EndReason.DONE, None, 0.0, 0.0)
    assert [one.id for one in endings.of("default")] == [f"call-{number}" for number in range(5, KEPT + 5)]
    assert [one.id for one in endings.of("other")] == ["theirs"]
    assert endings.of("nobody") == []
