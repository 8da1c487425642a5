"""Where a table came from: readable reasons, and only real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantkit.errors import TableError
from quantkit.tables import Provenance


def sample() -> Provenance:
    return Provenance(
        model_sha256="3fa2" * 16,
        data_sha256="77aa" * 16,
        samples=512,
        seed=7,
        batch=16,
        seq_len=64,
        method="entropy",
        parameters={},
        range_mode="tensorrt",
        ignore_padding=False,
        collector="openvino",
        versions={"numpy": "2.1", "openvino": "2026.4"},
    )


def test_same_provenance_has_no_mismatch():
    assert sample().mismatches(sample()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_sha256": "9bc1" * 16}, "model: table 3fa23fa23fa2..., this model 9bc19bc19bc1..."),
        ({"data_sha256": "00" * 32}, "calibration data: table 77aa77aa77aa..., this calibration data 000000000000..."),
        ({"samples": 256}, "samples: table 512, this run 256"),
        ({"seed": None}, "seed: table 7, this run none"),
        ({"batch": 8}, "batch size: table 16, this run 8"),
        ({"seq_len": None}, "sequence length: table 64, this run none"),
        ({"method": "minmax"}, "method: table entropy, this run minmax"),
        ({"parameters": {"percentile": 99.9}}, "parameters: table none, this run percentile=99.9"),
        ({"range_mode": "pow2"}, "range mode: table tensorrt, this run pow2"),
        ({"ignore_padding": True}, "ignore padding: table no, this run yes"),
        ({"collector": "onnxruntime"}, "collector: table openvino, this run onnxruntime"),
    ],
)
def test_each_difference_is_told(change, reason):
    assert sample().mismatches(replace(sample(), **change)) == [reason]


def test_versions_are_told_apart_from_mismatches():
    other = replace(sample(), versions={"numpy": "2.2", "scipy": "1.11"})
    assert sample().mismatches(other) == []
    assert sample().version_changes(other) == [
        "numpy: table 2.1, here 2.2",
        "openvino: table 2026.4, here none",
        "scipy: table none, here 1.11",
    ]


def test_dict_round_trip():
    assert Provenance.from_dict(sample().to_dict()) == sample()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples", "512"),
        ("samples", True),
        ("samples", None),
        ("seed", 1.5),
        ("seq_len", False),
        ("ignore_padding", 0),
        ("parameters", []),
        ("versions", {"numpy": 2}),
        ("model_sha256", None),
    ],
)
def test_wrong_types_are_refused(field, value):
    with pytest.raises(TableError, match=field):
        Provenance.from_dict({**sample().to_dict(), field: value})
