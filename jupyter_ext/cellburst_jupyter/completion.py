"""Completion and inspection in `%%modal` cells: the magic's own words here, names of the session in its container.

The kernel's `do_complete` and `do_inspect` are wrapped, which is the one place where whole cell and cursor are known in
every version. A container that does not answer within 300 ms counts as having nothing to say; it is asked while the local
completer works, whose names are merged in, since a name that was not sent yet is only here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.resources import GPU_FAMILIES, GPU_TYPES
from cellburst_protocol.volume_mounts import OPTIONS

from .cell_image import image_names
from .completion_beside import Answer, Beside
from .completion_names import NamesThere
from .magic_line import FLAGS, KEYS, parse_cell_line

if TYPE_CHECKING:
    from .notebook import Notebook
    from .session import RemoteSession, SideKind

ANSWER_SECONDS = 0.3
SUBCOMMANDS = (
    "status",
    "stop",
    "restart",
    "park",
    "resume",
    "attach",
    "names",
    "logs",
    "cost",
    "get",
    "put",
    "schedule",
)
_CELL = re.compile(r"%%(?:modal|gpu)(?=\s|$)")
_LINE = re.compile(r"\s*%(?:modal|gpu)\s+(\S*)$")


class Completion:
    """Wraps one kernel's completion and inspection."""

    def __init__(self, notebook: Notebook, kernel: Any) -> None:
        self._notebook = notebook
        self._kernel = kernel
        self._there = NamesThere(notebook)
        self._local_complete: Callable[[str, int], Any] = kernel.do_complete
        self._local_inspect: Callable[..., Any] = kernel.do_inspect
        self._one = threading.RLock()  # IPython's completer keeps state, and is asked from two threads
        self._beside: Beside | None = None

    def install(self) -> None:
        """Put the wrappers in place."""
        self._kernel.do_complete = self.complete
        self._kernel.do_inspect = self.inspect
        if Beside.possible(self._kernel):
            answers: dict[str, Answer] = {
                "complete_request": self._complete_beside,
                "inspect_request": self._inspect_beside,
            }
            self._beside = self._notebook.beside = Beside(self._kernel, answers, _CELL.match)
            self._beside.install()

    def uninstall(self) -> None:
        """Give the kernel its own methods back."""
        self._kernel.do_complete = self._local_complete
        self._kernel.do_inspect = self._local_inspect
        if self._beside is not None:
            self._beside.uninstall()
            self._notebook.beside = nullcontext()

    def _complete_beside(self, content: dict[str, Any]) -> Any:
        return self.complete(content["code"], content.get("cursor_pos"))

    def _inspect_beside(self, content: dict[str, Any]) -> Any:
        cursor = content.get("cursor_pos", len(content["code"]))
        omitted = set(content.get("omit_sections", []))
        return self.inspect(content["code"], cursor, content.get("detail_level", 0), omitted)

    def complete(self, code: str, cursor_pos: int | None) -> Any:
        """The content of a complete_reply."""
        cursor = len(code) if cursor_pos is None else cursor_pos
        before = code[:cursor]
        if (line := _LINE.match(before)) and "\n" not in before:
            words = [word for word in SUBCOMMANDS if word.startswith(line[1])]
            return _reply(words, cursor - len(line[1]), cursor)
        if not _CELL.match(code):
            with self._one:
                return self._local_complete(code, cursor)
        if "\n" not in before:
            return _reply(*self._complete_line(before), cursor)
        answer = self._ask("complete", code, cursor)
        with self._one:
            local = self._local_complete(code, cursor)
        remote = answer()
        return merged(remote, local) if isinstance(local, dict) else local

    def inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Iterable[str] = ()) -> Any:
        """The content of an inspect_reply."""
        there = _CELL.match(code) and "\n" in code[:cursor_pos]
        answer = self._ask("inspect", code, cursor_pos, detail_level=detail_level) if there else _nothing
        with self._one:
            local = self._local_inspect(code, cursor_pos, detail_level, omit_sections)
        remote = answer()
        return remote if remote is not None and remote.get("found") else local

    def _complete_line(self, before: str) -> tuple[list[str], int]:
        hub = self._notebook.hub if self._notebook.has_hub else None
        sessions = list(hub.sessions) if hub is not None else []
        fleet = list(hub.welcome.gpu_types) if hub is not None and hub.welcome is not None else []
        names = [name for name in self._notebook.shell.user_ns if not name.startswith("_")]
        images = image_names(self._notebook.shell.user_ns)
        return complete_line(before, fleet, sessions, names, images, self._there.of)

    def _ask(self, kind: SideKind, code: str, cursor: int, **more: object) -> Callable[[], dict[str, Any] | None]:
        """Ask the container now. What is returned waits for its answer, with positions of this cell; None: none in time."""
        session = self._session(code)
        if session is None:
            return _nothing
        sent, shift = as_sent(code)
        content: dict[str, object] = {"code": sent, "cursor_pos": cursor + shift, **more}
        wait = session.side_later(kind, content, timeout_seconds=ANSWER_SECONDS)

        def answer() -> dict[str, Any] | None:
            try:
                reply, _ = wait()
            except (CellburstError, TimeoutError):
                return None
            return shifted(dict(reply.content), -shift)

        return answer

    def _session(self, code: str) -> RemoteSession | None:
        """The open session of a cell's line, if it has a container to ask."""
        if not self._notebook.has_hub:
            return None
        line = code.partition("\n")[0].partition(" ")[2]
        try:
            name = parse_cell_line(line).session
        except CellburstError:  # the line is still being written
            name = "default"
        session = self._notebook.hub.sessions.get(name)
        return session if session is not None and session.container_id else None


def _nothing() -> None:
    """The answer where nobody was asked."""


def complete_line(
    before: str,
    fleet: list[str],
    sessions: list[str],
    names: list[str],
    images: list[str] | None = None,
    there: Callable[[str], list[str]] = lambda key: [],
) -> tuple[list[str], int]:
    """Completions of the magic's line up to the cursor, and where the completed part begins. `there` tells names of volumes and
    secrets, and is asked only for them."""
    word = re.search(r"\S*$", before)[0]  # type: ignore[index]  # the pattern matches everything
    if before.startswith("%%") and " " not in before and "\t" not in before:
        return [], len(before)
    key, equals, value = word.removeprefix("--").partition("=")
    if equals and key in ("volumes", "secrets"):
        return _names_there(key, value, there(key), len(before))
    if equals:
        part = value.rpartition(",")[2] if key in ("gpu", "in", "out") else value
        return [
            v for v in _values(key, fleet, sessions, names, images or []) if v.lower().startswith(part.lower())
        ], len(before) - len(part)
    used = set(re.findall(r"(?:^|\s)(?:--)?([a-z]+)(?==)", before))
    dashes = "--" if word.startswith("--") else ""
    keys = [k for k in KEYS if k not in used and k.startswith(word.removeprefix("--"))]
    return [f"{dashes}{k}" if k in FLAGS else f"{dashes}{k}=" for k in keys], len(before) - len(word)


def _names_there(key: str, value: str, names: list[str], end: int) -> tuple[list[str], int]:
    """`volumes=/data:NAME:ro,…` and `secrets=NAME,NAME:KEY`; the path of a volume is the user's own."""
    part = value.rpartition(",")[2]
    if key == "volumes":
        _, colon, part = part.partition(":")
        if not colon:
            return [], end
        if ":" in part:
            option = part.rpartition(":")[2]
            return [one for one in OPTIONS if one.startswith(option)], end - len(option)
    given = set() if key == "volumes" else {one.partition(":")[0] for one in value.split(",")[:-1]}
    return [name for name in names if name.startswith(part) and name not in given], end - len(part)


def _values(key: str, fleet: list[str], sessions: list[str], names: list[str], images: list[str]) -> list[str]:
    match key:
        case "gpu":
            return list(dict.fromkeys([*fleet, "any", *GPU_FAMILIES, *GPU_TYPES]))
        case "session":
            return sorted({"default", *sessions})
        case "network":
            return ["outbound", "none"]
        case "card" | "detach":
            return ["on", "off"]
        case "in" | "out":
            return sorted(names)
        case "image":
            return images
        case "memory":
            return ["4GiB", "8GiB", "16GiB", "32GiB", "64GiB"]
        case _:
            return []


def as_sent(code: str) -> tuple[str, int]:
    """A `%%modal` cell as the container gets it, and how far a position moves by that."""
    first, _, body = code.partition("\n")
    if body.lstrip().startswith("%%"):
        return body, -len(first) - 1
    return f"# {code}", 2


def shifted(content: dict[str, Any], by: int) -> dict[str, Any]:
    """A reply with its positions moved."""
    for key in ("cursor_start", "cursor_end"):
        if key in content:
            content[key] = max(0, content[key] + by)
    for item in (content.get("metadata") or {}).get("_jupyter_types_experimental") or []:
        item["start"], item["end"] = max(0, item["start"] + by), max(0, item["end"] + by)
    return content


def merged(remote: dict[str, Any] | None, local: dict[str, Any]) -> dict[str, Any]:
    """The container's completions first, then local ones that complete the same place."""
    if remote is None or not remote.get("matches"):
        return local
    if not local.get("matches") or local.get("cursor_start") != remote.get("cursor_start"):
        return remote
    known = set(remote["matches"])
    remote["matches"] += [match for match in local["matches"] if match not in known]
    types = "_jupyter_types_experimental"
    extra = [t for t in (local.get("metadata") or {}).get(types) or [] if t.get("text") not in known]
    if types in (remote.get("metadata") or {}):
        remote["metadata"][types] += extra
    return remote


def _reply(matches: list[str], start: int, end: int) -> dict[str, Any]:
    return {"matches": matches, "cursor_start": start, "cursor_end": end, "metadata": {}, "status": "ok"}
