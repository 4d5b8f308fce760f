"""What the panel says of money and of what is put away: the month's budget, idle sessions, kept machines, park and resume."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from .lab import WAIT_MS, LabServer, Notebook, new_page
from .marks import NEEDS_PANEL
from .test_panel import Panel

CELLS = ["%%modal gpu=A100 card=off\nnumber = 6 * 7\nprint('made', number)", "%%modal card=off\nprint('still', number)"]
pytestmark = NEEDS_PANEL


@pytest.fixture(scope="module")
def notebook(lab: LabServer, browser: Browser) -> Iterator[Notebook]:
    """One window on a notebook whose first cell has run, so that its session is idle."""
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        made = Notebook(page, lab, lab.notebook("money", CELLS)).open()
        cell = made.run(0)
        expect(cell).to_contain_text("made 42", timeout=2 * WAIT_MS)
        made.wait_done(0)
        page.get_by_role("tab", name="Cellburst").click()
        yield made


@pytest.fixture
def panel(notebook: Notebook, lab: LabServer) -> Panel:
    return Panel(notebook.page, lab)


def set_budget(panel: Panel, cost: Locator, words: str, amount: str) -> None:
    cost.get_by_role("button", name=words).click()
    dialog = panel.page.locator(".jp-Dialog")
    dialog.locator("input").fill(amount)
    dialog.get_by_role("button", name="Keep").click()


def test_the_months_budget_is_a_bar_that_says_when_it_is_passed(panel: Panel) -> None:
    cost = panel.section("cost")
    set_budget(panel, cost, "Set a budget for the month", "much")
    expect(panel.page.locator(".Toastify__toast, .jp-Notification-Toast").first).to_contain_text("not an amount")
    set_budget(panel, cost, "Set a budget for the month", "$500")
    meter = cost.get_by_role("meter", name="This month")
    expect(meter).to_have_attribute("aria-valuetext", re.compile(r"^<?\$0\.\d+ of \$500\.00$"))
    expect(cost.locator(".cb-budget")).to_contain_text(re.compile(r"At what runs now it lasts \d+ days"))
    set_budget(panel, cost, "Change the budget of the month", "0.0000001")
    expect(cost.get_by_role("alert")).to_contain_text("over the budget. Schedules run again next month")
    set_budget(panel, cost, "Change the budget of the month", "")
    expect(cost.get_by_role("button", name="Set a budget for the month")).to_be_visible()


def test_idle_money_is_named_and_what_a_kept_machine_would_cost(panel: Panel) -> None:
    cost = panel.section("cost")
    expect(cost.get_by_role("list", name="Idle now")).to_contain_text(
        re.compile(r"money\.ipynb is idle for \d+ \w+ at \$\d+\.\d\d/h")
    )
    expect(cost.locator("caption", has_text="Idle:")).to_contain_text(re.compile(r"Idle: <?\$0\.\d+ of the seven days"))
    expect(cost.locator(".cb-kept")).to_contain_text(
        re.compile(
            r"A100-40GB \(simulated\): busy <?1 % of the week for <?\$0\.\d+\. Reserved would cost \$334\.32 a week\."
        )
    )
    expect(cost.locator(".cb-kept")).to_contain_text("lambda.ai")


def test_a_session_is_parked_and_resumed_by_its_notebooks_kernel(panel: Panel, notebook: Notebook) -> None:
    now, cost = panel.section("now"), panel.section("cost")
    cost.get_by_role("button", name=re.compile("^Park money.ipynb")).click()
    row = now.locator(".cb-row", has_text="money.ipynb")
    expect(row).to_contain_text("resumes at its next cell", timeout=2 * WAIT_MS)
    expect(cost.get_by_role("list", name="Idle now")).to_have_count(0)
    row.get_by_role("button", name=re.compile("^Resume money.ipynb")).click()
    expect(row.locator(".cb-money")).to_contain_text("/h", timeout=2 * WAIT_MS)
    expect(row.get_by_role("button", name=re.compile("^Resume"))).to_have_count(0)
    cell = notebook.run(1)
    expect(cell).to_contain_text("still 42", timeout=2 * WAIT_MS)
    assert notebook.cell(0).inner_text().count("made 42") == 1  # what resumed it left nothing in the notebook
    notebook.wait_done(1)


def test_a_parked_session_without_a_kernel_says_how_it_comes_back(panel: Panel, notebook: Notebook) -> None:
    """The last of the module: the notebook's kernel is ended."""
    page = panel.page
    row = panel.section("now").locator(".cb-row", has_text="money.ipynb")
    row.get_by_role("button", name=re.compile("^Park money.ipynb")).click()
    expect(row.get_by_role("button", name=re.compile("^Resume"))).to_be_visible(timeout=2 * WAIT_MS)
    headers = {"Authorization": f"token {panel.lab.token}"}
    for session in page.request.get(f"{panel.lab.url}/api/sessions", headers=headers).json():
        page.request.delete(f"{panel.lab.url}/api/sessions/{session['id']}", headers=headers)
    row.get_by_role("button", name=re.compile("^Resume")).click()
    expect(
        page.locator(".jp-Notification-Toast, .Toastify__toast", has_text="No kernel of money.ipynb runs").first
    ).to_be_visible()
