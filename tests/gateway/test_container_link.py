"""What code in a container may do at the gateway with its token, and what it may not."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest
from blake3 import blake3

from cellburst_gateway.container_link import outer_of
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import (
    CellRefused,
    DeleteSecret,
    FindSession,
    GetCost,
    GetLogs,
    GetStatus,
    Interrupt,
    ListImages,
    PutSecret,
    ReleaseSecrets,
    RunCell,
    SessionFound,
    Shutdown,
    StartContainer,
    Status,
    StopSession,
)
from cellburst_protocol.states import CallState, EndReason
from tests.fakes.fake_kernel import IMAGE, FakeKernel
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House


async def outer(house: House) -> tuple[FakeWorker, FakeKernel, StartContainer]:
    """A session whose container has a link; its cell runs on."""
    worker = await house.worker()
    kernel = await house.kernel(notebook="/report.ipynb")
    await kernel.run("wait", call="outer", with_link=True)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("outer"))
    (container,) = worker.containers.values()
    return worker, kernel, container.start


async def released(worker: FakeWorker, link: FakeKernel, call: str) -> list[ReleaseSecrets]:
    """Run a cell in the session inside: what its container, the worker's second, was given of secrets so far."""
    await link.run("print deep", call=call)
    assert (await link.ended(call)).state is CallState.SUCCEEDED
    _, there = worker.containers.values()
    return [message for message in there.received if isinstance(message, ReleaseSecrets)]


async def inside(house: House, start: StartContainer) -> FakeKernel:
    link = await FakeKernel(house.url, start.link_token).dial()
    house._closing.append(link.close)
    return link


async def test_a_cell_from_inside_runs_in_the_outer_image_and_ends_with_it(house: House) -> None:
    worker, kernel, start = await outer(house)
    link = await inside(house, start)
    await link.session(notebook="whatever", kernel_id="k2")
    seen_inside = IMAGE.__class__(
        executable="/in/python", python_version="3.11.7", prefix="/in", base_prefix="/in", identity="other"
    )
    await link.run("print deep", call="inner", image=seen_inside)
    assert (await link.ended("inner")).state is CallState.SUCCEEDED
    started = next(c.start for name, c in worker.containers.items() if name != start.container)
    assert started.image == start.image and not started.link_token
    inner = next(s for s in house.gateway.hub.sessions if outer_of(s.record.notebook))
    assert (
        outer_of(inner.record.notebook) == start.session
        and inner.record.owner == house.gateway.hub.sessions.get(start.session).record.owner
    )  # type: ignore[union-attr]
    await kernel.peer.request(StopSession(session=start.session))
    await house.until(lambda: not list(house.gateway.hub.sessions))
    await house.until(lambda: not worker.containers)
    with pytest.raises(CellburstError) as refused:  # the token went with its container
        house.gateway.auth.check("cbc." + start.container)
    assert refused.value.code is ErrorCode.UNAUTHENTICATED


async def test_what_the_outer_session_was_given_is_hidden_inside_too(house: House) -> None:
    """Its code may send a secret's value in; the worker there is told what to hide, and the container is given nothing."""
    worker = await house.worker()
    for name in ("hub", "later"):
        await (await house.cli()).peer.request(
            PutSecret(name=name, values={"TOKEN": f"value-of-{name}"}, mode="create")
        )
    kernel = await house.kernel(notebook="/report.ipynb")
    await kernel.run("print x", call="o1", with_link=True, secrets=["hub"])
    await kernel.ended("o1")
    (container,) = worker.containers.values()
    link = await inside(house, container.start)
    await link.session(notebook="whatever", kernel_id="k2")
    given = await released(worker, link, "i1")
    assert [(one.environment, one.hidden) for one in given] == [({}, {"hub.TOKEN": "value-of-hub"})]
    assert len(await released(worker, link, "i2")) == 1
    await kernel.run("print x", call="o2", secrets=["later"])
    await kernel.ended("o2")
    given = await released(worker, link, "i3")
    assert len(given) == 2 and given[1].hidden == {"hub.TOKEN": "value-of-hub", "later.TOKEN": "value-of-later"}


async def test_a_value_that_was_replaced_after_the_outer_session_got_it_is_hidden_inside_too(house: House) -> None:
    """Code outside has the older value, whatever the secret's value is by now."""
    worker, cli = await house.worker(), await house.cli()
    await cli.peer.request(PutSecret(name="hub", values={"TOKEN": "value-of-old"}, mode="create"))
    kernel = await house.kernel(notebook="/report.ipynb")
    await kernel.run("print x", call="o1", with_link=True, secrets=["hub"])
    await kernel.ended("o1")
    (container,) = worker.containers.values()
    await cli.peer.request(PutSecret(name="hub", values={"TOKEN": "value-of-new"}, mode="replace"))
    link = await inside(house, container.start)
    await link.session(notebook="whatever", kernel_id="k2")
    (given,) = await released(worker, link, "i1")
    assert given.hidden == {"hub.TOKEN": "value-of-new", "hub.TOKEN of version 1": "value-of-old"}
    assert len(await released(worker, link, "i2")) == 1, "nothing is new"
    await kernel.run("print x", call="o2")  # the outer session has the newer one from here on
    await kernel.ended("o2")
    await cli.peer.request(PutSecret(name="hub", values={"TOKEN": "value-of-third"}, mode="replace"))
    given = (await released(worker, link, "i3"))[-1]
    assert set(given.hidden.values()) == {"value-of-old", "value-of-new", "value-of-third"}
    await cli.peer.request(DeleteSecret(name="hub"))
    await kernel.run("print x", call="o3", secrets=[])
    await kernel.ended("o3")
    await link.session(notebook="other", kernel_id="k3")
    await link.run("print deep", call="i4")
    assert (await link.ended("i4")).state is CallState.SUCCEEDED
    fresh = next(
        c
        for c in worker.containers.values()
        if c.received and any(isinstance(m, RunCell) and m.call == "i4" for m in c.received)
    )
    (given,) = [m for m in fresh.received if isinstance(m, ReleaseSecrets)]
    assert set(given.hidden.values()) == {"value-of-old", "value-of-new"}, "deleted, and still in the code's hands"


async def test_only_a_container_that_was_given_a_link_has_one(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("wait", call="c1")
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    (container,) = worker.containers.values()
    assert not container.start.link_token
    from cellburst_gateway.container_link import container_token

    forged = container_token(house.gateway.hub.secrets.master_key, container.start.container)
    for token in (forged, forged[:-1] + ("0" if forged[-1] != "0" else "1"), "cbc.nobody.00"):
        with pytest.raises(CellburstError) as why:
            house.gateway.auth.bearer(f"Bearer {token}")
        assert why.value.code is ErrorCode.UNAUTHENTICATED
    worker.release()


async def test_it_sees_and_touches_nothing_else(house: House) -> None:
    _, kernel, start = await outer(house)
    link = await inside(house, start)
    status = await link.peer.request(GetStatus())
    assert isinstance(status, Status) and status.sessions == [] and status.data_folder == ""
    found = await link.peer.request(FindSession(notebook="/report.ipynb"))
    assert isinstance(found, SessionFound) and found.sessions == []
    for message, code in (
        (StopSession(session=start.session), ErrorCode.NOT_FOUND),
        (StopSession(notebook="/report.ipynb", name="default"), ErrorCode.NOT_FOUND),
        (GetLogs(session=start.session), ErrorCode.NOT_FOUND),
        (GetCost(session=start.session), ErrorCode.NOT_FOUND),
        (Interrupt(session=start.session), ErrorCode.NOT_FOUND),
        (Interrupt(call="outer"), ErrorCode.NOT_FOUND),
        (Shutdown(), ErrorCode.FORBIDDEN),
        (ListImages(), ErrorCode.FORBIDDEN),
    ):
        with pytest.raises(CellburstError) as why:
            await link.peer.request(message)
        assert why.value.code is code, message
    with pytest.raises(CellburstError) as refused:
        await link.session(session=start.session, attach=True)
    assert refused.value.code is ErrorCode.NOT_FOUND
    assert kernel.of("outer", object) and "CallEnded" not in kernel.kinds("outer")


async def test_values_from_inside_are_its_own(house: House) -> None:
    worker, kernel, start = await outer(house)
    token = house.gateway.hub.secrets.token

    def ask(verb: str, path: str, token: str, body: bytes | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(
            house.url + path, data=body, method=verb, headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    theirs, mine = b"t" * 100, b"m" * 100
    for data, who in ((theirs, token), (mine, start.link_token)):
        status, _ = await asyncio.to_thread(ask, "PUT", f"/blobs/{blake3(data).hexdigest()}", who, data)
        assert status == 201
    assert await asyncio.to_thread(ask, "GET", f"/blobs/{blake3(mine).hexdigest()}", start.link_token) == (200, mine)
    assert (await asyncio.to_thread(ask, "GET", f"/blobs/{blake3(theirs).hexdigest()}", start.link_token))[0] == 404
    assert (await asyncio.to_thread(ask, "GET", "/metrics", start.link_token))[0] == 403
    worker.release()
    assert (await kernel.ended("outer")).reason is EndReason.DONE


async def test_a_refused_cell_says_why_inside_too(house: House) -> None:
    _, _, start = await outer(house)
    link = await inside(house, start)
    await link.session(notebook="x")
    refused = await link.run("x", call="x" * 300)
    assert isinstance(refused, CellRefused)
