"""Who is told how a run ended: a real HTTP server and a real SMTP server on loopback, tries and addresses that are not dialled."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from cellburst_gateway.notify import mail_of
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.schedules import Notify
from tests.gateway.scheduled import Scheduling, notebook


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
    (mail,) = post.mails
    assert mail.rcpt_tos == ["ann@example.org"] and mail.mail_from == "cellburst@example.org"
    text = bytes(mail.content or b"").decode()
    assert "Subject: nightly: failed" in text and "cell 1: ValueError" in text and run in text


async def test_without_a_mail_server_the_record_says_so(make_house: Any) -> None:
    _, client, run = await told(make_house, [Notify(channel="email", target="ann@example.org")], {})
    assert await until_note(client, run, "was not told: the gateway has no [smtp]")


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
