"""`cellburst.Secret` and `.env` files: what is read, what is refused, and that nothing shows a value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst import Secret
from cellburst_protocol import dotenv
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.secrets import parse_uses

SENTINEL = "sentinel-4f1a"


def refused(code: ErrorCode, words: str, make: object, *args: object, **more: object) -> None:
    with pytest.raises(CellburstError) as caught:
        make(*args, **more)  # type: ignore[operator]
    assert caught.value.code is code and words in caught.value.info.text()
    assert SENTINEL not in caught.value.info.text()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1", {"A": "1"}), ("export A = 1 \nB=2", {"A": "1", "B": "2"}), ("# c\n\n  A=1 # c\n", {"A": "1"}), ("A=", {"A": ""}),
        ("A='it\\'s # no comment'", {"A": "it's # no comment"}), ('A="two\nlines"\nB=x', {"A": "two\nlines", "B": "x"}),
        ('A="a\\"b\\n\\\\c\\x"', {"A": 'a"b\n\\c\\x'}), ("A=a=b#c", {"A": "a=b#c"}), ("A=$B${C}", {"A": "$B${C}"}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}), ("A='x' # c", {"A": "x"}), ("", {}),
    ],
)  # fmt: skip
def test_a_dotenv_file(text: str, values: dict[str, str]) -> None:
    assert dotenv.parse(text).values == values


def test_a_key_that_stands_twice_has_the_last_value_and_is_named() -> None:
    parsed = dotenv.parse(f"A={SENTINEL}\nB=1\nA=2\nA=3")
    assert (parsed.values, parsed.duplicates) == ({"A": "3", "B": "1"}, ["A"]) and "3" not in repr(parsed)


@pytest.mark.parametrize(
    "text", [f"A=1\n{SENTINEL}\n", f"A=1\nB='{SENTINEL}", f'A=1\nB="{SENTINEL}\n\n', f"A=1\nB='x' {SENTINEL}"]
)
def test_a_line_that_is_none_is_named_and_not_shown(text: str) -> None:
    refused(ErrorCode.BAD_ARGUMENT, "line 2", dotenv.parse, text)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_]{1,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=30),
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_a_quoted_value_comes_back_as_it_was(values: dict[str, str]) -> None:
    lines = [key + '="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for key, value in values.items()]
    assert dotenv.parse("\n".join(lines)).values == values


def test_the_nearest_dotenv_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".env").write_text(f"A={SENTINEL}")
    (tmp_path / "a" / "other.env").write_text("B=2")
    (tmp_path / "a" / "b" / "program.py").write_text("")
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert repr(Secret.from_dotenv()) == "Secret(keys=['A'])"
    assert repr(Secret.from_dotenv(tmp_path / "a" / "b" / "program.py", filename="other.env")) == "Secret(keys=['B'])"
    refused(ErrorCode.NOT_FOUND, "no-such.env", Secret.from_dotenv, filename="no-such.env")
    (tmp_path / ".env").write_text(f"1A={SENTINEL}")
    refused(ErrorCode.BAD_ARGUMENT, "1A", Secret.from_dotenv)


def test_values_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", SENTINEL)
    monkeypatch.delenv("UNSET", raising=False)
    assert repr(Secret.from_local_environ(["SET"])) == "Secret(keys=['SET'])"
    refused(ErrorCode.NOT_FOUND, "UNSET", Secret.from_local_environ, ["SET", "UNSET"])
    assert repr(Secret.from_dict({"A": SENTINEL, "B": None})) == "Secret(keys=['A'])"
    refused(ErrorCode.BAD_ARGUMENT, "at least one", Secret.from_dict, {"B": None})
    refused(ErrorCode.BAD_ARGUMENT, "int", Secret.from_dict, {"A": 1})
    refused(ErrorCode.BAD_ARGUMENT, "text", Secret.from_dict, {1: SENTINEL})
    refused(ErrorCode.BAD_ARGUMENT, "no name", Secret.from_name, "../x")
    assert Secret.from_name("hf", required_keys=["TOKEN"]).use == "hf:TOKEN"


def test_what_a_cell_names() -> None:
    assert [str(use) for use in parse_uses(["hf", "db:A", "hf:B:C", "db:A"])] == ["hf:B:C", "db:A"]
    for text in ("", ":A", "hf:", "hf:1", "a/b"):
        refused(ErrorCode.BAD_ARGUMENT, "no", parse_uses, [text])
