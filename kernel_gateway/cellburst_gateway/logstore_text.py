"""The text in a logged event, as `%modal logs` shows it: streams, errors, results, notices and builds; pure.

Of escape sequences only SGR colours stay (ECMA-48, 8.3.117): the others could move the reader's cursor or set titles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

_SHOWN = (b'"iopub"', b'"notice"', b'"build_log"')
_ESCAPES = re.compile(
    r"\x1b(?!\[[0-9;:]*m)(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[PX^_][^\x1b]*(\x1b\\)?|.)?", re.S
)


def text_of(head: bytes, buffers: Sequence[bytes]) -> str:
    """The text of one event (an Event's head, or a Numbered's with the event in it); "" where it has none."""
    if not any(tag in head for tag in _SHOWN):
        return ""
    try:
        event: dict[str, Any] = msgspec.json.decode(head)
        if event.get("t") == "numbered":
            event = event["event"]
        if event["t"] == "notice":
            return plain(f"{event['text']}\n")
        if event["t"] == "build_log":
            return plain("".join(f"{line}\n" for line in event["lines"]))
        if event["t"] != "iopub" or not buffers:
            return ""
        return plain(_message_text(event["msg_type"], msgspec.json.decode(buffers[0])["content"]))
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return ""  # a message that user code made up; logs show the rest


def plain(text: str) -> str:
    """The text without escape sequences other than colours."""
    return _ESCAPES.sub("", text)


def _message_text(msg_type: str, content: dict[str, Any]) -> str:
    if msg_type == "stream":
        return str(content["text"])
    if msg_type == "error":
        lines = content.get("traceback") or [f"{content['ename']}: {content['evalue']}"]
        return "\n".join(str(line) for line in lines) + "\n"
    if msg_type in ("execute_result", "display_data"):
        text = content["data"].get("text/plain", "")
        return f"{text}\n" if text else ""
    return ""
