"""The session's layer over the notebook's folder: real overlay mounts, links that try to lead out, masks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import MirrorSpec
from cellburst_runtime.layer import DirectLayer, EmptyLayer, OverlayLayer
from cellburst_runtime.layer_make import MadeLayer, make_layer, make_store
from cellburst_runtime.mounts import mounts_below, unmount_below
from cellburst_runtime.record import ContainerRecord

OWNER = (1000, 1000)


@dataclass
class Session:
    """A notebook folder with some files, and a session's layer over it; code acts as the container's uid."""

    notebook: Path
    folder: Path
    stores: Path
    made: MadeLayer | None = None

    async def begin(self, mode: str = "folder", **changes: object) -> OverlayLayer:
        self.made = await self.make(mode, **changes)
        assert isinstance(self.made.layer, OverlayLayer)
        return self.made.layer

    async def make(self, mode: str = "folder", **changes: object) -> MadeLayer:
        spec = MirrorSpec(
            executable="", python_version="", prefix="", base_prefix="", notebook_folder=str(self.notebook), notebook_mode=mode,  # type: ignore[arg-type]
        )  # fmt: skip
        arguments: dict[str, object] = {
            "engine": "gvisor", "overlay": True, "owner": OWNER, "destination": str(self.notebook), **changes,
        }  # fmt: skip
        record = ContainerRecord(id="x", engine=str(arguments["engine"]))
        overlay = bool(arguments["overlay"])
        await make_store(record, self.folder, overlay=overlay, memory_mib=256, store_folder=self.stores)
        return await make_layer(spec, self.folder, **arguments)  # type: ignore[arg-type]

    def act(self, command: str) -> subprocess.CompletedProcess[str]:
        place = self.folder / "merged"
        as_user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", command]
        # The folder above is closed to others, as it is for the user's code: the shell starts inside.
        return subprocess.run(as_user, cwd=place, capture_output=True, text=True)


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Session]:
    notebook = tmp_path / "nb"
    (notebook / "sub").mkdir(parents=True)
    shown = {"a.txt": "a", "b.txt": "b", "sub/c.txt": "c", "mod.py": "x = 1"}
    for name, text in {**shown, ".env": "KEY=1", "sub/id_rsa": "k", "t.pem": "p"}.items():
        (notebook / name).write_text(text)
    (notebook / ".ssh").mkdir()
    (notebook / ".ssh/config").write_text("s")
    (tmp_path / "c").mkdir(mode=0o700)
    yield Session(notebook, tmp_path / "c", tmp_path / "stores")
    await unmount_below(tmp_path / "c")
    assert mounts_below(tmp_path / "c") == []
    shutil.rmtree(tmp_path / "c")


def listed(layer: OverlayLayer | DirectLayer) -> list[tuple[str, bool]]:
    return [(change.path, change.deleted) for change in layer.file_list()]


@pytest.mark.gvisor
async def test_reads_see_the_host_and_writes_stay(session: Session) -> None:
    layer = await session.begin()
    assert listed(layer) == []
    done = session.act(
        "cat a.txt sub/c.txt; echo new > n.csv; echo more >> a.txt; rm b.txt; mkdir d; echo x > d/e; chmod 600 sub/c.txt"
    )
    assert (done.stdout, done.stderr) == ("ac", "")
    assert listed(layer) == [("a.txt", False), ("b.txt", True), ("d/e", False), ("n.csv", False)]
    assert (session.notebook / "a.txt").read_text() == "a"
    assert (session.notebook / "b.txt").exists() and not (session.notebook / "n.csv").exists()
    assert layer.file_get("n.csv").read_text() == "new\n"
    assert layer.file_get("a.txt").read_text() == "amore\n"
    assert layer.file_get("mod.py").read_text() == "x = 1"
    (session.notebook / "late.txt").write_text("made on the host")
    assert session.act("cat late.txt").stdout == "made on the host"


@pytest.mark.gvisor
async def test_a_list_is_no_longer_than_its_limit(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellburst_runtime.layer.MAX_LISTED", 3)
    layer = await session.begin()
    assert session.act("touch n5 n1 n4 n2 n3").stderr == ""
    assert listed(layer) == [("n1", False), ("n2", False), ("n3", False)]


@pytest.mark.gvisor
async def test_a_folder_deleted_and_made_again_lists_what_is_lost(session: Session) -> None:
    layer = await session.begin()
    assert session.act("rm -r sub; mkdir sub; echo 1 > sub/new").stderr == ""
    assert listed(layer) == [("sub/c.txt", True), ("sub/new", False)]


@pytest.mark.gvisor
async def test_masked_names_are_not_there_and_no_deletions(session: Session) -> None:
    layer = await session.begin()
    assert session.act("find . | sort").stdout.split() == [
        ".",
        "./a.txt",
        "./b.txt",
        "./mod.py",
        "./sub",
        "./sub/c.txt",
    ]
    assert session.act("cat .env .ssh/config sub/id_rsa t.pem").stdout == ""
    assert listed(layer) == []
    (session.notebook / ".netrc").write_text("made later")
    assert session.act("cat .netrc").stdout == ""
    for path in (".env", ".ssh/config", "sub/id_rsa"):
        with pytest.raises(CellburstError) as caught:
            layer.file_get(path)
        assert caught.value.code is ErrorCode.FORBIDDEN


@pytest.mark.gvisor
async def test_only_python_files(session: Session) -> None:
    layer = await session.begin("python_files")
    assert session.act("ls -A").stdout.split() == ["mod.py"]
    assert session.act("echo 1 > new; ls -A").stdout.split() == ["mod.py", "new"]
    assert listed(layer) == [("new", False)]
    assert any(".py files" in note for note in layer.notes)


@pytest.mark.gvisor
async def test_no_link_leads_out(session: Session, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    layer = await session.begin()
    session.act(f"ln -s {tmp_path}/secret l; ln -s {tmp_path} d; mkfifo f; ln -s ../../../../secret up")
    for path in ("l", "d/secret", "up", "f", "../secret", str(tmp_path / "secret"), "sub/../../secret", ""):
        with pytest.raises(CellburstError) as caught:
            layer.file_get(path)
        assert caught.value.code is ErrorCode.FORBIDDEN, path
    with pytest.raises(CellburstError):
        layer.file_put("d/put", tmp_path / "secret")
    assert not (tmp_path / "put").exists()
    with pytest.raises(CellburstError) as caught:
        layer.file_get("nothing")
    assert caught.value.code is ErrorCode.NOT_FOUND


@pytest.mark.gvisor
async def test_put_is_the_session_s_own(session: Session, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("put")
    layer = await session.begin()
    layer.file_put("new/deep/file", source)
    layer.file_put("./a.txt", source)
    assert listed(layer) == [], "what was put is not what the session wrote"
    assert session.act("cat new/deep/file a.txt && echo 1 > new/deep/file && touch new/other").stdout == "putput"
    assert (session.notebook / "a.txt").read_text() == "a"
    assert listed(layer) == [("new/deep/file", False), ("new/other", False)]
    session.act("rm a.txt")
    assert ("a.txt", True) in listed(layer)


@pytest.mark.gvisor
async def test_a_full_layer_is_enospc_and_the_host_keeps_its_space(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellburst_runtime.layer_make.STORE_MIB", 64)
    layer = await session.begin()
    done = session.act("head -c 200000000 /dev/zero > big")
    assert "No space left" in done.stderr
    with pytest.raises(CellburstError) as caught:
        layer.file_put("more", session.folder / "merged" / "big")
    assert caught.value.code is ErrorCode.DISK_FULL
    assert (session.stores / "x.img").stat().st_blocks * 512 <= 65 << 20


@pytest.mark.gvisor
async def test_memory_takes_the_place_of_a_disk_image(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellburst_runtime.layer_make.find_program", lambda name: "")
    await session.begin()
    assert "No space left" in session.act("head -c 90000000 /dev/zero > big").stderr
    assert not (session.stores / "x.img").exists()


async def test_directly_in_the_folder(session: Session, tmp_path: Path) -> None:
    made = await session.make(engine="process", overlay=False, owner=(os.geteuid(), os.getegid()))
    layer = made.layer
    assert isinstance(layer, DirectLayer) and made.mounts == ()
    assert any("directly" in note for note in layer.notes)
    (session.notebook / "new").write_text("1")
    (session.notebook / "a.txt").write_text("changed")
    (session.notebook / "b.txt").unlink()
    (session.notebook / "n.ipynb").write_text("saved by the front end")
    assert listed(layer) == [("a.txt", False), ("b.txt", True), ("new", False)]
    assert layer.file_get("new").read_text() == "1"
    layer.file_put("put/x", session.notebook / "a.txt")
    layer.file_put("put.ipynb", session.notebook / "a.txt")
    assert (session.notebook / "put/x").read_text() == "changed"
    assert listed(layer) == [("a.txt", False), ("b.txt", True), ("new", False)]
    (session.notebook / "put/x").write_text("changed there")
    assert ("put/x", False) in listed(layer)
    (session.notebook / "l").symlink_to(tmp_path)
    with pytest.raises(CellburstError):
        layer.file_get("l/c/container.json")


async def test_without_root_masked_names_are_covered(session: Session) -> None:
    made = await session.make(overlay=False, owner=(os.geteuid(), os.getegid()))
    places = {mount.destination.removeprefix(str(session.notebook)): mount for mount in made.mounts}
    assert set(places) == {"", "/.env", "/.ssh", "/sub/id_rsa", "/t.pem"}
    assert places["/.ssh"].kind == "tmpfs" and Path(places["/.env"].source).read_bytes() == b""


async def test_no_folder_and_a_missing_one(session: Session) -> None:
    made = await session.make("none", engine="process", overlay=False, owner=(os.geteuid(), os.getegid()))
    assert isinstance(made.layer, EmptyLayer) and made.layer.file_list() == []
    shutil.rmtree(session.notebook)
    with pytest.raises(CellburstError) as caught:
        await session.make(engine="process", overlay=False, owner=(os.geteuid(), os.getegid()))
    assert caught.value.code is ErrorCode.NOT_FOUND
