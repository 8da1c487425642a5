"""The NumPy reference: bins, ranges, kinds, merging."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantkit.collect.binning import fitting_range, key_of, slot_indices, smallest_power_of_two, value_of, widened
from quantkit.collect.histogram import MASK_LOGITS, NUM_BINS, Histogram, HistogramAccumulator
from quantkit.errors import CalibrationError, InputError

ANY_FLOAT = st.floats(width=32, allow_subnormal=True)
FINITE = st.floats(width=32, allow_subnormal=True, allow_nan=False, allow_infinity=False)
ON_EDGES = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 4.0, 1.5, 2.0**-149, 2.0**127, 3.4028234663852886e38])


def arrays(elements: st.SearchStrategy[float] = ANY_FLOAT) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, st.integers(0, 60), elements=elements | ON_EDGES)


def pow2(*parts: np.ndarray) -> Histogram:
    h = Histogram.empty("pow2")
    for part in parts:
        h = h.updated(part)
    return h


def test_bins_of_known_values():
    h = Histogram.empty().updated(np.array([[0.0, -0.5], [1.0, 2048.0]], np.float32))
    assert (h.upper, h.bin_width, h.amax, h.minimum, h.maximum) == (2048.0, 1.0, 2048.0, -0.5, 2048.0)
    assert (h.counts[0], h.counts[1], h.counts[-1], h.total, h.zero_count) == (2, 1, 1, 4, 1)
    assert h.counts.dtype == np.int64 and not h.counts.flags.writeable


def test_the_product_is_a_float32_product():
    # 1023 / 0.3 bins: float32 arithmetic and float64 arithmetic disagree on some of these.
    upper = np.float32(0.3)
    values = (np.arange(1, NUM_BINS, dtype=np.float64) * (float(upper) / NUM_BINS)).astype(np.float32)
    expected = (values * (np.float32(2048) / upper)).astype(np.int64)
    assert np.array_equal(slot_indices(values, float(upper)), expected)
    assert not np.array_equal(expected, (values.astype(np.float64) * NUM_BINS / float(upper)).astype(np.int64))


def test_the_first_batch_sets_tensorrts_range_and_later_ones_double_it():
    h = Histogram.empty().updated(np.array([1.0, 3.0], np.float32))
    assert h.upper == 3.0 and h.counts[682] == 1 and h.counts[-1] == 1
    h = h.updated(np.array([12.5], np.float32))
    assert h.upper == 24.0
    # 682 >> 3, 2047 >> 3, and 12.5 * 2048 / 24
    assert (h.counts[85], h.counts[255], h.counts[1066], h.total) == (1, 1, 1, 3)


def test_zeros_before_the_first_range_stay_in_bin_0():
    h = Histogram.empty().updated(np.zeros(5, np.float32))
    assert (h.upper, h.counts[0], h.amax) == (0.0, 5, 0.0)
    h = h.updated(np.array([7.0, 0.0], np.float32))
    assert (h.upper, h.counts[0], h.counts[-1], h.zero_count) == (7.0, 6, 1, 6)


@pytest.mark.parametrize(
    ("amax", "expected"),
    [
        (0.0, 0.0),
        (1.0, 1.0),
        (1.0000001, 2.0),
        (3.0, 4.0),
        (2.0**-149, 2.0**-149),
        (3e-45, 2.0**-148),
        (3.4e38, 2.0**128),
    ],
)
def test_smallest_power_of_two(amax: float, expected: float):
    assert smallest_power_of_two(float(np.float32(amax))) == expected


def test_a_value_on_the_edge_does_not_depend_on_when_the_range_grew():
    early = pow2(np.array([1.0], np.float32), np.array([1.5], np.float32))
    assert pow2(np.array([1.0], np.float32)).edge_count == 1
    assert early == pow2(np.array([1.0, 1.5], np.float32))
    assert early.counts[1024] == 1 and early.edge_count == 0


@given(arrays(), st.data())
@settings(deadline=None)
def test_pow2_depends_neither_on_batches_nor_on_order(values: np.ndarray, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(values))
    assert pow2(*np.split(values[order], cuts)) == pow2(values)


@given(arrays(), arrays(), arrays())
@settings(deadline=None)
def test_pow2_merge_is_exact_commutative_and_associative(a: np.ndarray, b: np.ndarray, c: np.ndarray):
    x, y, z = pow2(a), pow2(b), pow2(c)
    assert x.merge(y) == y.merge(x) == pow2(a, b)
    assert x.merge(y).merge(z) == x.merge(y.merge(z)) == pow2(np.concatenate([c, a, b]))
    assert x.merge(Histogram.empty("pow2")) == x


@given(arrays(), st.sampled_from(["tensorrt", "pow2"]), st.sampled_from([None, -1.0, MASK_LOGITS]))
@settings(deadline=None)
def test_every_value_is_counted_once(values: np.ndarray, mode: str, mask: float | None):
    h = Histogram.empty(mode, mask).updated(values)
    assert h.total + h.nan_count + h.inf_count + h.masked_count == values.size
    masked = np.zeros(values.shape, bool) if mask is None else values <= mask
    finite = values[np.isfinite(values) & ~masked]
    assert h.total == finite.size and h.zero_count == np.count_nonzero(finite == 0)
    assert h.masked_count == np.count_nonzero(masked) and h.nan_count == np.count_nonzero(np.isnan(values))
    assert h.amax == float(np.abs(finite).max(initial=0)) <= h.upper
    assert finite.size == 0 or (h.minimum, h.maximum) == (finite.min(), finite.max())


MODERATE = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-(2.0**20), 2.0**20, width=32))


@given(MODERATE, st.integers(-20, 20), st.sampled_from(["tensorrt", "pow2"]))
@settings(deadline=None)
def test_a_power_of_two_scales_the_range_and_leaves_the_counts(values: np.ndarray, k: int, mode: str):
    values = np.where(np.abs(values) < 2.0**-60, np.float32(0), values)  # so that nothing becomes subnormal
    one, scaled = (Histogram.empty(mode).updated(x) for x in (values, np.ldexp(values, k).astype(np.float32)))
    assert scaled.upper == one.upper * 2.0**k and np.array_equal(scaled.counts, one.counts)


@pytest.mark.parametrize("values", [[2.0**-149, 3 * 2.0**-149], [1e-40, 1e-39], [1e-36, 9e-36], [3e38, 3.4e38]])
@pytest.mark.parametrize("mode", ["tensorrt", "pow2"])
def test_the_ends_of_float32_get_sensible_bins(values: list[float], mode: str):
    x = np.array(values, np.float32)
    h = Histogram.empty(mode).updated(x)
    exact = np.minimum(x.astype(np.float64) * NUM_BINS / h.upper, NUM_BINS - 1).astype(int)
    assert np.all(np.abs(np.flatnonzero(h.counts) - np.unique(exact)) <= 1) and h.total == 2


def test_tensorrts_range_may_double_past_float32():
    h = Histogram.empty().updated(np.array([3e38], np.float32)).updated(np.array([3.4e38], np.float32))
    assert h.upper == 2 * float(np.float32(3e38)) and h.total == 2


def test_mask_logits_are_set_apart_only_when_asked():
    scores = np.array([0.5, -3.0, -10003.0, -3.4e38, -np.inf, np.inf, np.nan], np.float32)
    plain = Histogram.empty("pow2").updated(scores)
    assert (plain.upper, plain.inf_count, plain.masked_count) == (2.0**128, 2, 0)
    apart = Histogram.empty("pow2", MASK_LOGITS).updated(scores)
    assert (apart.upper, apart.minimum, apart.inf_count, apart.nan_count, apart.masked_count) == (4.0, -3.0, 1, 1, 3)


def test_tensorrt_histograms_merge_only_over_related_ranges():
    one = Histogram.empty().updated(np.array([3.0, 1.0], np.float32))
    later = one.updated(np.array([5.0], np.float32))
    both = one.merge(later)
    assert (both.upper, both.total, both.amax) == (6.0, 5, 5.0)
    assert one.merge(Histogram.empty().updated(np.zeros(2, np.float32))).counts[0] == 2
    with pytest.raises(CalibrationError, match="no power of two"):
        one.merge(Histogram.empty().updated(np.array([4.0], np.float32)))


def test_histograms_of_different_kinds_do_not_merge():
    with pytest.raises(CalibrationError, match="cannot be merged"):
        Histogram.empty("pow2").merge(Histogram.empty("tensorrt"))
    with pytest.raises(CalibrationError, match="cannot be merged"):
        Histogram.empty("pow2", -1.0).merge(Histogram.empty("pow2"))


def test_counts_beyond_32_bits_add_up():
    h = Histogram.empty("pow2").updated(np.ones(3, np.float32))
    for _ in range(40):
        h = h.merge(h)
    assert h.total == h.edge_count == 3 << 40


def test_equality_is_by_value_and_there_is_no_hash():
    a, b = (Histogram.empty().updated(np.arange(4, dtype=np.float32)) for _ in range(2))
    assert a == b and a != a.updated(np.zeros(1, np.float32)) and a != "a histogram"
    with pytest.raises(TypeError):
        hash(a)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.bool_, ">f4"])
def test_other_types_are_refused(dtype: str):
    with pytest.raises(CalibrationError, match="takes float32"):
        Histogram.empty().updated(np.ones(3, dtype))
    with pytest.raises(CalibrationError, match="takes float32"):
        HistogramAccumulator().update(np.ones(3, dtype))


def test_float16_is_widened():
    x = np.array([1.0, -65504.0], np.float16)
    assert Histogram.empty().updated(x) == Histogram.empty().updated(x.astype(np.float32))


@pytest.mark.parametrize("threshold", [0.0, 5.0, float("nan"), float("-inf"), -1e300])
def test_impossible_mask_thresholds(threshold: float):
    with pytest.raises(InputError, match="threshold for mask logits"):
        Histogram.empty("pow2", threshold)


def test_impossible_histograms_are_refused():
    good = Histogram.empty("pow2").updated(np.array([3.0, 0.0, -1.0], np.float32))
    fields = {name: getattr(good, name) for name in ("counts", *Histogram.SCALARS)}
    assert Histogram(**fields) == good
    wrong = [
        ("counts", np.zeros(7)), ("counts", -good.counts), ("upper", float("nan")), ("upper", 2.0), ("upper", 8.0),
        ("amax", 2.5), ("minimum", 5.0), ("nan_count", -1), ("zero_count", 99), ("edge_count", 1),
    ]  # fmt: skip
    for name, value in wrong:
        with pytest.raises(CalibrationError):
            Histogram(**(fields | {name: value}))
    with pytest.raises(InputError, match="mode"):
        Histogram(**(fields | {"mode": "other"}))


@given(FINITE, FINITE)
@settings(deadline=None)
def test_keys_order_as_the_numbers_do(a: float, b: float):
    assert value_of(key_of(a)) == a
    assert (key_of(a + 0.0) < key_of(b + 0.0)) == (a < b)
    assert key_of(-a) == -1 - key_of(a)


@given(st.integers(0, 14), hnp.arrays(np.int64, NUM_BINS + 1, elements=st.integers(0, 9)))
@settings(deadline=None, max_examples=25)
def test_widening_is_halving_the_slot_numbers(doublings: int, slots: np.ndarray):
    expected = np.bincount(np.arange(NUM_BINS + 1) >> doublings, weights=slots, minlength=NUM_BINS + 1)
    assert np.array_equal(widened(slots, 1.5, 1.5 * 2.0**doublings), expected)


def test_fitting_range_of_both_modes():
    assert [fitting_range("tensorrt", u, 5.0) for u in (0.0, 1.5, 6.0)] == [5.0, 6.0, 6.0]
    assert [fitting_range("pow2", u, 5.0) for u in (0.0, 1.0, 16.0)] == [8.0, 8.0, 16.0]
