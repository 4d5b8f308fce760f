"""What a person may type for GPUs, memory, time and money, and what a wrong value is told."""

import pytest

from cellburst_protocol.errors import ErrorCode, RequestError
from cellburst_protocol.resources import (
    GPU_MEMORY_MIB,
    GPU_TYPES,
    GpuChoice,
    canonical_gpu,
    gpu_type_of_device,
    parse_cpu,
    parse_gpus,
    parse_memory_mib,
    parse_seconds,
    parse_usd,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A100", [("A100", 1)]),
        ("a100:2", [("A100", 2)]),
        ("A100-80GB", [("A100-80GB", 1)]),
        ("H100,A100", [("H100", 1), ("A100", 1)]),
        (" h100 , a10:4 ", [("H100", 1), ("A10G", 4)]),
        ("any", [("any", 1)]),
        ("ANY:2", [("any", 2)]),
        ("rtx 4090", [("RTX-4090", 1)]),
        ("NVIDIA GeForce RTX 4090", [("RTX-4090", 1)]),
        ("NVIDIA A100-SXM4-40GB", [("A100-40GB", 1)]),
        ("4090", [("RTX-4090", 1)]),
    ],
)
def test_gpu_requests(text: str, expected: list[tuple[str, int]]) -> None:
    assert [(c.type, c.count) for c in parse_gpus(text)] == expected


@pytest.mark.parametrize("text", ["", "A100:", "A100:0", "A100:-1", "A100:9999", "A100,,T4", ":2", "any;rm"])
def test_malformed_gpu_requests_are_told_the_grammar(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_gpus(text)
    assert repr(text) in str(caught.value) and caught.value.info.next


def test_an_unknown_gpu_is_told_the_names_and_the_nearest() -> None:
    with pytest.raises(RequestError) as caught:
        parse_gpus("A1000")
    assert caught.value.code is ErrorCode.UNKNOWN_GPU
    assert "A100" in caught.value.info.next and "H100" in caught.value.info.allowed


def test_a_type_only_the_fleet_knows_is_taken() -> None:
    assert parse_gpus("quadro-p400", extra_types=("QUADRO-P400",)) == (GpuChoice("QUADRO-P400"),)


def test_a100_means_either_size_and_a_size_only_itself() -> None:
    either, small = GpuChoice("A100"), GpuChoice("A100-40GB")
    assert either.accepts("A100-40GB") and either.accepts("A100-80GB") and not either.accepts("H100")
    assert small.accepts("A100-40GB") and not small.accepts("A100-80GB")


def test_devices_are_listed_by_their_known_name_or_their_own() -> None:
    assert gpu_type_of_device("NVIDIA H100 80GB HBM3") == "H100"
    assert gpu_type_of_device("Tesla T4") == "T4"
    assert gpu_type_of_device("NVIDIA GeForce GTX 1650") == "GEFORCE-GTX-1650"
    assert all(canonical_gpu(name) == name for name in GPU_TYPES) and set(GPU_MEMORY_MIB) <= set(GPU_TYPES)


@pytest.mark.parametrize(
    ("text", "mib"),
    [("16GiB", 16384), ("512MiB", 512), ("8G", 8192), ("1.5GB", 1431), ("2048", 2048), ("1 tib", 1024**2)],
)
def test_memory(text: str, mib: int) -> None:
    assert parse_memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "-1", "NaN", "1e309", "16XiB", "0", "999TiB", "GiB"])
def test_bad_memory(text: str) -> None:
    with pytest.raises(RequestError, match="memory="):
        parse_memory_mib(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "2 years", "25h", "1000000000000", "h", "1h30", "nan"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(RequestError, match="timeout="):
        parse_seconds(text)


def test_an_operator_may_raise_the_limit() -> None:
    assert parse_seconds("48h", max_seconds=7 * 86400) == 172800


@pytest.mark.parametrize("text", ["0.05", "2000", "x", "1e309", "-1", ""])
def test_bad_cpu(text: str) -> None:
    with pytest.raises(RequestError, match="cpu="):
        parse_cpu(text)


def test_money_is_decimal_text() -> None:
    assert parse_usd("$3") == "3" and parse_usd("0.10") == "0.10"
    assert parse_usd("1E-7") == "0.0000001" and parse_usd("1e2") == "100"
    for bad in ("0", "-1", "NaN", "Infinity", "three", "1e9", "1e-20000000000", "0." + "0" * 10**6 + "1"):
        with pytest.raises(RequestError, match="budget="):
            parse_usd(bad)
