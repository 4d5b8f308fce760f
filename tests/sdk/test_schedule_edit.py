"""A schedule that is there, changed: what it was asked for, edits, the notebook taken over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from cellburst.schedule_edit import asked_of, edited, notebook_state, taken_over
from cellburst.scheduling import Asked, draft, spec_of
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import ScheduleInfo
from cellburst_protocol.schedules import ScheduleRow, ScheduleSpec
from tests.sdk.test_scheduling import MIRROR, save

ASKED = [
    Asked(cron="0 7 * * 1-5", timezone="Europe/Berlin", gpu="A100:2", memory="16GiB", cpu="4", network="none", timeout="2h",
          image="images.py:img", environment="live",
          budget="$3", retries=2, secrets="hf,db:KEY", volumes="/data:sets:ro", parameters={"rate": 0.1}, overlap="queue",
          missed="all", missed_window="1h", notify=["ann@example.org:failure", "jupyter"], folder=False, modal_cells="same"),
    Asked(every="90m", timezone="UTC"), Asked(at="2030-07-01T12:00", timezone="Asia/Tokyo", missed_window="0"),
]  # fmt: skip


def info_of(spec: ScheduleSpec) -> ScheduleInfo:
    row = ScheduleRow(id="sch-1", name=spec.name, notebook=spec.notebook, revision=4, state="active", when=spec.when)
    return ScheduleInfo(row=row, spec=spec)


@pytest.mark.parametrize("asked", ASKED, ids=["cron", "every", "once"])
def test_what_was_asked_for_is_said_again_as_text(asked: Asked) -> None:
    spec = spec_of(asked, Path("/w/report.ipynb"))
    assert spec_of(asked_of(spec), Path("/w/report.ipynb")) == spec


def test_an_edit_keeps_what_is_frozen_and_names_the_revision(tmp_path: Path) -> None:
    path = save(tmp_path, "x = 1")
    (tmp_path / "helper.py").write_text("y = 2")
    spec = msgspec.structs.replace(draft(path, MIRROR, Asked(every="1h")).spec)
    spec = msgspec.structs.replace(spec, when=msgspec.structs.replace(spec.when, at_unix_seconds=1_000_000))
    asked = asked_of(spec)
    message = edited(info_of(spec), dataclasses.replace(asked, retries=3, name="hourly"))
    assert (message.schedule, message.revision, message.keep_frozen) == ("sch-1", 4, True)
    assert (message.spec.retries, message.spec.name) == (3, "hourly")
    assert message.spec.notebook_hash == spec.notebook_hash and message.spec.files == spec.files
    assert message.spec.when == spec.when, "it keeps its beat"
    assert edited(info_of(spec), dataclasses.replace(asked, every="2h")).spec.when.at_unix_seconds == 0
    with pytest.raises(CellburstError, match="overlap"):
        edited(info_of(spec), dataclasses.replace(asked, overlap="both"))


def test_the_notebook_is_taken_over_as_it_is_now(tmp_path: Path) -> None:
    path = save(tmp_path, "x = 1")
    spec = draft(path, MIRROR, Asked(cron="0 7 * * *", timezone="UTC", retries=2)).spec
    assert notebook_state(spec.notebook, spec.notebook_hash) == "same"
    save(tmp_path, "x = 2")
    assert notebook_state(spec.notebook, spec.notebook_hash) == "changed"
    made = taken_over(info_of(spec), msgspec.structs.replace(MIRROR, python_version="3.12.0"))
    assert made.spec.notebook_hash != spec.notebook_hash and made.spec.retries == 2 and made.spec.when == spec.when
    assert made.spec.image is not None and made.spec.image.python_version == "3.12.0"
    assert notebook_state(made.spec.notebook, made.spec.notebook_hash) == "same"
    path.unlink()
    assert notebook_state(spec.notebook, spec.notebook_hash) == "gone"
    with pytest.raises(CellburstError, match="cannot be read"):
        taken_over(info_of(spec), MIRROR)
