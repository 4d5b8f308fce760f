"""What a cell finds there: the notebook's own environment, user and folders, and nothing else of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness import House, Kernel

pytestmark = pytest.mark.gvisor


def test_what_the_notebook_put_on_its_path_is_importable_there(kernel: Kernel, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # code there is an ordinary user, and may read what others may
    (tmp_path / "beside_nothing.py").write_text("def answer():\n    return 42\n")
    kernel.check(f"import sys; sys.path.append({str(tmp_path)!r})")
    assert kernel.check("%%modal\nfrom beside_nothing import answer\nprint(answer())").text.endswith("42\n")


def test_code_is_an_ordinary_user_without_the_hosts_files(place: House, shared: Kernel) -> None:
    secret = place.folder / "data" / "token"
    assert secret.exists()
    code = (
        "import os, getpass, socket\n"
        f"print(os.getuid() != 0, os.path.exists({str(secret)!r}), os.path.exists('/root/.ssh'), os.path.exists('/etc/shadow'))\n"
        "print(getpass.getuser(), socket.gethostbyname('localhost'), os.path.isdir(os.path.expanduser('~')))\n"
        "print(sorted(k for k in os.environ if 'TOKEN' in k or 'SECRET' in k))"
    )
    lines = shared.check("%%modal\n" + code).text.splitlines()
    assert lines[0] == "True False False False" and lines[1].endswith("127.0.0.1 True") and lines[2] == "[]"


def test_the_environment_is_an_allow_list(place: House) -> None:
    kernel = Kernel(
        {**place.environment, "MY_API_TOKEN": "hidden", "JPY_SESSION_NAME": str(place.folder / "env.ipynb")},
        place.folder,
    )
    try:
        kernel.check("%load_ext cellburst_jupyter")
        ran = kernel.check(
            "%%modal\nimport os\nprint(os.environ.get('MY_API_TOKEN'), 'hidden' in str(dict(os.environ)))"
        )
        assert ran.text.splitlines()[-1] == "None False"
        kernel.check("%modal stop")
    finally:
        kernel.close()


def test_masked_files_are_not_shown_and_the_rest_of_the_folder_is(kernel: Kernel) -> None:
    folder = Path(kernel.check("import os; print(os.getcwd())").text.strip())
    (folder / ".env").write_text("PASSWORD=x")
    (folder / "seen.txt").write_text("seen")
    ran = kernel.check(
        "%%modal\nimport os\nprint(os.path.exists('.env'), open('seen.txt').read())\nopen('seen.txt', 'w').write('changed')"
    )
    assert "False seen" in ran.text and "seen.txt" in ran.text.splitlines()[-1]
    assert (folder / "seen.txt").read_text() == "seen"
    kernel.check("%modal get seen.txt")
    assert (folder / "seen.txt").read_text() == "changed"


def test_put_brings_a_file_there(kernel: Kernel) -> None:
    kernel.check("%%modal\nx = 1")
    folder = Path(kernel.check("import os; print(os.getcwd())").text.strip())
    (folder / "later.bin").write_bytes(b"\x00" * 2_000_000)
    kernel.check("%modal put later.bin")
    assert kernel.check("%%modal\nimport os\nprint(os.path.getsize('later.bin'))").text == "2000000\n"
    ran = kernel.check("%%modal\nopen('later.bin', 'ab').write(b'x')\nopen('own.txt', 'w').write('four')")
    assert "written there: later.bin (2.0 MB), own.txt (4 B)" in ran.text
    lines = [line.split("  ") for line in kernel.check("%modal get").text.splitlines()]
    assert lines[:2] == [["later.bin", "2.0 MB"], ["own.txt", "", "4 B"]], lines
    missing = kernel.run("%modal get no-such.csv").error
    assert "no-such.csv" in missing and "`%modal get` lists" in missing, "and that is what it does"


def test_network_none_and_outbound_are_what_they_say(kernel: Kernel) -> None:
    code = "import socket\nprint([name for _, name in socket.if_nameindex()])"
    alone = kernel.check("%%modal session=alone network=none\n" + code).text
    assert alone.splitlines()[-1] == "['lo']"
    kernel.check("%modal stop session=alone")
    assert "eth" in kernel.check("%%modal session=out\n" + code).text.splitlines()[-1]
    kernel.check("%modal stop session=out")
