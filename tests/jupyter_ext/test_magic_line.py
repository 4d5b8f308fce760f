"""The magic's line: every key, both spellings, and what each refusal says."""

from __future__ import annotations

import pytest

from cellburst_jupyter.magic_line import KEYS, NOT_YET, CellOptions, check_timeout, parse_cell_line
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.volumes import VolumeMount


def refused(line: str) -> CellburstError:
    with pytest.raises(CellburstError) as caught:
        parse_cell_line(line)
    return caught.value


def test_empty_line_gives_the_defaults() -> None:
    options = parse_cell_line("  ")
    assert options == CellOptions()
    assert options.resources == Resources()


def test_every_key_is_understood_as_key_value() -> None:
    line = (
        "gpu=H100,A100:2 memory=16GiB cpu=0.5 timeout=1h30m session=train network=none in=x,y out=model "
        "mount=/data,~/more budget=$3 detach card=off scaledown_window=10m secrets=hf volumes=/v:ds:ro image=img"
    )
    options = parse_cell_line(line)
    assert options.given == set(KEYS)
    assert options.resources.gpus == (GpuChoice("H100"), GpuChoice("A100", 2))
    assert options.resources.memory_mib == 16 * 1024
    assert options.resources.cpu == 0.5
    assert options.resources.timeout_seconds == 5400
    assert options.resources.budget_usd == "3"
    assert options.resources.scaledown_seconds == 600
    assert options.resources.network == "none"
    assert (options.session, options.only, options.out) == ("train", ("x", "y"), ("model",))
    assert options.mounts == ("/data", "~/more")
    assert options.volumes == (VolumeMount(volume="", name="ds", path="/v", read_only=True),)
    assert (options.detach, options.card, options.image) == (True, False, "img")
    assert options.text[options.image_column :] == "img"


def test_dashes_mean_the_same() -> None:
    assert parse_cell_line("--gpu A100 --session=train --detach --cpu 2").resources == Resources(
        gpus=(GpuChoice("A100"),), cpu=2.0
    )
    assert parse_cell_line("--detach --gpu A100").detach is True
    assert parse_cell_line("detach=off --card off").card is False


def test_quotes_keep_spaces() -> None:
    assert parse_cell_line('mount="/data/my images" cpu=2').mounts == ("/data/my images",)
    assert "not closed" in refused("mount='/data").info.message


@pytest.mark.parametrize("key", NOT_YET)
def test_what_is_not_there_yet_is_refused_by_name(key: str) -> None:
    problem = refused(f"gpu=A100 {key}=x")
    assert problem.code is ErrorCode.NOT_YET
    assert f"{key}=" in problem.info.message
    assert "not in this version" in problem.info.message


@pytest.mark.parametrize(
    ("line", "column", "word"),
    [
        ("gpuu=A100", 0, "gpu="),
        ("cpu=2 gpu=A100 gpu=T4", 15, "twice"),
        ("gpu=A100:x", 4, "TYPE:COUNT"),
        ("cpu=2  memory=lots", 14, "MiB"),
        ("gpu", 0, "needs a value"),
        ("gpu=", 4, "missing"),
        ("gpu=H100, A100", 10, "lists are written without spaces"),
        ("=5", 0, "there is no name before the ="),
        ("cpu=2 --=5", 6, "there is no name before the ="),
        ("gpu = A100", 4, "name and value without spaces"),
        ("zzz=5", 0, "leave zzz= out"),
        ("session=a/b", 8, "letters"),
        ("in=x,2y", 3, "'2y'"),
        ("mount=data", 6, "absolute"),
        ("image=a.b", 6, "variable"),
        ("cpu=2 volumes=data", 14, "which volume"),
        ("volumes=data:ds", 8, "not absolute"),
        ("volumes=/:ds", 8, "everything is below"),
        ("volumes=/usr/share/x:ds", 8, "/usr is the system's"),
        ("volumes=/proc:ds", 8, "system's"),
        ("volumes=/a/../etc:ds", 8, "'..'"),
        ("volumes=/data:../x", 8, "no name for a volume"),
        ("volumes=/data:ds:rw", 8, "no option"),
        ("volumes=/a:ds,/b:ds", 8, "ds is at /a and at /b"),
        ("volumes=/a:x,/a:y", 8, "both to be at /a"),
        ("volumes=/a:x,/a/b:y", 8, "lie in each other"),
        ("network=host", 8, "outbound"),
        ("card=maybe", 5, "on, off"),
        ("budget=-1", 7, "more than 0"),
        ("timeout=soon", 8, "number"),
        ("scaledown_window=60d", 17, "720h"),
    ],
)
def test_a_refusal_names_its_column_and_the_way_out(line: str, column: int, word: str) -> None:
    problem = refused(line)
    assert problem.info.detail["column"] == str(column)
    assert problem.info.detail["line"] == line
    assert word in problem.info.text()
    assert problem.info.next


def test_an_argument_without_a_name_is_told_the_names_and_nothing_of_lists() -> None:
    problem = refused("=5")
    assert "'=5' is no argument of %%modal" in problem.info.message and "lists" not in problem.info.text()
    assert problem.info.allowed == ", ".join(KEYS) and "gpu=A100" in problem.info.next


def test_unknown_gpu_names_the_known_ones() -> None:
    problem = refused("gpu=Z9")
    assert problem.code is ErrorCode.UNKNOWN_GPU
    assert "A100" in problem.info.allowed
    assert parse_cell_line("gpu=Z9", ("Z9",)).resources.gpus == (GpuChoice("Z9"),)


def test_timeout_is_checked_against_the_gateways_limit() -> None:
    options = parse_cell_line("timeout=48h")
    check_timeout(options, max_seconds=72 * 3600)
    with pytest.raises(CellburstError, match="48h"):
        check_timeout(options)


def test_a_session_keeps_what_a_later_line_leaves_out() -> None:
    running = parse_cell_line("gpu=A100 memory=16GiB scaledown_window=2m").resources
    later = parse_cell_line("timeout=5m")
    kept = later.in_session(True, running)
    assert kept is not None
    assert kept.same_container(running)
    assert (kept.timeout_seconds, kept.scaledown_seconds) == (300, 120)
    other = parse_cell_line("gpu=T4").in_session(True, running)
    assert other is not None
    assert (other.gpus, other.memory_mib) == ((GpuChoice("T4"),), running.memory_mib)
    assert later.in_session(False, running) == later.resources


def test_a_session_of_an_earlier_kernel_is_taken_as_it_is() -> None:
    assert parse_cell_line("in=x card=off").in_session(True, None) is None
    asked = parse_cell_line("gpu=T4")
    assert asked.in_session(True, None) == asked.resources
