"""Images of a registry that wants a login, from a secret of the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import FromRegistry, ImageRecipe
from cellburst_runtime import image_base
from cellburst_runtime.image_secrets import BuildSecrets
from tests.fakes.images import ImageHouse, content
from tests.fakes.registry import PASSWORD, USER, Registry, running_registry

pytestmark = pytest.mark.gvisor
RIGHT = {"REGISTRY_USERNAME": USER, "REGISTRY_PASSWORD": PASSWORD}
WRONG = {**RIGHT, "REGISTRY_PASSWORD": "wrong-pa55word"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with running_registry(folder, login=True) as made:
        root = folder / "root"
        root.mkdir()
        (root / "private.txt").write_text("private")
        made.push("private:1", root)
        yield made


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    made = ImageHouse(tmp_path)
    yield made
    await made.end()


async def pull(house: ImageHouse, registry: Registry, name: str, values: dict[str, str] | None) -> bytes:
    """The private file of the image, pulled with the secret `hub` of these values."""
    secret = "hub" if values is not None else ""
    recipe = ImageRecipe(steps=[FromRegistry(reference=registry.name(name), secret=secret)])
    secrets = BuildSecrets({"hub": values or {}}, {"hub": 1})
    with await house.builder().build(recipe, house.file, house.log.append, secrets) as image:
        return content(image, "/private.txt")


async def test_a_private_image_is_pulled_with_the_login_of_a_secret(
    house: ImageHouse, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    modes: list[int] = []
    on_host = image_base.run_on_host

    async def watched(machine: object, draft: object, arguments: list[str], log: object) -> object:
        ran.extend(arguments)
        for argument in arguments:
            if argument.endswith("auth.json"):
                modes.append(Path(argument).stat().st_mode & 0o777)
        return await on_host(machine, draft, arguments, log)  # type: ignore[arg-type]

    monkeypatch.setattr(image_base, "run_on_host", watched)
    assert await pull(house, registry, "private:1", RIGHT) == b"private"
    assert ran[0].endswith("skopeo") and modes == [0o600] and not any(PASSWORD in argument for argument in ran)
    assert not any(PASSWORD in line for line in house.log)
    assert not [path for path in house.images.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


async def test_a_wrong_or_missing_login_is_told_as_that(house: ImageHouse, registry: Registry) -> None:
    with pytest.raises(CellburstError, match="did not accept the login of the secret 'hub'") as caught:
        await pull(house, registry, "private:1", WRONG)
    assert caught.value.code is ErrorCode.IMAGE_BUILD and "cellburst secret create hub" in caught.value.info.next
    assert "wrong-pa55word" not in caught.value.info.text() + str(caught.value.info.detail)
    with pytest.raises(CellburstError, match="wants a login") as caught:
        await pull(house, registry, "private:1", None)
    assert "secret=Secret.from_name" in caught.value.info.next
    with pytest.raises(CellburstError, match="no key REGISTRY_PASSWORD"):
        await pull(house, registry, "private:1", {"REGISTRY_USERNAME": USER})
    with pytest.raises(CellburstError, match="manifest unknown"):
        await pull(house, registry, "none:1", RIGHT)
    assert house.leftovers() == []
