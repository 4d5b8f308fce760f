"""A worker that is killed while it commits: the volume has the old version or the new one, whole, and nothing in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_protocol.volumes import CHUNK_BYTES, VolumeMount
from cellburst_worker.volume_commit import VolumeState, Writer
from cellburst_worker.volume_gateway import GatewayVolumes
from tests.fakes.volume_server import Volume, VolumeServer

FILES = 20
SCRIPT = """
import os, signal, sys
from pathlib import Path
from cellburst_protocol.volumes import VolumeMount
from cellburst_worker.volume_commit import VolumeState, Writer
from cellburst_worker.volume_gateway import GatewayVolumes

url, upper, tree, version, number, when = sys.argv[1:]
left = int(number)

class Killed(GatewayVolumes):
    def _request(self, *arguments):
        global left
        left -= 1
        if not left and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super()._request(*arguments)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

mount = VolumeMount(volume="v", name="v", path="/v")
state = VolumeState(version=int(version), shown_version=int(version))
Writer(mount, Killed(url, lambda: "t"), Path(upper), Path(tree), "one", "one", state).commit(explicit=True)
"""


@pytest.fixture
def server() -> Iterator[VolumeServer]:
    made = VolumeServer("t")
    made.volumes["v"] = Volume()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_old_or_new_and_never_a_mix(server: VolumeServer, tmp_path: Path, when: str) -> None:
    upper, tree = tmp_path / "upper", tmp_path / "tree"
    upper.mkdir()
    tree.mkdir()
    old = {f"d{n % 3}/{n}": f"old {n}".encode() for n in range(FILES)} | {"big": b"o" * (CHUNK_BYTES + 1)}
    seen = set()
    for number in range(1, 20):
        server.write("v", old)
        version = server.volumes["v"].version
        new = {path: f"new {number} of {path}".encode() for path in old} | {"big": bytes([number]) * (CHUNK_BYTES + 1)}
        for path, data in new.items():
            (upper / path).parent.mkdir(exist_ok=True)
            (upper / path).write_bytes(data)
        arguments = [server.url, str(upper), str(tree), str(version), str(number), when]
        done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], timeout=60, check=False)
        found = server.read("v")
        assert found in (old, new), f"killed {when} request {number}"
        if done.returncode == 0:
            assert found == new
            break
        assert done.returncode == -signal.SIGKILL
        seen.add(found == new)
        # Whoever comes next publishes it all the same.
        state = VolumeState(version=version, shown_version=version)
        mount = VolumeMount(volume="v", name="v", path="/v")
        Writer(mount, GatewayVolumes(server.url, lambda: "t"), upper, tree, "one", "one", state).commit(explicit=True)
        assert server.read("v") == new
    else:
        raise AssertionError("it was killed each time")
    assert seen == ({False} if when == "before" else {False, True})
