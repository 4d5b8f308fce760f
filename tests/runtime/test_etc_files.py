"""The made-up files of a container's `/etc`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_runtime.etc_files import etc_files, loader_folders, passwd, resolv_conf, zone_file
from cellburst_runtime.network_rules import NAMESERVER


def made(**other: str) -> dict[str, bytes]:
    return etc_files(user="ada", uid=1234, gid=1234, home="/home/ada", hostname="box", **other)


def test_they_say_who_the_user_is_and_nothing_of_the_host() -> None:
    files = made()
    assert b"ada:x:1234:1234:ada:/home/ada:/bin/bash\n" in files["/etc/passwd"]
    assert b"ada:x:1234:\n" in files["/etc/group"]
    assert len(files["/etc/passwd"].splitlines()) == 4  # root, daemon, nobody, ada: none of the host's people
    assert b"127.0.0.1\tlocalhost\n" in files["/etc/hosts"] and b"box" in files["/etc/hosts"]
    assert b"hosts: files dns\n" in files["/etc/nsswitch.conf"]
    assert files["/etc/hostname"] == b"box\n"
    assert files["/etc/ld.so.cache"] == Path("/etc/ld.so.cache").read_bytes()


def test_the_name_server_is_ours_or_the_one_given() -> None:
    assert made()["/etc/resolv.conf"].startswith(f"nameserver {NAMESERVER}\n".encode())
    assert resolv_conf("192.0.2.1").startswith(b"nameserver 192.0.2.1\n")


def test_each_container_has_a_machine_id_of_its_own() -> None:
    one, other = made()["/etc/machine-id"], made()["/etc/machine-id"]
    assert one != other and len(one) == 33 and int(one, 16)
    host = Path("/etc/machine-id")
    assert not host.exists() or host.read_bytes() not in (one, other)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", ":Asia/Tokyo"])
def test_localtime_follows_tz(zone: str) -> None:
    files = made(zone=zone)
    assert files["/etc/localtime"] == Path("/usr/share/zoneinfo/Asia/Tokyo").read_bytes()
    assert files["/etc/timezone"] == b"Asia/Tokyo\n"


@pytest.mark.parametrize("zone", ["../../../etc/shadow", "No/Such", "a/../../b"])
def test_tz_cannot_name_another_file(zone: str) -> None:
    assert zone_file(zone) is None or str(zone_file(zone)).startswith("/usr/share/zoneinfo")
    if ".." in zone:
        assert made(zone=zone).get("/etc/localtime", b"TZif")[:4] == b"TZif"


def test_a_name_cannot_add_a_line_or_a_field() -> None:
    text = passwd("eve\nroot2:x:0:0", 1000, 1000, "/home/eve:/bin/x").decode()
    assert len(text.splitlines()) == 4 and all(line.count(":") == 6 for line in text.splitlines())


def test_the_linkers_folders_follow_includes(tmp_path: Path) -> None:
    (tmp_path / "lib-a").mkdir()
    (tmp_path / "lib-b").mkdir()
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "b.conf").write_text(f"# no\n{tmp_path}/lib-b\n{tmp_path}/missing\n")
    conf = tmp_path / "ld.so.conf"
    conf.write_text(f"include {tmp_path}/conf.d/*.conf\n{tmp_path}/lib-a  # yes\ninclude {conf}\n")
    assert loader_folders(str(conf)) == [f"{tmp_path}/lib-b", f"{tmp_path}/lib-a"]
