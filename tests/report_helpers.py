"""A run's record made by hand, and a name that is no name."""

from __future__ import annotations

NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>"
"""A name that must come out as the text it is, everywhere."""


def score(value, stderr=0.01):
    return {"value": value, "stderr": stderr, "higher_is_better": True}


def engine(precision, accuracy, ms, **more):
    latency = {"median": ms, "p90": 1.1 * ms, "p99": 1.3 * ms}
    row = {"precision": precision, "backend": "openvino", "status": "ok", "compute": "f32", "size_bytes": 90_000_000}
    return row | {"metrics": {"accuracy": score(accuracy)}, "latency_ms": latency, "throughput_per_s": 16e3 / ms} | more


RECORD = {
    "schema": 1,
    "context": {
        "time": "2026-11-22T10:00:00+00:00",
        "command": "quantkit run path/to/bert --task sst2",
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux"},
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "settings": {"batch": 16, "seed": 0, "method": "mse"},
    },
    "model": {"name": "bert", "adapter": None, "sha256": "ab" * 32},
    "task": {"name": "sst2", "split": "eval", "source": "dev.tsv", "examples": 872, "seq_len": 64, "batch": 16},
    "calibration": {"method": "mse", "samples": 512, "tensors": 2, "table": "mse.json"},
    "engines": [
        engine("fp32", 0.892, 100.0, float_ops=50),
        {
            "precision": "fp16",
            "backend": "openvino",
            "status": "failed",
            "reason": "no half precision here",
            "metrics": {},
        },
        engine(
            "int8",
            0.889,
            40.0,
            compute="int8+f32",
            int8_ops=36,
            float_ops=14,
            speedup=2.5,
            size_bytes=60_000_000,
            against_fp32={
                "metric": "accuracy",
                "difference": -0.003,
                "low": -0.01,
                "high": 0.004,
                "p_value": 0.4,
                "agreement": 0.98,
                "rows": 872,
                "test": "McNemar exact",
            },
        ),
    ],
    "verdict": ["INT8 against FP32: accuracy -0.30 points, at 2.50 times its speed."],
}


def comparison(tasks):
    """The record of a comparison by one method on one backend, whose last cell failed."""
    source = {"metric": "accuracy", "model": {"name": "m"}}
    score = {"accuracy": {"value": 0.89223, "stderr": 0.01051}}
    base = [{"task": t, "backend": "onnxruntime", "method": "", "status": "ok", "metrics": score} for t in tasks]
    change = {"value": -0.01234, "stderr": 0.0101}
    cells = [{**cell, "method": "percentile", "change": change, "speedup": 12.345} for cell in base]
    cells[-1] = {**base[-1], "method": "percentile", "status": "failed", "reason": "no [brackets] are lost " * 5}
    record = {
        "schema": 1,
        "kind": "compare",
        "context": RECORD["context"],
        "tasks": tasks,
        "backends": ["onnxruntime"],
        "methods": ["percentile"],
        "verdict": ["A line."],
    }
    return record | {"sources": dict.fromkeys(tasks, source), "cells": base + cells}
