"""Where a user's things lie and what is configured."""

from pathlib import Path

import pytest

from cellburst.config import folders, settings
from cellburst_protocol.errors import RequestError

VARIABLES = ["CELLBURST_DATA", "CELLBURST_RUN", "CELLBURST_CONFIG", "CELLBURST_GATEWAY", "CELLBURST_TOKEN", "CELLBURST_SIMULATE_GPUS",
             "CELLBURST_ENGINE", "CELLBURST_PORT", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"]  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(home: Path, text: str) -> None:
    path = home / ".config/cellburst/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_defaults(clean: Path) -> None:
    where = folders()
    assert (
        where.data == clean / ".local/share/cellburst" and where.config_file == clean / ".config/cellburst/config.toml"
    )
    assert where.run.name.startswith("cellburst-")
    assert settings().gateway_url == ""


def test_environment_wins_over_xdg_and_file(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(clean, '[gateway]\nurl = "http://file"\n[embedded]\nsimulate_gpus = "T4:1"\n')
    assert settings().gateway_url == "http://file" and settings().simulate_gpus == "T4:1"
    monkeypatch.setenv("CELLBURST_GATEWAY", "http://env")
    monkeypatch.setenv("XDG_DATA_HOME", str(clean / "xdg"))
    assert settings().gateway_url == "http://env" and folders().data == clean / "xdg/cellburst"
    monkeypatch.setenv("CELLBURST_DATA", str(clean / "own"))
    assert folders().data == clean / "own"


def test_a_token_file_is_read_and_a_missing_one_told(clean: Path) -> None:
    write(clean, '[gateway]\nurl = "http://x"\ntoken_file = "~/token"\n')
    with pytest.raises(RequestError, match="cannot be read"):
        settings()
    (clean / "token").write_text("secret\n")
    assert settings().token == "secret" and "secret" not in repr(settings())


@pytest.mark.parametrize("text", ["[gateway", "gateway = 5\n", "\x00"])
def test_a_broken_file_is_named(clean: Path, text: str) -> None:
    write(clean, text)
    with pytest.raises(RequestError, match=r"config\.toml"):
        settings()
