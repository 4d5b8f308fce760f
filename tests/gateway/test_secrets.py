"""Secrets through a real gateway: kept, sealed, rotated, released; nothing of a value in what the gateway writes.

Over 400 lines: every way of a value through one gateway, with the same sentinel looked for after each.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.secret_key import KeyHolder
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import (
    CellAccepted,
    CellRefused,
    DeleteSecret,
    ListReleases,
    ListSecrets,
    ParkSession,
    PutSecret,
    ReleaseList,
    ReleaseSecrets,
    RotateSecretKey,
    RunCell,
    SecretKeyRotated,
    SecretList,
    SecretRow,
)
from cellburst_protocol.states import EndReason
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeContainer, FakeWorker
from tests.gateway.house import House

SENTINEL = "sentinel-5b2c-value"
Make = Callable[..., Awaitable[House]]


async def put(house: House, name: str = "hf", mode: Any = "create", **values: str) -> SecretRow:
    cli = await house.cli()
    row = await cli.peer.request(PutSecret(name=name, values=values or {"TOKEN": SENTINEL}, mode=mode))
    assert isinstance(row, SecretRow)
    return row


async def ask(house: House, message: Any) -> Any:
    return await (await house.cli()).peer.request(message)


async def refused(house: House, message: Any) -> CellburstError:
    with pytest.raises(CellburstError) as caught:
        await ask(house, message)
    assert SENTINEL not in caught.value.info.text()
    return caught.value


def given(container: FakeContainer) -> list[ReleaseSecrets]:
    return [message for message in container.received if isinstance(message, ReleaseSecrets)]


async def run(kernel: FakeKernel, call: str, secrets: list[str] | None = None, code: str = "") -> None:
    accepted = await kernel.run(code, call=call, secrets=secrets)
    assert isinstance(accepted, CellAccepted), accepted
    assert (await kernel.ended(call)).reason is EndReason.DONE


def only(worker: FakeWorker) -> FakeContainer:
    (container,) = worker.containers.values()
    return container


def sql(house: House, statement: str, **values: object) -> None:
    with house.gateway.hub.store._transaction() as c:
        c.execute(text(statement), values)


def row_of(house: House, name: str) -> dict[str, Any]:
    with house.gateway.hub.store._transaction() as c:
        return dict(c.execute(text("SELECT * FROM secrets WHERE name = :name"), {"name": name}).one()._mapping)


# -- kept ----------------------------------------------------------------------------------------------------------------


async def test_a_secret_is_made_changed_listed_and_deleted(house: House) -> None:
    assert (await ask(house, ListSecrets())) == SecretList()
    first = await put(house, A="x" * 10, B="2")
    assert (first.version, first.keys, first.store) == (1, ["A", "B"], "local")
    again = await refused(house, PutSecret(name="hf", values={"A": "1"}))
    assert again.code is ErrorCode.CONFLICT and "--replace" in again.info.next
    assert (await put(house, mode="update", C="3")).keys == ["A", "B", "C"]
    third = await put(house, mode="replace", D="4")
    assert (third.keys, third.version) == (["D"], 3) and third.created_unix_seconds == first.created_unix_seconds
    assert [row.name for row in (await ask(house, ListSecrets())).rows] == ["hf"]
    await ask(house, DeleteSecret(name="hf"))
    gone = await refused(house, DeleteSecret(name="hf"))
    assert gone.code is ErrorCode.NOT_FOUND and "there are none" in gone.info.allowed
    assert (await put(house)).version == 4  # a row of before can never come back


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("<script>", {"A": "1"}, "<script>"), ("a b", {"A": "1"}, "a b"), ("é", {"A": "1"}, "letters"), ("none", {"A": "1"}, "none"),
        ("x" * 65, {"A": "1"}, "64"), ("", {"A": "1"}, "64"), ("\u202ename", {"A": "1"}, "letters"), ("ok", {}, "at least one"),
        ("ok", {"1A": "1"}, "1A"), ("ok", {"A-B": "1"}, "A-B"), ("ok", {"PATH": "1"}, "PATH"), ("ok", {"LD_PRELOAD": "1"}, "LD_PRELOAD"),
        ("ok", {"A": "x\0y"}, "NUL"), ("ok", {"A": "x" * 65537}, "65536"), ("ok", {f"K{n}": "1" for n in range(129)}, "128"),
        ("ok", {f"K{n}": "x" * 60000 for n in range(5)}, "262144"), ("ephemeral-1", {"A": "1"}, "gateway's own"),
    ],
)  # fmt: skip
async def test_a_secret_that_cannot_be_is_refused_with_what_is_allowed(
    house: House, name: str, values: dict[str, str], words: str
) -> None:
    why = await refused(house, PutSecret(name=name, values=values))
    assert words in why.info.text() and why.code in (ErrorCode.BAD_ARGUMENT, ErrorCode.TOO_LARGE)


async def test_nothing_that_the_gateway_writes_has_a_value(house: House, config: GatewayConfig) -> None:
    await house.worker()
    await put(house)
    kernel = await house.kernel()
    await run(kernel, "c1", ["hf"])
    assert await refused(house, PutSecret(name="hf", values={"TOKEN": SENTINEL}))
    house.gateway.hub.write_now()
    for path in config.data_folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SENTINEL.encode() not in data and SENTINEL.encode().hex().encode() not in data, path
    key = config.data_folder / "secret-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(bytes.fromhex(key.read_text())) == 32
    message = PutSecret(name="x", values={"K": SENTINEL})
    assert SENTINEL not in repr(message) + repr(ReleaseSecrets(environment={"K": SENTINEL}, hidden={"n.K": SENTINEL}))
    assert SENTINEL not in house.gateway.hub.metrics.text()


# -- changed from outside ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["another's bytes", "cut", "flipped", "an older row", "gone", "the list"])
async def test_a_row_that_was_changed_is_never_used(house: House, what: str) -> None:
    await house.worker()
    await put(house)
    await put(house, "db", PASSWORD="other-value-123")
    old = row_of(house, "hf")
    await put(house, mode="replace", TOKEN="newer-value-456")
    new, other = row_of(house, "hf"), row_of(house, "db")
    change = "UPDATE secrets SET version = :version, nonce = :nonce, ciphertext = :ciphertext, keys = :keys WHERE name = 'hf'"
    match what:
        case "another's bytes":
            sql(
                house,
                change,
                **{
                    key: {**new, "nonce": other["nonce"], "ciphertext": other["ciphertext"]}[key]
                    for key in ("version", "nonce", "ciphertext", "keys")
                },
            )
        case "cut":
            sql(house, "UPDATE secrets SET ciphertext = :c WHERE name = 'hf'", c=new["ciphertext"][:-2])
        case "flipped":
            sql(
                house,
                "UPDATE secrets SET ciphertext = :c WHERE name = 'hf'",
                c=("0" if new["ciphertext"][0] != "0" else "1") + new["ciphertext"][1:],
            )
        case "an older row":
            sql(house, change, **{key: old[key] for key in ("version", "nonce", "ciphertext", "keys")})
        case "gone":
            sql(house, "DELETE FROM secrets WHERE name = 'hf'")
        case "the list":
            sql(house, "DELETE FROM secret_lists")
    kernel = await house.kernel()
    answer = await kernel.run("", call="c1", secrets=["hf"])
    assert isinstance(answer, CellRefused) and answer.error.code is ErrorCode.INTEGRITY, answer
    assert "changed in the record from outside" in answer.error.message and "value" not in answer.error.message
    if what in ("an older row", "gone"):
        rows = {row.name: row for row in (await ask(house, ListSecrets())).rows}
        assert "from outside" in rows["hf"].sealed and not rows["db"].sealed
    if what == "flipped":
        assert (await refused(house, RotateSecretKey())).code is ErrorCode.INTEGRITY
        await run(kernel, "c2", ["db"])  # under the old key still
        await put(house, mode="replace", TOKEN="written-anew")
        await run(kernel, "c3", ["hf"])


# -- the key -------------------------------------------------------------------------------------------------------------


async def test_without_its_key_all_is_sealed_and_nothing_overwritten(make_house: Make, config: GatewayConfig) -> None:
    house = await make_house()
    await put(house)
    before = row_of(house, "hf")
    await house.close()
    key = config.data_folder / "secret-key"
    right = key.read_text()
    for wrong in (None, "00" * 32, "no key at all"):
        key.unlink(missing_ok=True)
        if wrong is not None:
            key.write_text(wrong)
        house = await make_house()
        rows = (await ask(house, ListSecrets())).rows
        assert [row.name for row in rows] == ["hf"] and "sealed" in rows[0].sealed
        for message in (
            PutSecret(name="x", values={"A": "1"}),
            PutSecret(name="hf", values={"A": "1"}, mode="replace"),
            RotateSecretKey(),
            DeleteSecret(name="hf"),
        ):
            why = await refused(house, message)
            assert why.code is ErrorCode.UNAVAILABLE and "sealed" in why.info.message and "secret-key" in why.info.next
        kernel = await house.kernel()
        answer = await kernel.run("", call=f"c{wrong}", secrets=["hf"])
        assert isinstance(answer, CellRefused) and answer.error.code is ErrorCode.UNAVAILABLE
        assert row_of(house, "hf") == before and (key.read_text() if key.exists() else None) == wrong
        key.write_text(right)  # without a restart
        assert (await put(house, f"n{len(str(wrong))}")).version == 1
        await ask(house, DeleteSecret(name=f"n{len(str(wrong))}"))
        await house.close()


async def test_a_key_that_is_lost_for_good(make_house: Make, config: GatewayConfig) -> None:
    house = await make_house()
    await put(house)
    assert (await refused(house, DeleteSecret(all_sealed=True))).code is ErrorCode.CONFLICT
    await house.close()
    (config.data_folder / "secret-key").write_text("garbage")
    house = await make_house()
    await ask(house, DeleteSecret(all_sealed=True))
    assert (await ask(house, ListSecrets())).rows == []
    assert (await put(house)).keys == ["TOKEN"]
    assert (config.data_folder / "secret-key.lost").read_text() == "garbage"


async def test_a_rotation_changes_all_and_survives_a_kill_at_each_step(make_house: Make, config: GatewayConfig) -> None:
    house = await make_house()
    await house.worker()
    await put(house)
    await put(house, "db", PASSWORD="p" * 10)
    key = config.data_folder / "secret-key"
    first = key.read_text()
    assert (await ask(house, RotateSecretKey())) == SecretKeyRotated(secret_count=2, key_place=f"the file {key}")
    second = key.read_text()
    assert second != first and not (config.data_folder / "secret-key.next").exists()
    await run(await house.kernel(), "c1", ["hf", "db"])
    await house.close()
    key.write_text(first)  # killed after the record's commit, before the new key took its place
    (config.data_folder / "secret-key.next").write_text(second)
    house = await make_house()
    await house.worker()
    await run(await house.kernel(notebook="/o.ipynb"), "c2", ["hf"])
    assert key.read_text() == second
    await house.close()
    (config.data_folder / "secret-key.next").write_text("ab" * 32)  # killed before the commit
    house = await make_house()
    assert not (await ask(house, ListSecrets())).rows[0].sealed
    assert (await ask(house, RotateSecretKey())).secret_count == 2


class Ring:
    """A keyring as `keyring`'s backends are."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, name: str) -> str | None:
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, value: str) -> None:
        self.kept[service, name] = value

    def delete_password(self, service: str, name: str) -> None:
        del self.kept[service, name]


def test_a_keyring_is_taken_where_there_is_one_and_the_choice_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellburst_gateway.secret_box import key_id

    ring = Ring()
    key = KeyHolder(tmp_path, ring=ring).make()
    assert len(ring.kept) == 1 and not (tmp_path / "secret-key").exists()
    assert KeyHolder(tmp_path, ring=ring).find({key_id(key)}) == key
    with pytest.raises(CellburstError, match="sealed"):  # another house of the same user
        KeyHolder(tmp_path / "other", ring=ring).find({key_id(key)})
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CellburstError, match="sealed"):  # now on a server, where it cannot be reached
        KeyHolder(tmp_path).find({key_id(key)})
    assert KeyHolder(tmp_path / "new").find(set()) is None
    (tmp_path / "new").mkdir()
    assert KeyHolder(tmp_path / "new", "file", Ring()).make() and (tmp_path / "new" / "secret-key").exists()
    holder = KeyHolder(tmp_path, ring=ring)
    new = holder.next_key(key)
    assert holder.settle(new) == "this user's keyring (service cellburst)"
    assert KeyHolder(tmp_path, ring=ring).find({key_id(new)}) == new and len(ring.kept) == 1


# -- released ------------------------------------------------------------------------------------------------------------


async def test_a_container_gets_them_before_the_cell_and_once(house: House) -> None:
    worker = await house.worker()
    await put(house, TOKEN=SENTINEL, SHARED="from-hf")
    await put(house, "db", SHARED="from-db")
    kernel = await house.kernel()
    await run(kernel, "c1", ["hf:TOKEN", "db"])
    kinds = [
        type(message).__name__ for message in only(worker).received if isinstance(message, ReleaseSecrets | RunCell)
    ]
    assert kinds == ["ReleaseSecrets", "RunCell"]
    (release,) = given(only(worker))
    assert release.environment == {"TOKEN": SENTINEL, "SHARED": "from-db"} and release.origins == {
        "TOKEN": "hf",
        "SHARED": "db",
    }
    await run(kernel, "c2")
    await run(kernel, "c3", ["hf", "db"])
    assert len(given(only(worker))) == 1
    releases = await ask(house, ListReleases())
    assert isinstance(releases, ReleaseList) and {(r.secret, r.version, r.container) for r in releases.rows} == {
        ("hf", 1, only(worker).start.container), ("db", 1, only(worker).start.container),
    }  # fmt: skip
    assert (await ask(house, ListSecrets())).rows[0].last_used_unix_seconds > 0
    await put(house, mode="update", TOKEN="newer-value")  # the next cell has it
    await run(kernel, "c4")
    assert given(only(worker))[1].environment["TOKEN"] == "newer-value"
    await run(kernel, "c5", ["db"])  # hf is taken away, and still hidden in output
    assert given(only(worker))[2].environment == {"SHARED": "from-db"}
    assert given(only(worker))[2].hidden == {
        "hf.TOKEN": "newer-value", "hf.SHARED": "from-hf", "hf.TOKEN of version 1": SENTINEL
    }  # fmt: skip
    await run(kernel, "c6", [])
    assert given(only(worker))[3].environment == {} and len(given(only(worker))) == 4


async def test_a_session_without_secrets_gets_none_and_asks_nothing(house: House) -> None:
    worker = await house.worker()
    await put(house)
    kernel = await house.kernel()
    await run(kernel, "c1")
    await run(kernel, "c2")
    assert not given(only(worker)) and (await ask(house, ListReleases())).rows == []
    await kernel.peer.request(ParkSession(notebook="/n.ipynb", name="default"))
    assert worker.parks_asked[0].park_key == ""


async def test_a_missing_secret_or_key_is_named_and_nothing_runs(house: House) -> None:
    worker = await house.worker()
    await put(house)
    kernel = await house.kernel()
    for number, (secrets, words) in enumerate(
        [
            (["nope"], "'nope'"),
            (["hf:OTHER"], "no key OTHER"),
            (["a b"], "'a b'"),
            ([f"n{n}" for n in range(33)], "33 secrets"),
        ]
    ):
        answer = await kernel.run("", call=f"r{number}", secrets=secrets)
        assert isinstance(answer, CellRefused) and words in answer.error.text(), answer
    assert not worker.containers
    await run(kernel, "c1", ["hf"])
    await ask(house, DeleteSecret(name="hf"))
    answer = await kernel.run("", call="c2")  # the session had it: not run with an empty environment
    assert isinstance(answer, CellRefused) and "'hf'" in answer.error.message
    await run(kernel, "c3", [])


async def test_what_cannot_be_recorded_is_not_released(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await house.worker()
    await put(house)
    kernel = await house.kernel()
    await run(kernel, "c1")
    from cellburst_protocol.errors import error

    def full(*args: object, **more: object) -> None:
        raise error(ErrorCode.DISK_FULL, "the disk is full")

    monkeypatch.setattr(house.gateway.hub.store, "record_releases", full)
    await kernel.run("print never", call="c2", secrets=["hf"])
    ended = await kernel.ended("c2")
    assert ended.error is not None and ended.error.code is ErrorCode.DISK_FULL
    assert not given(only(worker)) and [m.call for m in only(worker).received if isinstance(m, RunCell)] == ["c1"]
    monkeypatch.undo()
    await run(kernel, "c3", ["hf"])
    assert len(given(only(worker))) == 1


async def test_a_new_container_and_a_new_link_get_them_again(house: House) -> None:
    worker = await house.worker()
    await put(house)
    kernel = await house.kernel()
    await run(kernel, "c1", ["hf"])
    await worker.drop_link()
    await worker.joined.wait()
    container = only(worker)
    await house.until(lambda: house.gateway.hub.fleet.containers[container.start.container].connected)
    await run(kernel, "c2")
    assert len(given(container)) == 2
    await kernel.peer.request(ParkSession(notebook="/n.ipynb", name="default"))
    assert len(bytes.fromhex(worker.parks_asked[0].park_key)) == 32
    await run(kernel, "c3")
    after = only(worker)
    assert after is not container and len(given(after)) == 1
    assert after.start.park_key == worker.parks_asked[0].park_key and after.start.parked


async def test_a_gateway_that_starts_again_knows_what_its_sessions_have(make_house: Make) -> None:
    house = await make_house()
    worker = await house.worker()
    await put(house)
    kernel = await house.kernel()
    await run(kernel, "c1", ["hf"])
    session = kernel.info.session if kernel.info else ""
    await house.gateway.close()
    house.gateway.links.close_all()
    await asyncio.sleep(0)
    again = await make_house()
    worker.url, worker.token = again.url.replace("http", "ws", 1) + "/link", again.gateway.hub.secrets.worker_token
    await again.until(lambda: bool(again.gateway.hub.fleet.workers))
    kernel = await again.kernel(kernel_id="k1", session=session)
    await run(kernel, "c2")
    assert len(given(only(worker))) == 2


async def test_an_ephemeral_secret_is_in_no_list_and_expires(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await house.worker()
    made = await ask(house, PutSecret(values={"A": SENTINEL}, ephemeral=True))
    assert made.name.startswith("ephemeral-") and (await ask(house, ListSecrets())).rows == []
    kernel = await house.kernel()
    await run(kernel, "c1", [made.name])
    assert given(only(worker))[0].environment == {"A": SENTINEL}
    wall = house.gateway.clock.wall()
    monkeypatch.setattr(house.gateway.hub.secret_desk._local._clock, "wall", lambda: wall + 2 * 86400)
    answer = await kernel.run("", call="c2")
    assert isinstance(answer, CellRefused) and answer.error.code is ErrorCode.NOT_FOUND
    await ask(house, ListSecrets())
    assert house.gateway.hub.store.list_secrets("home") == []
