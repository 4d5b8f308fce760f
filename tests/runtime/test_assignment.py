"""Whether a container that was made beforehand, without root, still shows what one made now would show."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import MirrorSpec
from cellburst_runtime.assignment import check_layer
from cellburst_runtime.layer import DirectLayer
from cellburst_runtime.layer_make import MadeLayer, make_folders, make_layer

SHOWN_AT = "/home/user/notebook"
MIRROR = MirrorSpec(
    executable="/usr/bin/python3", python_version="3.11.2", prefix="/usr", base_prefix="/usr", sys_path=[]
)


@dataclass
class Case:
    """A notebook's folder, and the layer that a container without root was given over it."""

    notebook: Path
    folder: Path
    spec: MirrorSpec
    made: MadeLayer

    def check(self, **other: object) -> None:
        check_layer(self.made, self.folder, msgspec.structs.replace(self.spec, **other), SHOWN_AT)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    notebook, folder = tmp_path / "notebook", tmp_path / "c"
    (notebook / "sub").mkdir(parents=True)
    (notebook / ".ssh").mkdir()
    for name in ("a.txt", ".env", "sub/id_rsa"):
        (notebook / name).write_text("text")
    folder.mkdir()
    make_folders(folder)
    spec = msgspec.structs.replace(MIRROR, notebook_folder=str(notebook), notebook_mode="folder")
    owner = (os.geteuid(), os.getegid())
    making = make_layer(spec, folder, engine="gvisor", overlay=False, owner=owner, destination=SHOWN_AT)
    return Case(notebook, folder, spec, asyncio.run(making))


def test_what_came_while_it_waited_is_not_the_session_s_own_and_what_comes_later_is(case: Case) -> None:
    layer = case.made.layer
    assert isinstance(layer, DirectLayer)
    assert sorted(mount.destination for mount in case.made.mounts) == [
        SHOWN_AT, f"{SHOWN_AT}/.env", f"{SHOWN_AT}/.ssh", f"{SHOWN_AT}/sub/id_rsa",
    ]  # fmt: skip
    (case.notebook / "waited.txt").write_text("by the user")
    (case.notebook / ".env").write_text("KEY=other")
    case.check()
    assert layer.file_list() == []
    (case.notebook / "later.txt").write_text("by the session")
    assert [change.path for change in layer.file_list()] == ["later.txt"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "a key came": lambda folder: (folder / "sub" / "server.pem").write_text("k"),
    "a key went": lambda folder: (folder / "sub" / "id_rsa").unlink(),
    "a folder where a file was": lambda folder: ((folder / ".env").unlink(), (folder / ".env").mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_of_no_use_when_other_files_are_to_be_hidden_now(case: Case, change: str) -> None:
    CHANGES[change](case.notebook)
    with pytest.raises(CellburstError) as refused:
        case.check()
    assert refused.value.code is ErrorCode.CONFLICT and "hidden" in refused.value.info.message


def test_it_is_of_no_use_to_another_folder_or_for_copies(case: Case, tmp_path: Path) -> None:
    for other in ({"notebook_folder": str(tmp_path)}, {"notebook_mode": "python_files"}, {"notebook_mode": "none"}):
        with pytest.raises(CellburstError):
            case.check(**other)
