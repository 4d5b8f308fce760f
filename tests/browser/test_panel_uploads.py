"""Uploads to a volume in a real JupyterLab: over a reload of the page, from the file browser, whole folders, names of all kinds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from .lab import WAIT_MS, LabServer, new_page
from .marks import NEEDS_PANEL
from .test_panel import Panel

CHUNKS = re.compile(r"/volumes/digits/chunks(\?|$)")  # JupyterLab makes each address its own
PIECE_BYTES = 8 * 1024**2
NAMES = [
    "<img src=x onerror='window.pwned = 1'>",
    "\"q\" 'a' `t` & &lt;",
    "📈👩🏽\u200d🔬",
    "\u202egnp.\u202c\u05d0",
    "n" * 255,
]
pytestmark = NEEDS_PANEL


@pytest.fixture(scope="module")
def panel(lab: LabServer, browser: Browser) -> Iterator[Panel]:
    """One window for the module, with a volume that is open."""
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        panel = Panel(page, lab).open()
        volumes = panel.section("volumes")
        volumes.get_by_role("button", name="New volume").click()
        page.locator(".jp-Dialog input").fill("digits")
        page.locator(".jp-Dialog").get_by_role("button", name="Create").click()
        expect(volumes.locator(".cb-folder")).to_contain_text("Empty")
        yield panel


def folder_of(panel: Panel) -> Locator:
    return panel.section("volumes").locator(".cb-folder")


def content(panel: Panel, path: str) -> bytes:
    """A file of the volume, as the page may read it."""
    answer = panel.page.request.get(
        f"{panel.lab.url}/cellburst/volumes/digits/files/{path}", headers={"Authorization": f"token {panel.lab.token}"}
    )
    assert answer.status == 200, answer.text()
    return answer.body()


def is_chunk(request: Request) -> bool:
    return request.method == "POST" and CHUNKS.search(request.url) is not None


def kept(request: Request) -> list[dict[str, Any]]:
    """The uploads that a request keeps in JupyterLab's state."""
    text = request.post_data if "/api/workspaces/" in request.url and request.method == "PUT" else None
    uploads: list[dict[str, Any]] = json.loads(text or "{}").get("data", {}).get("@cellburst/labextension:uploads", [])
    return uploads


def pieces(uploads: list[dict[str, Any]]) -> list[int]:
    """How many of each are there."""
    return [sum(map(bool, upload["hashes"])) for upload in uploads]


def test_after_a_reload_uploads_go_on_where_they_were(panel: Panel, lab: LabServer, tmp_path: Path) -> None:
    """What was dragged from JupyterLab's file browser by itself, a file of the desktop when it is picked again."""
    page = panel.page
    mine, theirs = os.urandom(5 * PIECE_BYTES - 1000), os.urandom(4 * PIECE_BYTES - 1000)
    file = tmp_path / "big.bin"
    file.write_bytes(mine)
    (lab.folder / "dragged.bin").write_bytes(theirs)
    passed: list[str] = []
    most = 3

    def some_pieces(route: Route) -> None:
        if len(passed) < most:
            passed.append(route.request.url)
            route.continue_()  # the others never arrive anywhere

    page.route(CHUNKS, some_pieces)
    with page.expect_request(lambda request: pieces(kept(request)) == [3]):  # what is there was kept
        folder_of(panel).locator("input[type=file]").set_input_files(str(file))
    shown = folder_of(panel).locator(".cb-transfer")
    expect(shown).to_contain_text("60 % of 41.9 MB")
    most = 5
    show_files(page)
    with page.expect_request(lambda request: sorted(pieces(kept(request))) == [2, 3]) as saved:
        drag(page, page.locator(".jp-DirListing-item", has_text="dragged.bin"), folder_of(panel))
    (dragged,) = (upload for upload in kept(saved.value) if upload.get("origin") == "dragged.bin")
    first = [*dragged["hashes"], ""].index("")
    most = 1000  # what waits never arrives; what comes after the reload does
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request))
    page.reload()
    expect(panel.section("machines")).to_contain_text("A100", timeout=WAIT_MS)
    panel.section("volumes").get_by_role("button", name="digits", exact=True).click()
    expect(folder_of(panel).get_by_role("button", name="dragged.bin", exact=True)).to_be_visible()
    expect(shown).to_have_count(1)
    assert len([request for request in asked if is_chunk(request)]) == 2
    ranges = [request.headers.get("range") for request in asked if "/files/dragged.bin" in request.url]
    assert ranges == [f"bytes={first * PIECE_BYTES}-" if first else None]  # what is there was not read again

    expect(shown).to_contain_text("60 % of 41.9 MB")
    expect(shown).to_contain_text("Pick the file again: it goes on where it was.")
    with page.expect_file_chooser() as chooser:
        shown.get_by_role("button", name="Pick big.bin again").click()
    chooser.value.set_files(str(file))
    expect(folder_of(panel).get_by_role("button", name="big.bin", exact=True)).to_be_visible()
    expect(shown).to_have_count(0)
    assert len([request for request in asked if is_chunk(request)]) == 4
    page.unroute(CHUNKS, some_pieces)
    assert (content(panel, "big.bin"), content(panel, "dragged.bin")) == (mine, theirs)


def test_a_network_file_system_is_made_filled_looked_at_and_deleted(panel: Panel, tmp_path: Path) -> None:
    page, volumes = panel.page, panel.section("volumes")
    shared = volumes.get_by_role("group", name="Network file systems")
    expect(shared).to_contain_text("None yet")
    shared.get_by_role("button", name="New network file system").click()
    dialog = page.locator(".jp-Dialog")
    dialog.locator("input").fill("scratch")
    dialog.get_by_role("button", name="Create").click()
    folder = shared.locator(".cb-folder")
    expect(folder).to_contain_text("Empty")
    file = tmp_path / "told.txt"
    file.write_text("shared by all")
    folder.locator("input[type=file]").set_input_files(str(file))
    expect(folder.get_by_role("button", name="told.txt", exact=True)).to_be_visible()
    expect(shared).to_contain_text("13 B · 1 file")
    folder.get_by_role("button", name="told.txt", exact=True).click()
    expect(dialog.locator(".cb-log")).to_have_text("shared by all")
    dialog.get_by_role("button", name="Close").click()
    file.write_text("another")  # what is there is replaced only when that is said
    folder.locator("input[type=file]").set_input_files(str(file))
    dialog.get_by_role("button", name="Replace").click()
    expect(shared).to_contain_text("7 B · 1 file")
    with page.expect_download() as download:
        folder.get_by_role("button", name="Download told.txt").click()
    assert Path(download.value.path()).read_text() == "another"
    folder.get_by_role("button", name="Delete told.txt").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(folder).to_contain_text("Empty")
    shared.get_by_role("button", name="Delete scratch").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(shared).to_contain_text("None yet")


def test_files_are_dragged_in_from_jupyterlabs_file_browser(panel: Panel, lab: LabServer) -> None:
    page = panel.page
    tree = {"mine/a.txt": b"alpha", "mine/deep/b.bin": os.urandom(PIECE_BYTES + 7)}
    for path, data in tree.items():
        target = lab.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    show_files(page)
    drag(page, page.locator(".jp-DirListing-item", has_text="mine"), folder_of(panel))
    entry = folder_of(panel).get_by_role("button", name="mine", exact=True)
    expect(entry).to_be_visible()
    expect(folder_of(panel).locator(".cb-transfer")).to_have_count(0)
    for path, data in tree.items():
        assert content(panel, path) == data


def show_files(page: Page) -> None:
    """JupyterLab's file browser, as the folder is now."""
    page.get_by_role("tab", name="File Browser").click()
    page.get_by_role("button", name="Refresh the file browser").or_(
        page.locator('[data-command="filebrowser:refresh"]')
    ).first.click()


def drag(page: Page, what: Locator, where: Locator) -> None:
    """With the mouse, over the panel's tab, which shows the panel."""
    start = what.bounding_box()
    tab = page.get_by_role("tab", name="Cellburst").bounding_box()
    assert start and tab
    page.mouse.move(start["x"] + 40, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 60, start["y"] + 20, steps=5)
    page.mouse.move(tab["x"] + tab["width"] / 2, tab["y"] + tab["height"] / 2, steps=10)
    expect(where).to_be_visible()
    end = where.bounding_box()
    assert end
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + 12, steps=10)
    page.mouse.up()


def test_a_folder_of_the_desktop_comes_with_what_is_in_it(panel: Panel) -> None:
    """A drop as a browser gives it: of entries that are read bit by bit."""
    panel.page.evaluate("""() => {
        const file = (name, text) => ({isFile: true, isDirectory: false, name, file: take => take(new File([text], name))});
        const folder = (name, inside) => ({isFile: false, isDirectory: true, name, createReader: () => {
            const left = [...inside];
            return {readEntries: take => take(left.splice(0, 1))};
        }});
        const entry = folder('top', [file('one.txt', 'one'), folder('sub', [file('two.txt', 'two')]), folder('none', [])]);
        const drop = new Event('drop', {bubbles: true, cancelable: true});
        drop.dataTransfer = {types: ['Files'], items: [{webkitGetAsEntry: () => entry}], files: []};
        document.querySelector('.cb-folder').dispatchEvent(drop);
    }""")
    expect(folder_of(panel).get_by_role("button", name="top", exact=True)).to_be_visible()
    expect(folder_of(panel).locator(".cb-transfer")).to_have_count(0)
    assert (content(panel, "top/one.txt"), content(panel, "top/sub/two.txt")) == (b"one", b"two")


def test_names_of_files_are_text_whatever_they_are(panel: Panel, tmp_path: Path) -> None:
    folder = folder_of(panel)
    for name in NAMES:
        (tmp_path / name).write_text(name)
    folder.locator("input[type=file]").set_input_files([str(tmp_path / name) for name in NAMES])
    for name in NAMES:
        shown = folder.get_by_role("button", name=name, exact=True)
        expect(shown).to_have_text(name, use_inner_text=False)
    assert panel.page.evaluate("window.pwned") is None
    folder.get_by_role("button", name=NAMES[0], exact=True).click()
    dialog = panel.page.locator(".jp-Dialog")
    expect(dialog.locator(".cb-log")).to_have_text(NAMES[0])
    dialog.get_by_role("button", name="Close").click()
    assert panel.page.evaluate("window.pwned") is None
    assert folder.locator("img").count() == 0
