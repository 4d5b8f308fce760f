"""Mail of runs through a real SMTP server on loopback: TLS, login, and what the run's record says when it does not go."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cellburst_gateway.notify import Mail, mail_problem, send_mail
from cellburst_protocol.schedules import Notify
from tests.gateway.scheduled import Scheduling, notebook

PASSWORD = "correct horse"
TOLD = {
    "schedule": "nightly",
    "notebook": "n",
    "state": "failed",
    "reason": "raised",
    "due": "",
    "cost_usd": "0",
    "run": "r",
}


class Post:
    """Keeps mail, and who brought it over what."""

    def __init__(self) -> None:
        self.mails: list[tuple[Envelope, bool, bool]] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert server.transport is not None
        encrypted = server.transport.get_extra_info("ssl_object") is not None
        self.mails.append((envelope, encrypted, bool(session.authenticated)))
        return "250 kept"


def login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    assert isinstance(data, LoginPassword)
    known = (data.login, data.password) == (b"cellburst", PASSWORD.encode())
    return AuthResult(success=known, handled=known)  # else the server itself says 535


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail of a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("mail") / "both.pem"
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
async def serve(certificate: Path) -> AsyncIterator[Callable[..., Awaitable[tuple[Post, int]]]]:
    """Start a server: `starttls` offers it, `tls` begins with it, `auth` wants a login (over TLS only; one that begins with TLS takes
    it without asking, since this server's class would warn of that)."""
    servers: list[asyncio.Server] = []
    loop = asyncio.get_running_loop()

    async def start(*, starttls: bool = False, tls: bool = False, auth: bool = True) -> tuple[Post, int]:
        post = Post()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)

        def made() -> SMTP:
            return SMTP(
                post, hostname="localhost", loop=loop, tls_context=context if starttls else None, require_starttls=starttls,
                auth_required=auth and not tls, auth_require_tls=not tls, authenticator=login,
            )  # fmt: skip

        server = await loop.create_server(made, "127.0.0.1", 0, ssl=context if tls else None)
        servers.append(server)
        return post, int(server.sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.fixture
def mail(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mail]:
    """Mail as the configuration says it; this machine trusts the server's certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    kept = tmp_path / "password"
    kept.write_text(PASSWORD + "\n")

    def made(port: int, **changes: Any) -> Mail:
        given = {
            "sender": "cellburst@example.org",
            "user": "cellburst",
            "password_file": str(kept),
            "tls": "starttls",
        } | changes
        return Mail("127.0.0.1", port, **given)

    return made


async def sent(mail: Mail) -> str:
    """Send one; what the record would say, or ""."""
    try:
        await asyncio.to_thread(send_mail, mail, "ann@example.org", TOLD)
    except Exception as problem:
        return mail_problem(mail, problem)
    return ""


@pytest.mark.parametrize("how", ["starttls", "tls"])
async def test_mail_goes_over_tls_with_a_login(serve: Any, mail: Callable[..., Mail], how: str) -> None:
    post, port = await serve(**{how: True})
    assert await sent(mail(port, tls=how)) == ""
    ((envelope, encrypted, known),) = post.mails
    assert envelope.rcpt_tos == ["ann@example.org"] and encrypted and known


async def test_a_wrong_password_is_said_and_not_shown(serve: Any, mail: Callable[..., Mail], tmp_path: Path) -> None:
    post, port = await serve(starttls=True)
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    said = await sent(mail(port, password_file=str(wrong)))
    assert f"127.0.0.1:{port} refused the login of 'cellburst' (535" in said and "password_file" in said
    assert "battery" not in said and post.mails == []


async def test_a_server_without_tls_gets_neither_password_nor_mail(serve: Any, mail: Callable[..., Mail]) -> None:
    post, port = await serve(auth=False)
    assert "offers no STARTTLS: nothing was sent" in await sent(mail(port))
    assert "speaks no TLS there" in await sent(mail(port, tls="tls"))
    assert post.mails == []


async def test_a_certificate_that_nobody_knows_is_refused(
    serve: Any, mail: Callable[..., Mail], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    post, port = await serve(starttls=True)
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "certificate that is not trusted here" in await sent(mail(port)) and post.mails == []


async def test_a_server_that_is_not_there_and_one_that_wants_a_login(serve: Any, mail: Callable[..., Mail]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: whoever dials is refused
        assert "cannot be reached: Connection refused" in await sent(mail(free.getsockname()[1]))
    _, port = await serve(starttls=True)
    assert "530" in await sent(mail(port, user=""))


async def test_the_run_s_record_says_why_nobody_was_told(
    make_house: Any, serve: Any, mail: Callable[..., Mail], tmp_path: Path
) -> None:
    post, port = await serve(starttls=True)
    kept = tmp_path / "kept"
    kept.write_text("battery staple")
    table = {
        "host": "127.0.0.1",
        "port": port,
        "from": "a@example.org",
        "user": "cellburst",
        "password_file": str(kept),
    }
    house = await make_house(raw={"smtp": table})
    await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook("print one"), notify=[Notify(channel="email", target="ann@example.org")])
    run = (await client.run()).id
    row = await client.until(run, lambda r: any("refused the login" in note for note in r.notes))
    assert any("ann@example.org was not told" in note for note in row.notes), row.notes
    kept.write_text(PASSWORD)
    delivery = house.gateway.hub.store.deliveries_of(run)[0]
    house.gateway.hub.store.note_delivery(delivery.id, now=0.0, sent=False, again_at=0.0)  # its time has come
    house.gateway.hub.schedules._notifier.next_look = 0.0
    await client.until(run, lambda r: any("was told" in note for note in r.notes))
    assert len(post.mails) == 1
