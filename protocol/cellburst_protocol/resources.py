"""What a cell or function may ask for: GPUs, memory, CPU, time and money, parsed from what a person types.

Grammar of `gpu=`: alternatives separated by commas, first one that is free wins; each is `TYPE` or `TYPE:COUNT`, where
TYPE is a name of `GPU_TYPES` or one of its aliases in any case, a name as NVML gives it (with or without "NVIDIA"),
or `any`. `A100` means either memory size, `A100-40GB` and `A100-80GB` one of them.
"""

from __future__ import annotations

import difflib
import re
from decimal import Decimal, InvalidOperation

import msgspec

from .errors import ErrorCode, error

MAX_GPUS = 64  # more than any one machine has
DEFAULT_MAX_TIMEOUT_SECONDS = 24 * 3600
MIB = 1024 * 1024

# Canonical names, in the order people meet them, and what else they are called. NVML's names are matched by
# `canonical_gpu`; a consumer card is a type of its own by its NVML name ("RTX-4090").
GPU_TYPES: dict[str, tuple[str, ...]] = {
    "T4": ("TESLA-T4",),
    "L4": (),
    "A10G": ("A10",),
    "L40S": (),
    "L40": (),
    "A40": (),
    "A100-40GB": ("A100-SXM4-40GB", "A100-PCIE-40GB", "A100-40"),
    "A100-80GB": ("A100-SXM4-80GB", "A100-80GB-PCIE", "A100-PCIE-80GB", "A100-80"),
    "H100": ("H100-80GB-HBM3", "H100-PCIE", "H100-SXM5", "H100-NVL", "H100!"),
    "H200": ("H200-NVL", "H200-141GB-HBM3E"),
    "B200": (),
    "GH200": ("GH200-480GB",),
    "RTX-PRO-6000": ("RTX-PRO-6000-BLACKWELL-SERVER-EDITION", "RTX-PRO-6000-BLACKWELL-WORKSTATION-EDITION"),
    "RTX-6000-ADA": ("RTX-6000-ADA-GENERATION",),
    "RTX-A6000": ("A6000",),
    "RTX-A5000": ("A5000",),
    "RTX-A4000": ("A4000",),
    "RTX-5090": ("GEFORCE-RTX-5090", "5090"),
    "RTX-5080": ("GEFORCE-RTX-5080", "5080"),
    "RTX-4090": ("GEFORCE-RTX-4090", "4090"),
    "RTX-4080": ("GEFORCE-RTX-4080", "4080"),
    "RTX-4070": ("GEFORCE-RTX-4070", "4070"),
    "RTX-4060": ("GEFORCE-RTX-4060", "4060"),
    "RTX-3090": ("GEFORCE-RTX-3090", "3090"),
    "RTX-3080": ("GEFORCE-RTX-3080", "3080"),
    "RTX-3070": ("GEFORCE-RTX-3070", "3070"),
    "RTX-3060": ("GEFORCE-RTX-3060", "3060"),
    "RTX-2080-TI": ("GEFORCE-RTX-2080-TI", "2080TI"),
    "GTX-1080-TI": ("GEFORCE-GTX-1080-TI", "1080TI"),
    "V100": ("TESLA-V100-SXM2-16GB", "TESLA-V100-SXM2-32GB", "V100-SXM2-16GB", "V100-SXM2-32GB", "V100-PCIE-16GB"),
    "P100": ("TESLA-P100-PCIE-16GB", "P100-PCIE-16GB"),
}
# A request for the family is satisfied by each of its members.
GPU_FAMILIES: dict[str, tuple[str, ...]] = {"A100": ("A100-40GB", "A100-80GB")}
# What a simulated GPU of each type says its memory is, in MiB.
GPU_MEMORY_MIB: dict[str, int] = {
    "T4": 15360, "L4": 23034, "A10G": 23028, "L40S": 46068, "A100-40GB": 40960, "A100-80GB": 81920, "H100": 81559,
    "H200": 143771, "B200": 183359, "RTX-PRO-6000": 97887, "RTX-4090": 24564, "RTX-3090": 24576,
}  # fmt: skip

_ALIASES = {alias: name for name, aliases in GPU_TYPES.items() for alias in (name, *aliases)}


class GpuChoice(msgspec.Struct, frozen=True):
    """One alternative of a GPU request: `count` GPUs of `type` ("any", a family or a canonical or NVML-style name)."""

    type: str
    count: int = 1

    def __str__(self) -> str:
        return self.type if self.count == 1 else f"{self.type}:{self.count}"

    def accepts(self, gpu_type: str) -> bool:
        """Whether a GPU of this canonical type satisfies the choice."""
        return self.type in ("any", gpu_type) or gpu_type in GPU_FAMILIES.get(self.type, ())


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a container holds while it lives, and how long one call may take.

    `gpus` are alternatives, first that is free; empty means no GPU. `cpu` counts physical cores. `timeout_seconds`
    None means no limit of the user's. `budget_usd` is decimal text, never a float.
    """

    gpus: tuple[GpuChoice, ...] = ()
    cpu: float = 1.0
    memory_mib: int = 4096
    timeout_seconds: float | None = None
    scaledown_seconds: float = 300.0
    budget_usd: str | None = None
    network: str = "outbound"

    def same_container(self, other: Resources) -> bool:
        """Whether a container with `other` can serve this request: all but the per-call limits are equal."""
        return (self.gpus, self.cpu, self.memory_mib, self.network) == (
            other.gpus,
            other.cpu,
            other.memory_mib,
            other.network,
        )


def canonical_gpu(name: str) -> str | None:
    """The canonical type for a name as a person or NVML writes it, or None when it is not known.

    >>> canonical_gpu("NVIDIA A100-SXM4-80GB"), canonical_gpu("geforce rtx 4090"), canonical_gpu("a10")
    ('A100-80GB', 'RTX-4090', 'A10G')
    """
    key = re.sub(r"[\s_]+", "-", name.strip().upper())
    key = re.sub(r"^NVIDIA-", "", key)
    if key in _ALIASES:
        return _ALIASES[key]
    stripped = re.sub(r"-(LAPTOP-GPU|SUPER|D)$", "", key)
    return _ALIASES.get(stripped)


def gpu_type_of_device(nvml_name: str) -> str:
    """The type that a device of the inventory is listed under: canonical, or its own NVML name made safe."""
    known = canonical_gpu(nvml_name)
    if known is not None:
        return known
    return re.sub(r"[^A-Z0-9.]+", "-", re.sub(r"^NVIDIA\s+", "", nvml_name.upper())).strip("-") or "GPU"


def parse_gpus(text: str, extra_types: tuple[str, ...] = ()) -> tuple[GpuChoice, ...]:
    """Parse `gpu=`. `extra_types` are types the fleet has that the table lacks. Raises RequestError (UNKNOWN_GPU)."""
    choices: list[GpuChoice] = []
    for item in text.split(","):
        word = item.strip()
        name, colon, count_text = word.rpartition(":")
        if not colon:
            name, count_text = word, "1"
        if not name or not re.fullmatch(r"[0-9]{1,3}", count_text) or not 1 <= int(count_text) <= MAX_GPUS:
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"gpu={text!r}: {word!r} is not a GPU request",
                allowed=f"TYPE, TYPE:COUNT with 1 to {MAX_GPUS}, several with commas, or any",
                next="for example gpu=A100, gpu=A100:2 or gpu=H100,A100",
            )
        choices.append(GpuChoice(_gpu_name(name, text, extra_types), int(count_text)))
    return tuple(choices)


def _gpu_name(name: str, text: str, extra_types: tuple[str, ...]) -> str:
    key = re.sub(r"[\s_]+", "-", name.strip().upper())
    if key == "ANY":
        return "any"
    if key in GPU_FAMILIES or key in extra_types:
        return key
    known = canonical_gpu(name)
    if known is not None:
        return known
    names = ["any", *GPU_FAMILIES, *GPU_TYPES, *extra_types]
    all_names = [*names, *_ALIASES]
    digits = key.replace("O", "0").replace("I", "1")  # A1OO is typed for A100, though A10 is as near
    near = [digits] if digits in all_names else difflib.get_close_matches(key, all_names, n=1, cutoff=0.5)
    nearest = f"did you mean gpu={_ALIASES.get(near[0], near[0])}?" if near else "gpu=any takes whatever is free"
    raise error(
        ErrorCode.UNKNOWN_GPU, f"gpu={text!r}: {name!r} is no GPU type we know", allowed=", ".join(names), next=nearest
    )


_MEMORY_UNITS_MIB = {"": 1.0, "M": 1.0, "MB": 1e6 / MIB, "MIB": 1.0, "G": 1024.0, "GB": 1e9 / MIB, "GIB": 1024.0, "T": 1024.0**2,
                     "TB": 1e12 / MIB, "TIB": 1024.0**2}  # fmt: skip


def parse_memory_mib(text: str) -> int:
    """Parse `memory=`: `16GiB`, `512MiB`, `8G`, `1.5GB`; a bare number is MiB. Raises RequestError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    scale = _MEMORY_UNITS_MIB.get(match[2].upper()) if match else None
    if match is None or scale is None or not 64 <= float(match[1]) * scale <= 64 * 1024**2:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"memory={text!r} is not an amount of memory",
            allowed="a number with MiB, GiB, MB or GB, from 64MiB to 64TiB", next="for example memory=16GiB",
        )  # fmt: skip
    return round(float(match[1]) * scale)


def parse_cpu(text: str) -> float:
    """Parse `cpu=`: cores as a number from 0.1 to 1024. Raises RequestError."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text.strip()) or not 0.1 <= float(text) <= 1024:
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"cpu={text!r} is not a number of cores",
            allowed="0.1 to 1024",
            next="for example cpu=4",
        )
    return float(text)


_TIME_UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_seconds(text: str, key: str = "timeout", max_seconds: float = DEFAULT_MAX_TIMEOUT_SECONDS) -> float:
    """Parse a duration: `90`, `90s`, `30m`, `2h`, `1h30m`, `1d`. At most `max_seconds`. Raises RequestError."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    rebuilt = re.fullmatch(r"(\s*[0-9]+(\.[0-9]+)?\s*[a-z]*)+\s*", text.lower())
    total = sum(float(n) * _TIME_UNITS.get(u, float("nan")) for n, u in parts)
    if not parts or not rebuilt or not 0 < total <= max_seconds or (len(parts) > 1 and any(not u for _, u in parts)):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{key}={text!r} is not a duration",
            allowed=f"a number with s, m, h or d, more than 0 and at most {max_seconds / 3600:g}h", next=f"for example {key}=30m",
        )  # fmt: skip
    return total


LEAST_USD = Decimal("0.000000001")
MAX_USD_CHARACTERS = 40


def parse_usd(text: str, key: str = "budget") -> str:
    """Parse an amount of money: `$3`, `3`, `0.50`. Returns decimal text. Raises RequestError."""
    try:
        amount = Decimal(text.strip().removeprefix("$")) if len(text) <= MAX_USD_CHARACTERS else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    # A smaller one would be text of as many zeros as its exponent says.
    if not amount.is_finite() or not LEAST_USD <= amount <= 1_000_000:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{key}={text[:MAX_USD_CHARACTERS]!r} is not an amount in US dollars",
            allowed=f"more than 0 (at least {LEAST_USD:f}), at most 1000000", next=f"for example {key}=$3",
        )  # fmt: skip
    return format(amount, "f")
