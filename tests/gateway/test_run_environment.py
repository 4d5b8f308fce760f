"""The environment that was there when a notebook was scheduled, against the one that is there now."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cellburst_gateway.run_environment import SHOWN_CHANGES, environment_changes, told
from cellburst_jupyter.environment import collect_environment
from cellburst_protocol.messages import MirrorSpec
from cellburst_protocol.schedules import RunState
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook


def mirror(*folders: Path, **packages: str) -> MirrorSpec:
    return MirrorSpec(
        executable=sys.executable, python_version="3.11.7", prefix="/usr", base_prefix="/usr", sys_path=[str(f) for f in folders],
        packages=packages,
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ["numpy-2.3.0.dist-info"]), (second, ["numpy-1.0.dist-info", "extra-1.dist-info"])):
        for name in names:
            (folder / name).mkdir(parents=True)
    return first, second


def test_what_differs_is_named_with_both_versions(folders: tuple[Path, Path]) -> None:
    changes = environment_changes(mirror(*folders, numpy="2.2.3", gone="0.1"))
    assert changes == ["extra 1 installed", "gone 0.1 removed", "numpy 2.2.3 -> 2.3.0"]
    assert environment_changes(mirror(*folders, numpy="2.3.0", extra="1")) == []
    assert environment_changes(mirror(*folders)) == [] and environment_changes(None) == []


def test_an_environment_that_is_gone_says_so(tmp_path: Path) -> None:
    image = MirrorSpec(
        executable=str(tmp_path / "bin/python"), python_version="3.11.7", prefix="/usr", base_prefix="/usr", packages={"a": "1"}
    )  # fmt: skip
    assert "is not there any more" in environment_changes(image)[0]


def test_this_environment_is_as_its_kernel_describes_it() -> None:
    assert environment_changes(collect_environment(notebook_folder="")) == []


def test_a_line_of_many_changes_has_an_end() -> None:
    line = told([f"p{n} 1 -> 2" for n in range(SHOWN_CHANGES + 3)])
    assert line.endswith("and 3 more") and "p0 1 -> 2" in line and told([]) == ""


async def test_a_run_s_record_and_notebook_say_what_has_changed(house: House, folders: tuple[Path, Path]) -> None:
    await house.worker()
    client = await Scheduling.of(house)
    made = await client.put(notebook("print one"), image=mirror(*folders, numpy="2.2.3", extra="1"))
    assert (await client.get()).environment_changes == ["numpy 2.2.3 -> 2.3.0"] and made.row.last is None
    row: Any = await client.until((await client.run()).id)
    assert row.state is RunState.SUCCEEDED and any("numpy 2.2.3 -> 2.3.0" in note for note in row.notes), row
    (folders[0] / "numpy-2.3.0.dist-info").rename(folders[0] / "numpy-2.2.3.dist-info")
    row = await client.until((await client.run()).id)
    assert not any("environment" in note for note in row.notes) and (await client.get()).environment_changes == []
