"""The capability table: a pure function of version and GPU."""

from __future__ import annotations

import pytest

from quantkit.backends.trt.capabilities import Gpu, capabilities
from quantkit.backends.trt.versions import Version, parse_version
from quantkit.errors import BackendError

H100 = Gpu("NVIDIA H100", (9, 0), 80 << 30, 12040)
T4 = Gpu("Tesla T4", (7, 5))
B200 = Gpu("NVIDIA B200", (10, 0))
PASCAL = Gpu("Tesla P100", (6, 0))
ALL = (
    Version(8, 6),
    Version(8, 6, 1),
    Version(10, 0, 1),
    Version(10, 3),
    Version(10, 12),
    Version(10, 16),
    Version(11, 0),
)


@pytest.mark.parametrize("text, expected", [("8.6.0", (8, 6, 0)), ("10.3.0.post1", (10, 3, 0)), ("11.1", (11, 1, 0))])
def test_versions_are_read(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_version(text) == Version(*expected)


def test_an_odd_version_is_an_error_that_shows_it() -> None:
    with pytest.raises(BackendError, match="'unknown'"):
        parse_version("unknown")


def test_cache_numbers_follow_each_generation_s_counting() -> None:
    assert Version(8, 6, 0).number == 8600
    assert Version(8, 6, 1).number == 8601
    assert Version(10, 3, 0).number == 100300


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("gpu", [H100, T4, B200, PASCAL, None])
def test_every_row_is_one_or_two_whole_sentences(version: Version, gpu: Gpu | None) -> None:
    for row in capabilities(version, gpu).values():
        assert row.says.endswith("."), row
        assert row.says[0].isupper() or row.says.startswith(("f", "n")), row
        assert "{" not in row.says


@pytest.mark.parametrize("version", ALL)
def test_calibrators_live_until_11(version: Version) -> None:
    able = capabilities(version, H100)
    for name in ("calibrators", "cache", "dynamic range", "flags"):
        assert able.can(name) == (version < Version(11, 0)), name
    assert able.can("qdq")
    if version >= Version(11, 0):
        with pytest.raises(BackendError, match=r"removed in 11\.0\.0; put Q/DQ pairs"):
            able.require("calibrators")


def test_deprecation_is_said_from_10_1_on() -> None:
    assert "deprecated" not in capabilities(Version(10, 0), H100)["calibrators"].says
    assert "deprecated since 10.1" in capabilities(Version(10, 1), H100)["calibrators"].says
    assert "deprecated" in capabilities(Version(10, 12), H100)["flags"].says


def test_strong_types_and_int64_came_with_10() -> None:
    for name in ("strong types", "int64"):
        assert not capabilities(Version(8, 6), H100).can(name)
        assert capabilities(Version(10, 0), H100).can(name)


def test_8_5_is_too_old() -> None:
    assert capabilities(Version(8, 5, 3), H100).refusal("version") == (
        "TensorRT 8.5.3 is older than 8.6.0, the first usable."
    )


@pytest.mark.parametrize(
    "version, gpu, possible",
    [
        (Version(8, 6), H100, True),
        (Version(8, 6), B200, False),
        (Version(10, 8), B200, True),
        (Version(8, 6), PASCAL, True),
        (Version(10, 0), PASCAL, False),
        (Version(10, 5), T4, True),
        (Version(8, 6), None, False),
    ],
)
def test_which_gpu_a_version_knows(version: Version, gpu: Gpu | None, possible: bool) -> None:
    assert capabilities(version, gpu).can("gpu") == possible


def test_old_gpus_lack_precisions_and_the_sentence_names_them() -> None:
    able = capabilities(Version(8, 6), T4)
    assert not able.can("tf32")
    assert "Tesla T4 has compute capability 7.5" in able["tf32"].says
    assert able.can("fp16")
    pascal = capabilities(Version(8, 6), PASCAL)
    assert not pascal.can("int8")
    assert not pascal.can("int8+fp32")
    assert "6.1" in pascal["int8"].says


def test_int8_with_float16_needs_both() -> None:
    sm61 = capabilities(Version(8, 6), Gpu("Tesla P4", (6, 1)))
    assert sm61.can("int8+fp32")
    assert not sm61.can("int8+fp16")
    assert "float16" in sm61["int8+fp16"].says


def test_gpu_facts_as_json() -> None:
    assert H100.as_json() == {
        "name": "NVIDIA H100",
        "compute_capability": "9.0",
        "memory_bytes": 80 << 30,
        "driver": "12.4",
    }
