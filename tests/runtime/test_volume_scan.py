"""What was changed in a volume's overlay, found on the host: against the kernel's own overlay, whatever was done there."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_protocol.errors import CellburstError
from cellburst_runtime import volume_scan
from cellburst_runtime.volume_scan import open_found, scan_folder, scan_upper

pytestmark = pytest.mark.gvisor  # root: overlays are mounted


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A folder with `lower`, `upper`, `work` and `merged`; the overlay is mounted by the test."""
    for name in ("lower", "work", "merged"):
        (tmp_path / name).mkdir()
    # On a file system of its own: the one of the tests may be an overlay itself, which takes no upper folder.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(tmp_path / "work")], check=True)
    (tmp_path / "work" / "upper").mkdir()
    (tmp_path / "work" / "work").mkdir()
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path / "merged")], check=False, capture_output=True)
        subprocess.run(["umount", str(tmp_path / "work")], check=True)


def mount(place: Path) -> Path:
    options = f"lowerdir={place}/lower,upperdir={place}/work/upper,workdir={place}/work/work"
    options += ",redirect_dir=off,metacopy=off,index=off"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", str(place / "merged")], check=True)
    return place / "merged"


def listing(folder: Path) -> dict[str, tuple[str, str]]:
    """Entries as a volume has them: files, links, and folders with nothing in them."""
    found = {}
    for path, folders, files in os.walk(folder):
        base = Path(path).relative_to(folder)
        for name in files + folders:
            place = Path(path, name)
            if place.is_symlink():
                found[str(base / name)] = ("link", str(place.readlink()))
            elif place.is_file():
                found[str(base / name)] = ("file", place.read_text())
            elif not any(place.iterdir()):
                found[str(base / name)] = ("folder", "")
    return found


def after(before: dict[str, tuple[str, str]], place: Path) -> dict[str, tuple[str, str]]:
    """The old entries with what the scan says was changed."""
    scan = scan_upper(place / "work" / "upper", place / "lower")
    assert not scan.hidden & scan.found.keys()
    assert scan.hidden <= before.keys(), "only what there was can be deleted"
    now = {path: what for path, what in before.items() if path not in scan.hidden}
    for path, found in scan.found.items():
        text = (place / "work" / "upper" / path).read_text() if found.kind == "file" else found.target
        now[path] = (found.kind, text)
    # A folder's own entry ends when something is in it; the volume keeps it until then.
    return {p: w for p, w in now.items() if w[0] != "folder" or not any(o.startswith(p + "/") for o in now)}


def do(chance: random.Random, root: Path, step: int) -> None:
    """One thing that a program may do."""
    places = [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
    things = list(root.rglob("*"))
    folder, name = chance.choice(places), chance.choice("abcd")
    thing = chance.choice(things) if things else folder / name
    match chance.randrange(7):
        case 0:
            if not (folder / name).is_dir():
                (folder / name).write_text(f"step {step}")
        case 1:
            if not os.path.lexists(folder / name):
                (folder / name).mkdir()
        case 2:
            if not os.path.lexists(folder / name):
                (folder / name).symlink_to(f"../{step}")
        case 3:
            if thing.is_dir() and not thing.is_symlink():
                shutil.rmtree(thing)
            elif os.path.lexists(thing):
                thing.unlink()
        case 4:
            if thing.is_file() and not thing.is_symlink():
                with open(thing, "a") as file:
                    file.write("+")
        case 5:
            target = folder / name
            inside = target == thing or target.is_relative_to(thing) or thing.is_relative_to(target)
            if os.path.lexists(thing) and not os.path.lexists(target) and not inside:
                shutil.move(thing, target)
        case 6:
            if thing.is_dir() and not thing.is_symlink():
                shutil.rmtree(thing)
                thing.mkdir()  # over a deleted one: opaque


@pytest.mark.parametrize("seed", range(6))
def test_the_scan_tells_what_the_overlay_shows(overlay: Path, seed: int) -> None:
    chance = random.Random(seed)
    for step in range(25):
        do(chance, overlay / "lower", step)
    before = listing(overlay / "lower")
    merged = mount(overlay)
    for step in range(40):
        do(chance, merged, 100 + step)
        if step % 8 == 7:
            assert after(before, overlay) == listing(merged), f"after step {step}"


def test_folders_and_files_in_place_of_each_other(overlay: Path) -> None:
    lower = overlay / "lower"
    (lower / "d" / "e").mkdir(parents=True)
    (lower / "d" / "x").write_text("x")
    (lower / "f").write_text("f")
    (lower / "g").write_text("g")
    merged = mount(overlay)
    shutil.rmtree(merged / "d")
    (merged / "d").write_text("a file now")
    (merged / "f").unlink()
    (merged / "f").mkdir()
    (merged / "g").unlink()
    (merged / "g").mkdir()
    (merged / "g" / "y").write_text("y")
    scan = scan_upper(overlay / "work" / "upper", lower)
    assert {path: found.kind for path, found in scan.found.items()} == {"d": "file", "f": "folder", "g/y": "file"}
    assert scan.hidden == {"d/e", "d/x", "g"}


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "out").symlink_to(tmp_path / "secret")
    (upper / "key").symlink_to(tmp_path / "secret" / "key")
    assert {path: found.kind for path, found in scan_folder(upper).found.items()} == {"out": "link", "key": "link"}
    for path in ("out/key", "key"):
        with pytest.raises(OSError, match=r"directory|symbolic"):
            os.close(open_found(upper, path))


def test_more_files_than_a_volume_may_have_are_an_error_and_no_deletions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_scan, "MAX_FOUND", 3)
    for name in "abcd":
        (tmp_path / name).touch()
    with pytest.raises(CellburstError, match="too many files"):
        scan_folder(tmp_path)
