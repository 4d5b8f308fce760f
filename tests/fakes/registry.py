"""Debian's docker-registry on loopback, filled with small images by umoci and skopeo."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

USER, PASSWORD = "me", "right-pa55word"
_BCRYPT = (
    "$2b$05$k6.dvGPnwc8ZIyIjGBmO3O.T5E1zpN9Uj.bECfKQfGFP/5hoDEatK"  # of PASSWORD: what the registry's htpasswd takes
)


class Registry:
    """A running registry; `name("a")` is an image's full name in it. `login`: it lets in USER with PASSWORD only."""

    def __init__(self, port: int, folder: Path, login: bool) -> None:
        self.port = port
        self.folder = folder
        self.login = login

    def name(self, image: str) -> str:
        return f"127.0.0.1:{self.port}/{image}"

    def push(self, image: str, root: Path, *, config: Mapping[str, str] | None = None) -> str:
        """Push a root file system as an image; `config` are umoci's options ("config.env": "A=1")."""
        layout = self.folder / "layout"
        if not layout.exists():
            run("umoci", "init", "--layout", str(layout))
        tag = image.replace(":", "-").replace("/", "-")
        run("umoci", "new", "--image", f"{layout}:{tag}")
        run("umoci", "insert", "--image", f"{layout}:{tag}", str(root), "/")
        options = [f"--{name}={value}" for name, value in (config or {}).items()]
        run("umoci", "config", "--image", f"{layout}:{tag}", *options)
        known = [f"--dest-creds={USER}:{PASSWORD}"] if self.login else []
        run("skopeo", "copy", "--dest-tls-verify=false", *known, f"oci:{layout}:{tag}", f"docker://{self.name(image)}")
        return self.name(image)


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr or done.stdout}"
    return done.stdout


@contextmanager
def running_registry(folder: Path, *, login: bool = False) -> Iterator[Registry]:
    """A registry with its files below `folder`; ended afterwards."""
    (folder / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
    auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n" if login else ""
    log = folder / "registry.log"
    for _ in range(5):  # somebody else may take the free port first
        port = _free_port()
        config = folder / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{auth}"
        )
        with open(log, "wb") as output:
            process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=output, stderr=output)
        try:
            if _answers(process, port):
                yield Registry(port, folder, login)
                return
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise AssertionError(log.read_text())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it answers within half a minute; False when it has ended."""
    end = time.monotonic() + 30
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < end:
        try:
            with opener.open(f"http://127.0.0.1:{port}/v2/", timeout=5):
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code == 401
        except OSError:
            time.sleep(0.02)
    return False
