"""What a person presses in the panel, in two stories: volumes and their files, then secrets, a schedule, the settings, the launcher."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from os import environ
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from bench.harness import House

from .lab import WAIT_MS, LabServer, Notebook, new_page
from .marks import NEEDS_PANEL
from .test_panel import Panel

KEY_FILE = "-----BEGIN KEY-----\nvalue-of-a-key-file\n-----END KEY-----\n"
VALUE = "value-that-no-page-may-hold"
CELLS = ["%%modal card=off\nimport os\nprint('keys', 'HUB_TOKEN' in os.environ)"]
pytestmark = NEEDS_PANEL


@pytest.fixture(scope="module")
def notebook(lab: LabServer, browser: Browser) -> Iterator[Notebook]:
    """One window on a notebook; the panel was opened, so a gateway runs."""
    path = lab.notebook("pressed", CELLS)
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        Panel(page, lab).open(f"/tree/{path.name}")
        made = Notebook(page, lab, path)
        made.wait_loaded()
        yield made


@pytest.fixture
def panel(notebook: Notebook, lab: LabServer) -> Panel:
    return Panel(notebook.page, lab)


@pytest.fixture(scope="module")
def schedule(place: House, notebook: Notebook) -> str:
    """A schedule that names a volume, made by the command line."""
    for line in (
        ["volume", "create", "dataset"],
        ["schedule", "create", str(notebook.path), "--cron=0 7 1 1 *", "--no-folder", "--yes", "--name=yearly",
         "--volumes=/in:dataset", "--python", sys.executable],
    ):  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "cellburst", *line], env={**environ, **place.environment}, check=True, timeout=100,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return "yearly"


def dialog_of(panel: Panel) -> Locator:
    return panel.page.locator(".jp-Dialog")


def answer(panel: Panel, button: str, text: str | None = None) -> None:
    """Type into the dialog, if it asks for something, and press one of its buttons."""
    dialog = dialog_of(panel)
    if text is not None:
        dialog.locator("input").fill(text)
    dialog.get_by_role("button", name=button, exact=True).click()
    expect(dialog).to_have_count(0, timeout=WAIT_MS)


def until_used(notebook: Notebook, **wanted: Any) -> None:
    """Wait until the notebook's file says that it uses this and nothing else."""
    deadline = time.monotonic() + WAIT_MS / 1000
    found: object = None
    while found != wanted:
        assert time.monotonic() < deadline, found
        with contextlib.suppress(ValueError):  # just being written: Jupyter empties the file first
            found = json.loads(notebook.path.read_text())["metadata"].get("cellburst", {})
        notebook.page.wait_for_timeout(50)  # the page's own work goes on meanwhile


def files(folder: Path) -> list[Path]:
    """A picture, a table of more rows than are shown, and a notebook of more than 256 KB."""
    Image.new("RGB", (3, 2), "red").save(folder / "pixels.png")
    (folder / "long.csv").write_text("n,square\n" + "".join(f"{n},{n * n}\n" for n in range(700)))
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["said by the cell\n"]},
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"image/png": "A" * 300_000, "text/html": "<img src=x onerror='window.pwned=1'>"},
        },
    ]
    cell = {"cell_type": "code", "source": ["print('hello')"], "outputs": outputs, "metadata": {}, "execution_count": 1}
    (folder / "book.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return [folder / name for name in ("pixels.png", "long.csv", "book.ipynb")]


def test_volumes_and_their_files(panel: Panel, notebook: Notebook, schedule: str, tmp_path: Path) -> None:
    page, dialog = panel.page, dialog_of(panel)
    volumes = panel.section("volumes")

    # what was wrong is said whole, although JupyterLab cuts its toasts
    volumes.get_by_role("button", name="New volume").click()
    answer(panel, "Create", "no name <i>for</i> a volume " + "x" * 80)
    toast = page.locator(".Toastify__toast", has_text="The volume was not made")
    expect(toast).not_to_contain_text("letters, digits")
    toast.get_by_role("button", name="More").click()
    expect(dialog.locator(".cb-log")).to_contain_text(re.compile(r"allowed: .*letters, digits.*$", re.DOTALL))
    answer(panel, "Close")

    # files: looked at, renamed, deleted
    volumes.get_by_role("button", name="dataset", exact=True).click()
    folder = volumes.locator(".cb-folder")
    folder.locator("input[type=file]").set_input_files([str(path) for path in files(tmp_path)])
    folder.get_by_role("button", name="pixels.png", exact=True).click()
    picture = dialog.locator("img.cb-image")
    expect(picture).to_be_visible()
    page.wait_for_function("e => e.naturalWidth === 3", arg=picture.element_handle())
    answer(panel, "Close")
    folder.get_by_role("button", name="long.csv", exact=True).click()
    expect(dialog.locator("tbody tr")).to_have_count(200)
    expect(dialog.locator("tbody tr").last).to_have_text("19939601")
    expect(dialog).to_contain_text("The first 200 rows of 700.")
    answer(panel, "Close")
    folder.get_by_role("button", name="book.ipynb", exact=True).click()
    expect(dialog.locator(".cb-log")).to_have_text(
        "# [code]\nprint('hello')\n# [output]\nsaid by the cell\n# [output]\n[image/png]\n[text/html]"
    )
    answer(panel, "Close")
    assert page.evaluate("window.pwned") is None
    folder.get_by_role("button", name="Rename long.csv").click()
    answer(panel, "Rename", "tables/short.csv")
    expect(folder.get_by_role("button", name="tables", exact=True)).to_be_visible()
    folder.get_by_role("button", name="Delete pixels.png").click()
    expect(dialog).to_contain_text("Delete pixels.png?")
    answer(panel, "Cancel")
    folder.get_by_role("button", name="Delete pixels.png").click()
    answer(panel, "Delete")
    expect(folder.get_by_role("button", name="pixels.png", exact=True)).to_have_count(0)
    expect(folder.get_by_role("button", name="book.ipynb", exact=True)).to_be_visible()

    # in this notebook; and under another name, which is asked about first: the schedule names it
    volumes.get_by_role("button", name="Use dataset in this notebook").click()
    dialog.locator("input").fill("/a,/b:c")
    dialog.get_by_role("button", name="Use", exact=True).click()
    expect(dialog).to_contain_text("A path has none of these")  # it is asked for again
    expect(dialog.locator("input")).to_have_value("/a,/b:c")
    answer(panel, "Use", "/data")
    until_used(notebook, volumes={"/data": "dataset"})
    expect(volumes.get_by_role("button", name="Do not use dataset (/data)")).to_have_attribute("aria-pressed", "true")
    rename = volumes.get_by_role("button", name="Rename dataset", exact=True)
    for press in ("Cancel", "Rename"):
        rename.click()
        dialog.locator("input").fill("pictures")
        dialog.get_by_role("button", name="Rename", exact=True).click()
        expect(dialog).to_contain_text(f"It is used by schedule {schedule}")
        if press == "Cancel":
            answer(panel, "Cancel")
            expect(rename).to_be_visible()
    answer(panel, "Rename")
    expect(volumes.get_by_role("button", name="pictures", exact=True).first).to_be_visible()
    until_used(notebook, volumes={"/data": "pictures"})

    # deleting asks, and names what would be without it
    rename = volumes.get_by_role("button", name="Rename pictures", exact=True)
    rename.click()
    answer(panel, "Rename", "dataset")
    expect(volumes.locator(".cb-used-by")).to_have_text(f"used by schedule {schedule}")
    volumes.get_by_role("button", name="Delete dataset", exact=True).click()
    expect(dialog).to_contain_text(f"It is used by schedule {schedule}. Its files cannot be brought back.")
    answer(panel, "Cancel")
    expect(volumes.get_by_role("button", name="dataset", exact=True).first).to_be_visible()
    volumes.get_by_role("button", name="Do not use dataset (/data)").click()
    until_used(notebook)

    # sections are as they were left
    with page.expect_request(
        lambda request: "/api/workspaces/" in request.url and '"machines":false' in (request.post_data or "")
    ):
        panel.section("machines").locator(".cb-section-button").click()
    page.reload()
    folded = panel.node.locator('[data-section="machines"] .cb-section-button')
    expect(folded).to_have_attribute("aria-expanded", "false")
    expect(panel.node.locator('[data-section="volumes"] .cb-section-button')).to_have_attribute("aria-expanded", "true")
    folded.click()
    expect(panel.section("machines")).to_contain_text("A100")
    notebook.wait_loaded()


def paste(panel: Panel, field: Locator, text: str) -> None:
    """From the clipboard, by the keyboard."""
    field.focus()
    panel.page.evaluate("text => navigator.clipboard.writeText(text)", text)
    panel.page.keyboard.press("Control+v")


def sent(panel: Panel, button: str) -> dict[str, Any]:
    """Save the form of a secret; what left the page."""
    with panel.page.expect_request(
        lambda request: request.method == "POST" and "/cellburst/secrets" in request.url
    ) as made:
        answer(panel, button)
    assert made.value.response().status == 200  # type: ignore[union-attr]  # it has been answered
    body: dict[str, Any] = made.value.post_data_json
    return body


def test_secrets_a_schedule_settings_and_launcher(
    panel: Panel, notebook: Notebook, schedule: str, tmp_path: Path
) -> None:
    page = panel.page
    secrets, form = panel.section("secrets"), page.locator(".cb-secret-form")

    # from a pasted .env, a key file that keeps its lines, and a file
    secrets.get_by_role("button", name="New secret").click()
    form.get_by_label("Name").fill("hub")
    paste(panel, form.get_by_label("Key 1"), f"# keys\nexport HUB_TOKEN='{VALUE}'\nHUB_URL=a\nHUB_URL=b # the last\n")
    expect(form.get_by_role("status").last).to_have_text("2 keys taken. Twice in it, the last one counts: HUB_URL")
    expect(form.get_by_label("Key 1")).to_have_value("HUB_TOKEN")
    expect(form.get_by_label("Value 1")).to_have_attribute("type", "password")
    form.get_by_role("button", name="One more key").click()
    form.get_by_label("Key 3").fill("HUB_PEM")
    paste(panel, form.get_by_label("Value 3"), KEY_FILE)
    expect(form).to_contain_text("4 lines")
    assert "value-of-a-key-file" not in form.inner_text()
    file = tmp_path / ".env"
    for content, said in (
        ("A=1\nB=\"x\" y", "Line 2 cannot be read: something stands behind its closing quote. Nothing was taken."),
        ("HUB_REGION=eu", "1 key taken"),
    ):  # fmt: skip
        file.write_text(content)
        with page.expect_file_chooser() as chooser:
            form.get_by_role("button", name="Take a .env file…").click()
        chooser.value.set_files(str(file))
        expect(form.get_by_role("status").last).to_have_text(said)
    assert sent(panel, "Create") == {
        "name": "hub", "mode": "create",
        "values": {"HUB_TOKEN": VALUE, "HUB_URL": "b", "HUB_PEM": KEY_FILE, "HUB_REGION": "eu"},
    }  # fmt: skip
    row = secrets.locator(".cb-row", has_text="hub")
    expect(row).to_contain_text("never used")
    assert VALUE not in page.content() and "value-of-a-key-file" not in page.content()

    # replaced: its keys are there, its values are not
    row.get_by_role("button", name="Replace the values of hub").click()
    expect(form.get_by_label("Name")).to_be_disabled()
    assert [form.get_by_label(f"Value {n}").input_value() for n in range(1, 5)] == [""] * 4
    keys = [form.get_by_label(f"Key {n}").input_value() for n in range(1, 5)]
    assert sorted(keys) == ["HUB_PEM", "HUB_REGION", "HUB_TOKEN", "HUB_URL"]
    form.get_by_label("Value 1").fill("other")
    replaced = sent(panel, "Replace")
    assert (replaced["mode"], replaced["values"][keys[0]]) == ("replace", "other")

    # used in this notebook: its next cell has it
    row.get_by_role("button", name="Use hub in this notebook").click()
    until_used(notebook, secrets=["hub"])
    expect(notebook.run(0)).to_contain_text("keys True", timeout=2 * WAIT_MS)
    expect(row).to_contain_text(re.compile(r"used \d+ (s|min) ago"))
    row.get_by_role("button", name="Do not use hub in this notebook").click()
    until_used(notebook)

    # a schedule is paused and goes on
    schedules = panel.section("schedules")
    line = schedules.locator(".cb-row", has_text=schedule)
    line.get_by_role("button", name=f"Pause {schedule}").click()
    expect(line).to_contain_text("paused")
    line.get_by_role("button", name=f"Let {schedule} go on").click()
    expect(line).to_contain_text("next ")
    expect(line).not_to_contain_text("paused")

    # switched off in the settings, and on again
    item = page.locator(".cb-status-item")
    expect(item).to_be_visible()
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Settings Editor")).click()
    editor = page.locator("#setting-editor, .jp-SettingsPanel").first
    page.locator(".jp-PluginList").get_by_text("Cellburst", exact=True).first.click()
    switch = editor.get_by_label("Status bar").first
    for on in (False, True):
        switch.set_checked(on)
        expect(item).to_be_visible() if on else expect(item).to_be_hidden()

    # the launcher's card opens the panel
    page.locator('[data-id="cellburst-panel"]').click()
    expect(panel.node).to_be_hidden()
    page.get_by_role("button", name=re.compile("^New Launcher")).click()
    page.locator(".jp-LauncherCard", has_text="Cellburst").click()
    expect(panel.node).to_be_visible()
