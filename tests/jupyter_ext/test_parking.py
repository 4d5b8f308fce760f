"""Parked sessions as a notebook shows them: a real ipykernel against a fake gateway that speaks the true protocol."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cellburst.parked import age_text, parked_text, usage_text
from cellburst_jupyter.card_model import CardModel
from cellburst_jupyter.follow import started_lines
from cellburst_jupyter.line_magics import park_lines
from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.states import SessionState
from tests.fakes.fake_gateway_for_kernel import BOX, Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook
from tests.jupyter_ext.test_cells import texts

LOCK = m.RemoteName(
    name="guard", type="lock", why="unpicklable", detail="guard: lock: TypeError: cannot pickle '_thread.lock' object"
)
BIG = m.RemoteName(name="big", type="ndarray", size_bytes=800_000_000, shape="(10000, 10000)")
WEEK = 1_800_000_000.0
PARKED = m.ParkedInfo(
    id="p-1", session="s-1", size_bytes=1_200_000_000, names=["big", "x"], worker="w-1", parked_unix_seconds=WEEK - 604800,
    expires_unix_seconds=WEEK,
)  # fmt: skip
DATE = time.strftime("%a %d %b %H:%M", time.localtime(WEEK))


def resuming(start: m.StartKind, container: str = "c-2", **fields: Any) -> Any:
    """A script: the session is brought back, asks for nothing, runs and ends."""

    async def play(cell: Cell) -> None:
        cell.session.resumed(cell, container, start, **fields)
        cell.done()
        cell.end()

    return play


async def makes_big(cell: Cell) -> None:
    cell.emit(m.ContainerStarted(container=BOX))
    cell.emit(m.CellStarted())
    cell.done(stayed=[BIG])
    cell.end()


def lines(output: list[dict[str, Any]]) -> str:
    """What was printed, and the run card's text."""
    shown = [x["content"]["data"]["text/plain"] for x in output if "data" in x["content"]]
    return texts(output) + texts(output, "stderr") + "\n".join(shown)


def parts(cell: Cell) -> dict[str, str]:
    """Where the values of a cell's names are, as the kernel sent it."""
    return {name: part.at for group in cell.request.names for name in group.names for part in group.parts}


def test_a_resumed_cell_says_so_and_sends_nothing_that_is_there(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    gateway.scripts.update(first=makes_big, play=resuming("snapshot"))
    notebook.run("x = list(range(100))")
    notebook.run("%%modal gpu=A100 memory=2GiB\n#!first\nx; big = 1")
    session = gateway.sessions["default"]
    assert parts(session.cells[0])["x"] == "inline"
    parked = m.ParkedInfo(id="p-1", session="s-1", resources=session.cells[0].request.resources)
    gateway.tell(session, lambda: session.park(parked))
    reply, output = notebook.run("%%modal\n#!play\nx, big")
    assert reply["status"] == "ok"
    assert "resumed in 0.4 s" in lines(output)
    assert "gone" not in lines(output)
    request = session.cells[1].request
    assert parts(session.cells[1])["x"] == "there"
    assert request.resources is not None
    assert request.resources.memory_mib == 2048
    assert notebook.run("%%modal\nx, big")[0]["status"] == "ok"
    assert parts(session.cells[2])["x"] == "there"


def test_names_that_did_not_come_back_are_a_line_each(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    boot = [
        m.PhaseTime(name="boot", seconds=1.5, detail="snapshot unusable: numpy/core.so was replaced; names by value")
    ]
    gateway.scripts.update(first=makes_big, play=resuming("names", lost=[LOCK], phases=boot))
    notebook.run("x = list(range(100))")
    notebook.run("%%modal gpu=A100\n#!first\nx; big = 1")
    session = gateway.sessions["default"]
    gateway.tell(session, lambda: session.park(PARKED))
    reply, output = notebook.run("%%modal\n#!play\nx, big")
    assert reply["status"] == "ok"
    shown = lines(output)
    assert "came back with its names only (snapshot unusable: numpy/core.so was replaced; names by value)" in shown
    assert "did not come back: guard (lock): TypeError: cannot pickle '_thread.lock' object" in shown
    assert "resumed in 1.5 s" in shown
    assert notebook.run("%%modal\nbig")[0]["status"] == "ok"  # it came back: its handle is good
    assert notebook.value("big.lost") == "False"


def test_names_that_are_lost_are_said_and_their_handles_are_void(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    gateway.scripts.update(first=makes_big, play=resuming("boot", names_lost=True))
    notebook.run("%%modal gpu=A100\n#!first\nbig = 1")
    session = gateway.sessions["default"]
    gateway.tell(session, lambda: session.park(PARKED))
    _, output = notebook.run("%%modal\n#!play\n1")
    assert "earlier container is gone, and the names that lived there: big" in lines(output)
    reply, _ = notebook.run("%%modal\nbig")
    assert "gone" in reply["evalue"]


def test_a_session_resumed_while_no_cell_looked_is_gone_on_with(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("x = list(range(100))")
    notebook.run("%%modal gpu=A100\nx")
    session = gateway.sessions["default"]
    box = m.ContainerInfo(id="c-9", machine="fakebox")

    def comes_back() -> None:
        session.park(PARKED)
        session.emit(m.ContainerStarted(container=box, start="snapshot"), "cancelled")
        session.info.container, session.info.parked, session.info.state = box, None, SessionState.IDLE
        session.tell_info()

    gateway.tell(session, comes_back)
    notebook.run("%%modal\nx")
    assert parts(session.cells[1])["x"] == "there"


def test_park_says_what_is_kept_where_and_for_how_long(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.IDLE, container=BOX)
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    gateway.answers[m.ParkSession] = m.SessionParked(parked=PARKED, seconds=0.8)
    notebook.run("%%modal\n1")
    reply, output = notebook.run("%modal park")
    assert reply["status"] == "ok"
    assert (
        f"Parked: 1.2 GB on w-1, kept until {DATE}; nothing runs, nothing costs. The next cell brings it back."
        in texts(output)
    )
    assert [c.session for c in gateway.controls if isinstance(c, m.ParkSession)] == ["s-1"]


def test_status_shows_a_parked_session_with_size_age_and_expiry(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%modal\n1")
    path = gateway.sessions["default"].opened.notebook
    rows = [
        m.SessionRow(id="s-1", notebook=path, name="default", state=SessionState.PARKED, parked=PARKED, names=["big"]),
        m.SessionRow(id="s-2", notebook=path, name="two", state=SessionState.PARKED),
    ]
    gateway.answers[m.GetStatus] = m.Status(
        gateway_pid=1, gateway_url="u", version="v", uptime_seconds=1.0, data_folder="d", sessions=rows
    )
    _, output = notebook.run("%modal status")
    assert "session default: parked · 1.2 GB on w-1, " in texts(output)
    assert f"kept until {DATE} · costs nothing · names: big" in texts(output)
    assert "session two: parked · what was kept is gone from its worker" in texts(output)


def test_names_and_files_of_a_parked_session_say_the_way_back(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%modal\n1")
    session = gateway.sessions["default"]
    gateway.tell(session, lambda: session.park(PARKED))
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.PARKED, parked=PARKED)
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    gateway.side = lambda request: m.SideReply(
        id=request.id, error=ErrorInfo(code=ErrorCode.NOT_FOUND, message="session 'default' is parked")
    )
    reply, _ = notebook.run("%modal names")
    assert "is parked" in reply["evalue"]


def test_a_session_that_ended_elsewhere_is_followed_by_a_new_one(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    gateway.scripts["first"] = makes_big
    notebook.run("%%modal gpu=A100\n#!first\nbig = 1")
    old = gateway.sessions.pop("default")
    gateway.tell(old, old.ended)
    reply, output = notebook.run("%%modal\n1")
    assert reply["status"] == "ok"
    assert "session 'default' has ended; this cell starts a new one. Names that lived there are gone: big" in lines(
        output
    )
    assert [cell.request.code for cell in gateway.sessions["default"].cells] == ["# %%modal\n1\n"]
    assert len(old.cells) == 1


def test_after_a_restart_a_parked_session_is_offered(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%modal\n1")
    session = gateway.sessions["default"]
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=30)
    session.info.superseded = m.SessionRow(
        id="s-0", notebook="n", name="default", state=SessionState.SUPERSEDED, parked=PARKED, names=["big"]
    )
    _, output = notebook.run("%%modal\n1")
    assert f"of before the restart is parked (1.2 GB on w-1, kept until {DATE}) with big: `%modal attach`" in texts(
        output
    )


# -- words --------------------------------------------------------------------------------------------------------------


def test_the_cards_line_of_a_resume() -> None:
    model = CardModel(asked="A100", began=0.0, resumed=True)
    model.took([m.PhaseTime(name="restore", seconds=0.31), m.PhaseTime(name="enter", seconds=0.11)])
    assert model.started() == "resumed in 0.4 s"
    model.took([m.PhaseTime(name="queue", seconds=3.0)])
    assert model.started() == "waited 3.0 s, resumed in 0.4 s"
    assert "waited 3.0 s, resumed in 0.4 s" in model.line(0.0, short=True)
    model.resumed = False
    assert model.started() == "waited 3.0 s, restored 0.3 s, entered 0.1 s"


def test_many_lost_names_are_counted() -> None:
    lost = [m.RemoteName(name=f"n{i}", type="lock") for i in range(13)]
    said = started_lines(m.ContainerStarted(container=BOX, start="names", lost=lost), [])
    assert said[0] == "the session came back with its names only: its threads, open files and widgets are gone"
    assert len(said) == 12
    assert said[-1] == "did not come back: 3 more names"
    assert started_lines(m.ContainerStarted(container=BOX, start="snapshot"), ["x"]) == []
    assert started_lines(m.ContainerStarted(container=BOX), ["x"]) == []


def test_a_session_of_which_only_names_are_kept_says_what_cannot_come_back() -> None:
    parked = m.ParkedInfo(id="p", session="s", kind="names", size_bytes=1000, lost=[LOCK])
    assert park_lines(m.SessionParked(parked=parked, notes=["a note"])) == [
        "Parked: 1.0 kB (names only); nothing runs, nothing costs. The next cell brings it back.",
        "only its names are kept: threads, open files and widgets do not come back",
        "cannot come back: guard (lock)",
        "a note",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (40, "40 s"), (60, "1 min"), (3 * 3600 + 5, "3 h"), (47 * 3600, "47 h"), (6 * 86400, "6 days")],
)
def test_ages(seconds: float, words: str) -> None:
    assert age_text(seconds) == words


def test_what_is_kept_in_words() -> None:
    assert parked_text(PARKED, WEEK - 604800 + 7200) == f"1.2 GB on w-1, 2 h ago, kept until {DATE}"
    away = m.ParkedInfo(id="p", session="s", worker="w-1")
    assert parked_text(away, WEEK) == "not known until its worker w-1 is back"
    usage = m.SnapshotUsage(
        template_count=1, template_bytes=10**6, parked_count=2, parked_bytes=3 * 10**9, limit_bytes=10**10
    )
    assert usage_text(usage) == "2 parked 3.0 GB, 1 template 1.0 MB, at most 10.0 GB together"
    warm = m.SnapshotUsage(warm=[m.WarmContainer(id="c", image="i", memory_mib=2048)])
    assert usage_text(warm) == "0 parked 0 B, 0 templates 0 B, 1 warm with 2.0 GiB of memory"


def test_resume_brings_a_parked_session_back_without_a_cell_of_ones_own(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    gateway.scripts.update(first=makes_big, ok=resuming("snapshot"))
    notebook.run("%%modal gpu=A100 memory=2GiB\n#!first\nbig = 1")
    session = gateway.sessions["default"]
    had = session.cells[0].request.resources
    row = m.SessionRow(
        id="s-1",
        notebook="n",
        name="default",
        state=SessionState.IDLE,
        kernel_id=session.opened.kernel_id,
        container=BOX,
    )
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    reply, output = notebook.run("%modal resume")
    assert reply["status"] == "ok" and "is not parked: it is idle" in lines(output)
    assert len(session.cells) == 1
    parked = m.ParkedInfo(id="p-1", session="s-1", resources=had)
    gateway.tell(session, lambda: session.park(parked))
    row.state, row.container, row.parked = SessionState.PARKED, None, parked
    reply, output = notebook.run("%modal resume")
    assert reply["status"] == "ok" and "session 'default' is back" in lines(output)
    request = session.cells[1].request
    assert request.code.endswith("\npass") and request.resources is not None and had is not None
    assert (request.resources.gpus, request.resources.memory_mib) == (had.gpus, had.memory_mib)
