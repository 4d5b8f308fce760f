"""The line that a user's very first remote cell adds."""

from __future__ import annotations

from pathlib import Path

from cellburst_jupyter.first_use import describe, first_use_line
from cellburst_protocol.messages import ContainerInfo, GpuShown

DATA = Path("/home/ann/.cellburst")


def gpu(number: int, *, simulated: bool) -> GpuShown:
    return GpuShown(index=number, uuid=f"U-{number}", type="A100-40GB", name="A100", simulated=simulated)


def box(*gpus: GpuShown, **fields: object) -> ContainerInfo:
    given = {"engine": "gvisor", "usd_per_second": "0.001", **fields}
    return ContainerInfo(id="c", machine="box", gpus=list(gpus), **given)  # type: ignore[arg-type]


def test_it_says_what_where_how_and_at_what_price() -> None:
    assert describe(box(gpu(0, simulated=False), price_note="list price of 2026"), True, DATA) == (
        "first use: a gateway and a worker of yours on this machine (data in /home/ann/.cellburst; `cellburst down` ends them); "
        "this cell has A100-40GB, sandboxed by gvisor, at $3.60/h (list price of 2026)"
    )
    assert describe(box(engine="process", isolates=False), False, DATA) == (
        "first use: the configured gateway; this cell has no GPU, by process, which isolates nothing, "
        "at $3.60/h (reference price)"
    )


def test_simulated_gpus_are_called_so_and_real_ones_are_not() -> None:
    told = describe(box(gpu(0, simulated=True), gpu(1, simulated=True)), False, DATA)
    assert "this cell has 2 × A100-40GB (SIMULATED: there is no such GPU, CUDA calls fail), sandboxed" in told
    assert "SIMULATED" not in describe(box(gpu(0, simulated=False), gpu(1, simulated=False)), False, DATA)


def test_a_price_that_is_no_number_is_not_made_up() -> None:
    assert "at an unknown price (reference price)" in describe(box(usd_per_second="?"), False, DATA)


def test_it_is_told_once(tmp_path: Path) -> None:
    assert first_use_line(box(), True, tmp_path / "data").startswith("first use: ")
    assert first_use_line(box(), True, tmp_path / "data") == ""
