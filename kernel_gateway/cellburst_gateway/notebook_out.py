"""An executed notebook as it grows: numbered events in, outputs of nbformat 4 out. Pure; nothing is unpickled.

Streams are merged as front ends do it, text that `\\r` overwrote is gone, `display_id`s are updated wherever they were shown,
`clear_output` clears. A cell's outputs are bounded: what goes beyond is dropped and said at the end.
"""

from __future__ import annotations

from typing import Any

MAX_CELL_BYTES = 20 * 1024**2  # outputs of one cell, as text; a notebook larger than that is no pleasure to open
MAX_NOTEBOOK_BYTES = 150 * 1024**2  # of all cells together
_STREAM_BYTES = 64 * 1024  # of a stream's text between two looks at what `\r` overwrote


class NotebookOut:
    """The notebook that a run writes. `notebook` is valid after every call."""

    def __init__(self, notebook: dict[str, Any]) -> None:
        self.notebook = notebook
        self._shown: dict[str, list[dict[str, Any]]] = {}  # outputs by display_id
        self._sizes: dict[int, int] = {}
        self._dropped: dict[int, int] = {}
        self._clear: set[int] = set()  # cells to be cleared when their next output comes
        self._loose: dict[int, int] = {}  # bytes of the last stream since it was last tidied

    def note(self, **values: object) -> None:
        """Put values into the notebook's metadata, under `cellburst`."""
        metadata = self.notebook.setdefault("metadata", {})
        metadata.setdefault("cellburst", {}).update(values)

    def began(self, index: int, execution_count: int) -> None:
        """The cell runs now."""
        self.notebook["cells"][index]["execution_count"] = execution_count

    def skipped(self, index: int, notes: list[str]) -> None:
        """Say in the cell's metadata what of it does not run in a run."""
        if notes:
            self.notebook["cells"][index].setdefault("metadata", {}).setdefault("cellburst", {})["notes"] = notes

    def message(self, index: int, kind: str, message: dict[str, Any]) -> bool:
        """Take one IOPub message of the cell. False: it changes nothing that is saved."""
        content = message.get("content")
        if not isinstance(content, dict):
            return False
        match kind:
            case "stream":
                self._stream(index, str(content.get("name", "stdout")), str(content.get("text", "")))
            case "display_data" | "execute_result":
                self._display(index, kind, content)
            case "update_display_data":
                self._update(content)
            case "error":
                trace = content.get("traceback")
                self._add(index, {
                    "output_type": "error", "ename": str(content.get("ename", "")), "evalue": str(content.get("evalue", "")),
                    "traceback": [str(line) for line in trace] if isinstance(trace, list) else [],
                })  # fmt: skip
            case "clear_output":
                self._clear.add(index)
                if not content.get("wait"):
                    self._cleared(index)
            case _:
                return False
        return True

    def say(self, index: int, text: str) -> None:
        """A line of the platform's own, as the error stream."""
        self._stream(index, "stderr", f"[cellburst] {text}\n")

    def failed(self, index: int, name: str, text: str) -> None:
        """Why the run ended in this cell, where its code did not say so itself."""
        self._add(
            index,
            {"output_type": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]},
            always=True,
        )

    def ended(self, index: int) -> None:
        """The cell has ended: tidy its text, and say what was dropped."""
        outputs = self.notebook["cells"][index]["outputs"]
        for output in outputs:
            if output["output_type"] == "stream":
                output["text"] = overwritten(output["text"])
        dropped = self._dropped.pop(index, 0)
        if dropped:
            text = f"[cellburst] {dropped:,} bytes more of output were dropped: a cell keeps {MAX_CELL_BYTES // 1024**2} MiB\n"
            outputs.append({"output_type": "stream", "name": "stderr", "text": text})

    # -- outputs ---------------------------------------------------------------------------------------------------

    def _stream(self, index: int, name: str, text: str) -> None:
        if not self._fits(index, len(text)):
            return
        self._cleared(index)
        outputs = self.notebook["cells"][index]["outputs"]
        if outputs and outputs[-1]["output_type"] == "stream" and outputs[-1]["name"] == name:
            outputs[-1]["text"] += text
        else:
            outputs.append({"output_type": "stream", "name": name, "text": text})
            self._loose[index] = 0
        self._loose[index] = self._loose.get(index, 0) + len(text)
        if self._loose[index] > _STREAM_BYTES and "\r" in outputs[-1]["text"]:
            before = len(outputs[-1]["text"])
            outputs[-1]["text"] = overwritten(outputs[-1]["text"])
            self._sizes[index] -= before - len(outputs[-1]["text"])  # a progress bar may go on for days
            self._loose[index] = 0

    def _display(self, index: int, kind: str, content: dict[str, Any]) -> None:
        output: dict[str, Any] = {
            "output_type": kind, "data": _data(content.get("data")), "metadata": _mapping(content.get("metadata")),
        }  # fmt: skip
        if kind == "execute_result":
            count = content.get("execution_count")
            output["execution_count"] = count if isinstance(count, int) else None
        if not self._add(index, output):
            return
        transient = content.get("transient")
        display_id = transient.get("display_id") if isinstance(transient, dict) else None
        if isinstance(display_id, str):
            self._shown.setdefault(display_id, []).append(output)

    def _update(self, content: dict[str, Any]) -> None:
        transient = content.get("transient")
        display_id = transient.get("display_id") if isinstance(transient, dict) else None
        for output in self._shown.get(display_id, []) if isinstance(display_id, str) else []:
            output["data"], output["metadata"] = _data(content.get("data")), _mapping(content.get("metadata"))

    def _add(self, index: int, output: dict[str, Any], *, always: bool = False) -> bool:
        if not self._fits(index, _size(output)) and not always:
            return False
        self._cleared(index)
        self.notebook["cells"][index]["outputs"].append(output)
        return True

    def _fits(self, index: int, size_bytes: int) -> bool:
        used = self._sizes.get(index, 0)
        if used + size_bytes > MAX_CELL_BYTES or sum(self._sizes.values()) + size_bytes > MAX_NOTEBOOK_BYTES:
            self._dropped[index] = self._dropped.get(index, 0) + size_bytes
            return False
        self._sizes[index] = used + size_bytes
        return True

    def _cleared(self, index: int) -> None:
        if index in self._clear:
            self._clear.discard(index)
            self.notebook["cells"][index]["outputs"].clear()
            self._sizes[index] = self._loose[index] = 0


def overwritten(text: str) -> str:
    """Text as a terminal would show it after `\\r` and `\\b`: what was overwritten is gone."""
    if "\r" not in text and "\b" not in text:
        return text
    return "\n".join(_line(line) for line in text.replace("\r\n", "\n").split("\n"))


def _line(line: str) -> str:
    if "\r" not in line and "\b" not in line:
        return line
    end = "\r" if line.endswith("\r") and line.strip("\r") else ""  # the next text goes over this line
    shown: list[str] = []
    at = 0
    for char in line:
        if char == "\r":
            at = 0
        elif char == "\b":
            at = max(0, at - 1)
        else:
            shown[at : at + 1] = [char]
            at += 1
    return "".join(shown) + end


def _data(found: object) -> dict[str, Any]:
    """A MIME bundle as nbformat has it: text as text, JSON kinds as they are."""
    return {str(kind): value for kind, value in found.items()} if isinstance(found, dict) else {}


def _mapping(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _size(value: object) -> int:
    """About how many bytes a value has as JSON."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, dict):
        return sum(_size(key) + _size(one) for key, one in value.items()) + 2
    if isinstance(value, list):
        return sum(_size(one) for one in value) + 2
    return 8
