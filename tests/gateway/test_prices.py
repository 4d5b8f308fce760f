"""Prices: the shipped table, the operator's over it, own hardware, and files that are wrong."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from cellburst_gateway.prices import SIMULATED_NOTE, PriceTable, own_usd_per_second
from cellburst_protocol.errors import ErrorCode, RequestError

SHIPPED = PriceTable.load()


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


def wrong(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        PriceTable.load(path)
    assert caught.value.code is ErrorCode.BAD_ARGUMENT
    assert str(path) in caught.value.info.message
    return caught.value.info.text()


def test_the_shipped_table_has_every_card_asked_for_with_source_and_date() -> None:
    expected = {
        "T4": "0.000164", "L4": "0.000222", "A10G": "0.000306", "L40S": "0.000542", "A100-40GB": "0.000583",
        "A100-80GB": "0.000694", "RTX-PRO-6000": "0.000842", "H100": "0.001097", "H200": "0.001261", "B200": "0.001736",
    }  # fmt: skip
    assert {name: str(price.usd_per_second) for name, price in SHIPPED.gpus.items()} == expected
    assert (str(SHIPPED.cpu.usd_per_second), str(SHIPPED.memory.usd_per_second)) == ("0.0000131", "0.00000222")
    for price in (*SHIPPED.gpus.values(), SHIPPED.cpu, SHIPPED.memory):
        assert (price.as_of, price.source) == ("2026-07-01", "modal.com/pricing")


def test_a_rate_is_the_sum_of_its_lines() -> None:
    rate = SHIPPED.rate(["A100-40GB", "A100-40GB"], cpu=1.5, memory_mib=4096)
    assert rate.usd_per_second == Decimal("0.00119453") == sum(line.usd_per_second for line in rate.lines)
    assert [(line.what, line.amount) for line in rate.lines] == [
        ("A100-40GB", 2), ("CPU core", Decimal("1.5")), ("GiB of memory", 4)
    ]  # fmt: skip
    assert rate.note == "reference prices (modal.com/pricing, 2026-07-01)"


def test_a_simulated_gpu_is_priced_as_its_type_and_says_so() -> None:
    rate = SHIPPED.rate(["T4"], 1, 1024, simulated=True)
    assert rate.usd_per_second == SHIPPED.rate(["T4"], 1, 1024).usd_per_second
    assert rate.note == SIMULATED_NOTE
    assert "simulated" not in SHIPPED.rate([], 1, 1024, simulated=True).note


def test_a_card_without_a_price_counts_nothing_and_says_how_to_set_one() -> None:
    rate = SHIPPED.rate(["RTX-4090"], 1, 0)
    assert rate.usd_per_second == SHIPPED.cpu.usd_per_second
    assert "no price for RTX-4090: set [gpu.RTX-4090]" in rate.note


def test_the_operators_prices_go_over_the_shipped_ones(operator: Path) -> None:
    operator.write_text(
        '[gpu.a10]\nusd_per_hour = 0.36\nas_of = 2026-11-01\nsource = "our contract"\n'
        '[gpu.A100]\nusd_per_second = "0.0005"\n[gpu.MY-CARD]\nusd_per_second = 0\n[cpu]\nusd_per_second = 0\n'
    )
    table = PriceTable.load(operator)
    assert table.gpus["A10G"].usd_per_second == Decimal("0.0001")
    assert (table.gpus["A10G"].as_of, table.gpus["A10G"].source) == ("2026-11-01", "our contract")
    assert table.gpus["A100-40GB"].usd_per_second == table.gpus["A100-80GB"].usd_per_second == Decimal("0.0005")
    assert table.gpus["T4"] == SHIPPED.gpus["T4"]
    assert table.rate(["MY-CARD"], 4, 0).usd_per_second == 0
    assert "no price" not in table.rate(["MY-CARD"], 4, 0).note


def test_a_kept_machine_is_priced_beside_the_gpu_with_its_source_and_date(operator: Path) -> None:
    assert {"A100-80GB", "H100", "B200"} <= set(SHIPPED.reserved) and "T4" not in SHIPPED.reserved
    assert all(price.as_of and price.source and price.usd_per_second > 0 for price in SHIPPED.reserved.values())
    operator.write_text(
        '[gpu.T4.reserved]\nusd_per_hour = "0.36"\nsource = "our contract"\n'
        '[gpu.H100]\nusd_per_second = "0.001"\n[gpu.H100.reserved]\nusd_per_hour = 3.6\n'
    )
    table = PriceTable.load(operator)
    assert table.reserved["T4"].usd_per_second == Decimal("0.0001") and table.reserved["T4"].source == "our contract"
    assert table.gpus["T4"] == SHIPPED.gpus["T4"]
    assert (table.gpus["H100"].usd_per_second, table.reserved["H100"].usd_per_second) == (
        Decimal("0.001"),
        Decimal("0.001"),
    )
    assert table.reserved["B200"] == SHIPPED.reserved["B200"]


def test_a_kept_machine_without_a_price_is_refused_with_its_line(operator: Path) -> None:
    assert "line 3: unknown key" in wrong(operator, "[gpu.T4.reserved]\nusd_per_hour = 1\nx = 1\n")
    assert "gpu.T4.reserved" in wrong(operator, '[gpu.T4.reserved]\nas_of = "2026-01-01"\n')
    assert "reserved" in wrong(operator, "[gpu.T4.reserved.reserved]\nusd_per_hour = 1\n")


def test_own_hardware_costs_its_years_and_its_power(operator: Path) -> None:
    operator.write_text('[gpu.RTX-4090.own]\nprice_usd = 1900\nyears = 4\npower_watts = 450\nusd_per_kwh = "0.32"\n')
    price = PriceTable.load(operator).gpus["RTX-4090"]
    hardware, power = Decimal(1900) / (4 * 31_557_600), Decimal("0.45") * Decimal("0.32") / 3600
    assert price.usd_per_second == (hardware + power).quantize(Decimal("1E-12")) == Decimal("0.000055051842")
    assert price.source == "own hardware"
    assert own_usd_per_second(Decimal(0), Decimal(1), Decimal(1000), Decimal(36)) == Decimal("0.01")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gpu.T4]\nusd_per_second = \n", "line 2"),
        (
            "[gpu.T4]\nas_of = 2026-01-01\nusd_per_secnd = 1\n",
            "line 3: unknown key 'usd_per_secnd'; did you mean usd_per_second?",
        ),
        ("\n[gpus.T4]\nusd_per_second = 1\n", "unknown key 'gpus'; did you mean gpu?"),
        ("[cpu]\nusd_per_second = -1\n", "line 2: usd_per_second = -1 in [cpu] is not an amount"),
        ('[gpu.T4]\nsource = "x"\nusd_per_second = "cheap"\n', "line 3: usd_per_second = 'cheap'"),
        ("[memory]\nusd_per_second = nan\n", "line 2: usd_per_second"),
        ("[memory]\nusd_per_second = true\n", "line 2: usd_per_second = True"),
        ("[cpu]\nusd_per_second = 0\n[gpu.T4]\nsource = 'x'\n", "line 3: [gpu.T4] has no price"),
        ("[gpu.T4]\nusd_per_second = 1\nusd_per_hour = 1\n", "line 1: [gpu.T4] has usd_per_second and usd_per_hour"),
        ("[gpu.T4.own]\nprice_usd = 1\n", "line 1: [gpu.T4.own] has no years"),
        ("[gpu.T4.own]\nprice_usd = 1\nyears = 0\n", "line 3: [gpu.T4.own] years = 0"),
        (
            "[gpu.T4.own]\nprice_usd = 1\nyears = 1\npower_watts = 9\n",
            "line 4: [gpu.T4.own] has power_watts and no usd_per_kwh",
        ),
        (
            "[gpu.T4.own]\nprice_usd = 1\nyears = 1\nwatts = 9\n",
            "line 4: unknown key 'watts'; did you mean power_watts?",
        ),
        ("gpu = 3\n", "gpu must be tables"),
        ("cpu = 3\n", "line 1: [cpu] must be a table"),
        ("[gpu]\nT4 = 0.1\n", "line 2: [gpu.T4] must be a table"),
        ("[cpu]\nusd_per_second = 0\nnote = 5\n", "line 3: note = 5 in [cpu] is not text"),
        ('currency = "EUR"\n', "line 1: currency 'EUR' is not supported"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(operator: Path, text: str, said: str) -> None:
    assert said in wrong(operator, text)


def test_a_file_that_cannot_be_read_is_refused(operator: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        PriceTable.load(operator)
    operator.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="cannot be read"):
        PriceTable.load(operator)
