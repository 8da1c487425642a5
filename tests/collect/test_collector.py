"""One pass over batches of many tensors."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from quantkit.collect.collector import Collector
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import load_histograms, save_histograms
from quantkit.errors import CalibrationError, InputError

SHAPES = {"hidden": (2, 4, 8), "scores": (2, 3, 4, 4), "pooled": (2, 8)}
AXES = {
    "hidden": ("batch", "sequence", None),
    "scores": ("batch", None, "sequence", "sequence"),
    "pooled": ("batch", None),
    "heads": ("batch", None, "sequence", None),
}
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0]])


def batch(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape, np.float32) * np.float32(seed + 1) for name, shape in SHAPES.items()}


def reference(name: str, batches: list[dict[str, np.ndarray]], mode: str = "tensorrt") -> Histogram:
    h = Histogram.empty(mode)
    for tensors in batches:
        h = h.updated(tensors[name])
    return h


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("mode", ["tensorrt", "pow2"])
def test_every_tensor_has_the_histogram_of_its_batches(mode: str, threads: int):
    batches = [batch(i) for i in range(4)]
    with Collector(SHAPES, mode=mode, threads=threads) as collector:
        for tensors in batches:
            collector.update(tensors | {"unasked": np.zeros(1, np.int8)})
        found = collector.histograms()
    assert collector.batches == 4 and list(found) == list(SHAPES)
    assert found == {name: reference(name, batches, mode) for name in SHAPES}


def test_aliases_share_a_histogram_and_are_not_asked_for():
    aliases = {"heads": "transposed", "transposed": "hidden"}
    collector = Collector(["heads", "hidden", "pooled"], aliases=aliases)
    assert collector.collected == ("hidden", "pooled")
    collector.update(batch(0))
    found = collector.histograms()
    assert list(found) == ["heads", "hidden", "pooled"] and found["heads"] is found["hidden"]
    assert found["hidden"].total == 64


def test_an_alias_alone_collects_its_source():
    assert Collector(["heads"], aliases={"heads": "hidden"}).collected == ("hidden",)


def test_padding_is_left_out_along_every_sequence_axis():
    tensors = batch(3)
    with Collector(SHAPES, axes=AXES, ignore_padding=True) as collector:
        collector.update(tensors, MASK)
        found = collector.histograms()
    keep = MASK.astype(bool)
    square = np.broadcast_to((keep[:, None, :, None] & keep[:, None, None, :]), SHAPES["scores"])
    assert found["hidden"] == Histogram.empty().updated(tensors["hidden"][keep])
    assert found["scores"] == Histogram.empty().updated(tensors["scores"][square])
    assert found["pooled"] == Histogram.empty().updated(tensors["pooled"])


def test_padding_is_counted_unless_asked_otherwise():
    with Collector(SHAPES, axes=AXES) as collector:
        collector.update(batch(3), MASK)
    assert collector.histograms()["hidden"].total == 64


def test_a_missing_tensor_is_named_and_nothing_is_counted():
    collector = Collector(SHAPES)
    collector.update(batch(0))
    before = collector.histograms()
    with pytest.raises(CalibrationError, match="Batch 2 has no tensor 'scores'"):
        collector.update({name: array for name, array in batch(1).items() if name != "scores"})
    assert collector.histograms() == before and collector.batches == 1


def test_a_tensor_of_another_type_is_named_and_nothing_is_counted():
    collector = Collector(SHAPES)
    with pytest.raises(CalibrationError, match=r"'pooled'.*float64"):
        collector.update(batch(0) | {"pooled": np.zeros((2, 8))})
    assert not any(h.total for h in collector.histograms().values())


def test_axes_that_do_not_fit_name_the_tensor():
    collector = Collector(["hidden"], axes={"hidden": ("batch", None, "sequence")}, ignore_padding=True)
    with pytest.raises(CalibrationError, match=r"'hidden'.*do not fit"):
        collector.update(batch(0), MASK)
    with pytest.raises(CalibrationError, match="without an attention mask"):
        collector.update(batch(0))


def test_nan_and_infinities_are_counted_here_and_refused_elsewhere():
    collector = Collector(["a"])
    collector.update({"a": np.array([1.0, np.nan, np.inf, -np.inf], np.float32)})
    h = collector.histograms()["a"]
    assert (h.nan_count, h.inf_count, h.total, h.amax) == (1, 2, 1, 1.0)


def test_mask_logits_are_set_apart_when_asked():
    scores = np.array([[0.5, -1.0, -9998.0, -np.inf]], np.float32)
    with Collector(["scores"], mode="pow2", mask_logits=-5000.0) as collector:
        collector.update({"scores": scores})
    h = collector.histograms()["scores"]
    assert (h.upper, h.masked_count, h.inf_count) == (1.0, 2, 0)


@pytest.mark.parametrize("mode", ["tensorrt", "pow2"])
def test_a_collector_continues_from_saved_histograms(mode: str, tmp_path: Path):
    batches = [batch(i) for i in range(5)]
    aliases = {"heads": "hidden"}
    first = Collector([*SHAPES, "heads"], mode=mode, aliases=aliases)
    for tensors in batches[:2]:
        first.update(tensors)
    save_histograms(tmp_path / "half.npz", first.histograms(), {"batches": first.batches})
    saved = load_histograms(tmp_path / "half.npz")
    second = Collector.from_histograms(saved.histograms, batches=saved.meta["batches"], aliases=aliases)
    for tensors in batches[2:]:
        second.update(tensors)
    assert second.batches == 5 and list(second.histograms()) == [*SHAPES, "heads"]
    assert second.histograms()["scores"] == reference("scores", batches, mode)
    assert second.histograms()["heads"] == reference("hidden", batches, mode)


def test_continuing_needs_histograms_of_one_kind():
    one, other = Histogram.empty("pow2"), Histogram.empty("tensorrt")
    for histograms in ({}, {"a": one, "b": other}, {"a": one, "b": Histogram.empty("pow2", -1.0)}):
        with pytest.raises(InputError, match="of one mode"):
            Collector.from_histograms(histograms)
    with pytest.raises(InputError, match="lack hidden"):
        Collector.from_histograms({"heads": one}, aliases={"heads": "hidden"})


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="more than once: a"):
        Collector(["a", "b", "a"])
    with pytest.raises(InputError, match="circle"):
        Collector(["a"], aliases={"a": "b", "b": "a"})
    with pytest.raises(InputError, match="threads"):
        Collector(["a"], threads=0)
    with pytest.raises(InputError, match="axes of a"):
        Collector(["a"], axes={"a": ("batch", "time")})
    with pytest.raises(InputError, match="left out of b"):
        Collector(["a", "b"], axes={"a": ("batch", None)}, ignore_padding=True)
    with pytest.raises(InputError, match="mode"):
        Collector(["a"], mode="other")


def test_threads_end_with_the_collector_and_a_closed_one_works_again():
    before = set(threading.enumerate())

    def started() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    with Collector(SHAPES, threads=3) as collector:
        collector.update(batch(0))
        assert started()
    assert not started()
    collector.update(batch(1))
    collector.close()
    collector.close()
    assert not started() and collector.histograms()["hidden"].total == 128


def test_memory_does_not_grow_with_the_batches():
    with Collector(SHAPES, mode="pow2") as collector:
        collector.update(batch(0))
        tracemalloc.start()
        collector.update(batch(1))
        early = tracemalloc.get_traced_memory()[0]
        for seed in range(2, 40):
            collector.update(batch(seed))
        late = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    # 38 batches hold 60 kB of activations; a few hundred bytes come and go.
    assert late - early < 8000
