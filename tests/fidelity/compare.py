"""Run a cell as a front end would and reduce what came back to what two kernels must agree on."""

from __future__ import annotations

import base64
import hashlib
import io
import queue
import re
from typing import Any

from PIL import Image

from bench.harness import Kernel

from .cells import Cell

TIMEOUT_SECONDS = 60.0
# What may differ: addresses, process ids, temporary paths, timings, host names, random ids of widgets and displays.
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"0x[0-9a-f]{6,}"), "0xADDRESS"),
    (re.compile(r"/tmp/ipykernel_\d+/\d+\.py"), "/tmp/CELL.py"),
    (re.compile(r"(?<![\w.])\d{6,}\.py"), "CELL.py"),
    (re.compile(r"/\S*/(notebook-\d+|nb-\w+)"), "FOLDER"),
    (re.compile(r"\bnotebook-\d+\b"), "FOLDER"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"), "ID"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"(CPU times|Wall time):.*"), r"\1: T"),
    (re.compile(r"# ?%%modal[^\n]*"), "# %%modal"),
    # The platform's own lines (what stayed, which files were written) come besides the cell's output, never instead of it.
    (re.compile(r"^cellburst: .*\n", re.MULTILINE), ""),
]
_DROPPED = {"status", "execute_input"}


def normal(value: Any) -> Any:
    """`value` with everything that may differ replaced."""
    if isinstance(value, str):
        for pattern, replacement in _RULES:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {k: normal(v) for k, v in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [normal(v) for v in value]
    return value


def run(kernel: Kernel, cell: Cell, first_line: str) -> dict[str, Any]:
    """Execute the row and return its outputs and reply, reduced. `first_line` is the magic or its comment."""
    client = kernel.client
    # A nested cell magic must stay first in a plain kernel; under %%modal it is the body's first line.
    plain = not first_line.startswith("%%")
    code = cell.source if plain and cell.source.startswith("%%") else f"{first_line}\n{cell.source}"
    message_id = client.execute(code, allow_stdin=True)
    answers = list(cell.answers)
    events: list[dict[str, Any]] = []
    reply: dict[str, Any] | None = None
    idle = False
    while reply is None or not idle:
        for message in _next_messages(client):
            kind = message["msg_type"]
            if kind == "input_request":
                events.append({"type": "input_request", "content": message["content"]})
                client.input(answers.pop(0))
            elif message["parent_header"].get("msg_id") != message_id:
                continue
            elif kind == "execute_reply":
                reply = message["content"]
            elif kind == "status":
                idle = message["content"]["execution_state"] == "idle"
            else:
                events.append({"type": kind, "content": message["content"]})
                if cell.widget_value is not None and kind == "comm_open" and _is_slider(message):
                    _change(client, message["content"]["comm_id"], cell.widget_value, cell.subshell)
    return {"outputs": _merge(events), "reply": _reply(reply)}


def _next_messages(client: Any) -> list[dict[str, Any]]:
    """Whatever has arrived on any channel; waits a little on IOPub when nothing has."""
    found = []
    for channel in (client.iopub_channel, client.shell_channel, client.stdin_channel):
        try:
            found.append(channel.get_msg(timeout=0.02 if channel is client.iopub_channel else 0))
        except queue.Empty:
            continue
    return found


def _is_slider(message: dict[str, Any]) -> bool:
    return bool(message["content"]["data"].get("state", {}).get("_model_name") == "IntSliderModel")


def _change(client: Any, comm_id: str, value: int, subshell: bool) -> None:
    """What JupyterLab sends when a slider is moved, on a subshell as it does by default."""
    content = {"comm_id": comm_id, "data": {"method": "update", "state": {"value": value}, "buffer_paths": []}}
    change = client.session.msg("comm_msg", content)
    if subshell:
        client.control_channel.send(client.session.msg("create_subshell_request", {}))
        reply = client.control_channel.get_msg(timeout=TIMEOUT_SECONDS)
        change["header"]["subshell_id"] = reply["content"]["subshell_id"]
    client.shell_channel.send(change)


def _merge(events: list[dict[str, Any]]) -> list[Any]:
    """Streams joined between other outputs (how text is cut into messages is no promise), the rest in order.

    A widget's own traffic is compared by what models exist and how they end: how updates are batched is no promise. Prompts
    are a list of their own: they come on another channel, and a plain kernel's may overtake the text before them.
    """
    merged: list[Any] = []
    prompts: list[Any] = []
    text: dict[str, str] = {}
    models: dict[str, dict[str, Any]] = {}

    def close() -> None:
        for name in sorted(text):
            if shown := normal(text[name]):
                merged.append([name, shown])
        text.clear()

    for event in events:
        kind, content = event["type"], event["content"]
        if kind == "stream":
            text[content["name"]] = text.get(content["name"], "") + content["text"]
        elif kind == "comm_open":
            models[content["comm_id"]] = dict(content["data"].get("state", {}))
        elif kind in ("comm_msg", "comm_close"):
            state = content["data"].get("state", {}) if kind == "comm_msg" else {"closed": True}
            models.setdefault(content["comm_id"], {}).update(state)
        elif kind == "input_request":
            prompts.append(normal(content))
        elif kind not in _DROPPED:
            close()
            merged.append([kind, normal(_without_images(content))])
    close()
    if prompts:
        merged.append(["prompts", prompts])
    if models:
        merged.append(["models", normal([_model(state) for state in models.values()])])
    return merged


def _model(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if not (isinstance(v, str) and v.startswith("IPY_MODEL_")) and k != "msg_id"}


def _without_images(content: dict[str, Any]) -> dict[str, Any]:
    """A PNG is compared by its pixels: its bytes carry the versions of what made it."""
    data = content.get("data")
    if isinstance(data, dict) and isinstance(data.get("image/png"), str):
        return {**content, "data": {**data, "image/png": pixels(base64.b64decode(data["image/png"]))}}
    return content


def pixels(png: bytes) -> str:
    """Size and a hash of every pixel of a PNG, as red, green, blue and alpha."""
    with Image.open(io.BytesIO(png)) as image:
        return f"PNG {image.width}x{image.height} {hashlib.sha256(image.convert('RGBA').tobytes()).hexdigest()[:20]}"


def _reply(reply: dict[str, Any]) -> dict[str, Any]:
    kept = {k: reply.get(k) for k in ("status", "execution_count", "ename", "evalue", "payload")}
    return dict(normal(kept))
