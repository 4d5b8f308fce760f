"""Code that was edited after a template was taken of it: a new session has what is on the disk, whatever was made beforehand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cellburst_protocol import messages as m
from cellburst_worker import templates
from tests.worker.test_parking_gvisor import cell, house, until
from tests.worker.test_warm_pool_gvisor import at_once, details, held, warm  # noqa: F401 - a fixture

pytestmark = pytest.mark.gvisor

LOOK = "import mypkg.inner; print(mypkg.inner.VALUE)"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a package on the kernel's path, as an editable install puts it there."""
    folder = tmp_path / "project"
    (folder / "mypkg").mkdir(parents=True)
    (folder / "mypkg" / "__init__.py").write_text("")
    inner = folder / "mypkg" / "inner.py"
    inner.write_text("VALUE = 'old'\n")
    for place in (folder, folder / "mypkg"):
        place.chmod(0o755)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return inner


@pytest.mark.parametrize("keeps_warm", [False, True])
async def test_a_new_session_runs_an_edited_package_as_it_is_now(
    short_path: Path, source: Path, keeps_warm: bool
) -> None:
    async with house(short_path, templates=True, warm=keeps_warm) as h:

        def preloaded() -> list[str]:
            return [name for template in h.runtime.snapshots.templates() for name in template.preloaded]

        first, _ = await h.ready("e1")
        assert await cell(first, "call-1", LOOK) == "old\n"
        await until(lambda: "mypkg.inner" in preloaded(), 60)
        if keeps_warm:
            await warm(h)
        second, ready = await h.ready("e2")
        assert ready.start == "template", details(ready)
        assert await cell(second, "call-1", LOOK) == "old\n"
        if keeps_warm:
            await warm(h)
        source.write_text("VALUE = 'new'\n")
        third, ready = await h.ready("e3")
        assert await cell(third, "call-1", LOOK) == "new\n"
        assert ready.start == "boot"
        assert details(ready)[1] == ("restore", f"template unusable: {source} was changed")
        if keeps_warm:
            return
        # The next one has a template again, with the new code.
        await until(lambda: "mypkg.inner" in preloaded(), 60)
        fourth, ready = await h.ready("e4")
        assert ready.start == "template", details(ready)
        assert await cell(fourth, "call-1", LOOK) == "new\n"


async def test_a_parked_session_keeps_its_process_when_its_source_is_edited(short_path: Path, source: Path) -> None:
    async with house(short_path) as h:
        first, _ = await h.ready("e1")
        assert await cell(first, "call-1", LOOK + "; lines = iter('ab'); next(lines)") == "old\n"
        event = await h.park(first, "p1")
        assert isinstance(event, m.ContainerParked)
        source.write_text("VALUE = 'new'\n")
        second, ready = await h.ready("e2", parked="p1")
        assert ready.start == "snapshot", details(ready)
        assert await cell(second, "call-2", "print(next(lines), mypkg.inner.VALUE)") == "b old\n"


async def test_a_source_that_is_written_while_a_template_is_taken_makes_it_be_taken_again(
    short_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    freeze_fresh = templates.freeze_fresh

    async def and_written(*arguments: Any) -> Any:
        if not begun:  # its container is up by now
            source.write_text("VALUE = 'new'\n")
        begun.append(len(begun))
        return await freeze_fresh(*arguments)

    monkeypatch.setattr(templates, "freeze_fresh", and_written)
    async with house(short_path, templates=True, warm=False) as h:
        first, _ = await h.ready("e1")
        assert await cell(first, "call-1", LOOK) == "old\n"
        await until(h.runtime.snapshots.templates, 60)
        assert len(begun) >= 2  # another file of its own may have been written too
        second, ready = await h.ready("e2")
        assert ready.start == "template", details(ready)
        assert await cell(second, "call-1", LOOK) == "new\n"


async def test_one_that_was_booted_to_wait_is_not_given_with_old_code(
    short_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without root, where there are no templates."""

    async def failed(*_: object) -> str:
        return "a test"

    monkeypatch.setattr("cellburst_runtime.engines.snapshot_test", failed)
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready("e1")
        assert await cell(first, "call-1", LOOK) == "old\n"
        await warm(h)
        assert any("mypkg.inner" in names for names in h.worker._pool.preloaded().values())
        source.write_text("VALUE = 'new'\n")
        second, ready = await h.ready("e2")
        assert await cell(second, "call-1", LOOK) == "new\n"
        assert ready.start == "boot" and ("restore", f"warm container unusable: {source} was changed") in details(ready)
