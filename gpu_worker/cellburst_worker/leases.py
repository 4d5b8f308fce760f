"""Which GPUs, CPU and memory of this machine are held, by whom, since when. Pure: time is passed in.

The gateway decides where a container goes; this book is the machine's own last word. A GPU is held by one lease at a
time. CPU and memory are counted but only a request larger than the whole machine is refused: how far they may be
promised more than once is the gateway's policy, and the cgroup limits hold in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import Inventory


@dataclass(frozen=True)
class Lease:
    """The right of a container to a part of this machine. `since_seconds` is the worker's monotonic clock."""

    id: str
    container: str
    epoch: int
    gpus: tuple[str, ...]
    cpu: float
    memory_mib: int
    since_seconds: float


class LeaseBook:
    """All leases of this machine."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._by_container: dict[str, Lease] = {}
        self._gpu_holder: dict[str, str] = {}
        self._highest_epoch = 0

    def take(self, lease: Lease) -> bool:
        """Record a lease. False: exactly this one is held already (a repeated request).

        Raises RequestError (CONFLICT: another lease has a GPU or the container's name, or a newer gateway has spoken;
        NOT_FOUND: no such GPU) and CapacityError (NO_SUCH_HARDWARE: more than the machine has); nothing is held then.
        """
        held = self._by_container.get(lease.container)
        if held is not None:
            if held.id == lease.id:
                return False
            raise error(ErrorCode.CONFLICT, f"container {lease.container} has lease {held.id}, not {lease.id}")
        self._check_epoch(lease.epoch)
        self._check_gpus(lease)
        self._check_size(lease)
        self._by_container[lease.container] = lease
        self._gpu_holder.update(dict.fromkeys(lease.gpus, lease.container))
        return True

    def release(self, container: str) -> Lease | None:
        """Give back what a container holds. None when it holds nothing."""
        lease = self._by_container.pop(container, None)
        for uuid in lease.gpus if lease else ():
            del self._gpu_holder[uuid]
        self.validate()
        return lease

    def free_gpus(self) -> list[str]:
        """UUIDs that no lease holds, in the inventory's order."""
        return [gpu.uuid for gpu in self._inventory.gpus if gpu.uuid not in self._gpu_holder]

    @property
    def held(self) -> list[Lease]:
        """All leases, oldest first."""
        return list(self._by_container.values())

    @property
    def held_cpu(self) -> float:
        """Cores promised."""
        return sum(lease.cpu for lease in self._by_container.values())

    @property
    def held_memory_mib(self) -> int:
        """Memory promised."""
        return sum(lease.memory_mib for lease in self._by_container.values())

    def validate(self) -> None:
        """Assert what holds after every call: GPUs and leases name each other."""
        held = {uuid: lease.container for lease in self._by_container.values() for uuid in lease.gpus}
        assert held == self._gpu_holder, (held, self._gpu_holder)

    def _check_epoch(self, epoch: int) -> None:
        if epoch < self._highest_epoch:
            raise error(
                ErrorCode.CONFLICT,
                f"a lease of gateway epoch {epoch}; this worker has served epoch {self._highest_epoch}",
                next="stop the older gateway: only one may be active",
            )
        self._highest_epoch = epoch

    def _check_gpus(self, lease: Lease) -> None:
        known = {gpu.uuid for gpu in self._inventory.gpus}
        if len(set(lease.gpus)) != len(lease.gpus):
            raise error(ErrorCode.BAD_ARGUMENT, f"a lease names a GPU twice: {', '.join(lease.gpus)}")
        for uuid in lease.gpus:
            if uuid not in known:
                raise error(
                    ErrorCode.NOT_FOUND, f"this machine has no GPU {uuid}", allowed=", ".join(sorted(known)) or "none"
                )
            if uuid in self._gpu_holder:
                raise error(
                    ErrorCode.CONFLICT, f"GPU {uuid} is leased to container {self._gpu_holder[uuid]}",
                    allowed=", ".join(self.free_gpus()) or "none is free",
                )  # fmt: skip

    def _check_size(self, lease: Lease) -> None:
        if lease.memory_mib > self._inventory.memory_mib or lease.cpu > self._inventory.cpu_cores:
            raise error(
                ErrorCode.NO_SUCH_HARDWARE,
                f"cpu={lease.cpu:g} and memory={lease.memory_mib}MiB are more than this machine has",
                allowed=f"at most cpu={self._inventory.cpu_cores:g} and memory={self._inventory.memory_mib}MiB",
            )
