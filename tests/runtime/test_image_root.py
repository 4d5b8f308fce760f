"""The root of a container over an image's layers: what is looked up in layers, and what folders keep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellburst_protocol.errors import RequestError
from cellburst_runtime.engine import Mount
from cellburst_runtime.image_root import (
    clear_image_root,
    find_in_layers,
    mount_image_root,
    names_in_layers,
    read_in_layers,
)
from cellburst_runtime.mounts import mounts_below, unmount_below
from cellburst_runtime.oci import write_bundle
from tests.fakes.containers import make_spec

pytestmark = pytest.mark.gvisor  # root


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Top first."""
    made = [tmp_path / "layers" / name for name in ("top", "middle", "base")]
    for layer in made:
        layer.mkdir(parents=True)
    return made


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o600 | 0o020000, os.makedev(0, 0))


def test_files_are_found_from_the_top_and_links_lead_nowhere(layers: list[Path], tmp_path: Path) -> None:
    top, middle, base = layers
    (base / "etc").mkdir()
    for name in ("a", "b", "c"):
        (base / "etc" / name).write_text(f"base {name}")
    (middle / "etc").mkdir()
    (middle / "etc/a").write_text("middle a")
    whiteout(middle / "etc/b")
    (tmp_path / "secret").write_text("of the host")
    (top / "etc").symlink_to(tmp_path)  # as a hostile step would
    below = [middle, base]
    assert read_in_layers(below, "/etc/a") == b"middle a" and read_in_layers(below, "/etc/c") == b"base c"
    assert read_in_layers(below, "/etc/b") is None and find_in_layers(below, "etc/none") is None
    assert find_in_layers(below, "/etc/b") is None
    assert names_in_layers(below, "/etc") == {"a", "c"}
    assert read_in_layers(layers, "/etc/secret") is None and read_in_layers(layers, "/etc/a") is None
    assert "secret" not in names_in_layers(layers, "/etc")
    (top / "link").symlink_to(tmp_path / "secret")
    assert read_in_layers(layers, "/link") is None


async def test_folders_keep_what_the_image_gave_them(layers: list[Path], tmp_path: Path) -> None:
    _, middle, base = layers
    for name, mode, owner in (("srv", 0o750, 5), ("opt", 0o711, 6), ("root", 0o700, 0), ("home", 0o755, 0)):
        (base / name).mkdir()
        (base / name).chmod(mode)
        os.chown(base / name, owner, owner)
    (middle / "srv/app").mkdir(parents=True)
    os.chown(middle / "srv", 8, 8)
    (middle / "srv").chmod(0o705)
    (base / "usr/lib").mkdir(parents=True)
    (base / "lib").symlink_to("usr/lib")
    (base / "etc").symlink_to(tmp_path)
    source = tmp_path / "shown"
    source.mkdir()
    spec = make_spec(
        tmp_path / "c", "", layers=tuple(layers), own_folders=("/srv/app", "/opt/new", "/lib/own", "/"),
        mounts=(Mount("/srv/data", str(source)), Mount("/opt/x/y", str(source))),
    )  # fmt: skip
    bundle = spec.folder / "engine"
    for _ in range(2):  # the second time as after a restore that failed
        await clear_image_root(bundle)
        write_bundle(spec, bundle, {})
        await mount_image_root(spec, bundle)
    try:
        root = bundle / "rootfs"
        assert mounts_below(bundle) == [root]

        def look(path: str) -> tuple[int, int]:
            status = (root / path).stat()
            return status.st_uid, status.st_mode & 0o7777

        assert look("srv") == (8, 0o705) and look("opt") == (6, 0o711) and look("root") == (0, 0o755)
        assert look("srv/app") == look("opt/new") == look("usr/lib/own") == (1000, 0o755)
        assert look("") == (0, 0o755) and (root / "lib").is_symlink() and (root / "srv/data").is_dir()
        assert (root / "etc/passwd").read_bytes().startswith(b"user:") and not (tmp_path / "passwd").exists()
        (root / "srv/app/written").write_text("x")
        assert (spec.folder / "layer/root/srv/app/written").read_text() == "x" and not (
            middle / "srv/app/written"
        ).exists()
    finally:
        assert await unmount_below(spec.folder) == []
    assert mounts_below(tmp_path) == []


async def test_a_mount_that_would_hide_the_images_programs_is_refused(layers: list[Path], tmp_path: Path) -> None:
    (layers[2] / "usr/lib").mkdir(parents=True)
    (layers[2] / "lib").symlink_to("usr/lib")
    spec = make_spec(tmp_path / "c", "", layers=tuple(layers), mounts=(Mount("/lib/data", str(tmp_path)),))
    write_bundle(spec, spec.folder / "engine", {})
    with pytest.raises(RequestError, match="/lib is a link in this image"):
        await mount_image_root(spec, spec.folder / "engine")
    assert mounts_below(tmp_path) == []
