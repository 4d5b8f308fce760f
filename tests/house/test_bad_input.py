"""Bad input, and what it gets: the value given, what is allowed, what to do next; within 5 s, and the notebook goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.harness import House, Kernel, Ran, peak_rss_bytes, reset_peak

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(180)]
ANSWER_SECONDS = 5.0
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def refused(kernel: Kernel, cell: str, *words: str) -> Ran:
    """The cell fails within 5 s and says all of `words`; afterwards the kernel and its session still work."""
    ran = kernel.run(cell)
    shown = ANSI.sub(
        "", ran.text + ran.error + "\n".join("\n".join(m["content"].get("traceback", [])) for m in ran.messages)
    )
    assert ran.error, f"{cell!r} was not refused: {ran.text[-300:]}"
    assert ran.seconds < ANSWER_SECONDS
    for word in words:
        assert word in shown, f"{word!r} is not in: {shown[-1500:]}"
    kernel.check("%%modal\nassert warm == 1")
    return ran


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gpu=Z9", ["Z9", "A100", "H100"]),
        ("gpu=A1OO", ["did you mean", "A100"]),
        ("gpu=H100 session=other", ["H100", "A100", "simulate"]),
        ("gpu=A100:3 session=other", ["A100:3", "2"]),
        ("memory=9999GiB session=other", ["9999", "GiB"]),
        ("memory=lots", ["memory=", "16GiB"]),
        ("cpu=1e309", ["cpu="]),
        ("timeout=25h", ["timeout=", "24h"]),
        ("timeout=0", ["timeout="]),
        ("budget=free", ["budget=", "$3"]),
        ("gpu=", ["gpu="]),
        ("=5", ["=5"]),
        ("gpu=A100 gpu=T4", ["gpu", "twice"]),
        ("gpoo=A100", ["gpoo", "gpu"]),
        ("image=mine", ["image"]),
        ("volumes=/data:x", ["no volume", "x", "cellburst volume create"]),
        ("secrets=hf", ["no secret", "hf", "cellburst secret create"]),
        ("network=everything session=other", ["network", "outbound", "none"]),
        ("in=no_such_name", ["no_such_name"]),
        ("'unclosed", ["unclosed"]),
    ],
)
def test_a_bad_line_is_refused(line: str, words: list[str], shared: Kernel) -> None:
    refused(shared, f"%%modal {line}\nx = 1", *words)


def test_a_syntax_error_has_the_right_line(shared: Kernel) -> None:
    ran = refused(shared, "%%modal\na = 1\nb = = 2", "line 3")
    assert ran.error.startswith("SyntaxError")


def test_an_unpicklable_name_is_named_by_its_path(shared: Kernel) -> None:
    shared.check(
        "import threading\nclass Loader:\n    def __init__(self):\n        self._lock = threading.Lock()\n"
        "class Model:\n    def __init__(self):\n        self.loader = Loader()\nmodel = Model()"
    )
    refused(shared, "%%modal\nmodel.loader", "model.loader._lock", "lock")


def test_a_name_over_2_gb_is_told_before_it_is_sent(shared: Kernel) -> None:
    shared.check("import numpy as np\nhuge = np.zeros(2_200_000_000, dtype='u1')")
    refused(shared, "%%modal\nhuge.size", "huge", "2.")
    shared.check("del huge")


def test_a_second_cell_while_one_runs(kernel: Kernel) -> None:
    kernel.check("%%modal\nwarm = 1")
    kernel.check("%%modal detach\nimport time\nfor _ in range(100):\n    time.sleep(0.02)")
    ran = kernel.run("%%modal\nx = 1")
    assert ran.seconds < ANSWER_SECONDS and "run" in ran.error and "%modal" in ran.error, ran.error
    kernel.run("%modal attach")
    kernel.check("%%modal\nassert warm == 1")


def test_an_interpreter_that_ends_itself(kernel: Kernel) -> None:
    kernel.check("%%modal\nkept = 1")
    ran = kernel.run("%%modal\nimport os\nprint('before', flush=True)\nos._exit(3)")
    assert "before" in ran.text and "3" in ran.error, (ran.text, ran.error)
    ran = kernel.check("%%modal\nprint('kept' in globals())")
    assert "False" in ran.text


def test_a_segmentation_fault(kernel: Kernel) -> None:
    ran = kernel.run("%%modal\nimport ctypes\nprint('before', flush=True)\nctypes.string_at(0)")
    assert "before" in ran.text and "SIGSEGV" in ran.error, ran.error
    assert kernel.check("%%modal\nprint('alive')").text.endswith("alive\n")


def test_a_fork_bomb_meets_a_limit(kernel: Kernel) -> None:
    code = (
        "import os, signal, time\nkids = []\ntry:\n    while True:\n        pid = os.fork()\n        if pid == 0:\n            signal.pause()\n"
        "        kids.append(pid)\nexcept OSError as e:\n    print('refused', e.errno, len(kids) > 10)\nfor k in kids:\n    os.kill(k, 9)"
    )
    ran = kernel.check("%%modal\n" + code)
    assert "refused 11 True" in ran.text
    assert kernel.check("%%modal\nprint('alive')").text.endswith("alive\n")


def test_filling_memory_ends_with_the_reason(kernel: Kernel) -> None:
    ran = kernel.run("%%modal memory=1GiB\nhoard = []\nwhile True:\n    hoard.append(bytearray(50_000_000))")
    assert "memory" in ran.error.lower(), ran.error
    assert kernel.check("%%modal\nprint('alive')").text.endswith("alive\n")


def test_filling_the_disk_is_an_error_inside(kernel: Kernel) -> None:
    """The folder's layer, which is larger, is filled at a small size in tests/runtime/test_layer.py."""
    code = (
        "import errno, os\ntry:\n    with open('/tmp/fill', 'wb') as f:\n        while True:\n            f.write(bytes(16_000_000))\n"
        "except OSError as e:\n    print(errno.errorcode[e.errno])\nos.unlink('/tmp/fill')"
    )
    ran = kernel.check("%%modal memory=4GiB\n" + code)
    assert "ENOSPC" in ran.text, ran.text
    assert kernel.check("%%modal\nprint('alive')").text.endswith("alive\n")


def test_deleting_everything_harms_only_the_session(place: House, kernel: Kernel) -> None:
    folder = Path(kernel.check("import os; print(os.getcwd())").text.strip())
    (folder / "precious.txt").write_text("still here")
    code = (
        "import subprocess\nfor place in ('.', '/usr/bin', '/'):\n    try:\n"
        "        subprocess.run(['rm', '-rf', '--no-preserve-root', place], capture_output=True, timeout=10)\n"
        "    except (OSError, subprocess.TimeoutExpired):\n        pass  # it goes on through a read-only system for minutes"
    )
    kernel.run("%%modal\n" + code)
    assert (folder / "precious.txt").read_text() == "still here"
    assert Path(sys.executable).exists() and Path("/usr/bin/env").exists()


def test_ignoring_interrupts_is_ended_by_the_second(kernel: Kernel) -> None:
    kernel.check("%%modal\nkept = 1")
    code = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun', flush=True)\n"
        "while True:\n    time.sleep(0.05)"
    )

    def press() -> None:
        for _ in range(2):
            kernel.interrupt()
            time.sleep(0.7)

    fired = threading.Event()

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and "begun" in message["content"]["text"] and not fired.is_set():
            fired.set()
            threading.Thread(target=press).start()

    ran = kernel.run("%%modal\n" + code, hook)
    assert "killed" in ran.error.lower() or "KeyboardInterrupt" in ran.error, ran.error
    assert kernel.check("%%modal\nprint('alive')").text.endswith("alive\n")


def test_a_gigabyte_of_print_is_bounded_everywhere(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal\nx = 1")
    watched = {"kernel": kernel.pid, **{name: p.pid for name, p in place.processes().items()}}
    for pid in watched.values():
        reset_peak(pid)
    before = {name: peak_rss_bytes(pid) for name, pid in watched.items()}
    ran = kernel.check("%%modal\nline = 'x' * 999_999\nfor _ in range(1000):\n    print(line)\nprint('the end')")
    assert "dropped" in ran.text and ran.text.rstrip().endswith("the end")
    assert len(ran.text) < 60_000_000
    for name, pid in watched.items():
        assert peak_rss_bytes(pid) - before[name] < 200_000_000, name


def test_a_gateway_that_is_down_says_how_to_start_it(place: House, tmp_path: Path) -> None:
    environment = {**place.environment, "CELLBURST_GATEWAY": "http://127.0.0.1:9", "CELLBURST_TOKEN": "x"}
    down = Kernel(environment, tmp_path)
    try:
        down.check("%load_ext cellburst_jupyter")
        ran = down.run("%%modal\nx = 1")
        assert ran.seconds < ANSWER_SECONDS and "127.0.0.1:9" in ran.error and "start" in ran.error.lower(), ran.error
        assert down.check("print('local goes on')").text == "local goes on\n"
    finally:
        down.close()


def test_a_wrong_token_is_told(place: House, shared: Kernel, tmp_path: Path) -> None:
    import json

    url = json.loads((place.folder / "run" / "gateway.json").read_text())["url"]
    wrong = Kernel({**place.environment, "CELLBURST_GATEWAY": url, "CELLBURST_TOKEN": "wrong"}, tmp_path)
    try:
        wrong.check("%load_ext cellburst_jupyter")
        ran = wrong.run("%%modal\nx = 1")
        assert ran.seconds < ANSWER_SECONDS and "token" in ran.error.lower(), ran.error
    finally:
        wrong.close()


@pytest.mark.parametrize("kind", ["read_only", "full"])
def test_a_data_folder_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    options = "ro,size=64k" if kind == "read_only" else "size=16k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        environment = {
            **os.environ,
            "CELLBURST_DATA": str(folder),
            "CELLBURST_RUN": str(tmp_path / "run"),
            "CELLBURST_CONFIG": str(tmp_path / "no"),
        }
        start = time.monotonic()
        tried = subprocess.run(
            [sys.executable, "-m", "cellburst", "up"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert time.monotonic() - start < 10
        assert tried.returncode == 1 and str(folder) in tried.stderr.replace("\n", ""), tried.stderr
        subprocess.run(
            [sys.executable, "-m", "cellburst", "down"], env=environment, capture_output=True, timeout=60, check=False
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
