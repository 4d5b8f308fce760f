"""What a call prints, on its way from executor to worker: limited, its tail kept, and found in the pipes where the executor
cannot send it itself."""

from __future__ import annotations

from typing import Any, Optional

from . import wire
from .executor_process import ExecutorProcess
from .output_limit import OutputLimit
from .supervisor_start import stream_message
from .worker_link import WorkerLink

DEFAULT_LIMIT_BYTES = 33_554_432
DEFAULT_TAIL_BYTES = 1_048_576


class Output:
    """Passes IOPub messages on to the link, within the limits of the last RunnerStart."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._limit = OutputLimit(0, 0)

    def set_limits(self, start: dict[str, Any]) -> None:
        """Take the limits of a RunnerStart; what was counted so far is forgotten."""
        limit, tail = start.get("output_limit_bytes"), start.get("output_tail_bytes")
        self._limit = OutputLimit(
            DEFAULT_LIMIT_BYTES if limit is None else limit, DEFAULT_TAIL_BYTES if tail is None else tail
        )

    def iopub(self, message: dict[str, Any], framed: bytes, buffers: list[memoryview]) -> None:
        """One IOPub message of the executor, with its length in front."""
        call = message.get("call", "")
        if message["msg_type"] == "stream":
            if not self._limit.admit(call, bytes(buffers[0]), message.get("text_bytes", 0)):
                return
        elif message["msg_type"] == "error":
            self._send_tail(call, self._limit.tail_before_error(call))
        self._link.event(framed)

    def send_tails(self) -> None:
        """The end of what was too much, for all calls."""
        for call in self._limit.calls():
            self._send_tail(call, self._limit.tail(call))

    def drain_pipes(self, executor: ExecutorProcess, call: str, parent: dict[str, Any]) -> None:
        """Send what lies in the pipes of descriptors 1 and 2 of an executor that is dead or silent."""
        for name in executor.pipes:
            data = executor.read_pipe(name)
            if data:
                message, size = stream_message(name, data.decode("utf-8", "replace"), parent)
                if self._limit.admit(call, message, size):
                    head = {"t": "iopub", "call": call, "msg_type": "stream", "text_bytes": size}
                    self._link.event(wire.encode(head, [message]))

    def _send_tail(self, call: str, tail: Optional[dict[str, Any]]) -> None:
        if tail is not None:
            size = len(tail["content"]["text"].encode("utf-8", "replace"))
            head = {"t": "iopub", "call": call, "msg_type": "stream", "text_bytes": size}
            self._link.event(wire.encode(head, [wire.encode_head(tail)]))
