"""Recipes on the wire, and the keys of their layers."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellburst_protocol.images import (
    AddPython,
    AnyStep,
    AptInstall,
    Copy,
    CopyFrom,
    DebianSlim,
    Env,
    FilePack,
    FromRegistry,
    FromScratch,
    FromStage,
    ImageRecipe,
    PipInstall,
    RunCommands,
    RunFunction,
    User,
    UvSync,
    Workdir,
    debian_slim,
    decode_recipe,
    describe,
    expand,
    is_forced,
    layer_keys,
    packs,
    python_minor,
)

PACK = FilePack(hash="ab" * 32, size_bytes=10, files=1)
OTHER = FilePack(hash="cd" * 32, size_bytes=10, files=1)
STEPS: list[AnyStep] = [
    DebianSlim(), FromScratch(), FromRegistry(reference="docker.io/library/debian:12"), FromStage(steps=[FromScratch()]),
    AddPython(python_version="3.12"), AptInstall(packages=["git"]), PipInstall(packages=["numpy"], pack=PACK, requirements=["0/r.txt"]),
    UvSync(pack=PACK), RunCommands(commands=["a", ["b", "c"]]), RunFunction(pack=PACK, name="f"), Env(variables={"a": "1"}), Workdir(path="/w"),
    User(user="u"), Copy(pack=PACK, destination="/d"), CopyFrom(steps=[FromScratch()], sources=["/a"], destination="/b"),
]  # fmt: skip


def keys(*steps: AnyStep, nonce: str = "n") -> list[str]:
    return layer_keys(steps, architecture="x86_64", nonce=nonce)


def test_a_recipe_crosses_the_wire_unchanged() -> None:
    recipe = ImageRecipe(steps=STEPS, adds=[Copy(pack=OTHER, destination="/x")], preload=["torch"], mirror=True)
    assert decode_recipe(msgspec.json.encode(recipe)) == recipe and decode_recipe(msgspec.to_builtins(recipe)) == recipe


def test_every_step_has_a_key_of_its_own_and_one_line() -> None:
    found = [keys(step)[0] for step in STEPS]
    assert len(set(found)) == len(STEPS) and all(len(key) == 40 for key in found)
    assert all("\n" not in describe(step) and len(describe(step)) <= 130 for step in STEPS)


def test_a_key_depends_on_all_below_and_on_the_machine() -> None:
    a, b = RunCommands(commands=["a"]), RunCommands(commands=["b"])
    for one, two in itertools.combinations([[a, b], [b, a], [a, a], [b, b]], 2):
        assert keys(*one)[1] != keys(*two)[1]
    assert keys(a, b)[0] == keys(a)[0]
    assert layer_keys([a], architecture="aarch64") != layer_keys([a], architecture="x86_64")


@given(st.permutations(["A", "B", "C", "D"]))
def test_the_order_of_a_dict_does_not_matter(order: list[str]) -> None:
    step = Env(variables={name: name.lower() for name in order})
    assert keys(step) == keys(Env(variables={"A": "a", "B": "b", "C": "c", "D": "d"}))


def test_files_enter_by_content() -> None:
    assert keys(Copy(pack=PACK, destination="/d")) != keys(Copy(pack=OTHER, destination="/d"))


def test_a_forced_step_has_a_new_key_in_every_build() -> None:
    plain, forced = RunCommands(commands=["a"]), RunCommands(commands=["a"], force=True)
    inside = FromStage(steps=[FromScratch(), forced])
    assert keys(plain, nonce="1") == keys(plain, nonce="2") and keys(forced, nonce="1") != keys(forced, nonce="2")
    assert is_forced(inside) and keys(inside, plain, nonce="1")[1] != keys(inside, plain, nonce="2")[1]


def test_debian_brings_its_own_python_where_it_is_that_one() -> None:
    assert debian_slim("3.11") == [DebianSlim()]
    assert debian_slim("3.12") == [DebianSlim(python=False), AddPython(python_version="3.12")]


def test_debians_python_serves_where_its_patch_suffices() -> None:
    assert debian_slim("3.11", least_patch=2) == [DebianSlim()]
    other = debian_slim("3.11", least_patch=3)
    assert other == [DebianSlim(python=False), AddPython(python_version="3.11", least="3.11.3")]
    assert describe(other[1]) == "add_python 3.11.3 or later" and python_minor(other) == "3.11"
    plain = AddPython(python_version="3.11")  # keys of before hold
    assert b"least" not in msgspec.json.encode(plain) and keys(other[0], plain) != keys(*other)


def test_packs_are_found_in_stages_too() -> None:
    inner = CopyFrom(steps=[FromScratch(), Copy(pack=OTHER, destination="/")], sources=["/a"], destination="/b")
    recipe = ImageRecipe(steps=[FromStage(steps=[FromScratch(), inner])], adds=[Copy(pack=PACK, destination="/x")])
    assert {pack.hash for pack in packs(recipe)} == {PACK.hash, OTHER.hash}


@pytest.mark.parametrize(("text", "value"), [
    ("plain", "plain"), ("$A", "1"), ("${A}b", "1b"), ("$AB", ""), ("\\$A", "$A"), ("${N:-x}", "x"), ("${E:-x}", "x"), ("${E-x}", ""),
    ("${A:+y}", "y"), ("${E:+y}", ""), ("${N:-${A}}", "1"), ("$", "$"), ("$$A", "$1"), ("a$A/$B", "a1/2"),
])  # fmt: skip
def test_variables_are_replaced_as_docker_does(text: str, value: str) -> None:
    assert expand(text, {"A": "1", "B": "2", "E": ""}) == value


@pytest.mark.parametrize("text", ["${A", "${A:?no}", "${A:-${B}"])
def test_what_cannot_be_replaced_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        expand(text, {})
