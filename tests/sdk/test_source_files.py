"""What of an editable package's folder goes to another machine: sources, and no keys."""

from __future__ import annotations

from pathlib import Path

from cellburst.image_packs import list_tree
from cellburst.source_files import SourceLeftOut


def test_sources_go_and_keys_and_links_out_stay(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for name in (
        "mine/core.py", "mine/data.csv", "mine/.env", "mine/id_rsa", "credentials.json", "server.pem", "build/x.py",
        "mine.egg-info/PKG-INFO", "mine/__pycache__/core.pyc", "notes.ipynb", ".git/config", "mine/build/kept.py",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / "data").symlink_to("/mnt")
    (root / "mine/up").symlink_to("../../elsewhere")
    (root / "mine/other.py").symlink_to("core.py")
    found = {entry.name for entry in list_tree(root, SourceLeftOut(root)) if not entry.folder}
    assert found == {"mine/core.py", "mine/data.csv", "mine/other.py", "mine/build/kept.py"}
