"""Secrets in the record, on SQLite and on a real PostgreSQL: every verb, its repeats and its refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from cellburst_gateway.secret_box import Sealed
from cellburst_gateway.store import Owner, Store
from cellburst_gateway.store_secrets import SecretListRecord, SecretRecord, SessionSecrets
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import ReleaseRow
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures

ANN, BOB, EVE = Owner("lab", "ann"), Owner("lab", "bob"), Owner("other", "eve")


@pytest.fixture
def store(record_url: str) -> Iterator[Store]:  # noqa: F811
    opened = Store.open(record_url, now=1.0)
    yield opened
    opened.close()


def record(name: str = "hf", version: int = 1, *, text: str = "", owner: Owner = ANN, **more: object) -> SecretRecord:
    sealed = Sealed("k1", "00", text or f"{name}{version}")
    made = SecretRecord(owner, name, version, sealed, ("A", "B"), 10.0, 10.0 + version)
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def listed(version: int, text: str = "") -> SecretListRecord:
    return SecretListRecord(version, Sealed("k1", "11", text or f"list{version}"))


def conflict(verb: object, *args: object, **more: object) -> None:
    with pytest.raises(CellburstError) as caught:
        verb(*args, **more)  # type: ignore[operator]
    assert caught.value.code is ErrorCode.CONFLICT


def test_a_secret_is_written_with_its_list_and_a_repeat_is_the_same(store: Store) -> None:
    assert (
        store.get_secret("lab", "hf") is None and store.secret_list("lab") is None and store.secret_key_ids() == set()
    )
    first = record()
    assert store.put_secret(first, listed(1), expected_version=0) == first
    assert store.put_secret(first, listed(1), expected_version=0) == first
    assert (store.get_secret("lab", "hf"), store.secret_list("lab")) == (first, listed(1))
    second = record(version=2)
    store.put_secret(second, listed(2), expected_version=1)
    assert store.list_secrets("lab") == [second] and store.secret_key_ids() == {"k1"}


def test_two_that_write_at_once_do_not_undo_each_other(store: Store) -> None:
    store.put_secret(record(), listed(1), expected_version=0)
    conflict(store.put_secret, record(text="mine"), listed(2), expected_version=0)
    store.put_secret(record(version=2), listed(2), expected_version=1)
    conflict(store.put_secret, record(version=2, text="mine"), listed(3), expected_version=1)
    conflict(store.put_secret, record("db", text="db"), listed(2, "mine"), expected_version=0)  # the list is another's
    assert store.get_secret("lab", "db") is None and store.secret_list("lab") == listed(2)


def test_workspaces_do_not_see_each_other(store: Store) -> None:
    store.put_secret(record(), listed(1), expected_version=0)
    store.put_secret(record(owner=EVE, text="x"), listed(1, "y"), expected_version=0)
    assert store.delete_secrets(EVE, ["hf", "nope"], None) == ["hf"]
    assert store.get_secret("other", "hf") is None and store.secret_list("other") is None
    assert store.get_secret("lab", "hf") == record() and store.secret_list("lab") == listed(1)
    assert store.delete_secrets(BOB, ["hf"], listed(2)) == ["hf"]
    assert store.delete_secrets(BOB, ["hf"], listed(2)) == []


def test_all_are_sealed_anew_or_none(store: Store) -> None:
    store.put_secret(record(), listed(1), expected_version=0)
    store.put_secret(record("db"), listed(2), expected_version=0)
    store.put_secret(record(owner=EVE, text="x"), listed(1, "y"), expected_version=0)

    def anew(found: SecretRecord) -> Sealed:
        return Sealed("k2", "22", found.sealed.ciphertext + "!")

    def list_anew(workspace: str, found: SecretListRecord) -> Sealed:
        return Sealed("k2", "22", workspace + found.sealed.ciphertext)

    def fails(found: SecretRecord) -> Sealed:
        if found.name == "hf" and found.owner.workspace == "other":
            raise ValueError("this one does not open")
        return anew(found)

    with pytest.raises(ValueError, match="does not open"):
        store.reseal_secrets(fails, list_anew)
    assert store.secret_key_ids() == {"k1"}
    assert store.reseal_secrets(anew, list_anew) == 3
    assert store.secret_key_ids() == {"k2"}
    found, lists = store.get_secret("lab", "db"), store.secret_list("other")
    assert found is not None and found.sealed == Sealed("k2", "22", "db1!")
    assert lists is not None and lists.sealed.ciphertext == "othery"


def test_releases_are_kept_newest_first_and_a_repeat_is_the_same(store: Store) -> None:
    store.put_secret(record(), listed(1), expected_version=0)
    store.put_secret(record("tmp", expires=99.0), listed(2), expected_version=0)
    row = ReleaseRow(
        at_unix_seconds=50.0, secret="hf", version=1, keys=["A"], session="s1", container="c1", worker="w", call="x"
    )
    gone = ReleaseRow(at_unix_seconds=60.0, secret="nope", version=0, refused="there is none", session="s1")
    temporary = ReleaseRow(at_unix_seconds=55.0, secret="tmp", version=1)
    store.record_releases(ANN, [row, temporary], key="r1", expires=500.0)
    store.record_releases(ANN, [row, temporary], key="r1", expires=500.0)
    store.record_releases(ANN, [gone], key="r2")
    assert store.list_releases("lab") == [gone, temporary, row]
    assert store.list_releases("lab", "hf") == [row] and store.list_releases("lab", limit=1) == [gone]
    assert store.list_releases("other") == []
    assert store.last_releases("lab") == {"hf": 50.0, "tmp": 55.0}
    hf, tmp = store.get_secret("lab", "hf"), store.get_secret("lab", "tmp")
    assert hf is not None and (hf.last_used, hf.expires) == (50.0, None)
    assert tmp is not None and (tmp.last_used, tmp.expires) == (55.0, 500.0)


def test_what_a_session_has(store: Store) -> None:
    assert store.session_secrets("s1") is None
    store.set_session_secrets("s1", ANN, SessionSecrets(("hf:A",), ("hf",)))
    store.set_session_secrets("s1", ANN, SessionSecrets((), ("hf",)))
    assert store.session_secrets("s1") == SessionSecrets((), ("hf",))
