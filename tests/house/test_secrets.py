"""Secrets through a whole house: a real kernel, gateway, worker and sandbox. No value is in anything that the house writes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from bench.harness import House, Kernel, Ran, house

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
FIRST, SECOND = "sentinel/one+äß-8c1f", "sentinel/two+äß-77d2"
SECOND_LINE = "a-second-line-of-the-value"
PIECE_BYTES = 4 * 1024**2


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house("A100:1", warm_pool=False) as made:
        yield made


@pytest.fixture(scope="module")
def kernel(place: House) -> Iterator[Kernel]:
    made = place.kernel()
    try:
        made.check("%load_ext cellburst_jupyter")
        made.check("%%modal\nwarm = 1")
        yield made
    finally:
        made.close()


def cellburst(place: House, *words: str, stdin: str = "") -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "cellburst", *words], env={**os.environ, **place.environment}, check=True, capture_output=True, text=True,
        timeout=60, input=stdin,
    )  # fmt: skip
    assert "sentinel" not in answer.stdout + answer.stderr
    return answer.stdout


def put(place: House, value: str, *options: str) -> None:
    cellburst(place, "secret", "create", "hub", "HUB_TOKEN=-", *options, stdin=value + "\n")


def shown(ran: Ran) -> str:
    """All that reached the notebook, as it would be saved."""
    return json.dumps([message["content"] for message in ran.messages], ensure_ascii=False)


def written(value: str) -> list[bytes]:
    raw = value.encode()
    return [
        raw,
        raw.hex().encode(),
        quote(value, safe="").encode(),
        base64.b64encode(raw)[:24],
        json.dumps(value)[1:-1].encode(),
    ]


def files_with(place: House, *values: str) -> list[str]:
    """Files of the house with a value in any form. Regular files only, and none that another file system shows below it."""
    forms = [form for value in values for form in written(value)]
    found, device = [], place.folder.stat().st_dev
    for folder, folders, names in os.walk(place.folder):
        folders[:] = [name for name in folders if _device(Path(folder, name)) == device and name != "notebook-0"]
        for name in names:
            path = Path(folder, name)
            try:
                if (
                    not path.is_symlink()
                    and path.is_file()
                    and any(form in piece for piece in pieces(path) for form in forms)
                ):
                    found.append(str(path))
            except FileNotFoundError:
                continue  # the house lives on meanwhile
    return found


def pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes, overlapping a little, without the holes: disk images have gigabytes of them."""
    with path.open("rb", buffering=0) as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return  # there is nothing but a hole up to the end
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            rest = b""
            while start < end and (piece := os.pread(file.fileno(), min(PIECE_BYTES, end - start), start)):
                yield rest + piece
                start, rest = start + len(piece), piece[-1024:]
            if start < end:
                return  # it was cut meanwhile


def _device(path: Path) -> int:
    try:
        return path.lstat().st_dev
    except FileNotFoundError:
        return -1


def processes_with(place: House, value: str) -> list[str]:
    """Processes of the house that have a value in their arguments or their first environment."""
    found = []
    for process in psutil.process_iter():
        try:
            line, environment = process.cmdline(), process.environ()
            if str(place.folder) in " ".join([*line, *environment.values()]):
                text = "\0".join([*line, *environment.values()])
                found += [str(line)] if value in text else []
        except psutil.Error:
            continue
    return found


def nowhere(place: House) -> None:
    assert files_with(place, FIRST, SECOND) == []
    for value in (FIRST, SECOND):
        assert processes_with(place, value) == []


def test_a_secret_from_the_command_to_a_parked_session_and_back(place: House, kernel: Kernel) -> None:
    put(place, f"{FIRST}\n{SECOND_LINE}")
    missing = kernel.run("%%modal secrets=hub:NOT_THERE\n1")
    assert "no key NOT_THERE" in missing.error
    assert "there is no secret 'nope'" in kernel.run("%%modal secrets=nope\n1").error

    ran = kernel.check(
        "%%modal secrets=hub\nimport os, sys, base64, traceback, time\nvalue = os.environ['HUB_TOKEN']\nprint(len(value))"
    )
    assert ran.text.splitlines()[0] == str(len(FIRST) + 1 + len(SECOND_LINE))
    assert "value stayed in the container: it has a secret's value in it" in shown(ran)

    ran = kernel.check(
        "%%modal\nfor letter in value:\n    sys.stdout.write(letter); sys.stdout.flush()\n    time.sleep(0.002)\n"
        "print()\nprint(base64.b64encode(value.encode()).decode(), value.encode().hex(), repr(value))\n"
        "print(value, file=sys.stderr)\n{'a': [value]}"
    )
    assert (
        shown(ran).count("****(hub.HUB_TOKEN)") >= 6 and "sentinel" not in shown(ran) and SECOND_LINE not in shown(ran)
    )
    ran = kernel.run("%%modal\nraise ValueError(value)")
    assert "****(hub.HUB_TOKEN)" in ran.error and "sentinel" not in shown(ran)
    logs = kernel.check("%modal logs").text
    assert "****(hub.HUB_TOKEN)" in logs and "sentinel" not in logs
    assert "sentinel" not in shown(kernel.check("%modal names"))

    # a process that is started anew has it too, and not in its first environment
    kernel.run("%%modal\nos.kill(os.getpid(), 9)")
    ran = kernel.check(
        "%%modal\nimport os\nprint(len(os.environ['HUB_TOKEN']), 'HUB_TOKEN' in open('/proc/self/environ').read())"
    )
    assert ran.text.startswith(f"{len(FIRST) + 1 + len(SECOND_LINE)} False")
    nowhere(place)

    # put away: nothing in what lies on the disk; back: the current version
    kernel.check("%%modal\nheld = os.environ['HUB_TOKEN']; count = 41")
    assert "Parked" in kernel.check("%modal park").text
    assert (place.folder / "data" / "snapshots" / "sessions").is_dir()
    assert any((place.folder / "data" / "snapshots" / "sessions").rglob("pages.img"))
    nowhere(place)
    put(place, SECOND, "--replace")
    ran = kernel.check(
        "%%modal\nprint(count, os.environ['HUB_TOKEN'] != held, len(os.environ['HUB_TOKEN']), os.environ['HUB_TOKEN'])"
    )
    assert f"41 True {len(SECOND)} ****(hub.HUB_TOKEN)" in ran.text, ran.text
    nowhere(place)

    # taken away, from a session that goes on
    assert "None 41" in kernel.check("%%modal secrets=none\nprint(os.environ.get('HUB_TOKEN'), count)").text
    rows: list[dict[str, Any]] = json.loads(cellburst(place, "secret", "releases", "--json"))
    assert [row["version"] for row in rows] == [2, 1] and {row["secret"] for row in rows} == {"hub"}
    kernel.check("%modal stop")
    nowhere(place)
