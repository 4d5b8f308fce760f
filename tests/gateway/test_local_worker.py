"""The command line of this machine's own worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_gateway.config import from_arguments
from cellburst_gateway.local_worker import command
from cellburst_protocol.errors import CellburstError
from cellburst_worker.options import parse


def test_what_is_configured_for_the_worker_reaches_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    given = ["--data-dir", str(tmp_path), "--run-dir", str(tmp_path), "--config", str(file)]
    file.write_text("")
    plain = command(from_arguments(given), "http://127.0.0.1:1")
    assert not any("bytes" in word or word in ("--engine", "--simulate-gpus") for word in plain)
    assert parse(plain[3:]).max_images_bytes is None
    file.write_text(
        '[gateway]\nengine = "process"\nsimulate_gpus = "A100:1"\nmax_images_bytes = 10737418240\nmax_snapshots_bytes = 2097152\n'
    )
    options = parse(command(from_arguments(given), "http://127.0.0.1:1")[3:])
    assert (options.max_images_bytes, options.max_snapshots_bytes) == (10 << 30, 2 << 20)
    assert (options.engine, options.simulate_gpus, options.data_folder) == ("process", "A100:1", tmp_path)


@pytest.mark.parametrize("wrong", ["10", '"10GiB"', "true", "-1"])
def test_a_bound_that_is_none_is_refused(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[gateway]\nmax_images_bytes = {wrong}\n")
    given = ["--data-dir", str(tmp_path), "--run-dir", str(tmp_path), "--config", str(tmp_path / "config.toml")]
    with pytest.raises(CellburstError, match=r"max_images_bytes = .* cannot be used"):
        from_arguments(given)
