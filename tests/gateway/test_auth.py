"""Who may do what: every route with every state of a credential, Host and Origin, roles, revocation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import websockets.asyncio.client as ws
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cellburst_gateway.app import routes
from cellburst_gateway.store_rows import Owner, Role
from cellburst_gateway.store_tokens import hash_token
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import FindSession, GetStatus, Hello, Inventory, JoinWorker, StopSession
from cellburst_protocol.version import PROTOCOL_VERSION
from tests.fakes.fake_kernel import FakeKernel
from tests.gateway.house import House

HASH = "0" * 64
OWNER = Owner("home", "user")
ROUTES = {r"/health": "/health", r"/metrics": "/metrics", r"/blobs/([^/]*)": f"/blobs/{HASH}", r"/link": "/link",
          r"/volumes": "/volumes", r"/volumes/([^/]*)": "/volumes/data", r"/volumes/([^/]*)/files": "/volumes/data/files",
          r"/volumes/([^/]*)/commit": "/volumes/data/commit", r"/chunks/missing": "/chunks/missing", r"/chunks": "/chunks",
          r"/nfs": "/nfs", r"/nfs/([^/]*)": "/nfs/data", r"/nfs/([^/]*)/entries": "/nfs/data/entries",
          r"/nfs/([^/]*)/size": "/nfs/data/size",
          r"/nfs/([^/]*)/file": "/nfs/data/file", r"/schedules/([^/]+)/notebook": "/schedules/s-1/notebook",
          r"/runs/([^/]+)/notebook": "/runs/r-1/notebook", r"/runs/([^/]+)/files/(.+)": "/runs/r-1/files/a/b"}  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


async def ask(url: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None) -> Any:
    wants_body = method in ("POST", "PUT", "PATCH")
    request = HTTPRequest(
        url, method=method, headers=headers or {}, body=body if body is not None else (b"x" if wants_body else None),
        allow_nonstandard_methods=True,
    )  # fmt: skip
    return await AsyncHTTPClient().fetch(request, raise_error=False)


def credentials(house: House) -> dict[str, str | None]:
    """Headers that must all be refused."""
    store, now = house.gateway.hub.store, house.gateway.clock.wall()
    store.add_token(hash_token("expired"), OWNER, name="e", role=Role.USER, now=now - 10, expires=now - 5)
    revoked = store.add_token(hash_token("revoked"), OWNER, name="r", role=Role.USER, now=now)
    store.revoke_token(revoked.id, now=now)
    return {
        "none": None, "empty": "", "no token": "Bearer ", "wrong": "Bearer nonsense", "other scheme": f"Basic {house.token}",
        "expired": "Bearer expired", "revoked": "Bearer revoked", "bare": house.token, "huge": "Bearer " + "x" * 20_000,
        "cut": f"Bearer {house.token[:-1]}",
    }  # fmt: skip


async def test_every_route_and_method_wants_a_good_token(house: House) -> None:
    patterns = {
        rule.matcher.regex.pattern.rstrip("$")
        for rule in routes(house.gateway.hub, house.gateway.auth, house.gateway.links).wildcard_router.rules
    }  # type: ignore[attr-defined]
    assert patterns == set(ROUTES), "a route that this test does not know"
    paths = [*ROUTES.values(), "/", "/nothing", "/admin"]
    for name, header in credentials(house).items():
        headers = {} if header is None else {"Authorization": header}
        for path in paths:
            for method in METHODS:
                answer = await ask(house.url + path, method, headers)
                if path == "/health":
                    assert answer.code in (200, 405), (name, method)
                    continue
                assert answer.code == 401, (name, method, path, answer.code)
                assert method == "HEAD" or json.loads(answer.body)["code"] == ErrorCode.UNAUTHENTICATED.value
                assert house.token not in str(answer.headers)


async def test_a_token_in_the_address_is_no_token(house: House) -> None:
    assert (await ask(f"{house.url}/metrics?token={house.token}")).code == 401


async def test_health_metrics_and_unknown_addresses(house: House) -> None:
    good = {"Authorization": f"Bearer {house.token}"}
    health = await ask(house.url + "/health")
    assert health.code == 200 and json.loads(health.body)["ok"] is True and "Server" not in health.headers
    missing = await ask(house.url + "/nothing", headers=good)
    assert missing.code == 404 and json.loads(missing.body)["code"] == ErrorCode.NOT_FOUND.value
    text = (await ask(house.url + "/metrics", headers=good)).body.decode()
    assert "# TYPE cellburst_sessions gauge" in text and "cellburst_accept_seconds_count 0" in text
    for line in text.splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1"}, 200),
    ],
)
async def test_host_and_origin(house: House, headers: dict[str, str], code: int) -> None:
    good = {"Authorization": f"Bearer {house.token}"}
    assert (await ask(house.url + "/metrics", headers=good | headers)).code == code
    assert (await ask(house.url + "/link", headers=good | headers)).code == (403 if code == 403 else 400)  # no upgrade
    if "Origin" in headers:
        with pytest.raises(InvalidStatus) as refused:
            await ws.connect(house.url.replace("http", "ws") + "/link", additional_headers=good | headers, proxy=None)
        assert refused.value.response.status_code == 403


async def test_the_link_refuses_without_a_token(house: House) -> None:
    for header in credentials(house).values():
        with pytest.raises(InvalidStatus) as refused:
            headers = {} if header is None else {"Authorization": header}
            await ws.connect(house.url.replace("http", "ws") + "/link", additional_headers=headers, proxy=None)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"{}")["code"] == ErrorCode.UNAUTHENTICATED.value


async def test_roles_are_the_tokens_and_not_what_is_claimed(house: House) -> None:
    worker_token = house.gateway.hub.secrets.worker_token
    for token, role in ((house.token, "worker"), (worker_token, "kernel"), (worker_token, "cli")):
        with pytest.raises(CellburstError) as refused:
            await FakeKernel(house.url, token, role=role).dial()
        assert refused.value.code is ErrorCode.FORBIDDEN
    cli = await house.cli()
    with pytest.raises(CellburstError) as refused:
        await cli.peer.request(JoinWorker(worker="w", inventory=Inventory(hostname="h", cpu_cores=1, memory_mib=1)))
    assert refused.value.code is ErrorCode.FORBIDDEN
    worker = await house.worker()
    assert worker.peer is not None
    for message in (GetStatus(), StopSession(notebook="/n.ipynb"), FindSession(notebook="/n.ipynb")):
        with pytest.raises(CellburstError) as refused:
            await worker.peer.request(message)
        assert refused.value.code is ErrorCode.FORBIDDEN


async def test_a_viewer_looks_and_does_not_act(house: House) -> None:
    store = house.gateway.hub.store
    store.add_token(hash_token("viewer"), OWNER, name="v", role=Role.VIEWER, now=house.gateway.clock.wall())
    viewer = await FakeKernel(house.url, "viewer", role="cli").dial()
    await viewer.peer.request(GetStatus())
    with pytest.raises(CellburstError) as refused:
        await viewer.peer.request(StopSession(notebook="/n.ipynb"))
    assert refused.value.code is ErrorCode.FORBIDDEN
    with pytest.raises(CellburstError) as refused:
        await viewer.session()
    assert refused.value.code is ErrorCode.FORBIDDEN
    assert (await ask(f"{house.url}/blobs/{HASH}", headers={"Authorization": "Bearer viewer"})).code == 403
    await viewer.close()


async def test_another_workspace_finds_nothing(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    assert kernel.info is not None
    now = house.gateway.clock.wall()
    house.gateway.hub.store.add_token(hash_token("bob"), Owner("bobs", "bob"), name="b", role=Role.USER, now=now)
    bob = await FakeKernel(house.url, "bob").dial()
    with pytest.raises(CellburstError) as refused:
        await bob.session(session=kernel.info.session, attach=True)
    assert refused.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(CellburstError) as refused:
        await bob.peer.request(StopSession(session=kernel.info.session))
    assert refused.value.code is ErrorCode.NOT_FOUND
    status = await bob.peer.request(GetStatus())
    assert getattr(status, "sessions", None) == []
    await bob.close()


async def test_a_revoked_token_closes_open_links(house: House) -> None:
    store, now = house.gateway.hub.store, house.gateway.clock.wall()
    token = store.add_token(hash_token("laptop"), OWNER, name="l", role=Role.USER, now=now)
    kernel = await FakeKernel(house.url, "laptop").dial()
    store.revoke_token(token.id, now=now)
    await kernel.until(lambda: kernel.peer.closed.is_set(), seconds=5)
    await kernel.close()


async def test_a_replaced_token_file_ends_the_old_token(house: House) -> None:
    auth = house.gateway.auth
    auth.seed(OWNER, "a-new-token-of-the-file", house.gateway.hub.secrets.worker_token)
    assert (await ask(house.url + "/metrics", headers={"Authorization": f"Bearer {house.token}"})).code == 401
    assert (await ask(house.url + "/metrics", headers={"Authorization": "Bearer a-new-token-of-the-file"})).code == 200


async def test_another_major_version_is_told(house: House) -> None:
    kernel = await FakeKernel(house.url, house.token).dial()
    await kernel.close()
    late = FakeKernel(house.url, house.token)
    late.role = "kernel"
    socket = await ws.connect(late.url, additional_headers={"Authorization": f"Bearer {house.token}"}, proxy=None)
    from cellburst_protocol.framing import Mux
    from cellburst_protocol.messages import encode

    mux = Mux(dialer=True)
    hello = encode(Hello(role="kernel", protocol=(PROTOCOL_VERSION[0] + 1, 0), software="new", instance="x"))
    mux.control(b'{"id":1,"message":' + hello + b"}")
    frame = mux.next_frame()
    assert frame is not None
    await socket.send(frame)
    answer = await socket.recv()
    assert isinstance(answer, bytes) and b"request.version" in answer and b"is older" in answer
    await socket.close()
    with pytest.raises(ConnectionClosed):
        await socket.recv()
