"""The panel with 500 sessions, names that would like to be HTML, a window that nobody sees, and a person who is logged out."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Route, expect

from bench.harness import House

from .crowd import HOSTILE, in_thread, sessions_of, stop
from .lab import WAIT_MS, LabServer, new_page
from .marks import NEEDS_PANEL
from .test_panel import Panel

COUNT = 500
MAX_ROWS_MADE = 40  # of 500: those in sight of 420 px, and a few more on both sides
pytestmark = NEEDS_PANEL
SHOW = """shown => {
    Object.defineProperty(document, 'hidden', {value: !shown, configurable: true});
    document.dispatchEvent(new Event('visibilitychange'));
}"""


@pytest.fixture(scope="module")
def panel(lab: LabServer, browser: Browser) -> Iterator[Panel]:
    """One window for the module; opening the panel starts the gateway."""
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        yield Panel(page, lab).open()


def test_names_are_shown_as_text_whatever_they_are(panel: Panel, place: House) -> None:
    in_thread(place, [f"/work/{name}" for name in HOSTILE])
    now = panel.section("now")
    expect(now.locator(".cb-row")).to_have_count(len(HOSTILE))
    shown = now.locator(".cb-name").all_text_contents()
    assert sorted(shown) == sorted(HOSTILE)
    assert panel.page.evaluate("window.pwned") is None
    assert now.locator("script, img").count() == 0
    panel.page.evaluate("document.getElementById('cellburst-panel').style.width = '250px'")
    too_wide = "(e => e.scrollWidth - e.clientWidth)(document.getElementById('cellburst-panel'))"
    assert panel.page.evaluate(too_wide) <= 0
    panel.page.evaluate("document.getElementById('cellburst-panel').style.width = ''")
    row = now.locator(".cb-row", has_text="<script>")
    row.get_by_role("button", name=re.compile("^Stop")).click()
    dialog = panel.page.locator(".jp-Dialog")
    expect(dialog).to_contain_text(HOSTILE[0])
    dialog.get_by_role("button", name="Stop").click()
    expect(row).to_have_count(0)
    assert panel.page.evaluate("window.pwned") is None


def test_of_500_sessions_only_those_in_sight_are_made_and_the_last_is_reached_by_keyboard(
    panel: Panel, place: House
) -> None:
    in_thread(place, [f"/work/many-{number:03}.ipynb" for number in range(COUNT)])
    total = len(sessions_of(place))
    assert total >= COUNT
    now = panel.section("now")
    rows = now.locator(".cb-row")
    expect(rows.first).to_have_attribute("aria-setsize", str(total))
    assert rows.count() <= MAX_ROWS_MADE
    seen = {int(place or 0) for place in positions(panel)}
    assert 1 in seen and total not in seen
    scroll = now.locator(".cb-scroll")
    scroll.focus()
    panel.page.keyboard.press("End")
    last = now.locator(f'.cb-row[aria-posinset="{total}"]')
    expect(last).to_be_in_viewport()
    assert rows.count() <= MAX_ROWS_MADE
    panel.page.keyboard.press("Home")
    first = now.locator('.cb-row[aria-posinset="1"]')
    expect(first).to_be_in_viewport()
    expect(last).to_have_count(0)
    panel.page.keyboard.press("PageDown")
    expect(first).not_to_be_in_viewport()
    # Tab goes on from row to row, also to those that were not made yet.
    panel.page.keyboard.press("Home")
    expect(first).to_be_in_viewport()
    for _ in range(60):
        panel.page.keyboard.press("Tab")
        panel.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    focused = panel.page.evaluate("+(document.activeElement.closest('.cb-row')?.getAttribute('aria-posinset') ?? 0)")
    assert focused > 15, "three buttons a row: the focus is still in the list"


def positions(panel: Panel) -> list[str]:
    """Which rows are there."""
    made: list[str] = panel.page.eval_on_selector_all(
        '[data-section="now"] .cb-row', "rows => rows.map(row => row.getAttribute('aria-posinset'))"
    )
    return made


def test_a_window_that_nobody_sees_asks_nothing_and_goes_on_when_it_is_seen(panel: Panel, place: House) -> None:
    page, asked = panel.page, []
    victim = sessions_of(place)["/work/many-000.ipynb"]
    volumes = panel.section("volumes")
    expect(volumes).to_contain_text("No volumes yet")
    page.clock.install()
    volumes.locator(".cb-section-button").click()  # folded and unfolded: its timer is one of the clock that is set here
    expect(panel.section("volumes")).to_contain_text("No volumes yet")
    with page.expect_request(lambda request: "/cellburst/volumes" in request.url):
        page.clock.run_for(11_000)  # lists are asked for every ten seconds of a window that is seen
    with page.expect_websocket(lambda socket: "/cellburst/live" in socket.url, timeout=WAIT_MS) as dialled:
        page.evaluate(SHOW, False)
        page.on("request", lambda request: asked.append(request.url) if "/cellburst/" in request.url else None)
        stop(place, victim)
        page.clock.run_for(120_000)
        with page.expect_request("**/api/status*"):  # requests are told in their order: those before it are known then
            page.evaluate("void fetch(document.baseURI.split('/lab')[0] + '/api/status')")
        assert asked == []
        page.clock.resume()
        page.evaluate(SHOW, True)
    assert not dialled.value.is_closed()
    total = len(sessions_of(place))
    expect(panel.section("now").locator(".cb-row").first).to_have_attribute("aria-setsize", str(total))


def test_in_forced_colours_bars_and_states_keep_a_shape(panel: Panel) -> None:
    page = panel.page
    page.emulate_media(forced_colors="active")
    try:
        dot = panel.section("now").locator(".cb-dot").first
        colours = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(document.body).backgroundColor]"
        shape, ground = dot.evaluate(colours)
        assert shape != ground and shape != "rgba(0, 0, 0, 0)"
    finally:
        page.emulate_media(forced_colors="none")


def test_who_is_logged_out_is_told_so_and_goes_on_after_the_login(panel: Panel, lab: LabServer) -> None:
    """The last of the module: the window's login is taken away and given back."""
    page = panel.page
    cookies = page.context.cookies()

    def without_token(route: Route) -> None:
        headers = {name: value for name, value in route.request.headers.items() if name.lower() != "authorization"}
        route.continue_(headers=headers)

    page.route(f"{lab.url}/**", without_token)
    page.context.clear_cookies()
    page.evaluate(SHOW, False)
    page.evaluate(SHOW, True)
    banner = panel.node.locator(".cb-banner")
    expect(banner).to_contain_text("You are logged out of Jupyter", timeout=WAIT_MS)
    expect(banner.get_by_role("link", name="Log in again")).to_have_attribute("href", re.compile(r"/login$"))
    assert panel.section("now").locator(".cb-row").count() > 0  # what was known stays
    page.unroute(f"{lab.url}/**", without_token)
    page.context.add_cookies(cookies)
    expect(banner).to_have_count(0, timeout=WAIT_MS)
