"""The steps of `cellburst connect`, what a look may find, and the life of a tunnel: without any ssh."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cellburst import machine_look as look
from cellburst import machine_scripts
from cellburst.config import Folders
from cellburst.machine_connect import failed_step
from cellburst.machine_record import (
    Machine,
    default_name,
    forget,
    keep,
    keeper_lock,
    keeper_pid,
    machines,
    start_keeper,
    without_keeper,
)
from cellburst.machine_ssh import CommandFailed, Target, absolute, failed, is_refusal
from cellburst.machine_steps import (
    GATEWAY_GONE_SECONDS,
    QUICK_DIAL_SECONDS,
    QUICK_RETRY_SECONDS,
    SLOW_DIAL_SECONDS,
    SLOW_RETRY_SECONDS,
    Act,
    Connect,
    Loss,
    Step,
    Tunnel,
    TunnelState,
    Wanted,
    retry_seconds,
)
from cellburst_protocol.errors import CellburstError, ErrorCode

LOOKED = """
Welcome to box!
os=Linux
arch=x86_64
uid=1000
user=ada
home=/home/ada
system=Debian GNU/Linux 12 (bookworm)
libc=glibc 2.36
cores=8
memory_kib=16777216
folder=/home/ada
folder_free_kib=20971520
folder_kind=ext2/ext3
spare=/var/tmp
spare_free_kib=10485760
spare_kind=tmpfs
home_writable=yes
tool=gzip
tool=tar
tool=setsid
port=0016
port=5208
end=yes
"""
WANTED = Wanted("box", "ada@box", "x86_64", "0.1.0-aaaa-py3.11", "0.9.1", "1a2b3c4d", sandbox="feed")


def looked(wanted: Wanted = WANTED, text: str = LOOKED) -> list[Step]:
    core = Connect(wanted)
    core.did(Step.DIAL)
    core.looked(look.read(text))
    return core.steps


def refused(text: str, wanted: Wanted = WANTED) -> CellburstError:
    with pytest.raises(CellburstError) as caught:
        looked(wanted, text)
    return caught.value


def test_a_machine_with_nothing_gets_all_steps_and_one_with_all_only_the_last() -> None:
    last = [Step.SETTLE, Step.TUNNEL, Step.JOIN]
    assert looked() == [Step.UV, Step.PYTHON, Step.PACKAGE, Step.SANDBOX, *last]
    whole = LOOKED + "uv=0.9.1\nsandbox=feed\nbuild=0.1.0-aaaa-py3.11 0.1.0\nworker=1a2b3c4d runs 0.1.0-aaaa-py3.11\n"
    assert looked(text=whole) == last
    older = whole.replace("aaaa", "0000")
    why = refused(older)
    assert why.code is ErrorCode.CONFLICT and "0000" in str(why) and "cellburst upgrade box" in str(why)
    upgrade = Wanted(
        *(getattr(WANTED, name) for name in ("name", "target", "arch", "build", "uv", "whose")),
        sandbox="feed",
        upgrade=True,
    )
    assert looked(upgrade, older) == [Step.PYTHON, Step.PACKAGE, Step.STOP, *last]
    others = whole.replace("worker=1a2b3c4d runs", "worker=ffffffff runs").replace(
        "build=0.1.0-aaaa", "build=0.1.0-0000"
    )
    assert looked(text=others) == [Step.PYTHON, Step.PACKAGE, *last], (
        "another gateway's worker of another version is left alone"
    )


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("os=Linux", "os=Darwin", ErrorCode.NOT_YET, "runs macOS"),
        ("arch=x86_64", "arch=aarch64", ErrorCode.NOT_YET, "is aarch64, and this machine is x86_64"),
        ("libc=glibc 2.36", "libc=glibc 2.17", ErrorCode.NOT_YET, "glibc 2.17"),
        ("libc=glibc 2.36", "libc=musl libc (x86_64)", ErrorCode.NOT_YET, "musl"),
        ("folder_free_kib=20971520", "folder_free_kib=1024", ErrorCode.DISK_FULL, "/home/ada"),
        ("home_writable=yes", "", ErrorCode.FORBIDDEN, "cannot be written"),
        ("tool=tar", "", ErrorCode.NOT_FOUND, "has no tar"),
        ("end=yes", "", ErrorCode.UNAVAILABLE, "to its end"),
    ],
)  # fmt: skip
def test_a_machine_that_cannot_be_used_is_refused_before_anything_is_sent(
    old: str, new: str, code: ErrorCode, words: str
) -> None:
    why = refused(LOOKED.replace(old, new))
    assert why.code is code and words in str(why) and why.info.next


def test_a_home_folder_on_the_network_is_left_for_the_local_disk() -> None:
    found = look.read(LOOKED.replace("folder_kind=ext2/ext3", "folder_kind=nfs4"))
    assert found.base == "/var/tmp/cellburst-machine-1000"
    assert any("/var/tmp" in line for line in look.summary(found, sudo=False))
    assert look.read(LOOKED).base == "/home/ada/.local/share/cellburst/machine"


def test_sudo_that_asks_is_refused_and_the_port_is_one_that_is_free() -> None:
    sudo = Wanted(*(getattr(WANTED, name) for name in ("name", "target", "arch", "build", "uv", "whose")), sudo=True)
    assert refused(LOOKED, sudo).code is ErrorCode.FORBIDDEN
    looked(sudo, LOOKED + "sudo=yes\n")
    assert look.free_port(look.read(LOOKED), 0) == 21001, "21000 (0x5208) is taken"


def test_a_worker_that_runs_is_not_given_other_options_or_another_name() -> None:
    runs = (
        LOOKED
        + "uv=0.9.1\nsandbox=feed\nbuild=0.1.0-aaaa-py3.11 0.1.0\nworker=1a2b3c4d runs 0.1.0-aaaa-py3.11\ncalled=1a2b3c4d box\n"
    )
    same = dataclasses.replace(WANTED, before=(False, "gvisor", "T4:1"), engine="gvisor", simulate_gpus="T4:1")
    assert looked(same, runs)[0] is Step.SETTLE
    changes: list[dict[str, Any]] = [{"engine": ""}, {"simulate_gpus": "T4:2"}, {"sudo": True}]
    for change in changes:
        why = refused(runs + "sudo=yes\n", dataclasses.replace(same, **change))
        assert why.code is ErrorCode.CONFLICT and "`cellburst disconnect box`" in why.info.next, change
        assert looked(dataclasses.replace(same, upgrade=True, **change), runs + "sudo=yes\n")
        assert looked(dataclasses.replace(same, **change), runs.replace(" runs ", " stopped ") + "sudo=yes\n")
    root = runs.replace("uid=1000", "uid=0")
    assert looked(dataclasses.replace(same, sudo=True), root)[0] is Step.SETTLE, "root needs no sudo"
    second = refused(runs, dataclasses.replace(same, name="other", before=None))
    assert (
        second.code is ErrorCode.CONFLICT and "connected as 'box'" in str(second) and "--name box" in second.info.next
    )


def test_files_that_ssh_options_name_are_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("-i", "keys/mine") == f"{tmp_path}/keys/mine" and absolute("-F", "conf") == f"{tmp_path}/conf"
    assert absolute("-o", "IdentityFile=mine") == f"IdentityFile={tmp_path}/mine"
    assert absolute("-o", "userknownhostsfile one '~/two words'") == f'userknownhostsfile={tmp_path}/one "~/two words"'
    for option, value in (
        ("-F", "none"), ("-i", "~/.ssh/mine"), ("-i", "/mine"), ("-i", "%d/mine"), ("-p", "22"), ("-J", "host"),
        ("-o", "User=ada"), ("-o", "IdentityAgent=none"), ("-o", "IdentityFile='mine"),
    ):  # fmt: skip
        assert absolute(option, value) == value


def test_nothing_is_removed_while_something_is_mounted_below(tmp_path: Path) -> None:
    mine, link = tmp_path / "for" / "my own", tmp_path / "link"
    (mine / "data").mkdir(parents=True)
    link.symlink_to(mine)
    table = tmp_path / "mounts"
    script = machine_scripts.REMOVE.replace("/proc/self/mounts", str(table))

    def remove(folder: Path) -> subprocess.CompletedProcess[str]:
        line = machine_scripts.by("", script, str(folder))
        return subprocess.run(["sh", "-s"], input=line, capture_output=True, text=True, check=False, timeout=20)

    escaped = str(mine).replace(" ", "\\040")
    for mounted in (f"{escaped}/data", escaped):
        table.write_text(f"proc /proc proc rw 0 0\noverlay {mounted} overlay rw 0 0\n")
        for folder in (mine, link):
            done = remove(folder)
            assert done.returncode == 6 and "still mounted below" in done.stderr and (mine / "data").is_dir()
    table.write_text(f"proc /proc proc rw 0 0\noverlay {escaped}2/x overlay rw 0 0\n")
    assert remove(mine).returncode == 0 and not mine.exists()
    assert remove(mine).returncode == 0, "what is gone already is no error"


def test_no_keeper_starts_while_a_machine_is_left(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data", tmp_path / "run", tmp_path / "config.toml")
    one = Machine(name="box", target="box", base="/b", whose="1", build="b", port=1)
    keep(folders, one)
    with without_keeper(folders, "box"):
        assert keeper_pid(folders, "box") == 0, "nobody is told to end this process"
        start_keeper(folders, "box")
        with keeper_lock(folders, "box") as mine:
            assert not mine
        forget(folders, one)
    assert machines(folders) == []
    start_keeper(folders, "box")
    assert (
        keeper_pid(folders, "box") == 0
        and "no connected machine" in (folders.data / "logs/machine-box.log").read_text()
    )


def test_what_ssh_says_is_told_apart() -> None:
    said = {
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.": (
            ErrorCode.FORBIDDEN,
            "ssh-keygen -R",
        ),
        "No ED25519 host key is known for box.\nHost key verification failed.": (
            ErrorCode.UNAUTHENTICATED,
            "fingerprint",
        ),
        "ssh: Could not resolve hostname box: Name or service not known": (ErrorCode.NOT_FOUND, "no host of the name"),
        "ada@box: Permission denied (publickey,password).": (ErrorCode.UNAUTHENTICATED, "ssh-copy-id"),
        "ssh: connect to host box port 22: Connection refused": (ErrorCode.UNAVAILABLE, "refuses"),
        "ssh: connect to host box port 22: Connection timed out": (ErrorCode.UNAVAILABLE, "does not answer"),
        "kex_exchange_identification: read: Connection reset by peer": (ErrorCode.UNAVAILABLE, "reset by peer"),
    }
    for words, (code, expected) in said.items():
        why = failed(Target("ada@box"), words)
        assert why.code is code and expected in str(why), words
        assert is_refusal(why) is (code in (ErrorCode.FORBIDDEN, ErrorCode.UNAUTHENTICATED))


def test_what_a_step_failed_with_is_told_apart() -> None:
    def failed(step: Step, words: str) -> CellburstError:
        return failed_step(step, "box", "/base", CommandFailed("box", 2, "", words))

    offline = "error: Failed to fetch: `https://index/simple/rich/`\n  cause: tunnel error: unsuccessful"
    why = failed(Step.PACKAGE, offline)
    assert "cannot reach its package index" in str(why) and "HTTPS_PROXY" in why.info.next
    assert failed(Step.UV, "gzip: stdout: No space left on device").code is ErrorCode.DISK_FULL
    other = failed(Step.SETTLE, "sh: 3: cannot create worker.sh: Permission denied")
    assert "'settle'" in str(other) and "Permission denied" in str(other)


@pytest.mark.parametrize("name", ["-oProxyCommand=evil", "ada@-x", "", "a b", "ada@box;ls", "a@b@c"])
def test_a_name_that_ssh_would_take_for_an_option_is_refused(name: str) -> None:
    with pytest.raises(CellburstError, match="no user@host"):
        Target(name).check()


def test_names_are_made_of_hosts() -> None:
    assert default_name("ada@gpu-1.lab.example") == "gpu-1.lab.example" and default_name("ada@[fd00::1]") == "fd00--1"


# -- the tunnel --------------------------------------------------------------------------------------------------------


def up(tunnel: Tunnel, at: float = 0.0) -> None:
    assert tunnel.tick(at, "gw:1") is Act.DIAL
    tunnel.ready(at)
    assert tunnel.state is TunnelState.UP


def test_a_lost_tunnel_is_dialled_again_sooner_than_a_network_is_slow() -> None:
    tunnel = Tunnel()
    assert tunnel.dial_seconds(0) == SLOW_DIAL_SECONDS
    up(tunnel)
    at = 100.0
    assert tunnel.lost(at, Loss.LOST, "gone") is None
    gaps = []
    while at < 160.0:  # a cut of a minute: each dial fails after its time
        assert tunnel.next_at - at <= QUICK_RETRY_SECONDS
        gaps.append(tunnel.next_at - at)
        at = tunnel.next_at
        assert tunnel.dial_seconds(at) == QUICK_DIAL_SECONDS
        assert tunnel.tick(at, "gw:1") is Act.DIAL
        at += QUICK_DIAL_SECONDS
        tunnel.lost(at, Loss.LOST, "no answer")
    assert gaps == sorted(gaps) and len(gaps) > 10
    at = tunnel.next_at
    assert tunnel.tick(at, "gw:1") is Act.DIAL
    tunnel.ready(at)
    assert (tunnel.why, tunnel.tries) == ("", 0)
    assert retry_seconds(1000, 3600.0) == SLOW_RETRY_SECONDS


def test_a_port_that_an_earlier_end_still_holds_is_cleared_once() -> None:
    tunnel = Tunnel()
    assert tunnel.tick(0, "gw:1") is Act.DIAL
    assert tunnel.lost(1, Loss.PORT_HELD, "taken") is Act.CLEAR and tunnel.state is TunnelState.CLEARING
    tunnel.clear_done(2)
    assert tunnel.tick(2, "gw:1") is Act.DIAL
    assert tunnel.lost(3, Loss.PORT_HELD, "taken") is None and tunnel.state is TunnelState.WAITING, "not in a circle"
    assert tunnel.tick(3, "gw:1") is None and tunnel.why == "taken"


def test_a_refusal_waits_for_a_person_and_a_wake_up_does_not() -> None:
    tunnel = Tunnel()
    tunnel.tick(0, "gw:1")
    tunnel.lost(1, Loss.REFUSED, "key")
    assert tunnel.tick(30, "gw:1") is None
    assert tunnel.woke(31) is None and tunnel.tick(31, "gw:1") is Act.DIAL
    tunnel.ready(32)
    assert tunnel.woke(4000) is Act.HANG_UP
    tunnel.lost(4000, Loss.LOST, "dialled anew")
    assert tunnel.next_at - 4000 <= QUICK_RETRY_SECONDS


def test_it_follows_the_gateway_and_ends_without_one() -> None:
    tunnel = Tunnel()
    assert tunnel.tick(0, "") is None and tunnel.state is TunnelState.WAITING
    up(tunnel, 1)
    assert tunnel.tick(2, "gw:2") is Act.HANG_UP, "it serves elsewhere now"
    tunnel.lost(2, Loss.LOST, "dialled anew")
    assert tunnel.tick(tunnel.next_at, "gw:2") is Act.DIAL and tunnel.url == "gw:2"
    tunnel.ready(3)
    assert tunnel.tick(4, "") is None, "a gateway that is started again is waited for"
    assert tunnel.tick(4 + GATEWAY_GONE_SECONDS, "") is Act.END and tunnel.state is TunnelState.ENDED
    assert tunnel.tick(999, "gw:2") is None and tunnel.lost(999, Loss.LOST, "") is None and tunnel.end() is None
    with pytest.raises(CellburstError, match="does not go from ended"):
        tunnel.ready(1000)
