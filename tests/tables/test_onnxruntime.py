"""The formats of onnxruntime, against onnxruntime's own code: what it writes is read, what we write it reads."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.tables import CalibrationTable, Entry
from quantkit.tables.formats import read_table, write_bytes_of

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")

RANGES = {"/a/b_0": (-1.5, 12.7), "c: d": (0.0, 1.0), "zero": (0.0, 0.0), "wide": (-3e38, 2.0), "neg": (-4.0, 0.25)}


def tensors_data(method: str = "MinMax", **more: object):
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32), **more)
        for name, (low, high) in RANGES.items()
    }
    return TensorsData(CalibrationMethod[method], data)


def expected(name: str) -> np.float32:
    low, high = (np.float32(end) for end in RANGES[name])
    return np.float32(max(abs(low), abs(high)) / np.float32(127))


@pytest.fixture
def written(tmp_path):
    """The folder with the three files of write_calibration_table."""
    from onnxruntime.quantization.quant_utils import write_calibration_table

    write_calibration_table(dict(tensors_data().items()), str(tmp_path))
    return tmp_path


def test_calibration_json(written):
    loaded = read_table(written / "calibration.json")
    assert loaded.format == "onnxruntime"
    for name, (low, high) in RANGES.items():
        entry = loaded.table[name]
        assert entry.scale == expected(name)
        if low != -high:
            assert (entry.minimum, entry.maximum) == (float(np.float32(low)), float(np.float32(high)))


@pytest.mark.parametrize("method", ["MinMax", "Entropy", "Percentile"])
def test_the_calibration_cache_of_quantize_static(tmp_path, method):
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    if not hasattr(calibrate, "save_tensors_data"):
        pytest.skip("this onnxruntime keeps no calibration cache")
    histogram = {"hist": np.arange(4), "bins": 4}
    calibrate.save_tensors_data(tensors_data(method, **histogram), tmp_path / "cache.json")
    table = read_table(tmp_path / "cache.json").table
    assert table.algorithm == method.lower()
    assert {name: entry.scale for name, entry in table.entries.items()} == {name: expected(name) for name in RANGES}
    # What we write, onnxruntime reads, and finds the same ranges and method.
    (tmp_path / "ours.json").write_bytes(write_bytes_of(table, "onnxruntime")[0])
    ours = calibrate.load_tensors_data(tmp_path / "ours.json")
    assert ours.calibration_method == calibrate.CalibrationMethod[method]
    for name, data in tensors_data(method).items():
        assert ours[name].range_value == data.range_value
        assert ours[name].range_value[0].dtype == np.float32


def test_flat_buffer_and_text(written):
    for name, kind in (("calibration.flatbuffers", "flatbuffers"), ("calibration.cache", "text")):
        loaded = read_table(written / name)
        assert loaded.format == kind
        assert "max(highest, lowest)" in loaded.notes[0]
        upper = {tensor: np.float32(np.float32(high) / np.float32(127)) for tensor, (_, high) in RANGES.items()}
        assert loaded.table.scales == upper


def test_a_range_below_zero_is_refused_where_only_its_upper_end_is_left(tmp_path, monkeypatch):
    from onnxruntime.quantization.quant_utils import write_calibration_table

    from quantkit.errors import TableError

    monkeypatch.setitem(RANGES, "below", (-50.0, -3.0))
    write_calibration_table(dict(tensors_data().items()), str(tmp_path))
    for name in ("calibration.flatbuffers", "calibration.cache"):
        with pytest.raises(TableError, match="below"):
            read_table(tmp_path / name)
    assert read_table(tmp_path / "calibration.json").table["below"].scale == np.float32(50 / 127)


def test_onnxruntime_reads_our_flat_buffer():
    from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable

    draw = np.random.default_rng(3)
    scales = draw.integers(1, 0x40000000, 50, dtype=np.uint32).view(np.float32)
    table = CalibrationTable({f"täg {i}" + "x" * (i % 5): Entry(scale) for i, scale in enumerate(scales)})
    theirs = TrtTable.GetRootAs(bytearray(write_bytes_of(table, "flatbuffers")[0]), 0)
    assert theirs.DictLength() == 50
    for i, (name, entry) in enumerate(table.entries.items()):
        pair = theirs.Dict(i)
        assert pair.Key().decode() == name
        assert np.float32(float(pair.Value()) / 127) == entry.scale
