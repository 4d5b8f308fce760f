"""Secrets of `.env` files and of HashiCorp Vault: a real HTTP server that speaks Vault's KV version 2 stands for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.outbound import check_address, check_url
from cellburst_gateway.secret_store import other_stores, read_config
from cellburst_gateway.secret_store_vault import VaultSecrets, vault_config
from cellburst_protocol.errors import CellburstError, ErrorCode

SENTINEL = "sentinel-vault-99"
TOKEN = "hvs.test-token"


class Vault(ThreadingHTTPServer):
    """/v1/secret of developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2, and /v1/auth/token/lookup-self."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secrets: dict[str, dict[str, Any]] = {
            "app/hf": {"TOKEN": SENTINEL, "PORT": 8080},
            "app/deep/er": {"A": "1"},
        }
        self.sealed = False
        self.forbidden = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Vault

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_LIST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.sealed:
            return self._answer(503, {"errors": ["Vault is sealed"]})
        if self.headers.get("X-Vault-Token") != TOKEN:
            return self._answer(403, {"errors": ["permission denied"]})
        if path == "/v1/auth/token/lookup-self":
            return self._answer(200, {"data": {"ttl": 3600}})
        if self.server.forbidden:
            return self._answer(403, {"errors": ["1 error occurred: permission denied"]})
        if path.startswith("/v1/secret/metadata/app"):
            names = {name.removeprefix("app/") for name in self.server.secrets}
            return self._answer(
                200, {"data": {"keys": sorted({n if "/" not in n else n.split("/")[0] + "/" for n in names})}}
            )
        found = self.server.secrets.get(path.removeprefix("/v1/secret/data/"))
        if found is None:
            return self._answer(404, {"errors": []})
        self._answer(
            200, {"data": {"data": found, "metadata": {"version": 7, "destroyed": False, "deletion_time": ""}}}
        )

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Vault() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(vault: Vault, tmp_path: Path) -> VaultSecrets:
    (tmp_path / "token").write_text(TOKEN + "\n")
    return VaultSecrets(
        vault_config({"url": vault.url, "token_file": str(tmp_path / "token"), "prefix": "app/", "allow_private": True})
    )


async def test_vault_lists_and_opens(store: VaultSecrets) -> None:
    assert [(row.name, row.store, row.keys) for row in await store.rows("home")] == [("hf", "vault", [])]
    opened = await store.open("home", "hf")
    assert opened is not None and (opened.values, opened.version, opened.store) == (
        {"TOKEN": SENTINEL, "PORT": "8080"},
        7,
        "vault",
    )
    assert SENTINEL not in repr(opened)
    assert await store.keys("home", "hf") == ["PORT", "TOKEN"] and await store.open("home", "nope") is None


async def test_what_vault_refuses_is_said_in_words_and_without_a_value(
    store: VaultSecrets, vault: Vault, tmp_path: Path
) -> None:
    async def why() -> str:
        with pytest.raises(CellburstError) as caught:
            await store.open("home", "hf")
        text = caught.value.info.text()
        assert SENTINEL not in text and TOKEN not in text
        return text

    vault.forbidden = True
    assert "may not read secret/app/" in await why()
    vault.forbidden = False
    vault.sealed = True
    assert "sealed or down" in await why()
    vault.sealed = False
    vault.secrets["app/hf"] = {"A": {"b": SENTINEL}}
    assert "A is a dict" in await why()
    vault.secrets["app/hf"] = {"not-a-variable": SENTINEL}
    assert "not-a-variable" in await why()
    (tmp_path / "token").write_text("another")
    assert "does not know the token" in await why()
    (tmp_path / "token").unlink()
    assert "its token is not there" in await why()
    vault.shutdown()
    vault.server_close()
    (tmp_path / "token").write_text(TOKEN)
    assert "does not answer" in await why()


async def test_an_address_inside_needs_the_operators_word(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    store = VaultSecrets(vault_config({"url": vault.url, "token_file": str(tmp_path / "token")}))
    with pytest.raises(CellburstError, match="allow_private"):
        await store.open("home", "hf")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "url"),
        ({"url": "http://x"}, "token_file"),
        ({"url": "http://x", "token": "t"}, "token"),
        ({"url": 3, "token_env": "T"}, "url"),
    ],
)
def test_a_wrong_configuration_is_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(CellburstError, match=words):
        vault_config(table)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "::1", "fd00::1", "::ffff:127.0.0.1", "100.64.0.1"]
)
def test_addresses_inside(address: str) -> None:
    with pytest.raises(CellburstError, match="inside"):
        check_address("host", address)
    check_address("host", address, allow_private=True)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "0.0.0.0", "224.0.0.1", "fe80::1%eth0"]
)
def test_addresses_that_nobody_may(address: str) -> None:
    with pytest.raises(CellburstError, match="does not dial"):
        check_address("host", address, allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com",
        "http://",
        "nonsense",
        "http://[::1",
        "https://user:pass@127.0.0.1/",
        "http://127.0.0.1:99999",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(CellburstError) as caught:
        check_url(url, allow_private=True)
    assert caught.value.code is ErrorCode.BAD_ARGUMENT and "pass" not in caught.value.info.message.replace(
        "password", ""
    )


def config(tmp_path: Path, **secrets: Any) -> GatewayConfig:
    return GatewayConfig(data_folder=tmp_path, run_folder=tmp_path, raw={"secrets": secrets})


async def test_a_dotenv_file_is_a_secret(tmp_path: Path) -> None:
    file = tmp_path / "prod.env"
    file.write_text(f"TOKEN={SENTINEL}\n")
    (store,) = other_stores(
        read_config(config(tmp_path, files={"production": str(file), "gone": str(tmp_path / "gone")}))
    )
    opened = await store.open("home", "production")
    assert opened is not None and opened.values == {"TOKEN": SENTINEL} and SENTINEL not in repr(opened)
    assert store.version("home", "production") == opened.version and store.version("home", "x") is None
    rows = {row.name: row for row in await store.rows("home")}
    assert rows["production"].keys == ["TOKEN"] and "cannot be read" in rows["gone"].sealed
    assert await store.open("home", "other") is None
    file.write_text(f"TOKEN=1\n{SENTINEL}")
    with pytest.raises(CellburstError, match="line 2") as caught:
        await store.open("home", "production")
    assert SENTINEL not in caught.value.info.text()


@pytest.mark.parametrize(
    "secrets",
    [{"key_store": "x"}, {"files": 1}, {"files": {"a": 1}}, {"files": {"../x": "y"}}, {"vault": 1}, {"other": 1}],
)
def test_a_wrong_table_is_refused(tmp_path: Path, secrets: dict[str, Any]) -> None:
    with pytest.raises(CellburstError):
        read_config(config(tmp_path, **secrets))
