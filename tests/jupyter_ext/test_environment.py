"""What the kernel says of itself, from real interpreters: venvs, links, `.pth` files, editable installs, the user site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from cellburst_jupyter import environment
from cellburst_jupyter.environment import collect_environment, describe_drift, find_notebook
from cellburst_jupyter.environment_paths import finder_targets, link_chain, scan_folder
from cellburst_protocol.messages import MirrorSpec


class Venv:
    """A venv of this interpreter, without pip, whose kernel is asked for its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python3*/site-packages")

    def install(self, name: str, version: str) -> Path:
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        return info

    def collect(self, *, python: Path | None = None, before: str = "", **variables: str) -> MirrorSpec:
        # Our own packages come last on its path, as they would not be in its venv.
        ours = [p for p in sys.path if p and Path(p).is_dir() and not p.startswith(sys.base_prefix)]
        code = (
            f"import sys; {before}\nsys.path += {ours!r}\nimport msgspec\n"
            "from cellburst_jupyter.environment import collect_environment as c\n"
            "sys.stdout.buffer.write(msgspec.json.encode(c(notebook_folder='')))"
        )
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
        done = subprocess.run(
            [str(python or self.python), "-c", code], check=True, capture_output=True, env=clean | variables
        )
        return msgspec.json.decode(done.stdout, type=MirrorSpec)


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    return Venv(tmp_path / "venv")


def folder(path: Path) -> str:
    path.mkdir(parents=True)
    return str(path)


def test_interpreter_prefixes_and_each_link_hop(venv: Venv, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    mine = venv.folder / "bin" / "mypython"
    mine.symlink_to("python")
    spec = venv.collect(python=mine)
    assert (spec.executable, spec.prefix, spec.base_prefix) == (str(mine), str(venv.folder), sys.base_prefix)
    assert spec.links[:2] == [str(mine), str(venv.python)]
    assert os.path.realpath(venv.python) in spec.links
    assert str(venv.site) in spec.sys_path and all(Path(p).exists() for p in spec.sys_path)


def test_link_chains_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert len(link_chain(str(tmp_path / "a"))) == 40
    assert link_chain(str(tmp_path)) == [str(tmp_path)]


def test_pth_targets(venv: Venv, tmp_path: Path) -> None:
    target = folder(tmp_path / "shared")
    (venv.site / "x.pth").write_text(f"# comment\nimport os\n{target}\n{tmp_path}/missing\n../inside\n")
    spec = venv.collect()
    assert target in spec.extra_paths and target in spec.sys_path
    assert f"{tmp_path}/missing" not in spec.extra_paths


def test_editable_installs_of_both_kinds(venv: Venv, tmp_path: Path) -> None:
    by_path, by_hook, project = (folder(tmp_path / x) for x in ("src", "pkg/src/hooked", "unknown-backend"))
    (Path(by_hook).parent / "single.py").write_text("")
    (venv.site / "__editable__.a-1.pth").write_text(by_path)
    (venv.site / "__editable___b_1_finder.py").write_text(
        "from __future__ import annotations\n"
        f"MAPPING: dict[str, str] = {{'hooked': {by_hook!r}, 'single': {str(Path(by_hook).parent / 'single')!r}}}\n"
        "NAMESPACES: dict[str, list[str]] = {}\n"
    )
    info = venv.install("c", "1.0")
    (info / "direct_url.json").write_text(json.dumps({"url": f"file://{project}", "dir_info": {"editable": True}}))
    (venv.site / "linked").symlink_to(folder(tmp_path / "flit"))
    spec = venv.collect()
    want = {by_path, by_hook, str(Path(by_hook).parent / "single.py"), project, str(tmp_path / "flit")}
    assert want <= set(spec.extra_paths)


def test_finders_that_are_no_literal_are_passed_over() -> None:
    assert finder_targets("MAPPING = dict(a=1)\n") == [] and finder_targets("def (") == []
    assert finder_targets("NAMESPACES = {'n': ['/x/n', '/y/n']}\nOTHER = {'a': '/z'}") == ["/x/n", "/y/n"]


def test_user_site_pythonpath_conda_and_library_folders(venv: Venv, tmp_path: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    user_site = folder(tmp_path / "home" / ".local" / "lib" / version / "site-packages")
    extra, libraries, conda = (folder(tmp_path / x) for x in ("extra", "libs", "conda"))
    # A venv has no user site: the base interpreter is asked.
    base = Path(sys._base_executable)  # type: ignore[attr-defined]
    given = {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": extra,
        "LD_LIBRARY_PATH": f"{libraries}:/none",
        "CONDA_PREFIX": conda,
    }
    spec = venv.collect(python=base, **given)
    assert {user_site, extra, libraries, conda} <= set(spec.extra_paths)
    assert user_site in spec.sys_path and "/none" not in spec.extra_paths
    assert spec.home == str(tmp_path / "home") and spec.uid == os.getuid()
    assert user_site not in venv.collect(**given).extra_paths


def test_only_allowed_variables_leave_the_kernel(venv: Venv) -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "HF_TOKEN": "s3cret",
        "OPENAI_API_KEY": "s3cret",
        "PIP_INDEX_URL": "https://s3cret@x",
    }
    allowed = {
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C",
        "TZ": "Asia/Tokyo",
        "OMP_NUM_THREADS": "3",
        "HF_HOME": "/m",
        "PYTHONHASHSEED": "7",
    }
    spec = venv.collect(**secrets, **allowed)
    assert allowed.items() <= spec.environment.items()
    assert b"s3cret" not in msgspec.json.encode(spec)


def test_identity_follows_packages_pth_and_editables_and_drift_names_them(venv: Venv, tmp_path: Path) -> None:
    venv.install("pandas", "2.2.3")
    venv.install("old_one", "1.0")
    first = venv.collect()
    assert first.packages["pandas"] == "2.2.3" and first.packages["old-one"] == "1.0"
    assert venv.collect().identity == first.identity and describe_drift(first, first) == ""
    (venv.site / "pandas-2.2.3.dist-info").rename(venv.site / "pandas-3.1.0.dist-info")
    (venv.site / "old_one-1.0.dist-info").rmdir()
    venv.install("new", "0.1")
    second = venv.collect()
    assert describe_drift(first, second).splitlines() == [
        "new 0.1 installed",
        "old-one 1.0 removed",
        "pandas 2.2.3 -> 3.1.0",
    ]
    target = folder(tmp_path / "added")
    (venv.site / "a.pth").write_text(target)
    third = venv.collect()
    assert describe_drift(second, third) == f"{target} added"
    (venv.site / "a.pth").write_text(target + "\n# changed\n")
    fourth = venv.collect()
    assert describe_drift(third, fourth) == ".pth files or editable installs changed"


def test_drift_is_short() -> None:
    old = MirrorSpec(executable="/p", python_version="3.11.7", prefix="/", base_prefix="/", identity="a")
    new = MirrorSpec(
        executable="/q",
        python_version="3.12.1",
        prefix="/",
        base_prefix="/",
        identity="b",
        packages={f"p{n}": "1" for n in range(20)},
    )
    lines = describe_drift(old, new).splitlines()
    assert (
        lines[:2] == ["Python 3.11.7 -> 3.12.1", "interpreter /p -> /q"]
        and lines[-1] == "and 14 more"
        and len(lines) == 9
    )


def test_changes_are_seen_in_the_same_process(tmp_path: Path) -> None:
    (tmp_path / "a-1.0.dist-info").mkdir()
    first = scan_folder(str(tmp_path))
    assert first is not None and first.packages == {"a": "1.0"} and scan_folder(str(tmp_path)) is first
    pth = tmp_path / "x.pth"
    pth.write_text("/usr\n")
    second = scan_folder(str(tmp_path))
    assert second is not None and second.targets == ["/usr"]
    pth.write_text("/usr/bin\n")  # in place: the folder's own time does not change
    third = scan_folder(str(tmp_path))
    assert third is not None and third.targets == ["/usr/bin"]
    assert scan_folder(str(tmp_path / "none")) is None


def test_a_warm_look_costs_under_50_ms_of_cpu_time(tmp_path: Path) -> None:
    first = collect_environment(notebook_folder=str(tmp_path))
    costs = []
    for _ in range(5):
        start = time.process_time()
        again = collect_environment(notebook_folder=str(tmp_path))
        costs.append(time.process_time() - start)
    assert min(costs) < 0.05
    assert again.identity == first.identity and len(first.packages) > 50
    assert first.packages["pytest"] and first.machine_id == environment.machine_id()


# == the notebook ========================================================================================================


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "people" / "ada"
    home.mkdir(parents=True)
    for name in (
        "CELLBURST_DATA",
        "CELLBURST_RUN",
        "CELLBURST_CONFIG",
        "CELLBURST_NOTEBOOK",
        "JPY_SESSION_NAME",
        "XDG_DATA_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


def mode(path: Path | str) -> tuple[str, str]:
    spec = collect_environment(notebook_folder=str(path))
    return spec.notebook_mode, spec.notebook_note


def test_a_project_folder_is_shown(at_home: Path) -> None:
    assert mode(folder(at_home / "project")) == ("folder", "")


def test_home_its_parents_and_root_show_python_files_only(at_home: Path) -> None:
    for path in (at_home, at_home.parent, "/"):
        kind, note = mode(path)
        assert kind == "python_files" and "only the .py files" in note and "\n" not in note and str(path) in note
    (at_home.parent / "link").symlink_to(at_home)
    assert mode(at_home.parent / "link")[0] == "python_files"


def test_our_data_and_jupyters_tokens_are_not_shown(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = at_home / "project"
    monkeypatch.setenv("CELLBURST_DATA", folder(project / "data"))
    assert mode(project) == (
        "python_files",
        f"{project} contains Cellburst's data folder, so only the .py files beside the notebook are shown (mount=PATH shows more)",
    )
    monkeypatch.delenv("CELLBURST_DATA")
    assert mode(project)[0] == "folder"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(project / "runtime"))
    assert "Jupyter's tokens" in mode(project)[1]


def test_a_folder_that_is_gone_shows_nothing(at_home: Path) -> None:
    assert mode(at_home / "gone")[0] == "none" and mode("") == ("none", "")


def test_mounts_are_absolute(at_home: Path) -> None:
    spec = collect_environment(notebook_folder="", mounts=["~/data", "/srv/x/../y"])
    assert spec.mounts == [str(at_home / "data"), "/srv/y"]


def test_the_notebook_is_found(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = folder(at_home / "work")
    monkeypatch.chdir(work)
    path, where = find_notebook()
    assert where == work and Path(path).parent == Path(work)
    monkeypatch.setenv("JPY_SESSION_NAME", f"{work}/lab.ipynb")
    assert find_notebook() == (f"{work}/lab.ipynb", work)
    monkeypatch.setenv("JPY_SESSION_NAME", "RTC:lab.ipynb")
    assert find_notebook() == (f"{work}/lab.ipynb", work)
    monkeypatch.setenv("CELLBURST_NOTEBOOK", "~/work/named.ipynb")
    assert find_notebook() == (f"{work}/named.ipynb", work)


def test_vs_code_and_a_plain_kernel_are_known(at_home: Path) -> None:
    work = folder(at_home / "work")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as S; s = S.instance();"
        "from cellburst_jupyter.environment import find_notebook as f; print(f()[0]);"
        f"s.user_ns['__vsc_ipynb_file__'] = {work + '/vs.ipynb'!r}; print(*f())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=work
    ).stdout.splitlines()
    assert out[0].startswith(f"{work}/process-") and out[1] == f"{work}/vs.ipynb {work}"
