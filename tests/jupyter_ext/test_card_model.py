"""What the card says at each point of a cell's life."""

from __future__ import annotations

from typing import Any

from cellburst_jupyter.card_model import CardModel
from cellburst_protocol.messages import (
    CallEnded,
    ContainerInfo,
    ContainerUsage,
    GpuShown,
    GpuUsage,
    PhaseTime,
    UsageReport,
)
from cellburst_protocol.states import CallState, EndReason

GPU = GpuShown(index=0, uuid="SIM-1", type="A100-40GB", name="A100", simulated=True)
BOX = ContainerInfo(
    id="c1", machine="box", engine="gvisor", gpus=[GPU], cpu=2.0, memory_mib=4096, usd_per_second="0.001"
)


def usage(second: int) -> UsageReport:
    gpu = GpuUsage(
        uuid="SIM-1", utilization_ratio=0.5, memory_used_mib=512, memory_total_mib=40 * 1024, power_watts=251.6,
        temperature_celsius=61.0, simulated=True,
    )  # fmt: skip
    figures = ContainerUsage(
        container="c1",
        uptime_seconds=second,
        cpu_cores=1.0,
        memory_bytes=2**30,
        memory_limit_bytes=4 * 2**30,
        gpus=[gpu],
    )
    return UsageReport(usage=figures, cost_usd="1", call_cost_usd="0.25", usd_per_second="0.001")


def test_a_start_is_told_phase_by_phase() -> None:
    model = CardModel(asked="A100", began=10.0)
    assert model.line(10.5) == "A100 · starting 0.5 s"
    model.waiting = "waiting, next in line: an A100"
    assert "waiting, next in line" in model.line(11)
    model.phase("boot", None, 12.0)
    assert "starting the container 1.0 s" in model.line(13.0)
    model.phase("boot", 1.5, 13.5)
    model.container = BOX
    model.running_since = 14.0
    line = model.line(16.0)
    assert "A100-40GB SIMULATED" in line
    assert "gvisor on box" in line
    assert "booted 1.5 s" in line
    assert "running 2.0 s" in line
    assert "$3.60/h" in line


def test_an_engine_that_isolates_nothing_says_so() -> None:
    model = CardModel(asked="", began=0.0)
    model.container = ContainerInfo(id="c", machine="box", engine="process", isolates=False)
    assert "process (isolates nothing)" in model.line(1.0)
    assert "no GPU" in model.line(1.0)


def test_charts_have_text_and_a_minute_at_most() -> None:
    model = CardModel(asked="", began=0.0)
    model.container = BOX
    for second in range(100):
        model.take_usage(usage(second))
    charts = model.state(100.0)["charts"]
    assert isinstance(charts, list)
    assert [chart["name"] for chart in charts] == ["GPU (simulated)", "CPU", "memory"]
    assert all(len(chart["ratios"]) == 60 for chart in charts)
    assert charts[0]["label"] == "GPU (simulated) over the last 60 s, now 50 %, 512 MiB of 40.0 GiB, 252 W, 61 °C"
    assert charts[0]["more"] == "512 MiB of 40.0 GiB, 252 W, 61 °C"
    assert charts[1]["ratios"][-1] == 0.5
    assert charts[2]["now"] == "1.0 GiB of 4.0 GiB"


def test_the_figures_of_each_gpu_are_in_the_cards_data() -> None:
    model = CardModel(asked="", began=0.0)
    model.container = BOX
    assert model.state(0.0)["gpus"] == []
    report = usage(1)
    model.take_usage(report)
    one = {
        "uuid": "SIM-1", "utilization_ratio": 0.5, "memory_used_mib": 512, "memory_total_mib": 40960, "power_watts": 251.6,
        "temperature_celsius": 61.0, "simulated": True,
    }  # fmt: skip
    assert model.state(1.0)["gpus"] == [one]
    report.usage.gpus.append(GpuUsage(uuid="SIM-2", utilization_ratio=0.1, power_watts=100.0, temperature_celsius=70.0))
    model.take_usage(report)
    state: Any = model.state(2.0)
    assert state["gpus"] == [
        one,
        {"uuid": "SIM-2", "utilization_ratio": 0.1, "power_watts": 100.0, "temperature_celsius": 70.0},
    ]
    assert (state["charts"][0]["now"], state["charts"][0]["more"]) == ("30 %", "512 MiB of 40.0 GiB, 352 W, 70 °C")
    report.usage.gpus = [GpuUsage(uuid="GPU-1", utilization_ratio=0.2)]
    model.take_usage(report)
    state = model.state(3.0)
    assert (state["charts"][0]["now"], state["charts"][0]["more"]) == ("20 %", ""), (
        "what NVML does not give is not made up"
    )


def test_what_is_left_says_how_it_ended_and_is_small() -> None:
    model = CardModel(asked="A100", began=0.0)
    model.container = BOX
    model.ended = CallEnded(
        state=CallState.SUCCEEDED, reason=EndReason.DONE, run_seconds=125.0, cost_usd="0.35",
        phases=[PhaseTime(name="boot", seconds=2.0)],
    )  # fmt: skip
    model.took(model.ended.phases)
    assert model.line(0.0) == "A100-40GB SIMULATED · gvisor on box · booted 2.0 s · ran 2 min 5 s · $0.35 at $3.60/h"
    assert len(model.html(0.0).encode()) + len(model.line(0.0).encode()) < 2048
    assert model.state(0.0)["running"] is False
    model.ended = CallEnded(state=CallState.FAILED, reason=EndReason.OUT_OF_MEMORY, run_seconds=1.0)
    assert "out of memory, ran 1.0 s" in model.line(0.0)


def test_a_long_line_is_cut_and_escaped() -> None:
    model = CardModel(asked="<b>" + "x" * 5000, began=0.0)
    assert len(model.html(0.0)) < 1024
    assert "<b>" not in model.html(0.0)


def test_under_the_pointer_it_says_which_rung_it_was_and_why_no_faster_one() -> None:
    model = CardModel("A100", 0.0)
    model.took([PhaseTime(name="image", seconds=0.1), PhaseTime(name="restore", seconds=0.2, detail="template")])
    assert model.explained() == "image 0.1 s, restored 0.2 s; from template"
    model = CardModel("A100", 0.0)
    model.took(
        [
            PhaseTime(name="image", seconds=0.1, detail="2 layers"),
            PhaseTime(name="restore", seconds=0.0, detail="template unusable: /a/<b>.py was changed"),
            PhaseTime(name="boot", seconds=0.4),
        ]
    )
    assert model.explained() == "image 0.1 s, booted 0.4 s; template unusable: /a/<b>.py was changed"
    assert 'title="image 0.1 s, booted 0.4 s; template unusable: /a/&lt;b&gt;.py was changed"' in model.html(0.0)
    assert "unusable" not in model.line(0.0)
