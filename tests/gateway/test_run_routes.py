"""What a run wrote, by HTTP: whole, and in parts, so that nobody has to have all of it in memory."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook


async def get(house: House, path: str) -> HTTPResponse:
    headers = {"Authorization": f"Bearer {house.token}"}
    client = AsyncHTTPClient(force_instance=True)
    try:
        return await client.fetch(house.url + path, headers=headers, raise_error=False)
    finally:
        client.close()


async def test_a_file_of_a_run_comes_whole_and_in_parts(house: House) -> None:
    await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook("print one"))
    run = (await client.until((await client.run()).id)).id
    whole = (await get(house, f"/runs/{run}/notebook")).body
    assert b"one" in whole
    parts = [
        (await get(house, f"/runs/{run}/notebook?from={at}&count=100")).body for at in range(0, len(whole) + 100, 100)
    ]
    assert b"".join(parts) == whole and len(parts[0]) == 100 and parts[-1] == b""
    assert (await get(house, f"/runs/{run}/notebook?from=10")).body == whole[10:]
    assert (await get(house, f"/runs/{run}/notebook?count=10")).body == whole[:10]


@pytest.mark.parametrize("query", ["from=-1", "from=x", "count=1.5", "count=" + "9" * 20, "from=²"])
async def test_a_part_that_is_none_is_refused(house: House, query: str) -> None:
    await house.worker()
    client = await Scheduling.of(house)
    await client.put(notebook("print one"))
    run = (await client.until((await client.run()).id)).id
    answer = await get(house, f"/runs/{run}/notebook?{quote(query, safe='=')}")
    assert answer.code == 400 and b"0 or more" in answer.body
