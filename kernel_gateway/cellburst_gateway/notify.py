"""Telling people how runs ended: webhooks (a POST of JSON) and e-mail by SMTP. Each delivery is in the record before it is tried,
is tried again after a failure, and says in the record how it went.

[smtp]                                   # of the gateway's configuration
host = "mail.example.org"
port = 587
from = "cellburst@example.org"
user = "cellburst"                       # absent: no login
password_file = "~/.config/cellburst/smtp-password"
tls = "starttls"                         # or "tls" (port 465), or "none" on this machine only

[webhooks]
allow_private = false                    # true: also addresses of this machine and of private networks
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import shlex
import smtplib
import socket
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from . import outbound
from .config import is_loopback
from .store_schedules import Delivery

if TYPE_CHECKING:
    from .hub import Hub

TRY_SECONDS = 15.0
AGAIN_SECONDS = (5.0, 30.0, 120.0, 600.0, 3600.0)  # after each failure but the last, which gives up
MAX_ANSWER_BYTES = 1000
NO_MAIL = "the gateway has no [smtp] in its configuration"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mail:
    """How mail is sent. `tls` is "starttls", "tls" or "none"."""

    host: str
    port: int
    sender: str
    user: str = ""
    password_file: str = ""
    tls: str = "starttls"


def mail_of(raw: dict[str, Any]) -> Mail | None:
    """The table [smtp] of the configuration; None without one. Raises RequestError (BAD_ARGUMENT)."""
    table = raw.get("smtp")
    if table is None:
        return None
    if not isinstance(table, dict) or not table.get("host") or not table.get("from"):
        raise _wrong("it needs host and from")
    tls = str(table.get("tls", "starttls"))
    host = str(table["host"])
    if tls not in ("starttls", "tls", "none"):
        raise _wrong(f"tls={tls!r}")
    if tls == "none" and not is_loopback(host):
        raise _wrong(f'tls="none" would send mail readable to {host}')
    port = table.get("port", 465 if tls == "tls" else 587)
    if not isinstance(port, int) or not 0 < port < 65536:
        raise _wrong(f"port={port!r}")
    return Mail(host, port, str(table["from"]), str(table.get("user", "")), str(table.get("password_file", "")), tls)


class Notifier:
    """Makes the deliveries that are due."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._under_way: set[str] = set()
        self.mail = mail_of(hub.config.raw)
        webhooks = hub.config.raw.get("webhooks")
        self._private = bool(webhooks.get("allow_private")) if isinstance(webhooks, dict) else False
        self.next_look = 0.0  # wall clock; nothing is due before

    def look(self, now: float) -> None:
        """Begin what is due. Called several times a second; asks the record only when something may be due."""
        if now < self.next_look:
            return
        self.next_look = now + AGAIN_SECONDS[0]
        for delivery in self._hub.store.due_deliveries(now):
            if delivery.id not in self._under_way:
                self._under_way.add(delivery.id)
                self._hub.spawn(self._deliver(delivery))

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            why = await asyncio.to_thread(self._try, delivery)
        finally:
            self._under_way.discard(delivery.id)
        now = self._hub.clock.wall()
        again = None
        if why and delivery.attempts < len(AGAIN_SECONDS):
            again = now + AGAIN_SECONDS[delivery.attempts]
            self.next_look = min(self.next_look, again)
        self._hub.store.note_delivery(delivery.id, now=now, sent=not why, error=why[:500], again_at=again)
        if why and again is None:
            log.warning("a delivery was given up", extra={"run": delivery.run, "channel": delivery.channel})

    def _try(self, delivery: Delivery) -> str:
        """One try; why it failed, or "". Blocks."""
        try:
            if delivery.channel == "webhook":
                post(delivery.target, delivery.body.encode(), allow_private=self._private)
            else:
                if self.mail is None:
                    return NO_MAIL
                send_mail(self.mail, delivery.target, json.loads(delivery.body))
        except CellburstError as problem:
            return problem.info.message
        except (OSError, http.client.HTTPException, smtplib.SMTPException) as problem:
            if delivery.channel == "email" and self.mail is not None:
                return mail_problem(self.mail, problem)
            return f"{type(problem).__name__}: {problem}"
        return ""


def post(url: str, body: bytes, *, allow_private: bool) -> None:
    """POST JSON. The connection goes to an address that was checked, whatever the name says by then; redirects are refused.

    Raises RequestError or PlatformError (UNAVAILABLE) for an answer that is no success, OSError, HTTPException.
    """
    parts = urlsplit(url)
    addresses = outbound.check_url(url, allow_private=allow_private)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection: http.client.HTTPConnection
    raw = socket.create_connection((addresses[0], port), timeout=TRY_SECONDS)
    try:
        connection = http.client.HTTPConnection(host, port, timeout=TRY_SECONDS)
        connection.sock = (
            ssl.create_default_context().wrap_socket(raw, server_hostname=host) if parts.scheme == "https" else raw
        )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json", "User-Agent": "cellburst", "Connection": "close"}
        connection.request("POST", target, body=body, headers=headers)
        with connection.getresponse() as response:
            response.read(MAX_ANSWER_BYTES)
            if not 200 <= response.status < 300:
                raise error(ErrorCode.UNAVAILABLE, f"{host} answered {response.status} {response.reason}")
        connection.close()
    finally:
        raw.close()


def send_mail(mail: Mail, to: str, told: dict[str, Any]) -> None:
    """Send one message. Raises OSError, SMTPException, RequestError (BAD_ARGUMENT)."""
    message = EmailMessage()
    message["From"], message["To"] = mail.sender, to
    message["Subject"] = " ".join(f"{told['schedule']}: {told['state']}".split())
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail_text(told))
    context = ssl.create_default_context()
    if mail.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(mail.host, mail.port, timeout=TRY_SECONDS, context=context)
    else:
        server = smtplib.SMTP(mail.host, mail.port, timeout=TRY_SECONDS)
    with server:
        if mail.tls == "starttls":
            server.starttls(context=context)
        if mail.user:
            try:
                password = Path(mail.password_file).expanduser().read_text("utf-8").strip()
            except OSError as why:
                raise _wrong(f"password_file cannot be read: {why.strerror}") from None
            server.login(mail.user, password)
        server.send_message(message)


def mail_problem(mail: Mail, problem: Exception) -> str:
    """Why a mail could not be sent, for whoever looks at the record; never with the password."""
    server = f"the mail server {mail.host}:{mail.port}"
    match problem:
        case smtplib.SMTPAuthenticationError():
            return f"{server} refused the login of {mail.user!r} ({_answer(problem)}): look at user and password_file in [smtp]"
        case smtplib.SMTPNotSupportedError() if mail.tls == "starttls" and "STARTTLS" in str(problem):
            return f'{server} offers no STARTTLS: nothing was sent; for one that begins with TLS (port 465) say tls = "tls"'
        case smtplib.SMTPNotSupportedError():
            return f"{server} cannot do what [smtp] asks for: {problem}"
        case smtplib.SMTPRecipientsRefused():
            return f"{server} takes no mail for {', '.join(problem.recipients)}"
        case smtplib.SMTPResponseException():
            return f"{server} refused the mail: {_answer(problem)}"
        case ssl.SSLCertVerificationError():
            return f"{server} has a certificate that is not trusted here: {problem.verify_message}"
        case ssl.SSLError():
            return f"{server} speaks no TLS there ({problem.reason or problem}): look at port and tls in [smtp]"
        case TimeoutError():
            return f"{server} did not answer within {TRY_SECONDS:.0f} s"
        case OSError():
            return f"{server} cannot be reached: {problem.strerror or problem}"
    return f"{server}: {type(problem).__name__}: {problem}"


def _answer(problem: smtplib.SMTPResponseException) -> str:
    said = problem.smtp_error
    return f"{problem.smtp_code} {said.decode('utf-8', 'replace') if isinstance(said, bytes) else said}"


def mail_text(told: dict[str, Any]) -> str:
    """What a mail says."""
    lines = [
        f"{told['schedule']} ({told['notebook']}) {told['state']}: {str(told['reason']).replace('_', ' ')}.",
        "",
    ]
    if told.get("error"):
        lines += [str(told["error"]), ""]
    if told.get("event") == "runs_missed":
        lines += [f"first due  {told['first_due']}", f"last due   {told['due']}", ""]
        lines += [f"Run it now: cellburst schedule run {shlex.quote(str(told['schedule']))}"]
        return "\n".join(lines) + "\n"
    if told.get("event") == "budget_spent":
        lines += [
            f"due        {told['due']}",
            "",
            "Its further runs of this month are skipped as well, and nobody is told of those.",
        ]
        lines += [f"Run it all the same: cellburst schedule run {shlex.quote(str(told['schedule']))}"]
        return "\n".join(lines) + "\n"
    lines += [
        f"due        {told['due']}",
        f"cost       ${told['cost_usd']} (reference prices)",
        f"run        {told['run']}",
        "",
    ]
    lines.append(f"Its notebook: cellburst schedule open {told['run']}")
    return "\n".join(lines) + "\n"


def _wrong(what: str) -> Exception:
    return error(
        ErrorCode.BAD_ARGUMENT, f"configuration: [smtp]: {what}",
        allowed='host, port, from, user, password_file, tls = "starttls", "tls", or "none" for this machine only',
    )  # fmt: skip
