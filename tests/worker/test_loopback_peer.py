"""A worker's token goes to no other user of its machine, whoever listens on the port."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_worker.gateway_link import GatewayLink
from cellburst_worker.loopback_peer import check, users
from cellburst_worker.volume_gateway import GatewayVolumes

NOBODY = 65534
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
# A process of another user's that listens; at the first line of its input it accepts one connection and closes what listens.
LISTENER = f"""
import os, socket, sys
os.setgid({NOBODY}); os.setuid({NOBODY})
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.readline()
accepted, _ = server.accept()
server.close()
print("accepted", flush=True)
sys.stdin.readline()
accepted.settimeout(0)
try:
    print(len(accepted.recv(4096)), flush=True)
except BlockingIOError:
    print(0, flush=True)
"""


def row(local: str, remote: str, state: str, uid: int, inode: int = 7) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  {uid}        0 {inode} 1 0000000000000000 100\n"


@pytest.mark.skipif(sys.byteorder == "big", reason="the rows are a little-endian machine's")
def test_who_listens_and_who_accepted_is_read_from_the_kernels_table() -> None:
    far, near = ("127.0.0.1", 0x5208), ("127.0.0.1", 0xC001)
    listens = row("0100007F:5208", "00000000:0000", "0A", 1001)
    assert users(HEAD + listens, far, near) == {1001}
    assert users(HEAD + row("00000000:5208", "00000000:0000", "0A", 1002), far, near) == {1002}, "on all addresses"
    mapped, zeros = "0000000000000000FFFF00000100007F", "0" * 32
    assert users(row(f"{mapped}:5208", f"{zeros}:0000", "0A", 1003), far, near) == {1003}
    assert users(row(f"{zeros}:5208", f"{zeros}:0000", "0A", 1004), far, near) == {1004}
    six = ("::1", 0x5208)
    assert users(row("00000000000000000000000001000000:5208", f"{zeros}:0000", "0A", 5), six, ("::1", 1)) == {5}
    taken = row("0100007F:5208", "0100007F:C001", "01", 1005)
    assert users(listens + taken, far, near) == {1001, 1005}, "a socket that was handed on has its maker's row still"
    assert users(row(f"{mapped}:5208", f"{mapped}:C001", "01", 1005), far, near) == {1005}
    for other in (
        row("0100007F:5209", "00000000:0000", "0A", 9), row("0200007F:5208", "00000000:0000", "0A", 9),
        row("0100007F:5208", "0100007F:C002", "01", 9), row("0100007F:C001", "0100007F:5208", "01", 9),
        row("0100007F:5208", "0100007F:C001", "01", 0, inode=0), "", "sl nonsense 0100007F:5208 \n",
    ):  # fmt: skip
        assert users(other, far, near) == set(), other


def test_ones_own_listener_is_one() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        check(connection)
        accepted, _ = server.accept()
        with accepted:
            check(connection)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="acts as another user")
async def test_another_users_listener_gets_no_byte() -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            port = int(child.stdout.readline())
            with socket.create_connection(("127.0.0.1", port)) as connection:
                with pytest.raises(PermissionError, match=f"user {NOBODY} of this machine listens"):
                    check(connection)
                check(connection, [NOBODY])  # the token file is theirs
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "accepted\n"
                with pytest.raises(PermissionError):
                    check(connection)
        finally:
            child.kill()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="acts as another user")
async def test_link_and_volumes_say_nothing_to_another_user(caplog: pytest.LogCaptureFixture) -> None:
    def ask(port: int) -> None:
        with pytest.raises(CellburstError, match="may not have this worker's token") as caught:
            GatewayVolumes(f"http://127.0.0.1:{port}", lambda: "secret").missing(["0" * 64])
        assert caught.value.code is ErrorCode.UNAVAILABLE, "what waits is sent later"

    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            port = int(child.stdout.readline())
            link = GatewayLink(f"ws://127.0.0.1:{port}/link", lambda: "secret", None)  # type: ignore[arg-type]
            running = asyncio.create_task(link.run())
            async with asyncio.timeout(20):
                while "the gateway cannot be reached" not in caplog.text:
                    await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            (said,) = {str(getattr(one, "why", "")) for one in caplog.records if "cannot be reached" in one.message}
            assert "may not have this worker's token" in said
            child.stdin.write("\n\n")
            child.stdin.flush()
            assert [child.stdout.readline() for _ in range(2)] == ["accepted\n", "0\n"]
        finally:
            child.kill()
