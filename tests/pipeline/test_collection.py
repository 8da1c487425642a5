"""The pass over the data: snapshots, and mask logits that are set apart only where that is free of consequences."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.collect.histogram import MASK_LOGITS, Histogram
from quantkit.errors import CalibrationError
from quantkit.pipeline.collection import batches_of, collect_batches, collect_snapshots, snapshot
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher


@pytest.fixture
def workspace(tiny_bert_dir, tiny_glue_dir):
    def made(**changes):
        data = {"model": str(tiny_bert_dir), "task": "sst2", "data": str(tiny_glue_dir)}
        values = {"calib_samples": 8, "batch": 4, "seq_len": 24, "threads": 1}
        return Workspace(Settings(**data | values | changes), SilentWatcher())

    return made


def test_a_snapshot_is_what_a_shorter_pass_gives(workspace):
    here = workspace()
    feeds = list(batches_of(here))
    snapshots = collect_snapshots(here, feeds, at={1})
    assert list(snapshots) == [1, 2]
    assert snapshots[1] == collect_batches(here, feeds[:1])
    assert list(snapshots[2]) == here.network.activations()


def test_power_of_two_ranges_set_mask_logits_apart_and_only_those(workspace):
    here = workspace(order_free=True)
    found = collect_batches(here, batches_of(here))
    masked = {name for name, histogram in found.items() if histogram.mask_logits is not None}
    assert masked == {f"layer{i}.attention.scores_masked" for i in range(2)}
    for name in masked:
        scores, own = found[name.removesuffix("_masked")], found[name]
        padding = int(sum((feed["attention_mask"] == 0).sum() for feed in batches_of(here)))
        heads, queries = 2, 24
        assert own.masked_count == padding * heads * queries > 0
        assert own.total + own.masked_count == scores.total
        assert own.mask_logits == MASK_LOGITS
        assert own.amax <= scores.amax < 1000
    assert found["mask.additive"].amax == 10000


def test_tensorrt_ranges_count_mask_logits_as_tensorrt_does(workspace):
    here = workspace()
    found = collect_batches(here, batches_of(here))
    assert {histogram.mask_logits for histogram in found.values()} == {None}
    assert found["layer0.attention.scores_masked"].amax > 9000


class Fixed:
    """A collector that has counted already."""

    def __init__(self, **values):
        self.values = values

    def histograms(self):
        return {n: Histogram.empty("tensorrt").updated(np.array(v, np.float32)) for n, v in self.values.items()}


def test_infinities_of_the_mask_are_set_apart_and_others_are_refused():
    lowest = float(np.finfo(np.float32).min)
    collectors = [Fixed(x=[1, 2], mask=[0, -np.inf], masked=[1, -np.inf, -np.inf])]
    found = snapshot(["x", "mask", "masked"], collectors, hiding=["mask", "masked"])
    assert [(h.inf_count, h.masked_count, h.mask_logits) for h in found.values()] == [
        (0, 0, None),
        (0, 1, lowest),
        (0, 2, lowest),
    ]
    by_value = Histogram.empty("tensorrt", lowest).updated(np.array([1, -np.inf, -np.inf], np.float32))
    assert found["masked"] == by_value, "as if they had been set apart while counting"
    with pytest.raises(CalibrationError, match="'masked' cannot be calibrated: 0 NaN and 2 Inf"):
        snapshot(["x", "mask", "masked"], collectors, hiding=["mask"])
    with pytest.raises(CalibrationError, match="'x' cannot be calibrated: 1 NaN and 0 Inf"):
        snapshot(["x"], [Fixed(x=[1, np.nan])], hiding=["x"])


def test_the_network_and_the_auto_method_speak_of_the_same_kinds():
    from quantkit.calibrate import auto
    from quantkit.network import kinds

    assert (auto.PROBABILITIES, auto.MASKED) == (kinds.SOFTMAX, kinds.MASKED_LOGITS)
