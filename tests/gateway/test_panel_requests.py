"""What the panel asks a gateway: which schedules use a secret or a volume, and what the month may cost."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cellburst_gateway.app import Gateway
from cellburst_gateway.auth import hash_token
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.store_rows import Owner, Role
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import (
    GetSpending,
    ListSecrets,
    PauseSchedule,
    PutSecret,
    SecretList,
    SetBudget,
    Spending,
)
from cellburst_protocol.volumes import CreateVolume, VolumeMount
from tests.fakes.fake_kernel import FakeKernel
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook

HOME = Owner("home", "user")


@pytest.fixture
async def place(config: GatewayConfig) -> AsyncIterator[House]:
    gateway = Gateway(config)
    await gateway.start()
    house = House(gateway)
    yield house
    await house.close()


@pytest.fixture
async def client(place: House) -> Scheduling:
    return await Scheduling.of(place)


async def test_secrets_and_volumes_name_the_schedules_that_use_them(place: House, client: Scheduling) -> None:
    for name in ("hub", "other"):
        await client.ask(PutSecret(name=name, values={"A": "a", "B": "b"}))
    volumes = place.gateway.hub.volumes
    data, _ = [(await volumes.create(HOME, CreateVolume(name=name)))[0] for name in ("data", "free")]
    await client.put(
        notebook("print one"),
        name="nightly",
        secrets=["hub:A"],
        volumes=[VolumeMount(volume=data.id, path="/data", name="data")],
    )
    await client.put(notebook("print one"), name="weekly", secrets=["hub"])
    await client.ask(PauseSchedule(schedule="weekly"))
    listed = await client.ask(ListSecrets())
    assert isinstance(listed, SecretList)
    assert {row.name: row.used_by for row in listed.rows} == {
        "hub": ["schedule nightly", "schedule weekly"],
        "other": [],
    }
    rows = await volumes.rows("home")
    assert {row.name: row.used_by for row in rows} == {"data": ["schedule nightly"], "free": []}
    with pytest.raises(CellburstError) as caught:
        await volumes.delete("home", "data")
    assert caught.value.code is ErrorCode.CONFLICT and "schedule nightly" in caught.value.info.message
    await volumes.delete("home", "data", used=True)


async def test_a_months_budget_is_kept_in_plain_digits_and_refused_in_words(place: House, client: Scheduling) -> None:
    for text, kept in (("$50", "50"), (" 0.0000001 ", "0.0000001"), ("1e3", "1000"), ("", "")):
        await client.ask(SetBudget(usd_per_month=text))
        answer = await client.ask(GetSpending())
        assert isinstance(answer, Spending) and answer.budget_usd_per_month == kept
    for wrong in ("much", "-3", "0", "NaN", "1e99"):
        with pytest.raises(CellburstError) as caught:
            await client.ask(SetBudget(usd_per_month=wrong))
        assert caught.value.code is ErrorCode.BAD_ARGUMENT and "more than 0" in caught.value.info.allowed


async def test_who_may_only_look_sets_no_budget(place: House) -> None:
    store = place.gateway.hub.store
    store.add_token(hash_token("eye"), HOME, name="e", role=Role.VIEWER, now=place.gateway.clock.wall())
    viewer = await FakeKernel(place.gateway.hub.url, "eye", role="cli").dial()
    try:
        assert isinstance(await viewer.peer.request(GetSpending(), timeout_seconds=10), Spending)
        with pytest.raises(CellburstError) as caught:
            await viewer.peer.request(SetBudget(usd_per_month="5"), timeout_seconds=10)
        assert caught.value.code is ErrorCode.FORBIDDEN
    finally:
        await viewer.close()
