"""Which frozen package an installer could not have, by what it said, and what is asked then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_runtime.image_nearest import is_frozen, missing_of, nearest, with_nearest

WANTED = [
    "ruamel.yaml==0.18.6",
    "numpy==2.1.0",
    "six==1.16.99",
    "torch==2.4.0+cu121",
    "own @ git+https://example.org/own@abc",
]


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        (
            "cause: Because there is no version of six==1.16.99 and you\n      require six==1.16.99, we can",
            ("six", "1.16.99"),
        ),
        ("Because numpy was not found in the package registry and you require numpy==2.1.0", ("numpy", "2.1.0")),
        ("Because ruamel-yaml was not found in the package registry", ("ruamel-yaml", "0.18.6")),
        ("Because torch==2.4.0+cu121 has no wheels with a matching platform tag", ("torch", "2.4.0+cu121")),
        ("Because there is no version of six==9 and you require six==9", None),
        ("Because left was not found in the package registry", None),
        ("error: Failed to fetch: the network is down", None),
    ],
)
def test_what_is_missing(said: str, missing: tuple[str, str] | None) -> None:
    assert missing_of(WANTED, said) == missing


def test_what_is_frozen() -> None:
    assert is_frozen(WANTED) and not is_frozen([]) and not is_frozen(["six==1.0", "numpy>=2"])


async def test_the_nearest_are_the_last_before_and_the_first_after() -> None:
    asked: list[list[str]] = []

    async def tries(words: Sequence[str]) -> str:
        asked.append(list(words))
        return "Would install 1 package\n - torch==2.4.0+cu121\n + torch==2.4.0" if "lowest-direct" not in words else ""

    assert await nearest("torch", "2.4.0+cu121", tries) == ["2.4.0"]
    assert [words[-1] for words in asked] == ["torch<=2.4.0", "torch>2.4.0"]


async def test_an_error_of_another_kind_stays_as_it_is() -> None:
    async def nothing(words: Sequence[str]) -> str:
        return ""

    def failed(code: ErrorCode, output: str) -> CellburstError:
        return error(code, "`uv pip install` failed", output=output)

    gone = failed(ErrorCode.IMAGE_BUILD, "Because there is no version of six==1.16.99 and you require it")
    full = failed(ErrorCode.DISK_FULL, "Because there is no version of six==1.16.99 and you require it")
    other = failed(ErrorCode.IMAGE_BUILD, "error: the network is down")
    assert await with_nearest(full, WANTED, nothing) is full and await with_nearest(other, WANTED, nothing) is other
    told = (await with_nearest(gone, WANTED, nothing)).info
    assert "six 1.16.99 cannot be had for this image; nor can another version of it" in told.message
    assert "%pip uninstall six" in told.next and told.detail["package"] == "six"
