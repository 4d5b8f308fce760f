"""What a gateway answers people: the cost of a session that runs, is parked or has ended."""

from __future__ import annotations

from cellburst_protocol.messages import CostReport, GetCost, StopSession
from tests.gateway.house import House
from tests.gateway.parking_house import is_free, park, with_session


async def test_cost_says_what_a_parked_and_an_ended_session_ran_on(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    assert kernel.info is not None
    session = kernel.info.session

    async def cost() -> tuple[str, bool, bool]:
        report = await kernel.peer.request(GetCost(session=session))
        assert isinstance(report, CostReport)
        (line,) = report.lines
        return line.what, line.running, line.parked

    what, running, parked = await cost()
    assert "A100" in what and "cores" in what and (running, parked) == (True, False)
    await park(house, kernel)
    await house.until(lambda: is_free(house))
    assert await cost() == (what, False, True)
    await kernel.peer.request(StopSession(session=session))
    await house.until(lambda: house.gateway.hub.sessions.get(session) is None)
    assert await cost() == (what, False, False)
