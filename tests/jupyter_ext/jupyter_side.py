"""A real Jupyter server with the extension, and a client that speaks to it as a browser or a program does."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.harness import House
from tests.browser.lab import wait_listening

OTHERS = dict.fromkeys(
    ("jupyterlab", "jupyter_lsp", "notebook_shim", "jupyter_server_terminals"), False
)  # not needed: a quick start
BASE = "/user/ann/"  # as behind JupyterHub: nothing may lie at the root


@dataclass
class Answer:
    """An HTTP answer, read whole."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """One client: with a token (a program), with cookies (a browser), or with nothing (a stranger)."""

    url: str
    token: str = ""
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"token {self.token}"
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request(
                method, path if path.startswith("/") else f"{BASE}cellburst/{path}", body=data, headers=sent
            )
            answer = connection.getresponse()
            for name, value in answer.getheaders():
                if name.lower() == "set-cookie":
                    self.cookies.update({key: morsel.value for key, morsel in SimpleCookie(value).items()})
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()


@dataclass
class Server:
    """A running server."""

    url: str
    token: str
    log: Path

    def program(self) -> Client:
        return Client(self.url, token=self.token)

    def stranger(self) -> Client:
        return Client(self.url)

    def browser(self) -> Client:
        """Logged in by the token's link, so that it has cookies and no token any more."""
        client = Client(self.url)
        assert client.ask("GET", f"{BASE}api/status?token={self.token}").status == 200
        assert client.ask("GET", f"{BASE}login?token={self.token}").status in (200, 302)
        client.ask("GET", f"{BASE}tree")  # a page: gives the XSRF cookie
        return client


@contextlib.contextmanager
def jupyter_server(house: House, *options: str) -> Iterator[Server]:
    """Start it on a port of its own; ended by its pid."""
    place = house.folder / f"server-{secrets.token_hex(4)}"
    place.mkdir()
    environment = {
        **os.environ, **house.environment, "JUPYTER_RUNTIME_DIR": str(place / "runtime"),
        "JUPYTER_CONFIG_DIR": str(place / "config"), "JUPYTER_DATA_DIR": str(place / "data"),
    }  # fmt: skip
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "jupyter_server", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
            f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={place}", f"--ServerApp.base_url={BASE}",
            f"--ServerApp.jpserver_extensions={OTHERS}", *options,
        ],
        env=environment, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    log = place / "server.log"
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "http://127.0.0.1:" in line and "token=" in line:
                break
        else:
            raise RuntimeError("the Jupyter server did not start:\n" + "".join(lines[-20:]))
        start = line.index("http://")
        url = line[start : line.index("/", start + 7)]
        wait_listening(url)
        with log.open("w") as kept:
            kept.writelines(lines)
            kept.flush()
            with subprocess.Popen(["cat"], stdin=process.stderr, stdout=kept) as drain:
                try:
                    yield Server(url, token, log)
                finally:
                    process.terminate()
                    try:
                        process.wait(15)
                    except subprocess.TimeoutExpired:
                        process.kill()
                    drain.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)
        process.stderr.close()
