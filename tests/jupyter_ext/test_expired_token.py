"""A token whose time is over: the gateway says so, and the cell that needed it shows that."""

from __future__ import annotations

from pathlib import Path

from bench.harness import Kernel
from cellburst_gateway.store_rows import Role
from cellburst_gateway.store_tokens import hash_token
from tests.fakes.gateway_thread import gateway_on_thread


def test_an_expired_token_is_told(tmp_path: Path) -> None:
    with gateway_on_thread(tmp_path) as (gateway, endpoint):
        owner = gateway.hub.store.authenticate(hash_token(endpoint.token), now=2.0).owner
        gateway.hub.store.add_token(hash_token("old"), owner, name="laptop", role=Role.USER, now=1.0, expires=2.0)
        environment = {
            "CELLBURST_GATEWAY": endpoint.url, "CELLBURST_TOKEN": "old", "CELLBURST_DATA": str(tmp_path / "other"),
            "CELLBURST_RUN": str(tmp_path / "other-run"), "CELLBURST_CONFIG": str(tmp_path / "none.toml"),
        }  # fmt: skip
        kernel = Kernel(environment, tmp_path)
        try:
            kernel.check("%load_ext cellburst_jupyter")
            ran = kernel.run("%%modal\nx = 1")
            assert "(laptop) expired" in ran.error and "ask for a new one" in ran.error, ran.error
            assert kernel.check("print('local goes on')").text == "local goes on\n"
        finally:
            kernel.close()
