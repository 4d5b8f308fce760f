"""The pure parts: leases, limits, calls, usage, endings."""

from __future__ import annotations

import pytest

from cellburst_protocol.errors import CapacityError, ErrorCode, RequestError
from cellburst_protocol.messages import GpuShown, Inventory
from cellburst_protocol.states import EndReason
from cellburst_runtime.engine import ContainerExit
from cellburst_worker import endings
from cellburst_worker.answers import Ended
from cellburst_worker.calls import MAX_ENDED, Calls
from cellburst_worker.leases import Lease, LeaseBook
from cellburst_worker.starting import _in_words
from cellburst_worker.timeouts import KILL_AFTER_SECONDS, CallLimit
from cellburst_worker.usage import CpuMeter

GPUS = [GpuShown(index=i, uuid=f"G{i}", type="T4", name="T4") for i in range(3)]


def book() -> LeaseBook:
    return LeaseBook(Inventory(hostname="h", cpu_cores=8, memory_mib=1000, gpus=GPUS))


def lease(id: str, *gpus: str, cpu: float = 1, memory_mib: int = 100, epoch: int = 1) -> Lease:
    return Lease(id, f"c-{id}", epoch, gpus, cpu, memory_mib, 0.0)


def test_a_gpu_is_held_once() -> None:
    leases = book()
    assert leases.take(lease("a", "G0", "G2"))
    assert not leases.take(lease("a", "G0", "G2"))  # a repeat
    assert leases.free_gpus() == ["G1"] and (leases.held_cpu, leases.held_memory_mib) == (1, 100)
    with pytest.raises(RequestError) as problem:
        leases.take(lease("b", "G1", "G2"))
    assert problem.value.code is ErrorCode.CONFLICT and problem.value.info.allowed == "G1"
    assert leases.free_gpus() == ["G1"]  # a refused lease holds nothing
    assert leases.release("c-a") is not None and leases.release("c-a") is None
    assert leases.take(lease("b", "G1", "G2"))


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (lease("b", "G9", epoch=2), RequestError),
        (lease("b", "G1", "G1", epoch=2), RequestError),
        (lease("b", cpu=9, epoch=2), CapacityError),
        (lease("b", memory_mib=1001, epoch=2), CapacityError),
        (lease("b", epoch=1), RequestError),
        (Lease("other", "c-a", 2, (), 1, 1, 0.0), RequestError),
    ],
)
def test_what_cannot_be_leased(bad: Lease, kind: type[Exception]) -> None:
    leases = book()
    leases.take(lease("a", "G0", epoch=2))
    with pytest.raises(kind):
        leases.take(bad)
    assert [held.id for held in leases.held] == ["a"]


def test_a_limit_interrupts_once_and_then_kills_once() -> None:
    limit = CallLimit(10.0)
    assert limit.due(100) == 0 and limit.next_due_seconds() is None  # not started
    limit.started_seconds = 100.0
    assert limit.next_due_seconds() == 110.0
    assert [limit.due(t) for t in (109.9, 110.0, 110.1, 110 + KILL_AFTER_SECONDS, 200)] == [0, 1, 0, 3, 0]
    assert limit.timed_out and limit.next_due_seconds() is None
    assert CallLimit(None, 0.0).due(1e9) == 0


def test_calls_are_known_after_their_end_but_not_open() -> None:
    calls = Calls()
    assert calls.began("a", "k", 5.0) is not None and calls.began("a", "k", 5.0) is None
    calls.started("a", 1.0)
    calls.started("a", 3.0)
    assert calls.running == "a" and calls.next_due_seconds() == 6.0 and calls.due(6.0) == [("a", 1)]
    assert calls.ended("a") is not None and calls.ended("a") is None
    assert calls.knows("a") and calls.get("a") is None and calls.running == "" and calls.began("a", "k", None) is None
    for number in range(MAX_ENDED):
        calls.began(str(number), "", None)
        calls.ended(str(number))
    assert not calls.knows("a") and calls.knows("0")


def test_an_interrupt_that_overtakes_its_cell_is_kept() -> None:
    calls = Calls()
    calls.cancel_early("a")
    call, other = calls.began("a", "", None), calls.began("b", "", None)
    assert call is not None and call.cancelled
    assert other is not None and not other.cancelled


def test_cores_are_a_difference() -> None:
    meter = CpuMeter()
    assert meter.cores(1.0, 10.0) is None
    assert meter.cores(3.0, 11.0) == 2.0
    assert meter.cores(None, 12.0) is None and meter.cores(5.0, 13.0) is None


def test_endings_say_reason_and_limit() -> None:
    oom = endings.of_exit(ContainerExit(None, 9, "oom", "killed"), 512, 500 << 20, 100)
    assert oom.reason is EndReason.OUT_OF_MEMORY and oom.error is not None
    assert "512 MiB" in oom.error.message and "500 MiB" in oom.error.message and "1024MiB" in oom.error.next
    pids = endings.of_exit(ContainerExit(2, None, "pids"), 512, None, 100)
    assert pids.reason is EndReason.PIDS_LIMIT and pids.error is not None and "100 processes" in pids.error.message
    ended = Ended("started", exit := ContainerExit(2, None, "exit", "goroutine 1"), endings.exit_text(exit))
    assert ended.info.message == "the container ended while it started: exit code 2: goroutine 1"
    assert (
        _in_words(ended)
        == "the container ended while it started (exit code 2): what was printed is in the worker's log"
    )
    lost = endings.of_exit(ContainerExit(None, 9, "killed"), 512, None, 100)
    assert lost.reason is EndReason.CONTAINER_LOST and lost.error is not None and "signal 9" in lost.error.message
