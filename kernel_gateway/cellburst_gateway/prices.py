"""What a second of hardware costs: reference prices that ship with Cellburst, over which the operator lays their own.

The operator's file is TOML; every key is optional. Amounts are decimal text or numbers, in US dollars.

    [gpu.A100-80GB]                # a type as `gpu=` names it
    usd_per_second = "0.0005"      # or usd_per_hour
    as_of = "2026-11-01"           # shown beside the price, as are source and note
    source = "our contract"
    note = "until March"

    [gpu.RTX-4090.own]             # instead of a price: what owning it costs
    price_usd = 1900               # what it cost, with its share of the machine
    years = 4                      # over which that is written off, running or not
    power_watts = 450              # under load; 0 if power is not paid for
    usd_per_kwh = "0.32"

    [cpu]                          # per physical core, and [memory] per GiB: the same keys, `own` too
    usd_per_second = 0

    [gpu.A100-80GB.reserved]       # beside a price: a whole machine with one, kept all the time, for the break-even in the panel
    usd_per_hour = "1.59"          # with as_of, source and note as above

All money is Decimal. Prices are what is shown as reference prices, never a bill.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.resources import GPU_FAMILIES, canonical_gpu

SECONDS_PER_YEAR = Decimal(31_557_600)  # of 365.25 days
SECONDS_PER_HOUR = Decimal(3600)
WATTS_PER_KW = Decimal(1000)
MIB_PER_GIB = Decimal(1024)
RATE_STEP = Decimal("1E-12")  # computed rates are rounded to this; a year of one still sums to the cent
SIMULATED_NOTE = "simulated GPU: price shown is what a real one would cost at reference prices"
REFERENCE_NOTE = "reference prices"

_PRICE_KEYS = frozenset({"usd_per_second", "usd_per_hour", "as_of", "source", "note", "own", "reserved"})
_OWN_KEYS = frozenset({"price_usd", "years", "power_watts", "usd_per_kwh"})


@dataclass(frozen=True, slots=True)
class Price:
    """One row: US dollars for one second of one GPU, core or GiB, since when, and who says so."""

    usd_per_second: Decimal
    as_of: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class RateLine:
    """One part of a rate: `amount` of `what` at a price each."""

    what: str
    amount: Decimal
    price: Price

    @property
    def usd_per_second(self) -> Decimal:
        """What the part costs each second."""
        return self.amount * self.price.usd_per_second


@dataclass(frozen=True, slots=True)
class Rate:
    """What a container costs each second: the sum of its lines. `note` is to be shown with it."""

    usd_per_second: Decimal
    lines: tuple[RateLine, ...]
    note: str


@dataclass(frozen=True)
class PriceTable:
    """Prices by canonical GPU type, of a core and of a GiB; `reserved`: of one GPU with its share of a machine that is kept all
    the time, for the types where somebody says one."""

    gpus: dict[str, Price]
    cpu: Price
    memory: Price
    reserved: dict[str, Price] = field(default_factory=dict)

    @staticmethod
    def load(operator_file: Path | None = None) -> PriceTable:
        """The shipped table, with the operator's file over it. Raises RequestError (BAD_ARGUMENT) naming file and line."""
        shipped = resources.files("cellburst_gateway").joinpath("prices.toml").read_text("utf-8")
        table = PriceTable.parse(shipped, "prices.toml", _EMPTY)
        if operator_file is None:
            return table
        try:
            text = operator_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as why:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"the price file {str(operator_file)!r} cannot be read: {why}",
                next="correct its path in the configuration, or leave it out for reference prices",
            ) from None  # fmt: skip
        return PriceTable.parse(text, str(operator_file), table)

    @staticmethod
    def parse(text: str, origin: str, base: PriceTable) -> PriceTable:
        """`base` with a TOML text's prices over it; `origin` names it in errors."""
        reader = _Reader(text, origin)
        document = reader.document()
        gpus = dict(base.gpus)
        entries = document.get("gpu", {})
        if not isinstance(entries, dict):
            reader.refuse("gpu", "gpu must be tables such as [gpu.T4]")
        reserved = dict(base.reserved)
        for name, entry in entries.items():
            kept = reader.reserved(f"gpu.{name}", entry)
            price = reader.price(f"gpu.{name}", entry) if kept is None or set(entry) != {"reserved"} else None
            for canonical in _types_of(name):
                if price is not None:
                    gpus[canonical] = price
                if kept is not None:
                    reserved[canonical] = kept
        cpu = reader.price("cpu", document["cpu"]) if "cpu" in document else base.cpu
        memory = reader.price("memory", document["memory"]) if "memory" in document else base.memory
        return PriceTable(gpus, cpu, memory, reserved)

    def gpu_price(self, gpu_type: str) -> Price:
        """The price of one GPU of a canonical type; 0 with a note how to set one where there is none."""
        return self.gpus.get(gpu_type) or Price(
            Decimal(0), "", "none", f"no price for {gpu_type}: set [gpu.{gpu_type}] in the price file; it counts as $0"
        )

    def rate(self, gpu_types: Sequence[str], cpu: float, memory_mib: int, *, simulated: bool = False) -> Rate:
        """What a container with these GPUs (canonical types), cores and memory costs each second."""
        lines = [
            RateLine(name, Decimal(gpu_types.count(name)), self.gpu_price(name)) for name in sorted(set(gpu_types))
        ]
        notes = [SIMULATED_NOTE] if simulated and gpu_types else []
        notes += [line.price.note for line in lines if line.price.source == "none"]
        lines.append(RateLine("CPU core", Decimal(str(cpu)), self.cpu))
        lines.append(RateLine("GiB of memory", Decimal(memory_mib) / MIB_PER_GIB, self.memory))
        total = sum((line.usd_per_second for line in lines), Decimal(0))
        return Rate(total, tuple(lines), "; ".join(notes) or self._reference_note(lines))

    def _reference_note(self, lines: list[RateLine]) -> str:
        said = sorted({f"{line.price.source}, {line.price.as_of}".strip(", ") for line in lines if line.usd_per_second})
        return f"{REFERENCE_NOTE} ({'; '.join(said)})" if said else REFERENCE_NOTE


_EMPTY = PriceTable({}, Price(Decimal(0), "", "none"), Price(Decimal(0), "", "none"))


def own_usd_per_second(price_usd: Decimal, years: Decimal, power_watts: Decimal, usd_per_kwh: Decimal) -> Decimal:
    """What a second of one's own hardware costs: its price spread over its years, plus its power under load."""
    hardware = price_usd / (years * SECONDS_PER_YEAR)
    power = power_watts / WATTS_PER_KW * usd_per_kwh / SECONDS_PER_HOUR
    return (hardware + power).quantize(RATE_STEP)


def _types_of(name: str) -> tuple[str, ...]:
    upper = name.upper()
    return GPU_FAMILIES.get(upper, (canonical_gpu(name) or upper,))


class _Reader:
    """Reads one price file; its errors name the file, the line and the key."""

    def __init__(self, text: str, origin: str) -> None:
        self._text, self._origin = text, origin

    def document(self) -> dict[str, Any]:
        try:
            document = tomllib.loads(self._text, parse_float=Decimal)
        except (tomllib.TOMLDecodeError, InvalidOperation) as why:  # the first says the line itself
            raise self._error(f"is not TOML: {why}", "see the keys at the top of prices.py") from None
        self._known("", document, frozenset({"currency", "gpu", "cpu", "memory"}))
        if document.get("currency", "USD") != "USD":
            self.refuse("currency", f"currency {document['currency']!r} is not supported", "USD")
        return document

    def price(self, where: str, entry: object) -> Price:
        if not isinstance(entry, dict):
            self.refuse(where, f"[{where}] must be a table", "usd_per_second, usd_per_hour or own")
        self._known(where, entry, _PRICE_KEYS)
        given = [key for key in ("usd_per_second", "usd_per_hour", "own") if key in entry]
        if len(given) != 1:
            self.refuse(
                where, f"[{where}] has {' and '.join(given) or 'no price'}", "one of usd_per_second, usd_per_hour, own"
            )
        as_of, note = self._said(where, entry, "as_of"), self._said(where, entry, "note")
        source = self._said(where, entry, "source") or ("own hardware" if given == ["own"] else "operator")
        if given == ["own"]:
            return Price(self._own(f"{where}.own", entry["own"]), as_of, source, note)
        amount = self._amount(where, entry, given[0])
        return Price(
            amount if given == ["usd_per_second"] else (amount / SECONDS_PER_HOUR).quantize(RATE_STEP),
            as_of,
            source,
            note,
        )

    def reserved(self, where: str, entry: object) -> Price | None:
        """What `entry` says a kept machine costs, None where it says nothing of it."""
        if not isinstance(entry, dict) or "reserved" not in entry:
            return None
        where, inner = f"{where}.reserved", entry["reserved"]
        if isinstance(inner, dict) and "reserved" in inner:
            self.refuse(where, f"[{where}] has a reserved of its own")
        return self.price(where, inner)

    def _own(self, where: str, entry: object) -> Decimal:
        if not isinstance(entry, dict):
            self.refuse(where, f"[{where}] must be a table", ", ".join(sorted(_OWN_KEYS)))
        self._known(where, entry, _OWN_KEYS)
        for key in ("price_usd", "years"):
            if key not in entry:
                self.refuse(where, f"[{where}] has no {key}", ", ".join(sorted(_OWN_KEYS)))
        watts = self._amount(where, entry, "power_watts") if "power_watts" in entry else Decimal(0)
        if watts and "usd_per_kwh" not in entry:
            self.refuse(f"{where}.power_watts", f"[{where}] has power_watts and no usd_per_kwh", "both, or neither")
        kwh = self._amount(where, entry, "usd_per_kwh") if "usd_per_kwh" in entry else Decimal(0)
        years = self._amount(where, entry, "years")
        if not years:
            self.refuse(f"{where}.years", f"[{where}] years = 0", "more than 0")
        return own_usd_per_second(self._amount(where, entry, "price_usd"), years, watts, kwh)

    def _amount(self, where: str, entry: dict[str, Any], key: str) -> Decimal:
        value = entry[key]
        try:
            amount = Decimal("NaN") if isinstance(value, bool) else Decimal(value)
        except (InvalidOperation, TypeError, ValueError):
            amount = Decimal("NaN")
        if not amount.is_finite() or amount < 0:
            self.refuse(f"{where}.{key}", f"{key} = {value!r} in [{where}] is not an amount", "a number of at least 0")
        return amount

    def _said(self, where: str, entry: dict[str, Any], key: str) -> str:
        value = entry.get(key, "")
        if not isinstance(value, str) and hasattr(value, "isoformat"):
            return str(value.isoformat())  # a TOML date
        if not isinstance(value, str):
            self.refuse(f"{where}.{key}", f"{key} = {value!r} in [{where}] is not text", "text in quotes")
        return value

    def _known(self, where: str, entry: dict[str, Any], known: frozenset[str]) -> None:
        for key in entry:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                meant = f"; did you mean {near[0]}?" if near else ""
                self.refuse(f"{where}.{key}".lstrip("."), f"unknown key {key!r}{meant}", ", ".join(sorted(known)))

    def refuse(self, where: str, message: str, allowed: str = "") -> NoReturn:
        raise self._error(f"line {self._line_of(where)}: {message}", allowed)

    def _error(self, message: str, allowed: str) -> CellburstError:
        return error(
            ErrorCode.BAD_ARGUMENT,
            f"price file {self._origin}: {message}",
            allowed=allowed,
            next="correct it and start again",
        )

    def _line_of(self, where: str) -> int:
        """The line of a key or table: tomllib keeps none, so it is looked for; the table's own line where that fails."""
        table, _, key = where.rpartition(".")
        inside, best = "", 1
        for number, line in enumerate(self._text.splitlines(), 1):
            header = re.match(r"\s*\[([^\]]+)\]", line)
            if header:
                inside = re.sub(r"[\s\"']", "", header[1])
                if inside == where:
                    return number
                best = number if inside == table else best
            elif inside == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
                return number
        return best
