"""`%%modal` made to work in the shell of a scheduled run, in a real kernel."""

from __future__ import annotations

from pathlib import Path

from tests.jupyter_ext.conftest import Notebook

BEGIN = "__import__('cellburst_jupyter.scheduled_run', fromlist=['begin']).begin(get_ipython(), '/w/r.ipynb', {'secrets': 'hf'})"


def test_without_a_link_it_says_so_and_with_one_the_notebook_is_what_was_told(
    notebook: Notebook, tmp_path: Path
) -> None:
    reply, _ = notebook.run(BEGIN)
    assert reply["ename"] == "RuntimeError" and "no link to the gateway" in reply["evalue"]
    (tmp_path / "var/ctl").mkdir(parents=True)
    (tmp_path / "var/ctl/gateway").touch()
    notebook.run(f"import os; os.environ.update(CELLBURST_LINK='1', CELLBURST_VAR={str(tmp_path / 'var')!r})")
    before = notebook.value("sorted(name for name in globals() if not name.startswith('_'))")
    reply, _ = notebook.run(BEGIN)
    assert reply["status"] == "ok", reply
    assert notebook.value("sorted(name for name in globals() if not name.startswith('_'))") == before, (
        "it binds no name"
    )
    notebook.run("from cellburst_jupyter import loaded; kept = loaded(get_ipython())")
    assert notebook.value("kept.place[0], kept.uses.now()") == "('/w/r.ipynb', {'secrets': 'hf'})"
    assert notebook.value("kept.hub.notebook") == "'/w/r.ipynb'"
    assert notebook.value("str(kept.hub.folder)") == repr(str(tmp_path / "nb"))
