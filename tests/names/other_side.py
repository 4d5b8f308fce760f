"""A container's executor without the container: `ValueStore` in another Python process, and what a worker does between.

Run as a program it is the executor; imported it is `Notebook`, the kernel's side with a namespace of its own.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tests.names.other_side import main; main()"


def read_message(stream: Any) -> tuple[dict[str, Any], list[bytes]] | None:
    head = stream.read(4)
    if len(head) < 4:
        return None
    message = json.loads(stream.read(struct.unpack(">I", head)[0]))
    return message, [stream.read(n) for n in message.pop("sizes")]


def write_message(stream: Any, message: dict[str, Any], buffers: list[Any]) -> None:
    head = json.dumps({**message, "sizes": [memoryview(b).nbytes for b in buffers]}).encode()
    stream.write(struct.pack(">I", len(head)) + head)
    for buffer in buffers:
        stream.write(buffer)
    stream.flush()


class Executor:
    """Answers requests about one namespace, which is that of its `__main__`, as an ipykernel's is."""

    def __init__(self, folder: Path) -> None:
        import types

        from cellburst_runner.values import ValueStore

        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        self.namespace = main.__dict__
        self.store = ValueStore(self.namespace, str(folder / "in"), str(folder / "out"))

    def answer(self, message: dict[str, Any], buffers: list[bytes]) -> tuple[dict[str, Any], list[Any]]:
        match message["do"]:
            case "missing":
                return {"missing": self.store.missing(message["groups"])}, []
            case "apply":
                split = sum(p.get("at") == "inline" for g in message["groups"] for p in g["parts"])
                self.store.apply_modules(message["modules"], buffers[split:])
                self.store.apply(message["groups"], buffers[:split])
                return {}, []
            case "run":
                return self._run(message)
            case "eval":
                return {"value": repr(eval(message["code"], self.namespace))}, []
            case "fetch":
                group, inline = self.store.fetch(message["name"])
                return {"group": group}, inline
            case "names":
                return {"names": self.store.names()}, []
        raise ValueError(message)

    def _run(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        self.store.before_cell(message["used"], message["python"])
        error = ""
        try:
            exec(compile(message["code"], "<cell>", "exec"), self.namespace)
        except Exception:
            error = traceback.format_exc()
        done, inline = self.store.after_cell(
            bound=message["bound"], used=message["used"], deleted=message["deleted"], out=message["out"],
            home_limit_bytes=message["limit"], ok=not error,
        )  # fmt: skip
        return {"done": done, "error": error}, inline


def main() -> None:
    """Serve on standard input and output."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    executor = Executor(Path(sys.argv[1]))
    while (request := read_message(requests)) is not None:
        try:
            reply, buffers = executor.answer(*request)
        except Exception:
            reply, buffers = {"failed": traceback.format_exc()}, []
        write_message(replies, reply, buffers)


class Container:
    """The other process, and the two folders that a worker would have bound into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("in", "out", "blobs"):
            (folder / name).mkdir(parents=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(ROOT), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder,
        )  # fmt: skip

    def ask(self, do: str, buffers: list[Any] | None = None, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
        write_message(self.process.stdin, {"do": do, **fields}, buffers or [])
        reply = read_message(self.process.stdout)
        assert reply is not None, "the other process is gone"
        assert "failed" not in reply[0], reply[0]["failed"]
        return reply

    def value(self, code: str) -> str:
        return str(self.ask("eval", code=code)[0]["value"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish_groups(self, groups: list[dict[str, Any]], inline: list[bytes]) -> list[Any]:
        """What the worker does with groups from a container: hashes the parts, moves files to the blob folder."""
        from blake3 import blake3

        from cellburst_protocol.mac import group_hash
        from cellburst_protocol.messages import NameGroup, ValuePart

        result, position = [], 0
        for group in groups:
            parts = []
            for part in group["parts"]:
                if part["at"] == "inline":
                    true = blake3(inline[position]).hexdigest()
                    position += 1
                else:
                    file = self.folder / "out" / part["hash"].removeprefix("file:")
                    true = blake3().update_mmap(file).hexdigest()
                    file.rename(self.folder / "blobs" / true)
                parts.append(ValuePart(hash=true, size_bytes=part["size_bytes"], at=part["at"]))
            result.append(NameGroup(names=group["names"], hash=group_hash(parts), parts=parts))
        return result


class CellFailed(Exception):
    """The cell raised; the text is its traceback."""


class Notebook:
    """A kernel's namespace, its NameSync, and a container to run cells in."""

    def __init__(self, folder: Path) -> None:
        from cellburst_jupyter.names_values import NameSync

        self.folder = folder
        self.generation = 0
        self.container = self._start()
        self.ns: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        self.sync = NameSync(self._fetch, folder=folder)
        self.sent_names: list[str] = []
        self.sent_bytes = 0
        self.lines: list[str] = []
        self.during: Any = None  # called while the cell runs there
        self.python = ""  # what the kernel says that it is
        self.python_there = ""  # what the kernel knows of the container

    def _start(self) -> Container:
        self.generation += 1
        return Container(self.folder / f"container{self.generation}")

    def local(self, code: str) -> None:
        """Run a cell here."""
        exec(compile(code, "<local>", "exec"), self.ns)

    def new_container(self) -> None:
        """The container is lost, and the kernel does not know yet."""
        self.container.close()
        self.container = self._start()

    def modal(self, code: str, *, out: tuple[str, ...] = (), only: Any = None, limit: int = 10_000_000) -> list[str]:
        """Run a cell there, as %%modal would. Raises CellFailed after writing back what an error leaves."""
        import msgspec

        from cellburst_jupyter.names_home import write_back
        from cellburst_jupyter.names_read import read_cell
        from cellburst_protocol.mac import group_hash
        from cellburst_protocol.messages import CellDone, RemoteName

        cell = read_cell(code, self.ns)
        prepared = self.sync.prepare(cell, self.ns, only=only, python=self.python_there)
        self.sent_names = [n for g in prepared.groups if any(p.at != "there" for p in g.parts) for n in g.names]
        heads = msgspec.to_builtins([prepared.groups, prepared.modules])
        missing = self.container.ask("missing", groups=heads[0] + heads[1])[0]["missing"]
        for group in [*prepared.groups, *prepared.modules]:
            assert group_hash(group.parts) == group.hash, "a worker would refuse it"
        self._apply(*heads, prepared)
        if missing:
            more = self.sync.payload(missing)
            assert sorted(g.hash for g in more.groups) == sorted(missing)
            self.sent_names += [n for g in more.groups for n in g.names]
            self._apply(msgspec.to_builtins(more.groups), [], more)
        self.sync.sent(f"c{self.generation}")
        reply, inline = self.container.ask(
            "run",
            code=code,
            used=prepared.used,
            bound=prepared.bound,
            deleted=prepared.deleted,
            out=list(out),
            limit=limit,
            python=self.python,
        )
        if self.during:
            self.during()
        done = reply["done"]
        remote = msgspec.convert({k: done[k] for k in ("stayed", "changed_there")}, dict[str, list[RemoteName]])
        message = CellDone(
            status="error" if reply["error"] else "ok", home=self.container.finish_groups(done["home"], inline),
            stayed=remote["stayed"], changed_there=remote["changed_there"], gone=done["gone"],
        )  # fmt: skip
        self.lines = write_back(message, inline, self._blob, self.ns, self.sync)
        if reply["error"]:
            raise CellFailed(reply["error"])
        return self.lines

    def _apply(self, groups: list[Any], modules: list[Any], prepared: Any) -> None:
        for name, data in prepared.blobs.items():
            with (self.container.folder / "in" / name).open("wb") as file:
                file.write(data)
        self.sent_bytes = sum(memoryview(b).nbytes for b in [*prepared.buffers, *prepared.blobs.values()])
        self.container.ask("apply", prepared.buffers, groups=groups, modules=modules)

    def _blob(self, part: Any) -> Any:
        from blake3 import blake3

        from cellburst_runner.values import read_file

        data = read_file(str(self.container.folder / "blobs" / part.hash), part.size_bytes)
        assert blake3(data, max_threads=blake3.AUTO).hexdigest() == part.hash
        return data

    def _fetch(self, name: str) -> Any:
        from cellburst_jupyter.names_home import read_value

        reply, inline = self.container.ask("fetch", name=name)
        (group,) = self.container.finish_groups([reply["group"]], inline)
        return read_value(group, inline, self._blob, self.ns, self.sync)

    def close(self) -> None:
        self.container.close()
