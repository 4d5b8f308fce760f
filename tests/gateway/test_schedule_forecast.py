"""What a schedule will cost, told from its last runs."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cellburst_gateway.schedule_forecast import forecast, month_instants
from cellburst_protocol.messages import PreviewSchedule
from cellburst_protocol.schedules import When
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook

NOW = 1_790_000_000  # Mon 2026-09-21 in UTC
DAY = 86400


@pytest.mark.parametrize(
    ("when", "count"),
    [
        (When(kind="cron", cron="0 7 * * *"), 30), (When(kind="cron", cron="0 7 * * 1-5", timezone="Europe/Berlin"), 22),
        (When(kind="cron", cron="0 0 1 1 *"), 0), (When(kind="every", every_seconds=3600, at_unix_seconds=NOW), 720),
        (When(kind="once", at_unix_seconds=NOW + DAY), 1), (When(kind="once", at_unix_seconds=NOW + 60 * DAY), 0),
    ],
)  # fmt: skip
def test_the_instants_of_a_month_are_counted(when: When, count: int) -> None:
    assert month_instants(when, NOW) == count


def test_a_line_of_every_minute_is_told_from_its_first_ones() -> None:
    assert abs(month_instants(When(kind="cron", cron="* * * * *"), NOW) - 43200) < 200


def test_the_mean_is_of_the_last_five_and_none_is_told_without_a_run() -> None:
    daily = When(kind="cron", cron="0 7 * * *")
    told = forecast([Decimal(n) for n in ("1", "2", "3", "4", "5", "100")], daily, NOW)
    assert (told.runs_count, Decimal(told.run_usd), Decimal(told.month_usd)) == (5, Decimal(3), Decimal(90))
    none = forecast([], daily, NOW)
    assert (none.runs_count, none.run_usd, none.month_usd, none.month_instants_count) == (0, "", "", 30)
    assert forecast([Decimal(1)], None, NOW).month_instants_count == 0


async def test_a_row_and_a_preview_have_it(house: House) -> None:
    await house.worker()
    client = await Scheduling.of(house)
    made = await client.put(notebook("print one"))
    assert made.row.forecast.runs_count == 0
    await client.until((await client.run()).id)
    row = (await client.get()).row
    assert row.forecast.runs_count == 1 and Decimal(row.forecast.run_usd) == round(Decimal(row.mean_cost_usd), 8)
    hourly = When(kind="every", every_seconds=3600)
    preview = await client.ask(PreviewSchedule(when=hourly, schedule=row.id))
    assert preview.forecast.month_instants_count == 720 and preview.forecast.runs_count == 1
    assert (await client.ask(PreviewSchedule(when=hourly))).forecast.runs_count == 0
