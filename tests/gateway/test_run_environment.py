"""The environment that was there when a notebook was scheduled, against the one that is there now."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cellburst.image_packs import PackWriter, list_tree
from cellburst_gateway.run_environment import (
    SHOWN_CHANGES,
    Surroundings,
    chosen,
    environment_changes,
    machine_id,
    packs_of,
    told,
)
from cellburst_jupyter.environment import collect_environment
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import Copy, DebianSlim, FilePack, ImageRecipe
from cellburst_protocol.messages import EngineInfo, MirrorSpec, PutSchedule
from cellburst_protocol.schedules import FrozenEnvironment, RunReason, RunState, ScheduleSpec, When
from tests.gateway.house import House
from tests.gateway.parking_house import H100
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


# -- editable sources, and what a run has ---------------------------------------------------------------------------------


def kept_sources(folder: Path, root: Path) -> tuple[FrozenEnvironment, FilePack, Path]:
    """A folder's files as a schedule keeps them, and where."""
    writer = PackWriter(folder / "packs")
    pack = writer.write([*list_tree(root, lambda path: False, "0/"), *list_tree(root, lambda path: False, "ours/")])
    recipe = ImageRecipe(steps=[DebianSlim(), Copy(pack=pack, destination="/opt/mirror")])
    return FrozenEnvironment(recipe=recipe, roots=[str(root)], sources=pack.hash), pack, writer.files[pack.hash]


def spec_with(**fields: Any) -> ScheduleSpec:
    return ScheduleSpec(name="n", notebook="/n", when=When(kind="cron", cron="0 0 1 1 *"), **fields)


def test_editable_sources_that_are_others_now_are_named(tmp_path: Path) -> None:
    root = tmp_path / "src"
    (root / "lib").mkdir(parents=True)
    file, other = root / "lib/core.py", root / "lib/other.py"
    file.write_text("x = 1")
    other.write_text("y = 1")
    frozen, _, pack = kept_sources(tmp_path, root)
    reads: list[str] = []
    now = Surroundings(lambda hash: (reads.append(hash), pack)[1])
    spec = spec_with(frozen=frozen)
    assert now.changes(spec) == [] and now.changes(spec) == [] and len(reads) == 1, "read once while nothing moves"
    (root / "lib/added.py").write_text("z = 1")
    status = file.stat()
    other_text = root / "lib/draft"
    other_text.write_text("x = 2")
    os.utime(other_text, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time: its content tells
    other_text.replace(file)
    assert now.changes(spec) == [f"{file} changed"]
    file.write_text("x = 1")
    assert now.changes(spec) == [] and now.changes(spec) == [] and len(reads) == 3
    other.unlink()
    assert now.changes(spec) == [f"{other} is gone"]
    assert now.changes(msgspec.structs.replace(spec, recipe=frozen.recipe)) == [], "an image has nothing of it"


def test_what_a_run_has_by_what_changed_and_what_was_kept() -> None:
    frozen = FrozenEnvironment(recipe=ImageRecipe(steps=[DebianSlim()]))
    gvisor, process = EngineInfo(name="gvisor", isolates=True), EngineInfo(name="process", isolates=False)
    changes = ["numpy 2.2.3 -> 2.3.0"]
    for spec, found, engines, kind, words in (
        (spec_with(frozen=frozen), [], [gvisor], "live", ""),
        (spec_with(frozen=frozen), ["cellburst 0.1 -> 0.2"], [gvisor], "live", "cellburst 0.1 -> 0.2"),
        (spec_with(frozen=frozen), changes, [gvisor], "frozen", "built from what was kept"),
        (spec_with(frozen=frozen), changes, [], "frozen", "built from what was kept"),
        (spec_with(frozen=frozen), changes, [process], "live", "cannot be built here"),
        (spec_with(frozen=frozen, environment="live"), changes, [gvisor], "live", "asks for the live one"),
        (spec_with(), changes, [gvisor], "live", "was not kept"),
        (spec_with(frozen=frozen, recipe=frozen.recipe), changes, [gvisor], "image", ""),
    ):
        got, line = chosen(spec, found, engines)
        assert got == kind and (words in line if words else line == ""), (got, line)


async def test_a_run_whose_environment_has_changed_has_it_built_as_it_was(
    house: House, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    worker = await house.worker()
    client = await Scheduling.of(house)
    root = tmp_path / "src"
    root.mkdir()
    (root / "mine.py").write_text("x = 1")
    frozen, pack, file = kept_sources(tmp_path, root)
    client.blob(file.read_bytes())
    image = mirror(*folders, numpy="2.3.0", extra="1")
    made = await client.put(notebook("wait"), image=image, frozen=frozen)
    hub = house.gateway.hub
    hub.blobs.path(pack.hash).unlink()  # evicted meanwhile
    for change, kind in ((lambda: None, "live"), (lambda: (root / "mine.py").write_text("x = 2"), "frozen")):
        change()
        run = (await client.run()).id
        await client.until(run, lambda row: row.state is RunState.RUNNING)
        [container] = worker.containers.values()
        assert container.start.recipe == (frozen.recipe if kind == "frozen" else None)
        await client.cancel(run)
        row = await client.until(run)
        assert row.environment == kind and client.executed(run)["metadata"]["cellburst"]["environment"] == kind
        assert any("mine.py changed; this run has it as it was" in note for note in row.notes) == (kind == "frozen")
        await house.until(lambda: not worker.containers)
    assert hub.blobs.path(pack.hash).read_bytes() == file.read_bytes() and packs_of(made.spec) == [pack.hash]
    assert (await client.get()).environment_changes == [f"{root / 'mine.py'} changed"]
    kept = await client.ask(
        PutSchedule(spec=spec_with(image=image), schedule=made.row.id, revision=1, keep_frozen=True)
    )
    assert kept.spec.frozen == frozen


async def test_a_run_has_the_image_of_its_schedule(house: House) -> None:
    worker = await house.worker()
    client = await Scheduling.of(house)
    recipe = ImageRecipe(steps=[DebianSlim()])
    made = await client.put(notebook("wait"), recipe=recipe, image_name="images.py:img")
    run = (await client.run()).id
    await client.until(run, lambda row: row.state is RunState.RUNNING)
    assert [container.start.recipe for container in worker.containers.values()] == [recipe]
    await client.cancel(run)
    assert (await client.until(run)).environment == "image"
    with pytest.raises(CellburstError, match="without steps"):
        await client.put(notebook("wait"), name="other", recipe=ImageRecipe(steps=[]))
    edit = PutSchedule(spec=spec_with(image=made.spec.image), schedule=made.row.id, revision=1, keep_frozen=True)
    assert (await client.ask(edit)).spec.recipe is None, "an edit may take it away"


async def test_a_schedule_runs_and_is_edited_after_its_machine_was_started_again(house: House) -> None:
    worker = await house.worker()
    client = await Scheduling.of(house)
    before = msgspec.structs.replace(mirror(), machine_id="another boot:1:2")
    with pytest.raises(CellburstError) as refused:
        await client.put(notebook("wait"), image=before)
    assert refused.value.code is ErrorCode.NOT_YET, "of another machine"
    here = msgspec.structs.replace(before, machine_id=machine_id())
    made = await client.put(notebook("wait"), image=here)
    live = house.gateway.hub.schedules._live[made.row.id]
    live.spec = msgspec.structs.replace(live.spec, image=before)  # as it was before the machine was started again
    run = (await client.run()).id
    await client.until(run, lambda row: row.state is RunState.RUNNING)
    assert [container.start.image.machine_id for container in worker.containers.values()] == [machine_id()]
    await client.cancel(run)
    assert (await client.until(run)).reason is RunReason.CANCELLED
    edit = msgspec.structs.replace(live.spec, retries=1)
    answer = await client.ask(PutSchedule(spec=edit, schedule=made.row.id, revision=1, keep_frozen=True))
    assert answer.spec.retries == 1


async def test_a_run_in_an_image_stays_where_its_folder_is(house: House) -> None:
    here = msgspec.structs.replace(mirror(), machine_id=machine_id())
    far = await house.worker(name="a-far", machine_id="another", gpus=("A100-80GB", "H100"))
    home = await house.worker(name="z-home", machine_id=machine_id(), gpus=("A100-80GB", "T4"))
    client = await Scheduling.of(house)
    await client.put(
        notebook("wait"), image=here, recipe=ImageRecipe(steps=[DebianSlim()]), files=[("helper.py", b"x = 1")]
    )
    run = (await client.run()).id
    await client.until(run, lambda row: row.state is RunState.RUNNING)
    assert (len(far.containers), len(home.containers)) == (0, 1)
    await client.cancel(run)
    await client.until(run)
    # Not elsewhere either when only another machine has what it asks for, or its own one is away.
    await client.put(notebook("pass"), name="big", image=here, recipe=ImageRecipe(steps=[DebianSlim()]), resources=H100)
    refused = await client.until((await client.run("big")).id)
    assert (refused.state, len(far.containers)) == (RunState.FAILED, 0), refused
