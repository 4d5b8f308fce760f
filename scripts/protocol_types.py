"""Writes labextension/src/protocol.ts, the TypeScript of what the panel is sent. A test fails when it is stale."""

from __future__ import annotations

import enum
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from cellburst_jupyter.server import schedule_form, transfers
from cellburst_protocol import messages
from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.network_file_systems import SharedList, SharedSize
from cellburst_protocol.volumes import VolumeList

TARGET = Path(__file__).resolve().parent.parent / "labextension" / "src" / "protocol.ts"
ROOTS: list[Any] = [
    messages.Status, messages.CostReport, messages.Spending, messages.Logs, messages.SessionParked, messages.SecretList,
    messages.RunList, messages.TakeEnds, messages.Ends, messages.SchedulePreview, schedule_form.SchedulesShown,
    schedule_form.ScheduleShown, schedule_form.LookAt, schedule_form.Looked, schedule_form.SaveSchedule, VolumeList,
    transfers.FolderList, transfers.VolumeChange, SharedList, SharedSize, ErrorInfo,
]  # fmt: skip
PLAIN = {
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
    object: "unknown",
    Any: "unknown",
}


class Writer:
    """Collects what the roots need, each type once."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}

    def name(self, kind: Any) -> str:
        """A type as TypeScript, with what it stands on written first."""
        origin, args = get_origin(kind), get_args(kind)
        if kind in PLAIN:
            return PLAIN[kind]
        if origin is Literal:
            return " | ".join(f"'{a}'" for a in args)
        if origin in (Union, types.UnionType):
            return " | ".join(dict.fromkeys(self.name(a) for a in args))
        if origin in (list, set, frozenset):
            inner = self.name(args[0])
            return f"({inner})[]" if " | " in inner else f"{inner}[]"
        if origin is tuple:
            return f"{self.name(args[0])}[]" if args[-1:] == (...,) else f"[{', '.join(map(self.name, args))}]"
        if origin is dict:
            return f"Record<string, {self.name(args[1])}>"
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            self.done.setdefault(
                kind.__name__,
                f"export type {kind.__name__} =\n  | " + "\n  | ".join(f"'{m.value}'" for m in kind) + ";\n",
            )
            return kind.__name__
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind.__name__ not in self.done:
                self.done[kind.__name__] = ""  # one that holds itself
                self.done[kind.__name__] = self.struct(kind)
            return kind.__name__
        raise TypeError(f"{kind!r} has no TypeScript")

    def struct(self, kind: type[msgspec.Struct]) -> str:
        """An interface, or a tuple for a struct that is an array on the wire. What has a default may be left out."""
        hints = get_type_hints(kind)
        fields = msgspec.structs.fields(kind)
        if kind.__struct_config__.array_like:
            parts = ", ".join(f"{f.encode_name}: {self.name(hints[f.name])}" for f in fields)
            return f"export type {kind.__name__} = [{parts}];\n"
        lines = [f"  {f.encode_name}{'' if f.required else '?'}: {self.name(hints[f.name])};" for f in fields]
        says = " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("*/", "")
        body = "\n".join(lines)
        return f"/** {says} */\nexport interface {kind.__name__} {{\n{body}\n}}\n"


def text() -> str:
    """The whole file."""
    writer = Writer()
    for root in ROOTS:
        writer.name(root)
    head = (
        "// Made by scripts/protocol_types.py from protocol/. Do not edit: change the protocol and run it again.\n"
        "// What has a default is left out on the wire.\n\n"
    )
    return head + "\n".join(writer.done[name] for name in sorted(writer.done))


if __name__ == "__main__":
    TARGET.write_text(text())
