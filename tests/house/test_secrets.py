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
from tests.gateway.scheduled import notebook

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
FIRST, SECOND = "sentinel/one+äß-8c1f", "sentinel/two+äß-77d2"
SECOND_LINE = "a-second-line-of-the-value"
STORES = ("stores",)  # what a session writes lies there as it is, for as long as it runs
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


def files_with(place: House, *values: str, unseen: tuple[str, ...] = ()) -> list[str]:
    """Files of the house with a value in any form, in their names too. Regular files only, none that another file system shows below
    it, and none in a folder whose name is `unseen`."""
    forms = [form for value in values for form in written(value)]
    found, device = [], place.folder.stat().st_dev
    for folder, folders, names in os.walk(place.folder):
        folders[:] = [
            name for name in folders if _device(Path(folder, name)) == device and name not in ("notebook-0", *unseen)
        ]
        for name in names:
            path = Path(folder, name)
            try:
                in_name = any(form in os.fsencode(name) for form in forms)
                if in_name or (path.is_file() and not path.is_symlink() and _has(path, forms)):
                    found.append(str(path))
            except FileNotFoundError:
                continue  # the house lives on meanwhile
    return found


def _has(path: Path, forms: list[bytes]) -> bool:
    return any(form in piece for piece in pieces(path) for form in forms)


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


def nowhere(place: House, *values: str, unseen: tuple[str, ...] = ()) -> None:
    values = values or (FIRST, SECOND)
    assert files_with(place, *values, unseen=unseen) == []
    for value in values:
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
    # the line that the process was replaced comes with this cell, or with the one that ended it
    assert f"{len(FIRST) + 1 + len(SECOND_LINE)} False" in ran.text.splitlines()
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


def test_names_of_files_and_what_a_resumed_session_still_has(place: House) -> None:
    """A value in a file's name, and one that was replaced while the session was put away: a thread that tells it goes on at once."""
    first, second = "sentinel-of-a-name-41c7", "sentinel-of-a-name-9e02"
    cellburst(place, "secret", "create", "disk", "PART=-", stdin=first + "\n")
    kernel = place.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")
        ran = kernel.check(
            "%%modal secrets=disk\nimport os, pathlib, threading\npart = os.environ['PART']\n"
            "pathlib.Path(f'f-{part}.txt').write_text('kept'); pathlib.Path(part).mkdir()\n"
            "pathlib.Path(part, part.encode().hex()).write_text('')\nexec(f'n{part[:8]} = 1')"
        )
        shown_path = "f-****(disk.PART).txt"
        assert shown_path in shown(ran) and "****(disk.PART)/****(disk.PART)" in shown(ran)
        assert shown_path in shown(kernel.check("%modal get"))
        kernel.check(f"%modal get '{shown_path}'")  # as it is shown
        kernel.check(f"import pathlib; assert pathlib.Path('{shown_path}').read_text() == 'kept'")
        kernel.check("%modal names")
        nowhere(place, first, unseen=STORES)

        kernel.check(
            "%%modal\nstop, said = threading.Event(), threading.Event()\n"
            "def tell():\n    while not stop.wait(0.01):\n        print('still', part, flush=True); said.set()\n"
            "thread = threading.Thread(target=tell, daemon=True); thread.start(); said.wait()"
        )
        assert "Parked" in kernel.check("%modal park").text
        nowhere(place, first)
        cellburst(place, "secret", "create", "disk", "PART=-", "--replace", stdin=second + "\n")
        ran = kernel.check(
            "%%modal\nsaid.clear(); said.wait(); stop.set(); thread.join()\nprint(part, os.environ['PART'] != part)"
        )
        assert "****(disk.PART) True" in ran.text, ran.text
        assert "still ****(disk.PART)" in shown(kernel.check("%modal logs")) and "sentinel" not in shown(ran)
        nowhere(place, first, second, unseen=STORES)
    finally:
        kernel.run("%modal stop")
        kernel.close()


def test_a_run_of_a_schedule_tells_no_value_in_a_files_name(place: House, tmp_path: Path) -> None:
    value = "sentinel-of-a-run-c0de"
    cellburst(place, "secret", "create", "nightly", "PART=-", stdin=value + "\n")
    path = tmp_path / "writes.ipynb"
    path.write_bytes(notebook("import os; open('f-' + os.environ['PART'] + '.txt', 'w').write('kept')"))
    cellburst(place, "schedule", "create", str(path), "--every", "1d", "--secrets", "nightly")
    cellburst(place, "schedule", "run", "writes", "--wait")
    told = cellburst(place, "schedule", "history", "writes")
    assert "f-****(nightly.PART).txt" in told, told
    (row,) = json.loads(cellburst(place, "schedule", "history", "writes", "--json"))
    cellburst(place, "schedule", "open", row["id"], "-o", str(tmp_path / "out.ipynb"), "--files", str(tmp_path / "got"))
    assert (tmp_path / "got" / "f-****(nightly.PART).txt").read_text() == "kept"
    cellburst(place, "schedule", "delete", "writes", "--yes")
    nowhere(place, value, unseen=STORES)
