"""The notebook side in real JupyterLab: the run card, its stop button, remote widgets, progress bars and `input()`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from .lab import WAIT_MS, LabServer, Notebook, new_page

pytestmark = [pytest.mark.browser, pytest.mark.gvisor]

CARD_BYTES = 2048
LINE_PIXELS = 24

TRAIN = """%%modal gpu=A100
import time
end = time.monotonic() + 3
step = 0
while time.monotonic() < end:
    print("step", step)
    step += 1
    time.sleep(0.3)
    total = sum(range(1_000_000))"""

FOREVER = """%%modal
import time
print("it runs")
while True:
    time.sleep(0.05)"""

SLIDER = """%%modal
import ipywidgets, time
slider = ipywidgets.IntSlider(value=3, min=0, max=10)
display(slider)
end = time.monotonic() + 30
while slider.value == 3 and time.monotonic() < end:
    time.sleep(0.05)
print("the code saw", slider.value)"""

PROGRESS = """%%modal
from tqdm.auto import tqdm
for number in tqdm(range(20), desc="training"):
    pass"""

QUESTION = """%%modal
answer = input("your name? ")
print("hello", answer)"""

KEPT = """%%modal
import ipywidgets
kept = ipywidgets.IntSlider(value=2, min=0, max=10)
display(kept)"""

KEPT_VALUE = """%%modal
print("kept is", kept.value)"""

STOP = "%modal stop"

CELLS = [FOREVER, SLIDER, PROGRESS, QUESTION, KEPT, KEPT_VALUE]


@pytest.fixture(scope="module")
def warm(lab: LabServer, browser: Browser) -> Iterator[Notebook]:
    """An open notebook with one cell for each test; the first to run starts its container."""
    with new_page(browser) as page:
        yield Notebook(page, lab, lab.notebook("warm", CELLS)).open()


def give_back(notebook: Notebook, number: int) -> None:
    """End the notebook's session: a machine of two cores has no room for three."""
    notebook.run(number)
    notebook.wait_done(number)


def move_to_the_end(notebook: Notebook, number: int) -> None:
    """Move a cell's slider to its greatest value, 10."""
    track = notebook.cell(number).locator(".noUi-target")
    track.wait_for(timeout=WAIT_MS)
    box = track.bounding_box()
    assert box is not None
    track.click(position={"x": box["width"] - 1, "y": box["height"] / 2})


def test_a_start_is_stopped_and_the_cell_runs_again(lab: LabServer, page: Page) -> None:
    """The first test of the module, so that what is stopped is the start of the gateway itself."""
    notebook = Notebook(page, lab, lab.notebook("early", ["%%modal\nprint(6 * 7, 'there')", STOP])).open()
    cell = notebook.run(0)
    cell.get_by_role("button", name="Stop").click(timeout=WAIT_MS)
    notebook.wait_done(0)
    expect(cell.locator(".jp-OutputArea")).to_contain_text("KeyboardInterrupt")
    notebook.run(0)
    expect(cell.locator(".jp-OutputArea-output", has_text="42 there")).to_be_visible(timeout=WAIT_MS)
    give_back(notebook, 1)


def test_the_card_of_a_first_cell(lab: LabServer, page: Page) -> None:
    notebook = Notebook(page, lab, lab.notebook("first", [TRAIN, STOP])).open()
    cell = notebook.run(0)
    card = cell.locator(".cb-card")
    expect(card.locator(".cb-status")).to_contain_text("running", timeout=WAIT_MS)
    expect(card.locator(".cb-hardware")).to_have_text("A100-40GB")
    expect(card.locator(".cb-simulated")).to_have_text("SIMULATED")
    expect(card.locator(".cb-place")).to_contain_text("gvisor on ")
    expect(card.locator(".cb-started")).to_contain_text(re.compile(r"booted \d+\.\d s"))
    expect(card.locator(".cb-cost")).to_contain_text(re.compile(r"^\$0\.\d+ at \$\d+\.\d\d/h$"))
    for name in ("CPU", "memory"):
        chart = card.get_by_role("img", name=re.compile(f"^{name} over the last .* now "))
        expect(chart).to_be_visible(timeout=WAIT_MS)
    expect(card.locator("figcaption").first).to_have_text("GPU (simulated) 0 %, 0 MiB of 40.0 GiB, 0 W, 0 °C")
    memory = card.get_by_role("img", name=re.compile("^memory"))
    expect(memory).not_to_have_attribute("aria-label", memory.get_attribute("aria-label") or "", timeout=5000)  # alive
    output = cell.locator(".jp-RenderedText", has_text="step 0")
    above, below = card.bounding_box(), output.bounding_box()
    assert above is not None and below is not None
    assert above["y"] + above["height"] <= below["y"], "the card stands above the output"

    notebook.wait_done(0)
    check_folded(notebook)
    book = notebook.save()
    outputs = book["cells"][0]["outputs"]
    cards = [made for made in outputs if "cellburst" in made.get("metadata", {})]
    assert len(cards) == 1
    assert len(json.dumps(cards[0]).encode()) <= CARD_BYTES
    assert "cellburst" not in json.dumps(book["metadata"].get("widgets", {}))
    assert "frozen modules" not in json.dumps(outputs)
    assert [made["name"] for made in outputs if made["output_type"] == "stream"] == ["stdout"]

    page.reload()
    notebook.wait_loaded()
    check_folded(notebook)
    give_back(notebook, 1)


def check_folded(notebook: Notebook) -> None:
    """The card is one line of plain text, on top of the output."""
    cell = notebook.cell(0)
    expect(cell.locator(".cb-card")).to_have_count(0)
    line = cell.locator(".jp-OutputArea-output").first
    expect(line).to_contain_text(re.compile(r"^A100-40GB SIMULATED · gvisor on .* · ran \d\.\d s · \$.* at \$.*/h$"))
    expect(line.locator("mjx-container")).to_have_count(0)  # two dollar signs are no formula
    box = line.bounding_box()
    assert box is not None and box["height"] <= LINE_PIXELS


def test_the_stop_button_interrupts_while_the_cell_runs(warm: Notebook) -> None:
    cell = warm.run(0)
    expect(cell.locator(".jp-OutputArea-output", has_text="it runs")).to_be_visible(timeout=WAIT_MS)
    stop = cell.get_by_role("button", name="Stop")
    stop.focus()
    warm.page.keyboard.press("Enter")  # by the keyboard: this key must not reach JupyterLab's own shortcuts
    warm.wait_done(0)
    expect(cell.locator(".jp-OutputArea-output", has_text="KeyboardInterrupt")).to_be_visible()
    expect(cell.locator(".jp-OutputArea-output").first).to_contain_text("interrupted, ran ")
    expect(cell.locator(".cb-card")).to_have_count(0)


def test_running_code_sees_a_slider_that_is_moved(warm: Notebook) -> None:
    cell = warm.run(1)
    move_to_the_end(warm, 1)
    output = cell.locator(".jp-OutputArea-output", has_text="the code saw")
    # the line that says why the slider itself stayed there comes into the same output, at once or later
    expect(output).to_have_text(re.compile(r"^the code saw 10\n"), timeout=WAIT_MS)
    warm.wait_done(1)
    expect(output).to_contain_text("stayed there: slider")


def test_a_progress_bar_is_a_widget(warm: Notebook) -> None:
    cell = warm.run(2)
    warm.wait_done(2)
    expect(cell.locator(".widget-hbox")).to_contain_text(re.compile("training.*100%.*20/20", re.DOTALL))
    expect(cell.locator(".progress-bar")).to_be_visible()


def test_input_asks_in_the_notebook(warm: Notebook) -> None:
    cell = warm.run(3)
    box = cell.locator(".jp-Stdin-input")
    box.wait_for(timeout=WAIT_MS)
    expect(cell.locator(".jp-Stdin-prompt")).to_contain_text("your name?")
    box.fill("Ada")
    box.press("Enter")
    warm.wait_done(3)
    expect(cell.locator(".jp-OutputArea-output", has_text="hello Ada")).to_be_visible()


def test_a_remote_widget_lives_on_after_a_reload(warm: Notebook) -> None:
    cell = warm.run(4)
    expect(cell.locator(".widget-readout")).to_have_text("2", timeout=WAIT_MS)
    warm.wait_done(4)
    warm.save()
    warm.page.reload()
    warm.wait_loaded()
    expect(cell.locator(".widget-readout")).to_have_text("2", timeout=WAIT_MS)
    move_to_the_end(warm, 4)
    expect(cell.locator(".widget-readout")).to_have_text("10")
    asked = warm.run(5)
    warm.wait_done(5)
    expect(asked.locator(".jp-OutputArea-output")).to_have_text("kept is 10")
