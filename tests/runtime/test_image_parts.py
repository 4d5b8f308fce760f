"""Parts of image building that need no sandbox: locks, lists of files, places in a root, package indexes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cellburst.image_packs import PackedFile, PackWriter
from cellburst_protocol.errors import ErrorCode, RequestError
from cellburst_protocol.images import Cmd, Env, Workdir
from cellburst_runtime.file_lock import lock, try_lock
from cellburst_runtime.image_base import strip_overlay_marks
from cellburst_runtime.image_config import ImageConfig, after, from_oci
from cellburst_runtime.image_files import (
    Ownership,
    find_in_path,
    find_user,
    in_root,
    make_folder,
    place_pack,
    settle_links,
)
from cellburst_runtime.image_index import package_source
from cellburst_runtime.image_manifest import differences, scan

HOLD = "import sys; from pathlib import Path; from cellburst_runtime.file_lock import try_lock; l = try_lock(Path(sys.argv[1])); print(bool(l), flush=True); sys.stdin.read()"


async def test_a_lock_excludes_other_processes_until_they_end(tmp_path: Path) -> None:
    path = tmp_path / "l"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == b"True\n"
    told: list[str] = []
    try:
        assert try_lock(path) is None and try_lock(path, shared=True) is None
        waiting = asyncio.create_task(lock(path, waiting=lambda: told.append("waits")))
        while not told:
            await asyncio.sleep(0)
    finally:
        other.kill()
        other.communicate()
    with await asyncio.wait_for(waiting, 30) as taken:
        assert told == ["waits"] and try_lock(path, shared=True) is None
    taken.release()


def test_shared_locks_and_a_lock_whose_file_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "l"
    one, two = try_lock(path, shared=True), try_lock(path, shared=True)
    assert one and two and try_lock(path) is None
    one.release(), two.release()
    first = try_lock(path)
    assert first
    first.remove()
    second, third = try_lock(path), try_lock(path)
    assert second and third is None and path.exists()
    second.release()


def make_tree(root: Path) -> None:
    (root / "d/e").mkdir(parents=True)
    (root / "d/file").write_text("content")
    (root / "link").symlink_to("d/file")
    os.mkfifo(root / "pipe")


@pytest.mark.parametrize(("change", "found"), [
    (lambda r: (r / "d/file").write_text("contents"), "d/file: 8 bytes instead of 7"), (lambda r: (r / "d/file").write_text("CONTENT"), "d/file: changed since"),
    (lambda r: (r / "d/file").unlink(), "d/file: missing"), (lambda r: (r / "d/new").touch(), "d/new: not of this layer"),
    (lambda r: (r / "d/file").chmod(0o600), "d/file: another type, mode"), (lambda r: [(r / "link").unlink(), (r / "link").symlink_to("d/e")], "link: "),
    (lambda r: [(r / "d/e").rmdir(), (r / "d/e").touch()], "d/e: another type"),
])  # fmt: skip
def test_a_changed_layer_differs_from_its_list(tmp_path: Path, change: object, found: str) -> None:
    make_tree(tmp_path)
    (tmp_path / "d/file").chmod(0o644)
    os.utime(tmp_path / "d/file", (1, 1))
    manifest = scan(tmp_path)
    assert differences(tmp_path, manifest, deep=True) == []
    change(tmp_path)  # type: ignore[operator]
    [line] = differences(tmp_path, manifest, deep=False)
    assert line.startswith(found)


def test_a_changed_byte_is_found_by_reading(tmp_path: Path) -> None:
    make_tree(tmp_path)
    os.utime(tmp_path / "d/file", (1, 1))
    manifest = scan(tmp_path)
    (tmp_path / "d/file").write_text("CONTENT")
    os.utime(tmp_path / "d/file", (1, 1))
    assert differences(tmp_path, manifest, deep=False) == []
    assert differences(tmp_path, manifest, deep=True) == ["d/file: another content"]


@pytest.mark.parametrize(("path", "found"), [
    ("/a/b", "a/b"), ("a/../../../b", "b"), ("/up/x", "etc/x"), ("/abs/x", "etc/x"), ("/chain/x", "etc/x"), ("/out/passwd", "passwd"), ("/", ""),
])  # fmt: skip
def test_links_are_followed_inside_the_root(tmp_path: Path, path: str, found: str) -> None:
    for name, target in (
        ("up", "../../../etc"),
        ("abs", "/etc"),
        ("chain", "abs"),
        ("out", "../../.."),
        ("circle", "circle"),
    ):
        (tmp_path / name).symlink_to(target)
    assert in_root(tmp_path, path) == tmp_path / found
    with pytest.raises(RequestError, match="circle"):
        in_root(tmp_path, "/circle/x")
    assert in_root(tmp_path, "/abs", follow_last=False) == tmp_path / "abs"


def test_a_pack_with_names_that_lead_out_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    packs = PackWriter(tmp_path / "packs")
    for name in ("../x", "a/../../x", "/x"):
        pack = packs.write([PackedFile(name, content=b"x")])
        with pytest.raises(RequestError, match=r"relative paths without \.\."):
            place_pack(root, packs.files[pack.hash], "/in", single=False, owner=Ownership(os.getuid(), os.getgid()))
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(RequestError, match="cannot be read"):
        place_pack(root, tmp_path / "no.tar", "/in", single=False, owner=Ownership())
    (root / "file").touch()
    with pytest.raises(RequestError, match="is a file"):
        make_folder(root, "/file/below")
    assert not (tmp_path / "x").exists()


def test_links_into_the_cache_become_files_and_no_others(tmp_path: Path) -> None:
    upper, store = tmp_path / "upper", tmp_path / "store"
    (upper / "d").mkdir(parents=True)
    (store / "a").mkdir(parents=True)
    (store / "a/f").write_text("cached")
    (tmp_path / "secret").write_text("outside")
    (store / "a/trap").symlink_to(tmp_path / "secret")
    (upper / "d/f").symlink_to("/cache/a/f")
    (upper / "other").symlink_to("/etc/passwd")
    settle_links(upper, "/cache", [tmp_path / "none", store])
    assert (upper / "d/f").read_text() == "cached" and not (upper / "d/f").is_symlink()
    assert (upper / "other").is_symlink()
    for target in ("/cache/../secret", "/cache/a/trap", "/cache/gone"):
        (upper / "bad").unlink(missing_ok=True)
        (upper / "bad").symlink_to(target)
        with pytest.raises(Exception, match="uv's cache has no"):
            settle_links(upper, "/cache", [store])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may set these attributes")
def test_an_images_overlay_marks_are_removed(tmp_path: Path) -> None:
    make_tree(tmp_path)
    for path, name in ((tmp_path / "d", "trusted.overlay.opaque"), (tmp_path / "d/file", "trusted.overlay.redirect")):
        os.setxattr(path, name, b"y")
    os.setxattr(tmp_path / "d/file", "trusted.kept", b"y")
    strip_overlay_marks(tmp_path)
    assert os.listxattr(tmp_path / "d") == [] and os.listxattr(tmp_path / "d/file") == ["trusted.kept"]


def test_people_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nsome:x:7:8::/home/some:/bin/sh\nbroken:x:no:8\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nteam:x:9:\n")
    assert find_user(tmp_path, "") == (0, 0, "/root") and find_user(tmp_path, "some") == (7, 8, "/home/some")
    assert find_user(tmp_path, "some:team") == (7, 9, "/home/some") and find_user(tmp_path, "7") == (7, 8, "/home/some")
    assert find_user(tmp_path, "55:66") == (55, 66, "/")
    for text in ("broken", "some:nogroup"):
        with pytest.raises(RequestError) as caught:
            find_user(tmp_path, text)
        assert caught.value.code is ErrorCode.BAD_ARGUMENT
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").touch(0o755)
    assert find_in_path(tmp_path, ["none", "tool"], "/usr/bin:/bin") == "/bin/tool"
    assert find_in_path(tmp_path, ["none"], "/bin") == ""


def test_what_an_image_says(tmp_path: Path) -> None:
    config = from_oci(
        {"config": {"Env": ["A=1", "B=x=y"], "WorkingDir": "/w", "Cmd": ["c"], "User": 7, "Entrypoint": "wrong"}}
    )
    assert config.environment == {"A": "1", "B": "x=y"} and (
        config.workdir,
        config.cmd,
        config.user,
        config.entrypoint,
    ) == ("/w", ["c"], "7", [])
    assert from_oci({"config": None}) == ImageConfig()
    config = after(
        after(config, Workdir(path="../v/$A", scope={})), Env(variables={"A": "2", "C": "$A"}, scope={"A": "3"})
    )
    assert config.workdir == "/v/1" and config.environment["C"] == "1"
    assert after(config, Cmd(arguments=[])).cmd == []


def test_the_machines_package_indexes_reach_uv(tmp_path: Path) -> None:
    local = tmp_path / "index"
    (local / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nindex-url = https://user:word@mirror/simple\nextra-index-url = file://{local}/simple\n  https://two/\nfind-links = {tmp_path}/wheels\n"
    )
    source = package_source({"PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path)})
    assert source.environment == {
        "UV_DEFAULT_INDEX": "https://user:word@mirror/simple", "UV_INDEX": "file:///cellburst/build/index/0/simple https://two/",
        "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_FIND_LINKS": "/cellburst/build/index/1",
    }  # fmt: skip
    assert {mount.source for mount in source.mounts} == {str(local), str(tmp_path / "wheels")} and all(
        mount.read_only for mount in source.mounts
    )
    own = package_source({"UV_INDEX_URL": "https://own/", "PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path)})
    assert own.environment == {"UV_INDEX_URL": "https://own/"} and own.mounts == []
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/uv/uv.toml").write_text("")
    file = package_source({"HOME": str(tmp_path)})
    assert file.environment == {"UV_CONFIG_FILE": "/cellburst/build/uv.toml"} and len(file.mounts) == 1
