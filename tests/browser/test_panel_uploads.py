"""Uploads to a volume in a real JupyterLab: over a reload of the page, from the file browser, whole folders, names of all kinds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

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


def test_after_a_reload_an_upload_goes_on_where_it_was(panel: Panel, tmp_path: Path) -> None:
    page = panel.page
    data = os.urandom(5 * PIECE_BYTES - 1000)
    file = tmp_path / "big.bin"
    file.write_bytes(data)
    passed: list[str] = []

    def three_pieces(route: Route) -> None:
        if len(passed) < 3:
            passed.append(route.request.url)
            route.continue_()  # the others never arrive anywhere

    page.route(CHUNKS, three_pieces)
    with page.expect_request(
        lambda request: "/api/workspaces/" in request.url and (request.post_data or "").count('"hashes"') == 1
        and sum(len(part) == 64 for part in (request.post_data or "").split('"')) == 3
    ):  # what is there was kept  # fmt: skip
        folder_of(panel).locator("input[type=file]").set_input_files(str(file))
    shown = folder_of(panel).locator(".cb-transfer")
    expect(shown).to_contain_text("60 % of 41.9 MB")
    page.reload()
    page.unroute(CHUNKS, three_pieces)
    expect(panel.section("machines")).to_contain_text("A100", timeout=WAIT_MS)
    panel.section("volumes").get_by_role("button", name="digits", exact=True).click()
    expect(shown).to_contain_text("60 % of 41.9 MB")
    expect(shown).to_contain_text("Pick the file again: it goes on where it was.")
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if is_chunk(request) else None)
    with page.expect_file_chooser() as chooser:
        shown.get_by_role("button", name="Pick big.bin again").click()
    chooser.value.set_files(str(file))
    expect(folder_of(panel).get_by_role("button", name="big.bin", exact=True)).to_be_visible()
    expect(shown).to_have_count(0)
    assert len(sent) == 2
    assert content(panel, "big.bin") == data


def test_files_are_dragged_in_from_jupyterlabs_file_browser(panel: Panel, lab: LabServer) -> None:
    page = panel.page
    tree = {"mine/a.txt": b"alpha", "mine/deep/b.bin": os.urandom(PIECE_BYTES + 7)}
    for path, data in tree.items():
        target = lab.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    page.get_by_role("tab", name="File Browser").click()
    page.get_by_role("button", name="Refresh the file browser").or_(
        page.locator('[data-command="filebrowser:refresh"]')
    ).first.click()
    drag(page, page.locator(".jp-DirListing-item", has_text="mine"), folder_of(panel))
    entry = folder_of(panel).get_by_role("button", name="mine", exact=True)
    expect(entry).to_be_visible()
    expect(folder_of(panel).locator(".cb-transfer")).to_have_count(0)
    for path, data in tree.items():
        assert content(panel, path) == data


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
