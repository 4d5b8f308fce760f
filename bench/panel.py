"""The panel in a real JupyterLab and a real Chromium: its first content, a change's way to it, what it costs JupyterLab's start, its size,
and a gigabyte that goes to a volume through the browser.

Figures of one session each come from fresh pages; those that are compared are taken in turn in the same run. Times are of the page's
own clock (`performance`), a change's of the machine's wall clock on both ends.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import statistics
import time
from collections.abc import Iterator

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from cellburst_protocol.messages import StopSession
from tests.browser.crowd import in_thread, sessions_of
from tests.browser.lab import CHROMIUM_FLAGS, LabServer, lab_server, new_page

from .gateway_load import ROOT
from .harness import House
from .report import Figure
from .volumes import _write_big

SESSIONS, VOLUMES = 100, 50
ROUNDS = 5
WAIT_MS = 120_000
BIG_BYTES = 1_000_000_000
BUILT = ROOT / "jupyter_ext" / "cellburst_jupyter" / "labextension" / "static"
EXTENSION = "@cellburst/labextension"
SAMPLE_MS = 100
KEPT_MS = 2500  # within which JupyterLab has kept how it was left

TAB = '.lm-TabBar-tab[data-id="cellburst-panel"]'
OPENED = """section => {
    window.benchOpened = new Promise(done => {
        const panel = document.getElementById('cellburst-panel');
        let start = null;
        document.addEventListener('pointerdown', () => { start = performance.now(); }, {capture: true, once: true});
        const look = () => start !== null && panel.offsetParent !== null
            && panel.querySelector(`[data-section="${section}"] .cb-row`)
            && requestAnimationFrame(() => done(performance.now() - start));
        new MutationObserver(look).observe(document.body, {childList: true, subtree: true, attributes: true});
    });
}"""
GONE = """() => {
    window.benchGone = new Promise(done => {
        const list = document.querySelector('#cellburst-panel [data-section="now"]');
        const there = () => list.querySelector('.cb-row')?.getAttribute('aria-setsize');
        const before = there();
        new MutationObserver(() => there() !== before && done(Date.now())).observe(list, {childList: true, subtree: true, attributes: true});
    });
}"""


def panel(house: House) -> Iterator[Figure]:
    """All of it. Raises RuntimeError where the panel is not built (no Node)."""
    if not list(BUILT.glob("remoteEntry*.js")):
        raise RuntimeError("the panel is not built: `scripts/panel.sh` with Node 20.19 or later")
    yield _size()
    program = shutil.which("chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        try:
            with lab_server(house) as server:
                yield from _shown(house, server, chromium)
                yield from _upload(server, chromium)
            yield _start(house, chromium)
        finally:
            chromium.close()


def _size() -> Figure:
    files = sorted(BUILT.glob("*.js"))
    total = sum(len(gzip.compress(file.read_bytes(), 9)) for file in files)
    return Figure(
        "the extension's JavaScript, compressed", total / 1000, "KB", 200.0, "max",
        f"{len(files)} files, gzip; {sum(file.stat().st_size for file in files) / 1000:.0f} KB as they are",
    )  # fmt: skip


# -- what is shown ---------------------------------------------------------------------------------------------------------


def _shown(house: House, server: LabServer, chromium: Browser) -> Iterator[Figure]:
    with new_page(chromium) as page:  # makes the gateway start
        _open_lab(page, server, "first")
        _opened(page, "machines")
    in_thread(house, [f"/work/notebook-{number:03}.ipynb" for number in range(SESSIONS)])
    with new_page(chromium) as page:
        for number in range(VOLUMES):
            answer = page.request.post(
                f"{server.url}/cellburst/volumes", data={"name": f"volume-{number:02}"},
                headers={"Authorization": f"token {server.token}"},
            )  # fmt: skip
            assert answer.ok, answer.text()
    opened: dict[str, list[float]] = {"now": [], "volumes": []}
    for number in range(ROUNDS):
        for section, times in opened.items():
            place = f"{section}-{number}"
            if section == "volumes":
                with new_page(chromium) as page:
                    _unfold(page, server, place, section)
            with new_page(chromium) as page:
                _open_lab(page, server, place)
                times.append(_opened(page, section))
    worst = max(opened, key=lambda section: statistics.median(opened[section]))
    yield Figure(
        f"panel opened to first content, {SESSIONS} sessions, {VOLUMES} volumes", statistics.median(opened[worst]), "ms", 500.0, "max",
        "; ".join(f"{name}: {', '.join(f'{t:.0f}' for t in times)}" for name, times in opened.items()) + "; median of the slower",
    )  # fmt: skip
    with new_page(chromium) as page:
        _open_lab(page, server, "change")
        _opened(page, "now")
        yield _change(house, page)


def _change(house: House, page: Page) -> Figure:
    late: list[float] = []
    victims = list(sessions_of(house).values())[: 4 * ROUNDS]
    for victim in victims:
        page.evaluate(GONE)
        began = time.time()
        in_thread(house, StopSession(session=victim))
        late.append(float(page.evaluate("window.benchGone")) - began * 1000)
    return Figure(
        "a session's change in the gateway to the panel", statistics.median(late), "ms", 500.0, "max",
        f"from before it is asked for; slowest of {len(late)}: {max(late):.0f} ms",
    )  # fmt: skip


def _opened(page: Page, section: str) -> float:
    """Press the panel's tab; milliseconds until a row of the section is painted."""
    page.evaluate(OPENED, section)
    page.locator(TAB).click()
    return float(page.evaluate("window.benchOpened"))


def _open_lab(page: Page, server: LabServer, workspace: str) -> None:
    """JupyterLab is there as this workspace was left, and what it does at its start is over."""
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{server.url}/lab/workspaces/{workspace}?token={server.token}")
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    page.locator(TAB).wait_for()
    page.wait_for_load_state("networkidle")


def _unfold(page: Page, server: LabServer, workspace: str, section: str) -> None:
    """Leave a workspace with the section unfolded and the file browser in front."""
    _open_lab(page, server, workspace)
    page.locator(TAB).click()
    button = page.locator(f'[data-section="{section}"] .cb-section-button')
    if button.get_attribute("aria-expanded") == "false":
        button.click()
    page.locator('.lm-TabBar-tab[data-id="filebrowser"]').click()
    page.wait_for_timeout(KEPT_MS)


# -- an upload -------------------------------------------------------------------------------------------------------------


def _upload(server: LabServer, chromium: Browser) -> Iterator[Figure]:
    source = server.folder.parent / "big.bin"
    rates: list[float] = []
    growth: dict[str, list[float]] = {"page": [], "server": []}
    with new_page(chromium) as page:
        _unfold(page, server, "upload", "volumes")
        page.locator(TAB).click()
        page.get_by_role("button", name="volume-00", exact=True).click()
        picker = page.locator(".cb-folder input[type=file]")
        jupyter = psutil.Process(server.process.pid)
        renderer = _renderer(page)
        for _ in range(3):
            _write_big(source)
            before = {"page": _rss(renderer), "server": _rss(jupyter)}
            most = dict(before)
            began = time.monotonic()
            picker.set_input_files(str(source))
            page.locator(".cb-transfer").wait_for()
            while page.locator(".cb-transfer").count():
                most = {"page": max(most["page"], _rss(renderer)), "server": max(most["server"], _rss(jupyter))}
                replace = page.locator(".jp-Dialog").get_by_role("button", name="Replace")
                if replace.count():
                    replace.click()
                page.wait_for_timeout(SAMPLE_MS)
            rates.append(BIG_BYTES / 1e6 / (time.monotonic() - began))
            for name in growth:
                growth[name].append((most[name] - before[name]) / 1e6)
    source.unlink()
    shown = "; ".join(f"{name} +{', +'.join(f'{mb:.0f}' for mb in grown)} MB" for name, grown in growth.items())
    yield Figure(
        "upload of 1 GB to a volume through the browser", statistics.median(rates), "MB/s", 80.0, "min",
        f"rounds: {', '.join(f'{rate:.0f}' for rate in rates)}; memory: {shown}",
    )  # fmt: skip
    yield Figure(
        "upload of 1 GB: memory that browser and server take more, the larger", max(statistics.median(g) for g in growth.values()),
        "MB", 200.0, "max", f"of their resident memory, sampled; three pieces of 8 MiB are under way at once: {shown}",
    )  # fmt: skip


def _renderer(page: Page) -> psutil.Process:
    """The page's own process: the renderer that holds most after it has loaded."""
    del page
    found = [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in " ".join(p.cmdline())]
    return max(found, key=_rss)


def _rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


# -- JupyterLab's start ----------------------------------------------------------------------------------------------------


def _start(house: House, chromium: Browser) -> Figure:
    """With and without, in turn, a server and pages of their own each; the first page of each fills its caches and is not counted."""
    with contextlib.ExitStack() as stack:
        with_it = stack.enter_context(lab_server(house))
        without = stack.enter_context(lab_server(house, disabled=(EXTENSION,)))
        times: dict[str, list[float]] = {"with": [], "without": []}
        contexts = {name: stack.enter_context(new_page(chromium)) for name in times}
        for number in range(2 * ROUNDS + 1):
            for name, server in (("with", with_it), ("without", without)):
                took = _started(contexts[name], server, extension=name == "with")
                if number:
                    times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Figure(
        "JupyterLab's start with the extension against without", medians["with"] / medians["without"], "times", 1.05, "max",
        f"medians of {2 * ROUNDS}: {medians['with']:.0f} and {medians['without']:.0f} ms until the page is there and restored",
    )  # fmt: skip


def _started(page: Page, server: LabServer, *, extension: bool) -> float:
    page.set_default_timeout(WAIT_MS)
    page.goto("about:blank")
    page.goto(f"{server.url}/lab/workspaces/start?token={server.token}", wait_until="commit")
    page.locator("#jp-main-dock-panel").wait_for(state="attached")
    page.locator("#jupyterlab-splash").wait_for(
        state="detached"
    )  # it may be gone by now: a start can be quicker than this asks
    took = float(page.evaluate("performance.now()"))
    tab = page.locator(TAB)
    if extension:
        tab.wait_for()
    assert tab.count() == int(extension)
    return took
