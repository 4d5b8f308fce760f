"""Bundles on disk: who needs one, made once whoever asks, whole or not at all. The installer and its packages are real."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import textwrap
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cellburst_protocol.errors import CellburstError, ErrorCode, PlatformError, RequestError
from cellburst_protocol.messages import MirrorSpec
from cellburst_runtime import bundle
from cellburst_runtime.bundle import Bundle, bundle_for_mirror, lacks_kernel, make_bundle, minor_of
from cellburst_runtime.bundle_pins import PINS

ROOT = Path(__file__).resolve().parents[2]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
SMALL = ("comm==0.2.3",)
LEFT_OUT = {"debugpy"}  # nobody can reach a debugger there


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of one small package: for what is not about their content."""
    monkeypatch.setitem(PINS, HERE, SMALL)


def spec_of(folder: Path, *packages: str, **changes: object) -> MirrorSpec:
    """An environment whose site-packages holds empty folders of these names."""
    site = folder / "lib" / f"python{HERE}" / "site-packages"
    for name in packages:
        (site / name).mkdir(parents=True)
    fields: dict[str, object] = {
        "executable": str(folder / "bin" / "python"), "python_version": f"{HERE}.1", "prefix": str(folder),
        "base_prefix": str(folder / "base"), "sys_path": [str(site)], **changes,
    }  # fmt: skip
    return MirrorSpec(**fields)  # type: ignore[arg-type]


# -- who needs one -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packages", "lacks"),
    [
        ([], True),
        (["ipykernel"], True),
        (["cloudpickle", "cloudpickle-3.1.2.dist-info"], True),
        (["ipykernel_extra", "cloudpickle_x", "ipykernel-7.0.0.data", "xipykernel"], True),
        (["ipykernel", "cloudpickle"], False),
        (["ipykernel-7.4.0.dist-info", "cloudpickle-3.1.2.dist-info"], False),  # editable: metadata only
        (["ipykernel-6.29.0.dist-info", "cloudpickle.egg-info", "cloudpickle"], False),
    ],
)
def test_what_the_folders_say(tmp_path: Path, packages: list[str], lacks: bool) -> None:
    assert lacks_kernel(spec_of(tmp_path, *packages)) is lacks
    assert lacks_kernel(spec_of(tmp_path, sys_path=[])) is lacks  # its prefix is looked at all the same


def test_folders_of_another_minor_version_do_not_count(tmp_path: Path) -> None:
    other = spec_of(tmp_path, "ipykernel", "cloudpickle", python_version="3.10.2", prefix="/nowhere")
    assert lacks_kernel(other)
    plain = tmp_path / "plain"
    for name in ("ipykernel", "cloudpickle"):
        (plain / name).mkdir(parents=True)
    other.sys_path = [str(plain), "/nowhere/at/all"]
    assert not lacks_kernel(other)


def test_a_virtual_environment_sees_the_system_only_when_it_says_so(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "base", "ipykernel", "cloudpickle", prefix=str(tmp_path), sys_path=[])
    spec.base_prefix = str(tmp_path / "base")
    config = tmp_path / "pyvenv.cfg"
    config.write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    assert lacks_kernel(spec)
    config.write_text("home = /usr/bin\nInclude-System-Site-Packages = True\n")
    assert not lacks_kernel(spec)


def test_an_ipykernel_that_is_too_old_is_named(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "ipykernel", "ipykernel-6.17.1.dist-info", "cloudpickle")
    with pytest.raises(PlatformError, match=r"ipykernel 6\.17 in .* is too old") as caught:
        lacks_kernel(spec)
    assert caught.value.code is ErrorCode.START_FAILED and "6.29" in caught.value.info.allowed
    assert f"{spec.executable} -m pip install -U ipykernel" in caught.value.info.next


async def test_none_is_made_where_there_is_no_need(tmp_path: Path) -> None:
    assert await bundle_for_mirror(spec_of(tmp_path / "env", "ipykernel", "cloudpickle"), tmp_path / "data") is None
    assert not (tmp_path / "data").exists()


# -- versions ------------------------------------------------------------------------------------------------------


def test_minor_versions() -> None:
    assert (minor_of("3.11.7"), minor_of("3.9"), minor_of("3.14.0rc2")) == ("3.11", "3.9", "3.14")
    for wrong in ("", "three", "3", "v3.11"):
        with pytest.raises(RequestError, match="no Python version"):
            minor_of(wrong)


@pytest.mark.parametrize("version", ["3.8.1", "2.7.18", "3.99.0"])
async def test_a_version_without_a_bundle_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(PlatformError, match=f"no bundle for Python {minor_of(version)}") as caught:
        await make_bundle(tmp_path, version)
    assert "3.9, 3.10" in caught.value.info.allowed and "install ipykernel" in caught.value.info.next
    assert list(tmp_path.iterdir()) == []


async def test_a_python_without_the_gil_is_refused(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.13t" / "site-packages"
    site.mkdir(parents=True)
    spec = spec_of(tmp_path, python_version="3.13.1", sys_path=[str(site)])
    with pytest.raises(PlatformError, match=r"no bundle for Python 3\.13t"):
        await bundle_for_mirror(spec, tmp_path / "data")


async def test_a_machine_without_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"no bundle for .* riscv64"):
        await make_bundle(tmp_path, HERE, machine="riscv64")


def test_pins_are_the_versions_that_are_tested_with() -> None:
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for minor in ("3.11", "3.12", "3.13", "3.14"):
        pinned = dict(pin.split("==") for pin in PINS[minor])
        assert pinned == {name: tested[name] for name in pinned}
    for pins in PINS.values():
        assert len({pin.split("==")[0] for pin in pins}) == len(pins)


# -- making one ----------------------------------------------------------------------------------------------------


async def test_the_real_one_is_complete(tmp_path: Path) -> None:
    made = await make_bundle(tmp_path, HERE)
    assert made == await make_bundle(tmp_path, HERE) == Bundle(made.packages, HERE)
    found = {_name(d.metadata["Name"]): d for d in distributions(path=[str(made.packages)])}
    assert {f"{name}=={d.version}" for name, d in found.items()} == {_name(pin) for pin in PINS[HERE]}
    assert _needed(found["ipykernel"], found) <= found.keys()
    script = "import sys; sys.path.append(sys.argv[1]); import ipykernel.kernelapp as k, dill, cloudpickle; print(k.__file__)"
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(made.packages)], capture_output=True, text=True
    )
    assert said.stdout == f"{made.packages}/ipykernel/kernelapp.py\n", said.stderr
    for path in (made.packages, made.packages / "ipykernel", made.packages.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755  # the container's own user reads it
    assert not (made.packages / "bin").exists()
    assert list((made.packages / "ipykernel" / "__pycache__").glob("kernelapp.*.pyc"))


def _name(text: str) -> str:
    return text.lower().replace("_", "-").replace(".", "-") if "==" not in text else text


def _needed(start: Distribution, found: dict[str, Distribution]) -> set[str]:
    """Everything that a distribution needs, and what that needs, here."""
    needed: set[str] = set()
    waiting = [start]
    while waiting:
        for line in waiting.pop().requires or []:
            wanted = Requirement(line)
            name = _name(wanted.name)
            if name in needed | LEFT_OUT or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
                continue
            needed.add(name)
            if name in found:
                waiting.append(found[name])
    return needed


async def test_many_who_ask_at_once_get_the_same_made_once(tmp_path: Path, small: None) -> None:
    """Tasks of this process and another process, of which one installs."""
    script = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from cellburst_runtime.bundle import make_bundle
        from cellburst_runtime.bundle_pins import PINS
        PINS[{HERE!r}] = {SMALL!r}
        print(asyncio.run(make_bundle(Path(sys.argv[1]), {HERE!r})).packages.stat().st_ino)
    """)
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    mine = await asyncio.gather(*(make_bundle(tmp_path, f"{HERE}.{n}") for n in range(3)))
    said, _ = await other.communicate()
    assert {int(said), *(made.packages.stat().st_ino for made in mine)} == {mine[0].packages.stat().st_ino}
    assert sorted(p.suffix for p in (tmp_path / "bundles").iterdir() if p != mine[0].packages.parent) == [".lock"]


async def test_one_on_disk_needs_no_installer(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make_bundle(tmp_path, HERE)
    monkeypatch.setattr(bundle.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(bundle, "find_program", lambda name: "")
    assert await make_bundle(tmp_path, HERE) == made
    (made.packages / "comm" / "__init__.py").unlink()  # lost: it is not used, and cannot be made again here
    with pytest.raises(PlatformError, match="uv is not here"):
        await make_bundle(tmp_path, HERE)


async def test_one_that_lost_a_file_is_made_again(tmp_path: Path, small: None) -> None:
    made = await make_bundle(tmp_path, HERE)
    for lose in (
        (made.packages / "comm" / "__init__.py").unlink,
        lambda: os.truncate(made.packages / "comm" / "base_comm.py", 0),
        (made.packages.parent / "manifest.json").unlink,
    ):
        lose()
        assert await make_bundle(tmp_path, HERE) == made
        assert (made.packages / "comm" / "__init__.py").is_file() and (
            made.packages / "comm" / "base_comm.py"
        ).stat().st_size
    assert [p.name for p in made.packages.parent.iterdir() if p.name == "old"] == []


async def test_what_a_killed_maker_left_is_removed(tmp_path: Path, small: None) -> None:
    made = await make_bundle(tmp_path, HERE)
    key = made.packages.parent
    left = key.with_name(f"{key.name}.making-x")
    key.rename(left)
    assert await make_bundle(tmp_path, HERE) == made and not left.exists()


async def test_other_versions_are_another_bundle(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make_bundle(tmp_path, HERE)
    manifest = json.loads((made.packages.parent / "manifest.json").read_text())
    assert (manifest["python"], manifest["packages"]) == (HERE, list(SMALL))
    monkeypatch.setitem(PINS, HERE, (*SMALL, "dill==0.4.1"))
    assert (await make_bundle(tmp_path, HERE)).packages != made.packages


async def test_a_failed_install_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PINS, HERE, ("comm==0.0.0.0",))
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "index").as_uri())
    with pytest.raises(CellburstError) as caught:
        await make_bundle(tmp_path, HERE)
    assert caught.value.code is ErrorCode.START_FAILED and "comm" in str(caught.value)
    assert "UV_DEFAULT_INDEX" in caught.value.info.next
    assert [p.suffix for p in (tmp_path / "bundles").iterdir()] == [".lock"]


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    installing = asyncio.Event()

    async def hang(*arguments: object, **options: object) -> None:
        installing.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(bundle, "run_command", hang)
        task = asyncio.create_task(make_bundle(tmp_path, HERE))
        await installing.wait()
        waiting = asyncio.create_task(make_bundle(tmp_path, HERE))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert [p.suffix for p in (tmp_path / "bundles").iterdir()] == [".lock"]
    assert (await make_bundle(tmp_path, HERE)).packages.is_dir()
