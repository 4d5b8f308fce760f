"""Who is told how a run ended: a real HTTP server and a real SMTP server on loopback, tries and addresses that are not dialled."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.notify import mail_of
from cellburst_gateway.run_told import MissedSoFar, missed_before, missed_now, missed_words
from cellburst_gateway.schedule_runs import ScheduleRuns
from cellburst_gateway.scheduler import Planned
from cellburst_gateway.store_rows import Owner
from cellburst_gateway.store_schedules import RunRecord
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.schedules import Notify, RunReason, RunState, ScheduleSpec, When
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, SetClock, notebook

HOURLY = When(kind="every", every_seconds=3600)


def missed(count: int, at: int = 0) -> list[tuple[str, Planned]]:
    return [
        (f"r{at + n}", Planned(1000 * (at + n), RunState.MISSED, RunReason.GATEWAY_DOWN, count=2 if n == 0 else 1))
        for n in range(count)
    ]


def test_missed_instants_are_counted_over_looks_and_those_that_a_newer_one_replaces_are_not() -> None:
    before = missed_now(missed(3), None)
    assert before is not None and (before.count, before.first, before.last, before.row) == (4, 0, 2000, "r2")
    newer: list[tuple[str, Planned]] = [
        ("x", Planned(9000, RunState.MISSED, RunReason.NEWER)),
        ("q", Planned(9500, RunState.QUEUED)),
    ]
    assert missed_now(newer, None) is None and missed_now(newer, before) == before
    after = missed_now(missed(2, 10), before)
    assert after is not None and (after.count, after.first, after.last, after.row) == (7, 0, 11000, "r11")
    spec = ScheduleSpec(name="n", notebook="/n", when=When(kind="cron", cron="* * * * *", timezone="Europe/Berlin"))
    assert missed_words(after, spec).text() == (
        "7 times from Thu 1970-01-01 01:00 CET to Thu 1970-01-01 04:03:20 CET have passed while no gateway ran\n"
        "Next: `cellburst service install` keeps the gateway up"
    )
    one = MissedSoFar(1, 60, 60, "r", RunReason.LATE)
    assert (
        "its time Thu 1970-01-01 01:01 CET has passed and the gateway was too late" in missed_words(one, spec).message
    )


def test_what_an_earlier_gateway_missed_is_told_unless_its_last_look_came_to_an_end() -> None:
    rows = [
        RunRecord(
            id=id, owner=Owner("lab", "ann"), schedule="s", instant=one.instant, until=one.until or one.instant,
            instants=one.count, by_hand=False, state=one.state, reason=one.reason, error=None, attempt=1, session="",
            created=5000.0, started=None, ended=5000.0, cost_usd=Decimal(0), spec="", detail="",
        )
        for id, one in missed(3)
    ]  # fmt: skip
    assert missed_before(rows, 3000) == missed_now(missed(3), None) is not None
    assert missed_before(rows, 5001) is None, "nothing more was due: these are of a version that told nobody"
    assert missed_before(rows, None) is None and missed_before([], 3000) is None


@dataclass
class Hook:
    """A web server that keeps what it is sent; the first `failures` are answered with 500."""

    url: str = ""
    failures: int = 0
    got: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def hook() -> Iterator[Hook]:
    kept = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.failures -= 1
            if kept.failures < 0:
                kept.got.append(json.loads(body))
            self.send_response(200 if kept.failures < 0 else 500)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}/ended?key=1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


class Post:
    """Keeps mail."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.mails.append(envelope)
        return "250 kept"


@pytest.fixture
async def post_office() -> AsyncIterator[tuple[Post, int]]:
    post = Post()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(post, hostname="localhost", loop=loop), "127.0.0.1", 0)
    yield post, int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()


async def told(
    make_house: Any, notify: list[Notify], raw: dict[str, Any], cell: str = "print x"
) -> tuple[Any, Scheduling, str]:
    house = await make_house(raw=raw)
    await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook(cell), notify=notify)
    run = (await client.run()).id
    await client.until(run)
    return house, client, run


async def until_note(client: Scheduling, run: str, text: str) -> list[str]:
    row = await client.until(run, lambda r: any(text in note for note in r.notes))
    return row.notes


async def test_a_webhook_is_told_and_told_again_after_a_failure(make_house: Any, hook: Hook) -> None:
    hook.failures = 1
    notify = [Notify(channel="webhook", target=hook.url), Notify(channel="jupyter")]
    house, client, run = await told(make_house, notify, {"webhooks": {"allow_private": True}})
    assert await until_note(client, run, "answered 500")
    delivery = house.gateway.hub.store.deliveries_of(run)[0]
    house.gateway.hub.store.note_delivery(delivery.id, now=0.0, sent=False, again_at=0.0)  # its time has come
    house.gateway.hub.schedules._notifier.next_look = 0.0
    await until_note(client, run, "was told")
    (body,) = hook.got
    assert (body["event"], body["run"], body["state"], body["schedule"]) == ("run_ended", run, "succeeded", "nightly")
    assert (await client.runs(run=run))[0].tell_jupyter


async def test_missed_instants_are_told_once_to_each_that_wants_failures(
    config: GatewayConfig, hook: Hook, post_office: tuple[Post, int]
) -> None:
    """A machine that was off: one webhook and one mail say how many there were and when, whatever their number."""
    post, port = post_office
    raw = {
        "smtp": {"host": "127.0.0.1", "port": port, "from": "cellburst@example.org", "tls": "none"},
        "webhooks": {"allow_private": True},
    }
    clock = SetClock()
    gateway = Gateway(replace(config, raw=raw), clock)
    await gateway.start()
    house = House(gateway)
    try:
        client = await Scheduling.of(house)
        notify = [
            Notify(channel="webhook", target=hook.url),
            Notify(channel="email", target="ann@example.org", on_success=False),
            Notify(channel="email", target="bob@example.org", on_failure=False),
        ]
        made = await client.put(notebook("print x"), HOURLY, missed="skip", notify=notify, keep_runs=0)
        first = made.next_unix_seconds[0]
        # more than one look takes, and more than have a row each; the last one half an hour ago
        clock.pass_time(first + 4199 * 3600 + 1800 - clock.wall())
        async with asyncio.timeout(30):
            while not (hook.got and post.mails):
                await asyncio.sleep(0.02)
        (body,), (mail,) = hook.got, post.mails
        assert (body["event"], body["state"]) == ("runs_missed", "missed") and mail.rcpt_tos == ["ann@example.org"]
        rows = await client.runs(count=1000)
        missed_count = sum(row.instants_count for row in rows if row.state is RunState.MISSED)
        assert body["count"] == missed_count == 4200
        assert datetime.fromisoformat(body["first_due"]).timestamp() == first
        text = bytes(mail.content or b"").decode().replace("=\r\n", "").replace("\r\n", "\n")
        assert "Subject: nightly: missed" in text and f"{missed_count} times from " in text
        assert "cellburst schedule run nightly" in text and "schedule open" not in text
        (row,) = [row for row in rows if row.id == body["run"]]
        assert row.error is not None and "was told" in " ".join((await client.runs(run=row.id))[0].notes)
        assert all(other.error is None for other in rows if other.id != row.id)
    finally:
        await house.close()


async def test_a_gateway_that_dies_between_two_looks_loses_no_notice(
    config: GatewayConfig, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More was missed than one look takes, and the first look was the gateway's last deed."""
    clock, raw = SetClock(), {"webhooks": {"allow_private": True}}
    house = House(Gateway(replace(config, raw=raw), clock))
    await house.gateway.start()
    try:
        client = await Scheduling.of(house)
        notify = [Notify(channel="webhook", target=hook.url)]
        made = await client.put(notebook("print x"), HOURLY, name="told", missed="skip", notify=notify, keep_runs=0)
        first, schedules = made.next_unix_seconds[0], house.gateway.hub.schedules
        monkeypatch.setattr(ScheduleRuns, "tick", lambda self: None)
        clock.pass_time(first + 4199 * 3600 + 1800 - clock.wall())
        assert not schedules._record_due(clock.wall()), "more is due"
    finally:
        await house.close()
    monkeypatch.undo()
    house = House(Gateway(replace(config, raw=raw), clock))
    await house.gateway.start()
    try:
        client = await Scheduling.of(house)
        async with asyncio.timeout(30):
            while not hook.got:
                await asyncio.sleep(0.02)
        (body,) = hook.got
        missed_count = sum(row.instants_count for row in await client.runs(schedule="told", count=1000))
        assert (body["schedule"], body["count"]) == ("told", missed_count) and missed_count == 4200
        assert datetime.fromisoformat(body["first_due"]).timestamp() == first
    finally:
        await house.close()


async def test_a_queued_run_that_is_cancelled_is_told_too(make_house: Any, hook: Hook) -> None:
    house = await make_house(raw={"webhooks": {"allow_private": True}})
    await house.worker()
    client = await Scheduling.of(house)
    notify = [Notify(channel="webhook", target=hook.url), Notify(channel="jupyter", on_success=False)]
    await client.put(notebook("wait"), notify=notify)
    running, queued = (await client.run()).id, (await client.run()).id
    await client.until(running, lambda row: row.state is RunState.RUNNING)
    await client.cancel(queued)
    await until_note(client, queued, "was told")
    assert [(body["run"], body["reason"]) for body in hook.got] == [(queued, "cancelled")]
    assert (await client.runs(run=queued))[0].tell_jupyter
    await client.cancel(running)
    await until_note(client, running, "was told")


async def test_addresses_inside_are_not_dialled_unless_the_operator_says_so(make_house: Any, hook: Hook) -> None:
    _, client, run = await told(make_house, [Notify(channel="webhook", target=hook.url)], {})
    assert await until_note(client, run, "does not dial") and hook.got == []


async def test_mail_goes_to_a_real_server(make_house: Any, post_office: tuple[Post, int]) -> None:
    post, port = post_office
    raw = {"smtp": {"host": "127.0.0.1", "port": port, "from": "cellburst@example.org", "tls": "none"}}
    notify = [
        Notify(channel="email", target="ann@example.org", on_success=False),
        Notify(channel="email", target="bob@example.org", on_failure=False),
    ]
    _, client, run = await told(make_house, notify, raw, "raise ValueError")
    await until_note(client, run, "ann@example.org was told")
    assert (await client.get()).missing == []
    (mail,) = post.mails
    assert mail.rcpt_tos == ["ann@example.org"] and mail.mail_from == "cellburst@example.org"
    text = bytes(mail.content or b"").decode()
    assert "Subject: nightly: failed" in text and "cell 1: ValueError" in text and run in text


async def test_without_a_mail_server_the_record_says_so(make_house: Any) -> None:
    _, client, run = await told(make_house, [Notify(channel="email", target="ann@example.org")], {})
    assert await until_note(client, run, "was not told: the gateway has no [smtp]")
    words = ["no mail can be sent to ann@example.org: the gateway has no [smtp] in its configuration"]
    assert (await client.get()).missing == words, "and it is said before"
    put = await client.put(
        notebook("print x"), name="other", notify=[Notify(channel="email", target="ann@example.org")]
    )
    assert put.missing == words and (await client.put(notebook("print x"), name="third")).missing == []


@pytest.mark.parametrize(
    "table",
    [
        {"host": "x"},
        {"host": "mail.example.org", "from": "a@b", "tls": "none"},
        {"host": "x", "from": "a@b", "port": "25"},
        7,
        {"host": "x", "from": "y", "tls": "ssl3"},
    ],
)
def test_a_wrong_mail_table_is_refused_at_the_start(table: Any) -> None:
    with pytest.raises(CellburstError, match="smtp"):
        mail_of({"smtp": table})
    assert mail_of({}) is None


async def test_headers_cannot_be_made_by_names(post_office: tuple[Post, int]) -> None:
    from cellburst_gateway.notify import Mail, send_mail

    post, port = post_office
    told = {
        "schedule": "a\nBcc: x@y",
        "notebook": "n",
        "state": "failed",
        "reason": "raised",
        "due": "",
        "cost_usd": "0",
        "run": "r",
        "error": "",
    }
    await asyncio.to_thread(send_mail, Mail("127.0.0.1", port, "c@d", tls="none"), "ann@example.org", told)
    assert (
        post.mails[0].rcpt_tos == ["ann@example.org"]
        and b"\nBcc" not in bytes(post.mails[0].content or b"").partition(b"\r\n\r\n")[0]
    )
