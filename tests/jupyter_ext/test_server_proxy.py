"""The panel's server side as a browser reaches it behind a hub: a prefix, a public address, a proxy between. Real parts but the hub.

Network file systems are tested here, too: every request goes through the proxy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bench.harness import House, house
from cellburst_protocol.volumes import CHUNK_BYTES
from tests.fakes.hub_proxy import HubProxy, hub_proxy
from tests.jupyter_ext.jupyter_side import BASE, Answer, Client, Server, jupyter_server

DATA = os.urandom(CHUNK_BYTES + 12345)


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house("A100:1") as made:
        yield made


@pytest.fixture(scope="module")
def proxy(place: House) -> Iterator[tuple[HubProxy, Server]]:
    """The proxy, and the server as it is seen from its other side."""
    with jupyter_server(place) as server, hub_proxy(server.url, BASE) as made:
        yield made, replace(server, url=made.url)


class Page:
    """A logged-in page: cookies, the XSRF token, no other token."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return self.client.ask(method, path, body, {"X-XSRFToken": self.client.cookies["_xsrf"]})

    def good(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status == 200, answer.body
        return answer.json

    def put(self, where: str, path: str, data: bytes, **more: Any) -> Answer:
        pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        chunks = [self.good("POST", f"{where}/chunks", piece) for piece in pieces]
        file = {"path": path, "size_bytes": len(data), "chunks": chunks}
        return self.ask("POST", f"{where}/files", {"files": [file], **more})


@pytest.fixture(scope="module")
def page(proxy: tuple[HubProxy, Server]) -> Page:
    made = Page(proxy[1].browser())
    made.good("POST", "start", {})
    return made


def test_all_of_it_lies_below_the_prefix_and_a_page_without_its_token_changes_nothing(
    proxy: tuple[HubProxy, Server], page: Page
) -> None:
    assert page.good("GET", "status")["gateway_pid"] > 0
    assert page.client.ask("POST", "volumes", {"name": "x"}).status == 403
    assert page.client.ask("GET", "/cellburst/status").status == 404  # nothing at the root
    assert proxy[1].stranger().ask("GET", "status").status in (401, 403)
    assert f"{BASE}cellburst/status" in proxy[0].seen and all(path.startswith(BASE) for path in proxy[0].seen)


def test_the_windows_socket_goes_through_and_only_from_the_public_address(
    proxy: tuple[HubProxy, Server], page: Page
) -> None:
    address = proxy[1].url.replace("http", "ws") + f"{BASE}cellburst/live"
    cookies = "; ".join(f"{name}={value}" for name, value in page.client.cookies.items())
    with connect(address, additional_headers={"Cookie": cookies}, origin=proxy[1].url, open_timeout=20) as window:  # type: ignore[arg-type]
        window.send(json.dumps({"visible": True}))
        told = json.loads(window.recv(20))
        while told["t"] != "status":
            told = json.loads(window.recv(20))
        assert told["status"]["gateway_pid"] > 0
    for headers, origin in (({"Cookie": cookies}, "https://evil.example"), ({}, proxy[1].url)):
        with pytest.raises(InvalidStatus) as refused:
            connect(address, additional_headers=headers, origin=origin, open_timeout=20)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403


def test_an_upload_and_a_download(page: Page) -> None:
    page.good("POST", "volumes", {"name": "files"})
    assert page.put("volumes/files", "a b/ü.bin", DATA).status == 200
    assert page.ask("GET", "volumes/files/files/a%20b/%C3%BC.bin").body == DATA


# -- network file systems --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(page: Page, place: House) -> Path:
    """One, as the gateway has it on the disk."""
    assert page.good("POST", "nfs", {"name": "scratch"})["name"] == "scratch"
    (found,) = (place.folder / "data" / "shared").glob("*/scratch")
    return found


def test_a_network_file_systems_files_come_and_go(page: Page, scratch: Path) -> None:
    assert page.ask("POST", "nfs", {"name": "scratch"}).status == 409
    for size in (0, len(DATA)):
        assert page.put("nfs/scratch", f"a b/{size}", DATA[:size]).status == 200
        assert (scratch / f"a b/{size}").read_bytes() == DATA[:size]
        answer = page.ask("GET", f"nfs/scratch/files/a%20b/{size}")
        assert answer.body == DATA[:size] and answer.headers["content-disposition"].startswith("attachment")
    assert page.good("GET", "nfs/scratch/size") == {"size_bytes": len(DATA), "files": 2}
    (folder,) = page.good("GET", "nfs/scratch/files")["entries"]
    assert (folder["name"], folder["kind"], "size_bytes" in folder) == ("a b", "folder", False)
    inside = page.good("GET", "nfs/scratch/files?path=a%20b")
    assert [(e["name"], e.get("size_bytes", 0)) for e in inside["entries"]] == [("0", 0), (str(len(DATA)), len(DATA))]
    there = page.put("nfs/scratch", "a b/0", b"other")
    assert there.status == 409 and there.json["detail"]["paths"] == "a b/0"
    assert page.put("nfs/scratch", "a b/0", b"other", overwrite=True).status == 200
    assert page.ask("GET", "nfs/scratch/files/a%20b/0?preview=1").body == b"other"
    renamed = page.ask("POST", "nfs/scratch/files", {"renamed": [{"path": "a b", "to": "c"}]})
    assert renamed.status == 400 and "container" in renamed.json["next"]
    page.good("POST", "nfs/scratch/files", {"deleted": ["a b"]})
    assert page.good("GET", "nfs/scratch/files").get("entries", []) == [] and not (scratch / "a b").exists()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "", "a//b", "x\0y", "y" * 300])
def test_a_path_cannot_lead_out_of_it(page: Page, scratch: Path, path: str) -> None:
    assert page.put("nfs/scratch", path, b"x").status == 400
    assert page.ask("POST", "nfs/scratch/files", {"deleted": [path]}).status in (400, 404)
    assert not list(scratch.parent.parent.rglob("x"))


def test_what_is_not_there_or_no_file_is_said(page: Page, scratch: Path) -> None:
    (scratch / "link").symlink_to("/etc/passwd")
    assert [(e["name"], e["kind"]) for e in page.good("GET", "nfs/scratch/files")["entries"]] == [("link", "link")]
    assert page.ask("GET", "nfs/scratch/files/link").status == 404
    assert page.ask("GET", "nfs/scratch/files?path=nothing").status == 404
    assert page.ask("GET", "nfs/nobody/size").status == 404
    assert page.put("nfs/nobody", "a", b"x").status == 404
    lost = {"path": "lost", "size_bytes": 1, "chunks": [["0" * 64, 1]]}
    answer = page.ask("POST", "nfs/scratch/files", {"files": [lost]})
    assert answer.status == 404 and "upload it again" in answer.json["next"]
    assert [one.name for one in scratch.iterdir()] == ["link"] and not list((scratch.parent / ".drafts").iterdir())
    (scratch / "link").unlink()


def test_one_that_is_used_is_deleted_only_when_that_was_said(page: Page, scratch: Path, place: House) -> None:
    book = place.folder / "n.ipynb"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "outputs": [], "execution_count": None}
    book.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    subprocess.run(
        [
            sys.executable, "-m", "cellburst", "schedule", "create", str(book), "--cron=0 3 * * *", "--no-folder", "--yes",
            "--volumes=/s:nfs://scratch", "--python", sys.executable,
        ],
        env={**os.environ, **place.environment}, check=True, timeout=100, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (row,) = page.good("GET", "nfs")["rows"]
    assert row["used_by"] and "schedule" in row["used_by"][0]
    refused = page.ask("DELETE", "nfs/scratch")
    assert refused.status == 409 and row["used_by"][0] in refused.json["message"]
    page.good("DELETE", "nfs/scratch?used=1")
    assert page.good("GET", "nfs").get("rows", []) == [] and not scratch.exists()
