"""Calibrates the network that TensorRT calibrated, on the same tokens, and compares table by table and bin by bin.

    python benchmarks/golden_minilm.py MODEL.onnx RECORDINGS [--backend openvino] [--out RESULT.json]

MODEL.onnx is what the recordings' own export_onnx.py writes (it needs torch, transformers and peft; the base weights
were rounded to float16 before the adapter was merged). RECORDINGS holds tokens.npz and int8_*.cache.

A threshold is in TensorRT's bin when it is less than half a bin away. For an entropy threshold that is not, the script
says how much worse TensorRT's choice is on our own KL curve: activations on a CPU and on a GPU differ in their last
bits, a few values change bins, and where two minima are nearly equal that decides between them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.backends import get_backend
from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.collect.collector import Collector
from quantkit.collect.histogram import Histogram
from quantkit.files import write_json
from quantkit.network.onnx_import import load_onnx
from quantkit.report.record import versions
from quantkit.tables.table import load_table

BATCH, SEQ_LEN = 16, 64
RUNS = {
    "minmax": ("minmax", {}),
    "entropy2": ("entropy", {}),
    "entropy": ("entropy", {}),
    "legacy": ("legacy", {"quantile": 0.9999, "regression_cutoff": 1.0}),
}


def collect(model: Path, tokens: Mapping[str, Any], backend: str) -> dict[str, Histogram]:
    """Histograms of every activation over the recorded calibration batches, in their order."""
    network = load_onnx(model)
    names = ("input_ids", "attention_mask", "token_type_ids")
    with Collector(network.activations(), aliases=network.aliases()) as collector:
        with get_backend(backend).tap(network.proto, collector.collected) as tap:
            for i in range(len(tokens["cal_input_ids"])):
                tap_feed = {name: tokens[f"cal_{name}"][i].reshape(BATCH, SEQ_LEN).astype(np.int64) for name in names}
                collector.update(tap.infer(tap_feed))
        return collector.histograms()


def compare(
    cache: Path, histograms: Mapping[str, Histogram], method: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    """How many thresholds stand in TensorRT's bin, and a row for each that does not."""
    table = load_table(cache)
    common = {name: histograms[name] for name in table.names if name in histograms}
    thresholds = calibrate_histograms(common, make_calibrator(method, **parameters), curve=True)
    rows = []
    for name, threshold in thresholds.items():
        width = common[name].bin_width
        apart = (table[name].amax - threshold.amax) / width if width else 0.0
        if abs(apart) < 0.5:
            continue
        row = {"tensor": name, "theirs": table[name].amax, "ours": threshold.amax, "bins": round(apart, 2)}
        if threshold.curve is not None:
            theirs = int(np.argmin(np.abs(threshold.curve.candidates - table[name].amax)))
            best = float(np.min(threshold.curve.losses))
            row["kl_ours"], row["kl_theirs"] = best, float(threshold.curve.losses[theirs])
        rows.append(row)
    return {"compared": len(common), "of": len(table), "same_bin": len(common) - len(rows), "others": rows}


def main() -> None:
    """Compares every recorded table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    histograms = collect(options.model, np.load(options.recordings / "tokens.npz"), options.backend)
    result: dict[str, Any] = {"backend": options.backend, "versions": versions(), "runs": {}}
    for run, (method, parameters) in RUNS.items():
        found = compare(options.recordings / f"int8_{run}.cache", histograms, method, parameters)
        result["runs"][run] = found
        print(f"{run:9} {found['same_bin']} of {found['compared']} in TensorRT's bin")
        for row in found["others"]:
            print("         ", json.dumps(row))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
