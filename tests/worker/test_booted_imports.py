"""What containers that are booted to wait import: a notebook's imports that cannot be had keep no other notebook waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_worker import templates, warm_pool
from cellburst_worker.clock import SystemClock
from cellburst_worker.template_policy import MAX_PRELOAD, MOST_UNFIT, Facts
from cellburst_worker.templates import Templates
from cellburst_worker.warm_pool import MOST_BOOTED_KEYS, Preload, WarmPool

REQUEST: Any = SimpleNamespace(image=SimpleNamespace(notebook_mode=""))


def prepared(key: str) -> Any:
    return SimpleNamespace(warm_key=key, boot_key=key)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(templates, "free_bytes", lambda: 1 << 62)
    snapshots = SimpleNamespace(template=lambda key: None, disabled=lambda key: False)
    forks = SimpleNamespace(preloaded=lambda key: None, knows=lambda key: False)
    runtime = SimpleNamespace(snapshots=snapshots, fork_servers=forks)
    return SimpleNamespace(
        keeps_warm=True, clock=SystemClock(), runtime=runtime, limits=SimpleNamespace(hello_seconds=1.0)
    )


def fact(container: str, key: str, *imports: str) -> Facts:
    return Facts(container, key, busy=False, quiet_seconds=9.0, ready_seconds=9.0, cells_done=1, imports=imports)


async def refused(pool: WarmPool, key: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of the key is booted, and the module must not be in it."""

    async def seeds(*_: object) -> Any:
        raise error(ErrorCode.CONFLICT, "it seeds", module=module)

    async def nothing(*_: object) -> Any:
        return SimpleNamespace(container=None)

    monkeypatch.setattr(warm_pool, "freeze_fresh", seeds)
    monkeypatch.setattr(warm_pool, "Talk", lambda *_: SimpleNamespace(hello=nothing))
    one: Any = SimpleNamespace(
        prepared=SimpleNamespace(warm_key=key, start=nothing),
        link=SimpleNamespace(start_pings=lambda: None),
        running=None,
    )
    made_of = pool._booted.get(key) or Preload(())
    with pytest.raises(CellburstError, match="it seeds"):
        await pool._boot(one, made_of, SimpleNamespace())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["unfit", "many"])
async def test_what_one_notebook_cannot_have_keeps_no_other_waiting(
    site: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pool = WarmPool(site)
    taker = Templates(site, pool)
    for key in ("k1", "k2"):
        pool.started(prepared(key), REQUEST, None)
    names = ("a", "a.b", "numpy") if kind == "unfit" else tuple(f"m{number}" for number in range(MAX_PRELOAD + 9))
    pool.preload("k1", names[:MAX_PRELOAD])
    if kind == "unfit":
        await refused(pool, "k1", "a", monkeypatch)
        assert pool.preloaded() == {"k1": ["numpy"]}
    facts = [fact("c1", "k1", *names), fact("c2", "k2", "pandas")]
    for _ in range(2):
        taker.tick(facts, {}, {})
        assert taker._task is not None
        await taker._task
    assert pool.preloaded()["k2"] == ["pandas"]
    assert pool.preloaded()["k1"] == (["numpy"] if kind == "unfit" else list(names[:MAX_PRELOAD]))


async def test_a_key_that_loses_too_many_modules_imports_none(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WarmPool(site)
    pool.started(prepared("k1"), REQUEST, None)
    names = [f"m{number}" for number in range(MOST_UNFIT + 5)]
    pool.preload("k1", names)
    for number in range(MOST_UNFIT):
        assert pool.preloaded() == {"k1": names[number:]}
        await refused(pool, "k1", names[number], monkeypatch)
    assert pool.preloaded() == {"k1": []}


async def test_what_is_not_fit_is_forgotten_with_its_key(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WarmPool(site)
    pool.started(prepared("k1"), REQUEST, None)
    pool.preload("k1", ["a", "numpy"])
    await refused(pool, "k1", "a", monkeypatch)
    for number in range(MOST_BOOTED_KEYS):
        pool.started(prepared(f"other{number}"), REQUEST, None)
    assert not pool.boots("k1") and pool._unfit == {}
    await refused(pool, "k1", "a", monkeypatch)  # one that was under way
    assert not pool.boots("k1") and pool._unfit == {}
