"""A worker killed by SIGKILL while its session's volume is committed: the volume has the old files or the new, whole, never a mix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import House, Kernel
from cellburst.endpoint import Endpoint
from cellburst.volume_api import VolumeApi

from .test_faults import kill

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(180)]
FILES = 60
SIZE = 400_000  # of a file: 24 MB together, so that a commit takes long enough to be killed in


def api_of(place: House) -> VolumeApi:
    """The house's gateway, with a volume `faults`."""
    command = [sys.executable, "-m", "cellburst", "volume", "create", "faults"]
    subprocess.run(command, env={**os.environ, **place.environment}, check=True, capture_output=True, timeout=60)
    found = json.loads((Path(place.environment["CELLBURST_RUN"]) / "gateway.json").read_text())
    token = (Path(place.environment["CELLBURST_DATA"]) / "token").read_text().strip()
    return VolumeApi(lambda: Endpoint(url=found["url"], token=token))


def files_of(api: VolumeApi) -> dict[str, bytes]:
    """What the volume has: of each file the letter that it is full of."""
    found = {}
    for entry in api.files("faults").entries:
        data = b"".join(bytes(piece) for _, piece in api.receive(entry.chunks))
        assert data == content(chr(data[0]), entry.path), entry.path
        found[entry.path] = data[:1]
    return found


def content(letter: str, name: str) -> bytes:
    """A file's: each has a chunk of its own."""
    return letter.encode() * SIZE + name.encode()


def write(letter: str) -> str:
    """Code that writes all files, says so, and begins to commit them."""
    return (
        "%%modal volumes=/faults:faults\nimport os\nfrom cellburst.volume_door import commit\n"
        f"for n in range({FILES}):\n    with open(f'/faults/{{n}}', 'wb') as f: _ = f.write(b'{letter}' * {SIZE} + str(n).encode())\n"
        f"print('written'); commit('faults'); print('committed')"
    )


def test_old_or_new_and_never_a_mix(place: House, kernel: Kernel) -> None:
    api = api_of(place)
    kernel.check(write("a"))
    whole = {letter: {str(n): letter.encode() for n in range(FILES)} for letter in "ab"}
    assert files_of(api) == whole["a"]
    chunks = Path(place.environment["CELLBURST_DATA"]) / "chunks"
    before = sum(len(names) for _, _, names in os.walk(chunks))

    def at_the_first_chunk(message: dict[str, object]) -> None:
        content = message["content"]
        assert isinstance(content, dict)
        if message["msg_type"] == "stream" and "written" in str(content["text"]):
            # The commit is under way: its first new chunk is there, or it was so quick that it is over.
            for _ in range(10_000):
                if sum(len(names) for _, _, names in os.walk(chunks)) > before:
                    break
            kill(place, "cellburst_worker")

    ran = kernel.run(write("b"), at_the_first_chunk)
    assert ran.error or "committed" in ran.text
    assert files_of(api) in (whole["a"], whole["b"])
    if "committed" in ran.text:
        assert files_of(api) == whole["b"]  # what was answered stands
    # The next session has one of them too, and can publish.
    kernel.check(write("b"))
    assert files_of(api) == whole["b"]
    kernel.check("%modal stop")
    api.delete("faults", used=True)
