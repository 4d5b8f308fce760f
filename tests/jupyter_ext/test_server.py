"""The Jupyter server's side of the panel: who may ask, what comes back, and what never does. Real server, real gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from jupyter_server.base.handlers import JupyterHandler
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from bench.harness import House, house
from cellburst_jupyter.server.extension import routes
from cellburst_protocol.volumes import CHUNK_BYTES
from tests.jupyter_ext.jupyter_side import BASE, Client, Server, jupyter_server

VERBS = ("get", "post", "put", "patch", "delete")
ROUTES = [
    (re.sub(r"\(.*?\)", "x", path), handler, [verb for verb in VERBS if verb in vars(handler)])
    for path, handler, _ in routes(cast(Any, None), cast(Any, None), cast(Any, None))
]
CALLS = [(path, verb.upper()) for path, _, verbs in ROUTES for verb in verbs]
VALUE = "value-that-nobody-may-see-again"


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house("A100:1") as made:
        yield made


@pytest.fixture(scope="module")
def server(place: House) -> Iterator[Server]:
    with jupyter_server(place) as made:
        yield made


@pytest.fixture(scope="module")
def user(server: Server) -> Client:
    """A program with the server's token; the gateway runs."""
    client = server.program()
    assert client.ask("POST", "start", {}).status == 200
    return client


def test_before_the_gateway_runs_each_answer_says_so(server: Server) -> None:
    """The first test of the module: nothing was started yet."""
    answer = server.program().ask("GET", "status")
    assert (answer.status, answer.json["code"]) == (503, "platform.gateway_down")
    assert "Start" in answer.json["next"]


def test_every_route_is_one_of_jupyters_own_kind() -> None:
    assert len(ROUTES) >= 15 and all(verbs for _, _, verbs in ROUTES)
    assert all(issubclass(handler, JupyterHandler) for _, handler, _ in ROUTES)


@pytest.mark.parametrize(("path", "verb"), CALLS)
def test_a_stranger_gets_nothing(server: Server, path: str, verb: str) -> None:
    answer = server.stranger().ask(verb, path, None if verb in ("GET", "DELETE") else {})
    assert answer.status in (401, 403), answer.body


@pytest.mark.parametrize(("path", "verb"), [call for call in CALLS if call[1] != "GET"])
def test_a_page_without_the_xsrf_token_changes_nothing(server: Server, path: str, verb: str) -> None:
    browser = server.browser()
    assert browser.ask("GET", f"{BASE}api/status").status == 200  # it is logged in
    answer = browser.ask(verb, path, None if verb == "DELETE" else {})
    assert answer.status == 403 and b"_xsrf" in answer.body


def test_a_page_with_its_xsrf_token_may_act(server: Server, user: Client) -> None:
    browser = server.browser()
    answer = browser.ask("POST", "volumes", {"name": "by-page"}, {"X-XSRFToken": browser.cookies["_xsrf"]})
    assert answer.status == 200, answer.body


def test_a_server_that_lets_nobody_in_unknown_finds_no_route_of_ours_open(place: House) -> None:
    """What the template of JupyterLab's extensions checks: Jupyter itself warns of each handler that does not ask who it is."""
    with jupyter_server(place, "--ServerApp.allow_unauthenticated_access=False") as strict:
        assert strict.stranger().ask("GET", "status").status == 403
        assert strict.program().ask("GET", "volumes").status in (200, 503)
        assert "JupyterServerAuthWarning" not in strict.log.read_text()


# -- the window's socket --------------------------------------------------------------------------------------------


def live(server: Server, **headers: str) -> Any:
    return connect(
        server.url.replace("http", "ws") + f"{BASE}cellburst/live", additional_headers=headers, open_timeout=20
    )


def test_the_socket_is_closed_to_strangers_and_other_origins(server: Server) -> None:
    with pytest.raises(InvalidStatus):
        live(server)
    browser = server.browser()
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with live(server, Cookie=cookies, Origin=server.url):
        pass
    with pytest.raises(InvalidStatus):
        live(server, Cookie=cookies, Origin="http://evil.example")


def test_a_visible_window_is_told_what_runs_and_a_bad_message_ends_it(server: Server, user: Client) -> None:
    with live(server, Authorization=f"token {server.token}") as window:
        window.send(json.dumps({"visible": True}))
        told = json.loads(window.recv(20))
        while told["t"] != "status":
            told = json.loads(window.recv(20))
        assert told["status"]["gateway_pid"] > 0
    for bad in ("no json", '{"visible": 7}', "[" * 100, json.dumps({"visible": True, "pad": "x" * 5000})):
        with live(server, Authorization=f"token {server.token}") as window, pytest.raises(ConnectionClosed):
            window.send(bad)
            window.recv(20)


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secrets_value_goes_in_and_never_comes_back(server: Server, user: Client) -> None:
    made = user.ask("POST", "secrets", {"name": "hub", "values": {"HUB_TOKEN": VALUE}})
    assert made.json["keys"] == ["HUB_TOKEN"]
    again = user.ask("POST", "secrets", {"name": "hub", "values": {"HUB_TOKEN": VALUE}})
    wrong = user.ask("POST", "secrets", {"name": "hub", "values": {"HUB_TOKEN": [VALUE]}})
    badly = user.ask("POST", "secrets", {"name": "no name", "values": {"HUB_TOKEN": VALUE}})
    listed = user.ask("GET", "secrets")
    assert (again.status, wrong.status, badly.status) == (409, 400, 400)
    assert [row["name"] for row in listed.json["rows"]] == ["hub"]
    for answer in (made, again, wrong, badly, listed, user.ask("GET", "status")):
        assert VALUE.encode() not in answer.body
    assert VALUE not in server.log.read_text()
    assert user.ask("DELETE", "secrets/hub").status == 200
    assert user.ask("DELETE", "secrets/hub").status == 404


def test_the_gateways_token_is_in_no_answer(place: House, user: Client) -> None:
    token = (place.folder / "data" / "token").read_text().strip().encode()
    for path, verb in CALLS:
        if verb == "GET" and path != "live":
            answer = user.ask("GET", path)
            assert token not in answer.body and token.decode() not in str(answer.headers)


# -- volumes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume(user: Client) -> str:
    assert user.ask("POST", "volumes", {"name": "files"}).status == 200
    return "files"


def put(user: Client, volume: str, path: str, data: bytes, **more: Any) -> int:
    chunks = []
    for start in range(0, len(data), CHUNK_BYTES):
        answer = user.ask("POST", f"volumes/{volume}/chunks", data[start : start + CHUNK_BYTES])
        assert answer.status == 200, answer.body
        chunks.append(answer.json)
    file = {"path": path, "size_bytes": len(data), "chunks": chunks}
    return user.ask("POST", f"volumes/{volume}/files", {"files": [file], **more}).status


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 12345])
def test_a_file_comes_back_as_it_went(user: Client, volume: str, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"\x00" * (size % 256)
    assert put(user, volume, f"sizes/{size}.bin", data) == 200
    answer = user.ask("GET", f"volumes/{volume}/files/sizes/{size}.bin")
    assert answer.body == data
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    names = {entry["name"] for entry in user.ask("GET", f"volumes/{volume}/files?path=sizes").json["entries"]}
    assert f"{size}.bin" in names


def test_an_upload_that_goes_on_is_told_which_pieces_are_missing(user: Client, volume: str) -> None:
    piece = user.ask("POST", f"volumes/{volume}/chunks", b"a piece of a file").json[0]
    other = "0" * 64
    answer = user.ask("POST", f"volumes/{volume}/chunks/missing", {"hashes": [piece, other]})
    assert (answer.status, answer.json["hashes"]) == (200, [other])
    assert user.ask("POST", f"volumes/{volume}/chunks/missing", {"hashes": ["x"]}).status == 400
    assert user.ask("POST", f"volumes/{volume}/chunks/missing", {"hashes": 3}).status == 400


def test_a_months_budget_goes_to_the_gateway_and_comes_back(user: Client) -> None:
    assert user.ask("PUT", "budget", {"usd_per_month": "$40"}).status == 200
    assert user.ask("GET", "spending").json["budget_usd_per_month"] == "40"
    wrong = user.ask("PUT", "budget", {"usd_per_month": "lots"})
    assert wrong.status == 400 and "more than 0" in wrong.json["allowed"]
    assert user.ask("PUT", "budget", {}).status == 200
    assert "budget_usd_per_month" not in user.ask("GET", "spending").json


def test_what_is_there_is_replaced_only_when_asked_for(user: Client, volume: str) -> None:
    assert put(user, volume, "kept.txt", b"mine") == 200
    assert put(user, volume, "kept.txt", b"other") == 409
    assert user.ask("GET", f"volumes/{volume}/files/kept.txt").body == b"mine"
    assert put(user, volume, "kept.txt", b"other", overwrite=True) == 200
    assert user.ask("GET", f"volumes/{volume}/files/kept.txt").body == b"other"


def test_a_folder_is_renamed_and_deleted_whole(user: Client, volume: str) -> None:
    for name in ("a", "deep/b"):
        put(user, volume, f"old/{name}", name.encode())
    change = user.ask("POST", f"volumes/{volume}/files", {"renamed": [{"path": "old", "to": "new"}]})
    assert change.status == 200, change.body
    assert user.ask("GET", f"volumes/{volume}/files/new/deep/b").body == b"deep/b"
    assert user.ask("GET", f"volumes/{volume}/files?path=old").status == 404
    into_itself = user.ask("POST", f"volumes/{volume}/files", {"renamed": [{"path": "new", "to": "new/x"}]})
    assert into_itself.status == 400
    assert user.ask("POST", f"volumes/{volume}/files", {"deleted": ["new"]}).status == 200
    assert user.ask("GET", f"volumes/{volume}/files?path=new").status == 404


def test_a_volume_that_was_made_again_under_its_name_has_its_own_files(place: House, user: Client) -> None:
    """Deleted and made again beside the panel, which is not told of it; versions count from 0 in each volume."""

    def beside(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "cellburst", "volume", *arguments], env={**os.environ, **place.environment}, check=True,
            timeout=100, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    assert user.ask("POST", "volumes", {"name": "again"}).status == 200
    assert put(user, "again", "old.txt", b"old") == 200
    assert [one["name"] for one in user.ask("GET", "volumes/again/files").json["entries"]] == ["old.txt"]
    beside("delete", "again", "--yes")
    beside("create", "again")
    file = place.folder / "new.txt"
    for name in ("a.txt", "b.txt"):  # as many commits as the first one had, and one more
        file.write_text(name)
        beside("put", "again", str(file), f"/{name}")
    assert [one["name"] for one in user.ask("GET", "volumes/again/files").json["entries"]] == ["a.txt", "b.txt"]
    assert user.ask("POST", "volumes/again/files", {"renamed": [{"path": "b.txt", "to": "c.txt"}]}).status == 200
    assert user.ask("GET", "volumes/again/files/c.txt").body == b"b.txt"
    assert user.ask("DELETE", "volumes/again").status == 200


@pytest.fixture
def small_disk(place: House, user: Client) -> Iterator[Path]:
    """The gateway's chunks on a disk of 20 MiB."""
    (folder,) = (one.parent for one in (place.folder / "data").glob("**/chunks/*/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(folder)], check=True)
    try:
        (folder / "tmp").mkdir(mode=0o700)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # what is being read there goes on


@pytest.mark.gvisor  # root: it mounts
@pytest.mark.parametrize("here", [True, False])
def test_an_upload_goes_on_after_the_disk_was_full(place: House, user: Client, small_disk: Path, here: bool) -> None:
    """Pieces that the server writes itself, the gateway being on its machine, and such that go to the gateway."""
    pieces = [os.urandom(CHUNK_BYTES) for _ in range(3)]
    (proof,) = (place.folder / "data").rglob("blob-proof")
    assert user.ask("POST", "volumes", {"name": "full"}).status == 200
    if not here:
        proof.rename(proof.with_name("hidden"))
    try:
        sent = [user.ask("POST", "volumes/full/chunks", piece) for piece in pieces]
        assert [answer.status for answer in sent] == [200, 200, 507]
        assert sent[2].json["code"] == "platform.disk_full" and "free some space" in sent[2].json["next"]
        assert [*(small_disk / "tmp").iterdir()] == []
        assert user.ask("GET", "volumes/full/files").json.get("entries", []) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        sent[2] = user.ask("POST", "volumes/full/chunks", pieces[2])
        file = {"path": "big", "size_bytes": 3 * CHUNK_BYTES, "chunks": [answer.json for answer in sent]}
        assert user.ask("POST", "volumes/full/files", {"files": [file]}).status == 200
        assert user.ask("GET", "volumes/full/files/big").body == b"".join(pieces)
    finally:
        if not here:
            proof.with_name("hidden").rename(proof)
    assert user.ask("DELETE", "volumes/full").status == 200


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "..", ".", "a//b", "a\x00b", "%2e%2e/x", "x" * 300, "a/" * 2100 + "x", ""]
)
def test_a_path_that_leads_elsewhere_is_refused(user: Client, volume: str, path: str) -> None:
    written = put(user, volume, path, b"x")
    if path == "%2e%2e/x":  # only a name: nothing decodes it a second time
        assert written == 200
        assert user.ask("GET", f"volumes/{volume}/files/%252e%252e/x").body == b"x"
        return
    assert written == 400
    assert user.ask("POST", f"volumes/{volume}/files", {"deleted": [path]}).status == 400
    assert user.ask("POST", f"volumes/{volume}/files", {"renamed": [{"path": "kept.txt", "to": path}]}).status == 400


@pytest.mark.parametrize("path", ["..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "a%00b", "/etc/passwd", "%ff"])
def test_a_download_stays_in_its_volume(user: Client, volume: str, path: str) -> None:
    answer = user.ask("GET", f"volumes/{volume}/files/{path}")
    assert answer.status in (400, 404) and b"root:" not in answer.body


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a b", "../x", "", "é", "x" * 65, "\u202eabc", "💥"])
def test_a_name_that_is_none_is_refused_with_what_is_allowed(user: Client, name: str) -> None:
    for path, body in (("volumes", {"name": name}), ("secrets", {"name": name, "values": {"A": "b"}})):
        answer = user.ask("POST", path, body)
        assert answer.status == 400 and "letters" in answer.json["allowed"]
        assert answer.headers["content-type"].startswith("application/json")


def test_a_chunk_has_a_limit(user: Client, volume: str) -> None:
    assert user.ask("POST", f"volumes/{volume}/chunks", bytes(CHUNK_BYTES + 1)).status == 413
