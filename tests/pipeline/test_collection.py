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


def test_infinities_are_refused_with_the_way_out():
    collectors = [Fixed(x=[1, 2], masked=[1, -np.inf])]
    with pytest.raises(CalibrationError, match="attention mask puts 1 infinities into 'masked'") as raised:
        snapshot(["x", "masked"], collectors, masked=["masked"])
    assert "--order-free" in raised.value.hint
    with pytest.raises(CalibrationError, match="'masked' cannot be calibrated: 0 NaN and 1 Inf"):
        snapshot(["x", "masked"], collectors, masked=[])


def test_the_network_and_the_auto_method_speak_of_the_same_kinds():
    from quantkit.calibrate import auto
    from quantkit.network import kinds

    assert (auto.PROBABILITIES, auto.MASKED) == (kinds.SOFTMAX, kinds.MASKED_LOGITS)
