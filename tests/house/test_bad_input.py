"""Bad input, and what it gets: the value given, what is allowed, what to do next; within 5 s, and the notebook goes on."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.harness import House, Kernel, Ran
from bench.values import ARRAY_BYTES, Watch
from cellburst import embedded

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
        ("gpu=Z9", ["is no GPU type we know", "A100-80GB", "H100"]),
        ("gpu=A1OO", ["did you mean gpu=A100?"]),
        (
            "gpu=H100 session=other",
            ["no machine of the fleet has such a GPU", "2 x simulated A100", "--simulate-gpus H100:1"],
        ),
        ("gpu=A100:3 session=other", ["the most on one is 2 x A100", "gpu=A100:2 would run"]),
        ("memory=9999GiB session=other", ["more than a machine of the fleet has", "at most"]),
        ("memory=lots", ["is not an amount of memory", "memory=16GiB"]),
        ("cpu=1e309", ["is not a number of cores", "0.1 to 1024", "cpu=4"]),
        ("timeout=25h", ["longer than this gateway allows", "at most 24h", "max_timeout"]),
        ("timeout=0", ["is not a duration", "more than 0", "timeout=30m"]),
        ("budget=free", ["is not an amount in US dollars", "more than 0", "budget=$3"]),
        ("gpu=", ["a value is missing here", "gpu=A100"]),
        ("=5", ["is no argument of %%modal: there is no name before the =", "gpu, memory, cpu"]),
        ("gpu=A100 gpu=T4", ["is given twice", "keep one gpu="]),
        ("gpoo=A100", ["is no argument of %%modal", "did you mean gpu=?"]),
        ("image=mine", ["is no variable of this notebook", "a variable that holds a cellburst.Image"]),
        ("volumes=/data:x", ["there is no volume 'x'", "cellburst volume create"]),
        ("secrets=hf", ["there is no secret 'hf'", "cellburst secret create hf"]),
        ("network=everything session=other", ["is not known", "outbound, none", "network=none"]),
        ("in=no_such_name", ["which this notebook does not have", "run the cell that makes it"]),
        ("'unclosed", ["the quote ' is not closed", "close it with '"]),
    ],
)
def test_a_bad_line_is_refused(line: str, words: list[str], shared: Kernel) -> None:
    """The words are none of the line's own, which the error shows as well."""
    assert not any(word in line for word in words)
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
        "        kids.append(pid)\nexcept OSError as e:\n    print('refused', e.errno, len(kids) > 10)\nfor k in kids:\n    os.kill(k, 9)\n    os.waitpid(k, 0)"
    )
    ran = kernel.check("%%modal memory=2GiB\n" + code)
    assert "refused 11 True" in ran.text
    threads = (
        "import resource, threading\nresource.setrlimit(resource.RLIMIT_NPROC, (200, 1024))\nover = threading.Event()\n"
        "for _ in range(150):\n    threading.Thread(target=over.wait).start()\n"
        "print(threading.active_count() > 150)\nover.set()\ndel over"
    )
    assert "True\n" in kernel.check("%%modal memory=2GiB\n" + threads).text  # who needs more threads raises the limit


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
    folder = Path(kernel.check("import os; mine = [41]; print(os.getcwd())").text.strip())
    (folder / "precious.txt").write_text("still here")
    code = (
        "import subprocess\nfor place in ('.', '/usr/bin', '/'):\n    try:\n"
        "        subprocess.run(['rm', '-rf', '--no-preserve-root', place], capture_output=True, timeout=10)\n"
        "    except (OSError, subprocess.TimeoutExpired):\n        pass  # it goes on through a read-only system for minutes"
    )
    kernel.run("%%modal\n" + code)
    assert (folder / "precious.txt").read_text() == "still here"
    assert Path(sys.executable).exists() and Path("/usr/bin/env").exists()
    assert kernel.check("print(mine[0], os.path.exists('precious.txt'))").text == "41 True\n"
    kernel.check("%modal restart")
    ran = kernel.check(
        "%%modal\nimport subprocess\nprint(mine[0] + 1, open('precious.txt').read())\n"
        "print(subprocess.run(['/usr/bin/env', 'echo', 'whole'], capture_output=True, text=True).stdout)"
    )
    assert "42 still here\nwhole\n" in ran.text


def test_ignoring_interrupts_is_ended_by_the_second(kernel: Kernel) -> None:
    kernel.check("%%modal\nkept = 1")
    code = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun', flush=True)\n"
        "while True:\n    time.sleep(0.05)"
    )

    told = threading.Event()

    def press() -> None:
        kernel.interrupt()
        while not told.wait(1.0):  # two that come too close are one, for the operating system
            kernel.interrupt()

    pressing = threading.Thread(target=press)

    def hook(message: dict[str, Any]) -> None:
        text = message["content"]["text"] if message["msg_type"] == "stream" else ""
        if "begun" in text and pressing.ident is None:
            pressing.start()
        if "is killed" in text:
            told.set()

    try:
        ran = kernel.run("%%modal\n" + code, hook)
    finally:
        told.set()
        if pressing.ident is not None:
            pressing.join()
    assert "is killed" in ran.text and "process was killed" in ran.error, (ran.text, ran.error)
    assert "names there are gone" in ran.error
    assert kernel.check("%%modal\nprint('kept' in globals())").text.endswith("False\n")


def test_a_gigabyte_of_print_is_bounded_everywhere(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal\nx = 1")
    with Watch(place, kernel) as watch:
        ran = kernel.check("%%modal\nline = 'x' * 999_999\nfor _ in range(1000):\n    print(line)\nprint('the end')")
    assert "dropped" in ran.text and ran.text.rstrip().endswith("the end")
    assert len(ran.text) < 60_000_000
    assert {"kernel", "cellburst_gateway", "cellburst_worker"} < set(watch.grown)
    assert any(name.startswith("container") for name in watch.grown)
    for name, grown in watch.grown.items():
        assert grown * ARRAY_BYTES < 200_000_000, name


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


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("kind", "options"), [("read_only", "ro,size=64k"), ("full", "size=16k"), ("nearly_full", "size=320k")]
)
def test_a_data_folder_that_cannot_be_written(kind: str, options: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "data", options) as folder:
        environment = {
            **os.environ,
            "CELLBURST_DATA": str(folder),
            "CELLBURST_RUN": str(tmp_path / "run"),
            "CELLBURST_CONFIG": str(tmp_path / "no"),
        }
        tried = subprocess.run(
            [sys.executable, "-m", "cellburst", "up"], env=environment, capture_output=True, text=True, timeout=60
        )
        said = tried.stderr.replace("\n", "")
        assert tried.returncode == 1 and str(folder) in said, tried.stderr
        assert ("cannot be written" if kind == "read_only" else "is full") in said, tried.stderr
        assert "CELLBURST_DATA" in said and "last lines" not in said, tried.stderr
        subprocess.run(
            [sys.executable, "-m", "cellburst", "down"], env=environment, capture_output=True, timeout=60, check=False
        )


def test_a_gateway_of_its_own_says_that_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "data", "size=320k") as folder:
        command = [
            "-m",
            "cellburst_gateway",
            "--data-dir",
            str(folder),
            "--run-dir",
            str(tmp_path / "run"),
            "--port",
            "0",
        ]
        tried = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)
        assert tried.returncode == 2 and "Traceback" not in tried.stderr, tried.stderr
        assert f"{str(folder)!r} is full" in tried.stderr and "--data-dir" in tried.stderr, tried.stderr


def test_a_disk_that_fills_up_during_a_start_is_told(tmp_path: Path) -> None:
    """The gateway's last words were not written then; where there is room, that there are none is said."""
    log = tmp_path / "data" / "logs" / "gateway.out"
    with small_disk(tmp_path / "data", "size=2m"):
        log.parent.mkdir()
        log.touch()
        assert "It left no words" in embedded._did_not_start("ended with exit code 1", log).info.message
        (tmp_path / "data" / "ballast").write_bytes(bytes(1_500_000))
        assert "is full" in embedded._did_not_start("ended with exit code 1", log).info.message
