"""How much text a call may print: counted, cut, and its tail kept. Pure, no I/O.

Stream text of a call passes until `limit_bytes`; what is beyond is held in a rolling tail of `tail_bytes` and dropped
from its front. At the end of the call the tail goes out behind a line that says exactly how many bytes are missing.
Errors, displays and everything else is never dropped here: credit bounds those.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from typing import Any, Optional

MAX_CALLS = 16  # late output of threads belongs to earlier calls; more than a few of them at once is not worth memory


class _Call:
    def __init__(self) -> None:
        self.passed_bytes = 0
        self.held: deque[tuple[bytes, int]] = deque()  # (message JSON, bytes of its text)
        self.held_bytes = 0
        self.dropped_bytes = 0
        self.marked_before_error = False


class OutputLimit:
    """Counts the stream text of calls. `admit` says whether a message passes; `tail` gives what was held back."""

    def __init__(self, limit_bytes: int, tail_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.tail_bytes = tail_bytes
        self._calls: OrderedDict[str, _Call] = OrderedDict()

    def admit(self, call: str, message: bytes, text_bytes: int) -> bool:
        """Whether a stream message of so much text may pass. If not, it is held as a part of the tail."""
        state = self._calls.get(call)
        if state is None:
            state = self._calls[call] = _Call()
            while len(self._calls) > MAX_CALLS:
                self._calls.popitem(last=False)
        if not state.held and not state.dropped_bytes and state.passed_bytes + text_bytes <= self.limit_bytes:
            state.passed_bytes += text_bytes
            return True
        state.held.append((message, text_bytes))
        state.held_bytes += text_bytes
        while len(state.held) > 1 and state.held_bytes - state.held[0][1] >= self.tail_bytes:
            _, size = state.held.popleft()
            state.held_bytes -= size
            state.dropped_bytes += size
        return False

    def tail_before_error(self, call: str) -> Optional[dict[str, Any]]:
        """As `tail`, before an error message is shown, so that the traceback stays last; once for each call."""
        state = self._calls.get(call)
        if state is None or state.marked_before_error:
            return None
        state.marked_before_error = True
        return self._take(state)

    def tail(self, call: str) -> Optional[dict[str, Any]]:
        """The message with marker line and tail if text of the call was held back, else None. Ends the call's count."""
        state = self._calls.pop(call, None)
        return None if state is None else self._take(state)

    def calls(self) -> list[str]:
        """Calls that have printed and were not ended by `tail`."""
        return list(self._calls)

    def _take(self, state: _Call) -> Optional[dict[str, Any]]:
        if not state.held:
            return None
        messages = [json.loads(message) for message, _ in state.held]
        text = "".join(m["content"]["text"] for m in messages).encode("utf-8", "surrogatepass")
        cut = max(0, len(text) - self.tail_bytes)
        while cut < len(text) and text[cut] & 0xC0 == 0x80:
            cut += 1  # never inside a character
        dropped = state.dropped_bytes + cut
        last: dict[str, Any] = messages[-1]
        marker = f"\n[{dropped} bytes of output dropped]\n" if dropped else ""
        last["content"] = {
            "name": last["content"]["name"],
            "text": marker + text[cut:].decode("utf-8", "surrogatepass"),
        }
        state.held.clear()
        state.held_bytes = 0
        state.dropped_bytes = 0
        state.passed_bytes = self.limit_bytes
        return last
