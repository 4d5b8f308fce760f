"""Which names are hidden, and finding them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_runtime.masks import SECRET_NAMES, TooManyEntries, find_masked, is_masked
from cellburst_runtime.mirror_rules import is_secret_name


@pytest.mark.parametrize(
    "path",
    [".ssh", "a/.aws", ".env", ".env.local", "deep/er/.netrc", "id_rsa", "k/id_ed25519_sk", "x.pem", "server.key", ".local/share/jupyter",
     "home/.local/share/cellburst", ".config", "credentials.json"],
)  # fmt: skip
def test_hidden(path: str) -> None:
    assert is_masked(path)


@pytest.mark.parametrize(
    "path",
    [
        "environment.yml",
        ".envoy",
        "jupyter",
        "cellburst/main.py",
        "id_rsa.pub",
        ".env.example",
        "cacert.pem",
        "pem",
        "keys.py",
    ],
)
def test_shown(path: str) -> None:
    assert not is_masked(path)


def test_what_is_hidden_in_a_notebooks_folder_is_hidden_in_a_source_tree_too() -> None:
    assert {".ssh", ".envrc", ".my.cnf", "kaggle.json"} <= SECRET_NAMES
    for name in SECRET_NAMES:
        assert is_masked(f"a/{name}") and is_secret_name(name), name


def test_finding_stops_at_the_outermost_and_follows_no_link(tmp_path: Path) -> None:
    for name in (
        "p/.ssh/.env",
        "p/q/.env",
        "venv/lib/x.pem",
        "node_modules/y.pem",
        ".git/config",
        ".git/objects/z.pem",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert sorted(find_masked(tmp_path)) == ["p/.ssh", "p/q/.env"]


def test_a_folder_too_large_is_not_half_searched(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / str(number)).write_text("")
    with pytest.raises(TooManyEntries):
        find_masked(tmp_path, max_entries=11)
