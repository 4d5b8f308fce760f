"""What leaves one container, with the values of its secrets hidden: before the spool, so that nothing stored has them.

There is one only for containers that were given a secret; all others' output is passed on unread. Text of a stream may be held
back for a moment (see `redact.py`); whatever comes behind it on the same way lets it go first, so that the order stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import IOPub, NameGroup, ReleaseSecrets, encode
from cellburst_protocol.secrets import MAX_VALUE_BYTES

from .blobs import _open_regular as open_regular
from .redact import Redactor, TextStream
from .values import FILE_NAME, FILE_PREFIX

READ_BYTES = 4 * 1024 * 1024
HIDDEN_MARK = "****("  # what every hidden value begins with, see `redact.py`
# Fields that are ours: hashes and ids must not change because a value of six digits is in them. Names of `home` are sealed as
# they are: a group with a value in one of its names does not leave (`held_back`). What the container's code chooses, such as a
# file's path, is not ours.
_OURS = frozenset({
    "t", "hash", "mac", "call", "container", "session", "lease", "id", "known_as", "home", "parts", "image_id",
    "mirror_identity", "value_key", "msg_type",
})  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """An event that may be spooled: its head, its buffers, and the call that it belongs to."""

    head: bytes
    buffers: Sequence[Buffer]
    call: str


@dataclass
class _Held:
    """A stream that holds text: the message that it came with, and its call."""

    name: str
    message: dict[str, Any]
    call: str


class Hiding:
    """One container's."""

    def __init__(self) -> None:
        self._redactor = Redactor()
        self._streams: dict[str, TextStream] = {}
        self._held: _Held | None = None

    def add(self, release: ReleaseSecrets) -> None:
        """Values that the container is about to get, and those that it had."""
        now = {f"{release.origins.get(key, 'secret')}.{key}": value for key, value in release.environment.items()}
        self._redactor.add({**now, **release.hidden})

    def know(self, given: Iterable[tuple[str, str]]) -> None:
        """Values that a parked session's container had, as its `given` was."""
        for label, value in given:
            self._redactor.add({label: value})

    @property
    def given(self) -> list[tuple[str, str]]:
        """Every value that is hidden, with its label `name.KEY`: also those that were replaced since."""
        return self._redactor.given

    # -- events of the runner --------------------------------------------------------------------------------------

    def iopub(self, event: IOPub, buffers: Sequence[Buffer], call: str, now: float) -> list[Shown]:
        """A Jupyter message: what may be spooled now. `now`: monotonic seconds."""
        if event.msg_type == "stream" and buffers:
            try:
                message = json.loads(bytes(buffers[0]))
                name, text = message["content"]["name"], message["content"]["text"]
            except (ValueError, KeyError, TypeError):
                name, text, message = "", None, {}
            if isinstance(text, str):
                return self._stream(str(name), text, message, call, now)
        head = encode(event)
        hidden = [self.json(buffers[0])] if buffers else []
        hidden += [self._redactor.data(bytes(buffer)) for buffer in buffers[1:]]
        return [*self.settle(), Shown(head, hidden, call)]

    def _stream(self, name: str, text: str, message: dict[str, Any], call: str, now: float) -> list[Shown]:
        shown = []
        held = self._held
        if held is not None and (held.name != name or _parent(held.message) != _parent(message)):
            shown = self.settle()
        stream = self._streams.setdefault(name, TextStream(self._redactor))
        given = stream.write(text, now)
        self._held = _Held(name, message, call) if stream.held else None
        return [*shown, *self._message(message, given, call)]

    def settle(self) -> list[Shown]:
        """Let go of held text: something else comes behind it."""
        held, self._held = self._held, None
        return self._message(held.message, self._streams[held.name].settle(), held.call, again=True) if held else []

    def due(self, now: float) -> list[Shown]:
        """Let go of text that was held for long enough."""
        if self._held is None:
            return []
        held, stream = self._held, self._streams[self._held.name]
        given = stream.due(now)
        if not stream.held:
            self._held = None
        return self._message(held.message, given, held.call, again=True)

    @property
    def due_at(self) -> float | None:
        """When `due` should be called, None: not at all."""
        return self._streams[self._held.name].due_at if self._held is not None else None

    def _message(self, message: dict[str, Any], text: str, call: str, *, again: bool = False) -> list[Shown]:
        if not text:
            return []
        header = dict(message.get("header") or {})
        if again and "msg_id" in header:
            header["msg_id"] = f"{header['msg_id']}-rest"
        whole = {
            **message, "header": header, "metadata": self._redactor.strings(message.get("metadata", {})),
            "content": {**self._redactor.strings({**message["content"], "text": ""}), "text": text},
        }  # fmt: skip
        head = encode(IOPub(msg_type="stream", text_bytes=len(text.encode("utf-8", "replace"))))
        return [Shown(head, [json.dumps(whole, separators=(",", ":")).encode()], call)]

    # -- other messages --------------------------------------------------------------------------------------------

    def head(self, head: Buffer) -> bytes:
        """A message's head with texts hidden; fields of ours stay."""
        before = msgspec.json.decode(head)
        after = self._fields(before)
        return bytes(head) if after == before else msgspec.json.encode(after)

    def json(self, buffer: Buffer) -> bytes:
        """JSON from the executor."""
        return self._redactor.json(bytes(buffer))

    def content(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """An answer's content."""
        hidden: dict[str, Any] = self._redactor.strings(dict(content))
        return hidden

    def text(self, text: str) -> str:
        """One text."""
        return self._redactor.text(text)

    def data(self, buffer: Buffer) -> bytes:
        """Raw bytes beside an answer's content."""
        return self._redactor.data(bytes(buffer))

    def error(self, info: ErrorInfo) -> ErrorInfo:
        """An error's texts."""
        text = self.text
        return msgspec.structs.replace(
            info, message=text(info.message), allowed=text(info.allowed), next=text(info.next),
            detail=self._redactor.strings(info.detail),
        )  # fmt: skip

    def paths(self, paths: Iterable[str]) -> dict[str, str]:
        """What each path is shown as. Two that would be shown alike are told apart by a number, always in the same way."""
        shown: dict[str, str] = {}
        taken = set(paths)
        numbers: dict[str, int] = {}  # the last one of each name: thousands may be shown alike
        for path in sorted(taken):
            name = base = self.text(path)
            while name != path and name in taken:
                numbers[base] = numbers.get(base, 1) + 1
                name = f"{base}~{numbers[base]}"
            taken.add(name)
            shown[path] = name
        return shown

    def _fields(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item if key in _OURS else self._fields(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fields(item) for item in value]
        return self._redactor.text(value) if isinstance(value, str) else value

    # -- values ----------------------------------------------------------------------------------------------------

    def held_back(self, groups: Sequence[NameGroup], buffers: Sequence[Buffer], out: Path) -> set[int]:
        """Which groups (by their place) have a secret's value in their names or bytes: inline ones, or files of OUT. Blocks."""
        waiting = iter(buffers)
        found = set()
        for number, group in enumerate(groups):
            if any(self.text(name) != name for name in group.names):
                found.add(number)
            for part in group.parts:
                if part.at == "inline":
                    buffer = next(waiting, b"")
                    has = self._redactor.holds(bytes(buffer))
                else:
                    has = part.at == "blob" and self._in_file(out, part.hash.removeprefix(FILE_PREFIX), part.size_bytes)
                if has:
                    found.add(number)
        return found

    def _in_file(self, out: Path, name: str, size_bytes: int) -> bool:
        if not FILE_NAME.fullmatch(name) or not size_bytes:
            return False
        try:
            number = open_regular(out / name, size_bytes, os.O_RDONLY)
        except Exception:  # whoever takes the file says what is wrong with it
            return False
        # By read and not by mmap: a container that cuts the file short meanwhile must give an error and no SIGBUS.
        try:
            rest = b""
            while piece := os.read(number, READ_BYTES):
                if self._redactor.holds(rest + piece):
                    return True
                rest = (rest + piece)[-MAX_VALUE_BYTES:]
            return False
        except OSError:
            return False
        finally:
            os.close(number)


def _parent(message: dict[str, Any]) -> object:
    return (message.get("parent_header") or {}).get("msg_id")
