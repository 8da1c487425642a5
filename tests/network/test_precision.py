"""Plans and grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import InputError, UnknownNameError
from quantkit.network.precision import MODES, Grid, PrecisionPlan


def test_modes() -> None:
    assert set(MODES) == {"gemm", "ffn-only", "gemm+mha", "gemm+residual", "gemm+residual+mha"}
    assert PrecisionPlan().places == MODES["gemm"]
    with pytest.raises(UnknownNameError, match="gemm"):
        PrecisionPlan("gem")


@pytest.mark.parametrize(
    ("skip", "names", "layer", "pattern"),
    [
        (["layer3.*"], ["layer3.ffn.output"], None, "layer3.*"),
        (["layer3.*"], ["layer30.ffn.output"], None, None),
        (["*.ffn.*", "*"], ["layer0.ffn.output"], None, "*"),
        ([3], ["x"], 3, "3"),
        ([3], ["x"], 13, None),
        ([3], ["3"], None, "3"),
        (["/bert/layer[0]/x"], ["/bert/layer[0]/x"], None, "/bert/layer[0]/x"),
        (["X"], ["x"], None, None),
        ([], ["x"], 0, None),
    ],
)
def test_patterns(skip: list[object], names: list[str], layer: int | None, pattern: str | None) -> None:
    plan = PrecisionPlan(skip=frozenset(skip))  # type: ignore[arg-type]
    assert plan.skipped_by(*names, layer=layer) == pattern


def test_a_string_is_no_collection_of_patterns() -> None:
    with pytest.raises(InputError, match="collection"):
        PrecisionPlan(skip="layer0")  # type: ignore[arg-type]
    assert PrecisionPlan(skip=["b", "a"]).skip == frozenset("ab")  # type: ignore[arg-type]


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(FLOATS, FLOATS)
def test_uint8_grid_covers_its_range_and_has_zero(a: float, b: float) -> None:
    low, high = sorted((a, b))
    grid = Grid.between(low, high)
    if not grid.usable:
        assert max(high, 0.0) - min(low, 0.0) < 1e-35
        return
    assert 0 <= grid.zero_point <= 255
    step = float(grid.scale)
    least, most = (0 - grid.zero_point) * step, (255 - grid.zero_point) * step
    # Zero has a code of its own, so an end may lie half a step outside.
    assert least <= min(low, 0.0) + 0.5001 * step
    assert most >= max(high, 0.0) - 0.5001 * step
    assert grid.zero_point_array.dtype == np.uint8


def test_grids_of_probabilities() -> None:
    assert Grid.unit(True) == Grid(np.float32(1 / 127), 0, True)
    assert Grid.unit(False) == Grid(np.float32(1 / 255), 0, False)
    assert Grid.unit(True).zero_point_array.dtype == np.int8


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-40, np.nan, np.inf])
def test_scales_that_no_grid_can_have(scale: float) -> None:
    assert not Grid(np.float32(scale)).usable
