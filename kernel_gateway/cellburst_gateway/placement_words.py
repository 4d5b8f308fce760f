"""What placement says: who holds what a request waits for, and why a request can never be satisfied. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.messages import Inventory
from cellburst_protocol.resources import GPU_FAMILIES, GPU_MEMORY_MIB, GpuChoice, Resources
from cellburst_protocol.states import WorkerState

if TYPE_CHECKING:
    from .placement import Holding, Machine

SHOWN_HOLDERS = 4  # names in one sentence; more are counted


def refusal(resources: Resources, fleet: Sequence[Inventory]) -> ErrorInfo:
    """Why no machine of the fleet can ever satisfy this: no worker, no such GPU, too many of them, CPU or memory."""
    wanted = ",".join(str(choice) for choice in resources.gpus)
    if not fleet:
        return ErrorInfo(
            code=ErrorCode.NO_WORKER,
            message=f"no worker has joined this gateway, so {_asked(resources)} cannot run",
            next="start one with `cellburst up`, or on another machine with `cellburst worker --join`",
        )
    with_gpus = [inventory for inventory in fleet if _has_gpus(inventory, resources)]
    if resources.gpus and not with_gpus:
        return ErrorInfo(
            code=ErrorCode.NO_SUCH_HARDWARE,
            message=f"gpu={wanted}: {_why_no_gpus(resources, fleet)}",
            allowed="; ".join(_machine_gpus(inventory) for inventory in fleet),
            next=_gpu_next(resources, fleet),
        )
    where = f"a machine that has gpu={wanted}" if resources.gpus else "a machine of the fleet"
    if all(resources.memory_mib > inventory.memory_mib for inventory in with_gpus):
        most = max(inventory.memory_mib for inventory in with_gpus)
        return ErrorInfo(
            code=ErrorCode.NO_SUCH_HARDWARE, message=f"memory={_memory(resources.memory_mib)} is more than {where} has",
            allowed=f"at most {_memory(most)}", next=f"for example memory={max(64, most // 2)}MiB",
        )  # fmt: skip
    if all(resources.cpu > inventory.cpu_cores for inventory in with_gpus):
        most_cores = max(inventory.cpu_cores for inventory in with_gpus)
        return ErrorInfo(
            code=ErrorCode.NO_SUCH_HARDWARE, message=f"cpu={resources.cpu:g} is more than {where} has",
            allowed=f"at most {most_cores:g}", next=f"for example cpu={most_cores:g}",
        )  # fmt: skip
    return ErrorInfo(
        code=ErrorCode.NO_SUCH_HARDWARE, message=f"{_asked(resources)}: no one machine has all of it",
        allowed="; ".join(f"{i.hostname}: {_gpus(i)}, {i.cpu_cores:g} cores, {_memory(i.memory_mib)}" for i in fleet),
        next="ask for less CPU or memory, or for another GPU",
    )  # fmt: skip


def cannot_build(steps: Sequence[tuple[GpuChoice, ...]], fleet: Sequence[Inventory]) -> ErrorInfo:
    """Why no machine can ever build an image whose steps ask for these GPUs, where one could run it."""
    asked = [Resources(gpus=gpus, cpu=0.0, memory_mib=0) for gpus in steps]
    for one in asked:
        if not any(_has_gpus(inventory, one) for inventory in fleet):
            info = refusal(one, fleet)
            info.message = f"a step of the image asks for {info.message}"
            return info
    wanted = " and ".join(_asked(one) for one in asked)
    return ErrorInfo(
        code=ErrorCode.NO_SUCH_HARDWARE,
        message=f"steps of the image ask for {wanted}, and no machine that could run it has all: it is built where it runs",
        allowed="; ".join(_machine_gpus(inventory) for inventory in fleet), next="ask for the same GPU in all steps and the cell",
    )  # fmt: skip


def waiting(
    resources: Resources, machine: Machine, holdings: Sequence[Holding], uuids: Sequence[str], count: int, now: float,
    position: int,
) -> str:  # fmt: skip
    """What a request waits for and who has it, in one sentence."""
    host = machine.inventory.hostname
    what = _asked(resources)
    if machine.state is not WorkerState.JOINED:
        return f"{what} on {host}, which cannot be reached right now"
    ahead = f"; {position - 1} ahead in the queue" if position > 1 else ""
    held = [h for h in holdings if h.gpus & set(uuids)]
    names = [_holder(h, machine, now) for h in held]
    names += [f"GPU {g.index} is in use ({g.in_use})" for g in machine.inventory.gpus if g.in_use and g.uuid in uuids]
    free_gpus = sum(1 for g in machine.inventory.gpus if g.uuid in uuids and not g.in_use) - sum(
        len(h.gpus & set(uuids)) for h in held
    )
    if count <= free_gpus:  # the GPUs are there (or there are none to wait for): CPU or memory is not
        names = [_holder(h, machine, now) for h in holdings]
        used = sum(h.cpu for h in holdings), sum(h.memory_mib for h in holdings)
        inventory = machine.inventory
        what += (
            f" ({max(0.0, inventory.cpu_cores - used[0]):g} of {inventory.cpu_cores:g} cores and "
            f"{_memory(max(0, inventory.memory_mib - used[1]))} of {_memory(inventory.memory_mib)} are free)"
        )
    shown, more = names[:SHOWN_HOLDERS], len(names) - SHOWN_HOLDERS
    said = f": {', '.join(shown)}{f' and {more} more' if more > 0 else ''}" if names else ""
    return f"{what} on {host}{said}{ahead}"


def waited(seconds: float) -> str:
    """For how long a request has waited, to the minute: a list that is looked at must not change with every second."""
    hours, minutes = divmod(int(seconds // 60), 60)
    if not hours:
        return f"waits {minutes} min" if minutes else "waits less than a minute"
    return f"waits {hours} h {minutes} min" if minutes else f"waits {hours} h"


def _holder(holding: Holding, machine: Machine, now: float) -> str:
    indices = sorted(g.index for g in machine.inventory.gpus if g.uuid in holding.gpus)
    gpus = f"GPU {', '.join(map(str, indices))} " if indices else ""
    minutes = (now - holding.opened_unix_seconds) / 60
    since = f" for {minutes:.0f} min" if holding.opened_unix_seconds and minutes >= 1 else ""
    return f"{gpus}is held by {holding.who}{since}" if gpus else f"{holding.who} holds {holding.cpu:g} cores{since}"


def _has_gpus(inventory: Inventory, resources: Resources) -> bool:
    return not resources.gpus or any(_most(inventory, choice) >= choice.count for choice in resources.gpus)


def _most(inventory: Inventory, choice: GpuChoice) -> int:
    """The most GPUs of one type and kind that this machine could give to the choice."""
    counts = Counter((g.type, g.simulated) for g in inventory.gpus if choice.accepts(g.type))
    return max(counts.values(), default=0)


def _why_no_gpus(resources: Resources, fleet: Sequence[Inventory]) -> str:
    most = max((_most(inventory, choice), choice.type) for inventory in fleet for choice in resources.gpus)
    if most[0]:
        kind = "GPUs of one type" if most[1] == "any" else most[1]
        return f"no machine of the fleet has that many; the most on one is {most[0]} x {kind}"
    return (
        "no machine of the fleet has such a GPU" if any(i.gpus for i in fleet) else "no machine of the fleet has a GPU"
    )


def _gpu_next(resources: Resources, fleet: Sequence[Inventory]) -> str:
    fewer = [
        f"gpu={GpuChoice(choice.type, most)}"
        for choice in resources.gpus
        if (most := max(_most(inventory, choice) for inventory in fleet)) > 0
    ]
    there = sorted({g.type for inventory in fleet for g in inventory.gpus}, key=lambda t: _distance(resources, t))
    nearest = fewer[0] if fewer else f"gpu={there[0]}" if there else "the cell without gpu="
    first = resources.gpus[0]
    wanted = GpuChoice(GPU_FAMILIES.get(first.type, (first.type,))[0], first.count)
    if first.type == "any":
        wanted = GpuChoice("T4", first.count)
    return f"{nearest} would run; to try it without the hardware: `cellburst up --simulate-gpus {wanted.type}:{wanted.count}`"


def _distance(resources: Resources, gpu_type: str) -> tuple[int, str]:
    """How far a type's memory is from what was asked for: the nearest card is the likeliest stand-in."""
    first = resources.gpus[0].type
    wanted = GPU_MEMORY_MIB.get(GPU_FAMILIES.get(first, (first,))[0], 0)
    return abs(GPU_MEMORY_MIB.get(gpu_type, 0) - wanted), gpu_type


def _asked(resources: Resources) -> str:
    gpus = ",".join(str(choice) for choice in resources.gpus)
    if not resources.cpu and not resources.memory_mib:
        return f"gpu={gpus}"  # a build's
    rest = f"cpu={resources.cpu:g} memory={_memory(resources.memory_mib)}"
    return f"gpu={gpus} {rest}" if gpus else rest


def _machine_gpus(inventory: Inventory) -> str:
    return f"{inventory.hostname} has {_gpus(inventory)}"


def _gpus(inventory: Inventory) -> str:
    counts = Counter(f"simulated {g.type}" if g.simulated else g.type for g in inventory.gpus)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items())) or "no GPU"


def _memory(mib: int) -> str:
    return f"{mib / 1024:g}GiB" if mib % 1024 == 0 else f"{mib}MiB"
